//! What the standards ask for and no other test shows; docs/conformance.md names them all.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::support::*;

async fn tokens(server: &Server, changes: &[(&str, &str)]) -> Value {
    let to = Browser::default().sign_in(server, &authorize_with(changes), "alice").await;
    let (status, tokens) = server.redeem(GATE, &query(&to)["code"]).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    tokens
}

fn header_of(token: &str) -> Value {
    serde_json::from_slice(&decode(token.split('.').next().unwrap())).unwrap()
}

#[tokio::test]
async fn oidc_an_id_token_says_all_that_it_must() {
    let server = Server::start().await;
    let tokens = tokens(&server, &[("nonce", "n-0S6_WzA2Mj ä")]).await;
    let id_token = text(&tokens, "id_token");
    let (header, id) = (header_of(id_token), claims(id_token));
    assert_eq!(header["alg"], "RS256");
    for absent in ["jwk", "jku", "x5u", "x5c"] {
        assert!(header.get(absent).is_none(), "{absent}");
    }
    let keys: Value = server.get("/.well-known/jwks.json").await.json().await.unwrap();
    let keys = keys["keys"].as_array().unwrap();
    assert!(keys.iter().any(|key| key["kid"] == header["kid"] && key["use"] == "sig"));
    assert!(keys.iter().all(|key| key.get("d").is_none() && key.get("p").is_none()));
    let now = server.now().as_second();
    assert_eq!((id["iss"].as_str(), id["aud"].as_str()), (Some(ISSUER), Some(GATE.0)));
    assert!((1..=255).contains(&text(&id, "sub").len()) && text(&id, "sub").is_ascii());
    assert_eq!((id["iat"].as_i64(), id["auth_time"].as_i64()), (Some(now), Some(now)));
    assert_eq!(id["exp"].as_i64(), Some(now + 600));
    assert_eq!(id["nonce"], "n-0S6_WzA2Mj ä", "unchanged");
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(text(&tokens, "access_token"));
    assert_eq!(text(&id, "at_hash"), URL_SAFE_NO_PAD.encode(&hash[..16]));
    let without = self::tokens(&server, &[("nonce", "")]).await;
    assert!(claims(text(&without, "id_token")).get("nonce").is_none());
}

#[tokio::test]
async fn oidc_scopes_decide_which_claims_are_told() {
    let server = Server::start().await;
    let tokens = tokens(&server, &[("scope", "openid email")]).await;
    let id = claims(text(&tokens, "id_token"));
    assert_eq!(id["email"], "alice@example.com");
    assert!(id.get("preferred_username").is_none() && id.get("groups").is_none());
    for method in [Method::GET, Method::POST] {
        let access = text(&tokens, "access_token");
        let info = server.api(method, "/userinfo", access, Value::Null).await;
        let info: Value = info.json().await.unwrap();
        assert_eq!(info, json!({ "sub": id["sub"], "email": "alice@example.com" }));
    }
    let without = self::tokens(&server, &[("scope", "profile")]).await;
    assert!(without.get("id_token").is_none());
    let access = text(&without, "access_token");
    let response = server.api(Method::GET, "/userinfo", access, Value::Null).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let challenge = response.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
    assert!(challenge.contains("error=\"insufficient_scope\""), "{challenge}");
}

#[tokio::test]
async fn oidc_a_refreshed_id_token_is_of_the_same_sign_in() {
    let server = Server::start().await;
    let first = tokens(&server, &[]).await;
    server.wait(300);
    let form = [
        ("grant_type", "refresh_token"),
        ("refresh_token", text(&first, "refresh_token")),
        ("scope", "openid profile"),
    ];
    let (_, second) = server.token(GATE, &form).await;
    let (old, new) = (claims(text(&first, "id_token")), claims(text(&second, "id_token")));
    for same in ["iss", "sub", "aud", "auth_time", "sid", "amr", "acr"] {
        assert_eq!(old[same], new[same], "{same}");
    }
    assert_eq!(new["iat"].as_i64(), Some(server.now().as_second()));
    assert!(new.get("nonce").is_none());
}

#[tokio::test]
async fn oidc_a_refresh_has_an_id_token_for_all_but_the_gateways() {
    let server = Server::start().await;
    let first = tokens(&server, &[]).await;
    let (_, second) = server.refresh(text(&first, "refresh_token")).await;
    assert!(second.get("id_token").is_none(), "the gateways did not ask for one");
    assert_eq!(second["scope"], first["scope"]);
    let callback = "https://other.example/cb";
    let path = authorize_with(&[("client_id", OTHER.0), ("redirect_uri", callback)]);
    let to = Browser::default().sign_in(&server, &path, "alice").await;
    let code = query(&to)["code"].clone();
    let form = code_form(&code).map(|(n, v)| (n, if n == "redirect_uri" { callback } else { v }));
    let first = server.token(OTHER, &form).await.1;
    let refresh =
        [("grant_type", "refresh_token"), ("refresh_token", text(&first, "refresh_token"))];
    assert!(server.token(OTHER, &refresh).await.1["id_token"].is_string());
}

