//! Requests of every kind at a steady rate, as many people send them.

use std::{
    cell::RefCell,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{MissedTickBehavior, interval_at, timeout},
};

use crate::{
    client::{Connection, Target},
    websockets,
};

/// An answer that takes longer is an error.
const WITHIN: Duration = Duration::from_secs(20);
const UPLOAD: usize = 4096;
const STREAM: usize = 64 * 1024;

pub struct Plan {
    pub connections: usize,
    pub rate: f64,
    pub seconds: f64,
    /// Seconds between two lines of figures.
    pub every: f64,
    /// A file with a token in each line; each connection has its own.
    pub tokens: PathBuf,
}

#[derive(Clone, Copy)]
enum Kind {
    Get,
    Head,
    Post,
    Stream,
    WebSocket,
}

impl Kind {
    /// 70 small answers, 12 uploads, 10 streams, 4 without a body, 4 WebSockets in a hundred.
    fn of(number: u64) -> Self {
        // Spread, so that no second is made of one kind.
        match number.wrapping_mul(37) % 100 {
            0..70 => Self::Get,
            70..82 => Self::Post,
            82..92 => Self::Stream,
            92..96 => Self::Head,
            _ => Self::WebSocket,
        }
    }
}

#[derive(Default)]
struct Figures {
    requests: u64,
    failed: u64,
    first_error: Option<String>,
    micros: Vec<u32>,
}

impl Figures {
    fn print(&mut self, seconds: f64) {
        self.micros.sort_unstable();
        let at = |share: f64| {
            let last = self.micros.len().saturating_sub(1);
            self.micros.get((last as f64 * share) as usize).copied().unwrap_or_default()
        };
        let error = self.first_error.as_deref().unwrap_or_default();
        println!(
            "{{\"seconds\":{seconds:.0},\"requests\":{},\"failed\":{},\"p50\":{},\"p99\":{},\"max\":{},\
             \"error\":{error:?}}}",
            self.requests,
            self.failed,
            at(0.5),
            at(0.99),
            at(1.0),
        );
        *self = Self::default();
    }
}

pub async fn run(target: Target, plan: Plan) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&plan.tokens).context("the file of tokens")?;
    let tokens: Vec<&str> = text.lines().collect();
    ensure!(!tokens.is_empty(), "there is no token in {}", plan.tokens.display());
    let figures = RefCell::<Figures>::default();
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(plan.seconds);
    let each = Duration::from_secs_f64(plan.connections as f64 / plan.rate);
    let clients = (0..plan.connections).map(|number| {
        let token = tokens.get(number % tokens.len()).copied().unwrap_or_default();
        let target = target.with_token(token);
        let first = started + each.mul_f64(number as f64 / plan.connections as f64);
        client(target, number as u64 * 13, first, each, end, &figures)
    });
    let report = async {
        let mut ticks = interval_at(started.into(), Duration::from_secs_f64(plan.every));
        ticks.tick().await;
        while Instant::now() < end {
            ticks.tick().await;
            figures.borrow_mut().print(started.elapsed().as_secs_f64());
        }
    };
    futures::join!(join_all(clients), report);
    Ok(())
}

/// One person's requests, one at a time on one connection.
async fn client(
    target: Target,
    mut number: u64,
    first: Instant,
    each: Duration,
    end: Instant,
    figures: &RefCell<Figures>,
) {
    let mut ticks = interval_at(first.into(), each);
    // Late is late: what was missed is sent at once, so that the rate stays.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut kept = None;
    while Instant::now() < end {
        ticks.tick().await;
        let began = Instant::now();
        let done = timeout(WITHIN, request(&target, Kind::of(number), &mut kept)).await;
        number += 1;
        let mut figures = figures.borrow_mut();
        figures.requests += 1;
        figures.micros.push(began.elapsed().as_micros().try_into().unwrap_or(u32::MAX));
        if let Err(error) = done.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time"))) {
            figures.failed += 1;
            figures.first_error.get_or_insert_with(|| format!("{error:#}"));
            kept = None;
        }
    }
}

async fn request(target: &Target, kind: Kind, kept: &mut Option<Connection>) -> anyhow::Result<()> {
    if let Kind::WebSocket = kind {
        let mut socket = websockets::open(target).await?;
        websockets::message(&mut socket).await?;
        return websockets::close(&mut socket).await;
    }
    // Between two requests a server may close a connection: that is no failure of a request.
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => target.connect().await?,
    };
    let body = [b'y'; UPLOAD];
    let upload = format!("Content-Length: {UPLOAD}\r\n");
    let stream = format!("/stream/{STREAM}");
    let (method, path, fields, length) = match kind {
        Kind::Get | Kind::WebSocket => ("GET", "/1k", "", 1024),
        Kind::Head => ("HEAD", "/1k", "", 0),
        Kind::Post => ("POST", "/1k", upload.as_str(), 1024),
        Kind::Stream => ("GET", stream.as_str(), "", STREAM),
    };
    target.send(&mut connection, method, path, fields).await?;
    if let Kind::Post = kind {
        connection.io.write_all(&body).await?;
        connection.io.flush().await?;
    }
    let (status, head) = target.answer(&mut connection).await?;
    if status != 200 {
        bail!("{method} {path} was answered with {status}");
    }
    while connection.rest.len() < length {
        let read = connection.io.read_buf(&mut connection.rest).await?;
        ensure!(read > 0, "the answer to {method} {path} was cut");
    }
    ensure!(connection.rest.len() == length, "there is more than one answer");
    connection.rest.clear();
    if !head.to_ascii_lowercase().contains("connection: close") {
        *kept = Some(connection);
    }
    Ok(())
}
