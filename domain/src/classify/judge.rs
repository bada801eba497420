//! The judge: names, directions and times in, verdicts out. Times are milliseconds.

use super::{
    Name, Verdict,
    beat::{Beats, Care, Doubt, Heard},
};

/// A fresh page does some things by itself.
const OPENING: i64 = 3_000;
/// A plot follows new data within this time.
const FOLLOWS: i64 = 250;
/// An editor writes its state while it starts, and after it found a port.
const EDITOR_STARTS: i64 = 60_000;
const PORT_FOUND: i64 = 10_000;
/// A page that was just opened reads much.
const PAGE_LOADS: i64 = 20_000;
/// Kinds of reads that are remembered; 2 KiB.
const READS_MAX: usize = 256;
/// Notebooks of which it is remembered that they were saved.
const SAVED_MAX: usize = 32;

/// What is known of one WebSocket.
#[derive(Debug, Clone, Copy)]
pub struct Socket {
    opened: i64,
    /// When the server last sent new data for a plot.
    pushed: i64,
}

impl Socket {
    pub fn new(now: i64) -> Self {
        Self { opened: now, pushed: i64::MIN / 2 }
    }
}

/// What comes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    Now(Verdict),
    /// In doubt for a while, in which the workload is in use: a beat may come of it.
    Later,
}

impl Ruling {
    /// The word of it, for a metric.
    pub fn label(self, name: Name) -> &'static str {
        match (self, name) {
            (Self::Now(verdict), _) => verdict.label(),
            (Self::Later, Name::Beat { known: false, .. }) => "unknown",
            (Self::Later, _) => "doubt",
        }
    }

    /// Whether the workload is in use by it.
    pub fn doing(self, name: Name) -> Option<&'static str> {
        match (self, name) {
            (Self::Now(verdict), _) => verdict.doing(),
            (Self::Later, Name::Beat { what, .. }) => Some(what),
            (Self::Later, _) => Some("used the app"),
        }
    }
}

/// A doubt that was settled: nobody kept a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled<D> {
    pub at: i64,
    pub kind: u64,
    pub verdict: Verdict,
    pub data: D,
}

/// What is remembered of a workload, from all its connections. Bounded.
#[derive(Debug)]
pub struct Workload<D> {
    beats: Beats<(Verdict, D)>,
    saved: Vec<u64>,
    reads: Vec<u64>,
    /// The oldest of them, once there are so many.
    oldest: usize,
    opened: i64,
    found_port: i64,
}

impl<D> Default for Workload<D> {
    fn default() -> Self {
        Self {
            beats: Beats::default(),
            saved: Vec::new(),
            reads: Vec::new(),
            oldest: 0,
            opened: i64::MIN / 2,
            found_port: i64::MIN / 2,
        }
    }
}

/// What needs nothing of the past; nearly all does.
pub fn at_once(name: Name, socket: Option<&mut Socket>, now: i64) -> Option<Verdict> {
    Some(match (name, socket) {
        (Name::Person(what), _) => Verdict::Person(what),
        (Name::Work(why), _) => Verdict::Work(why),
        (Name::Noise(why), _) => Verdict::Noise(why),
        (Name::Pushed, Some(socket)) => {
            socket.pushed = now;
            Verdict::Noise("server")
        }
        (Name::Range(_), Some(socket)) if now - socket.pushed <= FOLLOWS => {
            Verdict::Noise("plot follows data")
        }
        (Name::Range(what), _) => Verdict::Person(what),
        (Name::Begins { .. }, Some(socket)) if now - socket.opened <= OPENING => {
            Verdict::Noise("opening")
        }
        (Name::Edited(_), Some(socket)) if now - socket.opened <= EDITOR_STARTS => {
            Verdict::Noise("opening")
        }
        _ => return None,
    })
}

impl<D> Workload<D> {
    /// Judges. `data` is kept for as long as there is doubt.
    pub fn judge(
        &mut self,
        name: Name,
        socket: Option<&mut Socket>,
        now: i64,
        data: impl FnOnce() -> D,
    ) -> Ruling {
        if let Some(verdict) = at_once(name, socket, now) {
            return Ruling::Now(verdict);
        }
        let verdict = match name {
            Name::Opened(what) => {
                // A page that is opened again writes its notebooks once more.
                self.saved.clear();
                self.opened = now;
                Verdict::Person(what)
            }
            Name::Saved { what, file } => {
                if self.saved.contains(&file) {
                    Verdict::Person(what)
                } else {
                    if self.saved.len() >= SAVED_MAX {
                        self.saved.swap_remove(0);
                    }
                    self.saved.push(file);
                    Verdict::Noise("first save")
                }
            }
            Name::Looked { what, kind } => {
                if self.reads.contains(&kind) {
                    return Ruling::Now(Verdict::Noise("read"));
                }
                if self.reads.len() < READS_MAX {
                    self.reads.push(kind);
                } else if let Some(slot) = self.reads.get_mut(self.oldest) {
                    *slot = kind;
                    self.oldest = (self.oldest + 1) % READS_MAX;
                }
                match now - self.opened <= PAGE_LOADS {
                    true => Verdict::Noise("a page loads"),
                    false => Verdict::Person(what),
                }
            }
            Name::FoundPort => {
                self.found_port = now;
                Verdict::Noise("server")
            }
            Name::Edited(_) if now - self.found_port <= PORT_FOUND => {
                Verdict::Noise("found a port")
            }
            Name::Edited(what) => Verdict::Person(what),
            Name::Beat { what, kind, care, known } => {
                let verdict = if known { Verdict::Person(what) } else { Verdict::Unknown(what) };
                return self.beat(verdict, kind, care, now, data);
            }
            Name::Begins { what, kind } => {
                return self.beat(Verdict::Person(what), kind, Care::Great, now, data);
            }
            // Their socket is not known: what can be said of them was said.
            Name::Person(what) | Name::Range(what) => Verdict::Person(what),
            Name::Work(why) => Verdict::Work(why),
            Name::Noise(why) => Verdict::Noise(why),
            Name::Pushed => Verdict::Noise("server"),
        };
        Ruling::Now(verdict)
    }

