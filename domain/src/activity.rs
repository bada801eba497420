//! Who did what last, per workload: written on the request path without a lock, read by the
//! controller as "what changed since this cursor".

mod guard;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use crossbeam_queue::SegQueue;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    classify::{Name, Ruling, Socket, Workload, judge::Settled},
    name::UserName,
    workload::WorkloadRef,
};

pub use guard::Guard;

/// By which way somebody came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum How {
    Http,
    WebSocket,
    Ssh,
}

/// The last doing of a person. `what` names the kind of message, never its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub at: Timestamp,
    pub who: UserName,
    pub how: How,
    pub what: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Detail {
    who: UserName,
    how: How,
    what: Cow<'static, str>,
}

/// One workload's activity. Shared by every snapshot of the route table.
#[derive(Debug)]
pub struct Cell {
    workload: WorkloadRef,
    /// Milliseconds since the epoch; `i64::MIN` for never.
    last: AtomicI64,
    detail: ArcSwapOption<Detail>,
    /// Exchanges, WebSockets and SSH sessions that are open: presence, which is no evidence of use.
    open: AtomicU32,
    /// A person's requests that are being answered: while one is, the workload is in use.
    working: AtomicU32,
    /// The same in the process that this one has taken over from.
    working_before: AtomicU32,
    /// Already in the queue of changes.
    queued: AtomicBool,
    changes: Arc<Queue>,
    /// What is remembered to tell people from machines. Most of what passes needs none of it.
    judge: Mutex<Workload<(UserName, How)>>,
    /// Already in the queue of those in doubt.
    doubted: AtomicBool,
    doubts: Arc<Queue>,
}

/// Holds each cell at most once, so its length is bounded by the number of workloads.
#[derive(Debug, Default)]
struct Queue(SegQueue<Arc<Cell>>);

impl Cell {
    fn mark_changed(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.changes.0.push(self.clone());
        }
    }

    fn hear(
        self: &Arc<Self>,
        name: Name,
        socket: Option<&mut Socket>,
        now: Timestamp,
        data: impl FnOnce() -> (UserName, How),
    ) -> Ruling {
        let ruling = self.judge.lock().judge(name, socket, now.as_millisecond(), data);
        if ruling == Ruling::Later {
            if !self.doubted.swap(true, Ordering::AcqRel) {
                self.doubts.0.push(self.clone());
            }
            self.mark_changed();
        }
        ruling
    }

    /// Takes for a person's what no beat has come of. False once nothing is in doubt.
    fn settle(self: &Arc<Self>, now: Timestamp) -> bool {
        loop {
            let mut judge = self.judge.lock();
            let Some(Settled { at, verdict, data, .. }) = judge.settle(now.as_millisecond()) else {
                return judge.is_in_doubt();
            };
            drop(judge);
            if let (Some(what), Ok(at)) = (verdict.doing(), Timestamp::from_millisecond(at)) {
                self.record(&data.0, data.1, Cow::Borrowed(what), at);
            }
        }
    }

    fn working(&self) -> u32 {
        let doubt = u32::from(self.judge.lock().is_in_doubt());
        let before = self.working_before.load(Ordering::Acquire);
        self.working.load(Ordering::Acquire).saturating_add(doubt).saturating_add(before)
    }

    fn works_before(self: &Arc<Self>, working: u32) {
        if self.working_before.swap(working, Ordering::AcqRel) != working {
            self.mark_changed();
        }
    }

    fn record(self: &Arc<Self>, who: &UserName, how: How, what: Cow<'static, str>, now: Timestamp) {
        let same = self
            .detail
            .load()
            .as_deref()
            .is_some_and(|d| d.how == how && d.what == what && d.who == *who);
        let now = now.as_millisecond();
        if same && self.last.load(Ordering::Acquire) >= now {
            // Nothing new: whoever wrote that moment has told of it, or is about to.
            return;
        }
        if !same {
            self.detail.store(Some(Arc::new(Detail { who: who.clone(), how, what })));
        }
        self.last.fetch_max(now, Ordering::AcqRel);
        self.mark_changed();
    }

    fn snapshot(&self) -> Change {
        let last = self.last.load(Ordering::Acquire);
        let evidence = self.detail.load().as_deref().and_then(|detail| {
            Some(Evidence {
                at: Timestamp::from_millisecond(last).ok()?,
                who: detail.who.clone(),
                how: detail.how,
                what: detail.what.clone().into_owned(),
            })
        });
        Change {
            workload: self.workload.clone(),
            last: evidence,
            open: self.open.load(Ordering::Acquire),
            working: self.working(),
        }
    }
}

