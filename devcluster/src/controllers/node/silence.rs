//! Which nodes are silent, by the clock here: the clocks of nodes need not agree with it.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// A node that renewed nothing for so long is doubted ...
const DOUBT: Duration = Duration::from_secs(30);
/// ... and taken for dead if it stays silent for this long while we look. Both together are
/// kube-controller-manager's `--node-monitor-grace-period`; in two parts, because when this very
/// process was stopped or starved, all nodes seem silent at the moment it wakes.
const CONFIRM: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To be looked at again after this long.
    Lives(Duration),
    Silent,
}

struct Heard {
    at: Instant,
    doubted: Option<Instant>,
}

#[derive(Default)]
pub struct Silence {
    nodes: HashMap<String, Heard>,
}

impl Silence {
    pub fn hear(&mut self, node: &str, now: Instant) {
        self.nodes.insert(node.to_owned(), Heard { at: now, doubted: None });
    }

    pub fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// A node never heard of is heard now: it may start together with us.
    pub fn judge(&mut self, node: &str, now: Instant) -> Verdict {
        let heard = self.nodes.entry(node.to_owned()).or_insert(Heard { at: now, doubted: None });
        let left = DOUBT.saturating_sub(now.duration_since(heard.at));
        if !left.is_zero() {
            return Verdict::Lives(left);
        }
        let since = *heard.doubted.get_or_insert(now);
        let left = CONFIRM.saturating_sub(now.duration_since(since));
        if left.is_zero() { Verdict::Silent } else { Verdict::Lives(left) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_doubted_then_dead_until_it_is_heard() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::default();
        assert_eq!(silence.judge("n", at(0)), Verdict::Lives(DOUBT));
        assert_eq!(silence.judge("n", at(25)), Verdict::Lives(Duration::from_secs(5)));
        assert_eq!(silence.judge("n", at(30)), Verdict::Lives(CONFIRM));
        assert_eq!(silence.judge("n", at(40)), Verdict::Silent);
        silence.hear("n", at(41));
        assert_eq!(silence.judge("n", at(41)), Verdict::Lives(DOUBT));
    }

    #[test]
    fn after_a_standstill_a_node_has_time_to_speak() {
        let start = Instant::now();
        let mut silence = Silence::default();
        silence.hear("n", start);
        let woken = start + Duration::from_secs(3600);
        assert_eq!(silence.judge("n", woken), Verdict::Lives(CONFIRM));
        silence.hear("n", woken + Duration::from_secs(1));
        assert_eq!(
            silence.judge("n", woken + CONFIRM),
            Verdict::Lives(DOUBT - Duration::from_secs(9))
        );
    }
}
