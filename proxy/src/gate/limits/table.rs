//! Who asked how much of late: a table of fixed size, without a lock and without allocation.
//!
//! An entry that is at rest (its bucket full, nothing running) says the same as no entry, so it is
//! given away for free. Only when all places of a set are in use is one forgotten early, and then
//! whoever it belonged to starts with a full bucket: under a flood from more addresses than the
//! table has room for, limits get looser and memory does not grow.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
};

use domain::traffic::Rate;
use jiff::Timestamp;

/// Places in which an entry may lie.
const WAYS: usize = 8;
const NANOS: u64 = 1_000_000_000;

/// Nanoseconds since the epoch; what is before it is the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl From<Timestamp> for Instant {
    fn from(now: Timestamp) -> Self {
        Self(u64::try_from(now.as_nanosecond()).unwrap_or(0))
    }
}

/// Names an entry; made by [`Table::key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(NonZeroU64);

#[derive(Debug)]
pub struct Table {
    slots: Box<[Slot]>,
    /// Seeded anew in each process, so that nobody can choose names that fall into one set.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Slot {
    /// 0 when empty.
    key: AtomicU64,
    /// When the bucket is full again: the theoretical arrival time of the generic cell rate
    /// algorithm (ITU-T I.371), in nanoseconds.
    full_at: AtomicU64,
    running: AtomicU32,
}

/// A request that was counted against a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Requests that could follow at once.
    pub remaining: u64,
    /// Seconds, rounded up, until the bucket is full.
    pub full_in: u64,
}

/// The bucket is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Empty {
    /// Seconds, rounded up, until one request may come.
    pub wait: u64,
}

/// One of so many at a time; given back when dropped.
#[derive(Debug)]
pub struct Place {
    table: Arc<Table>,
    slot: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(slot) = self.table.slots.get(self.slot) {
            slot.running.fetch_sub(1, AcqRel);
        }
    }
}

impl Table {
    /// Room for at least so many.
    pub fn new(room: usize) -> Self {
        let slots = room.next_power_of_two().max(WAYS);
        Self { slots: (0..slots).map(|_| Slot::default()).collect(), hasher: RandomState::new() }
    }

