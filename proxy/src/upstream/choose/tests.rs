use std::sync::Arc;

use domain::{
    access::AccessPolicy,
    activity::Tracker,
    endpoint::{EndpointSpec, FAILURES_MAX, Serving},
    identity::{Credential, CredentialKind, Identity},
    route::{Route, RouteSpec, RouteTable, State},
    workload::{Protocol, WorkloadKind, WorkloadRef},
};
use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1000);

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n as u8], 80))
}

fn spec(n: usize) -> EndpointSpec {
    address(n).into()
}

/// Only a grant hands out endpoints.
fn endpoints(specs: Vec<EndpointSpec>) -> Vec<Endpoint> {
    let workload = WorkloadRef {
        kind: WorkloadKind::App,
        project: "team".parse().unwrap(),
        name: "web".parse().unwrap(),
    };
    let spec = RouteSpec {
        host: "web--team.localhost".to_owned(),
        access: AccessPolicy { everyone: true, ..Default::default() },
        state: State::Running,
        endpoints: specs,
        routing: Default::default(),
        protocol: Protocol::Http,
        wake_hold: Duration::from_secs(60),
        traffic: Default::default(),
        agent: None,
        workload: workload.clone(),
    };
    let route = Arc::new(Route::new(spec, Tracker::new().cell(&workload), None));
    let table = RouteTable::new([route]);
    let identity = Identity {
        subject: "alice".to_owned(),
        user: "alice".parse().unwrap(),
        email: None,
        groups: Vec::new(),
        credential: Credential {
            kind: CredentialKind::SshKey,
            id: "k".to_owned(),
            session: None,
            expires_at: jiff::Timestamp::MAX,
            scopes: Vec::new(),
            workload: None,
        },
    };
    let target = domain::access::Target::Host("web--team.localhost");
    let grant = domain::access::authorize(&table, &Arc::new(identity), target);
    grant.unwrap().endpoints().to_vec()
}

fn eject(endpoint: &Endpoint) {
    for _ in 0..FAILURES_MAX {
        endpoint.load().begin(NOW).failed(NOW);
    }
}

fn wish(tried: &Tried) -> Wish<'_> {
    Wish { side: None, tried }
}

