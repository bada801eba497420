//! What was withdrawn before it expired: sessions and single tokens, in little memory.

use std::{collections::BTreeMap, hash::BuildHasher, hash::RandomState, sync::Arc};

use jiff::Timestamp;

use crate::identity::Identity;

/// What a revocation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Revoked<'a> {
    /// All that was issued in a session (`sid`).
    Session(&'a str),
    /// One token (`jti`).
    Token(&'a str),
}

/// Additions that are kept beside the sorted table until there are this many.
const RECENT_MAX: usize = 1024;

/// A set of revocations; cheap to clone, never changed in place.
///
/// Names are kept as 64-bit hashes with a key that is drawn at the start of the process, so nobody
/// can aim for a collision; by chance one credential in 10^14 would meet one of 100,000 entries.
/// An entry takes 12 bytes.
#[derive(Debug, Clone)]
pub struct RevocationSet {
    hasher: RandomState,
    /// Sorted.
    hashes: Arc<[u64]>,
    /// Of each hash: when it need not be known any more, in seconds since the epoch.
    until: Arc<[u32]>,
    recent: Arc<BTreeMap<u64, u32>>,
}

impl Default for RevocationSet {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            hashes: Arc::default(),
            until: Arc::default(),
            recent: Arc::default(),
        }
    }
}

impl RevocationSet {
    pub fn new() -> Self {
        Self::default()
    }

    /// True when the credential's session or the credential itself was withdrawn.
    pub fn is_revoked(&self, identity: &Identity) -> bool {
        let credential = &identity.credential;
        self.contains(Revoked::Token(&credential.id))
            || credential
                .session
                .as_deref()
                .is_some_and(|session| self.contains(Revoked::Session(session)))
    }

    pub fn contains(&self, what: Revoked<'_>) -> bool {
        if self.is_empty() {
            return false;
        }
        let hash = self.hasher.hash_one(what);
        self.hashes.binary_search(&hash).is_ok() || self.recent.contains_key(&hash)
    }

    /// This and more, each with the time from which on it need not be known. What is past that time
    /// is left out now and then.
    #[must_use]
    pub fn with<'a>(
        &self,
        more: impl IntoIterator<Item = (Revoked<'a>, Timestamp)>,
        now: Timestamp,
    ) -> Self {
        let mut recent = BTreeMap::clone(&self.recent);
        for (what, until) in more {
            let until = seconds(until);
            let kept = recent.entry(self.hasher.hash_one(what)).or_insert(until);
            *kept = until.max(*kept);
        }
        let grown = Self { recent: Arc::new(recent), ..self.clone() };
        if grown.recent.len() > RECENT_MAX { grown.pruned(now) } else { grown }
    }

    /// Without what need not be known any more.
    #[must_use]
    pub fn pruned(&self, now: Timestamp) -> Self {
        let now = seconds(now);
        let sorted = self.hashes.iter().copied().zip(self.until.iter().copied());
        let mut all: Vec<(u64, u32)> = sorted
            .chain(self.recent.iter().map(|(hash, until)| (*hash, *until)))
            .filter(|(_, until)| *until > now)
            .collect();
        // The later time last, and of equal hashes the last is kept.
        all.sort_unstable();
        all.reverse();
        all.dedup_by_key(|(hash, _)| *hash);
        all.reverse();
        let (hashes, until): (Vec<u64>, Vec<u32>) = all.into_iter().unzip();
        Self {
            hasher: self.hasher.clone(),
            hashes: hashes.into(),
            until: until.into(),
            recent: Arc::default(),
        }
    }

    /// How many are known; one that was added twice may count twice for a while.
    pub fn len(&self) -> usize {
        self.hashes.len() + self.recent.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the sorted table.
    pub fn table_bytes(&self) -> usize {
        size_of_val::<[u64]>(&self.hashes) + size_of_val::<[u32]>(&self.until)
    }
}

/// What does not fit is as far away as can be written down.
fn seconds(time: Timestamp) -> u32 {
    u32::try_from(time.as_second().max(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::token::testing::identity;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_session_takes_its_tokens_along_and_a_token_nothing_else() {
        let mut person = identity("alice", &[]);
        person.credential.id = "t1".to_owned();
        person.credential.session = Some("s1".to_owned());
        let none = RevocationSet::new();
        assert!(!none.is_revoked(&person));
        let revoked = |what| none.with([(what, at(100))], at(0)).is_revoked(&person);
        assert!(revoked(Revoked::Session("s1")) && revoked(Revoked::Token("t1")));
        for other in [
            Revoked::Session("s2"),
            Revoked::Token("t2"),
            Revoked::Session("t1"),
            Revoked::Token("s1"),
        ] {
            assert!(!revoked(other), "{other:?}");
        }
        person.credential.session = None;
        assert!(!none.with([(Revoked::Session("s1"), at(9))], at(0)).is_revoked(&person));
    }

    #[test]
    fn a_hundred_thousand_take_little() {
        let names: Vec<String> = (0..100_000).map(|number| format!("session-{number}")).collect();
        let all = names.iter().map(|name| (Revoked::Session(name), at(1_900_000_000)));
        let set = RevocationSet::new().with(all, at(1_800_000_000));
        assert_eq!((set.len(), set.table_bytes()), (100_000, 1_200_000));
        assert!(names.iter().all(|name| set.contains(Revoked::Session(name))));
        assert!(!names.iter().any(|name| set.contains(Revoked::Token(name))));
        assert!(set.pruned(at(1_900_000_000)).is_empty());
    }

    proptest! {
        /// However it is added and pruned: what is still of use is found, and nothing else.
        #[test]
        fn it_is_a_set(
            batches in proptest::collection::vec(
                (proptest::collection::vec((0_u16..4000, 1_i64..100), 0..1500), any::<bool>()), 0..6),
        ) {
            let mut set = RevocationSet::new();
            let mut model: HashMap<u16, i64> = HashMap::new();
            for (index, (batch, prune)) in batches.into_iter().enumerate() {
                let now = i64::try_from(index).unwrap() * 10;
                let names: Vec<_> =
                    batch.iter().map(|(name, until)| (name.to_string(), *until)).collect();
                let more = names.iter().map(|(name, until)| (Revoked::Token(name), at(*until)));
                set = set.with(more, at(now));
                for (name, until) in batch {
                    let kept = model.entry(name).or_insert(until);
                    *kept = until.max(*kept);
                }
                if prune {
                    set = set.pruned(at(now));
                }
                for name in 0..4000 {
                    let found = set.contains(Revoked::Token(&name.to_string()));
                    let until = model.get(&name).copied();
                    prop_assert!(found || until.is_none_or(|until| until <= now));
                    prop_assert!(!found || until.is_some());
                    prop_assert!(!(found && prune) || until.is_some_and(|until| until > now));
                }
            }
        }
    }
}
