use jsonwebtoken::{EncodingKey, Header as JwtHeader, encode, jwk::Jwk};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Made for these tests with `openssl genpkey`; signs nothing else.
const KEY: &str = include_str!("test_key.pem");

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn key_set() -> Value {
    let encoding = EncodingKey::from_rsa_pem(KEY.as_bytes()).unwrap();
    let mut jwk = Jwk::from_encoding_key(&encoding, Algorithm::RS256).unwrap();
    jwk.common.key_id = Some("k1".to_owned());
    json!({ "keys": [jwk] })
}

fn verifier() -> Verifier {
    let expected = Expected {
        issuer: "https://auth.example".to_owned(),
        audience: "dormouse".to_owned(),
        leeway: Duration::from_secs(5),
    };
    let verifier = Verifier::new(expected, 100);
    verifier.set_keys(KeySet::from_json(key_set().to_string().as_bytes()).unwrap());
    verifier
}

fn header() -> JwtHeader {
    let mut header = JwtHeader::new(Algorithm::RS256);
    header.typ = Some(TYP.to_owned());
    header.kid = Some("k1".to_owned());
    header
}

fn claims() -> Value {
    json!({
        "iss": "https://auth.example", "sub": "s1", "aud": "dormouse", "exp": NOW + 600, "nbf": NOW,
        "iat": NOW, "jti": "j1", "client_id": "gate", "scope": "openid", "kind": "session",
        "preferred_username": "alice", "groups": ["ml"],
    })
}

fn sign(header: &JwtHeader, claims: &Value) -> String {
    encode(header, claims, &EncodingKey::from_rsa_pem(KEY.as_bytes()).unwrap()).unwrap()
}

fn with(name: &str, value: Value) -> String {
    let mut claims = claims();
    claims[name] = value;
    sign(&header(), &claims)
}

fn refused(token: &str) -> TokenError {
    verifier().verify(token, now()).unwrap_err()
}

/// Header and claims as given, with a signature that is right for them.
fn sign_raw(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_rsa_pem(KEY.as_bytes()).unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::RS256).unwrap();
    format!("{message}.{signature}")
}

#[test]
fn a_good_token_is_accepted_and_remembered_until_it_expires() {
    let verifier = verifier();
    let token = sign(&header(), &claims());
    for second in [0, 604] {
        let identity = verifier.verify(&token, Timestamp::from_second(NOW + second).unwrap());
        assert_eq!(identity.unwrap().user.as_str(), "alice");
    }
    let late = Timestamp::from_second(NOW + 605).unwrap();
    assert_eq!(verifier.verify(&token, late).unwrap_err(), TokenError::Expired);
}

#[test]
fn a_withdrawn_key_ends_what_it_signed() {
    let verifier = verifier();
    let token = sign(&header(), &claims());
    assert!(verifier.verify(&token, now()).is_ok());
    verifier.set_keys(KeySet::default());
    assert_eq!(verifier.verify(&token, now()).unwrap_err(), TokenError::UnknownKey);
}

#[test]
fn attack_12_claims_that_are_not_ours() {
    assert_eq!(refused(&with("iss", json!("https://evil.example"))), TokenError::Issuer);
    assert_eq!(refused(&with("aud", json!("other"))), TokenError::Audience);
    assert_eq!(refused(&with("aud", json!(["other"]))), TokenError::Audience);
    assert!(verifier().verify(&with("aud", json!(["other", "dormouse"])), now()).is_ok());
    assert_eq!(refused(&with("exp", json!(NOW - 5))), TokenError::Expired);
    assert_eq!(refused(&with("nbf", json!(NOW + 6))), TokenError::NotYetValid);
    assert_eq!(refused(&with("exp", json!("never"))), TokenError::Malformed);
    assert_eq!(refused(&with("preferred_username", json!("Alice"))), TokenError::Malformed);
    for required in ["iss", "aud", "exp", "nbf", "sub", "jti", "preferred_username", "kind"] {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(required);
        assert_eq!(refused(&sign(&header(), &claims)), TokenError::Malformed, "{required}");
    }
    let doubled = claims().to_string().replacen('{', "{\"iss\":\"https://evil.example\",", 1);
    let head = json!({"alg": "RS256", "typ": TYP, "kid": "k1"}).to_string();
    assert_eq!(refused(&sign_raw(&head, &doubled)), TokenError::Malformed);
}

