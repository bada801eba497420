//! Scopes (RFC 6749, section 3.3).

/// May manage the person's own tokens and keys.
pub const ACCOUNT: &str = "account";

/// Reaching workloads; changing them; reading who used how much; operating the whole.
pub const WORK: [&str; 4] = ["workload:use", "workload:manage", "usage:read", ADMIN];

/// Asks for all that an operator may do. It does not make anybody one.
pub const ADMIN: &str = "admin";

/// All that a personal access token may do.
pub const PERSONAL: &str =
    "openid profile email groups account workload:use workload:manage usage:read";

/// All that a personal access token may do that is limited to one workload: whoever finds it must
/// not come by another credential with it.
pub const LIMITED: &str = "workload:use workload:manage";

/// Those that there are.
pub const KNOWN: [&str; 10] = [
    "openid",
    "profile",
    "email",
    "groups",
    "offline_access",
    ACCOUNT,
    "workload:use",
    "workload:manage",
    "usage:read",
    ADMIN,
];

/// What a person reads on a page that asks for their consent.
pub fn explain(scope: &str) -> &'static str {
    match scope {
        "openid" => "know that it is you",
        "profile" => "see your name",
        "email" => "see your e-mail address",
        "groups" => "see which groups you are in",
        "offline_access" => "stay signed in while you are away",
        ACCOUNT => "manage your access tokens and SSH keys",
        "workload:use" => "open your workloads",
        "workload:manage" => "change, start and stop your workloads",
        "usage:read" => "see how much is used",
        ADMIN => "operate Dormouse, as far as you may",
        _ => "do something that this server does not know",
    }
}

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
