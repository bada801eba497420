//! What a request brings to prove who is asking. A credential of ours that is doubled or malformed
//! denies; it never counts as absent. What is not ours is the workload's own business.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};
use url::form_urlencoded;

use super::{closed::percent_decode, head::Head};

/// The access token of a browser session, per workload host.
pub const ACCESS_COOKIE: &str = "__Host-dormouse";
/// Its refresh token.
pub const REFRESH_COOKIE: &str = "__Host-dormouse-refresh";
/// Binds sign-ins that are under way to the browser.
pub const LOGIN_COOKIE: &str = "__Host-dormouse-login";
/// A sign-out under way: what the issuer has to send back.
pub const SIGN_OUT_COOKIE: &str = "__Host-dormouse-sign-out";

/// A field of our own for a token, which leaves `Authorization` to the workload.
pub const TOKEN_FIELD: &str = "dormouse-token";
/// The parameter of a query in which Jupyter's clients send a token.
const TOKEN_PARAMETER: &str = "token";

/// As presented, not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presented<'a> {
    Nothing,
    /// In `Dormouse-Token`, in `Authorization` as `Bearer` (RFC 6750, section 2.1) or `token`, or in
    /// the query as `token`.
    Token(Cow<'a, str>),
    Session {
        access: &'a str,
        refresh: Option<&'a str>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error("there is more than one Authorization header")]
    TwoAuthorizations,
    #[error("the Authorization header is malformed")]
    MalformedAuthorization,
    #[error("the Dormouse-Token header is malformed or there is more than one")]
    MalformedToken,
    #[error("there are two different tokens")]
    TwoTokens,
    #[error("a session cookie is there twice")]
    DoubledCookie,
    #[error("a session cookie is malformed")]
    MalformedCookie,
}

/// Whether a token says that it is ours (`domain::token::is_claimed`).
pub type IsOurs<'f> = &'f dyn Fn(&str) -> bool;

/// Reads the credential. A token of ours counts before a session. An `Authorization` that is not ours
/// belongs to the workload beside a session, and is a bad credential without one.
pub fn presented<'a>(
    head: &Head<'a>,
    is_ours: IsOurs<'_>,
) -> Result<Presented<'a>, CredentialError> {
    let mut authorizations = head.values("authorization");
    let authorization = authorizations.next();
    if authorizations.next().is_some() {
        return Err(CredentialError::TwoAuthorizations);
    }
    let own_field = own_field(head)?.map(Cow::Borrowed);
    let in_authorization = match authorization {
        Some(value) => claimed(value, is_ours)?.map(Cow::Borrowed),
        None => None,
    };
    let mut tokens =
        own_field.into_iter().chain(in_authorization).chain(in_query(head.query(), is_ours));
    if let Some(token) = tokens.next() {
        return match tokens.all(|other| other == token) {
            true => Ok(Presented::Token(token)),
            false => Err(CredentialError::TwoTokens),
        };
    }
    let access = cookie(head, ACCESS_COOKIE)?;
    let refresh = cookie(head, REFRESH_COOKIE)?;
    match (access, authorization) {
        (Some(access), _) => Ok(Presented::Session { access, refresh }),
        (None, None) => Ok(Presented::Nothing),
        (None, Some(value)) => match after_scheme(value, &["bearer"]) {
            None if std::str::from_utf8(value).is_ok() => Ok(Presented::Nothing),
            Some(token) if is_token(token.as_bytes()) => Ok(Presented::Token(token.into())),
            _ => Err(CredentialError::MalformedAuthorization),
        },
    }
}

fn own_field<'a>(head: &Head<'a>) -> Result<Option<&'a str>, CredentialError> {
    let mut values = head.values(TOKEN_FIELD);
    let Some(value) = values.next() else { return Ok(None) };
    let token = std::str::from_utf8(value).ok().filter(|token| is_token(token.as_bytes()));
    match (token, values.next()) {
        (Some(token), None) => Ok(Some(token)),
        _ => Err(CredentialError::MalformedToken),
    }
}

/// The token of ours in an `Authorization` field: with the scheme `Bearer`, or `token`, as Jupyter's
/// clients say.
fn claimed<'a>(value: &'a [u8], is_ours: IsOurs<'_>) -> Result<Option<&'a str>, CredentialError> {
    let Some(token) = after_scheme(value, &["bearer", "token"]) else { return Ok(None) };
    if is_token(token.as_bytes()) {
        Ok(Some(token).filter(|token| is_ours(token)))
    } else if holds_ours(value, is_ours) {
        Err(CredentialError::MalformedAuthorization)
    } else {
        Ok(None)
    }
}

