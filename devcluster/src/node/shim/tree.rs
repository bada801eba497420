//! The process tree as `/proc` shows it, and the end of it.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The parent of a process from the text of its `/proc/PID/stat` (`proc_pid_stat(5)`). The name in parentheses may
/// hold anything, parentheses and spaces included, so the fields are counted from the last `)`.
fn parent_from_stat(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The process ids of this machine.
fn pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// All living descendants of `root`, parents before their children.
pub fn descendants(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in pids() {
        let parent = std::fs::read(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| parent_from_stat(&String::from_utf8_lossy(&stat)));
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = children.remove(&root).unwrap_or_default();
    while let Some(pid) = next.pop() {
        found.push(pid);
        next.extend(children.remove(&pid).unwrap_or_default());
    }
    found
}

/// Sends `signal` to every descendant of this process.
pub fn signal_all(signal: Signal) {
    for pid in descendants(own_pid()) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Reaps what has ended; `ended` is told of each. `false`: no child is left, so no descendant of a subreaper is.
pub fn reap(mut ended: impl FnMut(i32, WaitStatus)) -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(status) => {
                if let Some(pid) = status.pid() {
                    ended(pid.as_raw(), status);
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Kills and reaps every descendant of this process, which must be a subreaper. Waits at most `patience`, for a
/// process in an uninterruptible sleep; says whether all are gone.
pub fn kill_all(patience: Duration, mut ended: impl FnMut(i32, WaitStatus)) -> bool {
    let deadline = Instant::now() + patience;
    // Frozen first, so that a tree which forks faster than it is listed cannot run ahead.
    let mut seen = 0;
    loop {
        let all = descendants(own_pid());
        if all.len() <= seen || Instant::now() > deadline {
            break;
        }
        seen = all.len();
        for pid in all {
            let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
        }
    }
    loop {
        signal_all(Signal::SIGKILL);
        if !reap(&mut ended) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Processes whose environment has `name` set to a value that starts with `prefix`; those of other people cannot be read.
pub fn marked(name: &str, prefix: &str) -> Vec<i32> {
    let wanted = format!("{name}={prefix}");
    let own = own_pid();
    pids()
        .filter(|&pid| pid != own)
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| {
                env.split(|&b| b == 0).any(|entry| entry.starts_with(wanted.as_bytes()))
            })
        })
        .collect()
}

/// SIGKILL to every process that [`marked`] finds; the number of them.
pub fn kill_marked(name: &str, prefix: &str) -> usize {
    let found = marked(name, prefix);
    for &pid in &found {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    found.len()
}

fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_parent_is_read_past_a_name_with_parentheses() {
        assert_eq!(parent_from_stat("42 (a) S 7 (b) R 1 2) S 17 42 42 0"), Some(17));
        assert_eq!(parent_from_stat("42"), None);
        assert_eq!(parent_from_stat("42 (x) S"), None);
    }

    #[test]
    fn a_child_of_this_process_is_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(descendants(own_pid()).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants(own_pid()).contains(&pid));
    }

    #[test]
    fn a_mark_is_found_by_its_prefix() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env(MARK_FOR_TEST, "here.1.2")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // The kernel may show a new program's environment a moment after its start.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while marked(MARK_FOR_TEST, "here.").is_empty() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(marked(MARK_FOR_TEST, "here."), vec![pid]);
        assert!(marked(MARK_FOR_TEST, "there.").is_empty());
        assert_eq!(kill_marked(MARK_FOR_TEST, "here.1"), 1);
        child.wait().unwrap();
    }

    const MARK_FOR_TEST: &str = "DEVCLUSTER_TREE_TEST";

    proptest! {
        #[test]
        fn any_stat_text_is_harmless(text in ".*") {
            let _ = parent_from_stat(&text);
        }
    }
}
