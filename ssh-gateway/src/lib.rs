//! Serves SSH: signs people in, wakes the workload, bridges each channel to the agent in the pod.
//!
//! The SSH user name names the workload, `<workspace>` or `<workspace>.<project>`; a token, a
//! registered key or a certificate says who the person is. Nothing is dialled without a [`domain::access::Grant`].
//!
//! Each direction of each channel has a buffer of its own. A channel whose reader stalls is not granted
//! a new window and leaves its siblings alone; what waits in all is bounded by budgets, past which
//! connections slow down, and nothing is ever dropped.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod auth;
mod bridge;
mod budget;
mod certified;
mod config;
mod connection;
mod forward;
mod host_keys;
mod keys;
mod limits;
mod link;
mod metrics;
mod pace;
pub mod queue;
mod refusal;
mod registered;
mod server;
mod session;
mod visit;
mod wake;
mod windows;

use std::sync::Arc;

use anyhow::Context as _;
use domain::{route::RouteTable, token::Verifier, wake::WakeRequest};
use runtime::{jwks::JwksFollower, revocations::Revocations, service::Context};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

pub use crate::{
    config::{Config, Limits},
    keys::KeyError,
};

/// What the gateway is given.
pub struct Inputs {
    pub routes: watch::Receiver<Arc<RouteTable>>,
    pub wake: mpsc::Sender<WakeRequest>,
    pub verifier: Arc<Verifier>,
    /// Asked for the issuer's keys when a token names another one.
    pub jwks: JwksFollower,
    pub revocations: Revocations,
    /// For the list of registered keys.
    pub http: reqwest::Client,
    pub listener: TcpListener,
}

/// The gateway's public keys in OpenSSH's one-line form: the one that clients know, and the one that
/// agents must trust. Makes the keys when they are not there yet, so that others can be told before
/// the gateway serves.
pub fn public_keys(config: &Config) -> Result<PublicKeys, KeyError> {
    let line = |path: &std::path::Path| {
        let key = keys::open(path)?;
        key.public_key().to_openssh().map_err(|_| KeyError::Form(path.to_owned()))
    };
    Ok(PublicKeys { host: line(&config.host_key_file)?, client: line(&config.client_key_file)? })
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKeys {
    pub host: String,
    pub client: String,
}

/// Serves until the shutdown; then ends open sessions after the configured drain.
pub async fn serve(config: Config, inputs: Inputs, ctx: Context) -> anyhow::Result<()> {
    let host_keys = host_keys::open(&config)?;
    let client_key = keys::open(&config.client_key_file)?;
    // The list is followed until the last session has ended.
    let (behind, _until_served) = ctx.behind();
    // Kept to the end: a list without a source counts as one that says nothing more.
    let (_nobody, none_registered) = watch::channel(Arc::default());
    let registered = match &config.keys_url {
        Some(url) => {
            let url = url.parse().with_context(|| format!("keys_url {url:?} is not a URL"))?;
            let secret = config
                .client_secret_file
                .as_deref()
                .context("keys_url needs client_secret_file as well")?;
            let client_secret = runtime::secret::read(secret)?;
            let client_id = config.client_id.clone();
            let http = inputs.http.clone();
            let feed = registered::Feed { url, client_id, client_secret, http };
            registered::follow(feed, &behind)
        }
        None => none_registered,
    };
    let metrics = metrics::Metrics::new(&ctx.registry)?;
    let gate = Arc::new(visit::Gate {
        budgets: budget::Budgets::new(&config.limits, &metrics),
        metrics,
        audit: ctx.audit.for_service("ssh-gateway"),
        routes: inputs.routes,
        wake: inputs.wake,
        verifier: inputs.verifier,
        jwks: inputs.jwks,
        revocations: inputs.revocations,
        registered,
        client_key: Arc::new(client_key),
        client_config: Arc::new(link::config()),
        config,
    });
    connection::accept(gate, host_keys, inputs.listener, ctx).await;
    Ok(())
}
