//! Machines keep a beat and people do not. A small memory of what comes again and again, by kind.
//!
//! Times are milliseconds on any one clock.

/// So many kinds are followed per workload; the one that was silent longest makes room.
const KINDS: usize = 24;
/// Gaps that a beat is learnt from.
const GAPS: usize = 3;
/// What comes this soon belongs to what came before: one doing, more than one message.
const BURST: i64 = 120;
/// So long a first doing waits for a second one before it counts as a person's.
const FIRST_WAIT: i64 = 65_000;
/// Nothing waits for longer for what comes next, and a faster beat that pauses for longer has ended.
const PAUSE_MAX: i64 = 120_000;
/// What comes more seldom is no beat.
const PERIOD_MAX: i64 = 3_600_000;
/// As many off the beat, one after the other, are a new beat or no beat.
const OFF_MAX: u8 = 3;
/// Doubts without a beat to be seen in them.
const DOUBTS_MAX: u8 = 12;
/// As many alike make a beat where a person's doing looks the same.
const SURE: u8 = 6;

/// How much it takes to believe that a machine does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// It may as well be a timer: wait and see.
    Usual,
    /// It looks like a person: count it at once, until a beat is beyond doubt.
    Great,
}

/// What a beat says of one doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// On a beat that was learnt.
    OnBeat,
    /// Off the beat, or too many without one.
    OffBeat,
    /// Too early to say. [`Beats::overdue`] gives it back if no beat comes of it.
    Doubt,
}

/// A doing that is in doubt, with what the caller wants to know of it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt<D> {
    pub at: i64,
    pub kind: u64,
    pub data: D,
}

#[derive(Debug)]
struct Kind<D> {
    kind: u64,
    /// The last on the beat, or the last of all while there is none; and the one before.
    on: i64,
    before: i64,
    /// The last of all.
    last: i64,
    gaps: [i64; GAPS],
    alike: u8,
    off: u8,
    doubts: u8,
    /// 0: not learnt.
    period: i64,
    doubt: Option<(i64, D)>,
}

/// Follows the kinds of one workload.
#[derive(Debug)]
pub struct Beats<D> {
    kinds: Vec<Kind<D>>,
    /// Of a kind that had to make room.
    evicted: Option<Doubt<D>>,
}

impl<D> Default for Beats<D> {
    fn default() -> Self {
        Self { kinds: Vec::new(), evicted: None }
    }
}

fn tolerance(gap: i64) -> i64 {
    (gap / 25).clamp(80, 1500)
}

fn is_near(one: i64, other: i64) -> bool {
    (one - other).abs() <= tolerance(one.min(other))
}

/// So exact is no person, and no script that plays one.
const EXACT: i64 = 40;

impl<D> Kind<D> {
    fn new(kind: u64, now: i64) -> Self {
        Self {
            kind,
            on: now,
            before: now,
            last: now,
            gaps: [0; GAPS],
            alike: 0,
            off: 0,
            doubts: 0,
            period: 0,
            doubt: None,
        }
    }

    fn forget_beat(&mut self) {
        self.gaps = [0; GAPS];
        (self.alike, self.off, self.doubts, self.period) = (0, 0, 0, 0);
    }

    /// Whether `gap` fits the beat: once, or late because a hidden tab is slowed down. A browser
    /// that throttles makes steps of whole seconds, and after minutes one of a minute.
    fn is_on(&self, now: i64) -> bool {
        let gap = now - self.on;
        let in_time = gap >= self.period - tolerance(self.period)
            // The one before was late, and this one is not.
            || gap >= self.period / 2 && is_near(now - self.before, 2 * self.period);
        let late = (3 * self.period).clamp(2500, PAUSE_MAX);
        in_time && gap <= late.max(self.period + tolerance(self.period))
    }

