//! Every parser of what strangers send, as functions of bytes: for the fuzz targets in `fuzz/`, and
//! for the property tests below, which run the same on every build. Each panics when what it found
//! breaks a promise.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use domain::token::{Expected, KeySet, Verifier};
use jiff::Timestamp;
use serde_json::Value;

use super::{authorization_request::Prompt, client_auth, cookie, pages, params::Params};
use crate::{
    assertion,
    client::is_resource,
    device::UserCode,
    issuer::{GateHosts, Issuer},
    jws::JwkSet,
    pkce, scope,
    secret::{Purpose, Sealer},
    ssh_key::PublicKey,
};

/// A public key whose private half nobody has: nothing verifies.
const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// The query of an authorization request, or a pushed one.
pub fn authorize_query(bytes: &[u8]) {
    let params = Params::parse(bytes);
    for name in ["client_id", "state", "nonce", "code_challenge", "prompt", "max_age"] {
        assert!(params.get(name).is_none_or(|value| !value.is_empty()));
    }
    if let Some(prompt) = Prompt::parse(params.get("prompt").unwrap_or_default()) {
        assert!(!(prompt.never && prompt.login));
    }
    let _ = params.get("code_challenge").and_then(pkce::Challenge::parse);
    let scopes = scope::allowed(params.get("scope").unwrap_or_default(), |_| true);
    assert!(scopes.len() <= scope::KNOWN.len());
    let resources = params.all("resource").filter(|resource| is_resource(resource));
    assert!(resources.into_iter().all(|resource| !resource.contains('#')));
    if let Some(uri) = params.get("redirect_uri") {
        redirect_uri(uri);
    }
}

/// What is taken for the gate's own is what a browser goes to.
fn redirect_uri(uri: &str) {
    let Ok(issuer) = "https://auth.localhost:8443".parse::<Issuer>() else { return };
    let Ok(gate) = GateHosts::new(&issuer, "localhost") else { return };
    if gate.is_callback(uri) {
        let read = url::Url::parse(uri).map(String::from);
        assert_eq!(read.as_deref(), Ok(uri));
    }
    if let Some(source) = pages::form_target(uri) {
        assert!(!source.contains([';', ' ', ',', '\'']), "{source} ends a directive");
    }
}

/// The token endpoint's form, with an `Authorization` header.
pub fn token_form(authorization: &[u8], form: &[u8]) {
    let form = Params::parse(form);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(authorization) {
        headers.insert(header::AUTHORIZATION, value);
    }
    let _ = client_auth::is_readable(&headers, &form);
    let _ = client_auth::is_readable(&HeaderMap::new(), &form);
    let _ = form.get("code_verifier").and_then(pkce::Verifier::parse);
    if let Some(code) = form.get("user_code").and_then(UserCode::parse) {
        assert_eq!(UserCode::parse(&code.to_string()), Some(code));
    }
    let _ = PublicKey::parse(form.get("public_key").unwrap_or_default());
}

/// A token that somebody presents: as a bearer, for introspection, or as a client's assertion.
pub fn jwt(bytes: &[u8]) {
    let token = String::from_utf8_lossy(bytes);
    let Ok(keys) = JwkSet::from_json(KEYS) else { return };
    let verified = keys.verify::<Value>(&token, |_| true);
    assert!(verified.is_err(), "nobody has the key: {token}");
    let now = Timestamp::UNIX_EPOCH;
    assert!(assertion::check(&keys, &token, "client", &["audience"], now).is_err());
    let _ = assertion::unverified_client(&token);
    let _ = JwkSet::from_json(&token);
    let _ = KeySet::from_json(bytes);
    let expected = Expected {
        issuer: "https://auth.localhost".to_owned(),
        audience: "dormouse".to_owned(),
        leeway: std::time::Duration::ZERO,
    };
    assert!(Verifier::new(expected, 1).verify(&token, now).is_err());
}

/// The `Cookie` header, and what our cookies hold.
pub fn cookies(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(header::COOKIE, value);
        }
    }
    let sealer = Sealer::new(&[7; 32]);
    for name in [cookie::SSO, cookie::FORM, cookie::DEVICE] {
        if let Some(value) = cookie::get(&headers, name) {
            assert!(!value.contains([';', '\n']), "{value}");
            // Nobody has the key of the seals.
            assert!(sealer.open(Purpose::Device, value).is_none());
            assert!(HeaderName::from_bytes(name.as_bytes()).is_ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces that tricks are made of.
    fn query() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "client_id",
            "redirect_uri",
            "scope",
            "prompt",
            "resource",
            "code_challenge",
            "user_code",
            "client_assertion",
            "client_assertion_type",
            "code_verifier",
            "",
        ]);
        let value = prop_oneof![
            "\\PC{0,40}",
            Just("https://lab.localhost:8443/.dormouse/callback".to_owned()),
            Just("none login".to_owned()),
            Just("https%3A%2F%2Fevil.example%23x".to_owned()),
            "[BCDF]{4}-[GHJK]{4}",
        ];
        proptest::collection::vec((name, value), 0..8).prop_map(|pairs| {
            let pairs: Vec<String> = pairs.iter().map(|(n, v)| format!("{n}={v}")).collect();
            pairs.join("&")
        })
    }

    proptest! {
        #[test]
        fn an_authorize_query_breaks_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..400), query in query()) {
            authorize_query(&bytes);
            authorize_query(query.as_bytes());
        }

        #[test]
        fn a_token_form_breaks_nothing(header in "(Basic )?[A-Za-z0-9+/=:]{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..400), query in query()) {
            token_form(header.as_bytes(), &bytes);
            token_form(&bytes, query.as_bytes());
        }

        #[test]
        fn a_jwt_breaks_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..400), parts in "[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,80}") {
            jwt(&bytes);
            jwt(parts.as_bytes());
        }

        #[test]
        fn a_cookie_breaks_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..400), value in "[A-Za-z0-9_.=; -]{0,80}") {
            cookies(&bytes);
            cookies(format!("{}={value}", cookie::SSO).as_bytes());
        }
    }

    #[test]
    fn seeds_of_the_fuzz_targets_break_nothing() {
        authorize_query(b"client_id=a&redirect_uri=https%3A%2F%2Flab.localhost%3A8443%2F.dormouse%2Fcallback&prompt=none");
        token_form(b"Basic YTpi", b"grant_type=authorization_code&code=x");
        jwt(b"eyJhbGciOiJub25lIn0.e30.");
        cookies(b"__Host-dormouse-sso=a; __Host-dormouse-form=b\n__Host-dormouse-sso=c");
    }
}
