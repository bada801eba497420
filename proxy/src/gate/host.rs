//! Host names: taken whole or refused, never repaired.

use std::borrow::Cow;

/// What a request's authority says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host<'a> {
    /// Exactly one label under the base domain. Lower case, without port.
    Ours(Cow<'a, str>),
    /// A well-formed name that is not ours.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host name is malformed")]
pub struct Malformed;

/// Letters, digits, dots and hyphens, and at most a numeric port; everything else (user-info, `#`,
/// percent signs, brackets, empty labels but a trailing dot) is malformed. A trailing dot is another
/// name to cookies and origins, so it is foreign.
pub fn parse<'a>(authority: &'a str, base_domain: &str) -> Result<Host<'a>, Malformed> {
    let (name, port) = match authority.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (authority, None),
    };
    let port_ok = port.is_none_or(|port| {
        !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
    });
    let name_ok = !name.is_empty()
        && name.len() <= 254
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        && !name.starts_with('.')
        && !name.contains("..");
    if !port_ok || !name_ok {
        return Err(Malformed);
    }
    let name = match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    };
    let ours = name
        .strip_suffix(base_domain)
        .and_then(|rest| rest.strip_suffix('.'))
        .is_some_and(|label| !label.is_empty() && !label.contains('.'));
    Ok(if ours { Host::Ours(name) } else { Host::Foreign })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ours(authority: &str) -> Option<String> {
        match parse(authority, "example.org") {
            Ok(Host::Ours(name)) => Some(name.into_owned()),
            _ => None,
        }
    }

    #[test]
    fn attack_5_host_confusion() {
        assert_eq!(ours("lab--alice.example.org").unwrap(), "lab--alice.example.org");
        assert_eq!(ours("LAB--Alice.Example.ORG:8443").unwrap(), "lab--alice.example.org");
        for foreign in [
            "example.org",
            "lab.example.org.",
            "a.b.example.org",
            "lab.example.org.evil.net",
            "labexample.org",
            "evil.net",
        ] {
            assert_eq!(parse(foreign, "example.org"), Ok(Host::Foreign), "{foreign}");
        }
        for bad in [
            "a#@b.example.org",
            "user@lab.example.org",
            "lab.example.org:",
            "lab.example.org:x",
            "lab.example.org:1:2",
            "lab.example.org:99999",
            "lab.example.org/",
            "lab.example.org\\x",
            "lab..example.org",
            ".example.org",
            "lab%2e.example.org",
            "[::1]",
            "lab.example.org, other.example.org",
            "lab.example.org ",
            "",
            "läb.example.org",
        ] {
            assert_eq!(parse(bad, "example.org"), Err(Malformed), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_ours_is_one_plain_label(authority in "[a-zA-Z0-9.:@#-]{0,12}(\\.example\\.org)?(:[0-9]{1,5})?") {
            if let Some(name) = ours(&authority) {
                let label = name.strip_suffix(".example.org").unwrap();
                prop_assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
                prop_assert!(authority.to_ascii_lowercase().starts_with(&name));
            }
        }
    }
}
