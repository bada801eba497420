//! What a provider says about a person, and what we make of it.

use domain::name::UserName;
use serde_json::{Map, Value};

use super::config::ProviderConfig;

/// Longest groups, all together, in bytes: every access token carries them, in a cookie.
const GROUPS_MAX: usize = 2_000;

/// By which a provider says that groups are not in the token: which claims are somewhere else
/// (OpenID Connect Core, section 5.6.2), and a flag of Entra ID.
const OVERAGE_NAMES: &str = "_claim_names";
const OVERAGE_FLAG: &str = "hasgroups";

/// All claims of an ID token and of the userinfo endpoint.
pub type Claims = Map<String, Value>;

/// What a provider says of a person. What it does not say stays as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The name that they get if they are new.
    pub name: UserName,
    pub email: Email,
    pub groups: Result<Groups, NoGroups>,
    /// When the provider does not say the groups: only who was in one of these, by the provider's
    /// names, when it last did may come in. Empty when everybody may.
    pub admitted_before: Vec<String>,
}

impl Profile {
    /// `before`: the groups that let the person in when the provider last said something.
    pub fn may_come_in(&self, before: &[String]) -> bool {
        let needed = &self.admitted_before;
        needed.is_empty() || before.iter().any(|group| needed.contains(group))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Email {
    /// The claim is not there.
    Unsaid,
    /// None when it is said to be nobody's, or not the person's.
    Said(Option<String>),
}

/// The groups that a provider says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// By our names. Sorted, each once.
    pub ours: Vec<String>,
    /// Those by the provider's names that let the person in (`allowed_groups`).
    pub admitted: Vec<String>,
}

/// Why it is not known which groups somebody is in. That is not the same as being in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoGroups {
    /// An operator set that this provider has no say in it.
    #[error("the provider is not asked for groups")]
    Unasked,
    #[error("the claim with the groups is missing")]
    Missing,
    /// Too many for a token: Entra ID then names a place where they can be asked for (OpenID
    /// Connect Core, section 5.6.2), or says `hasgroups`.
    #[error("the provider says that the groups are too many for a token")]
    Elsewhere,
    #[error("the claim with the groups is neither a string nor an array of strings")]
    Unreadable,
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
    let names = [&config.user_name_claim, &config.email_claim];
    let silent = matches!(theirs(config, claims), Err(NoGroups::Missing | NoGroups::Elsewhere));
    silent || names.iter().any(|name| find(claims, name).is_none())
}

/// Adds what the userinfo endpoint says. What was signed counts more, except that an ID token which
/// only says where the groups are says nothing about them.
pub fn merge(config: &ProviderConfig, claims: &mut Claims, more: Claims) {
    if theirs(config, claims) == Err(NoGroups::Elsewhere) && theirs(config, &more).is_ok() {
        for name in [OVERAGE_NAMES, OVERAGE_FLAG, first_part(&config.groups_claim)] {
            claims.remove(name);
        }
    }
    for (name, value) in more {
        claims.entry(name).or_insert(value);
    }
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
    let groups = match theirs(config, claims) {
        Ok(theirs) => Ok(groups(config, theirs)?),
        Err(why) => Err(why),
    };
    let admitted_before = if groups.is_ok() { Vec::new() } else { config.allowed_groups.clone() };
    let email = match find(claims, &config.email_claim) {
        Some(value) if !value.is_null() => Email::Said(email),
        _ => Email::Unsaid,
    };
    Ok(Profile { name: name(config, claims)?, email, groups, admitted_before })
}

fn groups(config: &ProviderConfig, theirs: Vec<&str>) -> Result<Groups, ProfileError> {
    let mut admitted = config.allowed_groups.clone();
    admitted.retain(|group| theirs.contains(&group.as_str()));
    if admitted.is_empty() && !config.allowed_groups.is_empty() {
        return Err(ProfileError::GroupNotAllowed);
    }
    let mut ours: Vec<String> = match &config.group_map {
        Some(map) => theirs.iter().filter_map(|group| map.get(*group).cloned()).collect(),
        None => theirs.into_iter().filter(|group| is_plain(group)).map(str::to_owned).collect(),
    };
    ours.sort_unstable();
    ours.dedup();
    let size = ours.iter().map(|group| group.len().saturating_add(3)).sum();
    if size > GROUPS_MAX {
        return Err(ProfileError::TooManyGroups(size));
    }
    Ok(Groups { ours, admitted })
}

/// The groups by the provider's names.
fn theirs<'a>(config: &ProviderConfig, claims: &'a Claims) -> Result<Vec<&'a str>, NoGroups> {
    let name = &config.groups_claim;
    if name.is_empty() {
        return Err(NoGroups::Unasked);
    }
    let flagged = match claims.get(OVERAGE_FLAG) {
        Some(Value::Bool(flag)) => *flag,
        Some(Value::String(text)) => text == "true",
        _ => false,
    };
    let places = claims.get(OVERAGE_NAMES).and_then(Value::as_object);
    let elsewhere = places
        .is_some_and(|places| places.contains_key(name) || places.contains_key(first_part(name)));
    if flagged || elsewhere {
        return Err(NoGroups::Elsewhere);
    }
    match find(claims, name) {
        None | Some(Value::Null) => Err(NoGroups::Missing),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(Value::Array(several)) => {
            several.iter().map(|one| one.as_str().ok_or(NoGroups::Unreadable)).collect()
        }
        Some(_) => Err(NoGroups::Unreadable),
    }
}

