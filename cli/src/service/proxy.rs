use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use axum::Router;
use kube::Client;
use proxy::{Certificates, Tls, tls_config::TlsConfig};
use runtime::{service::Context, settings};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{IssuerSettings, gateway, kube_client, listen, run_with_admin, start};

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
    let elsewhere = settings.tls_secrets.map(|secrets| {
        let TlsSecrets { namespace, labels } = secrets;
        let options = cluster::certificates::Options { namespace, labels };
        cluster::certificates::watch(client.clone(), options, ctx.shutdown.clone())
    });
    let redirect = match settings.redirect {
        Some(redirect) => Some(listen(redirect.listen, "redirect.listen").await?.into_std()?),
        None => None,
    };
    let certificates = Certificates::Managed { config: settings.tls, elsewhere };
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
    let parts = Parts { config: settings.proxy, issuer, client, tls, listener, plain };
    let (service, activity) = parts.build(&ctx)?;
    run_with_admin(service, admin, activity, ctx).await
}

/// Everything a proxy is made of.
pub struct Parts {
    pub config: proxy::Config,
    pub issuer: IssuerSettings,
    pub client: Client,
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
        let behind = Context { shutdown: CancellationToken::new(), ..ctx.clone() };
        let until_served = behind.shutdown.clone().drop_guard();
        let http = self.issuer.http().context("issuer")?;
        let (verifier, jwks) = self.issuer.verifier(&http, &behind)?;
        let (id, secret) = (&self.config.client_id, &self.config.client_secret_file);
        let revocations = self.issuer.revocations(id, secret, &http, &behind)?;
        let gateway = gateway(self.client, &self.config.base_domain, &behind);
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
        let serving = async move {
            let _until_served = until_served;
            serving.await
        };
        Ok((serving, gateway.activity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_whole() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/samples/proxy.toml");
        let settings: Settings = settings::load(Some(Path::new(sample))).unwrap();
        assert_eq!(settings.admin_listen.port(), 9090);
    }
}
