//! The shim: one small process between the node and each container.
//!
//! It starts the container's process, is the *child subreaper* of everything that process ever starts
//! (`prctl(2)`, `PR_SET_CHILD_SUBREAPER`), and ends that whole tree when the container ends, when it is told to, or
//! when the node goes away, however the node dies: the node holds the other end of the shim's standard input, and its
//! end of file is the order to leave nothing behind.
//!
//! Containers run without the namespaces that would otherwise do this. A process may make sessions of its own, fork
//! twice, and ignore SIGTERM; it still cannot leave the subreaper's tree.

pub mod protocol;

#[cfg(target_os = "linux")]
mod exec;
#[cfg(target_os = "linux")]
mod supervisor;
#[cfg(target_os = "linux")]
pub mod tree;

use std::ffi::OsString;
use std::process::ExitCode;

/// Environment variable that every process of a container carries, so that what a killed shim left behind can be found.
pub const MARK: &str = "DORMOUSE_CONTAINER_ID";

/// Entry of `dormouse pod-shim`: call it before anything else is set up (no threads, no runtime), it never needs either.
///
/// Standard input must be the node's control socket; standard output and error become the container's.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    if args.into_iter().next().is_some() {
        eprintln!(
            "pod-shim takes no arguments: the node starts it and speaks to it over standard input"
        );
        return ExitCode::from(2);
    }
    run()
}

#[cfg(target_os = "linux")]
fn run() -> ExitCode {
    match supervisor::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pod-shim: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn run() -> ExitCode {
    eprintln!(
        "pod-shim: pods run as local processes on Linux only; use a Linux machine or a virtual machine"
    );
    ExitCode::FAILURE
}
