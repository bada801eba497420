//! `dormouse`: one program for every service, and the whole system on one machine.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod command;
mod dev;
mod echo;
mod idle;
mod operator;
mod service;

use std::process::ExitCode;

/// The gateways allocate and free small things at a high rate on few threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    // These two run once per container and stay there: they come before everything that costs
    // memory or starts threads.
    match args.next().as_deref().and_then(|first| first.to_str()) {
        Some("pod-shim") => return devcluster::node::shim::main(args),
        Some("agent") => return agent::main(args.collect()),
        _ => {}
    }
    command::run()
}
