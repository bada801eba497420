//! Serves HTTP and WebSocket: the gate, and the engines behind it.
//!
//! [`serve`] runs the whole service. A connection is accepted and its heads are read by `front`;
//! `gate` decides on each request; `lane` (plain exchanges), `engine` (pingora, for all others) and
//! `tunnel` (upgraded streams) carry the bytes; `session` signs browsers in.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access_log;
mod answer;
mod config;
mod date;
mod engine;
mod front;
mod gate;
mod io;
mod lane;
mod metrics;
mod pages;
#[doc(hidden)]
pub mod parsers;
mod redirect;
mod seldom;
mod session;
mod tcp;
mod tls;
mod trace;
mod tunnel;
mod upstream;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use domain::{route::RouteTable, token::Verifier, wake::WakeRequest};
use runtime::{
    handover, jwks::JwksFollower, otlp::Exporter, revocations::Revocations, secret,
    service::Context,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub use config::{
    AccessLogConfig, Config, Limits, PlainConfig, Share, SystemAccess, SystemHost, TraceConfig,
};
pub use tls::{Certificates, Tls, config as tls_config};
pub use upstream::clock::monotonic;

use crate::{
    access_log::AccessLog,
    front::{Front, Listeners, hops::TrustedHops},
    gate::{Gate, Parts},
    metrics::Metrics,
    redirect::Redirect,
    session::{Sessions, issuer::Issuer},
    trace::Traces,
};

/// For the last spans to be taken by the collector, once all exchanges have ended.
const LAST_SPANS: Duration = Duration::from_secs(5);

/// What the service is given by whoever starts it.
pub struct Inputs {
    pub routes: watch::Receiver<Arc<RouteTable>>,
    /// Where a sleeping workload is asked for. Never waited on: a full queue is asked again later.
    pub wake: mpsc::Sender<WakeRequest>,
    pub verifier: Arc<Verifier>,
    pub jwks: JwksFollower,
    pub revocations: Revocations,
    /// For calls to the issuer.
    pub http: reqwest::Client,
    pub tls: Tls,
    pub listener: std::net::TcpListener,
    pub plain: Option<Plain>,
}

/// A listener without TLS, behind a load balancer that has ended it.
pub struct Plain {
    pub listener: std::net::TcpListener,
    /// The load balancers' networks: from there `X-Forwarded-For` is believed.
    pub trusted_hops: Vec<ipnet::IpNet>,
}

/// Serves until `ctx.shutdown` is cancelled and what was running has finished or had its time.
pub async fn serve(config: Config, inputs: Inputs, ctx: Context) -> anyhow::Result<()> {
    let Inputs { routes, wake, verifier, jwks, revocations, http, tls, listener, plain } = inputs;
    let (plain, hops) = match plain {
        Some(Plain { listener, trusted_hops }) => (Some(usable(listener)?), trusted_hops),
        None => (None, Vec::new()),
    };
    let listeners = Listeners { tls: usable(listener)?, plain };
    ctx.health.set("sign-in", Err("the issuer has not been reached yet".to_owned()));
    let metrics = Metrics::register(&ctx.registry).context("metrics cannot be registered")?;
    let access_log = AccessLog::start(&config.access_log, metrics.access_log.clone());
    let access_log = Arc::new(access_log.context("proxy.access_log.file cannot be written")?);
    let traced = CancellationToken::new();
    let (exporter, sending) = match &config.trace.otlp_url {
        Some(url) => {
            let (http, traced) = (http.clone(), traced.clone());
            let exporter = Exporter::start(url, "proxy", http, &ctx.registry, traced);
            let (exporter, sending) = exporter.context("proxy.trace.otlp_url")?;
            (Some(exporter), Some(sending))
        }
        None => (None, None),
    };
    let client_secret = secret::read(&config.client_secret_file)?;
    let system_hosts = config.system_hosts.iter().map(|host| host.host.clone());
    let Tls { certificates, redirect } = tls;
    let tls =
        tls::start(certificates, redirect.is_some(), system_hosts, routes.clone(), &ctx).await?;
    let issuer = Arc::new(Issuer::new(
        &config.issuer,
        &config.issuer_internal_url,
        &config.client_id,
        client_secret,
        http,
    ));
    let following = tokio::spawn(issuer.clone().follow(ctx.clone()));
    let sessions = Sessions::new(issuer, verifier.clone(), config.external_port);
    let gate = Arc::new(Gate::new(
        &config,
        Parts {
            routes,
            wake,
            verifier,
            jwks,
            revocations,
            sessions,
            audit: ctx.audit.for_service("proxy"),
            metrics: metrics.clone(),
            hsts: tls.hsts.clone(),
            access_log: access_log.clone(),
            traces: Traces::new(&config.trace, exporter),
            going: CancellationToken::new(),
        },
    ));
    let redirecting = start_redirect(redirect, &config, &tls, &metrics, &ctx)?;
    let rights = tokio::spawn({
        let gate = gate.clone();
        async move { gate.follow_rights().await }
    });
    let engine = engine::new(gate.clone(), &config.limits);
    let (front, stop) = Front::new(
        &config,
        gate,
        engine,
        tls.acceptor.clone(),
        TrustedHops::new(hops),
        ctx.shutdown.clone(),
    );
    // Who hands over to us serves until then.
    tokio::select! {
        () = handover::until_well(&ctx.health) => {}
        () = ctx.shutdown.cancelled() => {}
    }
    Arc::new(front).run(listeners, stop).await;
    if let Some(redirecting) = redirecting {
        let _ = redirecting.await;
    }
    rights.abort();
    following.abort();
    traced.cancel();
    if let Some(sending) = sending {
        let _ = timeout(LAST_SPANS, sending).await;
    }
    let _ = tokio::task::spawn_blocking(move || access_log.close()).await;
    Ok(())
}

fn usable(listener: std::net::TcpListener) -> anyhow::Result<tokio::net::TcpListener> {
    let unusable = "the listener cannot be used";
    listener.set_nonblocking(true).context(unusable)?;
    tokio::net::TcpListener::from_std(listener).context(unusable)
}

fn start_redirect(
    listener: Option<std::net::TcpListener>,
    config: &Config,
    tls: &tls::Running,
    metrics: &Metrics,
    ctx: &Context,
) -> anyhow::Result<Option<JoinHandle<()>>> {
    let Some(listener) = listener else { return Ok(None) };
    let listener = usable(listener)?;
    let redirect =
        Redirect::new(config, tls.challenges.clone(), metrics.clone(), ctx.shutdown.clone());
    Ok(Some(tokio::spawn(Arc::new(redirect).run(listener))))
}
