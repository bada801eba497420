//! The `Date` of answers (RFC 9110, section 5.6.7).

use std::cell::RefCell;

use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};

thread_local!(static LAST: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) });

/// Hands over the text of that second, which is written once for all answers that are made in it.
pub fn with(now: Timestamp, say: impl FnOnce(&str)) {
    LAST.with_borrow_mut(|(second, text)| {
        if *second != now.as_second() {
            *second = now.as_second();
            *text = DateTimePrinter::new().timestamp_to_rfc9110_string(&now).unwrap_or_default();
        }
        if !text.is_empty() {
            say(text);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_own() {
        for (second, expected) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_778, "Sun, 06 Nov 1994 08:49:38 GMT"),
        ] {
            let mut said = String::new();
            with(Timestamp::from_second(second).unwrap(), |date| said = date.to_owned());
            assert_eq!(said, expected);
        }
    }
}
