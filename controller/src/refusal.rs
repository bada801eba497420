//! What the API server answered, in words for the person whose workload it is about.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kube::core::Status;

use crate::agent_key::KeyError;

/// Why a part of a workload is not as its specification asks. Told in the condition `Applied`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub reason: Reason,
    /// One sentence, which names the object and says what to do.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// An object of this name exists and was not made for this workload.
    NotOurs,
    /// The API server finds it wrong, or a rule of the cluster forbids it.
    Refused,
    /// A volume stays as it is, because a volume cannot be changed like that. All else was applied.
    VolumeKept,
    /// What is there is being deleted and is made anew when it is gone.
    Ending,
    /// An answer that ought to pass by itself and has come several times.
    Failing,
}

impl Reason {
    /// The `reason` of the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotOurs => "NotOurs",
            Self::Refused => "Refused",
            Self::VolumeKept => "VolumeKept",
            Self::Ending => "Ending",
            Self::Failing => "Failing",
        }
    }

    /// Whether a workload that does not run yet will not come up because of it.
    pub fn blocks(self) -> bool {
        matches!(self, Self::NotOurs | Self::Refused | Self::Failing)
    }

    /// When to look again: nobody tells us when somebody else's object goes away.
    pub fn again(self) -> Duration {
        match self {
            Self::Ending => Duration::from_secs(2),
            _ => Duration::from_secs(10),
        }
    }
}

impl Problem {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{}", .0.message)]
    Told(Problem),
}

impl ReconcileError {
    /// In words that hold nothing of an object.
    pub fn told(&self) -> String {
        match self {
            Self::Kube(error) => cluster::watch::told(error),
            Self::Key(_) | Self::Told(_) => self.to_string(),
        }
    }
}

impl ReconcileError {
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 409)
    }

    /// What to tell, or `None` for what may pass by itself.
    pub fn problem(&self) -> Option<Problem> {
        match self {
            Self::Told(problem) => Some(problem.clone()),
            Self::Kube(kube::Error::Api(status)) => refusal(status),
            _ => None,
        }
    }
}

/// An apply that can never pass is answered with 500 by a real API server when it cannot even be
/// compared with what is there: two list items with one key, an unknown field, a wrong type.
const NEVER_PASSES: [&str; 2] =
    ["failed to create typed patch object", "failed to convert new object"];

fn refusal(status: &Status) -> Option<Problem> {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice());
    if causes.unwrap_or_default().iter().any(|cause| cause.reason == "NamespaceTerminating") {
        let message = "The project's namespace is being deleted, so nothing can be made in it";
        return Some(Problem::new(Reason::Ending, message));
    }
    let refused = match status.code {
        400 | 422 => true,
        // A missing right is the controller's fault, and for seconds after a restart of the API
        // server everybody's.
        403 => !is_missing_right(status),
        500 => NEVER_PASSES.iter().any(|text| status.message.contains(text)),
        _ => false,
    };
    refused.then(|| {
        Problem::new(Reason::Refused, format!("The cluster refuses it: {}", first_line(status)))
    })
}

/// The authorizer's answer, not that of a quota or an admission rule.
fn is_missing_right(status: &Status) -> bool {
    status.code == 403 && status.message.contains("User \"") && status.message.contains(" cannot ")
}

/// Characters of an answer that people are shown.
const LONGEST: usize = 400;

/// Answers go on with diffs of whole objects.
fn first_line(status: &Status) -> String {
    let line = status.message.lines().next().unwrap_or_default().trim();
    let line = if line.is_empty() { status.reason.as_str() } else { line };
    line.chars().take(LONGEST).collect()
}

/// How often in a row a workload could not be applied. What comes once may be the API server's
/// restart; what has come back is told.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<String, u32>>);

/// A failure is told when it has come this often in a row.
const TOLD_AFTER: u32 = 3;
/// Workloads that are counted at a time.
const COUNTED: usize = 10_000;

impl Failures {
    /// Counts `error`; what to tell of it once it has come back.
    pub fn again(&self, workload: &str, error: &ReconcileError) -> Option<Problem> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= COUNTED && !counts.contains_key(workload) {
            counts.clear();
        }
        let count = counts.entry(workload.to_owned()).or_default();
        *count = count.saturating_add(1);
        (*count >= TOLD_AFTER).then(|| Problem::new(Reason::Failing, words(error)))
    }

    pub fn over(&self, workload: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(workload);
    }
}

fn words(error: &ReconcileError) -> String {
    match error {
        ReconcileError::Kube(kube::Error::Api(status)) if is_missing_right(status) => {
            format!("The controller lacks a right, which its /readyz names: {}", first_line(status))
        }
        ReconcileError::Kube(kube::Error::Api(status)) => format!(
            "The cluster does not take it and it is tried again: {} {}",
            status.code,
            first_line(status)
        ),
        other => format!("It cannot be applied and is tried again: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(code: u16, message: &str, details: Value) -> ReconcileError {
        let status = json!({
            "code": code, "message": message, "status": "Failure", "details": details,
        });
        let status = serde_json::from_value::<Status>(status).unwrap();
        ReconcileError::Kube(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn a_refusal_is_told_and_what_may_pass_is_not() {
        let told = answer(422, "no such amount\ndiff", Value::Null).problem().unwrap();
        assert_eq!(told.message, "The cluster refuses it: no such amount");
        let quota = answer(403, "exceeded quota: small", Value::Null).problem().unwrap();
        assert_eq!(quota.reason, Reason::Refused);
        for passing in [404, 409, 429, 500, 503] {
            assert_eq!(answer(passing, "no such amount", Value::Null).problem(), None);
        }
    }

    #[test]
    fn an_apply_that_can_never_pass_is_a_refusal_though_it_is_a_500() {
        let twice = "failed to create typed patch object (ns/d; apps/v1, Kind=Deployment): .spec.template.spec.containers[name=\"m\"].env: duplicate entries for key [name=\"A\"]";
        let told = answer(500, twice, Value::Null).problem().unwrap();
        assert_eq!(told.reason, Reason::Refused);
        assert!(told.message.contains("duplicate entries for key [name=\"A\"]"), "{told:?}");
    }

    #[test]
    fn a_namespace_that_ends_is_no_fault_of_the_workload() {
        let details = json!({"causes": [
            {"reason": "NamespaceTerminating", "field": "metadata.namespace", "message": "being terminated"},
        ]});
        let told = answer(403, "unable to create new content", details).problem().unwrap();
        assert_eq!(told.reason, Reason::Ending);
    }

    #[test]
    fn whatever_comes_back_is_told() {
        let failures = Failures::default();
        let restart = "services is forbidden: User \"system:serviceaccount:dormouse:controller\" cannot patch resource \"services\" in API group \"\"";
        let error = answer(403, restart, Value::Null);
        assert_eq!(error.problem(), None, "a missing right is no verdict at once");
        assert_eq!(failures.again("lab", &error), None);
        assert_eq!(failures.again("lab", &error), None);
        let told = failures.again("lab", &error).unwrap();
        assert!(told.message.starts_with("The controller lacks a right"), "{told:?}");
        assert_eq!(failures.again("other", &answer(500, "etcd", Value::Null)), None);
        failures.over("lab");
        assert_eq!(failures.again("lab", &error), None, "counted anew");
    }
}
