//! What of a request's fields reaches the upstream. One place for every engine.

use domain::identity::Identity;

use super::{
    Admitted,
    credential::{TOKEN_FIELD, Withheld, cookies, is_our_cookie},
    head::Head,
    origin,
};

/// How much of the client's own credentials the upstream is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// A workload: no cookie or token of ours.
    Workload,
    /// A service of ours: cookies and credentials pass, identity headers still do not.
    Service,
    /// A service of ours that is given the access token by the gate.
    ServiceWithToken,
}

/// Decides per field. Made once per request.
#[derive(Debug)]
pub struct Scrub<'a> {
    trust: Trust,
    /// Names listed in `Connection` (RFC 9110, section 7.6.1), folded.
    nominated: Vec<&'a [u8]>,
    withheld: &'a Withheld,
    xsrf: Option<&'a str>,
    head: Head<'a>,
}

/// The cookie of Tornado's double submit, whose other half is the field `X-XSRFToken`.
const XSRF_COOKIE: &str = "_xsrf";

impl<'a> Scrub<'a> {
    pub fn new(
        head: &Head<'a>,
        trust: Trust,
        withheld: &'a Withheld,
        xsrf: Option<&'a str>,
    ) -> Self {
        let nominated = head.values("connection").flat_map(options).collect();
        Self { trust, nominated, withheld, xsrf, head: *head }
    }

    pub fn of(head: &Head<'a>, admitted: &'a Admitted) -> Self {
        Self::new(head, admitted.trust, &admitted.withheld, admitted.xsrf)
    }

    /// Whether a field passes as it came. `Cookie` never does: see [`Self::cookie`].
    pub fn keeps(&self, name: &str) -> bool {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("host") || is("content-length") || is("transfer-encoding") {
            return true;
        }
        let gone = is("cookie")
            || (is("authorization") && self.drops_authorization())
            || (is("referer") && self.trust != Trust::Service && self.withheld.referer)
            || is(TOKEN_FIELD)
            || (is("x-xsrftoken") && self.xsrf.is_some())
            // What is right of them the gate sets anew.
            || is("traceparent")
            || is("tracestate")
            || is_hop_by_hop(name)
            || is_look_alike(name)
            || self.nominated.iter().any(|other| is_nominated(name, other));
        !gone
    }

    fn drops_authorization(&self) -> bool {
        match self.trust {
            Trust::Workload => self.withheld.authorization,
            Trust::Service => false,
            Trust::ServiceWithToken => true,
        }
    }

    /// Whether the client takes trailers and says so the way HTTP/2 does: `TE` is for one connection
    /// only, and its one value that passes is said anew (RFC 9113, section 8.2.2). gRPC servers want it.
    pub fn te_trailers(&self) -> bool {
        self.head.lists("te", "trailers")
    }

    /// All cookies that pass, in one field (RFC 9113, section 8.2.3), each as it came.
    pub fn cookie(&self) -> Option<Vec<u8>> {
        let mut kept = match self.xsrf {
            Some(xsrf) => format!("{XSRF_COOKIE}={xsrf}").into_bytes(),
            None => Vec::new(),
        };
        if self.nominated.iter().any(|name| name.eq_ignore_ascii_case(b"cookie")) {
            return (!kept.is_empty()).then_some(kept);
        }
        for value in self.head.values("cookie") {
            for pair in value.split(|&byte| byte == b';') {
                let pair = pair.trim_ascii();
                let name = pair.split(|&byte| byte == b'=').next().unwrap_or_default();
                let ours = self.trust != Trust::Service && is_our_cookie(name.trim_ascii());
                if pair.is_empty() || ours {
                    continue;
                }
                if !kept.is_empty() {
                    kept.extend_from_slice(b"; ");
                }
                kept.extend_from_slice(pair);
            }
        }
        (!kept.is_empty()).then_some(kept)
    }
}

/// Fields for one connection only (RFC 9110, section 7.6.1), and what stands in for them.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "upgrade",
    "http2-settings",
];

/// Whether a field is for one connection only, in requests and in answers.
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// What a `Connection` field lists.
pub fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty())
}

