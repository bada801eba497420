//! Pushed authorization requests (RFC 9126): the client sends its request itself, so that nobody
//! changes it on the way through the browser.

use axum::{
    Json,
    extract::{RawForm, State, rejection::RawFormRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::json;
use url::form_urlencoded;

use super::{
    Caller,
    authorization_request::{PUSHED, QUERY_MAX, Query, read},
    authorize::Refusal,
    client_auth::authenticate,
    error::OAuthError,
    params::Params,
};
use crate::{client::ClientKind, server::App, store::PUSHED_LIFETIME, throttle::Key};

/// What proves the client is not part of the request.
const PROOFS: [&str; 3] = ["client_secret", "client_assertion", "client_assertion_type"];

pub(super) async fn push(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    form: Result<RawForm, RawFormRejection>,
) -> Result<Response, OAuthError> {
    let invalid = |text: &str| OAuthError::new("invalid_request", text);
    let RawForm(form) =
        form.map_err(|_| invalid("send a form as application/x-www-form-urlencoded"))?;
    let params = Params::parse(&form);
    if params.has_doubled() {
        return Err(invalid("a parameter is given more than once"));
    }
    let client = authenticate(&app, &headers, &params).await?;
    if client.kind == ClientKind::Public {
        // What they push is kept for a while, and anybody can say that they are one.
        let taken = app.limits().pushes.take(&[Key::address(caller.address)], caller.now);
        taken.map_err(|wait| {
            let text = format!("too many requests; wait {wait} s");
            OAuthError::new("temporarily_unavailable", text)
        })?;
    }
    if params.get("request_uri").is_some() {
        return Err(invalid("a pushed request must not refer to another one"));
    }
    let query = without_proofs(&client.id, &form);
    if query.len() > QUERY_MAX {
        return Err(invalid("the request is too long"));
    }
    let read = read(&app, Query::new(query.clone(), true)).await;
    read.map_err(|refusal| match refusal {
        Refusal::Redirect { error, text, .. } => OAuthError::new(error, text),
        Refusal::Page(page) if page.status == StatusCode::BAD_REQUEST => {
            invalid("redirect_uri is not registered for this client")
        }
        Refusal::Page(_) => OAuthError::new("server_error", "the server failed; try again"),
    })?;
    let reference = app.store.push_request(&client.id, &query, caller.now).await?;
    let answer = json!({
        "request_uri": format!("{PUSHED}{}", reference.as_str()),
        "expires_in": PUSHED_LIFETIME,
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// The request as it would have come through the browser.
fn without_proofs(client_id: &str, form: &[u8]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("client_id", client_id);
    for (name, value) in form_urlencoded::parse(form) {
        if name != "client_id" && !PROOFS.contains(&name.as_ref()) {
            query.append_pair(&name, &value);
        }
    }
    query.finish()
}
