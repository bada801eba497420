//! Two gateways that differ in one setting, each before an upstream that says what it is told to.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::canon::{self, Message};
use crate::world::{World, find};

const LAST: &str = "/last-request-of-the-case";

#[derive(Clone)]
pub struct Case {
    /// One request; `TOKEN` stands for a good token.
    pub request: Vec<u8>,
    /// Where the request is cut into two writes.
    pub cut: usize,
    pub answer: Vec<u8>,
    pub answer_cut: usize,
    /// The upstream closes its connection after the answer.
    pub closes: bool,
    /// The answer breaks the protocol.
    pub odd: bool,
    /// For something to come that is on its way: long, unless nothing may come at all.
    pub patience: Duration,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, cut, answer, answer_cut, closes, odd, .. } = self;
        let (request, answer) = (request.escape_ascii(), answer.escape_ascii());
        write!(f, "\nrequest, cut at {cut}: {request}\nanswer, cut at {answer_cut}: {answer}\n")?;
        write!(f, "closes: {closes}, odd: {odd}")
    }
}

impl Case {
    /// A byte that says where both are cut and whether the upstream closes; a request; a line `====`;
    /// an answer. The token is where the request has `TOKEN`.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        const BETWEEN: &[u8] = b"\n====\n";
        let (&how, rest) = bytes.split_first()?;
        let at = find(rest, BETWEEN)?;
        let (request, answer) = (rest[..at].to_vec(), rest[at + BETWEEN.len()..].to_vec());
        let cut = |length: usize, part: u8| length * usize::from(part) / 15;
        Some(Self {
            cut: cut(request.len(), how & 15),
            answer_cut: cut(answer.len(), how >> 4),
            closes: how & 1 == 1,
            odd: !canon::is_sound(&answer, request.starts_with(b"HEAD "), how & 1 == 1),
            patience: Duration::from_millis(300),
            request,
            answer,
        })
    }
}

struct Side {
    world: World,
    token: String,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    answer: Vec<u8>,
    cut: usize,
    closes: bool,
    seen: Vec<Message>,
}

pub struct Pair {
    lane: Side,
    general: Side,
}

/// What came of a case.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    upstream: Vec<Message>,
    client: Vec<Message>,
    /// The client could use its connection for another request.
    reused: bool,
    /// Nothing more came, and the connection stayed open.
    waits: bool,
}

impl Side {
    async fn start(fast_lane: bool) -> Self {
        let world = World::with(|config| {
            config.fast_lane = fast_lane;
            config.limits.connections_per_address = 50_000;
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let script: Arc<Mutex<Script>> = Arc::default();
        world.running(listener.local_addr().unwrap());
        tokio::spawn({
            let script = script.clone();
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(upstream(stream, script.clone()));
                }
            }
        });
        let token = world.issuer.access_token("alice", 36_000);
        Self { world, token, script }
    }

    async fn run(&self, case: &Case) -> Seen {
        {
            let mut script = self.script.lock().unwrap();
            script.answer = case.answer.clone();
            (script.cut, script.closes) = (case.answer_cut, case.closes);
            script.seen.clear();
        }
        let mut client = TcpStream::connect(self.world.plain).await.unwrap();
        client.set_nodelay(true).unwrap();
        let put_token = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).replace("TOKEN", &self.token);
            text.into_bytes()
        };
        let (first, second) = case.request.split_at(case.cut.min(case.request.len()));
        // Cut before or behind the token, not within its name.
        let (first, second) = match find(&case.request, b"TOKEN") {
            Some(at) if (at..at + 5).contains(&first.len()) => case.request.split_at(at),
            _ => (first, second),
        };
        let mut second = put_token(second);
        let host = crate::world::HOST;
        second.extend_from_slice(
            format!("GET {LAST} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n", self.token).as_bytes(),
        );
        let _ = client.write_all(&put_token(first)).await;
        tokio::task::yield_now().await;
        let _ = client.write_all(&second).await;
        let mut bytes = Vec::new();
        let waits = loop {
            match timeout(case.patience, client.read_buf(&mut bytes)).await {
                Ok(Ok(1..)) => {}
                Ok(_) => break false,
                Err(_) => break true,
            }
        };
        self.seen(case, &bytes, waits)
    }

    fn seen(&self, case: &Case, bytes: &[u8], waits: bool) -> Seen {
        let head_only = case.request.starts_with(b"HEAD ");
        let (mut client, mut at) = (Vec::new(), 0);
        let mut answered = false;
        while let Some((message, length)) = Message::read(&bytes[at..], head_only && !answered) {
            answered |= message.status() >= 200;
            at += length;
            client.push(message);
        }
        let reused = client.last().is_some_and(|last| last.body == LAST);
        if reused {
            client.pop();
        }
        let client = client
            .into_iter()
            .map(|mut message| {
                message.start = message.start.replace("HTTP/1.0 ", "HTTP/1.1 ");
                message.without(&["date"]).without_chance()
            })
            .collect();
        let upstream = self.script.lock().unwrap().seen.clone();
        Seen { upstream, client, reused, waits }
    }
}

