#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::parsers;

fuzz_target!(|bytes: &[u8]| parsers::classify(bytes));
