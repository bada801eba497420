//! The issuer identifier, and which redirect URIs belong to the gate.

use std::{fmt, str::FromStr, sync::Arc};

use serde::Deserialize;
use url::{Host, Url};

/// Where the gate takes codes, on every host that it serves.
pub const GATE_CALLBACK: &str = "/.dormouse/callback";

/// Where the gate takes browsers back after signing out, on every such host.
const GATE_SIGNED_OUT: &str = "/.dormouse/signed-out";

/// An issuer identifier (RFC 8414, section 2): an https origin, without a path so that every
/// endpoint's address is the origin and a constant.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Issuer {
    origin: Arc<str>,
    host: Arc<str>,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the issuer must look like https://auth.example.com or https://auth.example.com:8443")]
pub struct IssuerError;

impl Issuer {
    pub fn as_str(&self) -> &str {
        &self.origin
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    /// The address of an endpoint; `path` starts with a slash.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }
}

impl FromStr for Issuer {
    type Err = IssuerError;

    fn from_str(text: &str) -> Result<Self, IssuerError> {
        let url = Url::parse(text).map_err(|_| IssuerError)?;
        let Some(Host::Domain(host)) = url.host() else { return Err(IssuerError) };
        let origin = url.origin().ascii_serialization();
        // Comparing with the serialised origin refuses paths, user-info, upper case and `:443`.
        if url.scheme() != "https" || origin != text || host.ends_with('.') {
            return Err(IssuerError);
        }
        Ok(Self { origin: origin.into(), host: host.into(), port: url.port() })
    }
}

impl TryFrom<String> for Issuer {
    type Error = IssuerError;
    fn try_from(text: String) -> Result<Self, IssuerError> {
        text.parse()
    }
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)
    }
}

/// The hosts that the gate serves: one label below the base domain, on the issuer's port.
#[derive(Debug, Clone)]
pub struct GateHosts {
    /// What has to follow the label: the domain, and the port when there is one.
    suffix: String,
    /// The issuer's own host: served, but not by the gate.
    issuer_authority: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("base_domain must be a domain name in lower case, such as example.com")]
pub struct BaseDomainError;

impl GateHosts {
    pub fn new(issuer: &Issuer, base_domain: &str) -> Result<Self, BaseDomainError> {
        if !base_domain.split('.').all(is_label) {
            return Err(BaseDomainError);
        }
        let port = issuer.port.map(|port| format!(":{port}")).unwrap_or_default();
        Ok(Self {
            suffix: format!(".{base_domain}{port}"),
            issuer_authority: format!("{}{port}", issuer.host),
        })
    }

    /// `https://<label>.<base domain>[:port]/.dormouse/callback`, and nothing that a URL parser
    /// would merely read as that. The text itself is taken apart, so there is no second reading.
    pub fn is_callback(&self, uri: &str) -> bool {
        uri.strip_suffix(GATE_CALLBACK).is_some_and(|origin| self.is_origin(origin))
    }

    /// Where a browser may go after signing out: the gate's page for that, or the start page, of
    /// such a host.
    pub fn is_signed_out_page(&self, uri: &str) -> bool {
        uri.strip_suffix(GATE_SIGNED_OUT)
            .or_else(|| uri.strip_suffix('/'))
            .is_some_and(|origin| self.is_origin(origin))
    }

    /// The start page of the host with that label.
    pub fn start_page(&self, label: &str) -> String {
        format!("https://{label}{}/", self.suffix)
    }

    fn is_origin(&self, origin: &str) -> bool {
        let Some(authority) = origin.strip_prefix("https://") else { return false };
        authority != self.issuer_authority
            && authority.strip_suffix(self.suffix.as_str()).is_some_and(is_label)
    }
}

