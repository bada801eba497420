//! Telling clients that a session is over (OpenID Connect Back-Channel Logout 1.0).

use std::time::Duration;

use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{interval, timeout},
};
use uuid::Uuid;

use crate::{
    server::{App, Server},
    store::{LogoutNotice, StoreError},
};

/// `typ` of a logout token (section 2.4).
const LOGOUT_TOKEN: &str = "logout+jwt";

/// The event that it tells.
const LOGOUT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// How long a logout token is valid, in seconds (section 2.4: two minutes at most).
const LIFETIME: i64 = 120;

/// How often sessions that ended are looked for.
const PACE: Duration = Duration::from_secs(1);

/// How often sessions are looked for that nobody ended.
const FADED: Duration = Duration::from_secs(60);

/// How long a client may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Until the shutdown. Does nothing as long as no client wants to be told.
pub(crate) async fn run(app: App, http: reqwest::Client) {
    let mut pace = interval(PACE);
    let mut faded_found = Timestamp::UNIX_EPOCH;
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            _ = pace.tick() => {}
        }
        if !app.clients.any(|client| client.profile.back_channel_logout_uri.is_some()) {
            continue;
        }
        let now = app.now();
        let find_faded = now.duration_since(faded_found).unsigned_abs() >= FADED;
        if find_faded {
            faded_found = now;
        }
        if let Err(error) = round(&app, &http, find_faded, now).await {
            tracing::warn!(%error, "clients could not be told of sessions that ended");
        }
    }
}

async fn round(
    app: &App,
    http: &reqwest::Client,
    find_faded: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    if find_faded {
        app.store.find_notices_of_faded(app.session_idle, now).await?;
    }
    app.store.find_logout_notices(now).await?;
    let mut sending = JoinSet::new();
    for notice in app.store.take_logout_notices(now).await? {
        let (app, http) = (app.clone(), http.clone());
        sending.spawn(async move {
            let delivered = send(&app, &http, &notice, now).await;
            settle(&app, &notice, delivered, now).await
        });
    }
    while let Some(done) = sending.join_next().await {
        if let Ok(done) = done {
            done?;
        }
    }
    Ok(())
}

/// Ok when the client has taken note. The error says what it did instead.
async fn send(
    app: &Server,
    http: &reqwest::Client,
    notice: &LogoutNotice,
    now: Timestamp,
) -> Result<(), String> {
    let client = app.store.client(&notice.client_id).await.map_err(|error| error.to_string())?;
    // A client that is gone, or wants to hear nothing any more, has been told.
    let Some(uri) = client.and_then(|client| client.profile.back_channel_logout_uri) else {
        return Ok(());
    };
    let token = token(app, notice, now).map_err(|error| error.to_string())?;
    let request = http.post(uri).form(&[("logout_token", token)]).send();
    match timeout(DEADLINE, request).await {
        Ok(Ok(response)) if response.status().is_success() => Ok(()),
        Ok(Ok(response)) => Err(format!("it answered {}", response.status().as_u16())),
        Ok(Err(_)) => Err("it cannot be reached".to_owned()),
        Err(_) => Err("it did not answer in time".to_owned()),
    }
}

/// The logout token: no `nonce`, so that it is never taken for an ID token.
fn token(app: &Server, notice: &LogoutNotice, now: Timestamp) -> Result<String, StoreError> {
    let now = now.as_second();
    let claims = json!({
        "iss": app.issuer.as_str(), "sub": notice.subject, "aud": notice.client_id,
        "iat": now, "exp": now.saturating_add(LIFETIME), "jti": Uuid::new_v4().to_string(),
        "sid": notice.session_id, "events": { LOGOUT: {} },
    });
    Ok(app.ring.sign(LOGOUT_TOKEN, &claims)?)
}

async fn settle(
    app: &Server,
    notice: &LogoutNotice,
    delivered: Result<(), String>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let goes_on = app.store.settle_logout_notice(notice, delivered.is_ok(), now).await?;
    if let Err(problem) = &delivered
        && goes_on
    {
        tracing::info!(client = notice.client_id, problem, "a sign-out will be told again");
        return Ok(());
    }
    let event = Event {
        who: None,
        did: "sign-out-told",
        to: Some(&format!("Client {}", notice.client_id)),
        from: None,
        credential: None,
        outcome: if delivered.is_ok() { Outcome::Allowed } else { Outcome::Failed },
        detail: delivered.as_ref().err().map(String::as_str),
    };
    app.audit.record(now, event);
    Ok(())
}
