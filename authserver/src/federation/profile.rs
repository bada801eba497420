//! What a provider says about a person, and what we make of it.

use domain::name::UserName;
use serde_json::{Map, Value};

use super::config::ProviderConfig;

/// Longest groups, all together, in bytes: every access token carries them, in a cookie.
const GROUPS_MAX: usize = 2_000;

/// All claims of an ID token and of the userinfo endpoint.
pub type Claims = Map<String, Value>;

/// A person as we keep them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The name that they get if they are new.
    pub name: UserName,
    pub email: Option<String>,
    /// Sorted, each once.
    pub groups: Vec<String>,
}

/// Why somebody who did sign in at the provider may not come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error("the claim {0} is missing, which should be the user name")]
    NoName(String),
    #[error("the claim {0} cannot be a user name")]
    UnusableName(String),
    #[error("the e-mail address is of no domain that may sign in")]
    EmailNotAllowed,
    #[error("in no group that may sign in")]
    GroupNotAllowed,
    #[error("the groups are {0} bytes long, and tokens have room for {GROUPS_MAX}")]
    TooManyGroups(usize),
}

/// True when a claim that the settings use is missing, so that it pays to ask for userinfo.
pub fn is_incomplete(config: &ProviderConfig, claims: &Claims) -> bool {
    let names = [&config.user_name_claim, &config.email_claim, &config.groups_claim];
    names.iter().any(|name| find(claims, name).is_none())
}

pub fn read(config: &ProviderConfig, claims: &Claims) -> Result<Profile, ProfileError> {
    let email = email(config, claims);
    let domains = &config.allowed_email_domains;
    if !domains.is_empty() {
        let domain = email.as_deref().and_then(|email| email.rsplit_once('@'));
        let ours =
            |(_, domain): (&str, &str)| domains.iter().any(|d| d.eq_ignore_ascii_case(domain));
        if !domain.is_some_and(ours) {
            return Err(ProfileError::EmailNotAllowed);
        }
    }
    let theirs = strings(find(claims, &config.groups_claim));
    let allowed = &config.allowed_groups;
    if !allowed.is_empty() && !theirs.iter().any(|group| allowed.iter().any(|one| one == group)) {
        return Err(ProfileError::GroupNotAllowed);
    }
    let mut groups: Vec<String> = match &config.group_map {
        Some(map) => theirs.iter().filter_map(|group| map.get(*group).cloned()).collect(),
        None => theirs.into_iter().filter(|group| is_plain(group)).map(str::to_owned).collect(),
    };
    groups.sort_unstable();
    groups.dedup();
    let size = groups.iter().map(|group| group.len().saturating_add(3)).sum();
    if size > GROUPS_MAX {
        return Err(ProfileError::TooManyGroups(size));
    }
    Ok(Profile { name: name(config, claims)?, email, groups })
}

fn name(config: &ProviderConfig, claims: &Claims) -> Result<UserName, ProfileError> {
    let claim = &config.user_name_claim;
    let text = find(claims, claim)
        .and_then(Value::as_str)
        .map(|text| text.trim().to_ascii_lowercase())
        .filter(|text| !text.is_empty())
        .ok_or_else(|| ProfileError::NoName(claim.clone()))?;
    let short = config.strip_domain.as_deref().and_then(|domain| {
        let (local, own) = text.rsplit_once('@')?;
        own.eq_ignore_ascii_case(domain).then_some(local)
    });
    short.unwrap_or(&text).parse().map_err(|_| ProfileError::UnusableName(claim.clone()))
}

/// The address, if the provider says that it belongs to the person.
fn email(config: &ProviderConfig, claims: &Claims) -> Option<String> {
    let email = find(claims, &config.email_claim)?.as_str()?;
    let verified = match claims.get("email_verified") {
        Some(Value::Bool(verified)) => *verified,
        Some(Value::String(text)) => text == "true",
        Some(_) => false,
        None => config.trust_email,
    };
    let (local, host) = email.rsplit_once('@')?;
    let whole = !local.is_empty() && !host.is_empty() && email.len() <= 254;
    (verified && whole && email.bytes().all(|b| b.is_ascii_graphic())).then(|| email.to_owned())
}

/// The claim of that very name, or else what the name's parts lead to.
fn find<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let mut parts = name.split('.');
    let first = claims.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// An array of strings, or one string.
