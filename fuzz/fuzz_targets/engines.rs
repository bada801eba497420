//! The same bytes through the fast lane and through the general engine: see
//! `proxy/tests/it/engines/mod.rs`, whose harness this is, for what is compared.
//!
//! The input is a request, a line `====`, and an answer; its first byte says where both are cut and
//! whether the upstream closes.
#![no_main]
#![allow(dead_code)]

#[path = "../../proxy/tests/it/engines/canon.rs"]
mod canon;
#[path = "../../proxy/tests/it/engines/harness.rs"]
mod harness;
#[path = "../../proxy/tests/it/issuer.rs"]
mod issuer;
#[path = "../../proxy/tests/it/world.rs"]
mod world;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

use harness::{Case, Pair};

static PAIR: LazyLock<(Runtime, Pair)> = LazyLock::new(|| {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pair = runtime.block_on(Pair::start());
    (runtime, pair)
});

fuzz_target!(|bytes: &[u8]| {
    let Some(case) = Case::of_bytes(bytes) else { return };
    let (runtime, pair) = &*PAIR;
    if let Err(difference) = runtime.block_on(pair.compare(&case)) {
        panic!("{difference}");
    }
});
