use std::sync::Arc;

use domain::upstream::{Routing, UpstreamProtocol, UpstreamTls, Verification};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::EnvVar;
use super::parts::{ENV_ONCE, ENV_ONCE_SAYS, ENV_RESERVED, ENV_RESERVED_SAYS};

/// What a program speaks at its port, as a Service's `appProtocol` says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AppProtocol {
    /// HTTP/1.1.
    #[default]
    #[serde(rename = "http")]
    Http,
    /// HTTP/2 without TLS, by prior knowledge.
    #[serde(rename = "kubernetes.io/h2c")]
    H2c,
    /// The same.
    #[serde(rename = "grpc")]
    Grpc,
    /// HTTP/2 or HTTP/1.1 over TLS.
    #[serde(rename = "https")]
    Https,
}

impl AppProtocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H2c => "kubernetes.io/h2c",
            Self::Grpc => "grpc",
            Self::Https => "https",
        }
    }

    /// `None` for what is said of other protocols, which are spoken over HTTP/1.1.
    fn of(text: &str) -> Option<Self> {
        match text {
            "http" | "kubernetes.io/ws" => Some(Self::Http),
            "kubernetes.io/h2c" => Some(Self::H2c),
            "grpc" => Some(Self::Grpc),
            "https" | "kubernetes.io/wss" => Some(Self::Https),
            _ => None,
        }
    }
}

/// How the certificate of an app's pods is checked. Unset: by the authorities that the gateway's
/// system trusts, for the name of the app's Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.caCertificates) && has(self.insecure) && self.insecure)").message("give either caCertificates or insecure: true"))]
pub struct TlsSpec {
    /// The name that the certificate must be for. Unset: `<app>.<project>.svc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub server_name: Option<String>,
    /// PEM certificates of the authorities to believe, and no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub ca_certificates: Option<String>,
    /// Believe any certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
}

impl TlsSpec {
    fn upstream(&self, name: &str, namespace: &str) -> UpstreamTls {
        let verification = match (&self.ca_certificates, self.insecure) {
            (Some(pem), _) => Verification::Authorities(pem.clone()),
            (None, Some(true)) => Verification::Skip,
            (None, _) => Verification::System,
        };
        let given = self.server_name.clone().filter(|name| !name.is_empty());
        let server_name = given.unwrap_or_else(|| format!("{name}.{namespace}.svc"));
        UpstreamTls { server_name, verification }
    }
}

/// How an app's requests are shared out among its pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RoutingSpec {
    /// A browser stays with the pod that answered it first, for programs that keep a person's state
    /// in memory, such as Streamlit.
    pub sticky: bool,
}

/// A second revision of an app beside the first: the app but for what is set here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct Canary {
    /// Of a hundred people, so many get the canary: always the same ones, and with a growing weight
    /// nobody goes back.
    #[schemars(with = "i32", range(min = 0, max = 100))]
    pub weight: u8,
    /// How many run when the app is awake.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Besides the app's variables, and in place of those with the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(
        validation = Rule::new(ENV_ONCE).message(ENV_ONCE_SAYS),
        validation = Rule::new(ENV_RESERVED).message(ENV_RESERVED_SAYS)
    )]
    pub env: Vec<EnvVar>,
}

fn one() -> i32 {
    1
}

impl RoutingSpec {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `said` is what the EndpointSlices say, which is what the Service said when they were made.
pub(super) fn routing(app: &super::App, said: Option<&str>) -> Routing {
    let spec = &app.spec;
    let protocol = match said.map_or(Some(spec.app_protocol), AppProtocol::of) {
        None | Some(AppProtocol::Http) => UpstreamProtocol::Http1,
        Some(AppProtocol::H2c | AppProtocol::Grpc) => UpstreamProtocol::H2c,
        Some(AppProtocol::Https) => {
            let meta = &app.metadata;
            let (name, namespace) = (meta.name.as_deref(), meta.namespace.as_deref());
            let tls = spec.tls.clone().unwrap_or_default();
            let tls = tls.upstream(name.unwrap_or_default(), namespace.unwrap_or_default());
            UpstreamProtocol::Tls(Arc::new(tls))
        }
    };
    let canary_weight = spec.canary.as_ref().map_or(0, |canary| canary.weight.min(100));
    Routing { protocol, sticky: spec.routing.sticky, canary_weight }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::App;

    fn app(spec: serde_json::Value) -> App {
        let mut all = json!({"owner": "alice", "image": "any"});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "App",
            "metadata": {"name": "web", "namespace": "team"}, "spec": all,
        }))
        .unwrap()
    }

    fn tls(spec: serde_json::Value) -> UpstreamTls {
        match routing(&app(json!({"appProtocol": "https", "tls": spec})), None).protocol {
            UpstreamProtocol::Tls(tls) => tls.as_ref().clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_slices_say_goes_before_what_was_asked_for() {
        let said = |spec, said| routing(&app(spec), said).protocol;
        assert_eq!(said(json!({}), None), UpstreamProtocol::Http1);
        assert_eq!(said(json!({"appProtocol": "grpc"}), None), UpstreamProtocol::H2c);
        assert_eq!(said(json!({"appProtocol": "grpc"}), Some("http")), UpstreamProtocol::Http1);
        assert_eq!(said(json!({}), Some("kubernetes.io/h2c")), UpstreamProtocol::H2c);
        assert_eq!(said(json!({}), Some("kubernetes.io/ws")), UpstreamProtocol::Http1);
        assert_eq!(said(json!({}), Some("example.org/mine")), UpstreamProtocol::Http1);
        assert!(matches!(said(json!({}), Some("https")), UpstreamProtocol::Tls(_)));
    }

    #[test]
    fn there_is_always_a_name_and_nothing_is_believed_unless_told() {
        let usual = tls(json!({}));
        assert_eq!(usual.server_name, "web.team.svc");
        assert_eq!(usual.verification, Verification::System);
        assert_eq!(tls(json!({"serverName": ""})).server_name, "web.team.svc");
        assert_eq!(tls(json!({"insecure": false})).verification, Verification::System);
        assert_eq!(tls(json!({"insecure": true})).verification, Verification::Skip);
        let both = tls(json!({"insecure": true, "caCertificates": "PEM", "serverName": "a.b"}));
        assert_eq!(both.verification, Verification::Authorities("PEM".to_owned()));
        assert_eq!(both.server_name, "a.b");
    }
}