fn first_part(claim: &str) -> &str {
    claim.split('.').next().unwrap_or(claim)
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
        assert_eq!(profile.email, Email::Said(Some("alice@example.com".to_owned())));
        assert_eq!(ours(&profile), ["ml", "staff"]);
        let config = config(json!({
            "strip_domain": "example.com", "groups_claim": "realm_access.roles",
            "group_map": { "deep": "gpu", "other": "admins" },
        }));
        let profile = read(&config, &alice()).unwrap();
        assert_eq!((profile.name.as_str(), ours(&profile)), ("alice", &["gpu".to_owned()][..]));
    }

    fn ours(profile: &Profile) -> &[String] {
        &profile.groups.as_ref().unwrap().ours
    }

    #[test]
    fn groups_that_are_not_said_are_unknown_and_not_none() {
        let corp = config(json!({}));
        let said = |change: &dyn Fn(&mut Claims)| {
            let mut claims = alice();
            change(&mut claims);
            read(&corp, &claims).unwrap().groups.map(|groups| groups.ours)
        };
        let put = |claims: &mut Claims, name: &str, value: Value| {
            claims.insert(name.to_owned(), value);
        };
        assert_eq!(said(&|claims| put(claims, "groups", json!([]))), Ok(vec![]));
        assert_eq!(said(&|claims| put(claims, "groups", json!("ml"))), Ok(vec!["ml".to_owned()]));
        assert_eq!(said(&|claims| drop(claims.remove("groups"))), Err(NoGroups::Missing));
        assert_eq!(said(&|claims| put(claims, "groups", Value::Null)), Err(NoGroups::Missing));
        for odd in [json!(7), json!({}), json!(["ml", 7]), json!([{ "name": "ml" }])] {
            assert_eq!(
                said(&|claims| put(claims, "groups", odd.clone())),
                Err(NoGroups::Unreadable)
            );
        }
        // As Entra ID writes it, in its two forms; whatever else is in the claim is a part at best.
        let names = json!({ "groups": "src1" });
        let sources =
            json!({ "src1": { "endpoint": "https://graph.example.com/getMemberObjects" } });
        for groups in [Value::Null, json!([]), json!(["ml"])] {
            let overage = said(&|claims| {
                put(claims, "groups", groups.clone());
                put(claims, "_claim_names", names.clone());
                put(claims, "_claim_sources", sources.clone());
            });
            assert_eq!(overage, Err(NoGroups::Elsewhere), "{groups}");
            let flagged = said(&|claims| {
                put(claims, "groups", groups.clone());
                put(claims, "hasgroups", json!(true));
            });
            assert_eq!(flagged, Err(NoGroups::Elsewhere), "{groups}");
        }
        let other = said(&|claims| put(claims, "_claim_names", json!({ "address": "src1" })));
        assert_eq!(other, Ok(vec!["ml".to_owned(), "staff".to_owned()]));
        // Where an operator set that the provider has no say, there is nothing to miss.
        let unasked = config(json!({ "groups_claim": "" }));
        assert_eq!(read(&unasked, &alice()).unwrap().groups, Err(NoGroups::Unasked));
        let mut complete = alice();
        complete.remove("groups");
        assert!(is_incomplete(&corp, &complete) && !is_incomplete(&unasked, &complete));
    }

    #[test]
    fn userinfo_may_say_what_a_token_has_no_room_for() {
        let corp = config(json!({}));
        let mut claims = alice();
        claims.remove("groups");
        claims.insert("_claim_names".to_owned(), json!({ "groups": "src1" }));
        assert!(is_incomplete(&corp, &claims));
        let mut silent = claims.clone();
        merge(&corp, &mut silent, self::claims(json!({ "sub": "u", "name": "Alice" })));
        assert_eq!(read(&corp, &silent).unwrap().groups, Err(NoGroups::Elsewhere));
        merge(&corp, &mut claims, self::claims(json!({ "groups": ["ml"], "email": "x@y.z" })));
        let profile = read(&corp, &claims).unwrap();
        assert_eq!(ours(&profile), ["ml"]);
        assert_eq!(profile.email, Email::Said(Some("alice@example.com".to_owned())));
    }

    #[test]
    fn an_address_that_is_not_said_is_not_taken_away() {
        let corp = config(json!({}));
        let mut claims = alice();
        claims.insert("email_verified".to_owned(), json!(false));
        assert_eq!(read(&corp, &claims).unwrap().email, Email::Said(None));
        claims.remove("email");
        assert_eq!(read(&corp, &claims).unwrap().email, Email::Unsaid);
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
        assert!(ours(&read(&config, &alice()).unwrap()).is_empty());
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
        assert_eq!(read(&config(json!({})), &silent).unwrap().email, Email::Said(None));
        let trusted = config(json!({ "trust_email": true }));
        assert!(matches!(read(&trusted, &silent).unwrap().email, Email::Said(Some(_))));
    }

    #[test]
    fn only_allowed_groups_come_in() {
        let config = config(json!({ "allowed_groups": ["staff"] }));
        assert!(read(&config, &alice()).is_ok());
        let mut out = alice();
        out.insert("groups".to_owned(), json!("guests"));
        assert_eq!(read(&config, &out), Err(ProfileError::GroupNotAllowed));
        // Nothing is said: who was let in when something was may come in, and nobody else.
        out.remove("groups");
        assert_eq!(read(&config, &out).unwrap().admitted_before, ["staff"]);
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
                prop_assert!(ours(&profile).iter().all(|g| !g.contains(',')));
            }
        }
    }
}
