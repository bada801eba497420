//! `dormouse dev`: the whole system in one process on loopback, with local processes in place of a
//! cluster's pods. Every service is the one that runs in production.

mod clients;
mod cluster_side;
mod overrides;
mod people;
mod place;
mod ready;
mod services;
mod workloads;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use cluster::{
    crds::There,
    scope::{InvalidScope, Scope},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{cluster_side::ClusterSide, place::Place};
pub use place::{audit_log, database, issuer_of, master_key};

#[derive(Args, Debug, Clone)]
pub struct Options {
    /// Where everything is kept: objects, volumes, people, keys
    #[arg(long, value_name = "DIR", default_value = ".dormouse")]
    data_dir: PathBuf,
    /// The one HTTPS port
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    https_port: u16,
    #[arg(long, value_name = "PORT", default_value_t = 2222)]
    ssh_port: u16,
    /// Hosts are auth.DOMAIN, portal.DOMAIN and <name>--<project>.DOMAIN
    #[arg(long, value_name = "DOMAIN", default_value = "localhost", value_parser = base_domain)]
    base_domain: String,
    /// Put a workload to sleep after this long without a person's doing, such as 30m
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = idle_after)]
    idle_after: Duration,
    /// Write a JSON file with addresses and credentials when all is up
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Use this API server, with this machine as one of its nodes, in place of the embedded one
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// With --kubeconfig: act on Projects with the label dormouse.dev/scope=NAME alone [default: dev-<host name>]
    #[arg(long, value_name = "NAME", value_parser = named_scope, requires = "kubeconfig")]
    scope: Option<Scope>,
    /// A TOML file with [[clients]]: other programs that sign people in here
    #[arg(long, value_name = "FILE", value_parser = clients::read)]
    clients: Option<clients::Clients>,
    /// A TOML file with [proxy.limits] and [authserver] access_token_lifetime, in place of the usual ones
    #[arg(long, value_name = "FILE", value_parser = overrides::read)]
    settings: Option<Arc<overrides::Overrides>>,
}

/// Below this a person who reads is taken for one who left.
const IDLE_SENSIBLE: Duration = Duration::from_secs(600);
const IDLE_MIN: Duration = Duration::from_secs(1);

fn idle_after(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| "not a length of time such as 20s, 30m or 2h".to_owned())?;
    if duration < IDLE_MIN {
        return Err("at least 1s is needed".to_owned());
    }
    Ok(duration)
}

/// The default scope is that of whoever serves the cluster.
fn named_scope(text: &str) -> Result<Scope, String> {
    let scope: Scope = text.parse().map_err(|error: InvalidScope| error.to_string())?;
    match scope.name() {
        Some(_) => Ok(scope),
        None => Err(format!("`{scope}` is the scope of whoever serves the cluster")),
    }
}

impl Options {
    /// Its own, where the cluster is others' as well.
    fn scope(&self) -> Scope {
        let own = || self.kubeconfig.as_ref().map(|_| cluster_side::own_scope());
        self.scope.clone().or_else(own).unwrap_or_default()
    }
}

fn base_domain(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("not a domain name in lower case such as localhost or dev.example.org".to_owned())
    }
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    runtime::telemetry::init();
    let place = Place::open(&options.data_dir)?;
    let https = bind(options.https_port, "--https-port").await?;
    let ssh = bind(options.ssh_port, "--ssh-port").await?;
    if let Some(file) = &options.ready_file {
        ready::remove(file)?;
    }
    if options.idle_after < IDLE_SENSIBLE {
        tracing::warn!(
            idle_after = %humantime::format_duration(options.idle_after),
            "under ten minutes somebody who only reads looks the same as nobody",
        );
    }

    // Three ends, in this order: the services, then the pods, then the API server.
    let stop = CancellationToken::new();
    runtime::shutdown::on_signals(stop.clone()).context("signals cannot be handled")?;
    let scope = options.scope();
    let starting = ClusterSide::start(options.kubeconfig.as_deref(), &scope, &place);
    let mut cluster_side = tokio::select! {
        started = Box::pin(starting) => started?,
        () = stop.cancelled() => return Ok(()),
    };
    // Of its own, so that a service that fails while others start is not taken for a signal.
    let end = stop.child_token();
    let starting = Box::pin(start_services(&options, &place, https, ssh, &end, &mut cluster_side));
    let started = tokio::select! {
        started = starting => started.map(Some),
        () = stop.cancelled() => Ok(None),
    };
    let ended = match started {
        Ok(Some(services)) => services.ended().await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    // Whatever came of it, no process is left behind.
    stop.cancel();
    tracing::info!("stopping the workloads");
    cluster_side.end().await;
    ended
}

/// Brings the services up, in the order in which things need each other.
async fn start_services(
    options: &Options,
    place: &Place,
    https: TcpListener,
    ssh: TcpListener,
    stop: &CancellationToken,
    cluster_side: &mut ClusterSide,
) -> anyhow::Result<services::Services> {
    let client = cluster_side.client();
    let there = if options.kubeconfig.is_some() { There::Keep } else { There::Replace };
    cluster::crds::apply(&client, there, Duration::from_secs(30)).await?;
    let scope = options.scope();
    let project = workloads::project(&client, &scope).await?;
    let addresses = services::Addresses::new(options, https.local_addr()?, ssh.local_addr()?);
    place.keep_issuer(&addresses.issuer)?;
    let people = people::ensure(place, &addresses.issuer).await?;
    let services = services::start(
        options,
        place,
        &addresses,
        (client.clone(), cluster_side.take_holding()),
        https,
        ssh,
        stop,
    )
    .await?;
    let settling = async {
        let created = workloads::ensure(&client, &scope, &project).await?;
        services.wait_until_healthy().await?;
        workloads::wait_until_settled(&client, &created).await;
        ready::announce(options, &addresses, place, cluster_side.kubeconfig(), &people, &created)
    };
    tokio::select! {
        settled = settling => settled?,
        // Why, their own ends tell.
        () = stop.cancelled() => {}
    }
    Ok(services)
}

async fn bind(port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
        anyhow::anyhow!(
            "cannot listen on 127.0.0.1:{port}: {error}; stop what uses it, or choose another port with {flag}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_what_is_wrong() {
        assert!(idle_after("20s").is_ok());
        assert!(idle_after("soon").unwrap_err().contains("such as 20s"));
        assert!(idle_after("0s").is_err());
        assert!(named_scope("dev-2").is_ok() && named_scope("Dev").is_err());
        assert!(named_scope("default").unwrap_err().contains("whoever serves"));
        assert!(base_domain("localhost").is_ok() && base_domain("dev.example.org").is_ok());
        for bad in ["", "Local", "a..b", "a/b", ".a"] {
            assert!(base_domain(bad).is_err(), "{bad}");
        }
    }
}
