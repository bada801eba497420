//! On a paused clock, against a Lease that is kept in memory.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// One Lease, as an API server keeps it.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    lease: Option<Value>,
    version: u64,
    /// By the number of a client: what it is answered instead.
    cut_off: [bool; 2],
}

impl Server {
    fn client(&self, number: usize) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let method = request.method().as_str().to_owned();
                let body = request.into_body().collect_bytes().await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                if server.0.lock().unwrap().cut_off[number] {
                    std::future::pending::<()>().await;
                }
                let (code, body) = server.answer(&method, body);
                let body = serde_json::to_vec(&body).unwrap();
                Ok::<_, Infallible>(
                    Response::builder().status(code).body(Body::from(body)).unwrap(),
                )
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, method: &str, mut body: Value) -> (u16, Value) {
        let mut inner = self.0.lock().unwrap();
        let status = |code: u16| {
            let reason = if code == 404 { "NotFound" } else { "Conflict" };
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": reason, "code": code}),
            )
        };
        let is = inner.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        match (method, is) {
            ("GET", None) => return status(404),
            ("GET", Some(_)) => return (200, inner.lease.clone().unwrap()),
            ("POST", Some(_)) => return status(409),
            ("PUT", is) if is.as_ref() != Some(&body["metadata"]["resourceVersion"]) => {
                return status(409);
            }
            _ => {}
        }
        inner.version += 1;
        body["metadata"]["resourceVersion"] = json!(inner.version.to_string());
        body["metadata"]["uid"] = json!("u1");
        inner.lease = Some(body.clone());
        (200, body)
    }

    fn cut_off(&self, number: usize) {
        self.0.lock().unwrap().cut_off[number] = true;
    }

    fn holder(&self) -> Option<String> {
        let inner = self.0.lock().unwrap();
        inner.lease.as_ref()?["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }

    fn claim(&self, number: usize) -> Claim {
        Claim {
            client: self.client(number),
            namespace: "default".to_owned(),
            scope: Scope::default(),
            holder: ["a", "b"][number].to_owned(),
            timing: Timing::USUAL,
        }
    }
}

async fn acquire(claim: &Claim) -> Term {
    let acquired = claim.acquire(|waiting| {
        assert!(matches!(waiting, Waiting::For(_)), "{waiting:?}");
        ControlFlow::<Infallible>::Continue(())
    });
    acquired.await.unwrap_or_else(|never| match never {})
}

#[tokio::test(start_paused = true)]
async fn a_second_one_waits_for_as_long_as_the_first_lives_and_starts_when_it_ends() {
    let server = Server::default();
    let first = acquire(&server.claim(0)).await;
    let claim = server.claim(1);
    assert!(timeout(Duration::from_secs(3600), acquire(&claim)).await.is_err());
    assert!(first.held().now(), "it was renewed for an hour");
    first.release().await;
    assert_eq!(server.holder(), None);
    let second = timeout(Duration::from_millis(1), acquire(&claim)).await.unwrap();
    assert!(second.held().now());
    assert_eq!(server.holder().as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_cut_off_has_stopped_when_the_next_one_starts() {
    let server = Server::default();
    let first = acquire(&server.claim(0)).await;
    let held = first.held();
    server.cut_off(0);
    let cut_off = Instant::now();
    let lost = tokio::spawn(async move { (held.lost().await, Instant::now()) });
    let second = acquire(&server.claim(1)).await;
    let (started, (why, stopped)) = (Instant::now(), lost.await.unwrap());
    assert!(second.held().now() && !first.held().now());
    assert!(stopped <= cut_off + Duration::from_secs(10) && stopped < started);
    assert!(started <= cut_off + Duration::from_secs(17));
    assert!(why.to_string().contains("could not be renewed in time: no answer"), "{why}");
    assert_eq!(why.lease, "default/dormouse-controller");
    // Its end changes nothing of what is another's by now.
    first.release().await;
    assert_eq!(server.holder().as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_suspended_does_not_hold_it_when_it_wakes() {
    let server = Server::default();
    let first = acquire(&server.claim(0)).await;
    let held = first.held();
    // No task of it has run since.
    tokio::time::advance(Duration::from_secs(11)).await;
    assert!(!held.now());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_deleted_or_written_by_others_is_noticed() {
    let server = Server::default();
    let first = acquire(&server.claim(0)).await;
    server.0.lock().unwrap().lease = None;
    sleep(Duration::from_secs(5)).await;
    assert!(first.held().now() && server.holder().as_deref() == Some("a"), "it was made anew");
    server.0.lock().unwrap().lease.as_mut().unwrap()["spec"]["holderIdentity"] = json!("c");
    let why = first.held().lost().await;
    assert_eq!(why.why, "c holds it");
    assert!(!first.held().now());
}

#[tokio::test(start_paused = true)]
async fn one_that_lives_is_told_from_one_that_is_dead() {
    let server = Server::default();
    let first = acquire(&server.claim(0)).await;
    let unless_alive = |waiting: &Waiting| match waiting {
        Waiting::For(by) if by.alive => ControlFlow::Break(by.clone()),
        _ => ControlFlow::Continue(()),
    };
    let claim = server.claim(1);
    let by = claim.acquire(unless_alive).await.unwrap_err();
    assert_eq!(by.holder, "a");
    assert!(by.since.is_some());
    server.cut_off(0);
    assert!(claim.acquire(unless_alive).await.is_ok(), "a dead one is waited for");
    drop(first);
}

#[tokio::test]
async fn each_scope_has_a_lease_of_its_own() {
    let mut claim = Server::default().claim(0);
    assert_eq!(claim.name(), "dormouse-controller");
    claim.scope = "dev-host".parse().unwrap();
    assert_eq!(claim.shown(), "default/dormouse-controller-dev-host");
}
