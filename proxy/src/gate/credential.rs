//! What a request brings to prove who is asking. A credential of ours that is doubled or malformed
//! denies; it never counts as absent.

use super::head::Head;

/// The access token of a browser session, per workload host.
pub const ACCESS_COOKIE: &str = "__Host-dormouse";
/// Its refresh token.
pub const REFRESH_COOKIE: &str = "__Host-dormouse-refresh";
/// One sign-in that is under way; the identifier follows.
pub const LOGIN_COOKIE_PREFIX: &str = "__Host-dormouse-login-";
/// A sign-out under way: what the issuer has to send back.
pub const SIGN_OUT_COOKIE: &str = "__Host-dormouse-sign-out";

/// As presented, not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presented<'a> {
    Nothing,
    /// `Authorization: Bearer` (RFC 6750, section 2.1).
    Bearer(&'a str),
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
    #[error("a session cookie is there twice")]
    DoubledCookie,
    #[error("a session cookie is malformed")]
    MalformedCookie,
}

/// Reads the credential. An `Authorization` of another scheme is the workload's own business.
pub fn presented<'a>(head: &Head<'a>) -> Result<Presented<'a>, CredentialError> {
    let mut authorizations = head.values("authorization");
    let authorization = authorizations.next();
    if authorizations.next().is_some() {
        return Err(CredentialError::TwoAuthorizations);
    }
    if let Some(value) = authorization
        && let Some(token) = bearer(value)?
    {
        return Ok(Presented::Bearer(token));
    }
    let access = cookie(head, ACCESS_COOKIE)?;
    let refresh = cookie(head, REFRESH_COOKIE)?;
    Ok(match access {
        Some(access) => Presented::Session { access, refresh },
        None => Presented::Nothing,
    })
}

/// True when the `Authorization` header carried a token of ours, well-formed or not.
pub fn is_bearer(value: &[u8]) -> bool {
    !matches!(after_bearer(value), Ok(None))
}

/// What follows the scheme, if that is `Bearer`.
fn after_bearer(value: &[u8]) -> Result<Option<&str>, CredentialError> {
    let value = std::str::from_utf8(value).map_err(|_| CredentialError::MalformedAuthorization)?;
    let value = value.trim_matches([' ', '\t']);
    let (scheme, token) = match value.as_bytes().iter().position(|byte| b" \t".contains(byte)) {
        Some(space) => value.split_at(space),
        None => (value, ""),
    };
    let ours = scheme.eq_ignore_ascii_case("bearer");
    Ok(ours.then(|| token.trim_start_matches([' ', '\t'])))
}

fn bearer(value: &[u8]) -> Result<Option<&str>, CredentialError> {
    match after_bearer(value)? {
        Some(token) if !is_token(token.as_bytes()) => Err(CredentialError::MalformedAuthorization),
        token => Ok(token),
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

    fn read(fields: &[(&str, &str)]) -> Result<String, CredentialError> {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| Field { name, value: value.as_bytes() }).collect();
        let head = Head { method: "GET", target: "/", authority: "", fields: &fields };
        presented(&head).map(|presented| match presented {
            Presented::Nothing => "nothing".to_owned(),
            Presented::Bearer(token) => format!("bearer {token}"),
            Presented::Session { access, refresh } => format!("session {access} {refresh:?}"),
        })
    }

    #[test]
    fn attack_6_a_malformed_credential_denies() {
        use CredentialError::*;
        assert_eq!(read(&[]).unwrap(), "nothing");
        assert_eq!(read(&[("authorization", "BEARER  a.b-c")]).unwrap(), "bearer a.b-c");
        assert_eq!(read(&[("Authorization", "token abc")]).unwrap(), "nothing");
        for bad in ["Bearer", "Bearer ", "Bearer a b", "Bearer \"a\"", "bearer a,b", "Bearer ü"] {
            assert_eq!(read(&[("Authorization", bad)]), Err(MalformedAuthorization), "{bad}");
        }
        let two = [("Authorization", "Bearer a"), ("authorization", "Basic b")];
        assert_eq!(read(&two), Err(TwoAuthorizations));
        for bad in
            ["__Host-dormouse=", "__Host-dormouse", "__Host-dormouse=\"a\"", "__host-Dormouse=a"]
        {
            assert_eq!(read(&[("Cookie", bad)]), Err(MalformedCookie), "{bad}");
        }
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
    }
}
