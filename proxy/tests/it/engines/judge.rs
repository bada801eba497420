//! What came out, and which differences are none.

use super::{canon::Message, case::Case};

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub upstream: Vec<Message>,
    pub client: Vec<Message>,
    /// Behind the last message, what is none.
    pub behind: String,
    /// The client could use its connection for another request.
    pub reused: bool,
    /// Nothing more came, and the connection stayed open.
    pub waits: bool,
    pub wrong: Option<String>,
}

pub fn judge(case: &Case, lane: &Seen, general: &Seen) -> Result<(), String> {
    for (seen, name) in [(lane, "lane"), (general, "general engine")] {
        if let Some(wrong) = &seen.wrong {
            return Err(format!("the {name}: {wrong}"));
        }
        delivered(case, seen).map_err(|why| format!("the {name}: {why}"))?;
    }
    let (mut lane, mut general) = (lane.clone(), general.clone());
    // An answer that breaks off at once on a connection that was used before: both engines ask again
    // where that does no harm, but not in the same cases.
    let several = case.request.windows(8).filter(|part| part == b" HTTP/1.").count() > 1;
    let once = ["POST ", "PATCH "].iter().any(|method| case.request.starts_with(method.as_bytes()));
    if case.odd && !once && (case.warm || several) {
        for seen in [&mut lane, &mut general] {
            seen.upstream.dedup();
            // What was said on the way to it, is then said again.
            seen.client.dedup_by(|a, b| a == b && a.status() < 200);
        }
    }
    if case.early {
        // How much of a body still leaves once the answer is there, is up to each.
        for message in lane.upstream.iter_mut().chain(&mut general.upstream) {
            (message.body, message.whole) = (String::new(), true);
        }
    }
    let failed =
        |seen: &Seen| seen.client.last().is_none_or(|last| last.status() == 502 || !last.whole);
    // The lane is the stricter one, and of two that fail one may break off and the other say so. What
    // comes behind is not served then.
    let refused = case.odd && failed(&lane) && !lane.reused;
    let same = match refused {
        true => general.upstream.starts_with(&lane.upstream),
        false => lane.upstream == general.upstream,
    };
    if !same {
        return Err("what the upstream gets differs".to_owned());
    }
    // The general engine drops trailers, as a recipient may (RFC 9110, section 6.5.1).
    for (ours, theirs) in lane.client.iter_mut().zip(&general.client) {
        if theirs.trailers.is_empty() {
            ours.trailers.clear();
        }
    }
    if lane == general {
        return Ok(());
    }
    // The lane waits for no body whose request has been answered, and says that it closes.
    let early = case.early && !lane.reused && !lane.client.is_empty() && {
        let said = |seen: &Seen| {
            let mut said = seen.client.clone();
            said.iter_mut().for_each(|m| m.fields.retain(|(name, _)| name != "connection"));
            said
        };
        said(&general).starts_with(&said(&lane))
    };
    // The last request may have lost its method to a body that was too short. What pingora does not
    // know as safe to repeat, it loses on a connection that the upstream has just closed; and any
    // request on one on which more comes than was asked for. In the lane's world it had another.
    let stale = (case.closes || case.sound.is_none())
        && lane.reused
        && !general.reused
        && general
            .client
            .split_last()
            .is_some_and(|(last, before)| last.status() == 502 && before == lane.client);
    if refused || early || stale { Ok(()) } else { Err("what the client gets differs".to_owned()) }
}

/// A sound answer to a request that the upstream has got is what the client gets.
fn delivered(case: &Case, seen: &Seen) -> Result<(), String> {
    let Some(sound) = &case.sound else { return Ok(()) };
    // Whether it has a body depends on the request.
    let head = |start: &[u8]| start.starts_with(b"HEAD ");
    let is_this =
        |request: &Message| request.whole && head(request.start.as_bytes()) == head(&case.request);
    if !seen.upstream.first().is_some_and(is_this) {
        return Ok(());
    }
    let is_it = |message: &Message| {
        message.status() == sound.status()
            && message.body == sound.body
            && (message.trailers.is_empty() || message.trailers == sound.trailers)
            && message.whole
    };
    match seen.client.iter().any(is_it) {
        true => Ok(()),
        false => Err("a sound answer is not delivered".to_owned()),
    }
}