    /// Takes a gap into the lesson. True once a beat is learnt.
    fn learn(&mut self, gap: i64, care: Care) -> bool {
        let steady = match care {
            Care::Usual => is_near(gap, self.gaps[0]),
            Care::Great => (gap - self.gaps[0]).abs() <= EXACT,
        };
        // Two timers of one kind, or one that a browser slows down in whole seconds, take turns.
        let known = self.gaps.iter().any(|&before| before > 0 && is_near(gap, before));
        self.alike = match (care, steady, known) {
            (_, true, _) | (Care::Usual, _, true) => self.alike.saturating_add(1),
            _ => 0,
        };
        self.gaps.rotate_right(1);
        self.gaps[0] = gap;
        let all_alike = self.gaps.iter().all(|&before| is_near(gap, before));
        let enough = match care {
            Care::Usual if all_alike => 2,
            Care::Usual => 4,
            Care::Great => SURE,
        };
        if self.alike >= enough && gap <= PERIOD_MAX {
            self.period = self.gaps.iter().copied().min().unwrap_or(gap);
        }
        self.period > 0
    }

    /// By when another has to come for this one to stay in doubt.
    fn waits_until(&self, at: i64) -> i64 {
        match self.gaps[0] {
            0 => at + FIRST_WAIT,
            gap => at + (gap + gap / 3 + 1500).min(PAUSE_MAX),
        }
    }
}

impl<D> Beats<D> {
    /// Hears of a doing. `data` is kept for as long as it is in doubt.
    pub fn hear(&mut self, kind: u64, care: Care, now: i64, data: impl FnOnce() -> D) -> Heard {
        let Some(at) = self.kinds.iter().position(|known| known.kind == kind) else {
            let mut new = Kind::new(kind, now);
            let heard = Self::first(&mut new, care, now, data);
            self.make_room();
            self.kinds.push(new);
            return heard;
        };
        let Some(this) = self.kinds.get_mut(at) else { return Heard::OffBeat };
        let (gap, since_on) = (now - this.last, now - this.on);
        if gap <= BURST {
            // One with what came before, and judged like it.
            this.last = this.last.max(now);
            if let Some((at, _)) = &mut this.doubt {
                *at = now;
                return Heard::Doubt;
            }
            return if this.period > 0 && since_on <= BURST {
                Heard::OnBeat
            } else {
                Heard::OffBeat
            };
        }
        this.last = now;
        if this.period > 0 {
            if this.is_on(now) {
                this.period += (since_on - this.period).clamp(-this.period, this.period / 50) / 4;
                (this.before, this.on, this.off) = (this.on, now, 0);
                return Heard::OnBeat;
            }
            if since_on < this.period {
                this.off += 1;
                if this.off >= OFF_MAX {
                    this.forget_beat();
                    this.on = now;
                }
                return Heard::OffBeat;
            }
            // It paused: whether it is the same that goes on will be seen.
            this.forget_beat();
            this.on = now;
            return Self::first(this, care, now, data);
        }
        this.on = now;
        if this.learn(gap, care) {
            this.doubt = None;
            this.doubts = 0;
            return Heard::OnBeat;
        }
        Self::first(this, care, now, data)
    }

    fn first(this: &mut Kind<D>, care: Care, now: i64, data: impl FnOnce() -> D) -> Heard {
        this.doubts = this.doubts.saturating_add(1);
        if care == Care::Great || this.doubts > DOUBTS_MAX {
            this.doubt = None;
            return Heard::OffBeat;
        }
        this.doubt = Some((now, data()));
        Heard::Doubt
    }

    /// The one that was silent longest goes, but for those in doubt.
    fn make_room(&mut self) {
        if self.kinds.len() < KINDS {
            return;
        }
        let silent = self.kinds.iter().enumerate().min_by_key(|(_, k)| (k.doubt.is_some(), k.last));
        if let Some(at) = silent.map(|(at, _)| at) {
            let Kind { kind, doubt, .. } = self.kinds.swap_remove(at);
            if let Some((at, data)) = doubt {
                self.evicted = Some(Doubt { at, kind, data });
            }
        }
    }

    /// A doubt of which no beat has come by `now`: it was a person's.
    pub fn overdue(&mut self, now: i64) -> Option<Doubt<D>> {
        if self.evicted.is_some() {
            return self.evicted.take();
        }
        self.kinds.iter_mut().find_map(|this| {
            let (at, _) = this.doubt.as_ref()?;
            if now < this.waits_until(*at) {
                return None;
            }
            let (at, data) = this.doubt.take()?;
            this.doubts = 0;
            Some(Doubt { at, kind: this.kind, data })
        })
    }

