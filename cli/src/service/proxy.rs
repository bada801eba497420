use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use axum::Router;
use cluster::{scope::Scope, watch::Watches};
use kube::Client;
use proxy::{Certificates, Tls, tls_config::TlsConfig};
use runtime::{service::Context, settings};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{IssuerSettings, gateway, kube_client, listen, run_with_admin, sight, start};

/// The file of `dormouse proxy`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// HTTPS.
    listen: SocketAddr,
    /// Health, metrics and activity; never to be reached from outside.
    admin_listen: SocketAddr,
    /// Standard output when unset.
    #[serde(default)]
    audit_file: Option<PathBuf>,
    /// The cluster this runs in when unset.
    #[serde(default)]
    kubeconfig: Option<PathBuf>,
    /// Whose workloads, where the cluster has several Dormouse. The controller's is the same.
    #[serde(default)]
    scope: Scope,
    #[serde(default)]
    tls: TlsConfig,
    /// Certificates in Secrets of the cluster, as cert-manager leaves them.
    #[serde(default)]
    tls_secrets: Option<TlsSecrets>,
    /// Sends plain HTTP to HTTPS.
    #[serde(default)]
    redirect: Option<RedirectPort>,
    #[serde(default)]
    plain: Option<proxy::PlainConfig>,
    /// A file with certificates of an authority to trust for the issuer, besides the system's.
    #[serde(default)]
    issuer_ca_file: Option<PathBuf>,
    /// What tokens must be made for.
    #[serde(default = "super::audience")]
    audience: String,
    proxy: proxy::Config,
}

/// Which Secrets of type `kubernetes.io/tls` hold certificates.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TlsSecrets {
    namespace: String,
    /// A label selector; all of the namespace when unset.
    #[serde(default)]
    labels: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RedirectPort {
    /// Plain HTTP. Answers the challenges of an ACME authority as well.
    listen: SocketAddr,
}

pub async fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let settings: Settings = settings::load(file)?;
    let ctx = start("proxy", settings.audit_file.as_deref())?;
    let client = kube_client(settings.kubeconfig.as_deref()).await?;
    let watches = sight::watches(&ctx)?;
    let elsewhere = settings.tls_secrets.map(|secrets| {
        let TlsSecrets { namespace, labels } = secrets;
        let options = cluster::certificates::Options { namespace, labels };
        cluster::certificates::watch(client.clone(), options, watches.clone(), ctx.shutdown.clone())
    });
    let redirect = match settings.redirect {
        Some(redirect) => Some(listen(redirect.listen, "redirect.listen").await?.into_std()?),
        None => None,
    };
    let certificates = Certificates::Managed { config: Box::new(settings.tls), elsewhere };
    let tls = Tls { certificates, redirect };
    let listener = listen(settings.listen, "listen").await?.into_std()?;
    let plain = match settings.plain {
        Some(plain) => Some(proxy::Plain {
            listener: listen(plain.listen, "plain.listen").await?.into_std()?,
            trusted_hops: plain.trusted_hops,
        }),
        None => None,
    };
    let admin = listen(settings.admin_listen, "admin_listen").await?;
    let issuer = IssuerSettings {
        url: settings.proxy.issuer.clone(),
        internal_url: Some(settings.proxy.issuer_internal_url.clone()),
        ca_file: settings.issuer_ca_file,
        audience: settings.audience,
    };
    let Settings { proxy: config, scope, .. } = settings;
    let parts = Parts { config, issuer, client, scope, watches, tls, listener, plain };
    let (service, activity) = parts.build(&ctx)?;
    run_with_admin(service, admin, activity, ctx).await
}

/// Everything a proxy is made of.
pub struct Parts {
    pub config: proxy::Config,
    pub issuer: IssuerSettings,
    pub client: Client,
    pub scope: Scope,
    pub watches: Watches,
    pub tls: Tls,
    pub listener: std::net::TcpListener,
    pub plain: Option<proxy::Plain>,
}