/// Whether a field of an answer is for one connection only, given all options of `Connection`. The
/// framing is not the sender's to take away.
pub fn answer_ends_here<'a>(name: &str, options: &mut impl Iterator<Item = &'a [u8]>) -> bool {
    let framing = ["content-length", "transfer-encoding"];
    if framing.iter().any(|other| name.eq_ignore_ascii_case(other)) {
        return false;
    }
    is_hop_by_hop(name) || options.any(|option| is_nominated(name, option))
}

/// Whether an option of `Connection` means that field.
fn is_nominated(name: &str, option: &[u8]) -> bool {
    folded_eq(name.as_bytes(), option)
}

/// Fields by which some proxy tells a program who is asking, from where, or for what: beginnings.
const LOOK_ALIKE_STARTS: [&str; 15] = [
    "x-forwarded",
    "forwarded",
    "x-auth-request-",
    "x-authenticated-",
    "x-remote-",
    "remote-",
    "x-webauth-",
    "x-dormouse-",
    "dormouse-",
    "x-original-",
    "x-rewrite-",
    "x-ssl-client-",
    "ssl-client-",
    "x-goog-authenticated-",
    "x-envoy-",
];

/// The same: whole names. `Proxy` is the one that CGI turns into a variable for outgoing requests. The
/// fields of the framing themselves pass before these are asked: what is left is another spelling.
const LOOK_ALIKES: [&str; 11] = [
    "content-length",
    "transfer-encoding",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-user",
    "x-proxy-user",
    "x-client-cert",
    "proxy",
];

/// Programs fold `_` and `.` to `-` (CGI, WSGI), so these are the same name.
fn fold(byte: u8) -> u8 {
    match byte {
        b'_' | b'.' => b'-',
        other => other.to_ascii_lowercase(),
    }
}

fn folded_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(&a, &b)| fold(a) == fold(b))
}

fn is_look_alike(name: &str) -> bool {
    let name = name.as_bytes();
    LOOK_ALIKES.iter().any(|other| folded_eq(name, other.as_bytes()))
        || LOOK_ALIKE_STARTS.iter().any(|start| {
            name.get(..start.len()).is_some_and(|begin| folded_eq(begin, start.as_bytes()))
        })
}

/// What we say of who sent the request.
pub fn identity_fields(identity: &Identity, mut set: impl FnMut(&'static str, &[u8])) {
    set("X-Forwarded-User", identity.user.as_str().as_bytes());
    if let Some(email) = identity.email.as_deref().filter(|email| is_field_text(email)) {
        set("X-Forwarded-Email", email.as_bytes());
    }
    // A comma separates; a group whose name has one cannot be said.
    let groups = identity.groups.iter().map(String::as_str);
    let mut groups = groups.filter(|g| is_field_text(g) && !g.contains(','));
    let Some(first) = groups.next() else { return };
    match groups.next() {
        None => set("X-Forwarded-Groups", first.as_bytes()),
        Some(second) => {
            let all: Vec<_> = [first, second].into_iter().chain(groups).collect();
            set("X-Forwarded-Groups", all.join(",").as_bytes());
        }
    }
}

fn is_field_text(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_control()) && text.trim() == text
}

/// Whether a client brings its own half of Tornado's double submit.
pub fn has_xsrf_cookie(head: &Head<'_>) -> bool {
    cookies(head).any(|(name, _)| name == XSRF_COOKIE.as_bytes())
}

/// The `https` spelling of a `Location` that names our own public host by plain HTTP; `None` for
/// everything else. A port that is left out, or the usual one, is what a program makes of a `Host`
/// that it does not read whole.
pub fn location(value: &[u8], host: &str, external_port: u16) -> Option<Vec<u8>> {
    const HTTP: &[u8] = b"http://";
    let (scheme, rest) = value.split_at_checked(HTTP.len())?;
    if !scheme.eq_ignore_ascii_case(HTTP) {
        return None;
    }
    let end = rest.iter().position(|byte| b"/?#\\".contains(byte)).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (name, port) = authority.split_at_checked(host.len())?;
    let port = match port {
        [] => 80,
        [b':', digits @ ..] => std::str::from_utf8(digits).ok()?.parse().ok()?,
        _ => return None,
    };
    let same = name.eq_ignore_ascii_case(host.as_bytes()) && (port == 80 || port == external_port);
    same.then(|| [origin::own(host, external_port).as_bytes(), path].concat())
}

