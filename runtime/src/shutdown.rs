//! Ctrl-C, SIGTERM, and the end of the terminal.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels the token at the first SIGINT, SIGTERM or SIGHUP and ends the process at the second, for those
/// who will not wait for the drain.
pub fn on_signals(token: CancellationToken) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        for stopping in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            if stopping {
                tracing::warn!("asked to stop again: leaving at once");
                std::process::exit(130);
            }
            token.cancel();
        }
    });
    Ok(())
}
