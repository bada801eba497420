//! What an operator's command leaves in the audit log: one event for each try at a change, on disk
//! before the command answers.

use std::io;

use anyhow::Context as _;
use authserver::{MasterKeyError, StoreError};
use jiff::Timestamp;
use nix::unistd::{Uid, User};
use runtime::audit::{Event, Journal, Outcome};

/// What is to be changed, or was. No secrets.
#[derive(Debug, PartialEq, Eq)]
pub struct Act {
    /// A verb in the past tense.
    pub did: &'static str,
    /// The kind and the name of what it was done to.
    pub to: String,
    pub detail: Option<String>,
}

impl Act {
    pub fn new(did: &'static str, to: String) -> Self {
        Self { did, to, detail: None }
    }

    #[must_use]
    pub fn with(self, detail: String) -> Self {
        Self { detail: Some(detail), ..self }
    }
}

/// What came of a command.
#[derive(Debug, Default)]
pub struct Done {
    /// For standard output, with the ends of its lines.
    pub answer: String,
    /// When more is known of the change than before it.
    pub act: Option<Act>,
}

impl Done {
    pub fn acted(act: Act) -> Self {
        Self { act: Some(act), ..Self::default() }
    }

    #[must_use]
    pub fn answering(self, answer: String) -> Self {
        Self { answer, ..self }
    }
}

/// Writes down what came of the try, whatever it was.
pub fn record(
    journal: &Journal,
    tried: &Act,
    done: &anyhow::Result<Done>,
    now: Timestamp,
) -> anyhow::Result<()> {
    let who = who();
    let (did, act, outcome, detail) = match done {
        Ok(done) => {
            let act = done.act.as_ref().unwrap_or(tried);
            (act.did, act, Outcome::Allowed, act.detail.clone())
        }
        Err(error) => {
            let why = runtime::http::whole(error.as_ref());
            match outcome(error) {
                // As the server says it of those whom it refuses something.
                Outcome::Denied => {
                    let detail = format!("{}: {why}", tried.did);
                    ("refused", tried, Outcome::Denied, Some(detail))
                }
                outcome => (tried.did, tried, outcome, Some(why)),
            }
        }
    };
    let event = Event {
        who: Some(&who),
        did,
        to: Some(&act.to),
        from: None,
        credential: None,
        outcome,
        detail: detail.as_deref(),
    };
    let written = journal.record(now, event);
    written.with_context(|| match done {
        Ok(_) => format!(
            "it was done ({did}, {}), but the audit log could not be written; what it made is not \
             shown",
            act.to
        ),
        Err(error) => format!("{error}; and the audit log could not be written"),
    })
}

/// The user whom the system knows, by name, or by number if it has none.
fn who() -> String {
    let uid = Uid::current();
    match User::from_uid(uid) {
        Ok(Some(user)) => format!("operator:{}", user.name),
        _ => format!("operator:{uid}"),
    }
}

/// Whether it was refused, or could not be tried.
fn outcome(error: &anyhow::Error) -> Outcome {
    use StoreError::{
        Connect, Damaged, Database, Migrate, NoMasterKey, Open, Signing, Together, WrongMasterKey,
    };
    match error.downcast_ref::<StoreError>() {
        Some(
            Open { .. }
            | Connect { .. }
            | Migrate { .. }
            | Database(_)
            | Damaged(_)
            | NoMasterKey
            | WrongMasterKey(_)
            | Signing(_)
            | Together(_),
        ) => Outcome::Failed,
        None if error.is::<io::Error>() || error.is::<MasterKeyError>() => Outcome::Failed,
        _ => Outcome::Denied,
    }
}
