//! Notices another controller that the Lease does not show: one of a version without it, which writes back
//! whatever this one writes.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cluster::resources::WorkloadResource;
use domain::workload::WorkloadRef;
use tokio::time::Instant;

use crate::{Shared, status::announce};

/// Changes behind our back within [`WITHIN`] that are no coincidence.
const MANY: usize = 10;
const WITHIN: Duration = Duration::from_secs(60);
/// Between two tries while it lasts: doubled each time.
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(600);

/// What we asked for, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Of the workload.
    pub generation: i64,
    pub awake: bool,
}

#[derive(Default)]
pub struct Rivals(Mutex<HashMap<WorkloadRef, Track>>);

struct Track {
    asked: Asked,
    /// Of what lies under the workload, after our last apply.
    generation: i64,
    changes: VecDeque<Instant>,
    pause: Option<Pause>,
}

struct Pause {
    until: Instant,
    length: Duration,
}

impl Rivals {
    fn all(&self) -> MutexGuard<'_, HashMap<WorkloadRef, Track>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long an apply of the same has to wait. What a person changes does not wait.
    pub fn pause(&self, workload: &WorkloadRef, asked: Asked, now: Instant) -> Option<Duration> {
        let all = self.all();
        let track = all.get(workload).filter(|track| track.asked == asked)?;
        let left = track.pause.as_ref()?.until.checked_duration_since(now)?;
        (!left.is_zero()).then_some(left)
    }

    /// After an apply that left `generation`. True when a rival is noticed, once as long as it lasts.
    pub fn applied(
        &self,
        workload: &WorkloadRef,
        asked: Asked,
        generation: i64,
        now: Instant,
    ) -> bool {
        let mut all = self.all();
        let Some(track) = all.get_mut(workload).filter(|track| track.asked == asked) else {
            let track = Track { asked, generation, changes: VecDeque::new(), pause: None };
            all.insert(workload.clone(), track);
            return false;
        };
        // Somebody's change, and ours that undid it.
        let fought = generation >= track.generation + 2;
        track.generation = generation;
        track.changes.retain(|at| now.duration_since(*at) < WITHIN);
        if !fought {
            if track.pause.as_ref().is_some_and(|pause| now >= pause.until) {
                track.pause = None;
            }
            return false;
        }
        track.changes.push_back(now);
        let before = track.pause.as_ref().map(|pause| pause.length);
        if before.is_none() && track.changes.len() < MANY {
            return false;
        }
        let length = before.map_or(FIRST, |before| (before * 2).min(LONGEST));
        track.changes.clear();
        track.pause = Some(Pause { until: now + length, length });
        before.is_none()
    }

    pub fn retain(&self, keep: impl Fn(&WorkloadRef) -> bool) {
        self.all().retain(|workload, _| keep(workload));
    }
}

/// Once, and not at each of its writes.
pub async fn tell<W: WorkloadResource>(object: &W, workload: &WorkloadRef, shared: &Shared) {
    tracing::error!(
        %workload,
        "another controller writes what lies under this workload, too: stop one of the two, or give it another scope; it is applied seldom until then"
    );
    let note = "Another controller changes what this one applies, many times a minute: stop one of the two, or give it another scope";
    announce(object, shared, "Rivalry", note.to_owned(), true).await;
}

#[cfg(test)]
mod tests {
    use domain::workload::WorkloadKind;

    use super::*;

    fn lab() -> WorkloadRef {
        WorkloadRef {
            kind: WorkloadKind::Workspace,
            project: "alice".parse().unwrap(),
            name: "lab".parse().unwrap(),
        }
    }

    const ASKED: Asked = Asked { generation: 1, awake: true };

    #[test]
    fn a_rival_is_told_once_and_answered_ever_more_seldom() {
        let (rivals, lab) = (Rivals::default(), lab());
        let mut now = Instant::now();
        let mut generation = 1;
        let (mut told, mut applies) = (0, 0);
        let start = now;
        // Somebody who writes back 45 times a second, for an hour.
        while now < start + Duration::from_secs(3600) {
            match rivals.pause(&lab, ASKED, now) {
                Some(pause) => now += pause,
                None => {
                    generation += 2;
                    applies += 1;
                    told += usize::from(rivals.applied(&lab, ASKED, generation, now));
                    now += Duration::from_millis(22);
                }
            }
        }
        assert_eq!(told, 1);
        assert!(applies < 25, "{applies}");
        // When it has gone, the next apply finds that.
        now += LONGEST;
        assert!(!rivals.applied(&lab, ASKED, generation, now));
        assert_eq!(rivals.pause(&lab, ASKED, now), None);
        rivals.retain(|_| false);
        assert!(rivals.all().is_empty());
    }

    #[test]
    fn what_people_change_is_no_rival_and_does_not_wait() {
        let (rivals, lab) = (Rivals::default(), lab());
        let now = Instant::now();
        for generation in 1..100 {
            let asked = Asked { generation, ..ASKED };
            assert!(!rivals.applied(&lab, asked, generation * 2, now));
        }
        // Nor a control plane that changes the status alone, or an apply that changes nothing.
        let asked = Asked { generation: 99, ..ASKED };
        for _ in 0..100 {
            assert!(!rivals.applied(&lab, asked, 198, now));
        }
        for change in 1..=10 {
            rivals.applied(&lab, asked, 198 + change * 2, now);
        }
        assert!(rivals.pause(&lab, asked, now).is_some());
        assert_eq!(rivals.pause(&lab, Asked { awake: false, ..asked }, now), None);
        // One change each ten seconds is somebody with kubectl.
        let rivals = Rivals::default();
        for change in 0..100 {
            let at = now + Duration::from_secs(10) * u32::try_from(change).unwrap();
            assert!(!rivals.applied(&lab, ASKED, change * 2, at));
        }
    }
}
