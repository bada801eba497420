//! Scopes (RFC 6749, section 3.3).

/// May manage the person's own tokens and keys.
pub const ACCOUNT: &str = "account";

/// All that a personal access token may do.
pub const PERSONAL: &str = "openid profile email groups account";

/// Those that there are.
pub const KNOWN: [&str; 6] = ["openid", "profile", "email", "groups", "offline_access", ACCOUNT];

/// What of `requested` is allowed, each once; what is unknown is left out, as OpenID Connect Core,
/// section 3.1.2.1, asks for.
pub fn allowed(requested: &str, allowed: impl Fn(&str) -> bool) -> Vec<&str> {
    let mut scopes = Vec::new();
    for scope in requested.split_ascii_whitespace() {
        if KNOWN.contains(&scope) && allowed(scope) && !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    scopes
}

pub fn contains(scopes: &str, scope: &str) -> bool {
    scopes.split_ascii_whitespace().any(|one| one == scope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_doubled_and_forbidden_ones_are_left_out() {
        let scopes = allowed("openid root email openid account", |scope| scope != ACCOUNT);
        assert_eq!(scopes, ["openid", "email"]);
        assert!(contains("a b", "b") && !contains("ab", "a") && !contains("", ""));
    }
}
