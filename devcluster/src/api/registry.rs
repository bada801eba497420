//! Which resource types are served: the built-in ones, and those that
//! CustomResourceDefinitions add.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::schema::{Schema, builtin};

/// Where an object's replicas are, for the `scale` subresource. JSON paths as lists of
/// field names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec: Vec<String>,
    pub status: Vec<String>,
    pub selector: Option<Vec<String>>,
}

/// A printer column of a custom resource.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    pub json_path: String,
}

/// One served version of one resource type.
#[derive(Debug)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub status: bool,
    pub scale: Option<ScalePaths>,
    /// Further subresources, for discovery: name and kind.
    pub subresources: Vec<(&'static str, &'static str)>,
    /// `metadata.generation` counts changes of the specification.
    pub generation: bool,
    pub schema: Arc<Schema>,
    /// The schema as published in `/openapi/v3`, for custom resources.
    pub published: Option<Value>,
    pub columns: Vec<Column>,
    pub custom: bool,
    /// `apiVersion` of the stored form.
    pub storage_api_version: String,
    /// `group/plural`: where objects of this type are stored, whatever the version.
    pub store_key: Arc<str>,
}

impl Resource {
    pub fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }

    /// `group/version` of core v1 events seen through `events.k8s.io`.
    pub fn is_new_events(&self) -> bool {
        self.group == "events.k8s.io" && self.plural == "events"
    }

    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }
}

pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

pub fn store_key(group: &str, plural: &str) -> Arc<str> {
    format!("{group}/{plural}").into()
}

/// A consistent set of served types; replaced as a whole when a definition changes.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    resources: BTreeMap<(String, String, String), Arc<Resource>>,
}

impl Registry {
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// Versions of a group in the order clients should prefer them.
    pub fn versions_of(&self, group: &str) -> Vec<&str> {
        let mut versions: Vec<&str> =
            self.iter().filter(|r| r.group == group).map(|r| r.version.as_str()).collect();
        versions.sort_unstable();
        versions.dedup();
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        versions
    }

    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self.iter().map(|r| r.group.as_str()).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    pub fn insert(&mut self, resource: Resource) {
        let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
        self.resources.insert(key, Arc::new(resource));
    }

    pub fn remove_custom(&mut self, group: &str, plural: &str) {
        self.resources.retain(|_, r| !(r.custom && r.group == group && r.plural == plural));
    }

    pub fn with_builtins() -> Self {
        let mut registry = Self::default();
        for entry in BUILTINS {
            registry.insert(entry.resource());
        }
        registry
    }
}

/// `v1` before `v1beta1` before `v1alpha1`, higher numbers first (the order of
/// Kubernetes' version priority).
fn version_rank(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let major = digits(rest);
    let tail = &rest[major.len()..];
    let major = major.parse().unwrap_or(0);
    if tail.is_empty() {
        return (3, major, 0);
    }
    let (level, minor) = match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
        (Some(minor), _) => (2, minor),
        (_, Some(minor)) => (1, minor),
        _ => return (0, major, 0),
    };
    (level, major, minor.parse().unwrap_or(0))
}

struct Builtin {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    status: bool,
    scale: bool,
    generation: bool,
    subresources: &'static [(&'static str, &'static str)],
    /// The package of the definition, `io.k8s.api.core.v1`.
    package: &'static str,
}

const PLAIN: Builtin = Builtin {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    short: &[],
    categories: &[],
    namespaced: true,
    status: false,
    scale: false,
    generation: false,
    subresources: &[],
    package: "io.k8s.api.core.v1",
};

const APPS: Builtin = Builtin {
    group: "apps",
    categories: &["all"],
    status: true,
    scale: true,
    generation: true,
    package: "io.k8s.api.apps.v1",
    ..PLAIN
};

const BATCH: Builtin = Builtin {
    group: "batch",
    categories: &["all"],
    status: true,
    generation: true,
    package: "io.k8s.api.batch.v1",
    ..PLAIN
};

const RBAC: Builtin =
    Builtin { group: "rbac.authorization.k8s.io", package: "io.k8s.api.rbac.v1", ..PLAIN };

