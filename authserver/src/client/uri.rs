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
    fn rfc_8707_resources_are_absolute_uris() {
        assert!(is_resource("https://api.example/v1") && is_resource("urn:example:api"));
        for bad in ["", "api", "/v1", "https://api.example/#x", "https://api.example/ x"] {
            assert!(!is_resource(bad), "{bad}");
        }
    }
}
