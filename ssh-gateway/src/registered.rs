//! The public keys that people have registered, and whom certificates may name: a snapshot, followed
//! by a long poll.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use domain::{
    identity::{Credential, CredentialKind, Identity},
    name::UserName,
};
use jiff::Timestamp;
use runtime::service::Context;
use russh::keys::{HashAlg, PublicKey};
use serde::Deserialize;
use tokio::sync::watch;

use crate::certified::{Certified, Person};

/// Longer than the server holds a question.
const HOLD: Duration = Duration::from_secs(40);

/// Largest list that is taken, in bytes: some 100,000 keys.
const LIST_MAX: usize = 64 << 20;

const COMPONENT: &str = "ssh-keys";

/// People by the fingerprint of their key.
#[derive(Debug, Default)]
pub struct Registered {
    people: HashMap<String, Option<Arc<Identity>>>,
    pub certified: Certified,
}

pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

impl Registered {
    pub fn find(&self, key: &PublicKey) -> Option<&Arc<Identity>> {
        self.people.get(&fingerprint(key)).and_then(Option::as_ref)
    }

    /// Does what proved this identity still stand for the same person, in all the groups of before?
    pub fn still_proves(&self, identity: &Identity) -> bool {
        let found = self.people.get(&identity.credential.id).and_then(Option::as_ref);
        match identity.credential.kind {
            CredentialKind::SshKey => found.is_some_and(|person| {
                person.subject == identity.subject
                    && identity.groups.iter().all(|group| person.groups.contains(group))
            }),
            CredentialKind::SshCertificate => self.certified.still_names(identity),
            CredentialKind::AccessToken | CredentialKind::PersonalAccessToken => true,
        }
    }

    /// Fingerprints are computed here and not believed. A key that two people registered proves
    /// neither; an entry that makes no sense is passed over.
    fn from_list(list: List) -> Self {
        let mut people: HashMap<String, Option<Arc<Identity>>> = HashMap::new();
        for key in &list.keys {
            let Ok(public) = PublicKey::from_openssh(&key.public_key) else { continue };
            let id = fingerprint(&public);
            let person = Arc::new(Identity {
                subject: key.subject.clone(),
                user: key.user.clone(),
                email: key.email.clone(),
                groups: key.groups.clone(),
                credential: Credential {
                    kind: CredentialKind::SshKey,
                    id: id.clone(),
                    session: None,
                    expires_at: Timestamp::MAX,
                    scopes: Vec::new(),
                    workload: None,
                },
            });
            match people.entry(id) {
                Entry::Vacant(place) => {
                    place.insert(Some(person));
                }
                Entry::Occupied(mut place) => {
                    if place.get().as_ref().is_some_and(|p| p.subject != person.subject) {
                        place.insert(None);
                    }
                }
            }
        }
        Self { people, certified: Certified::new(&list.authorities, list.people) }
    }
}

#[derive(Debug, Deserialize)]
struct List {
    version: u64,
    keys: Vec<Key>,
    /// Who signs certificates, in OpenSSH's one-line form.
    #[serde(default)]
    authorities: Vec<String>,
    #[serde(default)]
    people: Vec<Person>,
}

#[derive(Debug, Deserialize)]
struct Key {
    public_key: String,
    subject: String,
    user: UserName,
    #[serde(default)]
    email: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
}

/// Where the list is, and who asks for it.
pub struct Feed {
    pub url: reqwest::Url,
    pub client_id: String,
    pub client_secret: String,
    pub http: reqwest::Client,
}

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("the list is longer than {LIST_MAX} bytes")]
    TooLong,
    #[error("the list makes no sense: {0}")]
    Form(#[from] serde_json::Error),
}

/// Follows the list until the shutdown. What was last heard stays in use while the auth server does
/// not answer.
pub fn follow(feed: Feed, ctx: &Context) -> watch::Receiver<Arc<Registered>> {
    let (sender, receiver) = watch::channel(Arc::new(Registered::default()));
    ctx.health.set(COMPONENT, Err("the registered keys are not loaded yet".to_owned()));
    let ctx = ctx.clone();
    tokio::spawn(async move {
        let shutdown = ctx.shutdown.clone();
        tokio::select! {
            () = poll(&feed, &sender, &ctx) => {}
            () = shutdown.cancelled() => {}
        }
    });
    receiver
}

async fn poll(feed: &Feed, sender: &watch::Sender<Arc<Registered>>, ctx: &Context) {
    let mut version = None;
    let mut pause = Duration::from_secs(1);
    loop {
        match ask(feed, version).await {
            Ok(list) => {
                ctx.health.set(COMPONENT, Ok(()));
                if version != Some(list.version) {
                    version = Some(list.version);
                    sender.send_replace(Arc::new(Registered::from_list(list)));
                    pause = Duration::from_secs(1);
                    continue;
                }
                // Held and unchanged, or a server that does not hold: never ask in a tight loop.
                pause = Duration::from_secs(1);
            }
            Err(error) => {
                tracing::warn!(
                    error = runtime::http::whole(&error),
                    "cannot read the registered SSH keys; will try again"
                );
                pause = (pause * 2).min(Duration::from_secs(30));
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn ask(feed: &Feed, version: Option<u64>) -> Result<List, FeedError> {
    let mut url = feed.url.clone();
    if let Some(version) = version {
        url.query_pairs_mut().append_pair("after", &version.to_string());
    }
    let request = feed.http.get(url).basic_auth(&feed.client_id, Some(&feed.client_secret));
    let mut response = request.timeout(HOLD).send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > LIST_MAX {
            return Err(FeedError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::keys::generate;

    fn list(keys: serde_json::Value) -> Registered {
        let list = serde_json::from_value(json!({"version": 1, "keys": keys})).unwrap();
        Registered::from_list(list)
    }

    #[test]
    fn a_key_stands_for_one_person_or_nobody() {
        let (one, two) = (generate(), generate());
        let entry = |key: &russh::keys::PrivateKey, user: &str| {
            json!({
                "fingerprint": "SHA256:believed-by-nobody",
                "public_key": key.public_key().to_openssh().unwrap(),
                "subject": format!("s-{user}"), "user": user,
                "email": null, "groups": ["ml"],
            })
        };
        let found = list(json!([entry(&one, "alice"), entry(&two, "alice"), entry(&two, "bob")]));
        let alice = found.find(one.public_key()).unwrap();
        assert_eq!((alice.user.as_str(), alice.groups.as_slice()), ("alice", &["ml".into()][..]));
        assert!(found.still_proves(alice));
        assert!(found.find(two.public_key()).is_none(), "registered by two people");
        assert!(!list(json!([entry(&one, "bob")])).still_proves(alice));
        assert!(!list(json!([])).still_proves(alice));
    }

    #[test]
    fn nonsense_is_passed_over() {
        let key = json!({"public_key": "ssh-ed25519 AAAA", "subject": "s", "user": "alice"});
        assert!(list(json!([key])).people.is_empty());
    }
}
