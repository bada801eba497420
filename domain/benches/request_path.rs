//! What each request costs in `domain`: `cargo bench -p dormouse-domain`.

use std::{hint::black_box, net::SocketAddr, sync::Arc, time::Duration};

use divan::Bencher;
use domain::{
    access::{self, AccessPolicy, Grant, Target},
    activity::{How, Tracker},
    classify::{self, From, Name, Reader, Request, Socket, Workload},
    identity::{Credential, CredentialKind, Identity, USE},
    route::{Route, RouteSpec, RouteTable, State},
    token::{Expected, KeySet, TYP, Verifier},
    traffic::Traffic,
    upstream::Routing,
    workload::{Protocol, WorkloadKind, WorkloadRef},
};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::json;

const KEY: &[u8] = include_bytes!("../src/token/test_key.pem");
const ISSUER: &str = "https://auth.example";
const AUDIENCE: &str = "dormouse";
const ROUTES: usize = 10_000;

fn main() {
    divan::main();
}

fn parsed<T>(text: &str) -> T
where
    T: std::str::FromStr<Err: std::fmt::Debug>,
{
    text.parse().expect("a constant")
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a constant")
}

/// A verifier, and so many tokens that it has seen already.
fn verifier(tokens: usize) -> (Verifier, Vec<String>) {
    let key = EncodingKey::from_rsa_pem(KEY).expect("the test key");
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).expect("the test key");
    jwk.common.key_id = Some("k1".to_owned());
    let keys = json!({ "keys": [jwk] }).to_string();
    let expected = Expected {
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        leeway: Duration::from_secs(30),
    };
    let verifier = Verifier::new(expected, 20_000);
    verifier.set_keys(KeySet::from_json(keys.as_bytes()).expect("a key set"));
    let mut header = Header::new(Algorithm::RS256);
    header.typ = Some(TYP.to_owned());
    header.kid = Some("k1".to_owned());
    let second = now().as_second();
    let token = |number: usize| {
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": format!("sub-{number}"), "exp": second + 600,
            "nbf": second, "iat": second, "jti": format!("jti-{number}"), "client_id": "gate",
            "sid": format!("session-{number}"), "scope": "openid profile email groups workload:use",
            "kind": "session", "preferred_username": "alice", "email": "alice@example.com",
            "groups": ["research", "ml-engineers"],
        });
        let token = encode(&header, &claims, &key).expect("signing");
        verifier.verify(&token, now()).expect("a good token");
        token
    };
    let tokens = (0..tokens).map(token).collect();
    (verifier, tokens)
}

fn alice() -> Arc<Identity> {
    Arc::new(Identity {
        subject: "sub-alice".to_owned(),
        user: parsed("alice"),
        email: None,
        groups: vec!["research".to_owned()],
        credential: Credential {
            kind: CredentialKind::AccessToken,
            id: "jti".to_owned(),
            session: None,
            expires_at: Timestamp::MAX,
            scopes: vec![USE.to_owned()],
            workload: None,
        },
    })
}

fn table(tracker: &Tracker) -> RouteTable {
    RouteTable::new((0..ROUTES).map(|number| {
        let workload = WorkloadRef {
            kind: WorkloadKind::Workspace,
            project: parsed("alice"),
            name: parsed(&format!("lab-{number}")),
        };
        let cell = tracker.cell(&workload);
        let spec = RouteSpec {
            host: format!("{}.ml.example.com", workload.host_label()),
            access: AccessPolicy { owner: Some(parsed("alice")), ..Default::default() },
            state: State::Running,
            endpoints: vec![parsed::<SocketAddr>("10.0.0.1:8888").into()],
            routing: Routing::default(),
            protocol: Protocol::Jupyter,
            wake_hold: Duration::from_secs(60),
            traffic: Traffic::default(),
            agent: None,
            workload,
        };
        Arc::new(Route::new(spec, cell, None))
    }))
}

fn grant(tracker: &Tracker) -> Grant {
    let host = Target::Host("lab-77--alice.ml.example.com");
    access::authorize(&table(tracker), &alice(), host).expect("her own")
}

/// Calls that are timed together: one alone takes about as long as reading the clock.
const SAMPLE: u32 = 1000;

#[divan::bench(args = [1, 1000])]
fn token_seen_before(bencher: Bencher<'_, '_>, tokens: usize) {
    let (verifier, tokens) = verifier(tokens);
    let mut turn = tokens.iter().cycle();
    bencher.bench_local(move || {
        let token = turn.next().map_or("", String::as_str);
        verifier.verify(black_box(token), now())
    });
}

/// Of 10,000 routes, with the decision on access.
#[divan::bench]
fn route_and_access(bencher: Bencher<'_, '_>) {
    let table = table(&Tracker::new());
    let alice = alice();
    bencher.bench_local(|| {
        access::authorize(&table, &alice, Target::Host(black_box("lab-77--alice.ml.example.com")))
    });
}

/// Of the same person, as most are.
#[divan::bench(sample_size = SAMPLE)]
fn activity_recorded(bencher: Bencher<'_, '_>) {
    let tracker = Tracker::new();
    let guard = grant(&tracker).begin(How::WebSocket);
    let mut at = now().as_millisecond();
    bencher.bench_local(|| {
        at += 1;
        guard.person("worked with a kernel", Timestamp::from_millisecond(at).unwrap_or_default());
    });
}

