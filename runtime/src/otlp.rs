//! Sends spans to an OpenTelemetry collector: OTLP over HTTP in protobuf (opentelemetry-proto 1.x).
//!
//! The messages are few and their encoding is fixed, so they are written here: a span costs its bytes
//! and no more. Spans that the collector does not take in time are dropped and counted.

use std::time::Duration;

use prometheus::{IntCounterVec, Opts, Registry};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Spans that wait to be sent.
const QUEUE: usize = 4_096;
/// Spans of one request to the collector.
const BATCH: usize = 512;
/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(2);
/// For the last spans when the process ends.
const LAST: Duration = Duration::from_secs(3);

/// One finished span of a server.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Span {
    pub trace: u128,
    pub id: u64,
    pub parent: Option<u64>,
    pub name: String,
    /// Nanoseconds since the epoch.
    pub start: u64,
    pub end: u64,
    pub failed: bool,
    /// By the names of OpenTelemetry's semantic conventions.
    pub attributes: Vec<(&'static str, Value)>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Int(i64),
}

/// Cheap to clone; sending never waits.
#[derive(Debug, Clone)]
pub struct Exporter {
    queue: mpsc::Sender<Span>,
    spans: IntCounterVec,
}

#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    #[error("`{0}` is no URL of a collector: name one such as http://collector:4318")]
    Url(String),
    #[error("metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

fn counted() -> prometheus::Result<IntCounterVec> {
    let help = "Spans, by what became of them.";
    IntCounterVec::new(Opts::new("dormouse_spans_total", help), &["outcome"])
}

impl Exporter {
    /// Sends until `shutdown`, and then what is left for a short while, at whose end the task ends.
    pub fn start(
        url: &str,
        service: &'static str,
        http: reqwest::Client,
        registry: &Registry,
        shutdown: CancellationToken,
    ) -> Result<(Self, JoinHandle<()>), ExporterError> {
        let base = url.trim_end_matches('/');
        let parsed: Option<Url> = format!("{base}/v1/traces").parse().ok();
        let parsed = parsed.filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = parsed.ok_or_else(|| ExporterError::Url(url.to_owned()))?;
        let spans = counted()?;
        registry.register(Box::new(spans.clone()))?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        let sender = Sender { url, service, http, spans: spans.clone() };
        let sending = tokio::spawn(sender.run(waiting, shutdown));
        Ok((Self { queue, spans }, sending))
    }

    /// For tests of what makes spans.
    #[doc(hidden)]
    pub fn to_channel(room: usize) -> (Self, mpsc::Receiver<Span>) {
        let (queue, sent) = mpsc::channel(room);
        let spans = counted().unwrap_or_else(|_| unreachable!("the name is a good one"));
        (Self { queue, spans }, sent)
    }

    pub fn send(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.spans.with_label_values(&["dropped"]).inc();
        }
    }
}

struct Sender {
    url: Url,
    service: &'static str,
    http: reqwest::Client,
    spans: IntCounterVec,
}

impl Sender {
    async fn run(self, mut waiting: mpsc::Receiver<Span>, shutdown: CancellationToken) {
        let mut failures = 0u64;
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                count = waiting.recv_many(&mut batch, BATCH) => if count == 0 { return },
                () = shutdown.cancelled() => break,
            }
            let more = async {
                loop {
                    let room = BATCH - batch.len();
                    if room == 0 || waiting.recv_many(&mut batch, room).await == 0 {
                        break;
                    }
                }
            };
            tokio::select! {
                _ = timeout(GATHER, more) => {}
                () = shutdown.cancelled() => {}
            }
            self.post(&batch, &mut failures).await;
        }
        waiting.close();
        let mut batch = Vec::new();
        while waiting.recv_many(&mut batch, QUEUE).await > 0 {}
        if !batch.is_empty() {
            let _ = timeout(LAST, self.post(&batch, &mut failures)).await;
        }
    }

    /// Never twice: a trace with a gap does less harm than a collector that is asked ever more often.
    async fn post(&self, batch: &[Span], failures: &mut u64) {
        let sent = self
            .http
            .post(self.url.clone())
            .header("content-type", "application/x-protobuf")
            .body(request(self.service, batch))
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        let outcome = match sent {
            Ok(_) => "sent",
            Err(error) => {
                *failures += 1;
                if failures.is_power_of_two() {
                    let error = crate::http::whole(&error);
                    tracing::warn!(error, failures, "the collector does not take spans");
                }
                "failed"
            }
        };
        self.spans.with_label_values(&[outcome]).inc_by(batch.len() as u64);
    }
}

