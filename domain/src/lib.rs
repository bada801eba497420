//! Who may reach what, and is it idle: pure decisions without IO and without a clock.
//!
//! Everything here is given the time as `now`, reads snapshots, and can be tested without a
//! runtime. The services around it only carry bytes.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
pub mod activity;
pub mod certificate;
pub mod classify;
pub mod credit;
pub mod endpoint;
pub mod identity;
pub mod idle;
pub mod name;
pub mod revocation;
pub mod route;
pub mod token;
pub mod traffic;
pub mod upstream;
pub mod variables;
pub mod wake;
pub mod workload;
