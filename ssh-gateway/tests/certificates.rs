//! Certificates of the auth server's authority, with OpenSSH.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use axum::{Json, Router, extract::Query, routing::get};
use serde_json::{Value, json};
use support::{World, openssh_is_here, run, text};

/// Keys and certificates in a folder of their own, and a world whose gateway trusts the authority.
struct Place {
    world: World,
    folder: tempfile::TempDir,
    /// The list that the gateway follows.
    list: Arc<Mutex<(u64, Value)>>,
}

fn keygen(arguments: &[&str]) {
    let output = Command::new("ssh-keygen").arg("-q").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
}

fn person(user: &str, groups: &[&str]) -> Value {
    json!({ "subject": format!("sub-{user}"), "user": user, "email": null, "groups": groups })
}

impl Place {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["authority", "foreign"] {
            let path = folder.path().join(name);
            keygen(&["-t", "ed25519", "-N", "", "-f", path.to_str().unwrap()]);
        }
        let line = std::fs::read_to_string(folder.path().join("authority.pub")).unwrap();
        let people = [person("alice", &["ml", "staff"]), person("bob", &[])];
        let first = json!({ "keys": [], "authorities": [line.trim()], "people": people });
        let list = Arc::new(Mutex::new((1, first)));
        let kept = list.clone();
        let app = Router::new().route(
            "/internal/ssh-keys",
            get(move |Query(query): Query<std::collections::HashMap<String, u64>>| async move {
                loop {
                    let (version, mut list) = kept.lock().unwrap().clone();
                    if query.get("after") != Some(&version) {
                        list["version"] = json!(version);
                        return Json(list);
                    }
                    tokio::task::yield_now().await;
                }
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let world = World::with(|config| {
            let secret = config.host_key_file.with_file_name("secret");
            std::fs::write(&secret, "s3cret\n").unwrap();
            config.keys_url = Some(format!("http://{address}/internal/ssh-keys"));
            config.client_secret_file = Some(secret);
        })
        .await;
        let place = Self { world, folder, list };
        // The list arrives a moment after the start.
        let key = place.certified("first", "ed25519", "authority", &["-n", "alice"]);
        let begun = std::time::Instant::now();
        loop {
            let output = place.ssh(&key, "lab", &[], "true").await;
            if output.status.success() {
                break;
            }
            let waited = begun.elapsed() > std::time::Duration::from_secs(60);
            assert!(!waited, "nobody gets in: {}", text(&output.stderr));
        }
        place
    }

    /// A new key with a certificate.
    fn certified(&self, name: &str, kind: &str, authority: &str, more: &[&str]) -> PathBuf {
        let key = self.folder.path().join(name);
        keygen(&["-t", kind, "-N", "", "-f", key.to_str().unwrap()]);
        let authority = self.folder.path().join(authority);
        let public = key.with_extension("pub");
        let mut arguments = vec!["-s", authority.to_str().unwrap(), "-I", "alice/token-1"];
        arguments.extend(["-O", "extension:session@auth.localhost=sid-1"]);
        if !more.contains(&"-V") {
            arguments.extend(["-V", "-1m:+1h"]);
        }
        arguments.extend(more);
        arguments.push(public.to_str().unwrap());
        keygen(&arguments);
        key
    }

    fn command(
        &self,
        key: &Path,
        user: &str,
        options: &[&str],
        what: &str,
    ) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("ssh");
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i"]);
        command.arg(key).args(["-o", "IdentityAgent=none", "-o", "StrictHostKeyChecking=yes"]);
        let known = self.world.path("known_hosts");
        command.arg("-o").arg(format!("UserKnownHostsFile={}", known.display())).args(options);
        command.arg("-p").arg(self.world.port.to_string()).arg(format!("{user}@127.0.0.1"));
        command.arg(what).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn ssh(&self, key: &Path, user: &str, options: &[&str], what: &str) -> Output {
        run(self.command(key, user, options, what)).await
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut list = self.list.lock().unwrap();
        list.0 += 1;
        change(&mut list.1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_signs_in_whom_it_names() {
    if !openssh_is_here() {
        return;
    }
    let place = Place::start().await;
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let key = place.certified(kind, kind, "authority", &["-n", "alice"]);
        let output = place.ssh(&key, "lab", &[], "echo hello").await;
        assert_eq!(text(&output.stdout), "hello\n", "{kind}: {}", text(&output.stderr));
    }
    let audit = place.world.audit();
    assert!(audit.contains(r#""who":"alice","did":"signed-in""#), "{audit}");
    assert!(audit.contains("ssh-certificate") && audit.contains("token-1"), "{audit}");
    // Bob is somebody, and the workspace is not his.
    let key = place.certified("bobs", "ed25519", "authority", &["-n", "bob"]);
    let output = place.ssh(&key, "lab", &[], "echo hello").await;
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("no workspace \"lab\""), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_19_certificates_that_prove_nothing() {
    if !openssh_is_here() {
        return;
    }
    let place = Place::start().await;
    let alice = ["-n", "alice"];
    let more = |more: &[&'static str]| [&alice[..], more].concat();
    let cases: [(&str, &str, Vec<&str>); 11] = [
        ("stranger", "foreign", alice.to_vec()),
        ("host", "authority", more(&["-h"])),
        ("expired", "authority", more(&["-V", "-2h:-1h"])),
        ("early", "authority", more(&["-V", "+1h:+2h"])),
        ("nobody", "authority", vec!["-n", "mallory"]),
        ("workload", "authority", vec!["-n", "lab"]),
        ("none", "authority", vec![]),
        ("two", "authority", vec!["-n", "alice,bob"]),
        ("case", "authority", vec!["-n", "Alice"]),
        // Not even for the address that it names: our authority writes none of these.
        ("address", "authority", more(&["-O", "source-address=127.0.0.0/8"])),
        ("command", "authority", more(&["-O", "force-command=true"])),
    ];
    for (name, authority, arguments) in cases {
        let key = place.certified(name, "ed25519", authority, &arguments);
        let output = place.ssh(&key, "lab", &[], "echo hello").await;
        assert_eq!(output.status.code(), Some(255), "{name}");
        assert!(text(&output.stderr).contains("Permission denied"), "{name}: {output:?}");
    }
    // A signature over SHA-1 proves nothing.
    let key = place.certified("sha1", "rsa", "authority", &alice);
    let sha1 = ["-o", "PubkeyAcceptedAlgorithms=ssh-rsa-cert-v01@openssh.com"];
    assert_eq!(place.ssh(&key, "lab", &sha1, "echo hello").await.status.code(), Some(255));
    // Nor does somebody else's certificate, without its key.
    let own = place.certified("own", "ed25519", "authority", &["-n", "bob"]);
    let copied = std::fs::read(place.folder.path().join("first-cert.pub")).unwrap();
    std::fs::write(place.folder.path().join("own-cert.pub"), copied).unwrap();
    assert_eq!(place.ssh(&own, "lab", &[], "echo hello").await.status.code(), Some(255));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_17_who_is_disabled_or_leaves_a_group_is_signed_out() {
    if !openssh_is_here() {
        return;
    }
    let place = Place::start().await;
    let key = place.folder.path().join("first");
    let last = |people: Value| move |list: &mut Value| list["people"] = people;
    let changes = [json!([person("alice", &["staff"])]), json!([])];
    for (round, people) in changes.into_iter().enumerate() {
        let open = place.command(&key, "lab", &[], "echo up; sleep 60");
        let open = tokio::spawn(run(open));
        // The one that found out that the list is there, and one for each round.
        while place.world.audit().matches(r#""did":"opened""#).count() < 2 + round {
            tokio::task::yield_now().await;
        }
        place.change(last(people));
        let output = open.await.unwrap();
        assert_eq!(output.status.code(), Some(255));
        let said = text(&output.stderr);
        assert!(said.contains("you may no longer use lab"), "{said}");
    }
    let output = place.ssh(&key, "lab", &[], "echo hello").await;
    assert_eq!(output.status.code(), Some(255));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_19_certificates_of_an_authority_of_before_end() {
    if !openssh_is_here() {
        return;
    }
    let place = Place::start().await;
    let key = place.folder.path().join("first");
    let open = tokio::spawn(run(place.command(&key, "lab", &[], "echo up; sleep 60")));
    while place.world.audit().matches(r#""did":"opened""#).count() < 2 {
        tokio::task::yield_now().await;
    }
    // Its key was stolen: from now on there is another one. What came in by the old one ends, too.
    let line = std::fs::read_to_string(place.folder.path().join("foreign.pub")).unwrap();
    place.change(|list| list["authorities"] = json!([line.trim()]));
    let output = open.await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    let said = text(&output.stderr);
    assert!(said.contains("you may no longer use lab"), "{said}");
    let refused = place.ssh(&key, "lab", &[], "echo hello").await;
    assert_eq!(refused.status.code(), Some(255));
    assert!(text(&refused.stderr).contains("Permission denied"), "{}", text(&refused.stderr));
    let renewed = place.certified("renewed", "ed25519", "foreign", &["-n", "alice"]);
    let output = place.ssh(&renewed, "lab", &[], "echo hello").await;
    assert_eq!(text(&output.stdout), "hello\n", "{}", text(&output.stderr));
}
