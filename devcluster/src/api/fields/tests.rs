use serde_json::{Value, json};

use super::managers::{Actor, Operation, apply, owned, track_update};
use super::set::FieldSet;
use super::typed;
use crate::api::schema::{Schema, builtin, parse};
use proptest::prelude::*;

fn actor(manager: &str, operation: Operation) -> Actor {
    Actor {
        manager: manager.into(),
        operation,
        subresource: String::new(),
        api_version: "v1".into(),
        time: "2026-01-01T00:00:00Z".into(),
    }
}

fn applier(manager: &str) -> Actor {
    actor(manager, Operation::Apply)
}

fn open() -> Schema {
    parse(&json!({"type": "object", "properties": {
        "metadata": {"type": "object"},
        "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
        }},
    }}))
    .unwrap()
}

fn spec(value: Value) -> Value {
    json!({"metadata": {"name": "n"}, "spec": value})
}

#[test]
fn a_field_no_longer_applied_goes_away() {
    let schema = open();
    let first =
        apply(&schema, None, &spec(json!({"a": 1, "b": {"c": 2}})), &applier("x"), false).unwrap();
    let second =
        apply(&schema, Some(&first), &spec(json!({"a": 1})), &applier("x"), false).unwrap();
    assert_eq!(second["spec"], json!({"a": 1}));
}

#[test]
fn a_shared_field_stays_until_the_last_owner_lets_go() {
    let schema = open();
    let one = apply(&schema, None, &spec(json!({"a": 1})), &applier("x"), false).unwrap();
    let two = apply(&schema, Some(&one), &spec(json!({"a": 1})), &applier("y"), false).unwrap();
    let three = apply(&schema, Some(&two), &spec(json!({})), &applier("x"), false).unwrap();
    assert_eq!(three["spec"]["a"], 1);
    let four = apply(&schema, Some(&three), &spec(json!({})), &applier("y"), false).unwrap();
    assert!(four["spec"].get("a").is_none());
}

#[test]
fn another_managers_field_conflicts_until_forced() {
    let schema = open();
    let one = apply(&schema, None, &spec(json!({"a": 1})), &applier("x"), false).unwrap();
    let error =
        apply(&schema, Some(&one), &spec(json!({"a": 2})), &applier("y"), false).unwrap_err();
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"x\": .spec.a");
    let two = apply(&schema, Some(&one), &spec(json!({"a": 2})), &applier("y"), true).unwrap();
    assert_eq!(two["spec"]["a"], 2);
    // x no longer owns it, so its next apply without the field changes nothing.
    let three = apply(&schema, Some(&two), &spec(json!({})), &applier("x"), false).unwrap();
    assert_eq!(three["spec"]["a"], 2);
}

#[test]
fn an_update_takes_ownership_of_what_it_changes() {
    let schema = open();
    let one = apply(&schema, None, &spec(json!({"a": 1, "b": 1})), &applier("x"), false).unwrap();
    let mut two = one.clone();
    two["spec"]["a"] = json!(5);
    track_update(&schema, Some(&one), &mut two, &actor("kubectl", Operation::Update));
    let error = apply(&schema, Some(&two), &spec(json!({"a": 1, "b": 1})), &applier("x"), false)
        .unwrap_err();
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"kubectl\" using v1: .spec.a"
    );
}

#[test]
fn list_items_are_owned_one_by_one() {
    let schema = open();
    let one = apply(
        &schema,
        None,
        &spec(json!({"set": ["a"], "map": [{"k": "x", "v": 1}]})),
        &applier("x"),
        false,
    )
    .unwrap();
    let two = apply(
        &schema,
        Some(&one),
        &spec(json!({"set": ["b"], "map": [{"k": "y", "v": 2}]})),
        &applier("y"),
        false,
    )
    .unwrap();
    assert_eq!(two["spec"]["set"], json!(["a", "b"]));
    let three = apply(&schema, Some(&two), &spec(json!({})), &applier("x"), false).unwrap();
    assert_eq!(three["spec"], json!({"set": ["b"], "map": [{"k": "y", "v": 2}]}));
}