const BUILTINS: &[Builtin] = &[
    Builtin {
        kind: "Namespace",
        plural: "namespaces",
        short: &["ns"],
        namespaced: false,
        status: true,
        subresources: &[("finalize", "Namespace")],
        ..PLAIN
    },
    Builtin {
        kind: "Node",
        plural: "nodes",
        short: &["no"],
        namespaced: false,
        status: true,
        ..PLAIN
    },
    Builtin {
        kind: "Pod",
        plural: "pods",
        short: &["po"],
        categories: &["all"],
        status: true,
        subresources: &[("binding", "Binding"), ("eviction", "Eviction"), ("log", "Pod")],
        ..PLAIN
    },
    Builtin { kind: "PodTemplate", plural: "podtemplates", ..PLAIN },
    Builtin {
        kind: "Service",
        plural: "services",
        short: &["svc"],
        categories: &["all"],
        status: true,
        ..PLAIN
    },
    Builtin { kind: "Endpoints", plural: "endpoints", short: &["ep"], ..PLAIN },
    Builtin { kind: "Secret", plural: "secrets", ..PLAIN },
    Builtin { kind: "ConfigMap", plural: "configmaps", short: &["cm"], ..PLAIN },
    Builtin {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        short: &["pv"],
        namespaced: false,
        status: true,
        ..PLAIN
    },
    Builtin {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        short: &["pvc"],
        status: true,
        ..PLAIN
    },
    Builtin { kind: "Event", plural: "events", short: &["ev"], ..PLAIN },
    Builtin { kind: "ServiceAccount", plural: "serviceaccounts", short: &["sa"], ..PLAIN },
    Builtin {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        short: &["quota"],
        status: true,
        ..PLAIN
    },
    Builtin { kind: "LimitRange", plural: "limitranges", short: &["limits"], ..PLAIN },
    Builtin { kind: "StatefulSet", plural: "statefulsets", short: &["sts"], ..APPS },
    Builtin { kind: "Deployment", plural: "deployments", short: &["deploy"], ..APPS },
    Builtin { kind: "ReplicaSet", plural: "replicasets", short: &["rs"], ..APPS },
    Builtin {
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        categories: &[],
        status: false,
        scale: false,
        generation: false,
        ..APPS
    },
    Builtin { kind: "Job", plural: "jobs", ..BATCH },
    Builtin { kind: "CronJob", plural: "cronjobs", short: &["cj"], ..BATCH },
    Builtin {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        generation: true,
        package: "io.k8s.api.discovery.v1",
        ..PLAIN
    },
    Builtin {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        package: "io.k8s.api.coordination.v1",
        ..PLAIN
    },
    Builtin {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        short: &["sc"],
        namespaced: false,
        package: "io.k8s.api.storage.v1",
        ..PLAIN
    },
    Builtin {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        short: &["netpol"],
        generation: true,
        package: "io.k8s.api.networking.v1",
        ..PLAIN
    },
    Builtin {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        short: &["ev"],
        package: "io.k8s.api.events.v1",
        ..PLAIN
    },
    Builtin {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        short: &["pdb"],
        status: true,
        generation: true,
        package: "io.k8s.api.policy.v1",
        ..PLAIN
    },
    Builtin { kind: "Role", plural: "roles", ..RBAC },
    Builtin { kind: "RoleBinding", plural: "rolebindings", ..RBAC },
    Builtin { kind: "ClusterRole", plural: "clusterroles", namespaced: false, ..RBAC },
    Builtin {
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        namespaced: false,
        ..RBAC
    },
    Builtin {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        short: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        status: true,
        generation: true,
        package: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
        ..PLAIN
    },
];

impl Builtin {
    fn resource(&self) -> Resource {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let path = |list: &[&str]| owned(list);
        // Events have one storage: the core form.
        let events = self.plural == "events";
        let storage_group = if events { "" } else { self.group };
        Resource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            kind: self.kind.to_owned(),
            list_kind: format!("{}List", self.kind),
            plural: self.plural.to_owned(),
            singular: self.kind.to_lowercase(),
            short_names: owned(self.short),
            categories: owned(self.categories),
            namespaced: self.namespaced,
            status: self.status,
            scale: self.scale.then(|| ScalePaths {
                spec: path(&["spec", "replicas"]),
                status: path(&["status", "replicas"]),
                selector: None,
            }),
            subresources: self.subresources.to_vec(),
            generation: self.generation,
            schema: builtin::schema(&format!(
                "{}.{}",
                if events { "io.k8s.api.core.v1" } else { self.package },
                self.kind
            )),
            published: None,
            columns: Vec::new(),
            custom: false,
            storage_api_version: group_version(storage_group, self.version),
            store_key: store_key(storage_group, self.plural),
        }
    }
}

/// The full definition name of a built-in, for `/openapi/v3`.
pub fn definition_name(resource: &Resource) -> Option<String> {
    BUILTINS
        .iter()
        .find(|entry| entry.group == resource.group && entry.plural == resource.plural)
        .map(|entry| format!("{}.{}", entry.package, entry.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ranked_like_kubernetes_does() {
        let mut versions = ["v1alpha1", "v2", "v1", "v1beta2", "v1beta1", "other"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(versions, ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "other"]);
    }

    #[test]
    fn each_builtin_has_a_schema() {
        for resource in Registry::with_builtins().iter() {
            assert!(!resource.schema.is_empty_map(), "{} has no schema", resource.kind);
        }
    }
}
