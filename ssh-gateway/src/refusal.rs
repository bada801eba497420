//! Why somebody who signed in does not get a shell: the one place where these become sentences.

use std::time::Duration;

use domain::name::WorkloadName;

/// One line for a person: what happened and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such thing and not yours are the same: an outsider learns nothing.
    #[error("no workspace {0} that you may use; try ssh <workspace>.<project>@host")]
    Unknown(Shown),
    #[error("you may no longer use {0}; ask its owner")]
    Lost(Shown),
    #[error("{0} is stopped; start it in the portal or with kubectl, then connect again")]
    Stopped(WorkloadName),
    #[error("{name} cannot start: {reason}")]
    Failed { name: WorkloadName, reason: Shown },
    #[error("{name} did not wake within {} s; try again, or look at it in the portal", waited.as_secs())]
    Late { name: WorkloadName, waited: Duration },
    #[error("{0} has no SSH agent; ask its owner to recreate it")]
    NoAgent(WorkloadName),
    #[error("{0} does not answer on its SSH port; try again, or restart it in the portal")]
    Unreachable(WorkloadName),
    #[error("the gateway has just started and knows no workspaces yet; try again in a moment")]
    NotReady,
    #[error("{0} went to sleep; connect again to wake it")]
    FellAsleep(WorkloadName),
    #[error("the connection to {0} was lost; connect again")]
    Disconnected(WorkloadName),
}

/// Text from outside, made safe for a terminal: quoted, escaped and cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    pub fn quoted(text: &str) -> Self {
        Self(format!("\"{}\"", cut(text)))
    }

    pub fn plain(text: &str) -> Self {
        Self(cut(text))
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

const SHOWN_MAX: usize = 200;

fn cut(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(escape).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Everything that is not plain ASCII is escaped: look-alikes and control characters are seen.
fn escape(character: char) -> Box<dyn Iterator<Item = char>> {
    if character.is_ascii_graphic() || character == ' ' {
        Box::new(std::iter::once(character))
    } else {
        Box::new(character.escape_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_reaches_the_terminal_raw() {
        let refusal = Refusal::Unknown(Shown::quoted("l\u{0430}b\x1b[2J\n"));
        assert_eq!(
            refusal.to_string(),
            r#"no workspace "l\u{430}b\u{1b}[2J\n" that you may use; try ssh <workspace>.<project>@host"#
        );
        assert!(Shown::plain(&"x".repeat(10_000)).to_string().len() < 300);
    }
}