#[tokio::test]
async fn oidc_the_authorization_endpoint_takes_get_and_post_and_ignores_what_it_does_not_know() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    browser.code(&server).await;
    let more = "display=popup&ui_locales=de&claims_locales=de&acr_values=x&unknown=1&empty=";
    let path = format!("{}&{more}", authorize_with(&[]));
    assert!(query(&location(&browser.open(&server, &path).await)).contains_key("code"));
    let (_, form) = path.split_once('?').unwrap();
    let post = server
        .request(Method::POST, "/authorize")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(form.to_owned());
    assert!(query(&location(&browser.send(post).await)).contains_key("code"));
    let path = authorize_with(&[("registration", "x")]);
    let to = location(&browser.open(&server, &path).await);
    assert_eq!(query(&to)["error"], "registration_not_supported");
}

#[tokio::test]
async fn rfc_6749_answers_with_tokens_are_kept_by_nobody() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let request = server.request(Method::POST, "/token").basic_auth(GATE.0, Some(GATE.1));
    let response = request.form(&code_form(&code)).send().await.unwrap();
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    assert_eq!(response.headers()[header::PRAGMA], "no-cache");
    let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
    assert!(kind.starts_with("application/json"), "{kind}");
    let tokens: Value = response.json().await.unwrap();
    assert_eq!(tokens["token_type"], "Bearer");
    // The scope that was granted is told: the gate's is more than it asked for.
    assert!(text(&tokens, "scope").contains("account"));
    let started = server.request(Method::POST, "/device/code").form(&[("client_id", "tv")]);
    let started = started.send().await.unwrap();
    assert_eq!(started.headers()[header::CACHE_CONTROL], "no-store");
}

