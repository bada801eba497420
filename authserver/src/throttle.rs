//! Slows down password guessing, per account and per address, without ever locking anybody out.
//!
//! Every attempt is counted when it begins and taken back when it succeeds, so a thousand at once
//! count as a thousand. Past a free number, each failure doubles the wait up to a limit, and a quiet
//! hour forgets all. A browser in which the person has signed in before carries a device cookie and
//! has a count of its own, so a stranger's guesses never stand in the person's way there.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

/// Counts that are kept at most; a count is about 100 bytes.
const COUNTS_MAX: usize = 20_000;

/// After this long without an attempt a count is forgotten.
const MEMORY: SignedDuration = SignedDuration::from_hours(1);

/// What attempts are counted for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// SHA-256 of the name as typed: names that do not exist count too, and have a fixed size.
    Account([u8; 32]),
    Address(IpAddr),
    /// A browser's device cookie.
    Device([u8; 32]),
}

impl Key {
    /// Whoever has one IPv6 address has its whole /64.
    pub fn address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = u128::from(v6) & (u128::MAX << 64);
                IpAddr::V6(Ipv6Addr::from(network))
            }
            v4 => v4,
        })
    }

    /// Attempts that are free, and the longest wait after that.
    fn policy(&self) -> (u32, SignedDuration) {
        match self {
            Self::Account(_) | Self::Device(_) => (5, SignedDuration::from_secs(60)),
            // Many people may share one address.
            Self::Address(_) => (20, SignedDuration::from_secs(300)),
        }
    }
}

#[derive(Debug, Clone)]
struct Count {
    attempts: u32,
    last: Timestamp,
}

impl Count {
    /// When the next attempt may begin.
    fn next(&self, key: &Key) -> Timestamp {
        let (free, limit) = key.policy();
        let Some(excess) = self.attempts.checked_sub(free) else { return self.last };
        let wait = SignedDuration::from_secs(1_i64 << excess.min(16)).min(limit);
        self.last.saturating_add(wait).unwrap_or(self.last)
    }
}

#[derive(Debug, Default)]
pub struct Throttle {
    counts: HashMap<Key, Count>,
}

impl Throttle {
    /// Counts an attempt for every key, or says how long to wait if any of them has to. A refused
    /// attempt is not counted: knocking on a closed door does not keep it closed.
    pub fn begin(&mut self, keys: &[Key], now: Timestamp) -> Result<(), Duration> {
        let wait = keys
            .iter()
            .filter_map(|key| Some(self.counts.get(key)?.next(key).duration_since(now)))
            .max()
            .unwrap_or(SignedDuration::ZERO);
        if wait > SignedDuration::ZERO {
            return Err(wait.unsigned_abs());
        }
        for key in keys {
            self.make_room(key, now);
            let count = self.counts.entry(key.clone()).or_insert(Count { attempts: 0, last: now });
            if now.duration_since(count.last) >= MEMORY {
                count.attempts = 0;
            }
            count.attempts = count.attempts.saturating_add(1);
            count.last = now;
        }
        Ok(())
    }

    /// Takes back what `begin` counted. Account and device are forgotten; the address loses only
    /// this attempt, so that nobody's own account washes away their guesses at others.
    pub fn succeeded(&mut self, keys: &[Key]) {
        for key in keys {
            match key {
                Key::Account(_) | Key::Device(_) => {
                    self.counts.remove(key);
                }
                Key::Address(_) => {
                    if let Some(count) = self.counts.get_mut(key) {
                        count.attempts = count.attempts.saturating_sub(1);
                    }
                }
            }
        }
    }

