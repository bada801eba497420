use proptest::prelude::*;

use super::*;
use crate::tls::certificate::tests::certificate;

const DAY: i64 = 24 * 3600;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn wanted(configured: &[&str], on_demand: &[&str]) -> Wanted {
    Wanted { configured: set(configured), on_demand: set(on_demand), on_demand_per_hour: 2 }
}

fn order(name: &str) -> Next {
    Next::Order(name.to_owned())
}

#[test]
fn configured_names_first_then_what_is_due_for_longest() {
    let wanted = wanted(&["b.test", "a.test"], &["lab.test"]);
    let all = [
        (Source::Acme, certificate("a.test", &["a.test"], 0, 90 * DAY)),
        (Source::Acme, certificate("b.test", &["b.test"], 10 * DAY, 100 * DAY)),
    ];
    let attempts = Attempts::default();
    let have = |day: i64| Have::new(&all, at(day * DAY));
    assert_eq!(next(&wanted, &have(20), &attempts, at(20 * DAY)), order("lab.test"));
    assert_eq!(next(&wanted, &have(75), &attempts, at(75 * DAY)), order("a.test"));
    let none = Have::new(&[], at(0));
    assert_eq!(next(&wanted, &none, &attempts, at(0)), order("a.test"));
}

#[test]
fn renewal_is_due_at_a_third_of_the_life() {
    let wanted = wanted(&["a.test"], &[]);
    let all = [(Source::Acme, certificate("a.test", &["a.test"], 0, 90 * DAY))];
    let have = Have::new(&all, at(0));
    let Next::Wait(Some(when)) = next(&wanted, &have, &Attempts::default(), at(0)) else {
        panic!("ordered too early");
    };
    assert!(when >= at(57 * DAY) && when <= at(60 * DAY), "{when}");
    assert_eq!(next(&wanted, &have, &Attempts::default(), when), order("a.test"));
}

#[test]
fn what_another_source_has_is_not_ordered_before_that_ends() {
    let wanted = wanted(&["auth.test.org"], &["lab.test.org", "a.b.test.org"]);
    let all = [(Source::Secrets, certificate("ns/wild", &["*.test.org"], 0, 90 * DAY))];
    let now = at(DAY);
    assert_eq!(
        next(&wanted, &Have::new(&all, now), &Attempts::default(), now),
        order("a.b.test.org"),
        "a wildcard stands for one label"
    );
    // While there is still time: whoever should have renewed it has not.
    let now = at(76 * DAY);
    assert_eq!(
        next(&wanted, &Have::new(&all, now), &Attempts::default(), now),
        order("auth.test.org")
    );
}

#[test]
fn a_name_that_files_do_not_cover_any_more_is_ordered_at_once() {
    let wanted = wanted(&["a.test"], &[]);
    let year = (Source::Files, certificate("f", &["a.test"], 0, 365 * DAY));
    let old = (Source::Acme, certificate("a.test", &["a.test"], 0, 90 * DAY));
    let now = at(100 * DAY);
    let next = |all: &[_]| next(&wanted, &Have::new(all, now), &Attempts::default(), now);
    for all in [vec![year.clone()], vec![year, old.clone()]] {
        assert_eq!(next(&all), Next::Wait(Some(at(351 * DAY))));
    }
    assert_eq!(next(&[]), order("a.test"));
    assert_eq!(next(&[old]), order("a.test"));
}

#[test]
fn nothing_new_is_ordered_before_it_is_known_what_others_have() {
    let wanted = wanted(&["a.test", "b.test"], &["lab.test"]);
    let all = [(Source::Acme, certificate("b.test", &["b.test"], 0, 90 * DAY))];
    let now = at(80 * DAY);
    let next = |known: bool| {
        let have = Have::new(&all, now).others_known(known);
        next(&wanted, &have, &Attempts::default(), now)
    };
    assert_eq!(next(false), order("b.test"), "renewals go on");
    assert_eq!(next(true), order("a.test"));
    let none = Have::new(&[], now).others_known(false);
    assert_eq!(super::next(&wanted, &none, &Attempts::default(), now), Next::Wait(None));
}

