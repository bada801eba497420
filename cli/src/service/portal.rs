use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use axum::Router;
use cluster::{
    resources::WorkloadResource,
    scope::Scope,
    watch::{Source, Unread, Watches, events, follow},
};
use domain::token::Verifier;
use futures::StreamExt;
use kube::{
    Client,
    runtime::{
        reflector::{self, Store},
        watcher,
    },
};
use runtime::{handover, jwks::JwksFollower, service::Context, settings};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::TcpListener;

use super::{IssuerSettings, gateway, kube_client, listen, run_with_admin, sight, start};

/// The file of `dormouse portal`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Plain HTTP, behind the proxy.
    listen: SocketAddr,
    /// Health and metrics; never to be reached from outside.
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
    /// Hosts of workloads are `<name>--<project>.<base_domain>`.
    base_domain: String,
    issuer: IssuerSettings,
    portal: portal::Config,
}

pub async fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let settings: Settings = settings::load(file)?;
    let ctx = start("portal", settings.audit_file.as_deref())?;
    let client = kube_client(settings.kubeconfig.as_deref()).await?;
    let http = settings.issuer.http()?;
    let verified = settings.issuer.verifier(&http, &ctx)?;
    let listener = listen(settings.listen, "listen").await?;
    let admin = listen(settings.admin_listen, "admin_listen").await?;
    let service = serve(
        settings.portal,
        client,
        (settings.scope, settings.base_domain),
        (verified, settings.issuer.url),
        listener,
        ctx.clone(),
    );
    run_with_admin(service, admin, Router::new(), ctx).await
}

/// Runs the portal on what it needs of the cluster; `issuer` is what verifies its tokens, and its URL.
pub async fn serve(
    config: portal::Config,
    client: Client,
    (scope, base_domain): (Scope, String),
    ((verifier, jwks), issuer): ((Arc<Verifier>, JwksFollower), String),
    listener: TcpListener,
    ctx: Context,
) -> anyhow::Result<()> {
    // Followed until the last request has ended.
    let (behind, _until_served) = ctx.behind();
    let watches = sight::watches(&behind)?;
    let routes = gateway(client.clone(), (&scope, &base_domain), watches.clone(), &behind).routes;
    let workspaces = store(client.clone(), &watches, &behind);
    let apps = store(client, &watches, &behind);
    let inputs = portal::Inputs { routes, workspaces, apps, verifier, jwks, issuer };
    // Who hands over to us serves until then.
    tokio::select! {
        () = handover::until_well(&ctx.health) => {}
        () = ctx.shutdown.cancelled() => {}
    }
    portal::serve(config, inputs, listener, ctx).await.context("the portal failed")
}

/// A local copy of a kind, kept by a watch until shutdown.
fn store<W: WorkloadResource>(client: Client, watches: &Watches, ctx: &Context) -> Store<W> {
    let (reader, writer) = reflector::store();
    let shutdown = ctx.shutdown.clone();
    let news = follow(Source::<W>::all(client), watches);
    let events = events(news, reader.clone(), Unread::KeepLast).map(Ok::<_, watcher::Error>);
    tokio::spawn(async move {
        let follow = reflector::reflector(writer, events).for_each(|_| std::future::ready(()));
        tokio::select! {
            () = follow => {}
            () = shutdown.cancelled() => {}
        }
    });
    reader
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_whole() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/samples/portal.toml");
        let settings: Settings = settings::load(Some(Path::new(sample))).unwrap();
        assert_eq!(settings.admin_listen.port(), 9090);
    }
}
