//! The provider over real HTTP, as browsers, gateways and programs use it. On a PostgreSQL server
//! that the tests start.
#![allow(clippy::unwrap_used)]

mod provider;
mod support;