#[test]
fn attack_24_new_hosts_are_bounded_per_hour() {
    let wanted = wanted(&["auth.test"], &["a.test", "b.test", "c.test"]);
    let have = Have::new(&[], at(0));
    let mut attempts = Attempts::default();
    let mut ordered = Vec::new();
    for second in 0..5 {
        if let Next::Order(name) = next(&wanted, &have, &attempts, at(second)) {
            attempts.begin(&name, &wanted, &have, at(second));
            attempts.failed(&name, "no".to_owned(), true, 0.5, at(second));
            ordered.push(name);
        }
    }
    assert_eq!(ordered, ["auth.test", "a.test", "b.test"]);
    // Once the first is an hour old there is room again; failures wait for their own time.
    attempts.failures.clear();
    assert_eq!(next(&wanted, &have, &attempts, at(3600)), order("auth.test"));
    attempts.failed("auth.test", "no".to_owned(), true, 0.5, at(3600));
    assert_eq!(next(&wanted, &have, &attempts, at(3600)), Next::Wait(Some(at(3601))));
    assert_eq!(next(&wanted, &have, &attempts, at(3601)), order("a.test"));
}

#[test]
fn none_on_demand_when_none_is_allowed() {
    let mut wanted = wanted(&[], &["a.test"]);
    wanted.on_demand_per_hour = 0;
    let none = next(&wanted, &Have::new(&[], at(0)), &Attempts::default(), at(0));
    assert_eq!(none, Next::Wait(None));
}

#[test]
fn failures_wait_longer_each_time_and_are_told() {
    let wanted = wanted(&["a.test"], &[]);
    let have = Have::new(&[], at(0));
    let mut attempts = Attempts::default();
    let (mut now, mut waits) = (at(0), Vec::new());
    for _ in 0..10 {
        attempts.failed("a.test", "unreachable".to_owned(), true, 0.5, now);
        let Next::Wait(Some(until)) = next(&wanted, &have, &attempts, now) else {
            panic!("tried again at once");
        };
        waits.push(until.duration_since(now).as_secs());
        now = until;
        assert_eq!(next(&wanted, &have, &attempts, now), order("a.test"));
    }
    assert_eq!(waits[..4], [300, 600, 1200, 2400]);
    assert_eq!(waits[9], 12 * 3600);
    assert!(attempts.faults()[0].contains("a.test could not be ordered, again and again"));
    attempts.succeeded("a.test");
    assert!(attempts.faults().is_empty());
    // A bad moment of the authority's is tried again sooner.
    attempts.failed("a.test", "no".to_owned(), false, 0.5, at(0));
    let soon = Next::Wait(Some(at(30)));
    assert_eq!(next(&wanted, &have, &attempts, at(0)), soon);
}

#[test]
fn a_rate_limit_is_kept_to() {
    let wanted = wanted(&["a.test", "b.test"], &[]);
    let have = Have::new(&[], at(0));
    let mut attempts = Attempts::default();
    let day = SignedDuration::from_hours(24);
    attempts.rate_limited("a.test", "too many".to_owned(), Some(day), at(0));
    assert_eq!(next(&wanted, &have, &attempts, at(3599)), Next::Wait(Some(at(3600))));
    assert_eq!(next(&wanted, &have, &attempts, at(3600)), order("b.test"));
    attempts.failed("b.test", "no".to_owned(), true, 0.5, at(DAY - 1));
    assert_eq!(next(&wanted, &have, &attempts, at(DAY - 1)), Next::Wait(Some(at(DAY))));
    assert_eq!(next(&wanted, &have, &attempts, at(DAY)), order("a.test"));
    let text = serde_json::to_string(&attempts).unwrap();
    assert_eq!(serde_json::from_str::<Attempts>(&text).unwrap(), attempts);
}

proptest! {
    #[test]
    fn nothing_is_ordered_before_its_time(
        failed_at in 0i64..10_000, spread in 0.0f64..1.0, again in 1usize..6, now in 0i64..100_000,
    ) {
        let wanted = wanted(&["a.test"], &[]);
        let mut attempts = Attempts::default();
        for _ in 0..again {
            attempts.failed("a.test", "no".to_owned(), true, spread, at(failed_at));
        }
        let earliest = failed_at + (300.0 * 0.8) as i64 * (1 << (again - 1));
        if next(&wanted, &Have::new(&[], at(now)), &attempts, at(now)) == order("a.test") {
            prop_assert!(now >= earliest);
        }
    }
}

#[test]
fn a_failure_is_forgotten_once_the_name_is_there_or_not_wanted() {
    let wanted = wanted(&["a.test", "b.test"], &[]);
    let mut attempts = Attempts::default();
    for name in ["a.test", "b.test", "gone.test"] {
        attempts.failed(name, "no".to_owned(), true, 0.5, at(0));
    }
    let all = [(Source::Files, certificate("f", &["a.test"], 0, 90 * DAY))];
    attempts.retain(&wanted, &Have::new(&all, at(1)), at(1));
    let faults = attempts.faults();
    assert!(faults.len() == 1 && faults[0].starts_with("b.test "), "{faults:?}");
}