    fn make_room(&mut self, key: &Key, now: Timestamp) {
        if self.counts.len() < COUNTS_MAX || self.counts.contains_key(key) {
            return;
        }
        self.counts.retain(|_, count| now.duration_since(count.last) < MEMORY);
        if self.counts.len() >= COUNTS_MAX {
            let oldest = self.counts.iter().min_by_key(|(_, count)| count.last);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.counts.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn account() -> Key {
        Key::Account([1; 32])
    }

    fn from(address: &str) -> Key {
        Key::address(address.parse().unwrap())
    }

    #[test]
    fn attack_18_each_failure_doubles_the_wait_up_to_a_limit() {
        let mut throttle = Throttle::default();
        for _ in 0..5 {
            assert_eq!(throttle.begin(&[account()], at(0)), Ok(()));
        }
        let mut now = 0;
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            let wait = throttle.begin(&[account()], at(now)).unwrap_err();
            assert_eq!(wait.as_secs(), expected);
            now += expected as i64;
            assert_eq!(throttle.begin(&[account()], at(now)), Ok(()));
        }
    }

    #[test]
    fn attack_18_nobody_is_locked_out_for_good() {
        let mut throttle = Throttle::default();
        // A stranger guesses at every chance for a day.
        let mut guesses = 0;
        for second in 0..86_400 {
            guesses +=
                u32::from(throttle.begin(&[account(), from("203.0.113.9")], at(second)).is_ok());
        }
        assert!(guesses < 1_500, "{guesses}");
        // The person's own browser is not held up, and a new one waits for a minute at most.
        let known = [Key::Device([2; 32]), from("198.51.100.1")];
        assert_eq!(throttle.begin(&known, at(86_400)), Ok(()));
        let wait = throttle.begin(&[account(), from("198.51.100.1")], at(86_400));
        assert!(wait.is_ok() || wait.unwrap_err() <= Duration::from_secs(60));
    }

    #[test]
    fn attack_18_one_address_trying_many_accounts_is_slowed() {
        let mut throttle = Throttle::default();
        let tried = (0..=255_u8)
            .filter(|n| {
                throttle.begin(&[Key::Account([*n; 32]), from("2001:db8::1")], at(0)).is_ok()
            })
            .count();
        assert_eq!(tried, 20);
        assert!(throttle.begin(&[account(), from("2001:db8::ffff")], at(0)).is_err());
        assert!(throttle.begin(&[account(), from("2001:db8:0:1::1")], at(0)).is_ok());
    }

    #[test]
    fn attack_18_a_success_of_ones_own_does_not_wash_an_address_clean() {
        let mut throttle = Throttle::default();
        let mine = [Key::Account([9; 32]), from("203.0.113.9")];
        let mut guesses = 0;
        for n in 0..100_u8 {
            guesses += u32::from(
                throttle.begin(&[Key::Account([n; 32]), from("203.0.113.9")], at(0)).is_ok(),
            );
            if throttle.begin(&mine, at(0)).is_ok() {
                throttle.succeeded(&mine);
            }
        }
        assert!(guesses <= 20, "{guesses}");
    }

    #[test]
    fn attack_18_attempts_in_flight_count() {
        let mut throttle = Throttle::default();
        let begun = (0..1000).filter(|_| throttle.begin(&[account()], at(0)).is_ok()).count();
        assert_eq!(begun, 5);
    }

    #[test]
    fn a_success_or_a_quiet_hour_forgets() {
        let mut throttle = Throttle::default();
        while throttle.begin(&[account()], at(0)).is_ok() {}
        throttle.succeeded(&[account()]);
        assert_eq!(throttle.begin(&[account()], at(0)), Ok(()));
        while throttle.begin(&[account()], at(0)).is_ok() {}
        for _ in 0..5 {
            assert_eq!(throttle.begin(&[account()], at(3600)), Ok(()));
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut throttle = Throttle::default();
        for n in 0..COUNTS_MAX as u32 + 100 {
            let mut name = [0; 32];
            name[..4].copy_from_slice(&n.to_be_bytes());
            throttle.begin(&[Key::Account(name)], at(i64::from(n) / 100)).unwrap();
        }
        assert_eq!(throttle.counts.len(), COUNTS_MAX);
    }

    proptest! {
        /// Waiting as long as one was told is always enough.
        #[test]
        fn the_wait_that_is_told_is_enough(steps in proptest::collection::vec(0i64..90, 1..60)) {
            let mut throttle = Throttle::default();
            let mut now = at(0);
            for step in steps {
                now = now.saturating_add(SignedDuration::from_secs(step)).unwrap();
                if let Err(wait) = throttle.begin(&[account()], now) {
                    prop_assert!(wait <= Duration::from_secs(60));
                    now = now.saturating_add(SignedDuration::try_from(wait).unwrap()).unwrap();
                    prop_assert_eq!(throttle.begin(&[account()], now), Ok(()));
                }
            }
        }
    }
}
