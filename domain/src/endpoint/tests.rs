use proptest::prelude::*;

use super::*;

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn fail(load: &Arc<Load>, now: Duration) -> bool {
    load.begin(now).failed(now)
}

fn eject(load: &Arc<Load>, now: Duration) {
    for _ in 1..FAILURES_MAX {
        assert!(!fail(load, now));
    }
    assert!(fail(load, now));
}

#[test]
fn failures_in_a_row_eject_and_an_answer_between_them_does_not() {
    let load = Arc::<Load>::default();
    for _ in 0..10 {
        fail(&load, at(0));
        fail(&load, at(0));
        load.begin(at(0)).answered(at(0));
    }
    assert_eq!(load.standing(at(0)), Standing::Good);
    eject(&load, at(0));
    assert_eq!(load.standing(at(0)), Standing::Ejected(EJECTION));
}

#[test]
fn one_probe_at_a_time_readmits_or_ejects_for_longer() {
    let load = Arc::<Load>::default();
    eject(&load, at(0));
    assert_eq!(load.standing(at(1000)), Standing::HalfOpen);
    let mut probe = load.begin(at(1000));
    assert_eq!(load.standing(at(1000)), Standing::Probing);
    let mut other = load.begin(at(1000));
    assert!(!other.failed(at(1000)), "only the probe decides");
    assert!(probe.failed(at(1500)));
    drop(probe);
    assert_eq!(load.standing(at(1500)), Standing::Ejected(at(3500)), "two seconds");
    let mut probe = load.begin(at(3500));
    probe.answered(at(3500));
    assert_eq!(load.standing(at(3500)), Standing::Good);
}

#[test]
fn a_probe_that_its_client_left_leaves_room_for_the_next_one() {
    let load = Arc::<Load>::default();
    eject(&load, at(0));
    drop(load.begin(at(2000)));
    assert_eq!(load.standing(at(2000)), Standing::HalfOpen);
}

#[test]
fn a_probe_that_was_answered_and_lives_on_leaves_room_for_the_next_one() {
    let load = Arc::<Load>::default();
    eject(&load, at(0));
    let mut stream = load.begin(at(1000));
    stream.answered(at(1000));
    eject(&load, at(2000));
    assert_eq!(load.standing(at(60_000)), Standing::HalfOpen);
    drop((stream, load.begin(at(60_000))));
    assert_eq!(load.outstanding(), 0);
}

#[test]
fn ejections_grow_to_a_bound_and_are_forgiven() {
    let load = Arc::<Load>::default();
    eject(&load, at(0));
    let mut now = EJECTION;
    for _ in 0..40 {
        let mut probe = load.begin(now);
        assert!(probe.failed(now));
        drop(probe);
        let Standing::Ejected(until) = load.standing(now) else { panic!("not ejected") };
        assert!(until - now <= EJECTION_MAX);
        now = until;
    }
    load.begin(now).answered(now);
    let much_later = now + FORGIVEN_AFTER + at(1);
    load.begin(much_later).answered(much_later);
    eject(&load, much_later);
    let Standing::Ejected(until) = load.standing(much_later) else { panic!("not ejected") };
    assert_eq!(until - much_later, EJECTION);
}

#[test]
fn state_follows_the_pod_and_not_the_address() {
    let spec = |pod: &str| EndpointSpec {
        pod: Some(pod.to_owned()),
        ..SocketAddr::from(([10, 0, 0, 1], 80)).into()
    };
    let before = [Endpoint::new(spec("a"), &[])];
    let open = before[0].load().begin(at(0));
    assert_eq!(Endpoint::new(spec("a"), &before).load().outstanding(), 1);
    assert_eq!(Endpoint::new(spec("b"), &before).load().outstanding(), 0);
    drop(open);
    assert_eq!(before[0].load().outstanding(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Begin,
    Answer(usize),
    Fail(usize),
    Leave(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Begin),
        2 => (0..8usize).prop_map(Step::Answer),
        4 => (0..8usize).prop_map(Step::Fail),
        2 => (0..8usize).prop_map(Step::Leave),
        1 => (0..90_000u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_count_is_right_and_every_ejection_ends(steps in prop::collection::vec(step(), 0..200)) {
        let load = Arc::<Load>::default();
        let (mut now, mut open) = (at(0), Vec::new());
        for step in steps {
            match step {
                Step::Begin => open.push(load.begin(now)),
                Step::Wait(time) => now += at(time),
                Step::Answer(n) | Step::Fail(n) | Step::Leave(n) if n >= open.len() => {}
                Step::Answer(n) => open[n].answered(now),
                Step::Fail(n) => { open[n].failed(now); }
                Step::Leave(n) => drop(open.swap_remove(n)),
            }
            prop_assert_eq!(load.outstanding() as usize, open.len());
            if let Standing::Ejected(until) = load.standing(now) {
                prop_assert!(until > now && until <= now + EJECTION_MAX);
            }
        }
        // Of what is still open, only an exchange that nothing is known of may be a probe.
        open.retain(|open| open.told);
        let later = now + EJECTION_MAX;
        prop_assert!(matches!(load.standing(later), Standing::Good | Standing::HalfOpen));
        load.begin(later).answered(later);
        prop_assert_eq!(load.standing(later), Standing::Good);
    }
}