fn strings(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// What can stand in a header that names groups, separated by commas.
fn is_plain(group: &str) -> bool {
    (1..=200).contains(&group.len())
        && group.trim() == group
        && !group.chars().any(|c| c.is_control() || c == ',')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn config(more: Value) -> ProviderConfig {
        let mut all = json!({
            "id": "corp", "name": "Corp", "issuer": "https://id.example.com", "client_id": "d",
        });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn claims(value: Value) -> Claims {
        value.as_object().unwrap().clone()
    }

    fn alice() -> Claims {
        claims(json!({
            "preferred_username": "Alice@Example.com", "email": "alice@example.com",
            "email_verified": true, "groups": ["ml", "staff", "ml"],
            "realm_access": { "roles": ["deep"] },
        }))
    }

    #[test]
    fn a_profile_is_read() {
        let profile = read(&config(json!({})), &alice()).unwrap();
        assert_eq!(profile.name.as_str(), "alice@example.com");
        assert_eq!(profile.email.as_deref(), Some("alice@example.com"));
        assert_eq!(profile.groups, ["ml", "staff"]);
        let config = config(json!({
            "strip_domain": "example.com", "groups_claim": "realm_access.roles",
            "group_map": { "deep": "gpu", "other": "admins" },
        }));
        let profile = read(&config, &alice()).unwrap();
        assert_eq!((profile.name.as_str(), profile.groups), ("alice", vec!["gpu".to_owned()]));
    }

    #[test]
    fn a_foreign_domain_is_not_taken_off() {
        let config = config(json!({ "strip_domain": "example.com" }));
        for name in ["alice@evil.example", "alice@example.com@evil.example", "alice@x.example.com"]
        {
            let mut claims = alice();
            claims.insert("preferred_username".to_owned(), json!(name));
            assert_eq!(read(&config, &claims).unwrap().name.as_str(), name);
        }
    }

    #[test]
    fn groups_that_are_not_mapped_give_nothing() {
        let config = config(json!({ "group_map": { "other": "admins" } }));
        assert!(read(&config, &alice()).unwrap().groups.is_empty());
    }

    #[test]
    fn an_unverified_address_counts_for_nothing() {
        let strict = config(json!({ "allowed_email_domains": ["EXAMPLE.com"] }));
        assert!(read(&strict, &alice()).is_ok());
        for (verified, email) in [
            (json!(false), json!("alice@example.com")),
            (Value::Null, json!("alice@example.com")),
            (json!("yes"), json!("alice@example.com")),
            (json!(true), json!("alice@example.com.evil.example")),
            (json!(true), json!("alice@evil-example.com")),
            (json!(true), json!("example.com")),
            (json!(true), json!("alice@example.com\n")),
            (json!(true), Value::Null),
        ] {
            let mut claims = alice();
            claims.insert("email".to_owned(), email.clone());
            claims.insert("email_verified".to_owned(), verified);
            assert_eq!(read(&strict, &claims), Err(ProfileError::EmailNotAllowed), "{email}");
        }
        let mut silent = alice();
        silent.remove("email_verified");
        assert_eq!(read(&config(json!({})), &silent).unwrap().email, None);
        let trusted = config(json!({ "trust_email": true }));
        assert!(read(&trusted, &silent).unwrap().email.is_some());
    }

    #[test]
    fn only_allowed_groups_come_in() {
        let config = config(json!({ "allowed_groups": ["staff"] }));
        assert!(read(&config, &alice()).is_ok());
        let mut out = alice();
        out.insert("groups".to_owned(), json!("guests"));
        assert_eq!(read(&config, &out), Err(ProfileError::GroupNotAllowed));
        out.remove("groups");
        assert_eq!(read(&config, &out), Err(ProfileError::GroupNotAllowed));
    }

    #[test]
    fn attack_21_names_outside_ascii_and_odd_ones_are_refused() {
        let config = config(json!({}));
        for name in ["аlice", "ali ce", "../x", "a/b", "al\u{0}ice", "-x", "ＡLICE"] {
            let mut claims = alice();
            claims.insert("preferred_username".to_owned(), json!(name));
            let error = read(&config, &claims).unwrap_err();
            assert_eq!(
                error,
                ProfileError::UnusableName("preferred_username".to_owned()),
                "{name}"
            );
        }
    }

    #[test]
    fn tokens_stay_small() {
        let mut claims = alice();
        let many: Vec<String> = (0..200).map(|n| format!("group-of-people-{n}")).collect();
        claims.insert("groups".to_owned(), json!(many));
        assert!(matches!(read(&config(json!({})), &claims), Err(ProfileError::TooManyGroups(_))));
    }

    proptest! {
        #[test]
        fn no_claims_panic(name in "\\PC{0,20}", groups in proptest::collection::vec("\\PC{0,9}", 0..9)) {
            let claims = claims(json!({ "preferred_username": name, "groups": groups }));
            if let Ok(profile) = read(&config(json!({})), &claims) {
                prop_assert!(profile.groups.iter().all(|g| !g.contains(',')));
            }
        }
    }
}
