//! From a path to the resource it names.

use std::sync::Arc;

use crate::api::registry::{Registry, Resource};

/// What of a resource type is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Empty for cluster-scoped types, and for "in all namespaces".
    pub namespace: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

pub struct Route {
    pub resource: Arc<Resource>,
    pub target: Target,
}

/// Parses `/api/v1/...` and `/apis/GROUP/VERSION/...`. `None` when nothing is served there.
pub fn parse(registry: &Registry, path: &str) -> Option<Route> {
    let mut segments = Vec::new();
    for segment in path.trim_matches('/').split('/') {
        segments.push(decode(segment)?);
    }
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match words.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let find = |plural: &str| registry.find(group, version, plural);
    // A namespace's own subresources look like types inside it.
    if let ["namespaces", namespace, plural, rest @ ..] = rest
        && !(group.is_empty() && rest.is_empty() && matches!(*plural, "status" | "finalize"))
    {
        let resource = find(plural).filter(|resource| resource.namespaced)?;
        return Some(Route { resource: resource.clone(), target: target(namespace, rest)? });
    }
    let (plural, rest) = rest.split_first()?;
    let resource = find(plural)?;
    // Named access to namespaced objects needs their namespace.
    if resource.namespaced && !rest.is_empty() {
        return None;
    }
    Some(Route { resource: resource.clone(), target: target("", rest)? })
}

fn target(namespace: &str, rest: &[&str]) -> Option<Target> {
    let (name, subresource) = match rest {
        [] => (None, None),
        [name] => (Some((*name).to_owned()), None),
        [name, subresource] => (Some((*name).to_owned()), Some((*subresource).to_owned())),
        _ => return None,
    };
    Some(Target { namespace: namespace.to_owned(), name, subresource })
}

/// Percent-decodes one segment (RFC 3986); `None` when it is malformed or empty.
fn decode(segment: &str) -> Option<String> {
    if segment.is_empty() {
        return None;
    }
    let bytes = segment.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(byte) = bytes.get(i) {
        if *byte == b'%' {
            let hex = segment.get(i + 1..i + 3)?;
            decoded.push(u8::from_str_radix(hex, 16).ok()?);
            i += 3;
        } else {
            decoded.push(*byte);
            i += 1;
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str) -> Option<(String, Target)> {
        parse(&Registry::with_builtins(), path).map(|r| (r.resource.plural.clone(), r.target))
    }

    fn at(namespace: &str, name: Option<&str>, subresource: Option<&str>) -> Target {
        Target {
            namespace: namespace.into(),
            name: name.map(Into::into),
            subresource: subresource.map(Into::into),
        }
    }

    #[test]
    fn paths_name_resources() {
        assert_eq!(parsed("/api/v1/pods"), Some(("pods".into(), at("", None, None))));
        assert_eq!(
            parsed("/api/v1/namespaces/a/pods/b/log"),
            Some(("pods".into(), at("a", Some("b"), Some("log"))))
        );
        assert_eq!(
            parsed("/api/v1/namespaces/a"),
            Some(("namespaces".into(), at("", Some("a"), None)))
        );
        assert_eq!(
            parsed("/api/v1/namespaces/a/finalize"),
            Some(("namespaces".into(), at("", Some("a"), Some("finalize"))))
        );
        assert_eq!(
            parsed("/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode"),
            Some(("clusterroles".into(), at("", Some("system:node"), None)))
        );
        assert!(parsed("/api/v1/pods/b").is_none());
        assert!(parsed("/apis/apps/v1/namespaces/a/pods").is_none());
        assert!(parsed("/api/v1/namespaces/a/nodes/b").is_none());
        assert!(parsed("/api/v1/namespaces/a/pods/%zz").is_none());
    }
}
