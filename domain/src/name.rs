//! Names that people and manifests use. A value of these types has been checked.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest name of a workload or project: `<name>--<project>` must fit one DNS label (63 octets,
/// RFC 1035, section 2.3.4).
pub const NAME_MAX: usize = 30;

/// Longest user name.
pub const USER_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name may not be empty")]
    Empty,
    #[error("a name may have at most {max} characters")]
    TooLong { max: usize },
    #[error(
        "a name has lower-case letters, digits and single hyphens, starts with a letter and ends with a letter or a digit"
    )]
    Form,
}

/// Checks the form that workloads and projects share: a DNS label that starts with a letter and
/// has no two hyphens in a row, so that `<name>--<project>` has one reading.
fn check_label(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > NAME_MAX {
        return Err(NameError::TooLong { max: NAME_MAX });
    }
    let bytes = text.as_bytes();
    let form = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && !text.contains("--");
    if form { Ok(()) } else { Err(NameError::Form) }
}

/// User names come from identity providers too, so dots, underscores and `@` are allowed; upper
/// case and everything outside ASCII is not, so that no two names look alike.
fn check_user(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > USER_MAX {
        return Err(NameError::TooLong { max: USER_MAX });
    }
    let bytes = text.as_bytes();
    let form = bytes.iter().all(|b| {
        b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.' | b'@')
    }) && (bytes[0].is_ascii_lowercase() || bytes[0].is_ascii_digit());
    if form { Ok(()) } else { Err(NameError::Form) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                $check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of a workspace, app or batch job within its project.
    WorkloadName,
    check_label
);
name!(
    /// The name of a project, which is also the name of its namespace.
    ProjectName,
    check_label
);
name!(
    /// The name of a person or a service account.
    UserName,
    check_user
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_have_one_reading() {
        for good in ["a", "lab", "lab-2", "a1"] {
            assert!(good.parse::<WorkloadName>().is_ok(), "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "a--b", "A", "a.b", "a_b", "ä", "a\0", "../a", "a/b"] {
            assert!(bad.parse::<WorkloadName>().is_err(), "{bad}");
        }
        assert_eq!("a".repeat(31).parse::<ProjectName>(), Err(NameError::TooLong { max: 30 }));
    }

    #[test]
    fn users_are_plain() {
        for good in ["alice", "bob@example.com", "7of9", "a_b.c-d"] {
            assert!(good.parse::<UserName>().is_ok(), "{good}");
        }
        for bad in ["", "Alice", "аlice", "a b", "a\n", "@a", ".a"] {
            assert!(bad.parse::<UserName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_kept(text in "\\PC{0,40}") {
            if let Ok(name) = text.parse::<WorkloadName>() {
                prop_assert_eq!(name.as_str(), &text);
            }
        }
    }
}
