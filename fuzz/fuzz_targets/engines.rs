//! The same bytes through the fast lane and through the general engine: see
//! `proxy/tests/it/engines/mod.rs`, whose harness this is, for what is compared.
//!
//! The input is two bytes that say how it goes (see `Case::of_bytes`), a request, a line `====`, and an
//! answer. `TOKEN` stands for a good token, and `LONG` for very many bytes.
#![no_main]
#![allow(dead_code)]

#[path = "../../proxy/tests/it/engines/canon.rs"]
mod canon;
#[path = "../../proxy/tests/it/engines/case.rs"]
mod case;
#[path = "../../proxy/tests/it/engines/harness.rs"]
mod harness;
#[path = "../../proxy/tests/it/issuer.rs"]
mod issuer;
#[path = "../../proxy/tests/it/engines/judge.rs"]
mod judge;
#[path = "../../proxy/tests/it/world.rs"]
mod world;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

use case::Case;
use harness::Pair;

static PAIR: LazyLock<(Runtime, Pair)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let pair = runtime.block_on(async {
        // As in every other Rust program, writing to who has left is an error and no more.
        let _ = signal(SignalKind::pipe()).unwrap();
        Pair::start().await
    });
    (runtime, pair)
});

fuzz_target!(|bytes: &[u8]| {
    let Some(case) = Case::of_bytes(bytes) else { return };
    let (runtime, pair) = &*PAIR;
    if let Err(difference) = runtime.block_on(pair.compare(&case)) {
        panic!("{difference}");
    }
});
