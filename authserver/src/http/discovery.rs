//! What the provider can do (OpenID Connect Discovery 1.0; RFC 8414), and its keys.

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{issue, token};
use crate::{scope, server::App};

pub(super) const JWKS: &str = "/.well-known/jwks.json";
pub(super) const AUTHORIZE: &str = "/authorize";
pub(super) const TOKEN: &str = "/token";
pub(super) const USERINFO: &str = "/userinfo";
pub(super) const SIGN_OUT: &str = "/sign-out";
pub(super) const INTROSPECT: &str = "/introspect";
pub(super) const REVOKE: &str = "/revoke";
pub(super) const DEVICE: &str = "/device/code";
pub(super) const DEVICE_PAGE: &str = "/device";
pub(super) const PUSH: &str = "/par";

/// Both documents change with a release or a new key only.
const CACHED: (header::HeaderName, &str) = (header::CACHE_CONTROL, "public, max-age=300");

pub(super) async fn metadata(State(app): State<App>) -> Response {
    let issuer = &app.issuer;
    let document = json!({
        "issuer": issuer.as_str(),
        "authorization_endpoint": issuer.at(AUTHORIZE),
        "token_endpoint": issuer.at(TOKEN),
        "userinfo_endpoint": issuer.at(USERINFO),
        "jwks_uri": issuer.at(JWKS),
        "end_session_endpoint": issuer.at(SIGN_OUT),
        "scopes_supported": scope::KNOWN,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": token::GRANTS,
        "code_challenge_methods_supported": ["S256"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported":
            ["client_secret_basic", "client_secret_post", "private_key_jwt", "none"],
        "token_endpoint_auth_signing_alg_values_supported": ["RS256", "ES256", "EdDSA"],
        "introspection_endpoint": issuer.at(INTROSPECT),
        "introspection_endpoint_auth_methods_supported":
            ["client_secret_basic", "client_secret_post", "private_key_jwt"],
        "introspection_endpoint_auth_signing_alg_values_supported": ["RS256", "ES256", "EdDSA"],
        "revocation_endpoint": issuer.at(REVOKE),
        "revocation_endpoint_auth_methods_supported":
            ["client_secret_basic", "client_secret_post", "private_key_jwt", "none"],
        "revocation_endpoint_auth_signing_alg_values_supported": ["RS256", "ES256", "EdDSA"],
        "device_authorization_endpoint": issuer.at(DEVICE),
        "acr_values_supported": issue::ACR,
        "claims_supported": [
            "iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "amr", "acr", "sid",
            "at_hash",
            "preferred_username", "email", "groups",
        ],
        "prompt_values_supported": ["none", "login", "consent", "select_account"],
        "pushed_authorization_request_endpoint": issuer.at(PUSH),
        "require_pushed_authorization_requests": false,
        "authorization_response_iss_parameter_supported": true,
        "backchannel_logout_supported": true,
        "backchannel_logout_session_supported": true,
        "claims_parameter_supported": false,
        "request_parameter_supported": false,
        "request_uri_parameter_supported": false,
    });
    ([CACHED], Json(document)).into_response()
}

pub(super) async fn jwks(State(app): State<App>) -> Response {
    let kind = (header::CONTENT_TYPE, "application/jwk-set+json");
    ([CACHED, kind], app.ring.jwks()).into_response()
}
