//! What state a workload is in, told from what lies under it.

use cluster::resources::{Phase, ProgressStatus};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::refusal::Problem;

/// What was asked for, and what there is.
#[derive(Debug)]
pub struct Observed<'a> {
    /// `spec.replicas` of the workload.
    pub wanted: i32,
    pub asleep: bool,
    /// Pods that still or already exist.
    pub replicas: i32,
    pub ready: i32,
    pub pods: &'a [Pod],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub phase: Phase,
    pub message: Option<String>,
    pub progress: Option<ProgressStatus>,
}

impl Told {
    /// With what could not be applied. What runs goes on and may sleep, and what was stopped is
    /// stopped; a start that cannot succeed has failed.
    pub fn with(mut self, problems: &[Problem], exists: bool) -> Self {
        if problems.is_empty() {
            return self;
        }
        let blocked = problems.iter().any(|problem| problem.reason.blocks());
        let mut words: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
        if self.phase == Phase::Starting && (blocked || !exists) {
            self.progress = None;
            if blocked {
                self.phase = Phase::Failed;
            }
        } else if let Some(message) = &self.message {
            words.insert(0, message);
        }
        self.message = Some(words.join(". "));
        self
    }
}

/// Reasons of a waiting container that time alone does not mend.
const BROKEN: [&str; 10] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "StartError",
    "PostStartHookError",
];

pub fn tell(observed: &Observed<'_>) -> Told {
    let told = |phase, message: Option<String>| Told { phase, message, progress: None };
    if observed.wanted == 0 {
        return told(Phase::Stopped, Some("Stopped: scale it to 1 to start it".to_owned()));
    }
    if observed.asleep {
        let going = observed.replicas > 0;
        return told(Phase::Sleeping, going.then(|| "Its processes are ending".to_owned()));
    }
    if observed.ready > 0 {
        return told(Phase::Running, None);
    }
    let newest = observed
        .pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let Some(pod) = newest else {
        // A pod of the same name can only follow when the last one is gone.
        let message = match observed.pods.first() {
            Some(_) => "Waiting for its last pod to end",
            None => "Asking for a place to run",
        };
        return starting("Requested", message);
    };
    if let Some(reason) = failure(pod) {
        return told(Phase::Failed, Some(reason));
    }
    let (step, message) = progress(pod);
    starting(step, &message)
}

fn starting(step: &str, message: &str) -> Told {
    let progress = ProgressStatus { step: step.to_owned(), message: message.to_owned() };
    Told { phase: Phase::Starting, message: Some(message.to_owned()), progress: Some(progress) }
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let main = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    init.iter().chain(main)
}

/// Whether nobody can be working in the pod: it does not come up, or has not even started.
pub fn is_broken(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let began = statuses(pod).any(|container| {
        container.name == "main" && container.state.as_ref().is_some_and(|it| it.running.is_some())
    });
    failure(pod).is_some() || (phase == Some("Pending") && !began)
}

/// Why the pod will not come up by itself, in one sentence.
fn failure(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() == Some("Failed") {
        let why =
            status.message.as_deref().or(status.reason.as_deref()).unwrap_or("no reason given");
        return Some(format!("Its pod failed: {why}"));
    }
    statuses(pod).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|reason| BROKEN.contains(reason))?;
        let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        if reason == "PostStartHookError" {
            let why = waiting.message.as_deref().unwrap_or("no reason given");
            return Some(format!(
                "The agent for SSH cannot run in this image (it needs glibc 2.34 or later): {why}"
            ));
        }
        let why = match (&waiting.message, ended) {
            (_, Some(ended)) if ended.reason.as_deref() == Some("OOMKilled") => {
                Some("the program needed more memory than spec.resources.limits allows".to_owned())
            }
            (_, Some(ended)) if ended.message.is_some() => ended.message.clone(),
            (_, Some(ended)) if reason == "CrashLoopBackOff" => {
                Some(format!("the program ended with exit code {}", ended.exit_code))
            }
            (message, _) => message.clone(),
        };
        Some(match why {
            Some(why) => format!("It does not start ({reason}): {why}"),
            None => format!("It does not start ({reason})"),
        })
    })
}

