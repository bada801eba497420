//! The controllers against the real API server, with a stand-in for the node.

mod cluster;
mod deletion;
mod workloads;

use std::time::Duration;

use cluster::TestCluster;
use kube::Api;
use kube::runtime::wait::await_condition;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No wait of these tests takes so long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the object `name` is as `wanted`; returns it.
async fn until<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    wanted: impl Fn(Option<&K>) -> bool,
) -> Option<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let waiting = Box::pin(await_condition(api.clone(), name, |object: Option<&K>| wanted(object)));
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(found) => found.unwrap(),
        Err(_) => {
            let held =
                api.get_opt(name).await.map(|held| held.map(|held| serde_json::to_string(&held)));
            panic!("{name} never came to this: {what}; it is {held:?}")
        }
    }
}

async fn until_gone<K>(api: &Api<K>, name: &str)
where
    K: kube::Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned + Send + 'static,
{
    until(api, name, "gone", |object| object.is_none()).await;
}
