//! Writes an answer of our own through pingora's session, for HTTP/1.1 and HTTP/2.

use http::{HeaderValue, Method, Version, header};
use pingora::{Result, http::ResponseHeader, proxy::Session};

use crate::answer::{Body, Outgoing};

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
    Ok(())
}
