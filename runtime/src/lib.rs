//! The plumbing of every service: settings, telemetry, admin endpoint, key refresh, revocations,
//! TLS, audit events, shutdown.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod activity;
pub mod admin;
pub mod audit;
pub mod handover;
pub mod health;
pub mod http;
pub mod jwks;
pub mod open_files;
pub mod otlp;
pub mod revocations;
pub mod routes;
pub mod secret;
pub mod service;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod token_uses;
