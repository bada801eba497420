use std::fmt::Debug;

use domain::{
    upstream::Routing,
    workload::{WorkloadKind, WorkloadRef},
};
use jiff::Timestamp;
use kube::{Resource, core::NamespaceResourceScope};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    App, AppProtocol, IdleSpec, Probe, ProtocolName, Sharing, TrafficSpec, WorkloadStatus,
    Workspace, routing,
};
use crate::labels::WAKE_AT;

/// What a workspace and an app have in common.
pub trait WorkloadResource:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    const KIND: WorkloadKind;

    fn owner(&self) -> &str;
    /// How many pods when awake; 0 is stopped.
    fn replicas(&self) -> i32;
    fn port(&self) -> i32;
    fn protocol(&self) -> ProtocolName;
    fn idle(&self) -> &IdleSpec;
    fn sharing(&self) -> &Sharing;
    fn traffic(&self) -> &TrafficSpec;
    fn status(&self) -> Option<&WorkloadStatus>;

    fn probe(&self) -> Option<&Probe> {
        None
    }

    /// For the Service.
    fn app_protocol(&self) -> AppProtocol {
        AppProtocol::Http
    }

    /// How requests reach its pods; `said` is the `appProtocol` of its EndpointSlices.
    fn routing(&self, _said: Option<&str>) -> Routing {
        Routing::default()
    }

    /// `None` for names that the schema refuses, which an API server without validation may hold.
    fn workload(&self) -> Option<WorkloadRef> {
        let meta = self.meta();
        let project = meta.namespace.as_deref()?.parse().ok()?;
        let name = meta.name.as_deref()?.parse().ok()?;
        Some(WorkloadRef { kind: Self::KIND, project, name })
    }

    /// When somebody asked for it last.
    fn woken_at(&self) -> Option<Timestamp> {
        self.meta().annotations.as_ref()?.get(WAKE_AT)?.parse().ok()
    }

    /// Asleep until a wake later than the last sleep.
    fn is_asleep(&self) -> bool {
        let slept = self.status().and_then(|status| status.sleep_at);
        slept.is_some_and(|slept| self.woken_at().is_none_or(|woken| woken <= slept))
    }
}

macro_rules! workload {
    ($type:ident, { $($own:item)* }) => {
        impl WorkloadResource for $type {
            const KIND: WorkloadKind = WorkloadKind::$type;

            fn owner(&self) -> &str {
                &self.spec.owner
            }
            fn replicas(&self) -> i32 {
                self.spec.replicas
            }
            fn port(&self) -> i32 {
                self.spec.port
            }
            fn protocol(&self) -> ProtocolName {
                self.spec.protocol
            }
            fn idle(&self) -> &IdleSpec {
                &self.spec.idle
            }
            fn sharing(&self) -> &Sharing {
                &self.spec.sharing
            }
            fn traffic(&self) -> &TrafficSpec {
                &self.spec.traffic
            }
            fn status(&self) -> Option<&WorkloadStatus> {
                self.status.as_ref()
            }
            $($own)*
        }
    };
}

workload!(Workspace, {});
workload!(App, {
    fn probe(&self) -> Option<&Probe> {
        self.spec.probe.as_ref()
    }

    fn app_protocol(&self) -> AppProtocol {
        self.spec.app_protocol
    }

    fn routing(&self, said: Option<&str>) -> Routing {
        routing::routing(self, said)
    }
});
