//! The cookies we set. All are host-only, so that no sibling host can set or read them (RFC 6265bis,
//! section 4.1.3.2).

use crate::gate::credential::{ACCESS_COOKIE, LOGIN_COOKIE, REFRESH_COOKIE, SIGN_OUT_COOKIE};

/// As long as a session can live at most; the issuer ends it earlier.
const SESSION_SECONDS: u32 = 7 * 24 * 3600;
/// How long somebody may take to sign in: longer than the sign-in page is good for.
pub const LOGIN_SECONDS: u32 = 25 * 3600;

/// How long somebody may look at the question whether to sign out.
const SIGN_OUT_SECONDS: u32 = 3600;

/// Browsers drop a cookie whose name and value are longer (RFC 6265bis, section 5.6).
const COOKIE_MAX: usize = 4096;

/// Whether a browser would keep it.
pub fn access_fits(token: &str) -> bool {
    ACCESS_COOKIE.len() + token.len() <= COOKIE_MAX
}

pub fn access(token: &str) -> String {
    set(ACCESS_COOKIE, token, SESSION_SECONDS)
}

pub fn refresh(token: &str) -> String {
    set(REFRESH_COOKIE, token, SESSION_SECONDS)
}

pub fn login(browser: &str) -> String {
    set(LOGIN_COOKIE, browser, LOGIN_SECONDS)
}

pub fn sign_out(state: &str) -> String {
    set(SIGN_OUT_COOKIE, state, SIGN_OUT_SECONDS)
}

pub fn forget_sign_out() -> String {
    set(SIGN_OUT_COOKIE, "", 0)
}

pub fn forget_session() -> [String; 2] {
    [set(ACCESS_COOKIE, "", 0), set(REFRESH_COOKIE, "", 0)]
}

fn set(name: &str, value: &str, seconds: u32) -> String {
    format!("{name}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax")
}
