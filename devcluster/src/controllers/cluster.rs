//! The cluster as the controllers see it.

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, Resource};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cache::{Kind, Store};
use super::events::Recorder;

/// All that is watched, and where events go.
pub struct Cluster {
    pub client: Client,
    pub events: Recorder,
    pub pods: Arc<Store<Pod>>,
    pub nodes: Arc<Store<Node>>,
    pub leases: Arc<Store<Lease>>,
    pub namespaces: Arc<Store<Namespace>>,
    pub services: Arc<Store<Service>>,
    pub slices: Arc<Store<EndpointSlice>>,
    pub claims: Arc<Store<PersistentVolumeClaim>>,
    pub volumes: Arc<Store<PersistentVolume>>,
    pub classes: Arc<Store<StorageClass>>,
    pub statefulsets: Arc<Store<StatefulSet>>,
    pub revisions: Arc<Store<ControllerRevision>>,
    pub deployments: Arc<Store<Deployment>>,
    pub replicasets: Arc<Store<ReplicaSet>>,
    pub jobs: Arc<Store<Job>>,
    pub definitions: Arc<Store<CustomResourceDefinition>>,
}

fn namespaced<K>(client: &Client) -> Arc<Store<K>>
where
    K: Kind + Resource<Scope = NamespaceResourceScope>,
{
    Store::new(client.clone(), |client, namespace| match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    })
}

fn cluster_wide<K: Kind>(client: &Client) -> Arc<Store<K>> {
    Store::new(client.clone(), |client, _| Api::all(client))
}

impl Cluster {
    pub fn new(client: Client, events: Recorder) -> Self {
        Self {
            events,
            pods: namespaced(&client),
            nodes: cluster_wide(&client),
            leases: namespaced(&client),
            namespaces: cluster_wide(&client),
            services: namespaced(&client),
            slices: namespaced(&client),
            claims: namespaced(&client),
            volumes: cluster_wide(&client),
            classes: cluster_wide(&client),
            statefulsets: namespaced(&client),
            revisions: namespaced(&client),
            deployments: namespaced(&client),
            replicasets: namespaced(&client),
            jobs: namespaced(&client),
            definitions: cluster_wide(&client),
            client,
        }
    }

    /// Starts every watch.
    pub fn follow(&self, tasks: &mut JoinSet<()>, shutdown: &CancellationToken) {
        tasks.spawn(self.pods.clone().follow(shutdown.clone()));
        tasks.spawn(self.nodes.clone().follow(shutdown.clone()));
        tasks.spawn(self.leases.clone().follow(shutdown.clone()));
        tasks.spawn(self.namespaces.clone().follow(shutdown.clone()));
        tasks.spawn(self.services.clone().follow(shutdown.clone()));
        tasks.spawn(self.slices.clone().follow(shutdown.clone()));
        tasks.spawn(self.claims.clone().follow(shutdown.clone()));
        tasks.spawn(self.volumes.clone().follow(shutdown.clone()));
        tasks.spawn(self.classes.clone().follow(shutdown.clone()));
        tasks.spawn(self.statefulsets.clone().follow(shutdown.clone()));
        tasks.spawn(self.revisions.clone().follow(shutdown.clone()));
        tasks.spawn(self.deployments.clone().follow(shutdown.clone()));
        tasks.spawn(self.replicasets.clone().follow(shutdown.clone()));
        tasks.spawn(self.jobs.clone().follow(shutdown.clone()));
        tasks.spawn(self.definitions.clone().follow(shutdown.clone()));
    }

    /// Returns when every kind's first list is there: before, "there is none" could be untrue.
    pub async fn synced(&self) {
        self.pods.synced().await;
        self.nodes.synced().await;
        self.leases.synced().await;
        self.namespaces.synced().await;
        self.services.synced().await;
        self.slices.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.statefulsets.synced().await;
        self.revisions.synced().await;
        self.deployments.synced().await;
        self.replicasets.synced().await;
        self.jobs.synced().await;
        self.definitions.synced().await;
    }
}
