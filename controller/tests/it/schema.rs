//! What a real API server could never take is refused when it is applied, with a sentence.

use cluster::resources::{App, Workspace};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::World;

async fn refused(world: &World, kind: &str, spec: Value, says: &str) {
    let mut all = json!({"owner": "alice", "image": "any"});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let object = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "one"}, "spec": all});
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let answer = if kind == "App" {
        let object: App = serde_json::from_value(object).unwrap();
        world.api::<App>().create(&params, &object).await.map(|_| ())
    } else {
        let object: Workspace = serde_json::from_value(object).unwrap();
        world.api::<Workspace>().create(&params, &object).await.map(|_| ())
    };
    match answer {
        Ok(()) => assert_eq!(says, "", "{kind} {spec} is taken"),
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 422);
            let fits = !says.is_empty() && status.message.contains(says);
            assert!(fits, "{kind} {spec}: {}", status.message);
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn names_ports_and_folders_that_cannot_be_are_refused_in_words() {
    let world = World::new().await;
    let env = |names: &[&str]| {
        let vars: Vec<_> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        json!({ "env": vars })
    };
    let secrets = |paths: &[&str]| {
        let mounts: Vec<_> =
            paths.iter().map(|path| json!({"name": "s", "mountPath": path})).collect();
        json!({ "secrets": mounts })
    };
    for kind in ["Workspace", "App"] {
        refused(&world, kind, env(&["A", "B"]), "").await;
        refused(&world, kind, env(&["A", "B", "A"]), "a variable is there twice").await;
        refused(&world, kind, env(&["POD_IP"]), "POD_IP and names that begin with").await;
        refused(&world, kind, env(&["DORMOUSE_AGENT_KEYS"]), "are reserved").await;
        refused(&world, kind, secrets(&["/s", "/t"]), "").await;
        refused(&world, kind, secrets(&["/s", "/s"]), "the same mountPath").await;
        for odd in ["/s/", "//s", "/s/../t", "/./s", "/s:ro", "/s/."] {
            refused(&world, kind, secrets(&[odd]), "must be an absolute path").await;
        }
        for ours in ["/run", "/run/dormouse", "/run/dormouse-keys/x"] {
            refused(&world, kind, secrets(&[ours]), "are reserved").await;
        }
        refused(&world, kind, secrets(&["/s/.ssh", "/run/dormouse2"]), "").await;
    }
    refused(&world, "App", env(&["HOME"]), "").await;
    refused(&world, "Workspace", env(&["HOME"]), "HOME is reserved").await;
    refused(&world, "App", json!({"port": 2022}), "").await;
    refused(&world, "Workspace", json!({"port": 2022}), "port 2022 is the agent's").await;
    for at_home in ["/home/work", "/home"] {
        refused(&world, "Workspace", secrets(&[at_home]), "at the home folder").await;
    }
    refused(&world, "Workspace", secrets(&["/home/work/.aws", "/home/work2"]), "").await;
    let home = |path: &str| json!({"storage": {"mountPath": path}});
    refused(&world, "Workspace", home("/run/dormouse"), "are reserved").await;
    refused(&world, "Workspace", home("/home/../etc"), "must be an absolute path").await;
    let mut canary = json!({"canary": {"weight": 1}});
    canary["canary"]["env"] = env(&["A", "A"])["env"].clone();
    refused(&world, "App", canary, "a variable is there twice").await;
}

/// The rules are on the parts that they are about, so that stopping is no change of those.
#[tokio::test]
async fn what_was_made_before_a_rule_can_be_stopped() {
    let world = World::new().await;
    let crds = kube::Api::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>::all(world.client.clone());
    let name = "workspaces.dormouse.dev";
    let ours = crds.get(name).await.unwrap();
    let mut without = serde_json::to_value(&ours).unwrap();
    forget_rules(&mut without);
    let spec = json!({"spec": without["spec"]});
    crds.patch(name, &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    let twice = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
    let spec = json!({"env": twice, "port": 2022,
        "secrets": [{"name": "s", "mountPath": "/home/work"}, {"name": "t", "mountPath": "/home/work"}]});
    world.workspace("old", spec).await;
    let spec = json!({"spec": serde_json::to_value(&ours).unwrap()["spec"]});
    crds.patch(name, &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    world.merge::<Workspace>("old", json!({"spec": {"replicas": 0}})).await;
    let api = world.api::<Workspace>();
    let wrong = Patch::Merge(json!({"spec": {"env": [{"name": "HOME", "value": "/"}]}}));
    assert!(api.patch("old", &PatchParams::default(), &wrong).await.is_err());
}

fn forget_rules(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove("x-kubernetes-validations");
            map.values_mut().for_each(forget_rules);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_rules),
        _ => {}
    }
}