/// A DNS label in lower case (RFC 1035, section 2.3.1, with digits first by RFC 1123).
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gate() -> GateHosts {
        GateHosts::new(&"https://auth.localhost:8443".parse().unwrap(), "localhost").unwrap()
    }

    #[test]
    fn an_issuer_is_an_origin() {
        for good in ["https://auth.localhost:8443", "https://auth.example.com", "https://a.b.c:1"] {
            assert_eq!(good.parse::<Issuer>().unwrap().as_str(), good);
        }
        for bad in [
            "http://auth.example.com",
            "https://auth.example.com/",
            "https://auth.example.com:443",
            "https://Auth.example.com",
            "https://u@auth.example.com",
            "https://auth.example.com?x",
            "https://127.0.0.1",
            "https://auth.example.com.",
            "auth.example.com",
        ] {
            assert_eq!(bad.parse::<Issuer>(), Err(IssuerError), "{bad}");
        }
    }

    #[test]
    fn attack_13_the_gates_redirect_uri_has_one_form() {
        let gate = gate();
        assert!(gate.is_callback("https://lab--alice.localhost:8443/.dormouse/callback"));
        assert!(gate.is_callback("https://portal.localhost:8443/.dormouse/callback"));
        for bad in [
            "https://a.b.localhost:8443/.dormouse/callback",
            "https://lab@localhost:8443/.dormouse/callback",
            "https://user@lab.localhost:8443/.dormouse/callback",
            "https://evil.example/lab.localhost:8443/.dormouse/callback",
            "https://evil.example#lab.localhost:8443/.dormouse/callback",
            "https://evil.example?lab.localhost:8443/.dormouse/callback",
            "https://evil.example\\lab.localhost:8443/.dormouse/callback",
            "https://evil%2elocalhost:8443/.dormouse/callback",
            "https://lab.localhost/.dormouse/callback",
            "https://lab.localhost:443/.dormouse/callback",
            "https://lab.localhost:08443/.dormouse/callback",
            "https://lab.localhost:84430/.dormouse/callback",
            "https://lab.localhost:8443/.dormouse/callback#x",
            "https://lab.localhost:8443/.dormouse/callback?x",
            "https://lab.localhost:8443/.dormouse/callback/",
            "https://lab.localhost:8443/.dormouse/callback/../x",
            "https://lab.localhost:8443/x/../.dormouse/callback",
            "https://lab.localhost:8443//.dormouse/callback",
            "https://lab.localhost:8443/.Dormouse/callback",
            "https://lab.localhost:8443/%2edormouse/callback",
            "https://Lab.localhost:8443/.dormouse/callback",
            "HTTPS://lab.localhost:8443/.dormouse/callback",
            "http://lab.localhost:8443/.dormouse/callback",
            "https:lab.localhost:8443/.dormouse/callback",
            "https:///lab.localhost:8443/.dormouse/callback",
            "https://lab.localhost.:8443/.dormouse/callback",
            "https://.localhost:8443/.dormouse/callback",
            "https://localhost:8443/.dormouse/callback",
            "https://*.localhost:8443/.dormouse/callback",
            "https://-lab.localhost:8443/.dormouse/callback",
            "https://lab_.localhost:8443/.dormouse/callback",
            "https://[::1].localhost:8443/.dormouse/callback",
            "https://[::1]:8443/.dormouse/callback",
            "https://127.0.0.1:8443/.dormouse/callback",
            "https://lab.evillocalhost:8443/.dormouse/callback",
            "https://auth.localhost:8443/.dormouse/callback",
            "https://lab.localhost:8443/.dormouse/callback ",
            " https://lab.localhost:8443/.dormouse/callback",
            "https://lab\t.localhost:8443/.dormouse/callback",
            "https://läb.localhost:8443/.dormouse/callback",
            "//lab.localhost:8443/.dormouse/callback",
            "",
        ] {
            assert!(!gate.is_callback(bad), "{bad}");
        }
    }

    #[test]
    fn without_a_port_none_may_be_named() {
        let issuer = "https://auth.example.com".parse().unwrap();
        let gate = GateHosts::new(&issuer, "example.com").unwrap();
        assert!(gate.is_callback("https://lab.example.com/.dormouse/callback"));
        assert!(!gate.is_callback("https://lab.example.com:443/.dormouse/callback"));
        assert!(!gate.is_callback("https://lab.example.com:8443/.dormouse/callback"));
    }

    #[test]
    fn a_start_page_is_on_the_same_hosts() {
        let gate = gate();
        assert!(gate.is_signed_out_page("https://lab--alice.localhost:8443/"));
        assert!(gate.is_signed_out_page("https://a--b.localhost:8443/.dormouse/signed-out"));
        assert!(!gate.is_signed_out_page("https://evil.example/.dormouse/signed-out"));
        assert!(!gate.is_signed_out_page("https://lab--alice.localhost:8443"));
        assert!(!gate.is_signed_out_page("https://lab--alice.localhost:8443/x/"));
        assert!(!gate.is_signed_out_page("https://evil.example/"));
    }

    #[test]
    fn base_domains_are_plain() {
        let issuer: Issuer = "https://auth.localhost".parse().unwrap();
        for bad in ["", ".localhost", "localhost.", "Local", "a..b", "a b", "*.x", "x:1", "x/"] {
            assert!(GateHosts::new(&issuer, bad).is_err(), "{bad}");
        }
    }

    /// Pieces that URL tricks are made of.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("https://".to_owned()),
            Just("lab".to_owned()),
            Just(".localhost".to_owned()),
            Just(":8443".to_owned()),
            Just("/.dormouse/callback".to_owned()),
            Just("evil.example".to_owned()),
            Just("@".to_owned()),
            Just("/".to_owned()),
            Just("\\".to_owned()),
            Just("#".to_owned()),
            Just("?".to_owned()),
            Just("[::1]".to_owned()),
            Just("%2e".to_owned()),
            Just("\t".to_owned()),
            "\\PC{0,3}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Whatever is accepted is read by a URL parser, which is what a browser uses, as one host
        /// right below the base domain.
        #[test]
        fn attack_13_what_is_accepted_is_what_a_browser_reads(
            pieces in proptest::collection::vec(piece(), 1..8),
        ) {
            let uri: String = pieces.concat();
            if gate().is_callback(&uri) {
                let url = Url::parse(&uri).unwrap();
                prop_assert_eq!(url.as_str(), &uri);
                let host = url.host_str().unwrap();
                prop_assert_eq!(host.strip_suffix(".localhost").map(|l| l.contains('.')), Some(false));
                prop_assert_eq!(url.port(), Some(8443));
                prop_assert_eq!(url.path(), GATE_CALLBACK);
                prop_assert!(url.query().is_none() && url.fragment().is_none());
                prop_assert!(url.username().is_empty() && url.password().is_none());
            }
        }

        #[test]
        fn every_workload_host_is_accepted(label in "[a-z][a-z0-9]{0,20}(--[a-z][a-z0-9]{0,20})?") {
            prop_assume!(label != "auth");
            let uri = format!("https://{label}.localhost:8443/.dormouse/callback");
            prop_assert!(gate().is_callback(&uri), "{}", uri);
        }
    }
}
