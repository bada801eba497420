//! Who gets in, with OpenSSH: tokens, registered keys, other people's workspaces, odd names.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    routing::get,
};
use serde_json::{Value, json};
use support::{World, key, openssh_is_here, run, text, token, token_with, write_private_key};

async fn hello(world: &World, user: &str, token: &str) -> (Option<i32>, String, String) {
    let mut command = world.openssh("ssh", token);
    command.args(["-o", "LogLevel=ERROR", "-l", user, "127.0.0.1", "echo hello"]);
    let output = run(command).await;
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_the_password_by_either_method() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    for method in ["password", "keyboard-interactive"] {
        let mut command = world.ssh(&["-o", &format!("PreferredAuthentications={method}")]);
        command.args(["lab@127.0.0.1", "echo hello"]);
        let output = run(command).await;
        assert_eq!(text(&output.stdout), "hello\n", "{method}: {}", text(&output.stderr));
    }
    let audit = world.audit();
    assert!(audit.contains(r#""who":"alice","did":"signed-in""#), "{audit}");
    assert!(audit.contains(r#""did":"opened","to":"Workspace alice/lab""#), "{audit}");
    assert!(!audit.contains(&token("alice")[..40]), "no secret in the audit log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_tokens_are_refused_and_leave_one_event_each() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let mut tampered = token("alice");
    let middle = tampered.len() / 2;
    let other = if tampered.as_bytes()[middle] == b'A' { "B" } else { "A" };
    tampered.replace_range(middle..=middle, other);
    let now = jiff::Timestamp::now().as_second();
    let expired = token_with("alice", |claims| claims["exp"] = json!(now - 60));
    let foreign = token_with("alice", |claims| claims["aud"] = json!("other"));
    for bad in [tampered.as_str(), &expired, &foreign, "", "alice", &"x".repeat(1000)] {
        let (code, out, errors) = hello(&world, "lab", bad).await;
        assert_eq!((code, out.as_str()), (Some(255), ""), "{bad}");
        assert!(errors.contains("Permission denied"), "{errors}");
    }
    // Written when the gateway has seen the end of the connection.
    let refused = || world.audit().matches(r#""did":"refused""#).count();
    while refused() < 6 {
        tokio::task::yield_now().await;
    }
    assert_eq!(refused(), 6, "{}", world.audit());
    assert_eq!(world.doing(), None, "attack_24: strangers are no activity");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_21_other_peoples_and_impossible_names_look_the_same() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let bob = token("bob");
    for user in ["lab", "lab.alice", "absent", "lab.bob", "nothing.nowhere"] {
        let (code, out, errors) = hello(&world, user, &bob).await;
        assert_eq!((code, out.as_str()), (Some(255), ""), "{user}");
        let expected = format!(
            "dormouse: no workspace \"{user}\" that you may use; \
             try ssh <workspace>.<project>@host\n"
        );
        assert_eq!(errors, expected);
    }
    let alice = token("alice");
    for user in ["LAB", "lab.alice.x", "lab.", ".alice", "../lab", "l\u{430}b", "lab alice"] {
        let (code, out, errors) = hello(&world, user, &alice).await;
        assert_eq!((code, out.as_str()), (Some(255), ""), "{user}");
        assert!(errors.contains("no workspace"), "{user}: {errors}");
        assert!(errors.is_ascii(), "{errors}");
    }
    let (code, out, _) = hello(&world, "lab.alice", &alice).await;
    assert_eq!((code, out.as_str()), (Some(0), "hello\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_session_the_refusal_is_told_as_well() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let output = run(world.ssh(&["-N", "absent@127.0.0.1"])).await;
    assert_eq!(output.status.code(), Some(255));
    assert!(text(&output.stderr).contains("no workspace \"absent\""), "{}", text(&output.stderr));
}

/// As people make them: `kind` as `ssh-keygen -t` knows it. Returns the public line.
fn keygen(path: &std::path::Path, kind: &str) -> String {
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-t", kind, "-f"])
        .arg(path)
        .status()
        .unwrap();
    assert!(made.success());
    std::fs::read_to_string(path.with_extension("pub")).unwrap()
}

type Feed = Arc<(AtomicU64, Value)>;

async fn feed(
    State(feed): State<Feed>,
    Query(query): Query<std::collections::HashMap<String, u64>>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    // "dormouse-gate:s3cret"
    if headers.get("authorization").map(|v| v.as_bytes())
        != Some(b"Basic ZG9ybW91c2UtZ2F0ZTpzM2NyZXQ=")
    {
        return Err(StatusCode::UNAUTHORIZED);
    }
    loop {
        let version = feed.0.load(Ordering::Acquire);
        if query.get("after") != Some(&version) {
            let keys = if version == 1 { feed.1.clone() } else { json!([]) };
            return Ok(Json(json!({"version": version, "keys": keys})));
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_key_signs_in_until_it_is_taken_back_also_in_a_drain() {
    if !openssh_is_here() {
        return;
    }
    let made = tempfile::tempdir().unwrap();
    let rsa = keygen(&made.path().join("rsa"), "rsa");
    let ecdsa = keygen(&made.path().join("ecdsa"), "ecdsa");
    let keys: Vec<Value> = [key(9).public_key().to_openssh().unwrap(), rsa, ecdsa]
        .iter()
        .map(|line| {
            json!({
                "fingerprint": "", "public_key": line,
                "subject": "sub-alice", "user": "alice", "email": null, "groups": [],
            })
        })
        .collect();
    let keys = Value::from(keys);
    let state: Feed = Arc::new((AtomicU64::new(1), keys));
    let app = Router::new().route("/internal/ssh-keys", get(feed)).with_state(state.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let world = World::with(|config| {
        let secret = config.host_key_file.with_file_name("secret");
        std::fs::write(&secret, "s3cret\n").unwrap();
        config.keys_url = Some(format!("http://{address}/internal/ssh-keys"));
        config.client_secret_file = Some(secret);
        config.drain = std::time::Duration::from_secs(600);
    })
    .await;
    let with_file = |path: &std::path::Path, rest: &[&str]| {
        let mut command = tokio::process::Command::new("ssh");
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i"]);
        command.arg(path).args(["-o", "IdentityAgent=none", "-o", "StrictHostKeyChecking=yes"]);
        command
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", world.path("known_hosts").display()));
        command.arg("-p").arg(world.port.to_string()).arg("lab@127.0.0.1").args(rest);
        command.stdin(std::process::Stdio::null()).kill_on_drop(true);
        command
    };
    let with_key = |seed: u8, rest: &[&str]| {
        let path = world.path(&format!("id{seed}"));
        write_private_key(&path, &key(seed));
        with_file(&path, rest)
    };
    // The list arrives a moment after the start.
    let hello = loop {
        let output = run(with_key(9, &["echo hello"])).await;
        if output.status.success() {
            break output;
        }
    };
    assert_eq!(text(&hello.stdout), "hello\n");
    let stranger = run(with_key(8, &["echo hello"])).await;
    assert_eq!(stranger.status.code(), Some(255));
    for kind in ["rsa", "ecdsa"] {
        let output = run(with_file(&made.path().join(kind), &["echo hello"])).await;
        assert_eq!(text(&output.stdout), "hello\n", "{kind}: {}", text(&output.stderr));
    }
    let mut sha1 = tokio::process::Command::new("ssh");
    sha1.args(["-o", "PubkeyAcceptedAlgorithms=ssh-rsa"]);
    sha1.args(with_file(&made.path().join("rsa"), &["echo hello"]).as_std().get_args());
    let output = run(sha1).await;
    assert_eq!(output.status.code(), Some(255), "a signature over SHA-1 proves nothing");
    // Signed in and at work when the key is taken back.
    let open = tokio::spawn(run(with_key(9, &["echo up; sleep 60"])));
    while world.audit().matches(r#""did":"opened""#).count() < 4 {
        tokio::task::yield_now().await;
    }
    // A gateway that drains takes nobody new, and learns what those rest on who are there.
    world.shutdown.cancel();
    while tokio::net::TcpStream::connect(("127.0.0.1", world.port)).await.is_ok() {
        tokio::task::yield_now().await;
    }
    state.0.store(2, Ordering::Release);
    let output = open.await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(text(&output.stderr).contains("you may no longer use lab"), "{}", text(&output.stderr));
}
