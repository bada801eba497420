//! The admin port of each service: health, readiness, metrics, and what the service adds. Never
//! reachable from outside.

use std::fmt::Write as _;

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use prometheus::{Encoder, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::service::Context;

/// Serves until `until`: a service that drains is heard to its end, and is not ready meanwhile.
pub async fn serve(
    listener: TcpListener,
    ctx: Context,
    extra: Router,
    until: CancellationToken,
) -> std::io::Result<()> {
    let shutdown = ctx.shutdown.clone();
    let health = ctx.health.clone();
    let registry = ctx.registry.clone();
    let ready = move || {
        let (mut problems, warnings) = (health.problems(), health.warnings());
        if shutdown.is_cancelled() {
            problems.push(("shutdown", "finishing what runs, taking nothing new".to_owned()));
        }
        async move {
            let status =
                if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let mut text = if problems.is_empty() { "ok\n".to_owned() } else { String::new() };
            for (name, why) in &problems {
                let _ = writeln!(text, "{name}: {why}");
            }
            for (name, why) in &warnings {
                let _ = writeln!(text, "warning: {name}: {why}");
            }
            (status, text)
        }
    };
    let metrics = move || {
        let families = registry.gather();
        async move {
            let mut text = Vec::new();
            match TextEncoder::new().encode(&families, &mut text) {
                Ok(()) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
                Err(error) => {
                    tracing::error!(%error, "metrics cannot be encoded");
                    StatusCode::INTERNAL_SERVER_ERROR.into_response()
                }
            }
        }
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(extra);
    axum::serve(listener, router).with_graceful_shutdown(until.cancelled_owned()).await
}
