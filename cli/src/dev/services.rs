//! Starts the services of a development system, each as in production.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, bail};
use axum::Router;
use controller::Holding;
use kube::Client;
use runtime::{audit::Audit, health::Health, service::Context, tls::DevAuthority};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    Options,
    cluster_side::{TAINT, node_name},
    place::Place,
};
use crate::service::{self, IssuerSettings, run_with_admin};

/// The longest a service may take until it is ready.
const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// Nobody waits for long drains on a development machine.
const DRAIN: &str = "2s";

/// Where everything is reached.
pub struct Addresses {
    pub issuer: String,
    pub portal: String,
    pub https: SocketAddr,
    pub ssh: SocketAddr,
}

impl Addresses {
    pub fn new(options: &Options, https: SocketAddr, ssh: SocketAddr) -> Self {
        let port = if https.port() == 443 { String::new() } else { format!(":{}", https.port()) };
        let base = &options.base_domain;
        Self {
            issuer: format!("https://auth.{base}{port}"),
            portal: format!("https://portal.{base}{port}/"),
            https,
            ssh,
        }
    }
}

pub struct Services {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    healths: Vec<(&'static str, Health)>,
    stop: CancellationToken,
}

impl Services {
    /// Waits for the end of all; the first failure ends the others.
    pub async fn ended(mut self) -> anyhow::Result<()> {
        let mut first_error = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let (name, result) = ended.context("a service broke down")?;
            tracing::debug!(service = name, failed = result.is_err(), "ended");
            if let Err(error) = result
                && first_error.is_ok()
            {
                first_error = Err(error.context(format!("{name} failed")));
            }
            self.stop.cancel();
        }
        first_error
    }

    pub async fn wait_until_healthy(&self) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let waiting = async {
            loop {
                ticks.tick().await;
                if self.problems().is_empty() || self.stop.is_cancelled() {
                    return;
                }
            }
        };
        if tokio::time::timeout(HEALTHY_WITHIN, waiting).await.is_err() {
            bail!("not ready after {HEALTHY_WITHIN:?}: {}", self.problems().join("; "));
        }
        Ok(())
    }

    fn problems(&self) -> Vec<String> {
        let lines = self.healths.iter().flat_map(|(service, health)| {
            let problems = health.problems();
            problems.into_iter().map(move |(part, why)| format!("{service}: {part}: {why}"))
        });
        lines.collect()
    }

    fn add<F>(&mut self, name: &'static str, started: Started, service: F, extra: Router)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let Started { ctx, admin, .. } = started;
        self.healths.push((name, ctx.health.clone()));
        self.tasks.spawn(async move { (name, run_with_admin(service, admin, extra, ctx).await) });
    }
}

/// What each service gets of its own.
struct Started {
    ctx: Context,
    admin: TcpListener,
    admin_url: Url,
}

async fn begin(
    name: &'static str,
    audit: &Audit,
    stop: &CancellationToken,
) -> anyhow::Result<Started> {
    let admin = loopback().await?;
    let address = admin.local_addr()?;
    tracing::info!(service = name, admin = %format!("http://{address}"), "starting");
    let ctx = Context {
        registry: prometheus::Registry::new(),
        audit: audit.for_service(name),
        health: Health::new(),
        shutdown: stop.clone(),
    };
    let admin_url = format!("http://{address}/").parse()?;
    Ok(Started { ctx, admin, admin_url })
}

async fn loopback() -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free on 127.0.0.1")
}

