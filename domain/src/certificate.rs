//! Server certificates as somebody keeps them for us: text that has not been looked into yet.

use std::fmt;

/// A certificate chain and its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// What people call it, such as `namespace/name`; for logs, metrics and health.
    pub name: String,
    /// The certificate, then those between it and the authority.
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All pairs of one keeper at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs {
    /// In an order that does not change by itself.
    pub pairs: Vec<Pair>,
    /// Whether all have been listed at least once.
    pub synced: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let pair = Pair { name: "a/b".to_owned(), chain: b"c".to_vec(), key: b"SECRET".to_vec() };
        let shown = format!("{pair:?}");
        assert!(shown.contains("a/b") && !shown.contains("SECRET") && !shown.contains("83"));
    }
}
