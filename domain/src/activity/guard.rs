//! One exchange: it records what is done in it.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::{Cell, How};
use crate::{
    classify::{
        Form, Name, Ruling, Socket,
        beat::Care,
        judge::at_once,
        request::{self, BODY_MAX},
    },
    name::UserName,
};

/// A request whose body tells what it is.
#[derive(Debug)]
struct Waiting {
    form: Form,
    name: Name,
    body: Vec<u8>,
    since: Timestamp,
}

/// Lives as long as the exchange it counts.
#[derive(Debug)]
pub struct Guard {
    cell: Arc<Cell>,
    who: UserName,
    how: How,
    working: AtomicBool,
    waits: AtomicBool,
    waiting: Mutex<Option<Waiting>>,
}

impl Guard {
    pub(crate) fn new(cell: Arc<Cell>, who: UserName, how: How) -> Self {
        cell.open.fetch_add(1, Ordering::AcqRel);
        Self {
            cell,
            who,
            how,
            working: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            waiting: Mutex::new(None),
        }
    }

    /// A person did something just now.
    pub fn person(&self, what: &'static str, now: Timestamp) {
        self.cell.record(&self.who, self.how, Cow::Borrowed(what), now);
    }

    /// A person did something that goes on until the guard is dropped, such as a request that is
    /// being answered: the workload counts as in use for all that time.
    pub fn person_until_dropped(&self, what: &'static str, now: Timestamp) {
        self.work();
        self.person(what, now);
    }

    fn work(&self) {
        if !self.working.swap(true, Ordering::AcqRel) {
            self.cell.working.fetch_add(1, Ordering::AcqRel);
            self.cell.mark_changed();
        }
    }

    /// Something was done: it is judged, and recorded if it is a person's.
    pub fn hear(&self, name: Name, socket: Option<&mut Socket>, now: Timestamp) -> Ruling {
        let ruling = self.judge(name, socket, now);
        if let Ruling::Now(verdict) = ruling
            && let Some(what) = verdict.doing()
        {
            self.person(what, now);
        }
        ruling
    }

    /// The same of a request. If it may be a person's, it goes on until the guard is dropped.
    pub fn hear_request(&self, name: Name, now: Timestamp) -> Ruling {
        let ruling = self.hear(name, None, now);
        if ruling.doing(name).is_some() {
            self.work();
        }
        ruling
    }

    fn judge(&self, name: Name, mut socket: Option<&mut Socket>, now: Timestamp) -> Ruling {
        match at_once(name, socket.as_deref_mut(), now.as_millisecond()) {
            Some(verdict) => Ruling::Now(verdict),
            None => self.cell.hear(name, socket, now, || (self.who.clone(), self.how)),
        }
    }

    /// What its head lets expect of a request whose body will tell: something, unless its kind comes
    /// on a beat. Nothing is recorded.
    pub fn foresee(&self, name: Name, now: Timestamp) -> Option<&'static str> {
        let Name::Beat { what, kind, known, .. } = name else { return None };
        let name = Name::Beat { what, kind, care: Care::Great, known };
        self.judge(name, None, now).doing(name)
    }

    /// What it is, its body tells: see [`Guard::body`]. If none comes, it is what `name` says.
    pub fn wait_for_body(&self, form: Form, name: Name, now: Timestamp) {
        *self.waiting.lock() = Some(Waiting { form, name, body: Vec::new(), since: now });
        self.waits.store(true, Ordering::Release);
    }

    pub fn waits_for_body(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// Some of the request's body, in order; `end` says that it was the last. Tells once what it
    /// came to.
    pub fn body(&self, bytes: &[u8], end: bool, now: Timestamp) -> Option<(Name, Ruling)> {
        if !self.waits_for_body() {
            return None;
        }
        let name = {
            let mut waiting = self.waiting.lock();
            let Waiting { form, name, body, .. } = waiting.as_mut()?;
            let room = BODY_MAX.saturating_sub(body.len());
            body.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
            if body.len() < BODY_MAX && !end {
                return None;
            }
            let name = request::body(*form, *name, body);
            *waiting = None;
            name
        };
        self.waits.store(false, Ordering::Release);
        Some((name, self.hear_request(name, now)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(Waiting { name, since, .. }) = self.waiting.get_mut().take() {
            self.hear(name, None, since);
        }
        self.cell.open.fetch_sub(1, Ordering::AcqRel);
        if *self.working.get_mut() {
            self.cell.working.fetch_sub(1, Ordering::AcqRel);
            self.cell.mark_changed();
        }
    }
}