/// Whether an upstream's `Set-Cookie` passes: none of our names.
pub fn keeps_set_cookie(value: &[u8]) -> bool {
    let name = value.split(|&byte| byte == b'=' || byte == b';').next().unwrap_or_default();
    !is_our_cookie(name.trim_ascii())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::head::Field, *};

    fn scrubbed(fields: &[(&str, &str)], trust: Trust) -> Vec<String> {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| Field { name, value: value.as_bytes() }).collect();
        let head = Head { method: "GET", target: "/", authority: "", fields: &fields };
        let withheld = Withheld::of(&head, &|token| token == "ours");
        let scrub = Scrub::new(&head, trust, &withheld, None);
        let kept = fields.iter().filter(|field| scrub.keeps(field.name));
        let mut kept: Vec<_> =
            kept.map(|f| format!("{}: {}", f.name, String::from_utf8_lossy(f.value))).collect();
        kept.extend(scrub.cookie().map(|c| format!("Cookie: {}", String::from_utf8_lossy(&c))));
        kept
    }

    fn workload(fields: &[(&str, &str)]) -> Vec<String> {
        scrubbed(fields, Trust::Workload)
    }

    #[test]
    fn attack_1_identity_headers_from_outside() {
        for name in [
            "X-Forwarded-User",
            "x-forwarded-user",
            "X_Forwarded_User",
            "X.Forwarded.User",
            "x_FORWARDED.groups",
            "X-Forwarded-Email",
            "X-Auth-Request-User",
            "Remote-User",
            "REMOTE_USER",
            "X-Remote-User",
            "X-Original-URL",
            "X-WebAuth-User",
        ] {
            assert_eq!(workload(&[(name, "root"), (name, "root")]), [""; 0], "{name}");
        }
        let nominated = [("Connection", "X-Forwarded-User, close"), ("X-Forwarded-User", "root")];
        assert_eq!(workload(&nominated), [""; 0]);
        let others = [("Connection", "x_app_flag"), ("X-App-Flag", "1"), ("X-App", "2")];
        assert_eq!(workload(&others), ["X-App: 2"]);
        assert_eq!(workload(&[("Connection", "host"), ("Host", "h")]), ["Host: h"]);
    }

    #[test]
    fn attack_2_spoofed_forwarding_headers() {
        for name in [
            "X-Forwarded-Host",
            "X-Forwarded-Proto",
            "X-Forwarded-Port",
            "X-Forwarded-Uri",
            "X-Forwarded-For",
            "X-Forwarded",
            "Forwarded",
            "X-Real-IP",
            "True-Client-IP",
            "Proxy",
        ] {
            assert_eq!(scrubbed(&[(name, "evil")], Trust::Service), [""; 0], "{name}");
        }
    }

    #[test]
    fn attack_16_our_cookies_and_tokens_never_reach_a_workload() {
        let fields = [
            ("Cookie", "a=1; __Host-dormouse=jwt; b=\"x;y\""),
            ("Cookie", " __Host-dormouse-refresh=r;__HOST-DORMOUSE-login-1=s; __Host-other=2"),
            ("Authorization", "Bearer ours"),
        ];
        assert_eq!(workload(&fields), ["Cookie: a=1; b=\"x; y\"; __Host-other=2"]);
        assert_eq!(workload(&[("Authorization", "token app")]), ["Authorization: token app"]);
        let apps = ("Authorization", "Bearer sk-of-the-app");
        let referer = ("Referer", "https://h/?token=ours");
        let beside = [apps, ("Dormouse-Token", "ours"), ("dormouse_token", "ours"), referer];
        assert_eq!(workload(&beside), ["Authorization: Bearer sk-of-the-app"]);
        assert_eq!(scrubbed(&[apps], Trust::ServiceWithToken), [""; 0]);
        let service = scrubbed(&[("Cookie", "__Host-dormouse-sso=s")], Trust::Service);
        assert_eq!(service, ["Cookie: __Host-dormouse-sso=s"]);
    }

    #[test]
    fn attack_7_no_other_spelling_of_the_framing_passes() {
        for name in ["Content_Length", "content.length", "Transfer_Encoding", "TRANSFER.ENCODING"] {
            assert_eq!(scrubbed(&[(name, "5")], Trust::Service), [""; 0], "{name}");
        }
        assert_eq!(workload(&[("Content-Length", "5")]), ["Content-Length: 5"]);
    }

    #[test]
    fn a_redirect_to_plain_http_on_our_own_host_stays_on_https() {
        let to = |value: &str, port| {
            let to = location(value.as_bytes(), "app.example", port);
            to.map(|to| String::from_utf8(to).unwrap())
        };
        for (value, port, expected) in [
            ("http://app.example:8443/items/?a=1#b", 8443, "https://app.example:8443/items/?a=1#b"),
            ("http://app.example/x", 8443, "https://app.example:8443/x"),
            ("HTTP://App.Example:80", 443, "https://app.example"),
            ("http://app.example?x", 443, "https://app.example?x"),
        ] {
            assert_eq!(to(value, port).as_deref(), Some(expected), "{value}");
        }
        for other in [
            "http://app.example:8080/",
            "http://app.example.evil/",
            "http://app.example@evil/",
            "http://app.example:80@evil/",
            "http://evil/app.example",
            "http://other.example/",
            "https://app.example/",
            "//app.example/",
            "/items/",
            "http:app.example",
            "",
        ] {
            assert_eq!(to(other, 443), None, "{other}");
        }
    }

    #[test]
    fn a_program_with_a_token_need_not_bring_a_double_submit() {
        let fields = [("Cookie", "a=1"), ("X-XSRFToken", "stale")];
        let fields: Vec<_> =
            fields.iter().map(|(name, v)| Field { name, value: v.as_bytes() }).collect();
        let head = Head { method: "POST", target: "/", authority: "", fields: &fields };
        assert!(!has_xsrf_cookie(&head));
        let withheld = Withheld::default();
        let scrub = Scrub::new(&head, Trust::Workload, &withheld, Some("v"));
        assert_eq!(scrub.cookie().unwrap(), b"_xsrf=v; a=1");
        assert!(!scrub.keeps("X-XSRFToken"));
        let own = [Field { name: "Cookie", value: b"b=2; _xsrf=own" }];
        assert!(has_xsrf_cookie(&Head { fields: &own, ..head }));
    }

    #[test]
    fn a_workload_cannot_set_our_cookies() {
        assert!(keeps_set_cookie(b"session=1; Path=/"));
        assert!(!keeps_set_cookie(b"__Host-dormouse=evil; Path=/"));
        assert!(!keeps_set_cookie(b" __host-Dormouse-refresh =evil"));
    }

    proptest! {
        #[test]
        fn no_spelling_of_an_identity_header_passes(
            stem in prop::sample::select(vec!["x-forwarded-user", "x-auth-request-email", "remote-user", "x-real-ip"]),
            seed in prop::collection::vec(0u8..4, 24),
        ) {
            let name: String = stem.bytes().zip(&seed).map(|(byte, pick)| match (byte, pick) {
                (b'-', 0) => '_',
                (b'-', 1) => '.',
                (byte, 2 | 3) => char::from(byte.to_ascii_uppercase()),
                (byte, _) => char::from(byte),
            }).collect();
            prop_assert!(workload(&[(&name, "root")]).is_empty());
        }

        #[test]
        fn no_cookie_text_lets_ours_through(text in "[ -~]{0,30}") {
            let value = format!("{text};__Host-dormouse=SECRET; {text}");
            for line in workload(&[("Cookie", &value)]) {
                prop_assert!(!line.contains("SECRET"));
            }
        }
    }
}
