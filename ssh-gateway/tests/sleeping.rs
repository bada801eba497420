//! Waking, falling asleep, losing the agent and losing the right, with OpenSSH.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;

use domain::route::{State, Step};
use support::{World, lab, openssh_is_here, run, starting, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_workspace_is_woken_with_progress_and_keeps_early_input() {
    let mut world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    world.set(State::Sleeping, "alice");
    let mut command = world.ssh(&["lab@127.0.0.1", "cat; echo end"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"early\n").await.unwrap();
    drop(stdin);
    let wish = world.wishes.recv().await.unwrap();
    assert_eq!((wish.workload, wish.who.as_str()), (lab(), "alice"));
    // Repeated until it is heard.
    assert_eq!(world.wishes.recv().await.unwrap().workload, lab());
    let mut errors = child.stderr.take().unwrap();
    let mut seen = String::new();
    for (step, word) in [(Step::Scheduled, "scheduled"), (Step::AlmostReady, "almost ready")] {
        world.set(starting(step), "alice");
        while !seen.contains(word) {
            let mut buffer = [0; 256];
            let read = errors.read(&mut buffer).await.unwrap();
            assert_ne!(read, 0, "{seen}");
            seen.push_str(&text(&buffer[..read]));
        }
    }
    world.set(State::Running, "alice");
    let output = child.wait_with_output().await.unwrap();
    errors.read_to_string(&mut seen).await.unwrap();
    assert_eq!(text(&output.stdout), "early\nend\n", "{seen}");
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "dormouse: waking lab ...", "{seen}");
    assert!(lines.last().unwrap().starts_with("dormouse: lab is ready after "), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_has_an_end_and_a_stopped_workspace_is_not_woken() {
    let mut world = World::with(|config| config.wake_timeout = std::time::Duration::ZERO).await;
    if !openssh_is_here() {
        return;
    }
    world.set(State::Sleeping, "alice");
    let output = run(world.ssh(&["lab@127.0.0.1", "true"])).await;
    assert_eq!(output.status.code(), Some(255));
    assert!(
        text(&output.stderr).contains("lab did not wake within 0 s"),
        "{}",
        text(&output.stderr)
    );
    while world.wishes.try_recv().is_ok() {}
    for (state, expected) in [
        (State::Stopped, "lab is stopped"),
        (
            State::Failed { message: "no\x1b[2J image".to_owned() },
            r"cannot start: no\u{1b}[2J image",
        ),
    ] {
        world.set(state, "alice");
        let output = run(world.ssh(&["lab@127.0.0.1", "true"])).await;
        assert_eq!(output.status.code(), Some(255));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
    assert!(world.wishes.try_recv().is_err());
}

/// Starts `cat` in the workspace and waits for it.
async fn at_work(world: &World) -> tokio::process::Child {
    let mut command = world.ssh(&["lab@127.0.0.1", "echo up; cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).await.unwrap();
    child
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn falling_asleep_and_losing_the_pod_are_told() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let mut child = at_work(&world).await;
    let _open = child.stdin.take();
    world.set(State::Sleeping, "alice");
    world.agent_stop.cancel();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    let errors = text(&output.stderr);
    assert!(errors.contains("lab went to sleep; connect again to wake it"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_17_a_withdrawn_token_ends_the_session_and_signs_in_no_more() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let mut child = at_work(&world).await;
    let _open = child.stdin.take();
    let (token, now) = (domain::revocation::Revoked::Token("j1"), jiff::Timestamp::now());
    world.revocations.revoke(token, jiff::Timestamp::MAX, now);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(world.audit().contains("the right was withdrawn"));
    let again = run(world.ssh(&["lab@127.0.0.1", "echo hello"])).await;
    assert_eq!((again.status.code(), text(&again.stdout).as_str()), (Some(255), ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_right_ends_the_session() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let mut child = at_work(&world).await;
    let _open = child.stdin.take();
    world.set(State::Running, "bob");
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    let errors = text(&output.stderr);
    assert!(errors.contains("you may no longer use lab; ask its owner"), "{errors}");
    assert!(world.audit().contains("the right was withdrawn"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_another_host_key_is_not_spoken_to() {
    let mut world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    world.agent_key = support::key(2).public_key().to_openssh().unwrap();
    world.set(State::Running, "alice");
    let output = run(world.ssh(&["lab@127.0.0.1", "echo hello"])).await;
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(255), ""));
    let errors = text(&output.stderr);
    assert!(errors.contains("lab does not answer on its SSH port"), "{errors}");
}
