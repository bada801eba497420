use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use axum::Router;
use controller::{Holding, lease};
use runtime::settings;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{kube_client, listen, run_with_admin, sight, start};

/// The file of `dormouse controller`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Health and metrics; never to be reached from outside.
    admin_listen: SocketAddr,
    /// Standard output when unset.
    #[serde(default)]
    audit_file: Option<PathBuf>,
    /// The cluster this runs in when unset.
    #[serde(default)]
    kubeconfig: Option<PathBuf>,
    controller: controller::Config,
}

pub async fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let settings: Settings = settings::load(file)?;
    let ctx = start("controller", settings.audit_file.as_deref())?;
    let client = kube_client(settings.kubeconfig.as_deref()).await?;
    let admin = listen(settings.admin_listen, "admin_listen").await?;
    let http = runtime::http::client(None)?;
    let watches = sight::watches(&ctx)?;
    let config = settings.controller;
    let claim = lease::Claim {
        client: client.clone(),
        namespace: config.lease_namespace(),
        scope: config.scope.clone(),
        holder: lease::holder(),
        timing: lease::Timing::USUAL,
    };
    let holding = Holding { claim, term: None };
    let service = Box::pin(controller::serve(config, client, http, watches, holding, ctx.clone()));
    run_with_admin(service, admin, Router::new(), ctx).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_whole() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/samples/controller.toml");
        let settings: Settings = settings::load(Some(Path::new(sample))).unwrap();
        assert_eq!(settings.admin_listen.port(), 9090);
    }
}
