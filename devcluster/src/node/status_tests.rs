use super::*;
use crate::node::model::{Slot, Terminated};
use proptest::prelude::*;
use serde_json::json;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn pod(policy: &str, init: bool) -> Pod {
    let init = if init { json!([{"name": "prepare"}]) } else { json!([]) };
    serde_json::from_value(json!({
        "metadata": {"name": "p"},
        "spec": {"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}], "initContainers": init},
    }))
    .unwrap()
}

fn ended(code: i32) -> State {
    State::Terminated(Terminated {
        code,
        signal: None,
        reason: "Error".to_owned(),
        message: None,
        started: None,
        finished: at(0),
        id: None,
    })
}

fn running() -> State {
    State::Running { since: at(0) }
}

fn host() -> IpAddr {
    "127.0.0.1".parse().unwrap()
}

fn model(pod: &Pod, states: [State; 2]) -> PodModel {
    let mut model = PodModel::restore(pod, at(0));
    for (record, state) in model.main.iter_mut().zip(states) {
        record.state = state;
    }
    model
}

fn condition(status: &PodStatus, type_: &str) -> (String, Option<String>) {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone())
}

#[test]
fn phases_follow_the_restart_policy() {
    for (policy, states, wanted) in [
        ("Always", [running(), running()], Phase::Running),
        ("Always", [ended(0), ended(0)], Phase::Running),
        ("OnFailure", [ended(0), ended(0)], Phase::Succeeded),
        ("OnFailure", [ended(0), ended(1)], Phase::Running),
        ("Never", [ended(0), ended(1)], Phase::Failed),
        ("Never", [ended(0), running()], Phase::Running),
        ("Never", [ended(0), State::waiting("ContainerCreating", None)], Phase::Pending),
    ] {
        let pod = pod(policy, false);
        assert_eq!(phase(&model(&pod, states), RestartPolicy::of(&pod)), wanted, "{policy}");
    }
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    for (policy, wanted) in [("Never", Phase::Failed), ("Always", Phase::Pending)] {
        let pod = pod(policy, true);
        let mut model = PodModel::restore(&pod, at(0));
        model.record_mut(Slot { init: true, index: 0 }).unwrap().state = ended(1);
        assert_eq!(phase(&model, RestartPolicy::of(&pod)), wanted);
        let status = compute(&pod, &model, host(), at(1));
        assert_eq!(
            condition(&status, "Initialized").1.as_deref(),
            Some("ContainersNotInitialized")
        );
    }
}

#[test]
fn a_deleted_pod_whose_processes_ended_is_over() {
    let pod = pod("Always", false);
    let mut model = model(&pod, [ended(0), ended(143)]);
    model.over = true;
    assert_eq!(phase(&model, RestartPolicy::Always), Phase::Failed);
}

#[test]
fn conditions_keep_their_time_until_they_change() {
    let mut pod = pod("Always", false);
    let mut model = model(&pod, [running(), running()]);
    for record in &mut model.main {
        record.started = true;
        record.ready = record.name == "a";
    }
    pod.status = Some(compute(&pod, &model, host(), at(1)));
    let status = pod.status.clone().unwrap();
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [b]"));
    assert_eq!(compute(&pod, &model, host(), at(9)), status);
    model.main[1].ready = true;
    let status = compute(&pod, &model, host(), at(9));
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.last_transition_time.clone()),
        ("True", Some(Time(at(9))))
    );
}

#[test]
fn others_conditions_and_readiness_gates_are_respected() {
    let mut pod = pod("Always", false);
    let gate = json!([{"conditionType": "example.com/go"}]);
    pod.spec.as_mut().unwrap().readiness_gates = serde_json::from_value(gate).unwrap();
    pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "PodScheduled", "status": "True"}]}))
            .unwrap();
    let mut model = model(&pod, [running(), running()]);
    model.main.iter_mut().for_each(|record| (record.started, record.ready) = (true, true));
    let status = compute(&pod, &model, host(), at(1));
    assert_eq!(condition(&status, "PodScheduled").0, "True");
    assert_eq!(condition(&status, "ContainersReady").0, "True");
    assert_eq!(condition(&status, "Ready").1.as_deref(), Some("ReadinessGatesNotReady"));
    let met = json!({"conditions": [{"type": "example.com/go", "status": "True"}]});
    pod.status = serde_json::from_value(met).unwrap();
    assert_eq!(condition(&compute(&pod, &model, host(), at(1)), "Ready").0, "True");
}

#[test]
fn a_restored_pod_remembers_what_ran() {
    let mut pod = pod("Always", false);
    let mut before = model(&pod, [running(), ended(2)]);
    before.main[0].restarts = 3;
    pod.status = Some(compute(&pod, &before, host(), at(1)));
    let after = PodModel::restore(&pod, at(5));
    assert!(
        matches!(&after.main[0].state, State::Terminated(end) if end.reason == "Unknown" && end.code == 137)
    );
    assert_eq!(after.main[0].restarts, 3);
    assert!(matches!(&after.main[1].state, State::Terminated(end) if end.code == 2));
}

#[test]
fn restart_policies() {
    use Kind::{Init, Main, Sidecar};
    use RestartPolicy::{Always, Never, OnFailure};
    for (policy, kind, code, wanted) in [
        (Always, Main, 0, true),
        (OnFailure, Main, 0, false),
        (OnFailure, Main, 1, true),
        (Never, Main, 1, false),
        (Never, Init, 1, false),
        (Always, Init, 0, false),
        (Always, Init, 1, true),
        (Never, Sidecar, 0, true),
    ] {
        assert_eq!(policy.restarts(kind, code), wanted, "{policy:?} {kind:?} {code}");
    }
}

fn any_state() -> impl Strategy<Value = State> {
    prop_oneof![
        Just(running()),
        (0i32..3).prop_map(ended),
        Just(State::waiting("ContainerCreating", None)),
        Just(State::waiting("CrashLoopBackOff", None)),
    ]
}

proptest! {
    #[test]
    fn statuses_are_stable_and_survive_the_wire(
        a in any_state(), b in any_state(), policy in "Always|OnFailure|Never", ready in any::<bool>(), over in any::<bool>()
    ) {
        let mut pod = pod(&policy, false);
        let mut model = model(&pod, [a, b]);
        model.over = over;
        model.main.iter_mut().for_each(|record| (record.started, record.ready) = (true, ready));
        let status = compute(&pod, &model, host(), at(1));
        let wire: PodStatus = serde_json::from_value(serde_json::to_value(&status).unwrap()).unwrap();
        prop_assert_eq!(&wire, &status);
        let is_ready = condition(&status, "Ready").0 == "True";
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let all_ready = status.container_statuses.iter().flatten().all(|c| c.ready);
        prop_assert_eq!(is_ready, all_ready && !over);
        // Computing again from what was written changes nothing: no write loops.
        pod.status = Some(wire);
        prop_assert_eq!(compute(&pod, &model, host(), at(7)), status);
    }
}
