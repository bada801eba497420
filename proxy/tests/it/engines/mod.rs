//! Two engines, one meaning: the same bytes go through the fast lane and through the general engine,
//! to the same upstream. What the upstream gets and what the client gets must be the same.
//!
//! What is not compared, and why:
//! - the order of fields with different names, and the case of names: neither means anything (RFC 9110,
//!   sections 5.1 and 5.3); fields of one name keep their order;
//! - how chunks are cut, and the version in a status line: both are each hop's own (RFC 9112, 2.3, 7.1);
//! - `Date`, which the general engine always sets itself;
//! - which of "502" and "broken off" a client gets for an answer that is malformed;
//! - an answer that breaks the protocol may be refused by the lane alone: it is the stricter one.

mod canon;
mod generate;
mod harness;

use proptest::prelude::*;

use harness::{Case, Pair};

#[test]
fn both_engines_do_the_same() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let pair = runtime.block_on(Pair::start());
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = ProptestConfig {
        cases: cases.unwrap_or(300),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(case in generate::case())| {
        runtime.block_on(pair.compare(&case)).map_err(TestCaseError::fail)?;
    });
    let taken = pair.taken_by_lane();
    assert!(taken * 3 > u64::from(cases.unwrap_or(300)), "the lane took only {taken}");
}

/// What fuzzing began with and what it found (`fuzz/fuzz_targets/engines.rs`).
#[tokio::test(flavor = "multi_thread")]
async fn what_was_fuzzed_stays_the_same() {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let pair = Pair::start().await;
    let mut compared = 0;
    for folder in ["seeds/engines", "corpus/engines"] {
        let Ok(files) = fuzz.join(folder).read_dir() else { continue };
        for file in files {
            let path = file.unwrap().path();
            let case = Case::of_bytes(&std::fs::read(&path).unwrap());
            let outcome = pair.compare(&case.expect("a case")).await;
            assert_eq!(outcome, Ok(()), "{}", path.display());
            compared += 1;
        }
    }
    assert!(compared > 0);
}