/// A gateway's whole memory of activity.
#[derive(Debug, Default)]
pub struct Tracker {
    cells: Mutex<HashMap<WorkloadRef, Arc<Cell>>>,
    changes: Arc<Queue>,
    doubts: Arc<Queue>,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    cursor: u64,
    by_cursor: BTreeMap<u64, Arc<Cell>>,
    cursor_of: HashMap<WorkloadRef, u64>,
}

/// What a gateway says of one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub workload: WorkloadRef,
    pub last: Option<Evidence>,
    pub open: u32,
    pub working: u32,
}

/// Everything that changed after a cursor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    pub cursor: u64,
    pub changes: Vec<Change>,
}

impl Tracker {
    pub fn new() -> Self {
        Self::default()
    }

    /// The workload's cell, made at first sight. Called when a route table is built, never per
    /// request.
    pub fn cell(&self, workload: &WorkloadRef) -> Arc<Cell> {
        let mut cells = self.cells.lock();
        if let Some(cell) = cells.get(workload) {
            return cell.clone();
        }
        let cell = Arc::new(Cell {
            workload: workload.clone(),
            last: AtomicI64::new(i64::MIN),
            detail: ArcSwapOption::empty(),
            open: AtomicU32::new(0),
            working: AtomicU32::new(0),
            working_before: AtomicU32::new(0),
            queued: AtomicBool::new(false),
            changes: self.changes.clone(),
            judge: Mutex::default(),
            doubted: AtomicBool::new(false),
            doubts: self.doubts.clone(),
        });
        cells.insert(workload.clone(), cell.clone());
        cell
    }

    /// Forgets a workload that exists no more.
    pub fn forget(&self, workload: &WorkloadRef) {
        self.cells.lock().remove(workload);
        let mut log = self.log.lock();
        if let Some(cursor) = log.cursor_of.remove(workload) {
            log.by_cursor.remove(&cursor);
        }
    }

    /// Forgets all workloads that exist no more.
    pub fn retain(&self, keep: impl Fn(&WorkloadRef) -> bool) {
        self.cells.lock().retain(|workload, _| keep(workload));
        let mut log = self.log.lock();
        let Log { by_cursor, cursor_of, .. } = &mut *log;
        by_cursor.retain(|_, cell| keep(&cell.workload));
        cursor_of.retain(|workload, _| keep(workload));
    }

    /// Takes over what another process says, whose work this one has taken over. What is older than
    /// what is known here changes nothing, and a workload that is not known here is passed over.
    pub fn hear(&self, change: Change) {
        let Some(cell) = self.cells.lock().get(&change.workload).cloned() else { return };
        cell.works_before(change.working);
        if let Some(Evidence { at, who, how, what }) = change.last
            && at.as_millisecond() > cell.last.load(Ordering::Acquire)
        {
            cell.record(&who, how, Cow::Owned(what), at);
        }
    }

    /// The process that this one has taken over from is gone, and nothing is under way there.
    pub fn heard_all(&self) {
        let cells: Vec<_> = self.cells.lock().values().cloned().collect();
        cells.iter().for_each(|cell| cell.works_before(0));
    }

