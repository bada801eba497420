//! One case sent, and what came of it.

use std::{fmt, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

use super::recorder::{Record, Seen};

#[derive(Debug)]
pub struct Outcome {
    /// Status codes, in their order.
    answers: Vec<String>,
    /// The server waits for more, with the connection open.
    waits: bool,
    host: String,
    pub seen: Vec<Seen>,
}

/// Sends everything at once and reads until the end, or until nothing comes for so long. What the
/// upstream saw is looked at until it is what is expected, for it writes it down on its own time.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite,
    bytes: Vec<u8>,
    host: &str,
    record: Record,
    expected: Option<String>,
    patience: Duration,
) -> Outcome {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut said = Vec::new();
    let sending = async {
        // A server may refuse before it has taken everything.
        let _ = write.write_all(&bytes).await;
        let _ = write.flush().await;
        std::future::pending::<()>().await;
    };
    let reading = async {
        loop {
            match timeout(patience, read.read_buf(&mut said)).await {
                Ok(Ok(1..)) => {}
                Ok(_) => return false,
                Err(_) => return true,
            }
        }
    };
    let waits = tokio::select! {
        waits = reading => waits,
        () = sending => unreachable!(),
    };
    let text: String = said.iter().map(|&byte| char::from(byte)).collect();
    let answers = text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12));
    let is_status = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
    let mut outcome = Outcome {
        answers: answers.filter(is_status).map(str::to_owned).collect(),
        waits,
        host: host.to_owned(),
        seen: record.all(),
    };
    if outcome.answers.is_empty() && !said.is_empty() {
        outcome.answers.push("bare".to_owned());
    }
    let until = Instant::now() + Duration::from_secs(if expected.is_some() { 10 } else { 1 });
    while expected.as_ref().is_none_or(|cell| *cell != outcome.to_string())
        && Instant::now() < until
    {
        sleep(Duration::from_millis(20)).await;
        outcome.seen = record.all();
    }
    outcome
}

impl fmt::Display for Outcome {
    /// As a cell of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut seen = self.seen.as_slice();
        let finals: Vec<_> = self.answers.iter().filter(|status| *status != "100").collect();
        let passed = finals.len() == seen.len()
            && finals.iter().all(|status| *status == "200")
            && seen.last().is_some_and(|last| last.line == "GET /last");
        if passed {
            seen = seen.split_last().map(|(_, before)| before).unwrap_or_default();
            f.write_str("passes")?;
        } else {
            let waits = self.waits.then_some("waits");
            let answers: Vec<_> = self.answers.iter().map(String::as_str).chain(waits).collect();
            f.write_str(if answers.is_empty() { "closes" } else { "" })?;
            f.write_str(&answers.join(" "))?;
        }
        if self.answers.len() > finals.len() && passed {
            f.write_str(" after 100")?;
        }
        let said: Vec<_> = seen.iter().map(|seen| self.shown(seen)).collect();
        if said.is_empty() { Ok(()) } else { write!(f, ": {}", said.join(", ")) }
    }
}

impl Outcome {
    fn shown(&self, seen: &Seen) -> String {
        let mut text: String = seen
            .line
            .chars()
            .flat_map(|c| {
                let plain = c == ' ' || c.is_ascii_graphic();
                if plain { vec![c] } else { format!("\\x{:02x}", u32::from(c)).chars().collect() }
            })
            .collect();
        if text.len() > 60 {
            text = format!("{}...", &text[..20]);
        }
        text = text.replace(&self.host, "{host}");
        // More back-ticks around than are within.
        let ticks = if text.contains('`') { "``" } else { "`" };
        let mut shown = format!("{ticks}{}{ticks}", text.replace('|', "\\|"));
        if seen.body > 0 {
            shown += &format!(" with {} bytes", seen.body);
        }
        if seen.host != self.host {
            let host = seen.host.replace(&self.host, "{host}");
            let upper = self.host.to_ascii_uppercase();
            shown += &format!(" for `{}`", host.replace(&upper, "{HOST}").escape_default());
        }
        let mut odd = seen.odd.clone();
        odd.dedup();
        if !odd.is_empty() {
            shown += &format!(" ({})", odd.join(", "));
        }
        shown
    }
}
