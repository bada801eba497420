//! May this page open a WebSocket with the browser's cookies? (RFC 6455, section 10.2)

use super::head::Head;

/// True only for the host's own origin: absent, doubled, `null` and sibling origins are refused, as
/// a browser always sends one.
pub fn is_own(head: &Head<'_>, host: &str, external_port: u16) -> bool {
    head.single("origin").is_some_and(|origin| origin == own(host, external_port))
}

/// The ASCII serialization of the host's origin (RFC 6454, section 6.2): no default port.
pub fn own(host: &str, external_port: u16) -> String {
    if external_port == 443 {
        format!("https://{host}")
    } else {
        format!("https://{host}:{external_port}")
    }
}

#[cfg(test)]
mod tests {
    use super::{super::head::Field, *};

    fn accepts(origins: &[&str], port: u16) -> bool {
        let fields: Vec<_> =
            origins.iter().map(|o| Field { name: "Origin", value: o.as_bytes() }).collect();
        let head = Head { method: "GET", target: "/", authority: "", fields: &fields };
        is_own(&head, "lab--alice.example.org", port)
    }

    #[test]
    fn attack_9_cross_site_websocket_hijack() {
        assert!(accepts(&["https://lab--alice.example.org"], 443));
        assert!(accepts(&["https://lab--alice.example.org:8443"], 8443));
        for bad in [
            "https://evil.net",
            "https://evil--bob.example.org",
            "https://lab--alice.example.org.evil.net",
            "http://lab--alice.example.org",
            "https://lab--alice.example.org:8443",
            "https://lab--alice.example.org/",
            "null",
            "",
        ] {
            assert!(!accepts(&[bad], 443), "{bad}");
        }
        assert!(!accepts(&[], 443));
        assert!(!accepts(&["https://lab--alice.example.org", "https://evil.net"], 443));
    }
}