impl Parts {
    /// The running service, and what its admin port answers besides health and metrics.
    pub fn build(
        self,
        ctx: &Context,
    ) -> anyhow::Result<(impl Future<Output = anyhow::Result<()>> + Send + 'static, Router)> {
        // Keys, routes and revocations are followed until the last request has ended.
        let (behind, until_served) = ctx.behind();
        let http = self.issuer.http().context("issuer")?;
        let (verifier, jwks) = self.issuer.verifier(&http, &behind)?;
        let (id, secret) = (&self.config.client_id, &self.config.client_secret_file);
        let revocations =
            self.issuer.revocations(id, secret, &http, (&verifier, &jwks), &behind)?;
        let gateway =
            gateway(self.client, (&self.scope, &self.config.base_domain), self.watches, &behind);
        let shown = runtime::routes::router(gateway.routes.clone(), proxy::monotonic);
        let inputs = proxy::Inputs {
            routes: gateway.routes,
            wake: gateway.wake,
            verifier,
            jwks,
            revocations,
            http,
            tls: self.tls,
            listener: self.listener,
            plain: self.plain,
        };
        let serving = proxy::serve(self.config, inputs, ctx.clone());
        let relay = gateway.relay;
        let serving = async move {
            let _until_served = until_served;
            let served = serving.await;
            relay.end().await;
            served
        };
        Ok((serving, gateway.activity.merge(shown)))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use devcluster::api::{self, ApiOptions};
    use domain::certificate::Pairs;
    use k8s_openapi::{ByteString, api::core::v1::Secret};
    use kube::{
        Api,
        api::{DeleteParams, Patch, PatchParams, PostParams},
    };
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn the_sample_is_whole() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/samples/proxy.toml");
        let settings: Settings = settings::load(Some(Path::new(sample))).unwrap();
        assert_eq!(settings.admin_listen.port(), 9090);
        assert_eq!(settings.redirect.unwrap().listen.port(), 8080);
    }

    fn secret(name: &str, kind: &str, labelled: bool) -> Secret {
        let data = ["tls.crt", "tls.key"]
            .map(|part| (part.to_owned(), ByteString(format!("{name} {part}").into_bytes())));
        let mut secret =
            Secret { type_: Some(kind.to_owned()), data: Some(data.into()), ..Secret::default() };
        secret.metadata.name = Some(name.to_owned());
        secret.metadata.labels = labelled.then(|| [("serve".to_owned(), "yes".to_owned())].into());
        secret
    }

    fn listed(pairs: &Pairs) -> Vec<(&str, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        pairs.pairs.iter().map(|pair| (pair.name.as_str(), text(&pair.chain))).collect()
    }

    #[tokio::test]
    async fn certificates_follow_the_secrets_of_a_cluster() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let options = ApiOptions {
            data_dir: folder.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
        };
        let server = api::serve(options, stop.clone()).await.unwrap();
        let client = kube_client(Some(server.kubeconfig())).await.unwrap();
        let secrets = Api::<Secret>::namespaced(client.clone(), "default");
        let tls = "kubernetes.io/tls";
        let create = async |secret: Secret| {
            secrets.create(&PostParams::default(), &secret).await.unwrap();
        };
        create(secret("first", tls, true)).await;
        create(secret("not-chosen", tls, false)).await;
        create(secret("another-type", "Opaque", true)).await;

        let options = cluster::certificates::Options {
            namespace: "default".to_owned(),
            labels: Some("serve=yes".to_owned()),
        };
        let mut pairs =
            cluster::certificates::watch(client, options, Watches::default(), stop.clone());
        let mut becomes = async |expected: &[(&str, &str)]| {
            let reached = |pairs: &Arc<Pairs>| {
                let listed = listed(pairs);
                pairs.synced
                    && listed.iter().map(|(n, c)| (*n, c.as_str())).eq(expected.iter().copied())
            };
            let waiting = tokio::time::timeout(Duration::from_secs(20), pairs.wait_for(reached));
            waiting.await.unwrap_or_else(|_| panic!("{expected:?} did not come")).unwrap();
        };
        becomes(&[("default/first", "first tls.crt")]).await;
        create(secret("second", tls, true)).await;
        becomes(&[("default/first", "first tls.crt"), ("default/second", "second tls.crt")]).await;
        let renewed = json!({"data": {"tls.crt": ByteString(b"renewed".to_vec())}});
        let patch = Patch::Merge(renewed);
        secrets.patch("first", &PatchParams::default(), &patch).await.unwrap();
        becomes(&[("default/first", "renewed"), ("default/second", "second tls.crt")]).await;
        secrets.delete("second", &DeleteParams::default()).await.unwrap();
        becomes(&[("default/first", "renewed")]).await;
        stop.cancel();
        server.ended().await;
    }
}