    /// Takes for a person's what was in doubt for long enough. To be called before the changes are
    /// asked for; costs as much as there are workloads in doubt.
    pub fn settle(&self, now: Timestamp) {
        let mut still = Vec::new();
        while let Some(cell) = self.doubts.0.pop() {
            cell.doubted.store(false, Ordering::Release);
            if cell.settle(now) {
                still.push(cell);
            } else {
                cell.mark_changed();
            }
        }
        for cell in still {
            if !cell.doubted.swap(true, Ordering::AcqRel) {
                self.doubts.0.push(cell);
            }
        }
    }

    /// Costs as much as there were changes, however many workloads sleep. Cursor 0 asks for all.
    pub fn changes(&self, since: u64) -> Changes {
        let mut log = self.log.lock();
        let mut still_working = Vec::new();
        while let Some(cell) = self.changes.0.pop() {
            // First the flag, then the reading: a record between the two queues the cell again.
            cell.queued.store(false, Ordering::Release);
            // What is open of a workload that is gone still reports to its old cell.
            let known = self.cells.lock().get(&cell.workload).cloned();
            if !known.is_some_and(|known| Arc::ptr_eq(&known, &cell)) {
                continue;
            }
            log.cursor += 1;
            let cursor = log.cursor;
            if let Some(old) = log.cursor_of.insert(cell.workload.clone(), cursor) {
                log.by_cursor.remove(&old);
            }
            if cell.working() > 0 {
                still_working.push(cell.clone());
            }
            log.by_cursor.insert(cursor, cell);
        }
        for cell in still_working {
            cell.mark_changed();
        }
        let changes = log.by_cursor.range(since.saturating_add(1)..);
        Changes { cursor: log.cursor, changes: changes.map(|(_, cell)| cell.snapshot()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        classify::{Form, beat::Care},
        workload::WorkloadKind,
    };

    fn lab() -> WorkloadRef {
        WorkloadRef {
            kind: WorkloadKind::Workspace,
            project: "alice".parse().unwrap(),
            name: "lab".parse().unwrap(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn guard(tracker: &Tracker) -> Guard {
        Guard::new(tracker.cell(&lab()), "alice".parse().unwrap(), How::Http)
    }

    #[test]
    fn presence_is_not_activity() {
        let tracker = Tracker::new();
        let _open = guard(&tracker);
        assert_eq!(tracker.changes(0).changes, []);
    }

    #[test]
    fn a_cursor_sees_each_change_once() {
        let tracker = Tracker::new();
        let open = guard(&tracker);
        open.person("run a cell", at(100));
        let first = tracker.changes(0);
        let last = first.changes[0].last.as_ref().unwrap();
        assert_eq!((last.at, last.what.as_str()), (at(100), "run a cell"));
        assert_eq!(tracker.changes(first.cursor).changes, []);
        open.person("run a cell", at(101));
        assert_eq!(tracker.changes(first.cursor).changes.len(), 1);
        assert_eq!(tracker.changes(0).changes.len(), 1, "a new reader gets the whole story");
    }

    #[test]
    fn a_clock_that_steps_back_loses_nothing() {
        let tracker = Tracker::new();
        let open = guard(&tracker);
        open.person("edit", at(100));
        open.person("edit", at(50));
        assert_eq!(tracker.changes(0).changes[0].last.as_ref().unwrap().at, at(100));
    }

    #[test]
    fn a_request_being_answered_is_reported_until_it_ends() {
        let tracker = Tracker::new();
        let open = guard(&tracker);
        open.person_until_dropped("call", at(100));
        let first = tracker.changes(0);
        assert_eq!(first.changes[0].working, 1);
        let second = tracker.changes(first.cursor);
        assert_eq!(second.changes[0].working, 1, "though nothing was recorded since");
        drop(open);
        let third = tracker.changes(second.cursor);
        assert_eq!((third.changes[0].working, third.changes[0].open), (0, 0));
        assert_eq!(tracker.changes(third.cursor).changes, []);
    }

    #[test]
    fn what_a_process_before_says_is_known_and_ends_with_it() {
        let (before, after) = (Tracker::new(), Tracker::new());
        let open = guard(&before);
        after.cell(&lab());
        let hand_on =
            || before.changes(0).changes.into_iter().for_each(|change| after.hear(change));
        open.person_until_dropped("typed in a shell", at(100));
        hand_on();
        let first = after.changes(0);
        let last = first.changes[0].last.as_ref().unwrap();
        assert_eq!((last.at, last.what.as_str()), (at(100), "typed in a shell"));
        assert_eq!(first.changes[0].working, 1);
        guard(&after).person("run a cell", at(200));
        hand_on();
        let second = after.changes(first.cursor).changes;
        assert_eq!(second[0].last.as_ref().unwrap().what, "run a cell", "what is older is known");
        after.heard_all();
        assert_eq!(after.changes(0).changes[0].working, 0);
        let mut other = before.changes(0).changes.remove(0);
        other.workload.name = "gone".parse().unwrap();
        after.hear(other);
        assert_eq!(after.changes(0).changes.len(), 1, "what is not known here");
    }

    #[test]
    fn what_begins_in_the_moment_of_the_last_doing_is_reported_too() {
        let tracker = Tracker::new();
        guard(&tracker).person("call", at(100));
        let first = tracker.changes(0);
        let open = guard(&tracker);
        open.person("call", at(100));
        assert_eq!(tracker.changes(first.cursor).changes, [], "nothing new");
        open.person_until_dropped("call", at(100));
        assert_eq!(tracker.changes(first.cursor).changes[0].working, 1);
        open.person("another", at(100));
        let last = tracker.changes(0).changes[0].last.clone().unwrap();
        assert_eq!(last.what, "another");
    }

    fn timer(kind: u64) -> Name {
        Name::Beat { what: "used the app", kind, care: Care::Usual, known: true }
    }

    #[test]
    fn what_is_in_doubt_is_in_use_and_then_a_persons_or_nobodys() {
        let tracker = Tracker::new();
        let open = guard(&tracker);
        let state = |now| {
            tracker.settle(at(now));
            let change = tracker.changes(0).changes.pop().unwrap();
            (change.working, change.last.map(|last| last.at))
        };
        open.hear(timer(1), None, at(100));
        assert_eq!(state(101), (1, None));
        assert_eq!(state(300), (0, Some(at(100))), "no beat came of it");
        for beat in 0..10 {
            open.hear(timer(2), None, at(400 + 2 * beat));
        }
        assert_eq!(state(420), (0, Some(at(100))), "a beat");
        open.hear(timer(2), None, at(419));
        assert_eq!(state(420), (0, Some(at(419))), "off the beat");
    }

    #[test]
    fn a_body_tells_wherever_it_is_cut() {
        let text = br#"{"changedPropIds":["clock.n_intervals"]}"#;
        for cut in 0..=text.len() {
            let tracker = Tracker::new();
            let open = guard(&tracker);
            open.wait_for_body(Form::Dash, Name::Person("used the app"), at(1));
            assert_eq!(open.body(&text[..cut], false, at(1)), None);
            let (name, _) = open.body(&text[cut..], true, at(1)).unwrap();
            assert_eq!(name, Name::Noise("interval"));
            assert_eq!(open.body(b"more", true, at(1)), None);
            drop(open);
            assert!(tracker.changes(0).changes.iter().all(|change| change.last.is_none()));
        }
        let tracker = Tracker::new();
        let open = guard(&tracker);
        open.wait_for_body(Form::Dash, Name::Person("used the app"), at(1));
        drop(open);
        assert!(tracker.changes(0).changes[0].last.is_some(), "no body came");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let tracker = Tracker::new();
        guard(&tracker).person("edit", at(1));
        assert_eq!(tracker.changes(0).changes.len(), 1);
        tracker.retain(|_| false);
        assert_eq!(tracker.changes(0).changes, []);
        guard(&tracker).person("edit", at(2));
        assert_eq!(tracker.changes(0).changes.len(), 1);
        let open = guard(&tracker);
        tracker.forget(&lab());
        open.person("edit", at(3));
        assert_eq!(tracker.changes(0).changes, []);
    }
}
