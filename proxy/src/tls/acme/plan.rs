//! Which certificate is ordered next, and when: decisions without a clock and without IO.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::tls::certificate::{Certificate, Source, parent_of};

/// After the first time that the authority found a name not to be ours; doubled with each failure
/// that follows. Authorities count these: a handful within an hour, and the name is locked out.
const FIRST_RETRY: SignedDuration = SignedDuration::from_mins(5);
/// After other failures.
const FIRST_RETRY_UNCOUNTED: SignedDuration = SignedDuration::from_secs(30);
const LAST_RETRY: SignedDuration = SignedDuration::from_hours(12);
/// When an authority says that it is too much, and not until when.
const PAUSE: SignedDuration = SignedDuration::from_hours(1);
/// When it cannot be reached at all.
const UNREACHABLE: SignedDuration = SignedDuration::from_secs(30);
/// The longest that an authority can keep us from trying again.
const PAUSE_MAX: SignedDuration = SignedDuration::from_hours(7 * 24);
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// The names that there should be certificates for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub configured: BTreeSet<String>,
    pub on_demand: BTreeSet<String>,
    /// Most new ones on demand within an hour.
    pub on_demand_per_hour: usize,
}

/// What has been tried. Kept across restarts, so that a process that dies again and again does not
/// ask again and again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempts {
    failures: BTreeMap<String, Failure>,
    /// Nothing at all is ordered before.
    paused_until: Option<Timestamp>,
    /// When new certificates were ordered on demand, within the last hour.
    on_demand: Vec<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failure {
    count: u32,
    not_before: Timestamp,
    why: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Order(String),
    /// Nothing to do before that time, as things are.
    Wait(Option<Timestamp>),
}

/// The certificates there are, by the names they are for.
pub struct Have<'a> {
    ours: HashMap<&'a str, &'a Certificate>,
    /// Of other sources: until when these can be relied on.
    others: HashMap<&'a str, Timestamp>,
    /// Whether all of them are known.
    others_known: bool,
}

impl<'a> Have<'a> {
    pub fn new(all: &'a [(Source, Arc<Certificate>)], now: Timestamp) -> Self {
        let mut have = Self { ours: HashMap::new(), others: HashMap::new(), others_known: true };
        for (source, certificate) in all {
            if *source == Source::Acme {
                if certificate.covers(&certificate.name) {
                    have.ours.insert(&certificate.name, certificate);
                }
            } else if certificate.is_current(now) {
                // Not to its last second: what is ordered then comes too late.
                let ends = certificate.ends_soon_at();
                for host in &certificate.hosts {
                    let until = have.others.entry(host).or_insert(ends);
                    *until = ends.max(*until);
                }
            }
        }
        have
    }

    /// Not all that others have is known yet: what is not ours already may be theirs.
    pub fn others_known(mut self, known: bool) -> Self {
        self.others_known = known;
        self
    }

    /// Until when somebody else's certificate can be relied on for it.
    fn elsewhere(&self, name: &str) -> Option<Timestamp> {
        let exact = self.others.get(name);
        let wildcard =
            parent_of(name).and_then(|parent| self.others.get(format!("*.{parent}").as_str()));
        exact.max(wildcard).copied()
    }

    /// When it should be ordered, `None` for at once.
    fn due(&self, name: &str) -> Option<Timestamp> {
        let ours = self.ours.get(name).map(|certificate| renew_at(certificate));
        ours.max(self.elsewhere(name))
    }
}

impl Have<'_> {
    /// Whether it should be ordered now.
    pub fn is_due(&self, name: &str, now: Timestamp) -> bool {
        self.due(name).is_none_or(|due| due <= now)
    }
}

/// When a third of its life is left, or up to a thirtieth of its life before that, so that what was
/// ordered together is not renewed together.
fn renew_at(certificate: &Certificate) -> Timestamp {
    let life = certificate.not_after.duration_since(certificate.not_before);
    let mut hasher = DefaultHasher::new();
    certificate.name.hash(&mut hasher);
    let early = life / 30 / 1000 * i32::try_from(hasher.finish() % 1000).unwrap_or(0);
    certificate.not_after.saturating_sub(life / 3 + early).unwrap_or(certificate.not_before)
}