/// Serves one connection: the script's answer for everything but the last request of a case.
async fn upstream(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    let mut bytes = Vec::new();
    loop {
        let message = loop {
            match Message::read(&bytes, false) {
                Some((message, length)) if message.whole => {
                    bytes.drain(..length);
                    break message;
                }
                _ => {}
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        };
        if message.start.contains(LAST) {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{LAST}", LAST.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            continue;
        }
        let (first, second, closes) = {
            let mut script = script.lock().unwrap();
            script.seen.push(message);
            let (first, second) = script.answer.split_at(script.cut.min(script.answer.len()));
            (first.to_vec(), second.to_vec(), script.closes)
        };
        let _ = stream.write_all(&first).await;
        tokio::task::yield_now().await;
        let _ = stream.write_all(&second).await;
        if closes {
            return;
        }
    }
}

impl Pair {
    pub async fn start() -> Self {
        Self { lane: Side::start(true).await, general: Side::start(false).await }
    }

    /// How many requests the lane has carried so far.
    pub fn taken_by_lane(&self) -> u64 {
        let families = self.lane.world.registry.gather();
        let family = families.iter().find(|f| f.name() == "dormouse_proxy_requests_total");
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let of_lane = metrics.iter().filter(|m| m.get_label().iter().any(|l| l.value() == "lane"));
        of_lane.map(|metric| metric.get_counter().get_value() as u64).sum()
    }

    /// What differs, in words.
    pub async fn compare(&self, case: &Case) -> Result<(), String> {
        let (mut lane, mut general) = (self.lane.run(case).await, self.general.run(case).await);
        // An answer that breaks off at once on a connection that was used before: pingora asks again,
        // which does no harm for these, and the lane does once nothing at all of an answer came.
        let once =
            ["POST ", "PATCH "].iter().any(|method| case.request.starts_with(method.as_bytes()));
        if case.odd && case.closes && !once {
            lane.upstream.dedup();
            general.upstream.dedup();
        }
        // A pool may hold a connection that has just been closed; the next case waits for that.
        if case.closes {
            sleep(Duration::from_millis(2)).await;
        }
        let failed =
            |seen: &Seen| seen.client.last().is_none_or(|last| last.status() == 502 || !last.whole);
        if lane.upstream != general.upstream {
            return Err(format!(
                "to the upstream\nlane: {:#?}\ngeneral: {:#?}",
                lane.upstream, general.upstream
            ));
        }
        // The last request may have lost its method to a body that was too short. What pingora does not
        // know as safe to repeat, it loses on a connection that the upstream has just closed.
        let stale = case.closes
            && lane.reused
            && !general.reused
            && general
                .client
                .split_last()
                .is_some_and(|(last, before)| last.status() == 502 && before == lane.client);
        let same = lane.client == general.client && lane.reused == general.reused;
        let same = same && lane.waits == general.waits;
        let allowed = failed(&lane) && (failed(&general) || case.odd);
        if same || allowed || stale {
            Ok(())
        } else {
            Err(format!(
                "lane: {lane:#?}\ngeneral: {general:#?}\nanswer: {}",
                case.answer.escape_ascii()
            ))
        }
    }
}
