//! How often something may be done, by each and by all together.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::throttle::Key;

/// Callers that are kept at most; one is about 100 bytes.
const KEYS_MAX: usize = 20_000;

/// `burst` at once, and then one per `period` milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub burst: i64,
    pub period: i64,
}

impl Rate {
    /// Given when a steady caller would come next (`due`), when this one makes it; or how many
    /// milliseconds too early it is (the generic cell rate algorithm of ITU-T I.371).
    fn next(self, due: i64, now: i64) -> Result<i64, i64> {
        let early = due.saturating_sub(self.burst.saturating_sub(1).saturating_mul(self.period));
        if early > now {
            return Err(early - now);
        }
        Ok(due.max(now).saturating_add(self.period))
    }
}

#[derive(Debug)]
pub struct Limiter {
    each: Rate,
    all: Rate,
    due: HashMap<Key, i64>,
    due_all: i64,
}

impl Limiter {
    pub fn new(each: Rate, all: Rate) -> Self {
        Self { each, all, due: HashMap::new(), due_all: i64::MIN }
    }

    /// Counts one for every key and for all, or says how many seconds to wait and counts nothing.
    pub fn take(&mut self, keys: &[Key], now: Timestamp) -> Result<(), i64> {
        let now = now.as_millisecond();
        let seconds = |early: i64| early.div_euclid(1000).saturating_add(1);
        let all = self.all.next(self.due_all, now).map_err(seconds)?;
        let mut dues = Vec::with_capacity(keys.len());
        for key in keys {
            let due = self.due.get(key).copied().unwrap_or(i64::MIN);
            dues.push(self.each.next(due, now).map_err(seconds)?);
        }
        if self.due.len().saturating_add(keys.len()) > KEYS_MAX {
            self.due.retain(|_, due| *due > now);
            if self.due.len().saturating_add(keys.len()) > KEYS_MAX {
                return Err(seconds(self.each.period));
            }
        }
        self.due_all = all;
        self.due.extend(keys.iter().cloned().zip(dues));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(last: u8) -> Key {
        Key::address([192, 0, 2, last].into())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn limiter() -> Limiter {
        Limiter::new(Rate { burst: 3, period: 10_000 }, Rate { burst: 100, period: 100 })
    }

    #[test]
    fn a_burst_and_then_a_steady_pace() {
        let mut limiter = limiter();
        let taken = (0..10).filter(|_| limiter.take(&[key(1)], at(0)).is_ok()).count();
        assert_eq!(taken, 3);
        let wait = limiter.take(&[key(1)], at(1)).unwrap_err();
        assert!(limiter.take(&[key(1)], at(1 + wait)).is_ok());
        assert!(limiter.take(&[key(1)], at(1 + wait)).is_err());
        assert!(limiter.take(&[key(2)], at(1 + wait)).is_ok(), "others are not held up");
    }

    #[test]
    fn all_together_have_a_limit_too() {
        let mut limiter = limiter();
        let taken = (0..=255).filter(|n| limiter.take(&[key(*n)], at(0)).is_ok()).count();
        assert_eq!(taken, 100);
        assert!(limiter.take(&[key(200)], at(1)).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let mut limiter = Limiter::new(
            Rate { burst: 1, period: 1_000 },
            Rate { burst: i64::from(u32::MAX), period: 0 },
        );
        for n in 0..KEYS_MAX as u32 + 10 {
            let _ = limiter.take(&[Key::address(std::net::Ipv4Addr::from(n).into())], at(0));
        }
        assert_eq!(limiter.due.len(), KEYS_MAX);
        assert!(limiter.take(&[Key::address([9, 9, 9, 9].into())], at(0)).is_err());
        assert!(limiter.take(&[Key::address([9, 9, 9, 9].into())], at(2)).is_ok());
    }
}
