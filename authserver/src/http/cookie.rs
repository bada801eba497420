//! Our cookies: host-only, never readable by scripts.

use axum::http::{HeaderMap, HeaderValue, header};

/// The session.
pub(super) const SSO: &str = "__Host-dormouse-sso";
/// Binds the forms to the browser that was given them.
pub(super) const FORM: &str = "__Host-dormouse-form";
/// A browser in which somebody has signed in before.
pub(super) const DEVICE: &str = "__Host-dormouse-device";

/// The cookie's value. One that is sent twice is none: one of the two is not ours.
pub(super) fn get<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(candidate, _)| *candidate == name)
        .map(|(_, value)| value);
    let first = values.next()?;
    if values.next().is_some() { None } else { Some(first) }
}

/// `value` is base64url with dots at most; `max_age` is in seconds, and 0 removes the cookie.
pub(super) fn set(name: &str, value: &str, max_age: i64) -> HeaderValue {
    let text = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={max_age}");
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_8_a_cookie_that_comes_twice_is_none() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; __Host-dormouse-sso=x"));
        assert_eq!(get(&headers, SSO), Some("x"));
        assert_eq!(get(&headers, "__host-dormouse-sso"), None);
        headers.append(header::COOKIE, HeaderValue::from_static("__Host-dormouse-sso=y"));
        assert_eq!(get(&headers, SSO), None);
    }
}
