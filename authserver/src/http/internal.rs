//! What the gateways follow. Only the gate client may read it, and the front door does not let
//! anybody through to it from outside.

use std::time::Duration;

use axum::{
    Json,
    extract::{RawQuery, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use runtime::token_uses::{REPORT_MAX, Report};
use tokio::time::timeout;

use super::{
    client_auth::authenticate,
    error::{ApiError, OAuthError},
    params::Params,
};
use crate::{client::ClientKind, server::App, store::StoreError};

/// How long a reader that is up to date is held.
const HOLD: Duration = Duration::from_secs(25);

/// Refuses everybody but the gate client.
pub(super) async fn check_gate(app: &App, headers: &HeaderMap) -> Result<(), Response> {
    let failed = |error: OAuthError| error.into_response();
    let client = authenticate(app, headers, &Params::default()).await.map_err(failed)?;
    if client.kind != ClientKind::Gate {
        return Err(ApiError::Forbidden("only gateways may read this").into_response());
    }
    Ok(())
}

/// The keys, as soon as their version is another than `after`.
pub(super) async fn ssh_keys(
    State(app): State<App>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Response> {
    check_gate(&app, &headers).await?;
    let query = Params::parse(query.unwrap_or_default().as_bytes());
    let after: Option<i64> = query.get("after").and_then(|after| after.parse().ok());
    let failed = |error: StoreError| ApiError::from(error).into_response();
    // Whoever knows more than we have looked up yet is not told it again.
    app.check_feed().await.map_err(failed)?;
    let mut version = app.ssh_feed.subscribe();
    let other = version.wait_for(|version| Some(*version) != after);
    tokio::select! {
        // An answer all the same when nothing changes, so that the reader knows we are there.
        _ = timeout(HOLD, other) => {}
        () = app.shutdown.cancelled() => {}
    }
    Ok(Json(app.store.ssh_feed(app.now()).await.map_err(failed)?).into_response())
}

/// Which personal tokens and SSH keys (by their fingerprints) a gateway has seen, and when.
pub(super) async fn token_uses(
    State(app): State<App>,
    headers: HeaderMap,
    body: Result<Json<Report>, JsonRejection>,
) -> Result<StatusCode, Response> {
    check_gate(&app, &headers).await?;
    let body = body.map_err(|error| ApiError::BadRequest(error.body_text()).into_response())?;
    let uses = body.0.uses.into_iter().take(REPORT_MAX).map(|one| (one.id, one.at));
    let (keys, tokens): (Vec<_>, Vec<_>) = uses.partition(|(id, _)| id.starts_with("SHA256:"));
    let note = async {
        app.store.note_token_uses(&tokens, app.now()).await?;
        app.store.note_key_uses(&keys, app.now()).await
    };
    note.await.map_err(|error| ApiError::from(error).into_response())?;
    Ok(StatusCode::NO_CONTENT)
}