fn all_chosen(endpoints: &[Endpoint], wish: Wish<'_>) -> Vec<SocketAddr> {
    let mut chosen: Vec<_> = (0..400)
        .map(|_| choose(endpoints, wish, NOW, |n| rand::random_range(0..n)).unwrap().address())
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

#[test]
fn draining_pods_get_nothing_new() {
    let draining = EndpointSpec { serving: Serving::Draining, ..spec(1) };
    let two = endpoints(vec![draining.clone(), spec(2)]);
    assert_eq!(all_chosen(&two, wish(&Tried::default())), [address(2)]);
    let one = endpoints(vec![draining]);
    assert!(choose(&one, wish(&Tried::default()), NOW, |_| 0).is_none());
}

#[test]
fn ejected_ones_are_left_alone_unless_all_are() {
    let three = endpoints(vec![spec(1), spec(2), spec(3)]);
    eject(&three[0]);
    assert_eq!(all_chosen(&three, wish(&Tried::default())), [address(2), address(3)]);
    eject(&three[1]);
    eject(&three[2]);
    assert_eq!(all_chosen(&three, wish(&Tried::default())).len(), 3);
}

#[test]
fn a_retry_goes_elsewhere_if_there_is_elsewhere() {
    let two = endpoints(vec![spec(1), spec(2)]);
    let mut tried = Tried::default();
    tried.add(address(1));
    assert_eq!(all_chosen(&two, wish(&tried)), [address(2)]);
    tried.add(address(2));
    assert_eq!(all_chosen(&two, wish(&tried)).len(), 2);
}

#[test]
fn an_ejected_pod_is_probed_when_its_time_is_over() {
    let two = endpoints(vec![spec(1), spec(2)]);
    eject(&two[0]);
    let later = NOW + domain::endpoint::EJECTION;
    let tried = Tried::default();
    let _busy: Vec<_> = (0..3).map(|_| two[1].load().begin(later)).collect();
    let probed = choose(&two, wish(&tried), later, |_| 0).unwrap();
    assert_eq!(probed.address(), address(1));
    let _probe = probed.load().begin(later);
    let next = choose(&two, wish(&tried), later, |_| 0).unwrap();
    assert_eq!(next.address(), address(2), "one probe at a time");
}

#[test]
fn each_side_of_a_canary_keeps_to_its_own_pods_while_it_has_any() {
    let canary = EndpointSpec { revision: Revision::Canary, ..spec(9) };
    let all = endpoints(vec![spec(1), spec(2), canary]);
    let tried = Tried::default();
    let on = |side| Wish { side: Some(side), tried: &tried };
    assert_eq!(all_chosen(&all, on(Revision::Canary)), [address(9)]);
    assert_eq!(all_chosen(&all, on(Revision::Stable)), [address(1), address(2)]);
    eject(&all[2]);
    assert_eq!(all_chosen(&all, on(Revision::Canary)), [address(1), address(2)]);
}

#[test]
fn people_are_shared_out_by_weight_and_a_growing_weight_sends_nobody_back() {
    let people: Vec<_> = (0..10_000).map(|n| format!("user-{n}")).collect();
    let canaries = |weight| -> Vec<bool> {
        people.iter().map(|p| side(p, "web--team.localhost", weight) == Revision::Canary).collect()
    };
    let count = |weight| canaries(weight).iter().filter(|c| **c).count();
    assert_eq!((count(0), count(100)), (0, 10_000));
    assert!((800..1200).contains(&count(10)), "{}", count(10));
    let (ten, thirty) = (canaries(10), canaries(30));
    assert!(ten.iter().zip(&thirty).all(|(before, after)| !before || *after));
}

proptest! {
    #[test]
    fn a_choice_is_ready_and_of_two_the_less_busy(
        loads in prop::collection::vec((0..5usize, any::<bool>(), any::<bool>()), 0..12),
        picks in (any::<usize>(), any::<usize>()),
    ) {
        let specs = loads.iter().enumerate().map(|(n, (_, ready, _))| EndpointSpec {
            serving: if *ready { Serving::Ready } else { Serving::Draining },
            ..spec(n)
        });
        let endpoints = endpoints(specs.collect());
        let mut open = Vec::new();
        for (endpoint, (busy, _, ejected)) in endpoints.iter().zip(&loads) {
            if *ejected {
                eject(endpoint);
            }
            open.extend((0..*busy).map(|_| endpoint.load().begin(NOW)));
        }
        let tried = Tried::default();
        let mut random = [picks.0, picks.1].into_iter();
        let chosen = choose(&endpoints, wish(&tried), NOW, |n| random.next().unwrap() % n);
        let ready: Vec<_> = endpoints.iter().filter(|e| e.is_ready()).collect();
        prop_assert_eq!(chosen.is_some(), !ready.is_empty());
        let Some(chosen) = chosen else { return Ok(()) };
        prop_assert!(chosen.is_ready());
        let good: Vec<_> =
            ready.iter().filter(|e| e.load().standing(NOW) == Standing::Good).collect();
        if !good.is_empty() {
            prop_assert_eq!(chosen.load().standing(NOW), Standing::Good);
        }
        let busiest = good.iter().map(|e| e.load().outstanding()).max();
        let alone = good.iter().filter(|e| Some(e.load().outstanding()) == busiest).count() == 1;
        if good.len() > 1 && alone {
            prop_assert!(Some(chosen.load().outstanding()) < busiest, "two were compared");
        }
    }
}

#[test]
fn a_side_that_has_nobody_to_offer_moves_no_browser_from_the_pod_it_is_used_to() {
    let stable = endpoints(vec![spec(1), spec(2)]);
    let tried = Tried::default();
    let wish = Wish { side: Some(Revision::Canary), tried: &tried };
    assert!(!wish.keeps(&stable[0], NOW));
    assert!(wish.attainable(&stable, NOW).keeps(&stable[0], NOW));
    let canary = EndpointSpec { revision: Revision::Canary, ..spec(3) };
    let both = endpoints(vec![spec(1), canary]);
    assert!(!wish.attainable(&both, NOW).keeps(&both[0], NOW));
    assert!(wish.attainable(&both, NOW).keeps(&both[1], NOW));
}
