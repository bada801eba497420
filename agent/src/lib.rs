//! The small SSH server that runs beside the user's process in a workspace pod.
//!
//! It trusts one key, the gateway's, and needs nothing in the image but a shell: `dormouse agent
//! install` puts the program into the pod, `dormouse agent serve --detach` starts it there.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod detach;
mod forward;
mod gateway;
mod install;
mod login;
mod owner;
mod process;
mod pty;
mod queue;
mod server;
mod session;
mod settings;
mod sftp;
mod streamlocal;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Parsers of outside input, for fuzzing; not an API.
#[doc(hidden)]
pub mod parsers {
    pub use crate::sftp::read_apart as sftp;
}

pub use crate::{
    server::serve,
    settings::{KEYS, LISTEN, LOOPBACK, Settings, SettingsError},
};

const USAGE: &str = "usage: dormouse agent install --to DIR
       dormouse agent serve [--detach]";

enum Order {
    Install { to: PathBuf },
    Serve { detach: bool },
}

fn parse(args: &[OsString]) -> Option<Order> {
    let words: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap_or("?")).collect();
    match words.as_slice() {
        ["install", "--to", _] => Some(Order::Install { to: PathBuf::from(args.get(2)?) }),
        ["serve"] => Some(Order::Serve { detach: false }),
        ["serve", "--detach"] => Some(Order::Serve { detach: true }),
        _ => None,
    }
}

/// Runs `dormouse agent ...`; `args` are the arguments after `agent`. Must be called outside of any
/// asynchronous runtime: the daemon has one thread of its own.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let result = match parse(&args) {
        None => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
        Some(Order::Install { to }) => std::env::current_exe()
            .map_err(anyhow::Error::from)
            .and_then(|program| Ok(install::install(&program, &to)?))
            .map(|_| ()),
        Some(Order::Serve { detach: true }) => detach::start().map_err(anyhow::Error::from),
        Some(Order::Serve { detach: false }) => run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dormouse: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let settings = Settings::load(|name| std::env::var_os(name))?;
    let daemon = detach::is_daemon();
    if !daemon {
        let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(settings.listen).await.map_err(|error| {
            anyhow::anyhow!("cannot listen on {}: {error}; is the port free?", settings.listen)
        })?;
        let stop = CancellationToken::new();
        stop_on_signal(&stop)?;
        if daemon {
            detach::listening()?;
        }
        serve(settings, listener, stop).await;
        Ok(())
    })
}

fn stop_on_signal(stop: &CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signals, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    // The end of the terminal or session that the pod's runner had is not the agent's end.
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move { while hangups.recv().await.is_some() {} });
    Ok(())
}
