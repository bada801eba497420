//! Whose page made the browser send this? All hosts of ours are one site, so that `SameSite` cookies
//! come along with what a neighbour's page sends.

use super::head::Head;

/// May this page open a WebSocket with the browser's cookies (RFC 6455, section 10.2)? True only for the host's own origin: absent, doubled, `null` and sibling origins are refused, as
/// a browser always sends one.
pub fn is_own(head: &Head<'_>, host: &str, external_port: u16) -> bool {
    head.single("origin").is_some_and(|origin| origin == own(host, external_port))
}

/// May this page change something with the browser's cookies? Only the host's own, and those whose
/// origin is `allowed`. A browser names the page's origin (Fetch, section 3.1), or says how it is
/// related to the host (Fetch Metadata); what says neither is refused.
pub fn may_act(head: &Head<'_>, host: &str, external_port: u16, allowed: &[String]) -> bool {
    if head.values("origin").next().is_none() {
        return head.single(SITE).is_some_and(|site| matches!(site, "same-origin" | "none"));
    }
    let Some(origin) = head.single("origin") else { return false };
    // A page that hides where it is hides it from its own host, too.
    let hidden = || origin == "null" && head.single(SITE) == Some("same-origin");
    origin == own(host, external_port) || allowed.iter().any(|one| one == origin) || hidden()
}

/// Whether nothing tells that another origin's page sent it: what only shows something to a person
/// may come by a link.
pub fn may_show(head: &Head<'_>, host: &str, external_port: u16) -> bool {
    let unsaid = ["origin", SITE].iter().all(|name| head.values(name).next().is_none());
    let opened = head.method == "GET" && head.single("sec-fetch-mode") == Some("navigate");
    unsaid || opened || may_act(head, host, external_port, &[])
}

const SITE: &str = "sec-fetch-site";

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

    #[test]
    fn attack_9_only_ones_own_page_and_named_ones_act() {
        let allowed = ["https://front--bob.example.org".to_owned()];
        let acts = |fields: &[(&'static str, &'static str)]| {
            let fields: Vec<_> =
                fields.iter().map(|(name, v)| Field { name, value: v.as_bytes() }).collect();
            let head = Head { method: "POST", target: "/", authority: "", fields: &fields };
            may_act(&head, "lab--alice.example.org", 443, &allowed)
        };
        let own = ("Origin", "https://lab--alice.example.org");
        for good in [
            &[own][..],
            &[("Origin", "https://front--bob.example.org"), ("Sec-Fetch-Site", "same-site")],
            &[("Sec-Fetch-Site", "same-origin")],
            &[("Sec-Fetch-Site", "none")],
            &[("Origin", "null"), ("Sec-Fetch-Site", "same-origin")],
        ] {
            assert!(acts(good), "{good:?}");
        }
        for bad in [
            &[][..],
            &[own, own],
            &[("Origin", "https://mallory--bob.example.org"), ("Sec-Fetch-Site", "same-site")],
            &[("Origin", "https://mallory--bob.example.org"), ("Sec-Fetch-Site", "same-origin")],
            &[("Origin", "http://lab--alice.example.org")],
            &[("Origin", "https://lab--alice.example.org:8443")],
            &[("Origin", "null")],
            &[("Origin", "null"), ("Sec-Fetch-Site", "cross-site")],
            &[("Origin", ""), ("Sec-Fetch-Site", "same-origin")],
            &[("Sec-Fetch-Site", "same-site")],
            &[("Sec-Fetch-Site", "cross-site")],
            &[("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "same-origin")],
            &[("Referer", "https://lab--alice.example.org/")],
        ] {
            assert!(!acts(bad), "{bad:?}");
        }
    }
}
