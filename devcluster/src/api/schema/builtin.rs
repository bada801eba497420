//! The schemas of built-in kinds, generated from their Rust types.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::{
    apps, batch, coordination, core, discovery, networking, policy, rbac, storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;

use super::{Schema, parse};

/// Every definition by its full name (`io.k8s.api.core.v1.Pod`), references as
/// `#/components/schemas/NAME`.
pub static DEFINITIONS: LazyLock<HashMap<String, Value>> = LazyLock::new(generate);

macro_rules! register {
    ($generator:ident, $($kind:ty),* $(,)?) => { $( let _ = $generator.subschema_for::<$kind>(); )* };
}

fn generate() -> HashMap<String, Value> {
    let mut settings = SchemaSettings::openapi3();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = SchemaGenerator::new(settings);
    register!(
        generator,
        core::v1::Pod,
        core::v1::PodTemplate,
        core::v1::Namespace,
        core::v1::Node,
        core::v1::Service,
        core::v1::Endpoints,
        core::v1::Secret,
        core::v1::ConfigMap,
        core::v1::PersistentVolume,
        core::v1::PersistentVolumeClaim,
        core::v1::Event,
        core::v1::ServiceAccount,
        core::v1::ResourceQuota,
        core::v1::LimitRange,
        apps::v1::StatefulSet,
        apps::v1::Deployment,
        apps::v1::ReplicaSet,
        apps::v1::ControllerRevision,
        batch::v1::Job,
        batch::v1::CronJob,
        discovery::v1::EndpointSlice,
        coordination::v1::Lease,
        storage::v1::StorageClass,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::Role,
        rbac::v1::RoleBinding,
        rbac::v1::ClusterRole,
        rbac::v1::ClusterRoleBinding,
        apiextensions::v1::CustomResourceDefinition,
    );
    generator.take_definitions(true).into_iter().collect()
}

/// The parsed schema of a built-in, by its definition's name. An unknown name gives an
/// open schema: nothing below it is checked.
pub fn schema(name: &str) -> Arc<Schema> {
    match parse::parse_definition(name, &DEFINITIONS) {
        Ok(schema) => schema,
        Err(error) => {
            tracing::error!(%error, definition = name, "no schema for a built-in kind");
            Arc::new(Schema::open())
        }
    }
}

/// The schema of `metadata`, the same for every kind.
pub static OBJECT_META: LazyLock<Arc<Schema>> =
    LazyLock::new(|| schema("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"));