/// What to do now. Configured names go first, then what has been due for longest.
pub fn next(wanted: &Wanted, have: &Have<'_>, attempts: &Attempts, now: Timestamp) -> Next {
    let mut soonest: Option<Timestamp> = None;
    let mut best: Option<(bool, Option<Timestamp>, &str)> = None;
    let budget = attempts.on_demand_free_at(wanted.on_demand_per_hour, now);
    let configured = wanted.configured.iter().map(|name| (false, name));
    let on_demand = wanted.on_demand.difference(&wanted.configured).map(|name| (true, name));
    for (on_demand, name) in configured.chain(on_demand) {
        let due = have.due(name);
        let is_new = !have.ours.contains_key(name.as_str());
        if is_new && !have.others_known {
            continue;
        }
        let budget = if on_demand && is_new { budget } else { Some(now) };
        let Some(budget) = budget else { continue };
        let not_before = attempts.failures.get(name).map(|failure| failure.not_before);
        let at = due.max(not_before).max(attempts.paused_until).map_or(budget, |at| at.max(budget));
        if at <= now {
            let candidate = (on_demand, due, name.as_str());
            best = Some(best.map_or(candidate, |best| best.min(candidate)));
        } else {
            soonest = Some(soonest.map_or(at, |soonest| soonest.min(at)));
        }
    }
    best.map_or(Next::Wait(soonest), |(_, _, name)| Next::Order(name.to_owned()))
}

impl Attempts {
    /// When there is room for one more, `None` for never.
    fn on_demand_free_at(&self, per_hour: usize, now: Timestamp) -> Option<Timestamp> {
        let mut within: Vec<_> =
            self.on_demand.iter().filter(|at| now.duration_since(**at) < HOUR).collect();
        within.sort_unstable();
        let Some(over) = within.len().checked_sub(per_hour) else { return Some(now) };
        within.get(over).and_then(|oldest| oldest.checked_add(HOUR).ok())
    }

    /// To be written down before the authority is asked.
    pub fn begin(&mut self, name: &str, wanted: &Wanted, have: &Have<'_>, now: Timestamp) {
        self.on_demand.retain(|at| now.duration_since(*at) < HOUR);
        if !wanted.configured.contains(name) && !have.ours.contains_key(name) {
            self.on_demand.push(now);
        }
    }

    pub fn succeeded(&mut self, name: &str) {
        self.failures.remove(name);
    }

    /// `validation`: the authority looked, and did not see what it wanted. `spread` of 0 to 1 keeps
    /// names and replicas from trying again at the same moment.
    pub fn failed(
        &mut self,
        name: &str,
        why: String,
        validation: bool,
        spread: f64,
        now: Timestamp,
    ) {
        let first = if validation { FIRST_RETRY } else { FIRST_RETRY_UNCOUNTED };
        let count = self.failures.get(name).map_or(1, |failure| failure.count.saturating_add(1));
        let doubled = first.checked_mul(1 << (count - 1).min(16)).unwrap_or(LAST_RETRY);
        let wait = doubled.min(LAST_RETRY).as_secs_f64() * (0.8 + 0.4 * spread.clamp(0.0, 1.0));
        let wait = SignedDuration::from_secs(wait as i64);
        self.fail(name, count, why, wait, now);
    }

    /// The authority says that it is too much (RFC 8555, section 6.6). It may mean the name or the
    /// account: the name waits as long as it says, the others an hour at most.
    pub fn rate_limited(
        &mut self,
        name: &str,
        why: String,
        retry_after: Option<SignedDuration>,
        now: Timestamp,
    ) {
        let wait = retry_after.unwrap_or(PAUSE).clamp(FIRST_RETRY, PAUSE_MAX);
        let count = self.failures.get(name).map_or(1, |failure| failure.count);
        self.fail(name, count, why, wait, now);
        self.paused_until = now.checked_add(wait.min(PAUSE)).ok().max(self.paused_until);
    }

    /// The authority cannot be reached, so asking for the next name is of no use.
    pub fn pause(&mut self, now: Timestamp) {
        self.paused_until = now.checked_add(UNREACHABLE).ok().max(self.paused_until);
    }

    fn fail(&mut self, name: &str, count: u32, why: String, wait: SignedDuration, now: Timestamp) {
        let not_before = now.checked_add(wait).unwrap_or(Timestamp::MAX);
        self.failures.insert(name.to_owned(), Failure { count, not_before, why });
    }

    /// Forgets what is not wanted any more, or is there by now.
    pub fn retain(&mut self, wanted: &Wanted, have: &Have<'_>, now: Timestamp) {
        self.failures.retain(|name, _| {
            let wanted = wanted.configured.contains(name) || wanted.on_demand.contains(name);
            wanted && have.is_due(name, now)
        });
    }

    /// For people: which names could not be had, and why.
    pub fn faults(&self) -> Vec<String> {
        let lines = self.failures.iter().map(|(name, failure)| {
            let Failure { count, not_before, why } = failure;
            let tries = if *count == 1 { "once" } else { "again and again" };
            format!("{name} could not be ordered, {tries}: {why}; next try at {not_before:.0}")
        });
        lines.take(10).collect()
    }
}

#[cfg(test)]
mod tests;