    fn beat(
        &mut self,
        verdict: Verdict,
        kind: u64,
        care: Care,
        now: i64,
        data: impl FnOnce() -> D,
    ) -> Ruling {
        match self.beats.hear(kind, care, now, || (verdict, data())) {
            Heard::OnBeat => Ruling::Now(Verdict::Noise("a beat")),
            Heard::OffBeat => Ruling::Now(verdict),
            Heard::Doubt => Ruling::Later,
        }
    }

    /// A doubt that is none any more by `now`; to be asked until there is none.
    pub fn settle(&mut self, now: i64) -> Option<Settled<D>> {
        let Doubt { at, kind, data: (verdict, data) } = self.beats.overdue(now)?;
        Some(Settled { at, kind, verdict, data })
    }

    /// While something is in doubt, the workload is in use.
    pub fn is_in_doubt(&self) -> bool {
        self.beats.is_in_doubt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(workload: &mut Workload<()>, name: Name, socket: &mut Socket, now: i64) -> Ruling {
        workload.judge(name, Some(socket), now, || ())
    }

    fn person(what: &'static str) -> Ruling {
        Ruling::Now(Verdict::Person(what))
    }

    #[test]
    fn a_notebook_is_saved_once_by_itself_after_a_page_was_opened() {
        let (mut workload, mut socket) = (Workload::default(), Socket::new(0));
        let mut hear = |name| judge(&mut workload, name, &mut socket, 1);
        let saved = |file| Name::Saved { what: "changed a file", file };
        let quiet = Ruling::Now(Verdict::Noise("first save"));
        assert_eq!(hear(saved(1)), quiet);
        assert_eq!(hear(saved(1)), person("changed a file"));
        assert_eq!(hear(saved(2)), quiet);
        hear(Name::Opened("opened a page"));
        assert_eq!(hear(saved(1)), quiet);
    }

    #[test]
    fn an_editor_writes_by_itself_while_it_starts_and_when_it_found_a_port() {
        let (mut workload, mut socket) = (Workload::default(), Socket::new(0));
        let mut hear = |name, at| judge(&mut workload, name, &mut socket, at);
        let edit = Name::Edited("edited a file");
        assert_eq!(hear(edit, 59_000), Ruling::Now(Verdict::Noise("opening")));
        assert_eq!(hear(edit, 61_000), person("edited a file"));
        hear(Name::FoundPort, 70_000);
        assert_eq!(hear(edit, 79_000), Ruling::Now(Verdict::Noise("found a port")));
        assert_eq!(hear(edit, 81_000), person("edited a file"));
    }

    #[test]
    fn a_plot_that_follows_its_data_is_nobody() {
        let (mut workload, mut socket) = (Workload::default(), Socket::new(0));
        let mut hear = |name, at| judge(&mut workload, name, &mut socket, at);
        let range = Name::Range("moved a plot");
        assert_eq!(hear(range, 1000), person("moved a plot"));
        hear(Name::Pushed, 2000);
        assert_eq!(hear(range, 2200), Ruling::Now(Verdict::Noise("plot follows data")));
        assert_eq!(hear(range, 2400), person("moved a plot"));
    }

    #[test]
    fn a_fresh_page_runs_once_by_itself() {
        let (mut workload, mut socket) = (Workload::default(), Socket::new(0));
        let mut hear = |at| {
            judge(&mut workload, Name::Begins { what: "used the app", kind: 1 }, &mut socket, at)
        };
        assert_eq!(hear(1000), Ruling::Now(Verdict::Noise("opening")));
        assert_eq!(hear(9000), person("used the app"));
    }

    #[test]
    fn what_is_not_understood_keeps_the_workload_and_is_called_so() {
        let mut workload = Workload::default();
        let name = Name::Beat { what: "sent a request", kind: 1, care: Care::Usual, known: false };
        let ruling = workload.judge(name, None, 0, || ());
        assert_eq!((ruling, ruling.doing(name)), (Ruling::Later, Some("sent a request")));
        assert!(workload.is_in_doubt());
        let settled = workload.settle(100_000).unwrap();
        assert_eq!((settled.at, settled.verdict), (0, Verdict::Unknown("sent a request")));
        assert!(!workload.is_in_doubt());
    }
}
