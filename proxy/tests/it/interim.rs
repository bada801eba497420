//! Answers before the answer (RFC 9110, section 15.2).

use crate::{
    upstream,
    world::{HOST, World},
};

/// Early hints, processing, and the answer.
const ANSWERS: &str = "HTTP/1.1 102 Processing\r\n\r\n\
                       HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n\
                       HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Some clients of HTTP/1.1 take an interim answer for the answer, and the answer for that of their next request.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http_1_1_get_one_answer_to_a_request() {
    let world = World::start().await;
    let address = upstream::start(|mut request| async move {
        request.reply(ANSWERS).await;
    })
    .await;
    world.running(address);
    let mut raw = world.raw().await;
    let bearer = world.bearer("alice");
    for _ in 0..2 {
        raw.send(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n\r\n"))
            .await;
        let (head, body) = raw.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, b"ok");
    }
}
