//! A pod's status in the API, and its end there.

use crate::node::context::NodeContext;
use crate::node::pod::PodShared;
use crate::node::status;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How soon a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// By when the API server must have answered.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a write may meet with somebody else's before it waits.
const CONFLICTS: usize = 5;

pub struct Reporter {
    ctx: Arc<NodeContext>,
    api: Api<Pod>,
    /// The pod as last seen.
    pub pod: Pod,
    written: Option<PodStatus>,
    gone: bool,
}

fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

impl Reporter {
    pub fn new(ctx: Arc<NodeContext>, pod: Pod) -> Self {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let api = Api::namespaced(ctx.client.clone(), &namespace);
        Self { ctx, api, pod, written: None, gone: false }
    }

    pub fn seen(&mut self, pod: &Pod) {
        self.pod = pod.clone();
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    /// Writes the status if it is not what the API has. `Some`: it could not, and when to try again.
    pub async fn write(&mut self, shared: &PodShared) -> Option<Instant> {
        for _ in 0..CONFLICTS {
            if self.gone {
                return None;
            }
            let model = shared.model();
            let status = status::compute(&self.pod, &model, self.ctx.host_ip, Timestamp::now());
            if !self.is_news(&status) {
                return None;
            }
            let mut pod = self.pod.clone();
            pod.status = Some(status.clone());
            let params = PostParams::default();
            let write = self.api.replace_status(self.name(), &params, &pod);
            match tokio::time::timeout(DEADLINE, write).await {
                Ok(Ok(pod)) => {
                    self.pod = pod;
                    self.written = Some(status);
                    return None;
                }
                Ok(Err(error)) if is_code(&error, 409) => {
                    if let Err(error) = self.read().await {
                        tracing::debug!(pod = shared.shown(), %error, "the pod cannot be read");
                        break;
                    }
                }
                Ok(Err(error)) if is_code(&error, 404) => {
                    self.gone = true;
                    return None;
                }
                Ok(Err(error)) => {
                    tracing::warn!(pod = shared.shown(), %error, "the pod's status cannot be written; trying again");
                    break;
                }
                Err(_) => {
                    tracing::warn!(
                        pod = shared.shown(),
                        "the API server does not answer; trying again"
                    );
                    break;
                }
            }
        }
        Some(Instant::now() + RETRY)
    }

    /// Whether `status` differs from what was written, or somebody has undone the parts of it that matter most.
    fn is_news(&self, status: &PodStatus) -> bool {
        if self.written.as_ref() != Some(status) && self.pod.status.as_ref() != Some(status) {
            return true;
        }
        let essence = |status: &PodStatus| {
            let ready = status
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == "Ready")
                .map(|c| c.status.clone());
            (status.phase.clone(), status.pod_ip.clone(), ready)
        };
        self.pod.status.as_ref().map(essence) != Some(essence(status))
    }

    async fn read(&mut self) -> kube::Result<()> {
        match tokio::time::timeout(DEADLINE, self.api.get_opt(self.name())).await {
            Ok(pod) => match pod? {
                Some(pod) if pod.metadata.uid == self.pod.metadata.uid => self.pod = pod,
                _ => self.gone = true,
            },
            Err(_) => return Err(kube::Error::Service("no answer in time".into())),
        }
        Ok(())
    }

    /// Deletes the object, whose processes have ended. `Some`: it could not, and when to try again.
    pub async fn delete(&mut self) -> Option<Instant> {
        let preconditions =
            Preconditions { uid: self.pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
        match tokio::time::timeout(DEADLINE, self.api.delete(self.name(), &params)).await {
            Ok(Ok(_)) => None,
            // Gone, or another pod of that name by now.
            Ok(Err(error)) if is_code(&error, 404) || is_code(&error, 409) => None,
            Ok(Err(error)) => {
                tracing::warn!(pod = self.name(), %error, "a pod that has ended cannot be deleted; trying again");
                Some(Instant::now() + RETRY)
            }
            Err(_) => Some(Instant::now() + RETRY),
        }
    }
}
