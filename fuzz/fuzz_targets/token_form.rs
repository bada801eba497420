#![no_main]

use authserver::parsers;
use libfuzzer_sys::fuzz_target;

// The first line is the `Authorization` header, the rest the form.
fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (header, form) = bytes.split_at(end);
    parsers::token_form(header, form.strip_prefix(b"\n").unwrap_or(form));
});
