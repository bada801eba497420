#![no_main]

use agent::parsers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| parsers::sftp(bytes));
