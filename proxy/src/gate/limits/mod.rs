//! How much one person, one token, one route and one stranger may take.
//!
//! A limit that is not set costs a branch. One that is set costs a hash and an atomic write; there
//! is no lock and no allocation unless the answer is to say what is left.

mod settings;
mod table;

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use domain::{access::Grant, identity::Identity, traffic::Rate};
use jiff::Timestamp;

use self::table::{Empty, Key, Left, Place, Table};
use super::head::Head;
use crate::{answer::Refusal, config, front::limits::share, trace::Carried};

pub use self::settings::Share;
use self::settings::Shares;

/// People, tokens and routes that are counted at a time: 24 bytes each.
const KNOWN: usize = 32_768;
/// Strangers, the same.
const STRANGERS: usize = 32_768;

pub struct Limits {
    shares: Shares,
    known: OnceLock<Arc<Table>>,
    strangers: OnceLock<Arc<Table>>,
}

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    Person,
    Token,
    Route,
    Address,
    Connection,
}

impl Scope {
    /// The name of the policy in `RateLimit` fields.
    pub fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Token => "token",
            Self::Route => "route",
            Self::Address => "address",
            Self::Connection => "connection",
        }
    }
}

/// What a stranger is about. Each has a bucket of its own, so that a program that knocks with a bad
/// token leaves those behind the same address the way to signing in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Errand {
    SignIn,
    Other,
}

/// A limit that was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    Rate { scope: Scope, rate: Rate, wait: u64 },
    Concurrent { scope: Scope, most: u32 },
}

/// What an admitted request holds and is held to, for as long as it lives.
#[derive(Debug, Default)]
pub struct Held {
    places: [Option<Place>; 3],
    /// For the answer: the `RateLimit` fields, when a limit is set.
    pub fields: Vec<(&'static str, String)>,
    /// Longest request body, in bytes.
    pub body_max: Option<u64>,
    /// How long the request's body may take.
    pub body_time: Option<Duration>,
    /// The trace that the request belongs to.
    pub trace: Option<Box<Carried>>,
    /// Nothing is said of what is left.
    silent: bool,
}

impl Held {
    fn place(&mut self, place: Option<Place>) {
        if let (Some(place), Some(free)) =
            (place, self.places.iter_mut().find(|place| place.is_none()))
        {
            *free = Some(place);
        }
    }

    fn body(&mut self, most: Option<u64>) {
        self.body_max = match (self.body_max, most) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// Refuses a body that says itself that it is too long.
    pub fn check_length(&self, head: &Head<'_>) -> Result<(), Refusal> {
        let Some(most) = self.body_max else { return Ok(()) };
        // Its form was checked where the head was read; what is no number has no length.
        let length = head.single("content-length").and_then(|length| length.parse::<u64>().ok());
        match length {
            Some(length) if length > most => Err(Refusal::BodyTooLarge(most)),
            _ => Ok(()),
        }
    }

    /// For the upstream.
    pub fn trace_fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.trace.iter().flat_map(|trace| trace.fields())
    }

    /// Says how the request was answered; 0 when it was not.
    pub fn answered(&mut self, status: u16) {
        if let Some(trace) = &mut self.trace {
            trace.answered(status);
        }
    }

    fn say(&mut self, scope: Scope, rate: Rate, left: Left) {
        if self.silent {
            return;
        }
        let Left { remaining, full_in } = left;
        let policy = policy(scope, rate);
        let state = format!("\"{}\";r={remaining};t={full_in}", scope.name());
        if self.fields.is_empty() {
            self.fields = vec![("RateLimit-Policy", policy), ("RateLimit", state)];
            return;
        }
        for ((_, field), more) in self.fields.iter_mut().zip([policy, state]) {
            let _ = write!(field, ", {more}");
        }
    }
}

fn policy(scope: Scope, rate: Rate) -> String {
    let (burst, per_second) = (rate.burst.get(), rate.per_second.get());
    format!("\"{}\";q={burst};w={}", scope.name(), burst.div_ceil(per_second))
}

impl Exceeded {
    pub fn retry_after(self) -> u32 {
        match self {
            Self::Rate { wait, .. } => u32::try_from(wait).unwrap_or(u32::MAX),
            Self::Concurrent { .. } => 1,
        }
    }

    pub fn scope(self) -> Scope {
        match self {
            Self::Rate { scope, .. } | Self::Concurrent { scope, .. } => scope,
        }
    }

