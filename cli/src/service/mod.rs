//! Wires each service: its settings, its connections, its admin port. Used by the single services
//! and by `dormouse dev` alike.

pub mod authserver;
pub mod controller;
pub mod portal;
pub mod proxy;
pub mod sight;
pub mod ssh_gateway;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum::Router;
use cluster::{scope::Scope, watch::Watches};
use domain::{
    activity::Tracker,
    route::RouteTable,
    token::{Expected, Verifier},
    wake::WakeRequest,
};
use jiff::Timestamp;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use runtime::{
    activity::Relay,
    admin,
    audit::Audit,
    handover,
    health::Health,
    jwks::{self, JwksFollower},
    revocations::{self, Feed, Revocations},
    secret,
    service::Context,
    token_uses,
};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// How far clocks of the issuer and ours may differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// Verified tokens that are remembered: about 2 KiB each.
const TOKENS: usize = 20_000;
/// Wishes to wake that may wait; each is repeated while somebody waits, so losing one delays only.
const WAKES: usize = 1024;

/// Who issues the tokens, and where that is asked from here.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerSettings {
    /// The issuer's public URL, such as `https://auth.example.org`.
    pub url: String,
    /// Where it is reached from here, if not by its public URL, such as `http://authserver:8081`.
    #[serde(default)]
    pub internal_url: Option<String>,
    /// A file with certificates of an authority to trust besides the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// What tokens must be made for.
    #[serde(default = "audience")]
    pub audience: String,
}

fn audience() -> String {
    "dormouse".to_owned()
}

impl IssuerSettings {
    pub fn internal(&self) -> &str {
        self.internal_url.as_deref().unwrap_or(&self.url).trim_end_matches('/')
    }

    pub fn http(&self) -> anyhow::Result<reqwest::Client> {
        Ok(runtime::http::client(self.ca_file.as_deref())?)
    }

    /// A verifier whose keys are kept fresh.
    pub fn verifier(
        &self,
        http: &reqwest::Client,
        ctx: &Context,
    ) -> anyhow::Result<(Arc<Verifier>, JwksFollower)> {
        let expected = Expected {
            issuer: self.url.trim_end_matches('/').to_owned(),
            audience: self.audience.clone(),
            leeway: LEEWAY,
        };
        let verifier = Arc::new(Verifier::new(expected, TOKENS));
        let url = format!("{}/.well-known/jwks.json", self.internal());
        let url =
            url.parse().with_context(|| format!("issuer.url or internal_url: {url} is no URL"))?;
        let follower = jwks::follow(url, http.clone(), verifier.clone(), ctx);
        Ok((verifier, follower))
    }
}

impl IssuerSettings {
    /// What the issuer has withdrawn, kept fresh; and the issuer is told which personal tokens the
    /// verifier saw. `id` and the secret are the gateways' client.
    pub fn revocations(
        &self,
        id: &str,
        secret_file: &Path,
        http: &reqwest::Client,
        (verifier, keys): (&Arc<Verifier>, &JwksFollower),
        ctx: &Context,
    ) -> anyhow::Result<Revocations> {
        let authserver = self.internal();
        let authserver = authserver
            .parse()
            .with_context(|| format!("issuer.url or internal_url: {authserver} is no URL"))?;
        let client_secret = secret::read(secret_file)?;
        let feed = Feed { authserver, client_id: id.to_owned(), client_secret };
        token_uses::report(feed.clone(), http.clone(), verifier.clone(), ctx);
        Ok(revocations::follow(feed, http.clone(), keys.clone(), ctx)?)
    }
}

/// The cluster that a file names, else the one that this runs in, else kubectl's.
pub async fn kube_config(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    let Some(path) = kubeconfig else {
        return Config::infer()
            .await
            .map(without_retries)
            .context("no cluster found: set kubeconfig to a file, or run inside a cluster");
    };
    let read = Kubeconfig::read_from(path)
        .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    config
        .map(without_retries)
        .with_context(|| format!("cannot use the kubeconfig {}", path.display()))
}

/// The client would repeat what is answered with 429 or 503 in pauses that grow to minutes, unseen. Every
/// caller of ours repeats by itself, sooner.
fn without_retries(mut config: Config) -> Config {
    config.default_retry = false;
    config
}

pub async fn kube_client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    Client::try_from(kube_config(kubeconfig).await?).context("the API server cannot be used")
}

pub async fn listen(address: SocketAddr, setting: &'static str) -> anyhow::Result<TcpListener> {
    handover::listen(address, setting).await.with_context(|| {
        format!("cannot listen on {address}; is it in use? Choose another with {setting}")
    })
}

/// Starts telemetry and signals for a service that is alone in its process.
pub fn start(service: &str, audit_file: Option<&Path>) -> anyhow::Result<Context> {
    runtime::telemetry::init();
    runtime::open_files::raise_limit();
    let audit = match audit_file {
        Some(path) => Audit::to_file(service, path)
            .with_context(|| format!("cannot write the audit log {}", path.display()))?,
        None => Audit::to_stdout(service),
    };
    let shutdown = CancellationToken::new();
    runtime::shutdown::on_signals(shutdown.clone()).context("signals cannot be handled")?;
    handover::begin(shutdown.clone()).context("signals cannot be handled")?;
    Ok(Context { registry: prometheus::Registry::new(), audit, health: Health::new(), shutdown })
}

