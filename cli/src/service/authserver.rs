use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use axum::Router;
use runtime::settings;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{listen, run_with_admin, start};

/// The file of `dormouse authserver`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Plain HTTP, behind the proxy.
    listen: SocketAddr,
    /// Health and metrics; never to be reached from outside.
    admin_listen: SocketAddr,
    /// Standard output when unset.
    #[serde(default)]
    pub audit_file: Option<PathBuf>,
    pub authserver: authserver::Config,
}

/// As the service reads them, for commands beside it.
pub fn read(file: &Path) -> anyhow::Result<Settings> {
    Ok(settings::load(Some(file))?)
}

pub async fn run(file: Option<&Path>) -> anyhow::Result<()> {
    let settings: Settings = settings::load(file)?;
    let ctx = start("authserver", settings.audit_file.as_deref())?;
    let listener = listen(settings.listen, "listen").await?;
    let admin = listen(settings.admin_listen, "admin_listen").await?;
    let service = authserver::serve(settings.authserver, listener, ctx.clone());
    run_with_admin(service, admin, Router::new(), ctx).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_whole() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/samples/authserver.toml");
        let settings: Settings = settings::load(Some(Path::new(sample))).unwrap();
        assert_eq!(settings.admin_listen.port(), 9090);
    }
}
