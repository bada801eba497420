//! Writes an answer of our own in HTTP/1.1, where no engine is at hand.

use std::{fmt::Write as _, io};

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::{
    answer::{Body, Outgoing},
    date,
};

/// `close` says that the connection ends afterwards. A streamed body is not written here: no
/// answer to a handshake or to a broken head has one.
pub async fn write_answer(
    to: &mut (impl AsyncWrite + Unpin),
    answer: &Outgoing,
    head_only: bool,
    close: bool,
) -> io::Result<()> {
    let none = Bytes::new();
    let body = match &answer.body {
        Body::Whole(body) => body,
        Body::Stream(_) => &none,
    };
    let reason = StatusCode::from_u16(answer.status).ok().and_then(|code| code.canonical_reason());
    let mut text = format!("HTTP/1.1 {} {}\r\n", answer.status, reason.unwrap_or("Unknown"));
    for (name, value) in &answer.headers {
        // Nothing of a value may end the line: texts of others are among them.
        let value: String = value.chars().filter(|c| !c.is_control()).collect();
        let _ = write!(text, "{name}: {value}\r\n");
    }
    // Who answers says when (RFC 9110, section 6.6.1).
    date::with(Timestamp::now(), |date| {
        let _ = write!(text, "Date: {date}\r\n");
    });
    let connection = if close { "close" } else { "keep-alive" };
    let length = body.len();
    let _ = write!(text, "Content-Length: {length}\r\nConnection: {connection}\r\n\r\n");
    let mut bytes = text.into_bytes();
    if !head_only {
        bytes.extend_from_slice(body);
    }
    to.write_all(&bytes).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answer::{Besides, Refusal},
        gate::head::Audience,
    };

    #[tokio::test]
    async fn an_answer_says_when_it_was_made() {
        let mut out = Vec::new();
        let answer = Besides::nobody(None).answer(Refusal::BadGateway.answer(Audience::Client));
        write_answer(&mut out, &answer, true, true).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        let dates: Vec<_> = text.lines().filter(|line| line.starts_with("Date: ")).collect();
        assert!(matches!(dates[..], [date] if date.ends_with(" GMT")), "{text}");
    }
}
