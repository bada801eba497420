//! Load for the benchmarks, on one thread: an upstream that costs little, and clients that open
//! WebSockets and read streams. Figures go to standard output as one line of JSON.

mod client;
mod flood;
mod frame;
mod mixed;
mod stream;
mod upstream;
mod websockets;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand};

use crate::client::Target;

#[derive(Parser)]
#[command(name = "dormouse-load", about = "Load for the benchmarks")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer 1 KiB, streams of any length (/stream/BYTES) and WebSockets that echo
    Upstream {
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: SocketAddr,
    },
    /// Send a message on each WebSocket, wait for its echo, and so on; print how many there were
    Echo {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
    },
    /// Open WebSockets, print a line, and hold them until standard input ends; each must then echo
    Idle {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 1000)]
        connections: usize,
    },
    /// Write without an end to whoever connects
    Flood {
        /// The Unix socket to listen on
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// Begin when there are so many connections
        #[arg(long, default_value_t = 1)]
        after: usize,
    },
    /// Forward connections to a workload's Unix socket over SSH, read none of them, print a line, and hold
    /// them until standard input ends; the token is in DORMOUSE_TOKEN
    Unread {
        #[arg(long, value_name = "ADDRESS:PORT")]
        ssh: SocketAddr,
        /// The SSH user name
        #[arg(long, default_value = "lab")]
        user: String,
        /// In the workload
        #[arg(long, value_name = "PATH")]
        socket: String,
        #[arg(long, default_value_t = 80)]
        connections: usize,
        /// Of each connection
        #[arg(long, default_value_t = 125)]
        channels: usize,
        #[arg(long, env = "DORMOUSE_TOKEN", hide = true)]
        token: String,
    },
    /// Send requests of every kind at a steady rate; print figures again and again
    Mixed {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 64)]
        connections: usize,
        /// Requests per second
        #[arg(long, default_value_t = 2000.0)]
        rate: f64,
        #[arg(long, default_value_t = 60.0)]
        seconds: f64,
        #[arg(long, default_value_t = 60.0)]
        every: f64,
        /// A token in each line
        #[arg(long, value_name = "FILE")]
        tokens: PathBuf,
    },
    /// Read one stream after the other on each connection; print how many bytes there were
    Stream {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 4)]
        connections: usize,
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
        /// Bytes of one answer
        #[arg(long, default_value_t = 64 << 20)]
        length: u64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Cli::parse().command {
        Command::Upstream { listen } => upstream::serve(listen).await,
        Command::Echo { target, connections, seconds } => {
            websockets::echo(target, connections, seconds).await
        }
        Command::Idle { target, connections } => websockets::idle(target, connections).await,
        Command::Flood { socket, after } => flood::serve(&socket, after).await,
        Command::Unread { ssh, user, socket, connections, channels, token } => {
            let unread = flood::Unread { address: ssh, user, token, socket, connections, channels };
            unread.hold().await
        }
        Command::Mixed { target, connections, rate, seconds, every, tokens } => {
            mixed::run(target, mixed::Plan { connections, rate, seconds, every, tokens }).await
        }
        Command::Stream { target, connections, seconds, length } => {
            stream::read(target, connections, seconds, length).await
        }
    }
}
