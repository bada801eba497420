//! Clients that ask for much and read nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{io::AsyncWriteExt, time::sleep};

use crate::{
    upstream,
    world::{HOST, World},
};

const CLIENTS: u64 = 40;
const ANSWER: u64 = 256 << 20;
/// What the kernel's buffers of three connections may take in, and a little of ours.
const HELD_MAX: u64 = 24 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_answers_that_nobody_reads_are_not_fetched_and_others_are_served() {
    for fast_lane in [true, false] {
        let world = World::with(|config| config.fast_lane = fast_lane).await;
        let sent = Arc::new(AtomicU64::new(0));
        let counted = sent.clone();
        let address = upstream::start(move |mut request| {
            let sent = counted.clone();
            async move {
                if request.head.starts_with("GET /small") {
                    return request.reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
                request
                    .reply(&format!("HTTP/1.1 200 OK\r\nContent-Length: {ANSWER}\r\n\r\n"))
                    .await;
                let block = vec![7; 64 * 1024];
                while request.stream.write_all(&block).await.is_ok() {
                    sent.fetch_add(block.len() as u64, SeqCst);
                }
            }
        })
        .await;
        world.running(address);
        let bearer = world.bearer("alice");
        let mut deaf = Vec::new();
        for _ in 0..CLIENTS {
            let mut raw = world.raw().await;
            raw.send(&format!(
                "GET /large HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n\r\n"
            ))
            .await;
            deaf.push(raw);
        }
        // Until nothing moves any more.
        let mut last = u64::MAX;
        while sent.load(SeqCst) != last || last == 0 {
            last = sent.load(SeqCst);
            sleep(Duration::from_millis(300)).await;
        }
        assert!(last < CLIENTS * HELD_MAX, "{} bytes for each", last / CLIENTS);
        let answer = world.client(true).get(world.url(HOST, "/small"));
        let answer = answer.header("Authorization", &bearer).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "ok");
        // Who reads after all gets everything in its order.
        let mut raw = deaf.pop().unwrap();
        while raw.buffer.len() < 8 << 20 {
            assert!(raw.more().await);
        }
        assert!(raw.buffer.ends_with(&[7; 1024]));
    }
}
