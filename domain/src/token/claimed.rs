//! Whose a token says it is, before anything of it is believed.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use memchr::memmem;
use serde::Deserialize;

use super::TYP;

/// Whether a JWT (RFC 7519) says that `issuer` made it: by `iss`, or, where that cannot be read, by
/// the type of our access tokens. Nothing is verified, so a forged one counts as well: it is ours to
/// refuse. What is no JWT is never ours.
pub fn is_claimed(token: &str, issuer: &str) -> bool {
    #[derive(Deserialize)]
    struct Issuer {
        iss: Option<String>,
    }
    let mut parts = token.split('.');
    let (Some(header), Some(payload)) = (parts.next(), parts.next()) else { return false };
    let Some(header) = decoded(header) else { return false };
    let payload = decoded(payload).unwrap_or_default();
    match serde_json::from_slice::<Issuer>(&payload) {
        Ok(Issuer { iss: Some(iss) }) => iss == issuer,
        Ok(Issuer { iss: None }) => is_access_token(&header),
        // Doubled, of another type, or no JSON at all: a reader may still find our name in it.
        Err(_) => is_access_token(&header) || memmem::find(&payload, issuer.as_bytes()).is_some(),
    }
}

fn is_access_token(header: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Type {
        typ: String,
    }
    serde_json::from_slice::<Type>(header).is_ok_and(|Type { typ }| {
        typ.strip_prefix("application/").unwrap_or(&typ).eq_ignore_ascii_case(TYP)
    })
}

fn decoded(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: &str = "https://auth.example";

    fn jwt(header: &str, payload: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(header), part(payload), part("signature"))
    }

    #[test]
    fn what_says_that_it_is_ours_is_ours() {
        let (plain, access) = (r#"{"alg":"RS256","typ":"JWT"}"#, r#"{"typ":"application/AT+JWT"}"#);
        let iss = r#"{"iss":"https://auth.example","sub":"a"}"#;
        let twice = r#"{"iss":"https://auth.example","iss":"https://other"}"#;
        for (header, payload) in [
            (plain, iss),
            (access, iss),
            ("{}", iss),
            (plain, twice),
            (access, "{}"),
            (access, "no JSON"),
        ] {
            assert!(is_claimed(&jwt(header, payload), OURS), "{header} {payload}");
        }
        let padded = jwt(plain, iss).replacen('.', "==.", 1);
        assert!(is_claimed(&padded, OURS));
        for (header, payload) in [
            (plain, "{}"),
            (plain, r#"{"iss":"https://auth.example.evil"}"#),
            (access, r#"{"iss":"https://other"}"#),
            (plain, "no JSON"),
        ] {
            assert!(!is_claimed(&jwt(header, payload), OURS), "{header} {payload}");
        }
        for other in ["", ".", "..", "sk-abc", "null", "a.b.c", "https://auth.example"] {
            assert!(!is_claimed(other, OURS), "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(token in "\\PC{0,60}|[a-zA-Z0-9_=-]{0,20}(\\.[a-zA-Z0-9_=-]{0,20}){0,3}") {
            let _ = is_claimed(&token, OURS);
        }
    }
}
