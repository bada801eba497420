//! The provider over real HTTP, as browsers, gateways and programs use it.
#![allow(clippy::unwrap_used)]

mod provider {
    mod account;
    mod code_flow;
    mod guessing;
    mod sessions;
}
mod support;
