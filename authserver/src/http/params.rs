//! Parameters of a query or a form.

use std::collections::BTreeMap;

use url::form_urlencoded;

/// Those that may be given more than once (RFC 8707, section 2; RFC 8693, section 2.1).
const REPEATABLE: [&str; 2] = ["resource", "audience"];

/// Parameters by name. An empty value counts as absent (RFC 6749, section 3.1).
#[derive(Debug, Default)]
pub(crate) struct Params {
    values: BTreeMap<String, Vec<String>>,
}

impl Params {
    pub fn parse(encoded: &[u8]) -> Self {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(encoded) {
            values.entry(name.into_owned()).or_default().push(value.into_owned());
        }
        Self { values }
    }

    /// The value, unless it is empty or was given more than once.
    pub fn get(&self, name: &str) -> Option<&str> {
        match self.values.get(name)?.as_slice() {
            [value] if !value.is_empty() => Some(value),
            _ => None,
        }
    }

    /// All values that are not empty.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let values = self.values.get(name).into_iter().flatten();
        values.map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Parameters must not be given more than once (RFC 6749, section 3.1), but for a few.
    pub fn has_doubled(&self) -> bool {
        let doubled = |(name, values): (&String, &Vec<String>)| {
            values.len() > 1 && !REPEATABLE.contains(&name.as_str())
        };
        self.values.iter().any(doubled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    #[test]
    fn rfc_8707_several_resources_may_be_named() {
        let params = Params::parse(b"resource=a&resource=b&resource=");
        assert_eq!(params.all("resource").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(params.all("other").count(), 0);
        assert!(!params.has_doubled());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read(pairs in proptest::collection::btree_map("\\PC{1,9}", "\\PC{1,9}", 0..9)) {
            let text = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
            let params = Params::parse(text.as_bytes());
            for (name, value) in &pairs {
                prop_assert_eq!(params.get(name), Some(value.as_str()));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let params = Params::parse(&bytes);
            let _ = (params.has_doubled(), params.get("a"), params.all("a").count());
        }
    }
}