    /// Whether anything is in doubt.
    pub fn is_in_doubt(&self) -> bool {
        self.evicted.is_some() || self.kinds.iter().any(|this| this.doubt.is_some())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hear(beats: &mut Beats<()>, at: i64) -> Heard {
        beats.hear(1, Care::Usual, at, || ())
    }

    #[test]
    fn one_alone_is_a_persons_after_a_while() {
        let mut beats = Beats::default();
        assert_eq!(hear(&mut beats, 1000), Heard::Doubt);
        assert_eq!(beats.overdue(30_000), None);
        assert!(beats.is_in_doubt());
        assert_eq!(beats.overdue(70_000), Some(Doubt { at: 1000, kind: 1, data: () }));
        assert!(!beats.is_in_doubt());
    }

    #[test]
    fn a_beat_that_a_hidden_tab_slows_stays_a_beat() {
        let mut beats = Beats::default();
        let mut at = 0;
        for gap in [2000, 2000, 2000, 2010, 2000, 3000, 2000, 3004, 4001, 3000, 3000, 2000] {
            at += gap;
            assert_ne!(hear(&mut beats, at), Heard::OffBeat);
        }
        // Chromium's intensive throttling: once a minute.
        for _ in 0..10 {
            at += 60_000;
            assert_ne!(hear(&mut beats, at), Heard::OffBeat);
            assert_eq!(beats.overdue(at + 59_000), None);
        }
        assert_eq!(hear(&mut beats, at + 60_000), Heard::OnBeat);
    }

    #[test]
    fn who_comes_back_hours_later_is_a_person() {
        let mut beats = Beats::default();
        for beat in 0..20 {
            hear(&mut beats, beat * 2000);
        }
        assert_eq!(hear(&mut beats, 9_000_000), Heard::Doubt);
        assert!(beats.overdue(9_100_000).is_some());
    }

    #[test]
    fn what_looks_like_a_person_counts_until_the_beat_is_sure() {
        let mut beats = Beats::default();
        let heard: Vec<_> =
            (0..12).map(|beat| beats.hear(1, Care::Great, beat * 5000, || ())).collect();
        assert_eq!(heard[..7], [Heard::OffBeat; 7]);
        assert_eq!(heard[8..], [Heard::OnBeat; 4]);
    }

    proptest! {
        #[test]
        fn a_regular_beat_is_never_a_person_once_learnt(
            period in prop_oneof![150i64..60_000, 60_000i64..PERIOD_MAX],
            count in 5usize..200,
            start in 0i64..1_000_000_000,
        ) {
            let mut beats = Beats::default();
            for beat in 0..count {
                let at = start + period * beat as i64;
                let heard = hear(&mut beats, at);
                prop_assert!(heard != Heard::OffBeat);
                if beat >= 3 {
                    prop_assert_eq!(heard, Heard::OnBeat);
                }
                let overdue = beats.overdue(at + period);
                prop_assert!(overdue.is_none() || beat < 3 && period > 60_000);
            }
        }

        #[test]
        fn a_single_one_off_the_beat_is_a_person(
            period in 600i64..60_000,
            beats_before in 6i64..50,
            off in 0.22f64..0.85,
        ) {
            let mut beats = Beats::default();
            for beat in 0..beats_before {
                hear(&mut beats, period * beat);
            }
            let at = period * (beats_before - 1) + (period as f64 * off) as i64;
            prop_assert_eq!(hear(&mut beats, at), Heard::OffBeat);
            for beat in beats_before..beats_before + 5 {
                prop_assert_eq!(hear(&mut beats, period * beat), Heard::OnBeat);
            }
        }

        #[test]
        fn memory_is_bounded(kinds in prop::collection::vec(any::<u64>(), 0..200)) {
            let mut beats = Beats::default();
            for (at, kind) in kinds.into_iter().enumerate() {
                beats.hear(kind, Care::Usual, at as i64, || ());
                prop_assert!(beats.kinds.len() <= KINDS);
            }
        }
    }
}