#[test]
fn containers_of_a_pod_merge_by_name_and_defaults_of_others_survive() {
    let schema = builtin::schema("io.k8s.api.core.v1.Pod");
    let pod = |image: &str| {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": image,
        "ports": [{"containerPort": 80}]}]}})
    };
    let mut one = apply(&schema, None, &pod("i1"), &applier("x"), false).unwrap();
    one["spec"]["containers"][0]["terminationMessagePath"] = json!("/dev/log");
    one["spec"]["containers"][0]["ports"][0]["protocol"] = json!("TCP");
    let two = apply(&schema, Some(&one), &pod("i2"), &applier("x"), false).unwrap();
    assert_eq!(
        two["spec"]["containers"],
        json!([{"name": "a", "image": "i2", "terminationMessagePath": "/dev/log",
            "ports": [{"containerPort": 80, "protocol": "TCP"}]}])
    );
}

fn config() -> impl Strategy<Value = Value> {
    let names = prop::collection::btree_map("[ab]", 0..3i64, 0..3);
    let set = prop::collection::btree_set("[xyz]", 0..3);
    let map = prop::collection::btree_map("[pq]", 0..3i64, 0..3);
    (names, set, map).prop_map(|(names, set, map)| {
        let mut spec = json!({});
        for (name, value) in names {
            spec[name] = json!(value);
        }
        if !set.is_empty() {
            spec["set"] = json!(set);
        }
        if !map.is_empty() {
            spec["map"] = map.into_iter().map(|(k, v)| json!({"k": k, "v": v})).collect();
        }
        super::tests::spec(spec)
    })
}

proptest! {
    #[test]
    fn applying_twice_changes_nothing(a in config(), b in config()) {
        let schema = open();
        let one = apply(&schema, None, &a, &applier("x"), false).unwrap();
        let two = apply(&schema, Some(&one), &b, &applier("y"), true).unwrap();
        let again = apply(&schema, Some(&two), &b, &applier("y"), false).unwrap();
        prop_assert_eq!(again, two);
    }

    #[test]
    fn what_is_applied_is_there_and_what_nobody_applies_is_not(a in config(), b in config(), c in config()) {
        let schema = open();
        let one = apply(&schema, None, &a, &applier("x"), false).unwrap();
        let two = apply(&schema, Some(&one), &b, &applier("y"), true).unwrap();
        let three = apply(&schema, Some(&two), &c, &applier("x"), true).unwrap();
        let has = typed::set_of(Some(&schema), &three);
        let applied = |v: &Value| owned(typed::set_of(Some(&schema), v));
        prop_assert_eq!(typed::merge(Some(&schema), &three, &c), three);
        let anybody = applied(&b).union(&applied(&c)).union(&FieldSet::decode(&json!({"f:spec": {}})));
        prop_assert!(owned(has).difference(&anybody).is_empty());
    }

    #[test]
    fn a_second_appliers_fields_survive_the_firsts_withdrawal(a in config(), b in config()) {
        let schema = open();
        let one = apply(&schema, None, &a, &applier("x"), false).unwrap();
        let two = apply(&schema, Some(&one), &b, &applier("y"), true).unwrap();
        let three = apply(&schema, Some(&two), &spec(json!({})), &applier("x"), true).unwrap();
        let only_b = apply(&schema, None, &b, &applier("y"), false).unwrap();
        for (name, value) in only_b["spec"].as_object().unwrap() {
            if name.len() == 1 {
                prop_assert_eq!(&three["spec"][name], value);
            }
        }
        prop_assert_eq!(typed::set_of(Some(&schema), &three["spec"]), typed::set_of(Some(&schema), &only_b["spec"]));
    }
}
