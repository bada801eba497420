//! The public keys that people have registered, and whom certificates may name: a snapshot, followed
//! by a long poll. When each key was used last is told once a minute.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::{
    identity::{Credential, CredentialKind, Identity},
    name::UserName,
};
use jiff::Timestamp;
use runtime::{
    service::Context,
    token_uses::{REPORT_MAX, Report, Use},
};
use russh::keys::{HashAlg, PublicKey, ssh_key::Fingerprint};
use serde::Deserialize;
use tokio::sync::watch;

use crate::certified::{Certified, Person};

/// Longer than the server holds a question.
const HOLD: Duration = Duration::from_secs(40);

/// Largest list that is taken, in bytes: some 100,000 keys.
const LIST_MAX: usize = 64 << 20;

const COMPONENT: &str = "ssh-keys";

/// How often the authserver is told of uses, and where: beside the list.
const REPORT_EVERY: Duration = Duration::from_secs(60);
const TOLD_AT: &str = "/internal/token-uses";

/// People by the fingerprint of their key.
#[derive(Debug, Default)]
pub struct Registered {
    people: HashMap<String, Option<Arc<Identity>>>,
    pub certified: Certified,
    uses: Uses,
}

/// Seconds of the last uses that the authserver has not been told of, by fingerprint: no more than
/// there are keys. Shared by a snapshot and its successors.
#[derive(Debug, Clone, Default)]
struct Uses(Arc<Mutex<HashMap<String, i64>>>);

impl Uses {
    fn note(&self, fingerprint: &str, now: Timestamp) {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.insert(fingerprint.to_owned(), now.as_second());
    }

    fn take(&self) -> Vec<Use> {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.drain().map(|(id, at)| Use { id, at }).collect()
    }

    /// Those that could not be told, unless there are later ones.
    fn put_back(&self, untold: Vec<Use>) {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for Use { id, at } in untold {
            uses.entry(id).or_insert(at);
        }
    }
}

pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

impl Registered {
    /// Whose key it is, unless its time is over.
    pub fn find(&self, key: &PublicKey, now: Timestamp) -> Option<&Arc<Identity>> {
        let person = self.people.get(&fingerprint(key)).and_then(Option::as_ref)?;
        (person.credential.expires_at > now).then_some(person)
    }

    /// Somebody signed in with the key.
    pub fn note_use(&self, identity: &Identity, now: Timestamp) {
        self.uses.note(&identity.credential.id, now);
    }

    /// Does what proved this identity still stand for the same person, in all the groups of before, and
    /// is the authority still one whose certificate it was?
    pub fn still_proves(&self, identity: &Identity, authority: Option<&Fingerprint>) -> bool {
        let found = self.people.get(&identity.credential.id).and_then(Option::as_ref);
        match identity.credential.kind {
            CredentialKind::SshKey => found.is_some_and(|person| {
                person.subject == identity.subject
                    && identity.groups.iter().all(|group| person.groups.contains(group))
            }),
            CredentialKind::SshCertificate => {
                self.certified.still_names(identity)
                    && authority.is_some_and(|authority| self.certified.trusts(authority))
            }
            CredentialKind::AccessToken | CredentialKind::PersonalAccessToken => true,
        }
    }

    /// Fingerprints are computed here and not believed. A key that two people registered proves
    /// neither; an entry that makes no sense is passed over.
    fn from_list(list: List, uses: Uses) -> Self {
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
                    // An older authserver names no end.
                    expires_at: key
                        .expires_at
                        .and_then(|end| Timestamp::from_second(end).ok())
                        .unwrap_or(Timestamp::MAX),
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
        Self { people, certified: Certified::new(&list.authorities, list.people), uses }
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
    /// Seconds since the epoch.
    #[serde(default)]
    expires_at: Option<i64>,
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
    let uses = Uses::default();
    let first = Registered { uses: uses.clone(), ..Registered::default() };
    let (sender, receiver) = watch::channel(Arc::new(first));
    ctx.health.set(COMPONENT, Err("the registered keys are not loaded yet".to_owned()));
    let ctx = ctx.clone();
    tokio::spawn(async move {
        let shutdown = ctx.shutdown.clone();
        tokio::select! {
            () = poll(&feed, &sender, &uses, &ctx) => {}
            () = report(&feed, &uses) => {}
            () = shutdown.cancelled() => {}
        }
    });
    receiver
}

/// Tells the authserver of uses. What cannot be told is told with the next report.
async fn report(feed: &Feed, uses: &Uses) {
    let mut url = feed.url.clone();
    url.set_path(TOLD_AT);
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let mut untold = uses.take();
        while !untold.is_empty() {
            let rest = untold.split_off(untold.len().min(REPORT_MAX));
            let report = Report { uses: untold };
            let request = feed.http.post(url.clone()).json(&report).timeout(HOLD);
            let request = request.basic_auth(&feed.client_id, Some(&feed.client_secret));
            let told = request.send().await.and_then(reqwest::Response::error_for_status);
            if let Err(error) = told {
                let error = runtime::http::whole(&error);
                tracing::info!(error, "uses of SSH keys are told later");
                uses.put_back(report.uses);
                uses.put_back(rest);
                break;
            }
            untold = rest;
        }
    }
}

async fn poll(feed: &Feed, sender: &watch::Sender<Arc<Registered>>, uses: &Uses, ctx: &Context) {
    let mut version = None;
    let mut pause = Duration::from_secs(1);
    loop {
        match ask(feed, version).await {
            Ok(list) => {
                ctx.health.set(COMPONENT, Ok(()));
                if version != Some(list.version) {
                    version = Some(list.version);
                    sender.send_replace(Arc::new(Registered::from_list(list, uses.clone())));
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
        Registered::from_list(list, Uses::default())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn attack_19_a_key_whose_time_is_over_stands_for_nobody() {
        let key = generate();
        let entry = json!({
            "public_key": key.public_key().to_openssh().unwrap(), "subject": "s", "user": "alice",
            "expires_at": 1000,
        });
        let found = list(json!([entry]));
        let alice = found.find(key.public_key(), at(999)).unwrap().clone();
        assert_eq!(alice.credential.expires_at, at(1000));
        assert!(found.find(key.public_key(), at(1000)).is_none());
        // Told once, and again when that failed.
        found.note_use(&alice, at(500));
        let told = found.uses.take();
        assert_eq!((told.len(), told[0].at), (1, 500));
        assert!(found.uses.take().is_empty());
        found.note_use(&alice, at(600));
        found.uses.put_back(told);
        assert_eq!(found.uses.take()[0].at, 600);
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
        let alice = found.find(one.public_key(), at(0)).unwrap();
        assert_eq!((alice.user.as_str(), alice.groups.as_slice()), ("alice", &["ml".into()][..]));
        assert!(found.still_proves(alice, None));
        assert!(found.find(two.public_key(), at(0)).is_none(), "registered by two people");
        assert!(!list(json!([entry(&one, "bob")])).still_proves(alice, None));
        assert!(!list(json!([])).still_proves(alice, None));
    }

    #[test]
    fn nonsense_is_passed_over() {
        let key = json!({"public_key": "ssh-ed25519 AAAA", "subject": "s", "user": "alice"});
        assert!(list(json!([key])).people.is_empty());
    }
}
