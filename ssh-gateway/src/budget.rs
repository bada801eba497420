//! How many unread bytes may wait in this process: of one connection, of one person, and in all.
//!
//! Each direction has half of every bound and never waits for the other half: what clients do not
//! read must not keep their own window adjustments from being read.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use prometheus::{IntCounterVec, IntGauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{config::Limits, metrics::Metrics};

/// The bounds of the process, and those of each person with a connection.
pub struct Budgets {
    person: usize,
    connection: usize,
    process: [Scope; 2],
    people: Mutex<HashMap<String, Weak<[Scope; 2]>>>,
    unread: IntGauge,
    slowed: IntCounterVec,
}

#[derive(Clone)]
struct Scope {
    name: &'static str,
    room: Arc<Semaphore>,
    size: usize,
}

impl Scope {
    fn pair(name: &'static str, size: usize) -> [Self; 2] {
        let size = (size / 2).clamp(1, u32::MAX as usize);
        [(); 2].map(|()| Self { name, room: Arc::new(Semaphore::new(size)), size })
    }
}

impl Budgets {
    pub fn new(limits: &Limits, metrics: &Metrics) -> Self {
        Self {
            person: limits.unread_bytes_per_person,
            connection: limits.unread_bytes_per_connection,
            process: Scope::pair("process", limits.unread_bytes),
            people: Mutex::default(),
            unread: metrics.unread.clone(),
            slowed: metrics.slowed.clone(),
        }
    }

    /// What one more connection of this person may use: from the client, and to it.
    pub fn connection(&self, subject: &str) -> [Budget; 2] {
        let mut people = self.people.lock().unwrap_or_else(PoisonError::into_inner);
        people.retain(|_, scopes| scopes.strong_count() > 0);
        let person = people.get(subject).and_then(Weak::upgrade).unwrap_or_else(|| {
            let scopes = Arc::new(Scope::pair("person", self.person));
            people.insert(subject.to_owned(), Arc::downgrade(&scopes));
            scopes
        });
        let own = Scope::pair("connection", self.connection);
        std::array::from_fn(|way| Budget {
            // The narrowest first, so that nobody waits with room of others in hand.
            scopes: [&own, &*person, &self.process].map(|pair| pair[way].clone()),
            _person: person.clone(),
            unread: self.unread.clone(),
            slowed: self.slowed.clone(),
        })
    }
}

/// One direction of one connection. Cheap to clone.
#[derive(Clone)]
pub struct Budget {
    scopes: [Scope; 3],
    _person: Arc<[Scope; 2]>,
    unread: IntGauge,
    slowed: IntCounterVec,
}

impl Budget {
    /// Half of a bound is in use: channels keep less from now on.
    pub fn is_tight(&self) -> bool {
        self.scopes.iter().any(|scope| scope.room.available_permits() < scope.size / 2)
    }

    /// Waits for room, unless `first`: each channel may always hold one message, so that all go on.
    pub async fn take(&self, bytes: usize, first: bool) -> Taken {
        let mut taken = self.none();
        for (scope, place) in self.scopes.iter().zip(&mut taken.permits) {
            let cost = bytes.min(scope.size) as u32;
            let room = scope.room.clone();
            *place = match room.clone().try_acquire_many_owned(cost) {
                Ok(permit) => Some(permit),
                Err(_) if first => None,
                Err(_) => {
                    self.slowed.with_label_values(&[scope.name]).inc();
                    room.acquire_many_owned(cost).await.ok()
                }
            };
        }
        taken.count(bytes);
        taken
    }

    fn none(&self) -> Taken {
        Taken { permits: Default::default(), bytes: 0, unread: self.unread.clone() }
    }
}

impl Budget {
    /// Room at once, while a bound is not half used up.
    pub fn reserve(&self, bytes: usize) -> Option<Taken> {
        if self.is_tight() {
            return None;
        }
        let taken = self.charge(bytes);
        taken.permits.iter().all(Option::is_some).then_some(taken)
    }

    /// What is used whether there is room or not.
    pub fn charge(&self, bytes: usize) -> Taken {
        let mut taken = self.none();
        for (scope, place) in self.scopes.iter().zip(&mut taken.permits) {
            *place = scope.room.clone().try_acquire_many_owned(bytes.min(scope.size) as u32).ok();
        }
        taken.count(bytes);
        taken
    }
}

/// Given back when it is dropped.
pub struct Taken {
    permits: [Option<OwnedSemaphorePermit>; 3],
    bytes: i64,
    unread: IntGauge,
}

impl Taken {
    fn count(&mut self, bytes: usize) {
        self.bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.unread.add(self.bytes);
    }

    pub fn merge(&mut self, mut other: Self) {
        for (mine, theirs) in self.permits.iter_mut().zip(&mut other.permits) {
            match (mine.as_mut(), theirs.take()) {
                (Some(mine), Some(theirs)) => mine.merge(theirs),
                (None, theirs) => *mine = theirs,
                (Some(_), None) => {}
            }
        }
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.unread.sub(self.bytes);
    }
}

#[cfg(test)]
pub mod tests {
    use futures::FutureExt;

    use super::*;

    pub fn budget(connection: usize, person: usize, process: usize) -> Budgets {
        let limits = Limits {
            unread_bytes_per_connection: connection,
            unread_bytes_per_person: person,
            unread_bytes: process,
            ..Limits::default()
        };
        Budgets::new(&limits, &Metrics::new(&prometheus::Registry::new()).unwrap())
    }

    #[tokio::test]
    async fn each_bound_holds_and_what_is_given_back_is_there_again() {
        for (bounds, other_connection, other_person) in
            [((20, 90, 90), true, true), ((90, 20, 90), false, true), ((90, 90, 20), false, false)]
        {
            let budgets = budget(bounds.0, bounds.1, bounds.2);
            let [alice, down] = budgets.connection("alice");
            let all = alice.take(10, false).await;
            assert!(alice.is_tight() && !down.is_tight(), "{bounds:?}");
            let full = |budget: &Budget| budget.take(10, false).now_or_never().is_none();
            assert!(full(&alice));
            assert_eq!(!full(&budgets.connection("alice")[0]), other_connection, "{bounds:?}");
            assert_eq!(!full(&budgets.connection("bob")[0]), other_person, "{bounds:?}");
            assert!(!full(&down), "one direction never waits for the other");
            assert!(alice.take(10, true).now_or_never().is_some(), "a channel's first message");
            drop(all);
            assert!(!full(&alice), "{bounds:?}");
            assert_eq!(budgets.unread.get(), 0);
        }
    }

    #[test]
    fn people_without_a_connection_are_forgotten() {
        let budgets = budget(1, 1, 1);
        for person in 0..100 {
            budgets.connection(&person.to_string());
        }
        assert_eq!(budgets.people.lock().unwrap().len(), 1);
    }
}
