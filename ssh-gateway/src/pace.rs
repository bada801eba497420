//! How far the agent may be ahead of the client on one channel ([`domain::credit`]).
//!
//! Little at first, and twice as much whenever the client took half of it in no time. What is far
//! ahead of a slow client would come between a person's Ctrl-C and their prompt. What exceeds the
//! first credit is within the budgets, so that ten thousand channels that nobody reads hold no more
//! than those allow.

use std::time::{Duration, Instant};

use domain::credit::FIRST;

use crate::{
    budget::{Budget, Taken},
    queue::Reserved,
};

/// Most that may be ahead, in bytes: the fastest client is not kept waiting by an agent that is a
/// millisecond away.
pub const MOST: u32 = 1 << 20;

/// The same for a terminal.
pub const MOST_TERMINAL: u32 = 128 << 10;

/// A client that takes half of the credit within this time gets twice as much.
const FAST: Duration = Duration::from_millis(20);

/// One that takes longer than this gets half as much.
const SLOW: Duration = Duration::from_millis(200);

pub struct Pace {
    budget: Budget,
    most: u32,
    /// What the agent may be ahead.
    ahead: u32,
    /// Taken by the client, and not given again.
    taken: u32,
    since: Instant,
    /// For what is ahead, the first credit first.
    held: Vec<(u32, Taken)>,
    reserved: Reserved,
}

impl Pace {
    pub fn new(budget: Budget, most: u32, now: Instant) -> Self {
        let held = vec![(FIRST, budget.charge(FIRST as usize))];
        let reserved = Reserved::default();
        reserved.set(FIRST as usize);
        Self { budget, most, ahead: FIRST, taken: 0, since: now, held, reserved }
    }

    /// Follows what the agent may be ahead.
    pub fn reserved(&self) -> Reserved {
        self.reserved.clone()
    }

    /// The client has taken so many bytes: how much credit the agent gets now, if any.
    pub fn taken(&mut self, bytes: usize, now: Instant) -> Option<u32> {
        self.taken = self.taken.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.taken < self.ahead / 2 {
            return None;
        }
        let took = now.saturating_duration_since(self.since);
        self.since = now;
        let before = self.ahead;
        if self.budget.is_tight() || took > SLOW {
            self.narrow();
        } else if took < FAST {
            self.widen();
        }
        // Never below zero: half was taken, and at most half of it is kept back.
        let given = (self.taken + self.ahead).saturating_sub(before);
        self.taken = 0;
        self.reserved.set(self.ahead as usize);
        (given > 0).then_some(given)
    }

    fn widen(&mut self) {
        let more = self.ahead.min(self.most.saturating_sub(self.ahead));
        if more > 0
            && let Some(room) = self.budget.reserve(more as usize)
        {
            self.held.push((more, room));
            self.ahead += more;
        }
    }

    fn narrow(&mut self) {
        if self.held.len() > 1
            && let Some((less, _room)) = self.held.pop()
        {
            self.ahead -= less;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::budget::tests::budget;

    const LARGE: usize = 1 << 30;

    fn pace(bound: usize, most: u32, now: Instant) -> Pace {
        let [_, down] = budget(bound, bound, bound).connection("alice");
        Pace::new(down, most, now)
    }

    /// A client that takes `per_second` bytes, for ten seconds. Returns what may be ahead then.
    fn ahead_of(per_second: u32, most: u32) -> u32 {
        let mut now = Instant::now();
        let mut pace = pace(LARGE, most, now);
        for _ in 0..10_000 {
            now += Duration::from_millis(1);
            pace.taken(per_second as usize / 1000, now);
        }
        pace.ahead
    }

    #[test]
    fn who_takes_fast_has_much_ahead_and_who_takes_slowly_little() {
        assert_eq!(ahead_of(200 << 20, MOST), MOST);
        assert_eq!(ahead_of(200 << 20, MOST_TERMINAL), MOST_TERMINAL);
        // 4 Mbit/s, a slow line: what is ahead takes a quarter of a second at the most.
        assert!(ahead_of(500_000, MOST) <= 128 << 10);
        assert_eq!(ahead_of(10_000, MOST), FIRST);
    }

    #[test]
    fn without_room_in_the_budget_nothing_more_is_ahead() {
        let mut now = Instant::now();
        let budgets = budget(1 << 20, 1 << 20, 1 << 20);
        let [_, down] = budgets.connection("alice");
        let mut paces: Vec<_> = (0..8).map(|_| Pace::new(down.clone(), MOST, now)).collect();
        for _ in 0..100 {
            now += Duration::from_millis(1);
            for pace in &mut paces {
                pace.taken(pace.ahead as usize, now);
            }
        }
        // Half of the bound is this direction's, and a channel widens while half of that is free.
        let ahead: u32 = paces.iter().map(|pace| pace.ahead).sum();
        assert!(ahead <= 512 << 10, "{ahead}");
        drop(paces.split_off(1));
        for _ in 0..100 {
            now += Duration::from_millis(1);
            let ahead = paces[0].ahead as usize;
            paces[0].taken(ahead, now);
        }
        assert!(paces[0].ahead >= 128 << 10, "what others gave back is used: {}", paces[0].ahead);
    }

    proptest! {
        #[test]
        fn the_agent_is_ahead_by_what_is_held_and_always_goes_on(
            takes in prop::collection::vec((1usize..200_000, 0u64..500), 1..200),
        ) {
            let mut now = Instant::now();
            let mut pace = pace(4 << 20, MOST, now);
            // What the agent may still send, and what waits here for the client.
            let (mut credit, mut waits) = (FIRST, 0u32);
            for (bytes, pause) in takes {
                now += Duration::from_millis(pause);
                waits += std::mem::take(&mut credit);
                let bytes = u32::try_from(bytes).unwrap().min(waits);
                waits -= bytes;
                credit += pace.taken(bytes as usize, now).unwrap_or(0);
                prop_assert!(waits + credit + pace.taken <= pace.ahead.max(waits));
                let held: u32 = pace.held.iter().map(|(bytes, _)| bytes).sum();
                prop_assert_eq!(held, pace.ahead);
                prop_assert!((FIRST..=MOST).contains(&pace.ahead));
            }
            // Who takes all that waits is given more in the end.
            let all = waits + credit;
            let given = pace.taken(all as usize, now).unwrap_or(0);
            prop_assert!(given > 0, "{all} of {}", pace.ahead);
        }
    }
}
