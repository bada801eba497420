//! The endpoints, and what all of them share.

mod account;
mod attempt;
mod authorization_request;
mod authorize;
mod bearer;
mod client_auth;
mod consent;
mod cookie;
mod device;
mod discovery;
mod error;
mod internal;
mod issue;
mod own_token;
mod pages;
mod params;
pub mod parsers;
mod passkeys;
mod push;
mod revocations;
mod second_proof;
mod sign_in;
mod sign_out;
mod ssh_certificates;
mod ssh_keys;
mod token;
mod tokens;
mod upstream;
mod userinfo;

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::Response,
    routing::{delete, get, post},
};
use jiff::Timestamp;
use tower::ServiceBuilder;
use tower_http::timeout::TimeoutLayer;

use crate::{address::client_address, server::App};

/// Largest body that is read.
const BODY_MAX: usize = 64 * 1024;

/// Longest time to answer: longer than the feed holds its readers.
const ANSWER: Duration = Duration::from_secs(40);

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/.well-known/openid-configuration", get(discovery::metadata))
        .route("/.well-known/oauth-authorization-server", get(discovery::metadata))
        .route(discovery::JWKS, get(discovery::jwks))
        .route(discovery::AUTHORIZE, get(authorize::authorize).post(authorize::authorize))
        .route(discovery::TOKEN, post(token::token))
        .route("/consent", get(sign_in::show).post(consent::submit))
        .route(discovery::PUSH, post(push::push))
        .route(discovery::INTROSPECT, post(own_token::introspect))
        .route(discovery::REVOKE, post(own_token::revoke))
        .route(discovery::DEVICE, post(device::start))
        .route(discovery::DEVICE_PAGE, get(device::show).post(device::submit))
        .route(discovery::USERINFO, get(userinfo::userinfo).post(userinfo::userinfo))
        .route(discovery::SIGN_OUT, get(sign_out::ask).post(sign_out::submit))
        .route("/sign-in", get(sign_in::show).post(sign_in::submit))
        .route("/sign-in/passkey", get(sign_in::show).post(passkeys::submit))
        .route("/sign-in/passkey/options", post(passkeys::options))
        .route("/sign-in/with/{provider}", get(upstream::begin))
        .route("/sign-in/from/{provider}", get(upstream::finish))
        .route(account::ACCOUNT, get(account::show))
        .route("/account/confirm", get(account::confirm))
        .route("/account/confirm/password", get(account::back).post(second_proof::by_password))
        .route("/account/confirm/passkey", get(account::back).post(second_proof::by_passkey))
        .route("/account/confirm/passkey/options", post(second_proof::options))
        .route("/account/passkeys", get(account::back).post(account::add))
        .route("/account/passkeys/options", post(account::options))
        .route("/account/passkeys/remove", get(account::back).post(account::remove))
        .route("/account/tokens", get(account::back).post(account::tokens::make))
        .route("/account/tokens/withdraw", get(account::back).post(account::tokens::withdraw))
        .route("/account/ssh-keys", get(account::back).post(account::ssh_keys::add))
        .route("/account/ssh-keys/remove", get(account::back).post(account::ssh_keys::remove))
        .route("/account/sessions/end", get(account::back).post(account::sessions::end))
        .route(
            "/account/sessions/end-others",
            get(account::back).post(account::sessions::end_others),
        )
        .route(
            "/account/applications/withdraw",
            get(account::back).post(account::sessions::withdraw),
        )
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{id}", delete(tokens::revoke))
        .route("/ssh/keys", get(ssh_keys::list).post(ssh_keys::add).delete(ssh_keys::remove))
        .route("/ssh/keys/challenge", post(ssh_keys::challenge))
        .route("/ssh/keys/{id}", delete(ssh_keys::remove_by_id))
        .route("/ssh/certificate", post(ssh_certificates::certify))
        .route("/ssh/authority", get(ssh_certificates::authority))
        .route("/internal/ssh-keys", get(internal::ssh_keys))
        .route("/internal/token-uses", post(internal::token_uses))
        .route("/internal/revocations", get(revocations::snapshot))
        .route("/internal/revocations/events", get(revocations::events))
        .route("/", get(sign_in::home))
        .route("/style.css", get(pages::style))
        .route("/passkeys.js", get(pages::script))
        .route("/sign-in.js", get(pages::sign_in_script))
        .fallback(error::not_found)
        .layer(
            // As one layer: the router would box each of them, for each request.
            ServiceBuilder::new()
                .layer(middleware::map_response(harden))
                .layer(middleware::from_fn_with_state(app.clone(), measure))
                .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, ANSWER))
                .layer(DefaultBodyLimit::max(BODY_MAX)),
        )
        .with_state(app)
}

/// Who calls, as far as the network knows, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub now: Timestamp,
    pub address: IpAddr,
}

impl FromRequestParts<App> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
        let address = client_address(peer, &parts.headers, &app.trusted_proxies);
        Ok(Self { now: app.now(), address })
    }
}

async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let begun = Instant::now();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    let status = match response.status().as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    app.metrics.requests.with_label_values(&[route, status]).observe(begun.elapsed().as_secs_f64());
    response
}

/// Headers of every response. What a page or the key set sets itself stays.
async fn harden(mut response: Response) -> Response {
    let defaults: [(HeaderName, &'static str); 5] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not `no-referrer`: a browser then sends `Origin: null` with our own forms.
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    for (name, value) in defaults {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
