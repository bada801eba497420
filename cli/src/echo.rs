//! The built-in echo app: says what it was sent, for trying out sign-in, headers, WebSockets and
//! streams without any other program.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{
        Request,
        ws::{WebSocket, WebSocketUpgrade},
    },
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{any, get},
};
use futures::{Stream, StreamExt, stream};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Longest body that is sent back.
const BODY_MAX: usize = 64 * 1024;

/// Serves until the process is asked to stop.
pub async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; choose another address with --listen")
    })?;
    let stop = CancellationToken::new();
    runtime::shutdown::on_signals(stop.clone())?;
    let streams = stop.clone();
    let router = Router::new()
        .route("/ws", any(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo_messages) }))
        .route(
            "/events",
            get(move || async { Sse::new(ticks(streams)).keep_alive(KeepAlive::default()) }),
        )
        .fallback(echo_request);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

async fn echo_request(request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_MAX).await else {
        let message = format!("at most {BODY_MAX} bytes are echoed\n");
        return (StatusCode::PAYLOAD_TOO_LARGE, message).into_response();
    };
    let headers: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    Json(json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    }))
    .into_response()
}

async fn echo_messages(mut socket: WebSocket) {
    use axum::extract::ws::Message;
    while let Some(Ok(message)) = socket.recv().await {
        let answer = match message {
            Message::Text(_) | Message::Binary(_) => message,
            // Answered by the library, with the next receive.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => continue,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}

/// One event at once, then one each second.
fn ticks(stop: CancellationToken) -> impl Stream<Item = Result<Event, std::convert::Infallible>> {
    let numbers = stream::iter(0u64..).then(|number| async move {
        if number > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(Event::default().event("tick").data(number.to_string()))
    });
    numbers.take_until(stop.cancelled_owned())
}
