//! Which addresses a client may have.

use url::{Host, Url};

/// https; http on loopback for programs on a person's own machine (RFC 8252, section 7.3); a scheme
/// of a native application has a dot in it (section 7.1).
pub fn is_redirect_uri(uri: &str) -> bool {
    let Ok(url) = Url::parse(uri) else { return false };
    let loopback = match url.host() {
        Some(Host::Domain(domain)) => domain == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    let scheme = match url.scheme() {
        "https" => url.host().is_some(),
        "http" => loopback,
        other => other.contains('.'),
    };
    scheme
        && !uri.contains('#')
        && uri.bytes().all(|b| b.is_ascii_graphic())
        && url.username().is_empty()
        && url.password().is_none()
}

/// The same address. On loopback any port will do: a program on a person's own machine takes one that
/// is free (RFC 8252, section 7.3, and RFC 9700, section 4.1.3). All else is compared character by
/// character.
pub fn is_same_redirect(registered: &str, requested: &str) -> bool {
    if registered == requested {
        return true;
    }
    match (without_port(registered), without_port(requested)) {
        (Some(registered), Some(requested)) => registered == requested,
        _ => false,
    }
}

/// The host and what follows its port of an `http` address on loopback, each as it is written.
fn without_port(uri: &str) -> Option<(&str, &str)> {
    let rest = uri.strip_prefix("http://")?;
    let (authority, after) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, port) = authority.split_at(end);
    let plain = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => {
            digits.bytes().all(|b| b.is_ascii_digit())
                && digits.parse::<u16>().is_ok_and(|port| port > 0)
        }
    };
    // Written as it is understood, so that no two readers see two hosts in it.
    let url = Url::parse(uri).ok()?;
    (plain && is_redirect_uri(uri) && url.host_str() == Some(host)).then_some((host, after))
}

/// As a redirect URI, but not one of a native application.
pub fn is_key_set_uri(uri: &str) -> bool {
    is_redirect_uri(uri) && uri.starts_with("http")
}

/// A resource indicator (RFC 8707, section 2): an absolute URI without a fragment.
pub fn is_resource(text: &str) -> bool {
    text.len() <= 512
        && !text.contains('#')
        && text.bytes().all(|b| b.is_ascii_graphic())
        && Url::parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn redirect_uris_of_settings() {
        for good in [
            "https://app.example/cb",
            "https://app.example/cb?tenant=1",
            "http://127.0.0.1:7777/cb",
            "http://[::1]/cb",
            "com.example.app:/cb",
        ] {
            assert!(is_redirect_uri(good), "{good}");
        }
        for bad in [
            "http://app.example/cb",
            "https://app.example/cb#x",
            "https://u:p@app.example/cb",
            "javascript:alert(1)",
            "data:text/html,x",
            "/cb",
            "https://app.example/ cb",
            "",
        ] {
            assert!(!is_redirect_uri(bad), "{bad}");
        }
    }

    #[test]
    fn rfc_8252_loopback_addresses_may_have_any_port() {
        for (registered, requested) in [
            ("http://127.0.0.1:7777/cb", "http://127.0.0.1:54321/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:54321/cb"),
            ("http://127.0.0.1:7777/cb", "http://127.0.0.1/cb"),
            ("http://[::1]/cb?a=1", "http://[::1]:1/cb?a=1"),
            ("http://localhost:8080", "http://localhost:65535"),
        ] {
            assert!(is_same_redirect(registered, requested), "{registered} {requested}");
        }
        for (registered, requested) in [
            ("http://127.0.0.1/cb", "http://127.0.0.1:1/cb/"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1/cb?x"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1/cb#x"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:0/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:65536/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:+1/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.2:1/cb"),
            ("http://127.0.0.1/cb", "http://localhost:1/cb"),
            ("http://127.0.0.1/cb", "http://2130706433:1/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1@evil.example/cb"),
            ("http://127.0.0.1/cb", "http://evil.example:1/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1.evil.example:1/cb"),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1\\@evil.example/cb"),
            ("http://127.0.0.1/cb", "https://127.0.0.1:1/cb"),
            ("https://localhost/cb", "https://localhost:1/cb"),
            ("https://app.example/cb", "https://app.example:444/cb"),
            ("com.example.app:/cb", "com.example.app:1/cb"),
        ] {
            assert!(!is_same_redirect(registered, requested), "{registered} {requested}");
        }
    }

    proptest! {
        #[test]
        fn attack_13_another_port_is_still_the_same_machine(
            requested in "http://(127\\.0\\.0\\.1|localhost|\\[::1\\]|[a-z@:.\\[\\]/\\\\?#0-9]{0,12})(:[0-9]{0,6})?[/@:.a-z?#]{0,8}",
        ) {
            if is_same_redirect("http://127.0.0.1/cb", &requested) {
                let url = Url::parse(&requested).unwrap();
                prop_assert_eq!(url.host_str(), Some("127.0.0.1"));
                prop_assert_eq!((url.scheme(), url.path(), url.query()), ("http", "/cb", None));
                prop_assert!(url.username().is_empty() && url.password().is_none());
            }
        }
    }

    #[test]
    fn rfc_8707_resources_are_absolute_uris() {
        assert!(is_resource("https://api.example/v1") && is_resource("urn:example:api"));
        for bad in ["", "api", "/v1", "https://api.example/#x", "https://api.example/ x"] {
            assert!(!is_resource(bad), "{bad}");
        }
    }
}
