use super::*;
use proptest::prelude::*;
use serde_json::json;

fn container(env: serde_json::Value, env_from: serde_json::Value) -> Container {
    serde_json::from_value(json!({
        "name": "main", "env": env, "envFrom": env_from,
        "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "250m"}},
    }))
    .unwrap()
}

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "lab-0", "namespace": "alice", "uid": "u-1", "labels": {"app": "lab"}},
        "spec": {"nodeName": "here", "containers": []},
    }))
    .unwrap()
}

fn place() -> Place {
    Place {
        pod_ip: "127.77.0.9".parse().unwrap(),
        host_ip: "127.0.0.1".parse().unwrap(),
        allocatable: BTreeMap::from([("cpu".to_owned(), "2".to_owned())]),
    }
}

fn sources() -> Sources {
    let map =
        serde_json::from_value(json!({"data": {"A": "1", "DIR": "/data/x", "bad=name": "x"}}))
            .unwrap();
    let secret = serde_json::from_value(json!({"data": {"token": "c2VjcmV0"}})).unwrap();
    Sources {
        config_maps: BTreeMap::from([("settings".to_owned(), map)]),
        secrets: BTreeMap::from([("keys".to_owned(), secret)]),
    }
}

fn resolved(
    env: serde_json::Value,
    env_from: serde_json::Value,
) -> Result<BTreeMap<String, String>, EnvError> {
    let paths = PathMap::new([("/data".to_owned(), "/v".to_owned())]);
    let base = BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]);
    resolve(&pod(), &container(env, env_from), &place(), &sources(), &paths, base)
}

#[test]
fn values_come_from_every_source() {
    let env = resolved(
        json!([
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
            {"name": "ONE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "A"}}},
            {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": true}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "URL", "value": "http://$(POD_IP):80/$(NAME)/$(LATER)/$$(NAME)"},
            {"name": "WHERE", "value": "/data/$(ONE)"},
            {"name": "LATER", "value": "x"},
        ]),
        json!([{"prefix": "C_", "configMapRef": {"name": "settings"}}]),
    )
    .unwrap();
    let get = |name: &str| env.get(name).map(String::as_str);
    assert_eq!(get("PATH"), Some("/bin"));
    assert_eq!(get("POD_IP"), Some("127.77.0.9"));
    assert_eq!(get("APP"), Some("lab"));
    assert_eq!(get("TOKEN"), Some("secret"));
    assert_eq!(get("GONE"), None);
    assert_eq!(get("MEM"), Some("1024"));
    assert_eq!(get("CPU"), Some("2"));
    assert_eq!(get("URL"), Some("http://127.77.0.9:80/lab-0/$(LATER)/$(NAME)"));
    assert_eq!(get("WHERE"), Some("/v/1"));
    assert_eq!(get("C_A"), Some("1"));
    assert_eq!(get("C_DIR"), Some("/v/x"));
    assert_eq!(get("C_bad=name"), None);
}

#[test]
fn what_is_missing_is_named() {
    let missing = resolved(
        json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "no", "key": "k"}}}]),
        json!([]),
    );
    assert_eq!(missing.unwrap_err().to_string(), "secret \"no\" not found");
    let key = resolved(
        json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}}]),
        json!([]),
    );
    assert_eq!(key.unwrap_err().to_string(), "couldn't find key k in Secret alice/keys");
    let map = resolved(json!([]), json!([{"configMapRef": {"name": "no"}}]));
    assert_eq!(map.unwrap_err().to_string(), "configmap \"no\" not found");
    let field = resolved(
        json!([{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.magic"}}}]),
        json!([]),
    );
    assert!(field.unwrap_err().to_string().contains("spec.magic"));
}

#[test]
fn references_are_collected() {
    let c = container(
        json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
        json!([{"configMapRef": {"name": "m"}}, {"secretRef": {"name": "t"}}]),
    );
    let (maps, secrets) = references(&c);
    assert_eq!(maps.into_iter().collect::<Vec<_>>(), ["m"]);
    assert_eq!(secrets.into_iter().collect::<Vec<_>>(), ["s", "t"]);
}

#[test]
fn expansion_follows_kubernetes_own_table() {
    let values = BTreeMap::from([
        ("VAR_A", "A"),
        ("VAR_B", "B"),
        ("VAR_REF", "$(VAR_A)"),
        ("VAR_EMPTY", ""),
    ]);
    for (input, wanted) in [
        ("$(VAR_A)", "A"),
        ("___$(VAR_B)___", "___B___"),
        ("$(VAR_A)$(VAR_B)", "AB"),
        ("$(VAR_DNE)", "$(VAR_DNE)"),
        ("$(VAR_REF)", "$(VAR_A)"),
        ("foo$(VAR_EMPTY)bar", "foobar"),
        ("$$(VAR_A)", "$(VAR_A)"),
        ("$$$(VAR_A)", "$A"),
        ("$$$$$$(VAR_A)", "$$$(VAR_A)"),
        ("$(VAR_A", "$(VAR_A"),
        ("$VAR_A", "$VAR_A"),
        ("$", "$"),
        ("$$", "$"),
        ("$(", "$("),
        ("$()", "$()"),
        ("$($(VAR_A))", "$($(VAR_A))"),
        ("a$b$", "a$b$"),
    ] {
        assert_eq!(
            expand(input, |name| values.get(name).map(|v| (*v).to_owned())),
            wanted,
            "{input}"
        );
    }
}

proptest! {
    #[test]
    fn text_without_a_dollar_is_itself(text in "[^$]*") {
        prop_assert_eq!(expand(&text, |_| Some("x".to_owned())), text);
    }

    #[test]
    fn with_no_values_only_escapes_shrink(text in "[$()a-z]{0,30}") {
        let once = expand(&text, |_| None);
        prop_assert!(once.len() <= text.len());
        prop_assert!(once.len() + text.matches("$$").count() >= text.len());
    }
}
