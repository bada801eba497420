//! The two people of a development system.

use std::time::Duration;

use anyhow::Context as _;
use authserver::{Issuer, MasterKey, NewPerson, NewPersonalToken, Store};
use jiff::{SignedDuration, Timestamp};
use runtime::secret;
use serde::{Deserialize, Serialize};

use super::place::{Place, random_text};

/// Written into the ready file, and kept so that a restart changes nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Credentials {
    pub name: String,
    pub password: String,
    pub token: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// A token of another issuer is worth nothing.
    issuer: String,
    made_at: Timestamp,
    users: Vec<Credentials>,
}

const NAMES: [&str; 2] = ["alice", "bob"];
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// A token is replaced before a long development session could outlive it.
const RENEW_AFTER: SignedDuration = SignedDuration::from_hours(335 * 24);

pub async fn ensure(place: &Place, issuer: &str) -> anyhow::Result<Vec<Credentials>> {
    let now = Timestamp::now();
    let path = place.path("people.json");
    let kept: Option<Kept> =
        std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let master_key = MasterKey::from_file_or_new(&place.master_key())?;
    let store = Store::open_with(&place.database().into(), Some(master_key)).await?;
    let parsed: Issuer = issuer.parse().context("the issuer")?;
    let mut users = Vec::new();
    for name in NAMES {
        let known = kept.as_ref().and_then(|k| k.users.iter().find(|user| user.name == name));
        let user = name.parse().context("a name")?;
        if store.person(&user).await?.is_some()
            && let (Some(kept), Some(known)) = (&kept, known)
            && kept.issuer == issuer
            && now.duration_since(kept.made_at) < RENEW_AFTER
        {
            users.push(known.clone());
            continue;
        }
        let password = known.map_or_else(|| random_text(8), |known| known.password.clone());
        let person = NewPerson {
            name: user,
            email: Some(format!("{name}@example.com")),
            groups: Vec::new(),
        };
        store.ensure_user(&person, Some(&password), now).await?;
        let new = NewPersonalToken::full("development", LIFETIME, "dormouse");
        let (token, _) = store.issue_personal_token(&parsed, &person.name, new, now).await?;
        users.push(Credentials { name: name.to_owned(), password, token });
    }
    store.close().await;
    let made_at = match &kept {
        Some(kept) if kept.issuer == issuer && now.duration_since(kept.made_at) < RENEW_AFTER => {
            kept.made_at
        }
        _ => now,
    };
    let kept = Kept { issuer: issuer.to_owned(), made_at, users: users.clone() };
    secret::write(&path, &serde_json::to_vec_pretty(&kept)?)?;
    Ok(users)
}
