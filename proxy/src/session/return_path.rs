//! Where to go after signing in: a path on the same host, or nowhere.

/// A local absolute path with its query, safe in a `Location` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnPath(String);

/// Longest that is remembered, in bytes: it travels in `state`, through other programs' limits.
const MAX: usize = 8 * 1024;

impl ReturnPath {
    /// `/` for everything that a browser could read as another origin: `//host`, `/\host`, controls
    /// and spaces (which browsers strip), non-ASCII, and what is too long to remember. Our own pages
    /// are no place to return to.
    pub fn new(target: &str) -> Self {
        let local = target.starts_with('/')
            && !target.starts_with("//")
            && Self::fits(target)
            && target.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
            && !target.starts_with("/.dormouse/");
        Self(if local { target.to_owned() } else { "/".to_owned() })
    }

    pub fn home() -> Self {
        Self("/".to_owned())
    }

    /// Whether the target is not too long to be remembered.
    pub fn fits(target: &str) -> bool {
        target.len() <= MAX
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;

    #[test]
    fn attack_10_open_redirect() {
        for bad in [
            "//evil",
            "///evil",
            "/\\evil",
            "\\/evil",
            "https:evil",
            "https://evil",
            "/\t/evil",
            "/\r\n/evil",
            "/%0d\r",
            " //evil",
            "@evil",
            "evil",
            "",
            "/\u{2044}evil",
            "/.dormouse/sign-out",
        ] {
            assert_eq!(ReturnPath::new(bad).as_str(), "/", "{bad:?}");
        }
        for good in ["/", "/lab?reset", "/a//b", "/a@b:c", "/%2f%2fevil", "/lab/tree/x%20y.ipynb"] {
            assert_eq!(ReturnPath::new(good).as_str(), good);
        }
    }

    proptest! {
        #[test]
        fn a_browser_stays_on_the_host(target in "\\PC{0,40}|[/\\\\a-z@:.\t\r\n%]{0,12}") {
            let base = Url::parse("https://lab.example.org/here").unwrap();
            let gone = base.join(ReturnPath::new(&target).as_str()).unwrap();
            prop_assert_eq!(gone.origin(), base.origin());
        }
    }
}
