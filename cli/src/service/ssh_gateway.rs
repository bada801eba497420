use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use axum::Router;
use cluster::scope::Scope;
use kube::Client;
use runtime::{handover, revocations::Revocations, service::Context, settings};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::TcpListener;

use super::{IssuerSettings, gateway, kube_client, listen, run_with_admin, sight, start};

/// The file of `dormouse ssh-gateway`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// SSH.
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
    /// The domain of the workloads' hosts, the same as the proxy's.
    base_domain: String,
    issuer: IssuerSettings,
    ssh: ssh_gateway::Config,
}

pub async fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let settings: Settings = settings::load(file)?;
    let ctx = start("ssh-gateway", settings.audit_file.as_deref())?;
    let client = kube_client(settings.kubeconfig.as_deref()).await?;
    let listener = listen(settings.listen, "listen").await?;
    let admin = listen(settings.admin_listen, "admin_listen").await?;
    let Settings { scope, base_domain, issuer, ssh: config, .. } = settings;
    let parts = Parts { config, issuer, base_domain, client, scope, listener };
    let (service, activity) = parts.build(&ctx)?;
    run_with_admin(service, admin, activity, ctx).await
}

/// Everything an SSH gateway is made of.
pub struct Parts {
    pub config: ssh_gateway::Config,
    pub issuer: IssuerSettings,
    pub base_domain: String,
    pub client: Client,
    pub scope: Scope,
    pub listener: TcpListener,
}

impl Parts {
    /// The running service, and what its admin port answers besides health and metrics.
    pub fn build(
        self,
        ctx: &Context,
    ) -> anyhow::Result<(impl Future<Output = anyhow::Result<()>> + Send + 'static, Router)> {
        // Keys, routes and revocations are followed until the last session has ended.
        let (behind, until_served) = ctx.behind();
        let http = self.issuer.http().context("issuer")?;
        let (verifier, jwks) = self.issuer.verifier(&http, &behind)?;
        // Without the gateways' secret there are no registered keys and no feed to be had.
        let revocations = match &self.config.client_secret_file {
            Some(secret) => {
                let id = &self.config.client_id;
                self.issuer.revocations(id, secret, &http, (&verifier, &jwks), &behind)?
            }
            None => Revocations::none(),
        };
        let watches = sight::watches(&behind)?;
        let gateway = gateway(self.client, (&self.scope, &self.base_domain), watches, &behind);
        let inputs = ssh_gateway::Inputs {
            routes: gateway.routes,
            wake: gateway.wake,
            verifier,
            jwks,
            revocations,
            http,
            listener: self.listener,
        };
        let (ctx, relay) = (ctx.clone(), gateway.relay);
        let serving = async move {
            let _until_served = until_served;
            // Who hands over to us serves until then.
            tokio::select! {
                () = handover::until_well(&ctx.health) => {}
                () = ctx.shutdown.cancelled() => {}
            }
            let served = ssh_gateway::serve(self.config, inputs, ctx).await;
            relay.end().await;
            served
        };
        Ok((serving, gateway.activity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_whole() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/samples/ssh-gateway.toml");
        let settings: Settings = settings::load(Some(Path::new(sample))).unwrap();
        assert_eq!(settings.admin_listen.port(), 9090);
    }
}
