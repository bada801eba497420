//! The choice among a workload's endpoints: of two that chance picks, the one with less to do.
//!
//! Endpoints that are draining are never chosen, and ones that are ejected or have just failed this
//! very request only when there is nothing else.

use std::{net::SocketAddr, time::Duration};

use domain::endpoint::{Endpoint, Revision, Standing};

/// How many addresses are remembered: more than that in a row is no fault of a pod.
const REMEMBERED: usize = 4;

/// The addresses that a request could not be sent to, the last few.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tried {
    failed: [Option<SocketAddr>; REMEMBERED],
    count: u32,
}

impl Tried {
    pub fn add(&mut self, address: SocketAddr) {
        if !self.has(address) {
            self.failed.rotate_right(1);
            if let Some(first) = self.failed.first_mut() {
                *first = Some(address);
            }
        }
        self.count = self.count.saturating_add(1);
    }

    pub fn has(&self, address: SocketAddr) -> bool {
        self.count > 0 && self.failed.contains(&Some(address))
    }

    /// Tries that failed.
    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What a request would like.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The revision its person gets, where there are two.
    pub side: Option<Revision>,
    pub tried: &'a Tried,
}

impl Wish<'_> {
    /// From what one would like to what one takes.
    fn suits(&self, endpoint: &Endpoint, level: Level, now: Duration) -> bool {
        if !endpoint.is_ready() {
            return false;
        }
        let usable =
            || matches!(endpoint.load().standing(now), Standing::Good | Standing::HalfOpen);
        let fresh = || !self.tried.has(endpoint.address());
        let on_side = || self.side.is_none_or(|side| side == endpoint.revision());
        match level {
            Level::Wanted => on_side() && fresh() && usable(),
            Level::AnySide => fresh() && usable(),
            Level::Tried => usable(),
            Level::Ejected => true,
        }
    }

    /// Without a side that has nobody to offer: its people are as well off on the other one, and stay
    /// with the pod there that they are used to.
    pub fn attainable(self, endpoints: &[Endpoint], now: Duration) -> Self {
        let there = self.side.is_none()
            || endpoints.iter().any(|endpoint| self.suits(endpoint, Level::Wanted, now));
        Self { side: self.side.filter(|_| there), ..self }
    }

    /// Whether the pod that a browser is used to can still be had.
    pub fn keeps(&self, endpoint: &Endpoint, now: Duration) -> bool {
        self.suits(endpoint, Level::Wanted, now)
    }
}

#[derive(Debug, Clone, Copy)]
enum Level {
    Wanted,
    AnySide,
    Tried,
    /// Everything is ejected: then nothing is.
    Ejected,
}

/// `random(n)` gives a number below `n`. `None` when no endpoint is ready.
pub fn choose<'e>(
    endpoints: &'e [Endpoint],
    wish: Wish<'_>,
    now: Duration,
    mut random: impl FnMut(usize) -> usize,
) -> Option<&'e Endpoint> {
    if let [only] = endpoints {
        return only.is_ready().then_some(only);
    }
    for level in [Level::Wanted, Level::AnySide, Level::Tried, Level::Ejected] {
        let suitable = || endpoints.iter().filter(|e| wish.suits(e, level, now));
        let count = suitable().count();
        if count == 0 {
            continue;
        }
        let first = random(count);
        let one = suitable().nth(first);
        if count == 1 {
            return one;
        }
        // Another one: chance skips the first.
        let second = random(count - 1);
        let other = suitable().nth(if second >= first { second + 1 } else { second });
        return match (one, other) {
            (Some(one), Some(other)) => {
                let less = other.load().outstanding() < one.load().outstanding();
                Some(if less { other } else { one })
            }
            // A standing changed in between.
            (one, other) => one.or(other).or_else(|| endpoints.iter().find(|e| e.is_ready())),
        };
    }
    None
}

/// Which revision a person gets: always the same one for the same weight, and with a growing
/// weight nobody goes back.
pub fn side(user: &str, host: &str, weight: u8) -> Revision {
    // FNV-1a: the same in every replica and every version, which the standard hashers are not.
    let bytes = user.bytes().chain([0]).chain(host.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Its low bits are poor.
    let spread = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 33;
    if spread % 100 < u64::from(weight) { Revision::Canary } else { Revision::Stable }
}

#[cfg(test)]
mod tests;