/// The parts that a gateway needs of the cluster.
pub struct Gateway {
    pub routes: watch::Receiver<Arc<RouteTable>>,
    pub wake: mpsc::Sender<WakeRequest>,
    /// To be mounted on the admin port.
    pub activity: Router,
    /// To be ended when nothing is served any more.
    pub relay: Relay,
}

/// Watches routes, carries wakes, and answers for activity.
pub fn gateway(
    client: Client,
    (scope, base_domain): (&Scope, &str),
    watches: Watches,
    ctx: &Context,
) -> Gateway {
    let tracker = Arc::new(Tracker::new());
    let options =
        cluster::routes::Options { scope: scope.clone(), base_domain: base_domain.to_owned() };
    let routes = cluster::routes::watch(
        client.clone(),
        options,
        tracker.clone(),
        watches,
        ctx.shutdown.clone(),
    );
    let (wake, requests) = mpsc::channel(WAKES);
    tokio::spawn(cluster::wake::run(client, scope.clone(), requests, ctx.shutdown.clone()));
    let name = uuid::Uuid::new_v4().to_string();
    let activity = runtime::activity::router(name, Timestamp::now(), tracker.clone());
    watch_health(routes.clone(), ctx);
    Gateway { routes, wake, activity, relay: Relay::start(tracker) }
}

/// Not ready until the first whole route table.
fn watch_health(mut routes: watch::Receiver<Arc<RouteTable>>, ctx: &Context) {
    let ctx = ctx.clone();
    ctx.health.set("routes", Err("the cluster has not been listed yet".to_owned()));
    tokio::spawn(async move {
        tokio::select! {
            synced = routes.wait_for(|table| table.is_synced()) => {
                if synced.is_ok() {
                    ctx.health.set("routes", Ok(()));
                }
            }
            () = ctx.shutdown.cancelled() => {}
        }
    });
}

/// Runs a service and its admin port until both have ended; the first error ends both.
pub async fn run_with_admin<F>(
    service: F,
    admin: TcpListener,
    extra: Router,
    ctx: Context,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    // What a service that drains has to say is asked for on the admin port.
    let served = CancellationToken::new();
    let until_served = served.clone().drop_guard();
    tasks.spawn(async move {
        let _until_served = until_served;
        service.await
    });
    let admin_ctx = ctx.clone();
    tasks.spawn(async move {
        // A service that fails before it is well ends here, too, so that its error is told.
        tokio::select! {
            () = handover::until_well(&admin_ctx.health) => handover::ready(),
            () = served.cancelled() => return Ok(()),
        }
        let (until, shutdown) = (served.child_token(), admin_ctx.shutdown.clone());
        let serving = admin::serve(admin, admin_ctx, extra, until.clone());
        // The port is the successor's from then on.
        let replaced = async {
            handover::replaced(&shutdown).await;
            until.cancel();
            std::future::pending().await
        };
        tokio::select! {
            served = serving => served.context("the admin port failed"),
            () = replaced => Ok(()),
        }
    });
    let mut first_error = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let result = ended.context("a service broke down").flatten();
        if let Err(error) = result
            && first_error.is_ok()
        {
            first_error = Err(error);
        }
        ctx.shutdown.cancel();
    }
    // What was recorded last is not lost with the process.
    let audit = ctx.audit.clone();
    let _ = tokio::task::spawn_blocking(move || audit.flush()).await;
    first_error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_that_drains_is_heard_to_its_end_and_is_not_ready() {
        let folder = tempfile::tempdir().unwrap();
        let ctx = Context {
            registry: prometheus::Registry::new(),
            audit: Audit::to_file("test", &folder.path().join("audit")).unwrap(),
            health: Health::new(),
            shutdown: CancellationToken::new(),
        };
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = admin.local_addr().unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let service = async move {
            let _ = ended.await;
            Ok(())
        };
        let activity = runtime::activity::router(
            "test".to_owned(),
            Timestamp::now(),
            Arc::new(Tracker::new()),
        );
        let running = tokio::spawn(run_with_admin(service, admin, activity, ctx.clone()));
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = runtime::http::client(None).unwrap();
        let status = async |path: &str| {
            http.get(format!("http://{at}/{path}"))
                .send()
                .await
                .map(|answer| answer.status().as_u16())
        };
        assert_eq!(status("readyz").await.unwrap(), 200);
        ctx.shutdown.cancel();
        assert_eq!(status("activity?since=0").await.unwrap(), 200);
        assert_eq!(status("readyz").await.unwrap(), 503);
        end.send(()).unwrap();
        running.await.unwrap().unwrap();
        assert!(status("activity?since=0").await.is_err());
    }
}