#[tokio::test]
async fn rfc_6749_endpoints_that_change_something_take_post_only() {
    let server = Server::start().await;
    for path in ["/token", "/revoke", "/introspect", "/device/code", "/par"] {
        assert_eq!(server.get(path).await.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
    // And no parameters in the address.
    let path = format!(
        "/token?grant_type=client_credentials&client_id={}&client_secret={}",
        OTHER.0, OTHER.1
    );
    let response = server.request(Method::POST, &path).form(&[("x", "y")]).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn rfc_6749_a_refused_client_is_told_how_to_authenticate() {
    let server = Server::start().await;
    let form = [("grant_type", "refresh_token"), ("refresh_token", "x")];
    let basic = server.request(Method::POST, "/token").basic_auth(GATE.0, Some("wrong"));
    let response = basic.form(&form).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let challenge = response.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
    assert!(challenge.starts_with("Basic realm="), "{challenge}");
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"], "invalid_client");
    let doubled = server.request(Method::POST, "/token").basic_auth(GATE.0, Some(GATE.1));
    let doubled = doubled.form(&[form[0], form[1], form[1]]).send().await.unwrap();
    let error: Value = doubled.json().await.unwrap();
    assert_eq!(error["error"], "invalid_request");
}

#[tokio::test]
async fn rfc_6750_a_token_comes_in_the_header_and_in_one_way() {
    let server = Server::start().await;
    let token = server.personal_token("alice", 60).await;
    let address = server.get(&format!("/userinfo?access_token={token}")).await;
    assert_eq!(address.status(), StatusCode::UNAUTHORIZED);
    let challenge = address.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
    assert_eq!(challenge, "Bearer realm=\"dormouse\"", "no error where no token was sent");
    let body = server.request(Method::POST, "/userinfo").form(&[("access_token", &token)]);
    assert_eq!(body.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let two = server.request(Method::GET, "/userinfo");
    let two = two.header("authorization", format!("Bearer {token}")).bearer_auth(&token);
    assert_eq!(two.send().await.unwrap().status(), StatusCode::BAD_REQUEST);
    let bad = server.api(Method::GET, "/userinfo", "x.y.z", Value::Null).await;
    let challenge = bad.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
}

#[tokio::test]
async fn rfc_9068_an_access_token_says_what_it_is() {
    let server = Server::start().await;
    let tokens = tokens(&server, &[]).await;
    let token = text(&tokens, "access_token");
    let (header, access) = (header_of(token), claims(token));
    assert_eq!((header["typ"].as_str(), header["alg"].as_str()), (Some("at+jwt"), Some("RS256")));
    assert!(header["kid"].is_string());
    for required in ["iss", "exp", "aud", "sub", "client_id", "iat", "jti", "scope"] {
        assert!(!access[required].is_null(), "{required}");
    }
    assert_eq!(access["client_id"], GATE.0);
    let again = server.refresh(text(&tokens, "refresh_token")).await.1;
    assert_ne!(claims(text(&again, "access_token"))["jti"], access["jti"]);
}

#[tokio::test]
async fn attack_12_forged_access_tokens_are_refused() {
    let server = Server::start().await;
    let good = server.personal_token("alice", 600).await;
    let (header, payload) = (header_of(&good), claims(&good));
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signature = good.rsplit('.').next().unwrap();
    let mut forged = Vec::new();
    for (name, value) in [
        ("alg", json!("none")),
        ("alg", json!("HS256")),
        ("typ", json!("JWT")),
        ("kid", json!("other")),
        ("kid", json!("../../../dev/null")),
        ("jku", json!("https://evil.example/keys")),
        ("x5u", json!("https://evil.example/cert")),
        ("jwk", json!({ "kty": "oct", "k": "AA" })),
        ("crit", json!(["exp"])),
    ] {
        let mut header = header.clone();
        header[name] = value;
        forged.push(format!("{}.{}.{signature}", encode(&header), encode(&payload)));
        forged.push(format!("{}.{}.", encode(&header), encode(&payload)));
    }
    let mut admin = payload.clone();
    admin["preferred_username"] = json!("bob");
    forged.push(format!("{}.{}.{signature}", encode(&header), encode(&admin)));
    forged.push(keys::sign(
        1,
        &json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": header["kid"] }),
        &payload,
    ));
    forged.push(format!("{good}x"));
    // As large as a head may be; a larger one does not get this far.
    forged.push(format!("{good}{}", "A".repeat(10_000)));
    for token in forged {
        let response = server.api(Method::GET, "/userinfo", &token, Value::Null).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{token}");
        let ask = server.request(Method::POST, "/introspect").basic_auth(GATE.0, Some(GATE.1));
        let answer = ask.form(&[("token", &token)]).send().await.unwrap();
        assert_eq!(answer.json::<Value>().await.unwrap(), json!({ "active": false }), "{token}");
    }
    let response = server.api(Method::GET, "/userinfo", &good, Value::Null).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn discovery_says_all_that_there_is_and_nothing_else() {
    let server = Server::start().await;
    let response = server.get("/.well-known/openid-configuration").await;
    assert_eq!(response.status(), StatusCode::OK);
    let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
    assert!(kind.starts_with("application/json"), "{kind}");
    let document: Value = response.json().await.unwrap();
    let tokens = tokens(&server, &[]).await;
    assert_eq!(document["issuer"], claims(text(&tokens, "id_token"))["iss"]);
    for required in [
        "authorization_endpoint",
        "token_endpoint",
        "userinfo_endpoint",
        "jwks_uri",
        "end_session_endpoint",
        "introspection_endpoint",
        "revocation_endpoint",
        "device_authorization_endpoint",
        "pushed_authorization_request_endpoint",
    ] {
        let path = text(&document, required).strip_prefix(ISSUER).unwrap();
        // It is there, whatever it says to an empty request.
        let status = server.get(path).await.status();
        assert_ne!(status, StatusCode::NOT_FOUND, "{required}");
    }
    let endpoints = document.as_object().unwrap().keys().filter(|name| name.ends_with("_endpoint"));
    assert_eq!(endpoints.count(), 8, "one that is not checked above");
    for (name, expected) in [
        ("response_types_supported", json!(["code"])),
        ("response_modes_supported", json!(["query"])),
        ("subject_types_supported", json!(["public"])),
        ("id_token_signing_alg_values_supported", json!(["RS256"])),
        ("code_challenge_methods_supported", json!(["S256"])),
        ("request_parameter_supported", json!(false)),
        ("request_uri_parameter_supported", json!(false)),
        ("claims_parameter_supported", json!(false)),
        ("authorization_response_iss_parameter_supported", json!(true)),
        ("backchannel_logout_supported", json!(true)),
    ] {
        assert_eq!(document[name], expected, "{name}");
    }
    // Each grant type is known; what is not listed is not.
    for grant in document["grant_types_supported"].as_array().unwrap() {
        let form = [("grant_type", grant.as_str().unwrap())];
        assert_ne!(server.token(GATE, &form).await.1["error"], "unsupported_grant_type", "{grant}");
    }
    let scopes = document["scopes_supported"].as_array().unwrap();
    assert!(scopes.contains(&json!("openid")));
}

#[tokio::test]
async fn rfc_9700_no_other_origin_reads_and_no_frame_shows_the_authorization_endpoint() {
    let server = Server::start().await;
    let request = server.request(Method::GET, &authorize_with(&[]));
    let response = request.header(header::ORIGIN, "https://evil.example").send().await.unwrap();
    let headers = response.headers();
    assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    assert_eq!(headers[header::X_FRAME_OPTIONS], "DENY");
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains("frame-ancestors 'none'") && policy.contains("default-src 'none'"));
    // A form's body is never repeated to where the answer leads.
    let mut browser = Browser::default();
    let page = browser.open(&server, &authorize_with(&[])).await.text().await.unwrap();
    let response = browser.submit(&server, &ticket(&page), "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
}
