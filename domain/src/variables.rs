//! Which variables of the environment an SSH client may hand to a session (RFC 4254, section 6.4).

/// Longest name, in bytes.
const NAME_MAX: usize = 64;

/// For people: the names that pass.
pub const LISTED: &str = "LANG, LANGUAGE, LC_*, TZ, COLORTERM, NO_COLOR, TERM_PROGRAM, \
     TERM_PROGRAM_VERSION, GIT_PROTOCOL, GIT_AUTHOR_* and GIT_COMMITTER_*";

/// A person's language, terminal and name in commits, and nothing that changes how programs are
/// loaded or found.
pub fn passes(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let listed = matches!(
        name,
        "LANG"
            | "LANGUAGE"
            | "TZ"
            | "COLORTERM"
            | "NO_COLOR"
            | "TERM_PROGRAM"
            | "TERM_PROGRAM_VERSION"
            | "GIT_PROTOCOL"
    );
    let prefixed =
        ["LC_", "GIT_AUTHOR_", "GIT_COMMITTER_"].iter().any(|prefix| name.starts_with(prefix));
    name.len() <= NAME_MAX && plain && (listed || prefixed)
}

/// The variables by which programs know that they run under SSH and from where. The gateway sets
/// them, in place of a server on the machine; a client's own are not passed on.
pub const CONNECTION: [&str; 2] = ["SSH_CLIENT", "SSH_CONNECTION"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_passes() {
        for good in ["LANG", "LC_ALL", "LC_TIME", "COLORTERM", "GIT_PROTOCOL", "GIT_AUTHOR_NAME"] {
            assert!(passes(good), "{good}");
        }
        for bad in
            ["LD_PRELOAD", "PATH", "BASH_ENV", "GIT_SSH_COMMAND", "LC_X=Y", "lc_all", "", "LC_\n"]
        {
            assert!(!passes(bad), "{bad}");
        }
        for ours in CONNECTION {
            assert!(!passes(ours), "{ours} is the gateway's to set");
        }
    }
}