/// The same within one millisecond, as under load.
#[divan::bench(sample_size = SAMPLE)]
fn activity_recorded_again(bencher: Bencher<'_, '_>) {
    let tracker = Tracker::new();
    let guard = grant(&tracker).begin(How::WebSocket);
    bencher.bench_local(|| guard.person("worked with a kernel", black_box(now())));
}

/// An exchange that begins, counts as a person's, and ends.
#[divan::bench(sample_size = SAMPLE)]
fn activity_of_a_request(bencher: Bencher<'_, '_>) {
    let tracker = Tracker::new();
    let grant = grant(&tracker);
    let mut at = now().as_millisecond();
    bencher.bench_local(|| {
        at += 1;
        let at = Timestamp::from_millisecond(at).unwrap_or_default();
        grant.begin(How::Http).person_until_dropped("opened a page", at);
    });
}

/// Two people take turns on one workload.
#[divan::bench(sample_size = SAMPLE)]
fn activity_of_two_people(bencher: Bencher<'_, '_>) {
    let tracker = Tracker::new();
    let grant = grant(&tracker);
    let (one, other) = (grant.begin(How::WebSocket), grant.begin(How::Http));
    let mut at = now().as_millisecond();
    bencher.bench_local(|| {
        at += 1;
        let guard = if at % 2 == 0 { &one } else { &other };
        guard.person("worked with a kernel", Timestamp::from_millisecond(at).unwrap_or_default());
    });
}

/// With the judge, as in the gate: one that no rule knows, of a page that polls.
#[divan::bench(args = ["GET /api/kernels", "POST /api/contents/a/b.ipynb/checkpoints", "POST /graphql"], sample_size = SAMPLE)]
fn classify_a_request(bencher: Bencher<'_, '_>, line: &str) {
    let (method, path) = line.split_once(' ').unwrap_or_default();
    let request = Request { method, path, query: "a=b", dest: Some("empty"), ..Request::default() };
    let (mut workload, mut now) = (Workload::default(), 0);
    bencher.bench_local(|| {
        now += 2000;
        match classify::request::read(Protocol::Jupyter, black_box(&request)) {
            classify::Read::Whole(name) => workload.judge(name, None, now, || ()),
            classify::Read::Body(_, name) => workload.judge(name, None, now, || ()),
        }
    });
}

fn classify_messages(bencher: Bencher<'_, '_>, path: &str, subprotocol: &str, messages: &[&[u8]]) {
    let mut reader = Reader::new(Protocol::Http, path, "", subprotocol);
    let (mut workload, mut socket, mut now) = (Workload::default(), Socket::new(0), 100_000);
    let mut turn = messages.iter().cycle();
    bencher.bench_local(|| {
        now += 2000;
        let message = turn.next().copied().unwrap_or_default();
        let name = reader.message(From::Client, 1, black_box(message));
        workload.judge(name, Some(&mut socket), now, || ())
    });
}

/// A kernel's message whose type stands at the end of what is looked at.
#[divan::bench(args = [128, 1024], sample_size = SAMPLE)]
fn classify_a_kernel_message(bencher: Bencher<'_, '_>, length: usize) {
    let mut message = br#"{"buffers":[],"channel":"shell","content":{"code":""#.to_vec();
    let end = br#""},"header":{"msg_type":"execute_request"}}"#;
    message.resize(length - end.len(), b'x');
    message.extend_from_slice(end);
    classify_messages(bencher, "/api/kernels/a/channels", "", &[&message]);
}

#[divan::bench(sample_size = SAMPLE)]
fn classify_a_key_in_a_terminal(bencher: Bencher<'_, '_>) {
    classify_messages(bencher, "/terminals/websocket/1", "", &[br#"["stdin","l"]"#]);
}

#[divan::bench(sample_size = SAMPLE)]
fn classify_socket_io(bencher: Bencher<'_, '_>) {
    let messages: [&[u8]; 2] = [b"3", br#"42["ack",{"client_id":"a","next_message_id":7}]"#];
    classify_messages(bencher, "/socket.io/", "", &messages);
}

/// A slider that a player moves: three frames each.
#[divan::bench(sample_size = SAMPLE)]
fn classify_bokeh(bencher: Bencher<'_, '_>) {
    let messages: [&[u8]; 3] = [
        br#"{"msgid":"1","msgtype":"PATCH-DOC"}"#,
        b"{}",
        br#"{"events":[{"kind":"ModelChanged","model":{"id":"p1"},"attr":"value","new":7}]}"#,
    ];
    classify_messages(bencher, "/app/ws", "bokeh", &messages);
}

#[divan::bench(sample_size = SAMPLE)]
fn classify_what_nobody_knows(bencher: Bencher<'_, '_>) {
    let message = br#"{"id":7,"do":"something","with":"an argument that is not looked at"}"#;
    classify_messages(bencher, "/live", "", &[message]);
}

/// Typing: a header of 13 bytes, and the call.
#[divan::bench(sample_size = SAMPLE)]
fn classify_vs_code(bencher: Bencher<'_, '_>) {
    let mut message = vec![1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 40];
    message.extend_from_slice(b"\x05\0\0\0\x07\x12$acceptModelChanged");
    message.resize(13 + 40, b' ');
    let mut reader = Reader::new(Protocol::VsCode, "/stable", "", "");
    let (mut workload, mut socket) = (Workload::default(), Socket::new(0));
    bencher.bench_local(|| {
        reader.part(From::Client, black_box(&message), |name: Name| {
            black_box(workload.judge(name, Some(&mut socket), 100_000, || ()));
        });
    });
}
