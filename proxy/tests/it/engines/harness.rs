//! Two gateways that differ in one setting, each before an upstream that says what it is told to.
//!
//! Everything runs on one thread. So "nothing more will come" need not be waited for: it is seen when
//! nothing came while the others had their turns. A difference counts only if it is there again when
//! real time is given. Those that are not are all of one kind: an answer that came before its request
//! was whole, after which an engine keeps the client's connection or closes it, depending on which
//! of the two ended first.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use proxy::{Config, Share};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    canon::{self, Message},
    case::Case,
    judge::{Seen, judge},
};
use crate::world::{HOST, World};

const FIRST: &str = "/first-request-of-the-case";
const LAST: &str = "/last-request-of-the-case";

/// When it is taken for certain that nothing more comes.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// All others have had so many turns.
    Turns,
    Time,
}

impl Patience {
    const TURNS: usize = 100;
    const TIME: Duration = Duration::from_millis(500);

    /// Lets the others do what they can do now.
    async fn others(self) {
        for _ in 0..12 {
            yield_now().await;
        }
        if let Self::Time = self {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Reads all there is. Whether the connection stays open.
    async fn read_all(self, stream: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
        loop {
            match self.read(stream, bytes).await {
                Some(1..) => {}
                end => return end.is_none(),
            }
        }
    }

    /// Reads more; 0 at the end, `None` when nothing more comes.
    async fn read(self, stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<usize> {
        for _ in 0..Self::TURNS {
            match stream.try_read_buf(bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => yield_now().await,
                read => return Some(read.unwrap_or(0)),
            }
        }
        match self {
            Self::Turns => None,
            Self::Time => {
                let read = timeout(Self::TIME, stream.read_buf(bytes)).await.ok()?;
                Some(read.unwrap_or(0))
            }
        }
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
    early: bool,
    /// Whole requests as they came.
    seen: Vec<Message>,
    /// By connection, what has begun.
    unfinished: BTreeMap<u16, Message>,
    /// What no request may be.
    wrong: Option<String>,
    /// Ends all connections of the case.
    over: CancellationToken,
}

pub struct Pair {
    lane: Side,
    general: Side,
    /// Differences that were not there the second time.
    pub unrepeated: AtomicU64,
}

impl Side {
    async fn start(world: World, token: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let script: Arc<Mutex<Script>> = Arc::default();
        world.running(listener.local_addr().unwrap());
        tokio::spawn({
            let script = script.clone();
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    tokio::spawn(upstream(stream, script.clone()));
                }
            }
        });
        Self { world, token, script }
    }

    fn ask(&self, path: &str, connection: &str) -> Vec<u8> {
        let token = &self.token;
        format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\nConnection: {connection}\r\n\r\n")
            .into_bytes()
    }

    async fn run(&self, case: &Case, patience: Patience) -> Seen {
        let over = CancellationToken::new();
        *self.script.lock().unwrap() = Script {
            answer: case.answer.clone(),
            cut: case.answer_cut,
            closes: case.closes,
            early: case.early,
            over: over.clone(),
            ..Script::default()
        };
        let mut client = TcpStream::connect(self.world.plain).await.unwrap();
        client.set_nodelay(true).unwrap();
        let mut bytes = Vec::new();
        if case.warm {
            let _ = client.write_all(&self.ask(FIRST, "keep-alive")).await;
            patience.read_all(&mut client, &mut bytes).await;
            bytes.clear();
        }
        let (first, mut second) = case.parts(&self.token);
        let last = self.ask(LAST, "close");
        if !case.apart {
            second.extend_from_slice(&last);
        }
        let _ = client.write_all(&first).await;
        if !first.is_empty() && !second.is_empty() {
            patience.others().await;
        }
        let _ = client.write_all(&second).await;
        let mut waits = patience.read_all(&mut client, &mut bytes).await;
        if case.apart && waits {
            let _ = client.write_all(&last).await;
            waits = patience.read_all(&mut client, &mut bytes).await;
        }
        // Neither end is left to wait for packets that are late.
        let _ = client.set_zero_linger();
        drop(client);
        patience.others().await;
        let seen = self.seen(case, &bytes, waits);
        // The pools are empty when the next case begins.
        over.cancel();
        patience.others().await;
        seen
    }

    fn seen(&self, case: &Case, bytes: &[u8], waits: bool) -> Seen {
        let bodiless = case.bodiless();
        let mut script = self.script.lock().unwrap();
        let mut wrong = script.wrong.take();
        let (mut client, mut at) = (Vec::new(), 0);
        let mut answered = 0;
        loop {
            let none = bodiless.get(answered) == Some(&true);
            let Some((message, length)) = Message::read(&bytes[at..], none) else { break };
            if let Err(why) = message.check_answer(none) {
                wrong = wrong.or(Some(why));
            }
            answered += usize::from(message.status() >= 200);
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
                message.without_chance()
            })
            .collect();
        let mut upstream = std::mem::take(&mut script.seen);
        upstream.extend(std::mem::take(&mut script.unfinished).into_values());
        let behind = canon::text(&bytes[at..]);
        Seen { upstream, client, behind, reused, waits, wrong }
    }
}

/// Serves one connection until the case is over.
async fn upstream(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    let over = script.lock().unwrap().over.clone();
    tokio::select! {
        () = serve(&mut stream, &script) => {}
        () = over.cancelled() => {
            let _ = stream.set_zero_linger();
        }
    }
}

/// The script's answer for everything but the first and the last request of a case.
async fn serve(stream: &mut TcpStream, script: &Mutex<Script>) {
    let mut bytes = Vec::new();
    let port = stream.peer_addr().map_or(0, |peer| peer.port());
    loop {
        let mut answered = false;
        let message = loop {
            let message = Message::read(&bytes, false);
            match message {
                Some((message, length)) if message.whole => {
                    bytes.drain(..length);
                    break message;
                }
                Some((message, _)) => {
                    let early = {
                        let mut script = script.lock().unwrap();
                        script.unfinished.insert(port, message);
                        script.early
                    };
                    if early && !answered {
                        answer(stream, script).await;
                        answered = true;
                    }
                }
                None => {}
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        };
        script.lock().unwrap().unfinished.remove(&port);
        if let Err(why) = message.check_request() {
            script.lock().unwrap().wrong = Some(format!("{why}: {message:#?}"));
        }
        if let Some(path) = [FIRST, LAST].into_iter().find(|path| message.start.contains(path)) {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            continue;
        }
        script.lock().unwrap().seen.push(message);
        if !answered {
            answer(stream, script).await;
        }
        if script.lock().unwrap().closes {
            return;
        }
    }
}

async fn answer(stream: &mut TcpStream, script: &Mutex<Script>) {
    let (first, second) = {
        let script = script.lock().unwrap();
        let (first, second) = script.answer.split_at(script.cut.min(script.answer.len()));
        (first.to_vec(), second.to_vec())
    };
    let _ = stream.write_all(&first).await;
    if !first.is_empty() && !second.is_empty() {
        Patience::Turns.others().await;
    }
    let _ = stream.write_all(&second).await;
}

impl Pair {
    pub async fn start() -> Self {
        let adjust = |fast_lane| {
            move |config: &mut Config| {
                config.fast_lane = fast_lane;
                config.limits.connections_per_address = 50_000;
                // However fast the cases come, they are no flood.
                let unlimited = Share { requests_per_second: Some(0), ..Share::default() };
                config.limits.stranger = unlimited;
                config.limits.stranger_connection = unlimited;
                // The issuer is no upstream that does what it is told to.
                config.system_hosts.clear();
                (config.access_log.sample, config.access_log.refused_per_second) = (0, 0);
            }
        };
        let lane = World::with(adjust(true)).await;
        let general = World::beside(&lane, adjust(false)).await;
        let token = lane.issuer.access_token("alice", 36_000);
        let lane = Side::start(lane, token.clone()).await;
        let general = Side::start(general, token).await;
        Self { lane, general, unrepeated: AtomicU64::new(0) }
    }

    /// How many requests the lane has carried so far.
    pub fn taken_by_lane(&self) -> u64 {
        let families = self.lane.world.registry.gather();
        let family = families.iter().find(|f| f.name() == "dormouse_proxy_requests_total");
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let of_lane = metrics.iter().filter(|m| m.get_label().iter().any(|l| l.value() == "lane"));
        of_lane.map(|metric| metric.get_counter().get_value() as u64).sum()
    }

    /// What differs, in words. On a runtime of one thread.
    pub async fn compare(&self, case: &Case) -> Result<(), String> {
        let Err(first) = self.compare_once(case, Patience::Turns).await else { return Ok(()) };
        let again = self.compare_once(case, Patience::Time).await;
        if again.is_ok() {
            self.unrepeated.fetch_add(1, Relaxed);
            eprintln!("not there the second time: {case:?}\n{first}");
        }
        again
    }

    async fn compare_once(&self, case: &Case, patience: Patience) -> Result<(), String> {
        let (lane, general) =
            tokio::join!(self.lane.run(case, patience), self.general.run(case, patience));
        judge(case, &lane, &general)
            .map_err(|why| format!("{why}\nlane: {lane:#?}\ngeneral: {general:#?}\ncase: {case:?}"))
    }
}
