//! Whether the cluster lets the controller do its work: it is ready only then, and says what is missing.

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};
use runtime::service::Context;
use tokio::time::timeout;

/// In the namespace of the Lease alone.
pub const LEASES: (&str, &str, &[&str]) =
    ("coordination.k8s.io", "leases", &["get", "create", "update"]);

/// API group, resource with its subresource, verbs. In all namespaces.
pub const NEEDED: [(&str, &str, &[&str]); 14] = [
    ("dormouse.dev", "projects", &["list", "watch"]),
    ("dormouse.dev", "workspaces", &["list", "watch"]),
    ("dormouse.dev", "apps", &["list", "watch"]),
    ("dormouse.dev", "projects/status", &["patch"]),
    ("dormouse.dev", "workspaces/status", &["patch"]),
    ("dormouse.dev", "apps/status", &["patch"]),
    ("", "namespaces", &["get", "list", "watch", "create", "patch"]),
    ("", "services", &["get", "list", "watch", "create", "patch", "delete"]),
    ("", "secrets", &["get", "create", "patch"]),
    ("", "persistentvolumeclaims", &["get", "create", "patch", "delete"]),
    ("", "pods", &["list", "watch", "delete"]),
    ("apps", "statefulsets", &["get", "list", "watch", "create", "patch"]),
    ("apps", "deployments", &["get", "list", "watch", "create", "patch", "delete"]),
    ("events.k8s.io", "events", &["create", "patch"]),
];

/// Between two looks while all is well: a right may be taken away.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// While something is missing, so that the service is ready soon after it was given.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Of one look. A cluster that does not answer takes no right away.
const DEADLINE: Duration = Duration::from_secs(30);

/// Reports the component `rights` until shutdown.
pub async fn run(client: Client, lease_namespace: String, ctx: Context) {
    ctx.health.set("rights", Err("the cluster has not said yet what the controller may do".into()));
    let mut told: Option<String> = None;
    let mut known = false;
    loop {
        let looked = timeout(DEADLINE, missing(&client, &lease_namespace)).await;
        let pause = match looked {
            Ok(Ok(missing)) => {
                known = true;
                let problem = (!missing.is_empty()).then(|| {
                    format!("the cluster does not let the controller {}", missing.join(", "))
                });
                if problem != told {
                    match &problem {
                        Some(problem) => tracing::error!(problem, "a right is missing"),
                        None => tracing::info!("all rights are there"),
                    }
                }
                ctx.health.set("rights", problem.clone().map_or(Ok(()), Err));
                told = problem;
                if told.is_some() { LOOK_AGAIN } else { LOOK_EVERY }
            }
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "the API server does not answer".to_owned(),
                };
                tracing::debug!(why, "what the controller may do cannot be asked");
                // For a moment after its restart an API server refuses everybody everything.
                if !known {
                    let why = format!("the cluster does not say what the controller may do: {why}");
                    ctx.health.set("rights", Err(why));
                }
                LOOK_AGAIN
            }
        };
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Such as `create services`, `patch workspaces/status (dormouse.dev)`.
async fn missing(client: &Client, lease_namespace: &str) -> kube::Result<Vec<String>> {
    let mut missing = Vec::new();
    for (group, resource, verbs) in NEEDED {
        for verb in verbs {
            if !is_allowed(client, None, (group, resource, verb)).await? {
                let group = if group.is_empty() { String::new() } else { format!(" ({group})") };
                missing.push(format!("{verb} {resource}{group}"));
            }
        }
    }
    let (group, resource, verbs) = LEASES;
    for verb in verbs {
        if !is_allowed(client, Some(lease_namespace), (group, resource, verb)).await? {
            missing.push(format!("{verb} {resource} ({group}) in the namespace {lease_namespace}"));
        }
    }
    Ok(missing)
}

async fn is_allowed(
    client: &Client,
    namespace: Option<&str>,
    (group, resource, verb): (&str, &str, &str),
) -> kube::Result<bool> {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, below)) => (resource, Some(below.to_owned())),
        None => (resource, None),
    };
    let attributes = ResourceAttributes {
        namespace: namespace.map(str::to_owned),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What operators are told to allow is what is asked for.
    #[test]
    fn the_documentation_lists_every_right() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md");
        let page = std::fs::read_to_string(page).unwrap();
        for (group, resource, verbs) in NEEDED.into_iter().chain([LEASES]) {
            let row = format!("| `{group}` | `{resource}` | {} |", verbs.join(", "));
            assert!(page.contains(&row), "docs/operating.md: {row}");
        }
    }
}
