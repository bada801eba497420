//! The provider over real HTTP, as browsers, gateways and programs use it. On SQLite.
#![allow(clippy::unwrap_used)]

mod provider;
mod support;
