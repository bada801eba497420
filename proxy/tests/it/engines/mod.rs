//! Two engines, one meaning: the same bytes go through the fast lane and through the general engine,
//! to the same upstream. What the upstream gets and what the client gets must be the same.
//!
//! What is not compared, and why:
//! - the order of fields with different names, and the case of names: neither means anything (RFC 9110,
//!   sections 5.1 and 5.3); fields of one name keep their order;
//! - how chunks are cut, and the version in a status line: both are each hop's own (RFC 9112, 2.3, 7.1);
//! - what `Date` says, which the general engine always sets itself; that it is there is looked at;
//! - the trailers of an answer, which the lane passes on as they came and the general engine drops;
//! - which of "502" and "broken off" a client gets for an answer that is malformed;
//! - an answer that breaks the protocol may be refused by the lane alone: it is the stricter one;
//! - when something comes, and which connection to the upstream it takes.
//!
//! Besides, of each engine alone: every request at the upstream says who asks and is framed in one way,
//! and a sound answer is delivered to the byte.

mod canon;
mod case;
mod generate;
mod harness;
mod judge;

use proptest::prelude::*;
use tokio::runtime::Builder;

use case::Case;
use harness::Pair;

#[test]
fn both_engines_do_the_same() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let pair = runtime.block_on(Pair::start());
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = ProptestConfig {
        cases: cases.unwrap_or(1000),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(case in generate::case())| {
        runtime.block_on(pair.compare(&case)).map_err(TestCaseError::fail)?;
    });
    let taken = pair.taken_by_lane();
    assert!(taken * 3 > u64::from(cases.unwrap_or(1000)), "the lane took only {taken}");
}

/// What fuzzing began with and what it found (`fuzz/fuzz_targets/engines.rs`).
#[tokio::test]
async fn what_was_fuzzed_stays_the_same() {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let pair = Pair::start().await;
    let mut compared = 0;
    for folder in ["seeds/engines", "seeds/engines/found"] {
        for file in fuzz.join(folder).read_dir().unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                continue;
            }
            let case = Case::of_bytes(&std::fs::read(&path).unwrap()).expect("a case");
            assert_eq!(pair.compare(&case).await, Ok(()), "{}", path.display());
            compared += 1;
        }
    }
    assert!(compared > 300, "only {compared}");
}