    pub fn key(&self, of: impl Hash) -> Key {
        let hash = self.hasher.hash_one(of);
        Key(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    }

    /// The entry's place, found or made. `None` when every place of its set is held by something
    /// that runs.
    fn slot(&self, key: Key, now: Instant) -> Option<(usize, &Slot)> {
        let key = key.0.get();
        // A power of two, so the mask keeps within.
        let first = usize::try_from(key).unwrap_or(0) & (self.slots.len() - 1) & !(WAYS - 1);
        let set = self.slots.get(first..first + WAYS)?;
        let with = |way: usize| Some((first + way, set.get(way)?));
        if let Some(way) = set.iter().position(|slot| slot.key.load(Relaxed) == key) {
            return with(way);
        }
        // Two that come here at once may each claim one, or one after the other the same: then a
        // request is counted with somebody else's, once.
        let way = (0..WAYS)
            .filter_map(|way| {
                let slot = set.get(way)?;
                let at_rest = slot.full_at.load(Relaxed);
                let free = slot.running.load(Relaxed) == 0;
                free.then_some((if at_rest <= now.0 { 0 } else { at_rest }, way))
            })
            .min()?
            .1;
        let slot = set.get(way)?;
        slot.key.store(key, Relaxed);
        slot.full_at.store(0, Relaxed);
        with(way)
    }

    /// Takes one from the bucket.
    pub fn take(&self, key: Key, rate: Rate, now: Instant) -> Result<Left, Empty> {
        let each = (NANOS / u64::from(rate.per_second.get())).max(1);
        let whole = each * u64::from(rate.burst.get());
        let left = |full_at: u64| Left {
            remaining: whole.saturating_sub(full_at - now.0) / each,
            full_in: (full_at - now.0).div_ceil(NANOS),
        };
        let Some((_, slot)) = self.slot(key, now) else { return Ok(left(now.0)) };
        let mut full_at = slot.full_at.load(Relaxed);
        loop {
            let empty = now.0 + whole;
            let next = if full_at > empty {
                // The clock was set back. As if the bucket were empty now, or nobody would get in
                // before the clock is where it was.
                empty
            } else {
                full_at.max(now.0) + each
            };
            if next > empty {
                return Err(Empty { wait: (next - empty).div_ceil(NANOS).max(1) });
            }
            match slot.full_at.compare_exchange_weak(full_at, next, AcqRel, Acquire) {
                Ok(_) if full_at <= empty => return Ok(left(next)),
                Ok(_) => full_at = next,
                Err(other) => full_at = other,
            }
        }
    }

    /// Takes a place among at most so many. `Ok(None)` when there is no room to count in.
    pub fn enter(self: &Arc<Self>, key: Key, most: u32, now: Instant) -> Result<Option<Place>, ()> {
        let Some((index, slot)) = self.slot(key, now) else { return Ok(None) };
        let more = |running| (running < most).then_some(running + 1);
        match slot.running.fetch_update(AcqRel, Acquire, more) {
            Ok(_) => Ok(Some(Place { table: self.clone(), slot: index })),
            Err(_) => Err(()),
        }
    }

    #[cfg(test)]
    pub fn in_use(&self) -> usize {
        self.slots.iter().filter(|slot| slot.key.load(Relaxed) != 0).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate::new(per_second, Some(burst)).unwrap()
    }

    const START: u64 = 1_700_000_000 * NANOS;

    fn at(nanos: u64) -> Instant {
        Instant(START + nanos)
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let table = Table::new(64);
        let key = table.key("alice");
        let rate = rate(10, 3);
        let take = |millis: u64| table.take(key, rate, at(millis * 1_000_000));
        assert_eq!(take(0), Ok(Left { remaining: 2, full_in: 1 }));
        assert_eq!(take(0), Ok(Left { remaining: 1, full_in: 1 }));
        assert_eq!(take(0), Ok(Left { remaining: 0, full_in: 1 }));
        assert_eq!(take(0), Err(Empty { wait: 1 }));
        assert_eq!(take(99), Err(Empty { wait: 1 }));
        assert!(take(100).is_ok());
        assert!(take(100).is_err());
        assert!(table.take(table.key("bob"), rate, at(0)).is_ok());
    }

    #[test]
    fn a_clock_set_back_locks_nobody_out() {
        let table = Table::new(64);
        let key = table.key("alice");
        let hours = 3600 * NANOS;
        for _ in 0..3 {
            table.take(key, rate(1, 3), at(hours)).unwrap();
        }
        assert!(table.take(key, rate(1, 3), at(0)).is_err(), "as if the bucket were empty now");
        assert!(table.take(key, rate(1, 3), at(NANOS)).is_ok());
        assert!(table.take(key, rate(1, 3), at(NANOS)).is_err());
    }

    #[test]
    fn so_many_at_a_time_and_given_back() {
        let table = Arc::new(Table::new(64));
        let key = table.key("alice");
        let first = table.enter(key, 2, at(0)).unwrap().unwrap();
        let second = table.enter(key, 2, at(0)).unwrap().unwrap();
        assert!(table.enter(key, 2, at(0)).is_err());
        drop(first);
        let third = table.enter(key, 2, at(0)).unwrap().unwrap();
        drop((second, third));
        assert!(table.slots.iter().all(|slot| slot.running.load(Relaxed) == 0));
    }

    #[test]
    fn attack_24_a_flood_of_names_takes_no_more_room_and_forgets_nobody_who_is_busy() {
        let table = Arc::new(Table::new(64));
        let busy = table.key("busy");
        let _place = table.enter(busy, 1, at(0)).unwrap().unwrap();
        for n in 0..100_000 {
            let _ = table.take(table.key(n), rate(1, 1), at(n));
        }
        assert_eq!(table.slots.len(), 64);
        assert!(table.in_use() <= 64);
        assert!(table.enter(busy, 1, at(0)).is_err(), "still counted");
    }

    #[test]
    fn who_is_at_rest_gives_way_first() {
        let table = Table::new(WAYS);
        let key = |n: u64| Key(NonZeroU64::new(n).unwrap());
        for n in 1..=WAYS as u64 {
            // All but the third have an empty bucket.
            let rate = if n == 3 { rate(1000, 1000) } else { rate(1, 1) };
            table.take(key(n), rate, at(0)).unwrap();
        }
        table.take(key(100), rate(1, 1), at(NANOS / 2)).unwrap();
        for n in (1..=WAYS as u64).filter(|n| *n != 3) {
            assert!(table.take(key(n), rate(1, 1), at(NANOS / 2)).is_err(), "{n} is remembered");
        }
    }

    proptest! {
        /// In any stretch of time no more pass than the burst and what came back meanwhile.
        #[test]
        fn never_more_than_the_bucket_gives(
            per_second in 1u32..200,
            burst in 1u32..20,
            pauses in prop::collection::vec(0u64..200_000_000, 1..200),
        ) {
            let table = Table::new(64);
            let key = table.key("alice");
            let (mut now, mut passed) = (0, 0u64);
            for pause in pauses {
                now += pause;
                if table.take(key, rate(per_second, burst), at(now)).is_ok() {
                    passed += 1;
                }
                let most = u64::from(burst) + now * u64::from(per_second) / NANOS + 1;
                prop_assert!(passed <= most, "{passed} > {most}");
            }
        }

        /// Whoever waits as long as told is let in.
        #[test]
        fn who_waits_as_told_gets_in(per_second in 1u32..50, burst in 1u32..5, pause in 0u64..NANOS) {
            let table = Table::new(64);
            let key = table.key("alice");
            let mut now = pause;
            for _ in 0..20 {
                if let Err(Empty { wait }) = table.take(key, rate(per_second, burst), at(now)) {
                    now += wait * NANOS;
                    prop_assert!(table.take(key, rate(per_second, burst), at(now)).is_ok());
                }
            }
        }
    }
}