#[test]
fn attack_12_headers_that_bring_their_own_trust() {
    let claims = claims().to_string();
    let signed = |header: Value| refused(&sign_raw(&header.to_string(), &claims));
    let good = json!({"alg": "RS256", "typ": TYP, "kid": "k1"});
    assert!(verifier().verify(&sign_raw(&good.to_string(), &claims), now()).is_ok());
    for (name, value) in [
        ("alg", json!("none")),
        ("alg", json!("HS256")),
        ("alg", json!("RS512")),
        ("typ", json!("JWT")),
        ("jwk", key_set()["keys"][0].clone()),
        ("jku", json!("https://evil.example/jwks")),
        ("x5u", json!("https://evil.example/cert")),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
    ] {
        let mut header = good.clone();
        header[name] = value;
        assert_eq!(signed(header), TokenError::Header, "{name}");
    }
    for kid in ["k2", "../k1", "https://evil.example/k1", ""] {
        let mut header = good.clone();
        header["kid"] = json!(kid);
        assert_eq!(signed(header), TokenError::UnknownKey, "{kid}");
    }
}

#[test]
fn attack_12_hmac_with_the_public_key() {
    let header = JwtHeader { alg: Algorithm::HS256, ..header() };
    let public = key_set()["keys"][0]["n"].as_str().unwrap().to_owned();
    let token = encode(&header, &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
    assert_eq!(refused(&token), TokenError::Header);
}

#[test]
fn attack_12_tampered_or_too_long() {
    let token = sign(&header(), &claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (head, payload) = message.split_once('.').unwrap();
    let other = URL_SAFE_NO_PAD.encode(claims().to_string().replace("alice", "bobby"));
    assert_eq!(refused(&format!("{head}.{other}.{signature}")), TokenError::Signature);
    assert_eq!(refused(&format!("{head}.{payload}.")), TokenError::Signature);
    assert_eq!(refused(&format!("{token}.{signature}")), TokenError::Signature);
    assert_eq!(refused(&"a".repeat(1 << 20)), TokenError::TooLong);
    assert_eq!(refused(""), TokenError::Malformed);
}

#[test]
fn other_keys_of_a_set_are_skipped() {
    let mut set = key_set();
    let extra = json!([
        {"kty": "EC", "kid": "k2", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "RSA", "kid": "k3", "use": "enc", "n": "AQ", "e": "AQAB"},
        {"kty": "oct", "kid": "k4", "k": "AA"}, 7, "x",
    ]);
    set["keys"].as_array_mut().unwrap().extend(extra.as_array().unwrap().clone());
    let keys = KeySet::from_json(set.to_string().as_bytes()).unwrap();
    assert!(keys.contains("k1"));
    assert!(!keys.contains("k2") && !keys.contains("k3") && !keys.contains("k4"));
    assert!(KeySet::from_json(b"[]").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_text_panics_and_none_is_accepted(token in "\\PC{0,200}") {
        prop_assert!(verifier().verify(&token, now()).is_err());
        let _ = unverified_kid(&token);
    }

    #[test]
    fn one_changed_byte_is_refused(position in 0usize..900, byte in "[A-Za-z0-9_.-]") {
        let mut token = sign(&header(), &claims());
        let position = position % token.len();
        prop_assume!(token[position..=position] != byte);
        // The last character of a part may carry bits that do not count: skipped.
        prop_assume!(!token[position + 1..].starts_with('.') && position + 1 != token.len());
        token.replace_range(position..=position, &byte);
        prop_assert!(verifier().verify(&token, now()).is_err());
    }
}

#[test]
fn the_last_use_of_personal_tokens_is_known() {
    let verifier = verifier();
    let personal = with("kind", json!("personal"));
    let at = |seconds| Timestamp::from_second(NOW + seconds).unwrap();
    assert!(verifier.personal_uses(at(0)).is_empty());
    // What a session does is nobody's question.
    verifier.verify(&with("jti", json!("j2")), at(0)).unwrap();
    verifier.verify(&personal, at(1)).unwrap();
    assert_eq!(verifier.personal_uses(at(0)), [("j1".to_owned(), NOW + 1)]);
    verifier.verify(&personal, at(7)).unwrap();
    assert_eq!(verifier.personal_uses(at(7)), [("j1".to_owned(), NOW + 7)]);
    assert!(verifier.personal_uses(at(8)).is_empty());
}