/// `ExportTraceServiceRequest`.
fn request(service: &str, batch: &[Span]) -> Vec<u8> {
    let mut resource = Vec::new();
    attribute(&mut resource, 1, "service.name", &Value::Text(format!("dormouse-{service}")));
    let version = Value::Text(env!("CARGO_PKG_VERSION").to_owned());
    attribute(&mut resource, 1, "service.version", &version);
    let mut scope = Vec::new();
    bytes(&mut scope, 1, b"dormouse");
    let mut scope_spans = Vec::new();
    bytes(&mut scope_spans, 1, &scope);
    for span in batch {
        bytes(&mut scope_spans, 2, &encode(span));
    }
    let mut resource_spans = Vec::new();
    bytes(&mut resource_spans, 1, &resource);
    bytes(&mut resource_spans, 2, &scope_spans);
    let mut request = Vec::new();
    bytes(&mut request, 1, &resource_spans);
    request
}

/// `Span`.
fn encode(span: &Span) -> Vec<u8> {
    const SERVER: u64 = 2;
    const ERROR: u64 = 2;
    let mut out = Vec::with_capacity(256);
    bytes(&mut out, 1, &span.trace.to_be_bytes());
    bytes(&mut out, 2, &span.id.to_be_bytes());
    if let Some(parent) = span.parent {
        bytes(&mut out, 4, &parent.to_be_bytes());
    }
    bytes(&mut out, 5, span.name.as_bytes());
    number(&mut out, 6, SERVER);
    fixed(&mut out, 7, span.start);
    fixed(&mut out, 8, span.end);
    for (name, value) in &span.attributes {
        attribute(&mut out, 9, name, value);
    }
    if span.failed {
        let mut status = Vec::new();
        number(&mut status, 3, ERROR);
        bytes(&mut out, 15, &status);
    }
    out
}

/// `KeyValue`.
fn attribute(out: &mut Vec<u8>, field: u32, name: &str, value: &Value) {
    let mut any = Vec::new();
    match value {
        Value::Text(text) => bytes(&mut any, 1, text.as_bytes()),
        Value::Int(int) => number(&mut any, 3, int.cast_unsigned()),
    }
    let mut pair = Vec::new();
    bytes(&mut pair, 1, name.as_bytes());
    bytes(&mut pair, 2, &any);
    bytes(out, field, &pair);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Wire types of protobuf: 0 is a varint, 1 eight bytes, 2 a length and so many bytes.
fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field << 3));
    varint(out, value);
}

fn fixed(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field << 3 | 1));
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    varint(out, u64::from(field << 3 | 2));
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Bytes, extract::State, routing::post};
    use tokio::net::TcpListener;

    use super::*;

    fn span(id: u64) -> Span {
        Span {
            trace: 1,
            id,
            parent: Some(3),
            name: "GET".to_owned(),
            start: 5,
            end: 300,
            failed: true,
            attributes: vec![("http.response.status_code", Value::Int(502))],
        }
    }

    #[test]
    fn a_span_has_the_bytes_that_protobuf_says() {
        let expected = [
            &[0x0a, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..],
            &[0x12, 8, 0, 0, 0, 0, 0, 0, 0, 2],
            &[0x22, 8, 0, 0, 0, 0, 0, 0, 0, 3],
            &[0x2a, 3, b'G', b'E', b'T', 0x30, 2],
            &[0x39, 5, 0, 0, 0, 0, 0, 0, 0, 0x41, 44, 1, 0, 0, 0, 0, 0, 0],
            &[0x4a, 32, 0x0a, 25],
            b"http.response.status_code",
            &[0x12, 3, 0x18, 0xf6, 3],
            &[0x7a, 2, 0x18, 2],
        ];
        assert_eq!(encode(&span(2)), expected.concat());
    }

    #[tokio::test]
    async fn spans_reach_the_collector_and_too_many_are_dropped() {
        let (heard, mut bodies) = mpsc::channel::<Bytes>(8);
        let hear = |State(heard): State<mpsc::Sender<Bytes>>, body: Bytes| async move {
            heard.send(body).await.unwrap();
        };
        let router = Router::new().route("/v1/traces", post(hear)).with_state(heard);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (registry, shutdown) = (Registry::new(), CancellationToken::new());
        let http = crate::http::client(None).unwrap();
        let (exporter, sending) =
            Exporter::start(&url, "proxy", http, &registry, shutdown.clone()).unwrap();
        // More than there is room for, before anything can be sent.
        for id in 1..=QUEUE as u64 + 10 {
            exporter.send(span(id));
        }
        assert_eq!(exporter.spans.with_label_values(&["dropped"]).get(), 10);
        let first = bodies.recv().await.unwrap();
        let batch: Vec<_> = (1..=BATCH as u64).map(span).collect();
        assert_eq!(first, request("proxy", &batch));
        shutdown.cancel();
        let mut rest = 0;
        while rest < encode(&span(1)).len() * (QUEUE - BATCH) {
            rest += bodies.recv().await.unwrap().len();
        }
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_url_is_refused() {
        for bad in ["collector:4318", "", "ftp://collector"] {
            let http = reqwest::Client::builder();
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let http = http.build().unwrap();
            let started =
                Exporter::start(bad, "proxy", http, &Registry::new(), CancellationToken::new());
            assert!(matches!(started, Err(ExporterError::Url(_))), "{bad:?}");
        }
    }
}
