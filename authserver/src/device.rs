//! The device flow's decisions (RFC 8628): codes that people type, and how often devices may ask.

use std::fmt;

use jiff::Timestamp;

use crate::secret;

/// How long a device's codes are valid, in seconds.
pub const LIFETIME: i64 = 600;

/// How long a device waits between two questions, in seconds, and what each haste adds to it
/// (RFC 8628, section 3.5).
pub const INTERVAL: i64 = 5;

/// Letters that are not mistaken for one another and make no words (RFC 8628, section 6.1).
const ALPHABET: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

const LETTERS: usize = 8;

/// What a person types: eight letters, 34 bits. Kept without the dash that it is shown with.
#[derive(Clone, PartialEq, Eq)]
pub struct UserCode(String);

impl UserCode {
    pub fn generate() -> Self {
        let mut code = String::with_capacity(LETTERS);
        while code.len() < LETTERS {
            for byte in secret::random() {
                // 240 is a multiple of 20: every letter is as likely as any other.
                if byte < 240 && code.len() < LETTERS {
                    code.extend(ALPHABET.get(usize::from(byte) % 20).copied().map(char::from));
                }
            }
        }
        Self(code)
    }

    /// As people type it: in any case, with dashes and spaces anywhere.
    pub fn parse(typed: &str) -> Option<Self> {
        if typed.len() > 64 {
            return None;
        }
        let code: String = typed
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '-')
            .map(|c| c.to_ascii_uppercase())
            .collect();
        let plain = code.len() == LETTERS && code.bytes().all(|b| ALPHABET.contains(&b));
        plain.then_some(Self(code))
    }

    /// What is stored in its place.
    pub fn digest(&self) -> Vec<u8> {
        secret::digest(&self.0)
    }
}

impl fmt::Display for UserCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, right) = self.0.split_at_checked(LETTERS / 2).unwrap_or((&self.0, ""));
        write!(f, "{left}-{right}")
    }
}

impl fmt::Debug for UserCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserCode")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Pending,
    Approved,
    Denied,
}

impl Decision {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Denied => "denied",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Approved, Self::Denied].into_iter().find(|d| d.as_str() == text)
    }
}

/// A device that waits, at the moment it asks.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    pub decision: Decision,
    /// Seconds since the epoch, as is `asked_at`.
    pub expires_at: i64,
    pub asked_at: Option<i64>,
    pub interval: i64,
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Expired,
    Pending,
    /// And from now on this many seconds between two questions.
    SlowDown(i64),
    Denied,
    Approved,
}

impl Waiting {
    pub fn answer(&self, now: Timestamp) -> Answer {
        let now = now.as_second();
        let hasty = self.asked_at.is_some_and(|asked| now < asked.saturating_add(self.interval));
        if self.expires_at <= now {
            return Answer::Expired;
        }
        match self.decision {
            // A decision is told however hasty the question: there will be no other.
            Decision::Approved => Answer::Approved,
            Decision::Denied => Answer::Denied,
            Decision::Pending if hasty => {
                Answer::SlowDown(self.interval.saturating_add(INTERVAL).min(LIFETIME))
            }
            Decision::Pending => Answer::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_are_read_as_people_type_them() {
        for _ in 0..100 {
            let code = UserCode::generate();
            let shown = code.to_string();
            assert_eq!((shown.len(), shown.as_bytes()[4]), (9, b'-'));
            for typed in [&shown, &shown.to_lowercase(), &format!(" {} ", shown.replace('-', " "))]
            {
                assert_eq!(UserCode::parse(typed), Some(code.clone()), "{typed}");
            }
            assert_eq!(format!("{code:?}"), "UserCode");
        }
        for bad in
            ["", "BCDF", "BCDF-GHJA", "BCDF-GHJ0", "BCDF-GHJKL", "ВCDF-GHJK", &"-".repeat(65)]
        {
            assert_eq!(UserCode::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_letter_comes_up() {
        let text: String = (0..200).map(|_| UserCode::generate().0).collect();
        assert!(ALPHABET.iter().all(|letter| text.contains(char::from(*letter))));
    }

    fn waiting(decision: Decision, asked_at: Option<i64>) -> Waiting {
        Waiting { decision, expires_at: 600, asked_at, interval: 5 }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn rfc_8628_each_answer() {
        use Decision::{Approved, Denied, Pending};
        for (decision, asked_at, now, answer) in [
            (Pending, None, 0, Answer::Pending),
            (Pending, Some(0), 5, Answer::Pending),
            (Pending, Some(0), 4, Answer::SlowDown(10)),
            (Approved, Some(0), 1, Answer::Approved),
            (Denied, None, 1, Answer::Denied),
            (Pending, None, 600, Answer::Expired),
            (Approved, None, 600, Answer::Expired),
            (Denied, None, 600, Answer::Expired),
        ] {
            assert_eq!(waiting(decision, asked_at).answer(at(now)), answer, "{decision:?} {now}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_a_code_or_nothing(typed in "\\PC{0,80}") {
            if let Some(code) = UserCode::parse(&typed) {
                prop_assert_eq!(UserCode::parse(&code.to_string()), Some(code));
            }
        }

        #[test]
        fn who_keeps_to_the_interval_is_never_slowed(steps in proptest::collection::vec(5i64..60, 1..20)) {
            let mut now = 0;
            let mut asked = None;
            for step in steps {
                let answer = waiting(Decision::Pending, asked).answer(at(now));
                prop_assert!(matches!(answer, Answer::Pending | Answer::Expired));
                asked = Some(now);
                now += step;
            }
        }
    }
}
