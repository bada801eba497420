//! Withholds the window of a channel whose data nobody reads, and of no other.
//!
//! The library grants a window when data arrives: if what is left of the channel's window is less
//! than half of the session's target, it is filled up to the target, and then we are asked for the
//! next target ([`russh::server::Handler::adjust_window`]). There is one target for all channels. So
//! while a channel is withheld the target is [`SMALL`]: every channel uses up its window, and then
//! gets a few bytes at a time and us a question each time. A client answers grants in their order,
//! so the channel that was granted longest ago is the next to be heard; when that is one that may go
//! on, the target is [`LARGE`] until it has been.

use std::{collections::VecDeque, hash::Hash};

/// The smallest target with which the library grants anything, in bytes: at an empty window.
pub const SMALL: u32 = 2;

/// What a channel may have outstanding, in bytes. As large as the window that channels begin with.
pub const LARGE: u32 = 2 << 20;

/// Clients answer what came in one piece in an order of their own: so often a channel may be
/// overtaken before it counts as one that has nothing to send.
const OVERTAKEN_MAX: u8 = 2;

/// The small grants that are not answered yet, oldest first.
pub struct Windows<Id> {
    waiting: VecDeque<(Id, u8)>,
}

impl<Id> Default for Windows<Id> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<Id: Copy + Eq + Hash> Windows<Id> {
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// `channel` has just been filled up to `target`. Returns the next target. `withheld` says which
    /// channels are not to go on, and `any` whether there is one.
    pub fn granted(
        &mut self,
        channel: Id,
        target: u32,
        any: bool,
        withheld: impl Fn(Id) -> bool,
    ) -> u32 {
        if let Some(place) = self.waiting.iter().position(|(id, _)| *id == channel) {
            self.waiting.remove(place);
            for (_, overtaken) in self.waiting.iter_mut().take(place) {
                *overtaken += 1;
            }
            self.waiting.retain(|(_, overtaken)| *overtaken < OVERTAKEN_MAX);
        }
        if !any {
            self.waiting.clear();
            return LARGE;
        }
        if target == SMALL {
            self.waiting.push_back((channel, 0));
        }
        match self.waiting.front() {
            Some((next, _)) if !withheld(*next) => LARGE,
            _ => SMALL,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The library's accounts of windows, and a client that sends all it may on each channel, one
    /// round trip after the other, in the order of its channels.
    fn run(channels: usize, withheld: &[usize], rounds: usize) -> Vec<u64> {
        let mut windows = Windows::default();
        let mut target = LARGE;
        let mut left = vec![LARGE; channels];
        let mut may = vec![LARGE; channels];
        let mut sent = vec![0u64; channels];
        let holds = |id: usize| withheld.contains(&id);
        for _ in 0..rounds {
            let mut granted = vec![0; channels];
            for id in 0..channels {
                while may[id] > 0 {
                    let packet = may[id].min(32 << 10);
                    may[id] -= packet;
                    left[id] -= packet;
                    sent[id] += u64::from(packet);
                    if left[id] < target / 2 {
                        granted[id] += target - left[id];
                        left[id] = target;
                        target = windows.granted(id, target, !withheld.is_empty(), holds);
                    }
                }
            }
            for id in 0..channels {
                may[id] += granted[id];
            }
        }
        sent
    }

    #[test]
    fn without_a_stalled_channel_all_are_granted_in_full() {
        assert!(run(3, &[], 10).iter().all(|sent| *sent >= 9 * u64::from(LARGE) / 2));
    }

    proptest! {
        #[test]
        fn a_stalled_channel_is_withheld_and_its_neighbours_go_on(
            channels in 2usize..9,
            stalled in prop::collection::btree_set(0usize..9, 1..8),
        ) {
            let stalled: Vec<_> = stalled.into_iter().filter(|id| *id < channels).collect();
            prop_assume!(!stalled.is_empty() && stalled.len() < channels);
            let sent = run(channels, &stalled, 400);
            for (id, sent) in sent.iter().enumerate() {
                if stalled.contains(&id) {
                    prop_assert!(*sent < 6 * u64::from(LARGE), "{id} of {stalled:?}: {sent}");
                } else {
                    prop_assert!(*sent > 10 * u64::from(LARGE), "{id} beside {stalled:?}: {sent}");
                }
            }
        }
    }
}