fn progress(pod: &Pod) -> (&'static str, String) {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else {
        let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
        let why = scheduled.and_then(|condition| condition.message.as_deref());
        let message = match why {
            Some(why) => format!("Waiting for a machine: {why}"),
            None => "Looking for a machine".to_owned(),
        };
        return ("Requested", message);
    };
    let running = statuses(pod).any(|container| {
        container.name == "main" && container.state.as_ref().is_some_and(|s| s.running.is_some())
    });
    if running {
        ("Starting", "The program is starting".to_owned())
    } else {
        ("Scheduled", format!("A machine was found ({node}); getting the image ready"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, status: Value) -> Pod {
        let pod = json!({"metadata": {"name": "lab-0"}, "spec": spec, "status": status});
        serde_json::from_value(pod).unwrap()
    }

    fn observed(pods: &[Pod]) -> Observed<'_> {
        Observed { wanted: 1, asleep: false, replicas: 1, ready: 0, pods }
    }

    fn step(pod: Pod) -> String {
        tell(&observed(&[pod])).progress.unwrap().step
    }

    #[test]
    fn wishes_come_first() {
        let stopped = Observed { wanted: 0, asleep: true, ready: 1, ..observed(&[]) };
        assert_eq!(tell(&stopped).phase, Phase::Stopped);
        let asleep = Observed { asleep: true, ready: 1, ..observed(&[]) };
        assert_eq!(tell(&asleep).phase, Phase::Sleeping);
        let running = Observed { ready: 1, ..observed(&[]) };
        assert_eq!(tell(&running).phase, Phase::Running);
    }

    #[test]
    fn progress_goes_step_by_step() {
        let containers = json!([{"name": "main"}]);
        let unbound = json!({"containers": containers});
        let bound = json!({"containers": containers, "nodeName": "n1"});
        let full = json!({"conditions": [{"type": "PodScheduled", "status": "False",
            "message": "0/1 nodes have enough memory"}]});
        assert_eq!(tell(&observed(&[])).progress.unwrap().step, "Requested");
        let waiting = tell(&observed(&[pod(unbound, full)]));
        assert_eq!(waiting.message.unwrap(), "Waiting for a machine: 0/1 nodes have enough memory");
        assert_eq!(step(pod(bound.clone(), json!({}))), "Scheduled");
        let running = json!({"containerStatuses": [{"name": "main", "ready": false, "image": "",
            "imageID": "", "restartCount": 0, "state": {"running": {}}}]});
        assert_eq!(step(pod(bound, running)), "Starting");
    }

    #[test]
    fn a_program_that_keeps_ending_is_said_to_fail() {
        let status = json!({"containerStatuses": [{"name": "main", "ready": false, "image": "",
            "imageID": "", "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
            "lastState": {"terminated": {"exitCode": 2}}}]});
        let told = tell(&observed(&[pod(json!({"containers": [], "nodeName": "n1"}), status)]));
        assert_eq!(told.phase, Phase::Failed);
        assert_eq!(
            told.message.unwrap(),
            "It does not start (CrashLoopBackOff): the program ended with exit code 2"
        );
    }

    fn waiting(reason: &str, message: &str, last: Value) -> Pod {
        let status = json!({"containerStatuses": [{"name": "main", "ready": false, "image": "",
            "imageID": "", "restartCount": 3, "lastState": last,
            "state": {"waiting": {"reason": reason, "message": message}}}]});
        pod(json!({"containers": [], "nodeName": "n1"}), status)
    }

    #[test]
    fn causes_are_told_in_words_that_help() {
        let said = |pod| tell(&observed(&[pod])).message.unwrap();
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        let memory = said(waiting("CrashLoopBackOff", "back-off 40s", killed));
        assert!(memory.contains("more memory than spec.resources.limits allows"), "{memory}");
        let loader = "libc.so.6: version `GLIBC_2.34' not found";
        let agent = said(waiting("PostStartHookError", loader, json!({})));
        assert!(agent.starts_with("The agent for SSH cannot run in this image"), "{agent}");
        let mut ending = pod(json!({"containers": []}), json!({}));
        ending.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(said(ending), "Waiting for its last pod to end");
    }

    #[test]
    fn what_could_not_be_applied_stops_nothing_that_runs() {
        use crate::refusal::Reason;
        let problem = |reason| [Problem::new(reason, "No.")];
        let told = |observed: Observed<'_>, reason| tell(&observed).with(&problem(reason), true);
        let running = told(Observed { ready: 1, ..observed(&[]) }, Reason::Refused);
        assert_eq!((running.phase, running.message.unwrap()), (Phase::Running, "No.".to_owned()));
        let asleep = Observed { asleep: true, ..observed(&[]) };
        assert_eq!(told(asleep, Reason::Refused).phase, Phase::Sleeping);
        let stopped = told(Observed { wanted: 0, ..observed(&[]) }, Reason::NotOurs);
        assert_eq!(stopped.phase, Phase::Stopped);
        assert_eq!(stopped.message.unwrap(), "Stopped: scale it to 1 to start it. No.");
        assert_eq!(told(observed(&[]), Reason::Refused).phase, Phase::Failed);
        assert_eq!(told(observed(&[]), Reason::VolumeKept).phase, Phase::Starting);
    }

    #[test]
    fn nobody_works_in_a_broken_pod() {
        assert!(is_broken(&waiting("CrashLoopBackOff", "", json!({}))));
        assert!(is_broken(&pod(json!({"containers": []}), json!({"phase": "Pending"}))));
        let running = json!({"phase": "Running", "containerStatuses": [{"name": "main",
            "ready": false, "image": "", "imageID": "", "restartCount": 0,
            "state": {"running": {}}}]});
        assert!(!is_broken(&pod(json!({"containers": []}), running)), "it may only be busy");
    }
}
