//! Logs: pretty on a terminal, JSON otherwise.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

const DEFAULT_FILTER: &str = "info";

/// Added to every filter. Pingora logs each broken connection as an error, and at lower levels the
/// heads it sends, with the tokens in them; what matters of it is in our own log.
const NEVER: [&str; 3] = ["pingora=off", "pingora_proxy=off", "pingora_core=off"];

/// Call once, first thing. `RUST_LOG` sets the filter.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| DEFAULT_FILTER.into());
    let never = NEVER.iter().filter_map(|directive| directive.parse().ok());
    let filter = never.fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // Failing means that a subscriber is already there, as in tests: that one serves.
    let _ = if stderr().is_terminal() {
        builder.compact().try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    };
}
