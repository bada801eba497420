use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use axum::Router;
use kube::Client;
use runtime::{service::Context, settings, tls};
use schemars::JsonSchema;
use serde::Deserialize;

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
    tls: TlsFiles,
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

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TlsFiles {
    /// PEM: the certificate, then those between it and the authority.
    certificate_file: PathBuf,
    /// PEM.
    key_file: PathBuf,
}

pub async fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let settings: Settings = settings::load(file)?;
    let ctx = start("proxy", settings.audit_file.as_deref())?;
    let client = kube_client(settings.kubeconfig.as_deref()).await?;
    let tls = tls::server_config(&settings.tls.certificate_file, &settings.tls.key_file)?;
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
    pub tls: Arc<rustls::ServerConfig>,
    pub listener: std::net::TcpListener,
    pub plain: Option<proxy::Plain>,
}

impl Parts {
    /// The running service, and what its admin port answers besides health and metrics.
    pub fn build(
        self,
        ctx: &Context,
    ) -> anyhow::Result<(impl Future<Output = anyhow::Result<()>> + Send + 'static, Router)> {
        let http = self.issuer.http().context("issuer")?;
        let (verifier, jwks) = self.issuer.verifier(&http, ctx)?;
        let (id, secret) = (&self.config.client_id, &self.config.client_secret_file);
        let revocations = self.issuer.revocations(id, secret, &http, ctx)?;
        let gateway = gateway(self.client, &self.config.base_domain, ctx);
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
        Ok((proxy::serve(self.config, inputs, ctx.clone()), gateway.activity))
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