pub async fn start(
    options: &Options,
    place: &Place,
    addresses: &Addresses,
    (client, holding): (Client, Holding),
    https: TcpListener,
    ssh: TcpListener,
    stop: &CancellationToken,
) -> anyhow::Result<Services> {
    let mut services = Services { tasks: JoinSet::new(), healths: Vec::new(), stop: stop.clone() };
    let audit = Audit::to_file("dev", &place.audit_log()).context("the audit log")?;
    let secret = place.client_secret_file()?;
    let base = &options.base_domain;
    let scope = holding.claim.scope.clone();

    let authserver = begin("authserver", &audit, stop).await?;
    let authserver_port = loopback().await?;
    let internal = format!("http://{}", authserver_port.local_addr()?);
    let mut config: authserver::Config = settings(json!({
        "issuer": addresses.issuer,
        "base_domain": base,
        "database": place.database(),
        "master_key_file": place.master_key(),
        "create_master_key": true,
        "client_secret_file": secret,
    }))?;
    config.clients = options.clients.clone().unwrap_or_default().clients;
    let overrides = options.settings.clone().unwrap_or_default();
    if let Some(lifetime) = overrides.authserver.access_token_lifetime {
        config.access_token_lifetime = lifetime;
    }
    let serving = authserver::serve(config, authserver_port, authserver.ctx.clone());
    services.add("authserver", authserver, serving, Router::new());

    let issuer = IssuerSettings {
        url: addresses.issuer.clone(),
        internal_url: Some(internal.clone()),
        ca_file: None,
        audience: "dormouse".to_owned(),
    };
    let portal = begin("portal", &audit, stop).await?;
    let portal_port = loopback().await?;
    let portal_address = portal_port.local_addr()?;
    let verified = issuer.verifier(&issuer.http()?, &portal.ctx)?;
    let config = settings(json!({"ssh_host": "127.0.0.1", "ssh_port": addresses.ssh.port()}))?;
    let serving = service::portal::serve(
        config,
        client.clone(),
        (scope.clone(), base.clone()),
        (verified, addresses.issuer.clone()),
        portal_port,
        portal.ctx.clone(),
    );
    services.add("portal", portal, serving, Router::new());

    let gate = begin("proxy", &audit, stop).await?;
    let gate_url = gate.admin_url.clone();
    let authserver_address = internal.trim_start_matches("http://");
    let mut config: proxy::Config = settings(json!({
        "base_domain": base,
        "external_port": addresses.https.port(),
        "issuer": addresses.issuer,
        "issuer_internal_url": internal,
        "client_secret_file": secret,
        "drain_grace": DRAIN,
        "system_hosts": [
            {"host": format!("auth.{base}"), "upstream": authserver_address, "access": "open",
             "closed_paths": ["/internal/"]},
            {"host": format!("portal.{base}"), "upstream": portal_address, "access": "signed-in"},
        ],
    }))?;
    config.limits = overrides.proxy.limits.clone();
    let tls = DevAuthority::open(&place.folder("tls")?)?.server_config(base)?;
    let listener = https.into_std()?;
    let parts = service::proxy::Parts {
        config,
        issuer: issuer.clone(),
        client: client.clone(),
        scope: scope.clone(),
        watches: service::sight::watches(&gate.ctx)?,
        tls: tls.into(),
        listener,
        plain: None,
    };
    let (serving, activity) = parts.build(&gate.ctx)?;
    services.add("proxy", gate, serving, activity);

    let gateway = begin("ssh-gateway", &audit, stop).await?;
    let gateway_url = gateway.admin_url.clone();
    let config: ssh_gateway::Config = settings(json!({
        "host_key_file": place.path("ssh_host_key"),
        "client_key_file": place.path("ssh_agent_client_key"),
        "keys_url": format!("{internal}/internal/ssh-keys"),
        "client_secret_file": secret,
        "drain": DRAIN,
    }))?;
    let keys = ssh_gateway::public_keys(&config)?;
    let parts = service::ssh_gateway::Parts {
        config,
        issuer,
        base_domain: base.clone(),
        client: client.clone(),
        scope: scope.clone(),
        listener: ssh,
    };
    let (serving, activity) = parts.build(&gateway.ctx)?;
    services.add("ssh-gateway", gateway, serving, activity);

    let controller = begin("controller", &audit, stop).await?;
    // Often enough that a short idle time is kept to, rarely enough to cost nothing.
    let gather =
        (options.idle_after / 10).clamp(Duration::from_millis(500), Duration::from_secs(5));
    let config = settings(json!({
        "scope": scope.to_string(),
        "base_domain": base,
        "external_port": addresses.https.port(),
        "gateways": [gate_url.as_str(), gateway_url.as_str()],
        "idle": {
            "after": humantime::format_duration(options.idle_after).to_string(),
            "gather_every": humantime::format_duration(gather).to_string(),
        },
        "agent": {"image": "dormouse", "gateway_key": keys.client},
        "node_selector": scope.name().map_or_else(|| json!({}), |_| {
            json!({"kubernetes.io/hostname": node_name(&scope)})
        }),
        "tolerate_taints": scope.name().map_or_else(Vec::new, |name| vec![format!("{TAINT}={name}")]),
    }))?;
    let http = runtime::http::client(None)?;
    let serving = controller::serve(
        config,
        client,
        http,
        service::sight::watches(&controller.ctx)?,
        holding,
        controller.ctx.clone(),
    );
    services.add("controller", controller, serving, Router::new());
    Ok(services)
}

/// Settings go through the same form that a file's would.
fn settings<T: DeserializeOwned>(values: Value) -> anyhow::Result<T> {
    serde_json::from_value(values).context("a setting of the development system")
}
