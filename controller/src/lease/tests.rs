use proptest::prelude::*;

use super::*;

const TIMING: Timing = Timing::USUAL;

fn found(version: u64, holder: Option<&str>) -> Found {
    Found {
        version: version.to_string(),
        holder: holder.map(str::to_owned),
        duration: Some(TIMING.duration),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_silent_holder_is_waited_for_from_when_it_was_first_seen() {
    let start = Instant::now();
    let mut it = Candidate::new("b".to_owned(), TIMING);
    let until = Decision::Wait(start + seconds(15));
    assert_eq!(it.decide(Some(&found(1, Some("a"))), start), until);
    assert_eq!(it.decide(Some(&found(1, Some("a"))), start + seconds(14)), until);
    // Renewed: from the beginning.
    let until = Decision::Wait(start + seconds(29));
    assert_eq!(it.decide(Some(&found(2, Some("a"))), start + seconds(14)), until);
    assert_eq!(it.decide(Some(&found(2, Some("a"))), start + seconds(28)), until);
    assert_eq!(it.decide(Some(&found(2, Some("a"))), start + seconds(29)), Decision::Acquire);
}

#[test]
fn what_was_released_or_never_made_is_taken_at_once() {
    let now = Instant::now();
    let mut it = Candidate::new("b".to_owned(), TIMING);
    assert_eq!(it.decide(None, now), Decision::Acquire);
    assert_eq!(it.decide(Some(&found(1, None)), now), Decision::Acquire);
    // Not what was deleted while another may still hold it.
    assert_eq!(it.decide(Some(&found(2, Some("a"))), now), Decision::Wait(now + seconds(15)));
    assert_eq!(it.decide(None, now + seconds(1)), Decision::Wait(now + seconds(15)));
    assert_eq!(it.decide(Some(&found(3, None)), now + seconds(2)), Decision::Acquire);
}

#[test]
fn a_holder_stops_before_anybody_may_start() {
    let start = Instant::now();
    let mut it = Candidate::new("a".to_owned(), TIMING);
    it.written(start);
    assert_eq!(it.decide(Some(&found(1, Some("a"))), start + seconds(3)), Decision::Renew);
    assert_eq!(it.decide(None, start + seconds(4)), Decision::Renew, "somebody deleted it");
    assert!(it.holds(start + seconds(9)) && !it.holds(start + seconds(10)));
    // An answer that comes too late is none.
    assert_eq!(it.decide(Some(&found(1, Some("a"))), start + seconds(10)), Decision::Lost);
    assert_eq!(it.decide(Some(&found(1, Some("a"))), start + seconds(11)), Decision::Renew);
    it.written(start + seconds(11));
    assert_eq!(it.decide(Some(&found(2, Some("b"))), start + seconds(12)), Decision::Lost);
    let until = Decision::Wait(start + seconds(27));
    assert_eq!(it.decide(Some(&found(2, Some("b"))), start + seconds(13)), until);
    it.written(start + seconds(30));
    assert_eq!(it.decide(Some(&found(3, None)), start + seconds(31)), Decision::Lost, "taken away");
}

#[test]
fn a_duration_that_makes_no_sense_is_bounded() {
    let now = Instant::now();
    for (says, waits) in [(None, 15), (Some(1), 15), (Some(60), 60), (Some(1_000_000), 600)] {
        let mut it = Candidate::new("b".to_owned(), TIMING);
        let mut found = found(1, Some("a"));
        found.duration = says.map(seconds);
        assert_eq!(it.decide(Some(&found), now), Decision::Wait(now + seconds(waits)), "{says:?}");
    }
}

/// The Lease of an API server.
#[derive(Default)]
struct Server {
    version: u64,
    holder: Option<usize>,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

impl Server {
    fn read(&self) -> Option<Found> {
        (self.version > 0).then(|| found(self.version, self.holder.map(|holder| NAMES[holder])))
    }

    /// Whether the version was still the one that had been read.
    fn write(&mut self, version: u64, holder: Option<usize>) -> bool {
        let same = self.version == version;
        if same {
            self.version += 1;
            self.holder = holder;
        }
        same
    }
}

struct Process {
    candidate: Candidate,
    start: Instant,
    /// In hundredths.
    rate: u64,
    /// What was read, by whom it was decided, and when.
    read: Option<(u64, Decision, Instant)>,
    /// A write that went well, and whose answer is under way.
    answer: Option<Instant>,
}

impl Process {
    /// This process's own clock at the true time in milliseconds.
    fn now(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis * self.rate / 100)
    }

    fn holds(&self, millis: u64) -> bool {
        self.candidate.holds(self.now(millis))
    }
}

#[derive(Debug, Clone)]
enum Step {
    Look(usize),
    Write(usize),
    /// The answer to the write arrives, or never does.
    Answer(usize, bool),
    Release(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0..NAMES.len();
    let step = prop_oneof![
        4 => who().prop_map(Step::Look),
        4 => who().prop_map(Step::Write),
        4 => (who(), any::<bool>()).prop_map(|(who, arrives)| Step::Answer(who, arrives)),
        1 => who().prop_map(Step::Release),
        4 => (0..20_000u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..200)
}

fn processes(offsets: &[u64], rates: &[u64]) -> Vec<Process> {
    let start = Instant::now();
    let all = NAMES.iter().zip(offsets.iter().zip(rates));
    all.map(|(name, (offset, rate))| Process {
        candidate: Candidate::new((*name).to_owned(), TIMING),
        start: start + Duration::from_secs(*offset),
        rate: *rate,
        read: None,
        answer: None,
    })
    .collect()
}

proptest! {
    /// Whatever the clocks say, whatever is lost or late: never two at a time. Clocks that differ by hours, and
    /// that run up to a tenth too fast or too slow.
    #[test]
    fn two_never_hold_it_at_a_time(
        steps in steps(),
        offsets in prop::collection::vec(0..100_000u64, 3),
        rates in prop::collection::vec(90..=110u64, 3),
    ) {
        let mut server = Server::default();
        let mut all = processes(&offsets, &rates);
        let mut millis = 0;
        for step in steps {
            match step {
                Step::Look(who) => {
                    let now = all[who].now(millis);
                    let decision = all[who].candidate.decide(server.read().as_ref(), now);
                    all[who].read = Some((server.version, decision, now));
                }
                // As late as it likes after the look.
                Step::Write(who) => if let Some((version, decision, _)) = all[who].read.take()
                    && matches!(decision, Decision::Acquire | Decision::Renew)
                {
                    let sent = all[who].now(millis);
                    if server.write(version, Some(who)) {
                        all[who].answer = Some(sent);
                    }
                },
                Step::Answer(who, arrives) => if let Some(sent) = all[who].answer.take() && arrives {
                    all[who].candidate.written(sent);
                },
                Step::Release(who) => if all[who].holds(millis) {
                    all[who].candidate.lose();
                    all[who].answer = None;
                    if server.holder == Some(who) {
                        let version = server.version;
                        server.write(version, None);
                    }
                },
                Step::Pass(more) => millis += more,
            }
            let holders = all.iter().filter(|it| it.holds(millis)).count();
            prop_assert!(holders <= 1, "{holders} hold it at {millis}");
        }
    }

    /// Once a holder is silent, one that looks each second has it soon.
    #[test]
    fn a_silent_holder_is_followed(offset in 0..100_000u64, rate in 90..=110u64, late in 0..5_000u64) {
        let mut server = Server::default();
        let mut all = processes(&[0, offset, 0], &[100, rate, 100]);
        prop_assert!(server.write(0, Some(0)));
        let sent = all[0].now(0);
        all[0].candidate.written(sent);
        let mut millis = late;
        loop {
            let now = all[1].now(millis);
            let decision = all[1].candidate.decide(server.read().as_ref(), now);
            if decision == Decision::Acquire {
                break;
            }
            prop_assert!(matches!(decision, Decision::Wait(_)), "{decision:?}");
            millis += 1000;
            prop_assert!(millis < late + 20_000);
        }
        prop_assert!(!all[0].holds(millis));
        prop_assert!(server.write(server.version, Some(1)));
    }
}
