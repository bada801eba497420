//! The controller is ready when it can do its work.

use std::time::Duration;

use serde_json::json;

use crate::world::World;

async fn until(world: &World, holds: impl Fn(&str) -> bool) -> String {
    let wait = async {
        loop {
            let problems = world.ctx.health.problems();
            let rights = problems.into_iter().find(|(name, _)| *name == "rights");
            let why = rights.map(|(_, why)| why).unwrap_or_default();
            if holds(&why) {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap()
}

#[tokio::test]
async fn a_missing_right_is_named_until_it_is_there() {
    let world = World::with(|method, path, _| {
        let asks = method == "POST" && path.ends_with("/selfsubjectaccessreviews");
        asks.then(|| {
            let answer = json!({"apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview", "metadata": {}, "spec": {},
                "status": {"allowed": false}});
            (201, answer)
        })
    })
    .await;
    let why = until(&world, |why| why.contains("does not let")).await;
    assert!(why.contains("create services, patch services"), "{why}");
    assert!(why.contains("patch workspaces/status (dormouse.dev)"), "{why}");
    *world.answer.lock().unwrap() = Box::new(|_, _, _| None);
    until(&world, str::is_empty).await;
}
