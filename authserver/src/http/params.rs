//! Parameters of a query or a form.

use std::collections::BTreeMap;

use url::form_urlencoded;

/// Parameters by name. An empty value counts as absent (RFC 6749, section 3.1).
#[derive(Debug, Default)]
pub(super) struct Params {
    values: BTreeMap<String, String>,
    doubled: Vec<String>,
}

impl Params {
    pub fn parse(encoded: &[u8]) -> Self {
        let mut params = Self::default();
        for (name, value) in form_urlencoded::parse(encoded) {
            if params.values.insert(name.clone().into_owned(), value.into_owned()).is_some() {
                params.doubled.push(name.into_owned());
            }
        }
        params
    }

    /// The value, unless it is empty or was given more than once.
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.values.get(name)?;
        let plain = !value.is_empty() && !self.doubled.iter().any(|doubled| doubled == name);
        plain.then_some(value.as_str())
    }

    /// Parameters must not be given more than once (RFC 6749, section 3.1).
    pub fn has_doubled(&self) -> bool {
        !self.doubled.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_and_empty_values_are_none() {
        let params = Params::parse(b"a=1&b=2&b=2&c=&d=%C3%A4+x");
        assert_eq!(params.get("a"), Some("1"));
        assert_eq!(params.get("b"), None);
        assert_eq!(params.get("c"), None);
        assert_eq!(params.get("d"), Some("ä x"));
        assert!(params.has_doubled());
        assert!(!Params::parse(b"a=1").has_doubled());
    }
}
