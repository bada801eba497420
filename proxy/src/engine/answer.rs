//! Writes an answer of our own through pingora's session, for HTTP/1.1 and HTTP/2.

use std::time::Duration;

use http::{HeaderValue, Method, Version, header};
use pingora::{Result, http::ResponseHeader, proxy::Session};

use tokio::time::timeout;

use crate::answer::{Body, Outgoing};

/// For the body that a client is still sending when its answer has left, over HTTP/2.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it is read. What comes then waits in the stream's window, and so the client stops.
const READ_ON_MAX: usize = 1 << 20;

pub async fn write(session: &mut Session, answer: Outgoing) -> Result<()> {
    let answer = answer.into_answer();
    let mut response = ResponseHeader::build(answer.status, Some(answer.headers.len() + 2))?;
    for (name, value) in &answer.headers {
        // Texts of others are among them; what is no header value is left out.
        let value: String = value.chars().filter(|c| !c.is_control()).collect();
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            response.append_header(*name, value)?;
        }
    }
    if answer.close {
        session.set_keepalive(None);
    }
    let request = session.req_header();
    let head_only = request.method == Method::HEAD;
    match answer.body {
        Body::Whole(body) => {
            response.insert_header(header::CONTENT_LENGTH, body.len())?;
            session.write_response_header(Box::new(response), head_only).await?;
            if !head_only {
                session.write_response_body(Some(body), true).await?;
            }
        }
        Body::Stream(mut body) => {
            if request.version == Version::HTTP_11 {
                response.insert_header(header::TRANSFER_ENCODING, "chunked")?;
            }
            session.write_response_header(Box::new(response), head_only).await?;
            if !head_only {
                while let Some(part) = body.recv().await {
                    session.write_response_body(Some(part), false).await?;
                }
                session.write_response_body(None, true).await?;
            }
        }
    }
    if session.is_http2() {
        let _ = timeout(LINGER, hear_out(session)).await;
    }
    Ok(())
}

/// Reads what is on its way behind a request that was answered before its end. Otherwise the stream
/// would be reset at once (RFC 9113, section 8.1), and clients that meet the reset while they send
/// report it in place of the answer: curl 7.88 does. Over HTTP/1.1 pingora reads on by itself.
async fn hear_out(session: &mut Session) {
    let mut left = READ_ON_MAX;
    while !session.is_body_done() {
        let part = match left {
            // Only until the client gives up.
            0 => session.read_body_or_idle(true).await,
            _ => session.as_downstream_mut().read_request_body().await,
        };
        let Ok(Some(part)) = part else { return };
        left = left.saturating_sub(part.len());
    }
}