/// What follows one of these schemes.
fn after_scheme<'a>(value: &'a [u8], schemes: &[&str]) -> Option<&'a str> {
    let value = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    let (scheme, token) = match value.as_bytes().iter().position(|byte| b" \t".contains(byte)) {
        Some(space) => value.split_at(space),
        None => (value, ""),
    };
    let known = schemes.iter().any(|known| scheme.eq_ignore_ascii_case(known));
    known.then(|| token.trim_start_matches([' ', '\t']))
}

/// Tokens of ours in a query, decoded.
fn in_query<'a, 'f>(
    query: &'a str,
    is_ours: IsOurs<'f>,
) -> impl Iterator<Item = Cow<'a, str>> + use<'a, 'f> {
    let pairs = form_urlencoded::parse(query.as_bytes());
    pairs.filter_map(|(name, value)| (name == TOKEN_PARAMETER && is_ours(&value)).then_some(value))
}

/// Whether a token of ours is anywhere in a text, whatever is around it.
fn holds_ours(text: &[u8], is_ours: IsOurs<'_>) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let mut pieces = text.split(|byte| !is_part(byte));
    pieces.any(|piece| std::str::from_utf8(piece).is_ok_and(is_ours))
}

/// What of a head holds a token of ours, and so reaches no workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Withheld {
    pub authorization: bool,
    pub referer: bool,
    /// The target without them.
    pub target: Option<String>,
}

impl Withheld {
    pub fn of(head: &Head<'_>, is_ours: IsOurs<'_>) -> Self {
        let holds = |name: &str| head.values(name).any(|value| holds_ours_encoded(value, is_ours));
        let mut parts = head.query().split('&');
        let in_query = parts.any(|part| is_token_of_ours(part, is_ours));
        Self {
            authorization: holds("authorization"),
            referer: holds("referer"),
            target: in_query.then(|| without_tokens(head, is_ours)),
        }
    }
}

/// The same for a text that may hide it from a glance: percent signs, or the Base64 of `Basic`
/// (RFC 7617, section 2).
fn holds_ours_encoded(value: &[u8], is_ours: IsOurs<'_>) -> bool {
    let basic = || {
        let credentials = after_scheme(value, &["basic"])?;
        STANDARD.decode(credentials).ok()
    };
    holds_ours(value, is_ours)
        || value.contains(&b'%') && holds_ours(&percent_decode(value), is_ours)
        || basic().is_some_and(|text| holds_ours(&text, is_ours))
}

/// Whether a part of a query is the parameter for tokens, and one of ours is in it.
fn is_token_of_ours(part: &str, is_ours: IsOurs<'_>) -> bool {
    let mut pairs = form_urlencoded::parse(part.as_bytes());
    pairs.any(|(name, value)| name == TOKEN_PARAMETER && holds_ours(value.as_bytes(), is_ours))
}

/// The target with every such part taken out, and nothing else changed.
fn without_tokens(head: &Head<'_>, is_ours: IsOurs<'_>) -> String {
    let parts = head.query().split('&').filter(|part| !is_token_of_ours(part, is_ours));
    let kept: Vec<_> = parts.collect();
    match kept.is_empty() {
        true => head.path().to_owned(),
        false => format!("{}?{}", head.path(), kept.join("&")),
    }
}

/// The alphabet of tokens (`token68`, RFC 9110, section 11.2). Every byte is looked at, without an
/// early end: so many are looked at at once, and tokens are long.
fn is_token(text: &[u8]) -> bool {
    let good = |byte: u8| {
        byte.is_ascii_alphanumeric()
            | (byte == b'-')
            | (byte == b'.')
            | (byte == b'_')
            | (byte == b'~')
            | (byte == b'+')
            | (byte == b'/')
            | (byte == b'=')
    };
    !text.is_empty() && text.iter().fold(true, |all, &byte| all & good(byte))
}

/// All pairs of all `Cookie` fields (HTTP/2 may split them; RFC 9113, section 8.2.3), unparsed.
pub fn cookies<'a, 's>(
    head: &'s Head<'a>,
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a, 's> {
    head.values("cookie").flat_map(|value| value.split(|&byte| byte == b';')).filter_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|&byte| byte == b'=').unwrap_or(pair.len());
        let (name, value) = pair.split_at(at);
        (!pair.is_empty()).then(|| (name.trim_ascii_end(), value.get(1..).unwrap_or_default()))
    })
}