    /// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10).
    pub fn fields(self) -> [(&'static str, String); 2] {
        let (policy, state) = match self {
            Self::Rate { scope, rate, wait } => {
                (policy(scope, rate), format!("\"{}\";r=0;t={wait}", scope.name()))
            }
            Self::Concurrent { scope, most } => (
                format!("\"{}\";q={most};qu=\"concurrent-requests\"", scope.name()),
                format!("\"{}\";r=0", scope.name()),
            ),
        };
        [("RateLimit-Policy", policy), ("RateLimit", state)]
    }
}

impl Limits {
    pub fn new(limits: &config::Limits) -> Self {
        Self { shares: limits.into(), known: OnceLock::new(), strangers: OnceLock::new() }
    }

    /// One request by whoever is not signed in.
    pub fn stranger(
        &self,
        errand: Errand,
        from: SocketAddr,
        now: Timestamp,
    ) -> Result<Held, Refusal> {
        let table = self.strangers.get_or_init(|| Arc::new(Table::new(STRANGERS)));
        // Strangers are told of limits only when they have met one.
        let body_time = Some(self.shares.stranger_body);
        let mut held = Held { body_time, silent: true, ..Held::default() };
        let address = share(from.ip());
        let connection = || table.key((Scope::Connection, errand, from));
        let address = || table.key((Scope::Address, errand, address));
        // What one connection is refused is not taken from what others share with it. Behind a load
        // balancer nothing is known of connections.
        if from.port() != 0 {
            let share = &self.shares.stranger_connection;
            count(table, Scope::Connection, share, connection, now, &mut held)?;
        }
        count(table, Scope::Address, &self.shares.stranger, address, now, &mut held)?;
        Ok(held)
    }

    /// One request of a person, on whatever host.
    pub fn person(&self, identity: &Identity, now: Timestamp) -> Result<Held, Refusal> {
        let mut held = Held::default();
        let table = || self.known.get_or_init(|| Arc::new(Table::new(KNOWN)));
        let Shares { person, token, .. } = &self.shares;
        if counts(person) {
            let key = || table().key((Scope::Person, identity.user.as_str()));
            count(table(), Scope::Person, person, key, now, &mut held)?;
        }
        if counts(token) {
            let credential = &identity.credential;
            let of = credential.session.as_ref().unwrap_or(&credential.id);
            let key = || table().key((Scope::Token, of));
            count(table(), Scope::Token, token, key, now, &mut held)?;
        }
        held.body(person.body_bytes());
        held.body(token.body_bytes());
        Ok(held)
    }

    /// The same request, of a workload.
    pub fn route(&self, grant: &Grant, held: &mut Held, now: Timestamp) -> Result<(), Refusal> {
        let (own, default) = (grant.traffic(), &self.shares.route);
        let rate = own.rate.or_else(|| default.rate());
        let concurrent = own.concurrent.map(std::num::NonZeroU32::get).or(default.concurrent());
        held.body(own.body_bytes.or(default.body_bytes()));
        if rate.is_none() && concurrent.is_none() {
            return Ok(());
        }
        let table = self.known.get_or_init(|| Arc::new(Table::new(KNOWN)));
        let key = table.key((Scope::Route, grant.workload()));
        count_key(table, Scope::Route, (rate, concurrent), key, now, held)
    }
}

fn counts(share: &Share) -> bool {
    share.rate().is_some() || share.concurrent().is_some()
}

fn count(
    table: &Arc<Table>,
    scope: Scope,
    share: &Share,
    key: impl FnOnce() -> Key,
    now: Timestamp,
    held: &mut Held,
) -> Result<(), Refusal> {
    held.body(share.body_bytes());
    if !counts(share) {
        return Ok(());
    }
    count_key(table, scope, (share.rate(), share.concurrent()), key(), now, held)
}

fn count_key(
    table: &Arc<Table>,
    scope: Scope,
    (rate, concurrent): (Option<Rate>, Option<u32>),
    key: Key,
    now: Timestamp,
    held: &mut Held,
) -> Result<(), Refusal> {
    let now = now.into();
    if let Some(most) = concurrent {
        match table.enter(key, most, now) {
            Ok(place) => held.place(place),
            Err(()) => return Err(Refusal::TooMany(Exceeded::Concurrent { scope, most })),
        }
    }
    if let Some(rate) = rate {
        match table.take(key, rate, now) {
            Ok(left) => held.say(scope, rate, left),
            Err(Empty { wait }) => {
                return Err(Refusal::TooMany(Exceeded::Rate { scope, rate, wait }));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
