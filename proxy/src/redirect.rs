//! Plain HTTP: sends everybody to HTTPS, answers an ACME authority's challenges, and does nothing else.
//! One request a connection.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    answer::{Answer, Besides, Refusal},
    config::Config,
    front::{
        head::{self, FIELDS_MAX},
        limits::Limits,
        write_answer,
    },
    gate::{
        head::{Audience, Head},
        host::{self, Host},
    },
    metrics::Metrics,
    tls::acme::challenges::{Challenges, HTTP_PATH},
};

/// Connections at a time, in all and from one address: each lasts for a moment.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_PER_ADDRESS: usize = 256;
/// Browsers send cookies in the clear until they have learned better.
const HEAD_MAX: usize = 16 * 1024;
/// For the answer to be taken.
const LINGER: Duration = Duration::from_secs(2);

pub struct Redirect {
    base_domain: String,
    external_port: u16,
    head_timeout: Duration,
    challenges: Option<Challenges>,
    metrics: Metrics,
    connections: Limits,
    stopping: CancellationToken,
}

/// What a request gets.
#[derive(Debug)]
enum Reply {
    Answer(Answer),
    /// The answer to this token, if there is one.
    Challenge(String),
}

impl Redirect {
    pub fn new(
        config: &Config,
        challenges: Option<Challenges>,
        metrics: Metrics,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            base_domain: config.base_domain.to_ascii_lowercase(),
            external_port: config.external_port,
            head_timeout: config.limits.head_timeout,
            challenges,
            metrics,
            connections: Limits::new(CONNECTIONS, CONNECTIONS_PER_ADDRESS),
            stopping,
        }
    }

    /// Serves until asked to stop.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let running = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stopping.cancelled() => break,
            };
            match accepted {
                Ok((tcp, peer)) => self.clone().begin(tcp, peer.ip(), &running),
                Err(error) => {
                    tracing::warn!(%error, "a plain connection could not be accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        running.close();
        let _ = timeout(LINGER, running.wait()).await;
    }

    fn begin(self: Arc<Self>, mut tcp: TcpStream, from: IpAddr, running: &TaskTracker) {
        let permit = match self.connections.take(from) {
            Ok(permit) => permit,
            Err(full) => {
                self.metrics.connections_refused.with_label_values(&[full.reason()]).inc();
                return;
            }
        };
        running.spawn(async move {
            let most = self.head_timeout + 3 * LINGER;
            if let Ok(Err(error)) = timeout(most, self.serve(&mut tcp)).await {
                tracing::debug!(%error, %from, "a plain connection broke off");
            }
            drop(permit);
        });
    }

    async fn serve(&self, tcp: &mut TcpStream) -> io::Result<()> {
        let deadline = Instant::now() + self.head_timeout;
        let mut bytes = BytesMut::new();
        let length = loop {
            match head::length(&bytes, HEAD_MAX) {
                Ok(Some(length)) => break Ok(length),
                Ok(None) => {}
                Err(refusal) => break Err(refusal),
            }
            bytes.reserve(1024);
            // It has left, or is too slow.
            if !matches!(timeout_at(deadline, tcp.read_buf(&mut bytes)).await, Ok(Ok(1..))) {
                return Ok(());
            }
        };
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let parsed = length
            .and_then(|length| head::parse(bytes.get(..length).unwrap_or_default(), &mut fields));
        let (answer, head_only) = match parsed {
            Err(refusal) => (refusal.answer(Audience::Client), false),
            Ok(parsed) => {
                let answer = match self.reply(&parsed.head) {
                    Reply::Answer(answer) => answer,
                    Reply::Challenge(token) => self.challenge(&token).await,
                };
                (answer, parsed.head.method == "HEAD")
            }
        };
        self.metrics.answered("redirect", answer.status);
        let answer = Besides::nobody(None).answer(answer).closing();
        timeout(LINGER, write_answer(tcp, &answer, head_only, true)).await??;
        tcp.shutdown().await?;
        // A body that nobody wants is read for a moment, or closing would reset the connection
        // before the answer has been read.
        let drained = async {
            let mut nothing = [0; 1024];
            while tcp.read(&mut nothing).await.is_ok_and(|read| read > 0) {}
        };
        let _ = timeout(LINGER, drained).await;
        Ok(())
    }

    fn reply(&self, head: &Head<'_>) -> Reply {
        let refused = |refusal: Refusal| Reply::Answer(refusal.answer(Audience::Client));
        if self.challenges.is_some()
            && let Some(token) = head.path().strip_prefix(HTTP_PATH)
        {
            return match head.method {
                "GET" | "HEAD" => Reply::Challenge(token.to_owned()),
                _ => refused(Refusal::NotFound),
            };
        }
        // Only to hosts of ours: whoever names another one is sent nowhere.
        match host::parse(head.authority, &self.base_domain) {
            Ok(Host::Ours(host)) => {
                let port = match self.external_port {
                    443 => String::new(),
                    port => format!(":{port}"),
                };
                Reply::Answer(Answer::redirect(308, format!("https://{host}{port}{}", head.target)))
            }
            Ok(Host::Foreign) => refused(Refusal::NotFound),
            Err(_) => refused(Refusal::BadRequest("The Host header is malformed")),
        }
    }

    async fn challenge(&self, token: &str) -> Answer {
        let answer = match &self.challenges {
            Some(challenges) => challenges.http_answer(token).await,
            None => None,
        };
        match answer {
            Some(answer) => Answer::new(200, "application/octet-stream", answer),
            None => Refusal::NotFound.answer(Audience::Client),
        }
    }
}
