use domain::identity::{Credential, CredentialKind};

use super::*;

fn share(rate: u32, burst: u32, concurrent: u32) -> Share {
    Share {
        requests_per_second: Some(rate),
        burst: Some(burst),
        concurrent: Some(concurrent),
        body_bytes: None,
    }
}

fn identity(user: &str, token: &str) -> Identity {
    Identity {
        subject: user.to_owned(),
        user: user.parse().unwrap(),
        email: None,
        groups: Vec::new(),
        credential: Credential {
            kind: CredentialKind::PersonalAccessToken,
            id: token.to_owned(),
            session: None,
            expires_at: Timestamp::MAX,
            scopes: Vec::new(),
            workload: None,
        },
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn scope(refused: Result<Held, Refusal>) -> Option<Scope> {
    match refused {
        Ok(_) => None,
        Err(Refusal::TooMany(exceeded)) => Some(exceeded.scope()),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn each_person_and_each_token_has_its_own_share() {
    let shares = config::Limits {
        person: share(10, 3, 0),
        token: share(10, 2, 0),
        ..config::Limits::default()
    };
    let limits = Limits::new(&shares);
    let ask = |user, token| scope(limits.person(&identity(user, token), now()));
    assert_eq!(ask("alice", "a"), None);
    assert_eq!(ask("alice", "a"), None);
    assert_eq!(ask("alice", "a"), Some(Scope::Token));
    assert_eq!(ask("alice", "b"), Some(Scope::Person), "the refused one was alice's as well");
    assert_eq!(ask("bob", "c"), None);
}

#[test]
fn what_runs_is_counted_until_it_ends() {
    let limits =
        Limits::new(&config::Limits { person: share(0, 0, 2), ..config::Limits::default() });
    let alice = identity("alice", "a");
    let first = limits.person(&alice, now()).unwrap();
    let second = limits.person(&alice, now()).unwrap();
    assert_eq!(scope(limits.person(&alice, now())), Some(Scope::Person));
    assert!(first.fields.is_empty(), "nothing to say without a rate");
    drop(first);
    assert!(limits.person(&alice, now()).is_ok());
    drop(second);
}

#[test]
fn a_refused_request_gives_its_places_back() {
    let shares = config::Limits { person: share(1, 1, 2), ..config::Limits::default() };
    let limits = Limits::new(&shares);
    let alice = identity("alice", "a");
    let _first = limits.person(&alice, now()).unwrap();
    for _ in 0..5 {
        let refused = limits.person(&alice, now()).map(|_| ());
        let Err(Refusal::TooMany(Exceeded::Rate { .. })) = refused else {
            panic!("the place of a refused request was kept: {refused:?}")
        };
    }
}

#[test]
fn attack_24_an_address_that_floods_leaves_others_the_way_to_sign_in() {
    let shares = config::Limits {
        stranger: share(10, 20, 0),
        stranger_connection: share(1, 5, 0),
        ..config::Limits::default()
    };
    let limits = Limits::new(&shares);
    let from = |text: &str| text.parse::<SocketAddr>().unwrap();
    let ask = |errand, address: &str| scope(limits.stranger(errand, from(address), now()));
    // One connection spends its own share, and a part only of what its address has.
    for _ in 0..1000 {
        ask(Errand::SignIn, "192.0.2.1:1000");
    }
    assert_eq!(ask(Errand::SignIn, "192.0.2.1:1000"), Some(Scope::Connection));
    assert_eq!(ask(Errand::SignIn, "192.0.2.1:2000"), None, "somebody behind the same address");
    // Many connections spend the address's: for this errand.
    for port in 3000..4000 {
        ask(Errand::Other, &format!("192.0.2.1:{port}"));
    }
    assert_eq!(ask(Errand::Other, "192.0.2.1:4000"), Some(Scope::Address));
    assert_eq!(ask(Errand::SignIn, "192.0.2.1:4000"), None);
    assert_eq!(ask(Errand::Other, "192.0.2.2:4000"), None, "another address");
    // A whole /64 is one.
    for n in 0..100 {
        ask(Errand::Other, &format!("[2001:db8::{n:x}]:{}", 1000 + n));
    }
    assert_eq!(ask(Errand::Other, "[2001:db8::ffff]:1"), Some(Scope::Address));
    assert_eq!(ask(Errand::Other, "[2001:db8:0:1::1]:1"), None);
}

#[test]
fn what_is_left_is_said_in_the_form_of_the_draft() {
    let shares = config::Limits {
        person: share(10, 25, 0),
        token: share(4, 4, 0),
        ..config::Limits::default()
    };
    let held = Limits::new(&shares).person(&identity("alice", "a"), now()).unwrap();
    let expected = [
        ("RateLimit-Policy", r#""person";q=25;w=3, "token";q=4;w=1"#.to_owned()),
        ("RateLimit", r#""person";r=24;t=1, "token";r=3;t=1"#.to_owned()),
    ];
    assert_eq!(held.fields, expected);
    let rate = Rate::new(10, Some(25)).unwrap();
    let exceeded = Exceeded::Rate { scope: Scope::Route, rate, wait: 2 };
    assert_eq!(exceeded.fields()[1].1, r#""route";r=0;t=2"#);
}

#[test]
fn the_shortest_of_the_body_limits_holds() {
    let mut shares = config::Limits::default();
    shares.person.body_bytes = Some(100);
    shares.token.body_bytes = Some(50);
    let held = Limits::new(&shares).person(&identity("alice", "a"), now()).unwrap();
    let field = |value| [httparse::Header { name: "Content-Length", value }];
    let check = |value: &'static [u8]| {
        let fields = field(value);
        held.check_length(&Head { method: "POST", target: "/", authority: "a", fields: &fields })
    };
    assert_eq!(check(b"50"), Ok(()));
    assert_eq!(check(b"51"), Err(Refusal::BodyTooLarge(50)));
}
