#![no_main]

use authserver::parsers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| parsers::authorize_query(bytes));