/// The cookie of that name, once or not at all. The value is a token's alphabet or malformed.
pub fn cookie<'a>(head: &Head<'a>, wanted: &str) -> Result<Option<&'a str>, CredentialError> {
    let mut found = None;
    for (name, value) in cookies(head) {
        if !name.eq_ignore_ascii_case(wanted.as_bytes()) {
            continue;
        }
        // Browsers match the prefix in any case, so another case is somebody's trick.
        if name != wanted.as_bytes() {
            return Err(CredentialError::MalformedCookie);
        }
        if found.is_some() {
            return Err(CredentialError::DoubledCookie);
        }
        let text = std::str::from_utf8(value).ok().filter(|_| is_token(value));
        found = Some(text.ok_or(CredentialError::MalformedCookie)?);
    }
    Ok(found)
}

/// Whether the cookie is one of ours, which no workload may see or set.
pub fn is_our_cookie(name: &[u8]) -> bool {
    name.get(..ACCESS_COOKIE.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(ACCESS_COOKIE.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::head::Field, *};

    /// Ours begin so in these tests.
    fn is_ours(token: &str) -> bool {
        token.starts_with("ours.")
    }

    fn with<R>(target: &str, fields: &[(&str, &str)], read: impl FnOnce(&Head<'_>) -> R) -> R {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| Field { name, value: value.as_bytes() }).collect();
        read(&Head { method: "GET", target, authority: "", fields: &fields })
    }

    fn read_at(target: &str, fields: &[(&str, &str)]) -> Result<String, CredentialError> {
        with(target, fields, |head| {
            presented(head, &is_ours).map(|presented| match presented {
                Presented::Nothing => "nothing".to_owned(),
                Presented::Token(token) => format!("token {token}"),
                Presented::Session { access, refresh } => format!("session {access} {refresh:?}"),
            })
        })
    }

    fn read(fields: &[(&str, &str)]) -> Result<String, CredentialError> {
        read_at("/", fields)
    }

    const SESSION: (&str, &str) = ("Cookie", "__Host-dormouse=a");

    #[test]
    fn attack_6_a_malformed_credential_denies() {
        use CredentialError::*;
        assert_eq!(read(&[]).unwrap(), "nothing");
        assert_eq!(read(&[("authorization", "BEARER  a.b-c")]).unwrap(), "token a.b-c");
        assert_eq!(read(&[("Authorization", "token abc")]).unwrap(), "nothing");
        for bad in ["Bearer", "Bearer ", "Bearer a b", "Bearer \"a\"", "bearer a,b", "Bearer ü"] {
            assert_eq!(read(&[("Authorization", bad)]), Err(MalformedAuthorization), "{bad}");
        }
        let two = [("Authorization", "Bearer a"), ("authorization", "Basic b"), SESSION];
        assert_eq!(read(&two), Err(TwoAuthorizations));
        for bad in
            ["__Host-dormouse=", "__Host-dormouse", "__Host-dormouse=\"a\"", "__host-Dormouse=a"]
        {
            assert_eq!(read(&[("Cookie", bad)]), Err(MalformedCookie), "{bad}");
        }
        for bad in ["", "a b", "Bearer a", "\"a\"", "ü"] {
            assert_eq!(read(&[("Dormouse-Token", bad), SESSION]), Err(MalformedToken), "{bad}");
        }
        let twice = [("Dormouse-Token", "ours.a"), ("dormouse-token", "ours.a")];
        assert_eq!(read(&twice), Err(MalformedToken));
    }

    #[test]
    fn an_authorization_that_is_not_ours_is_the_apps_beside_a_session() {
        for theirs in [
            "Bearer sk-of-the-app",
            "Bearer null",
            "Bearer \"abc\"",
            "Bearer",
            "Bearer ü",
            "token abc",
            "Basic YTpi",
        ] {
            let fields = [("Authorization", theirs), SESSION];
            assert_eq!(read(&fields).unwrap(), "session a None", "{theirs}");
            let held = with("/", &fields, |head| Withheld::of(head, &is_ours));
            assert_eq!(held, Withheld::default(), "{theirs}");
        }
    }

    #[test]
    fn attack_16_a_token_of_ours_is_found_wherever_clients_put_it_and_goes_no_further() {
        let held = |target: &str, fields: &[(&str, &str)]| {
            with(target, fields, |head| Withheld::of(head, &is_ours))
        };
        for (value, read_as) in [
            ("Bearer ours.x.y", Ok("token ours.x.y".to_owned())),
            ("token ours.x.y", Ok("token ours.x.y".to_owned())),
            ("Bearer ours.x.y z", Err(CredentialError::MalformedAuthorization)),
            ("Bearer \"ours.x.y\"", Err(CredentialError::MalformedAuthorization)),
            // Not taken from there, and not passed on either.
            ("Basic YTpvdXJzLngueQ==", Ok("session a None".to_owned())),
            ("ours.x.y", Ok("session a None".to_owned())),
            ("Other k=\"ours.x.y\"", Ok("session a None".to_owned())),
            ("Other ours%2Ex.y", Ok("session a None".to_owned())),
        ] {
            let fields = [("Authorization", value), SESSION];
            assert_eq!(read(&fields), read_as, "{value}");
            assert!(held("/", &fields).authorization, "{value}");
        }
        let referer = |value| held("/", &[("Referer", value)]).referer;
        assert!(referer("https://lab/tree?x=1&token=ours.x.y#z"));
        assert!(referer("https://lab/tree?token=ours%2Ex.y"));
        assert!(!referer("https://lab/tree?token=theirs.x.y"));
        let own = [("Dormouse-Token", "ours.x.y"), ("Authorization", "Bearer sk-of-the-app")];
        assert_eq!(read(&own).unwrap(), "token ours.x.y");
        assert!(!held("/", &own).authorization);
    }

    #[test]
    fn attack_16_a_token_of_ours_in_the_query_is_read_and_taken_out() {
        let target = |target: &str| with(target, &[], |head| Withheld::of(head, &is_ours)).target;
        for (before, after) in [
            ("/api?token=ours.x.y", "/api"),
            ("/api?token=ours.x.y&a=%20b&c", "/api?a=%20b&c"),
            ("/api?a=1&tok%65n=ours%2Ex.y", "/api?a=1"),
            ("/api?token=ours.x.y&token=theirs&token=ours.x.y", "/api?token=theirs"),
        ] {
            assert_eq!(read_at(before, &[]).unwrap(), "token ours.x.y", "{before}");
            assert_eq!(target(before).as_deref(), Some(after), "{before}");
        }
        for other in ["/?token=abc", "/?Token=ours.x.y", "/?my_token=ours.x.y", "/token=ours.x.y"] {
            assert_eq!(read_at(other, &[]).unwrap(), "nothing", "{other}");
            assert_eq!(target(other), None, "{other}");
        }
        let same = [("Authorization", "token ours.x.y")];
        assert_eq!(read_at("/?token=ours.x.y", &same).unwrap(), "token ours.x.y");
        assert_eq!(read_at("/?token=ours.z", &same), Err(CredentialError::TwoTokens));
        let own = [("Dormouse-Token", "ours.a"), ("Authorization", "Bearer ours.b")];
        assert_eq!(read(&own), Err(CredentialError::TwoTokens));
    }

    #[test]
    fn attack_8_doubled_cookies_are_refused() {
        let doubled = "__Host-dormouse=a; x=1; __Host-dormouse=b";
        assert_eq!(read(&[("Cookie", doubled)]), Err(CredentialError::DoubledCookie));
        let split = [("Cookie", "__Host-dormouse=a"), ("cookie", "__Host-dormouse=a")];
        assert_eq!(read(&split), Err(CredentialError::DoubledCookie));
        let refresh = "__Host-dormouse=a; __Host-dormouse-refresh=r; __Host-dormouse-refresh=s";
        assert_eq!(read(&[("Cookie", refresh)]), Err(CredentialError::DoubledCookie));
        let good = "x=__Host-dormouse=z;__Host-dormouse=a ; __Host-dormouse-refresh=r";
        assert_eq!(read(&[("Cookie", good)]).unwrap(), "session a Some(\"r\")");
    }

    proptest! {
        #[test]
        fn no_text_around_hides_or_makes_a_cookie(before in "[ -~]{0,20}", after in "[ -~]{0,20}") {
            let value = format!("{before}; __Host-dormouse=tok; {after}");
            let counted = value.to_ascii_lowercase().matches("__host-dormouse").count();
            if counted == 1 {
                prop_assert_eq!(read(&[("Cookie", &value)]).unwrap(), "session tok None");
            }
        }

        #[test]
        fn no_query_around_hides_a_token_or_loses_what_is_not_ours(
            before in "([a-z=%]{0,6}&){0,3}",
            after in "(&[a-z=%]{0,6}){0,3}",
        ) {
            let target = format!("/?{before}token=ours.x{after}");
            prop_assert_eq!(read_at(&target, &[]).unwrap(), "token ours.x");
            let held = with(&target, &[], |head| Withheld::of(head, &is_ours)).target.unwrap();
            let pairs = |target: &str| {
                let query = target.split_once('?').map_or("", |(_, query)| query).to_owned();
                form_urlencoded::parse(query.as_bytes()).into_owned().collect::<Vec<_>>()
            };
            let mut expected = pairs(&target);
            expected.retain(|(_, value)| value != "ours.x");
            prop_assert_eq!(pairs(&held), expected);
        }
    }
}
