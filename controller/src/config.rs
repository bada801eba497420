//! The controller's settings.

use std::{collections::BTreeMap, time::Duration};

use cluster::scope::Scope;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::Error as _};
use url::Url;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Acts on Projects with the label `dormouse.dev/scope=<scope>` and what is in their namespaces, and on
    /// nothing else. Unset: on Projects without the label, and on namespaces without a Project.
    #[serde(default)]
    pub scope: Scope,
    /// Where the Lease is that only one controller of a scope holds at a time. Unset: the pod's own
    /// namespace, or `default` outside a pod.
    #[serde(default)]
    pub lease_namespace: Option<String>,
    /// Hosts of workloads are `<name>--<project>.<base_domain>`.
    pub base_domain: String,
    /// Added to the URLs that people are shown, when it is not 443.
    #[serde(default)]
    pub external_port: Option<u16>,
    /// Admin addresses of every gateway, HTTP and SSH. No verdict is given while one is silent.
    #[serde(deserialize_with = "urls")]
    #[schemars(with = "Vec<String>")]
    pub gateways: Vec<Url>,
    #[serde(default)]
    pub idle: IdleConfig,
    pub agent: AgentConfig,
    /// Taints that workloads' pods tolerate, each `key` or `key=value`: nodes that are kept for them.
    #[serde(default)]
    pub tolerate_taints: Vec<String>,
    /// Labels of the nodes that workloads' pods may run on; on all when empty.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
}

fn urls<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Url>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let parse = |text: &String| {
        let wrong = |error| {
            D::Error::custom(format!("{text} is no URL such as http://10.0.0.1:9090/: {error}"))
        };
        Url::parse(text).map_err(wrong)
    };
    texts.iter().map(parse).collect()
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IdleConfig {
    /// Sleep after this long without a person's doing, unless the workload says otherwise.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub after: Duration,
    /// How often the gateways are asked.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub gather_every: Duration,
    /// A sleep is announced this long before, at most half of `after`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub warn_before: Duration,
}

impl Default for IdleConfig {
    fn default() -> Self {
        Self {
            after: Duration::from_secs(30 * 60),
            gather_every: Duration::from_secs(5),
            warn_before: Duration::from_secs(5 * 60),
        }
    }
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The image that holds the `dormouse` program; an init step copies it into workspaces.
    pub image: String,
    /// The SSH gateway's public key, `ssh-ed25519 AAAA...`: the only one that agents trust.
    pub gateway_key: String,
}

impl Config {
    /// Where the Lease is.
    pub fn lease_namespace(&self) -> String {
        let own = || std::fs::read_to_string(POD_NAMESPACE).ok();
        let namespace = self.lease_namespace.clone().or_else(own);
        let namespace = namespace.map(|text| text.trim().to_owned()).filter(|it| !it.is_empty());
        namespace.unwrap_or_else(|| "default".to_owned())
    }
}

/// Kubernetes mounts this into every pod with a service account.
const POD_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
