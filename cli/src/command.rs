//! The command line.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use tokio::runtime::Builder;

use crate::{dev, echo, idle, operator, service};

#[derive(Parser)]
#[command(
    name = "dormouse",
    version,
    about = "The front door of a machine-learning platform on Kubernetes",
    after_help = "Examples:\n  dormouse dev                                the whole system on this machine\n  \
                  dormouse proxy --config proxy.toml          one service, as it runs in a cluster\n  \
                  dormouse auth token --data-dir DIR --user alice --expires-in 1h"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole system on this machine, with local processes in place of a cluster
    #[command(
        after_help = "Examples:\n  dormouse dev\n  dormouse dev --idle-after 2m --data-dir /tmp/dormouse\n  \
                            dormouse dev --kubeconfig ~/.kube/config     against another API server"
    )]
    Dev(dev::Options),
    /// Serve HTTP and WebSocket
    Proxy(ConfigFile),
    /// Serve SSH
    SshGateway(ConfigFile),
    /// Issue tokens: the OpenID Connect provider
    Authserver(ConfigFile),
    /// Create what lies under workloads, and put the unused ones to sleep
    Controller(ConfigFile),
    /// Serve the web page and the REST API
    Portal(ConfigFile),
    /// People and tokens, for operators
    #[command(subcommand)]
    Auth(operator::Order),
    /// What counts as use, tried on recordings of traffic
    #[command(subcommand)]
    Idle(idle::Order),
    /// Print the custom resource definitions as YAML, for kubectl apply
    Crds,
    /// The built-in app that says what it was sent
    Echo(EchoOptions),
    /// Run the SSH server inside a workspace (`dormouse agent install|serve`)
    Agent,
    /// Hold a container's processes together; started by the process node
    #[command(hide = true)]
    PodShim,
}

impl Command {
    /// Serves many connections and starts no other program, which would inherit what is set.
    fn is_service(&self) -> bool {
        use Command::{Authserver, Controller, Portal, Proxy, SshGateway};
        matches!(self, Proxy(_) | SshGateway(_) | Authserver(_) | Controller(_) | Portal(_))
    }
}

#[derive(Args)]
#[command(
    after_help = "Each setting can be overridden by a variable: DORMOUSE_<KEY>, with __ between a table and \
                        its key, such as DORMOUSE_PROXY__BASE_DOMAIN."
)]
struct ConfigFile {
    /// The TOML file with the service's settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct EchoOptions {
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
}

pub fn run() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        if error.use_stderr() {
            // One line that says what to do; the whole help is a call away.
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
            let tip = tip.map(|tip| format!(" ({tip})")).unwrap_or_default();
            eprintln!(
                "dormouse: {}{tip}; see `dormouse --help`",
                first.trim_start_matches("error: ")
            );
            std::process::exit(2);
        }
        error.exit()
    });
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if cli.command.is_service() {
        // Where the kernel makes huge pages unasked, idle connections hold several times the memory
        // that they use. Refused by no kernel that matters, and no loss where it is.
        let _ = nix::sys::prctl::set_thp_disable(true);
    }
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("dormouse: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Dev(options) => Box::pin(dev::run(options)).await,
            Command::Proxy(file) => Box::pin(service::proxy::run(file.config.as_deref())).await,
            Command::SshGateway(file) => service::ssh_gateway::run(file.config.as_deref()).await,
            Command::Authserver(file) => service::authserver::run(file.config.as_deref()).await,
            Command::Controller(file) => service::controller::run(file.config.as_deref()).await,
            Command::Portal(file) => service::portal::run(file.config.as_deref()).await,
            Command::Auth(order) => operator::run(order).await,
            Command::Idle(order) => idle::run(&order),
            Command::Crds => print_crds(),
            Command::Echo(options) => echo::serve(options.listen).await,
            // Handled in main, before the runtime.
            Command::Agent | Command::PodShim => Ok(()),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dormouse: {}", runtime::http::whole(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn print_crds() -> anyhow::Result<()> {
    for crd in cluster::crds::all() {
        print!("---\n{}", serde_yaml_ng::to_string(&crd)?);
    }
    Ok(())
}
