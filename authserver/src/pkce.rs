//! Proof Key for Code Exchange (RFC 7636), method S256 only.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::secret;

/// `code_challenge`: base64url of a SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge(String);

impl Challenge {
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        (bytes.len() == 32).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `code_verifier`: 43 to 128 unreserved characters (RFC 7636, section 4.1).
pub struct Verifier(String);

impl Verifier {
    pub fn parse(text: &str) -> Option<Self> {
        let unreserved =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        ((43..=128).contains(&text.len()) && text.bytes().all(unreserved))
            .then(|| Self(text.to_owned()))
    }

    pub fn challenge(&self) -> Challenge {
        Challenge(URL_SAFE_NO_PAD.encode(secret::digest(&self.0)))
    }

    pub fn matches(&self, challenge: &str) -> bool {
        secret::same(self.challenge().0.as_bytes(), challenge.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7636, appendix B.
    const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

    #[test]
    fn the_rfcs_example() {
        let verifier = Verifier::parse(VERIFIER).unwrap();
        assert!(verifier.matches(Challenge::parse(CHALLENGE).unwrap().as_str()));
        assert!(!verifier.matches(VERIFIER), "plain is not S256");
        assert!(!verifier.matches(""));
    }

    #[test]
    fn attack_13_short_or_odd_values_are_refused() {
        for bad in ["", &VERIFIER[1..], &"a".repeat(129), &format!("{VERIFIER} "), &"ä".repeat(43)]
        {
            assert!(Verifier::parse(bad).is_none(), "{bad}");
        }
        for bad in ["", &CHALLENGE[1..], &format!("{CHALLENGE}="), &"a".repeat(128), "a b"] {
            assert!(Challenge::parse(bad).is_none(), "{bad}");
        }
    }
}
