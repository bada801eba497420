//! What a gateway believes of the cluster: `GET /debug/routes` on the admin port.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use domain::route::{Route, RouteTable};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Routes in one answer, unless less is asked for.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

/// `host` is one route; else a page of all, by host, of those after `after`.
#[derive(Debug, Default, Deserialize)]
struct Asked {
    host: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Clone)]
struct Known {
    routes: watch::Receiver<Arc<RouteTable>>,
    clock: fn() -> Duration,
}

/// Mounted beside health and metrics. `clock` is the one that the gateway counts exchanges by.
pub fn router(routes: watch::Receiver<Arc<RouteTable>>, clock: fn() -> Duration) -> Router {
    let known = Known { routes, clock };
    Router::new().route("/debug/routes", get(answer)).with_state(known)
}

async fn answer(State(known): State<Known>, Query(asked): Query<Asked>) -> Json<Value> {
    let table = known.routes.borrow().clone();
    Json(page(&table, &asked, (known.clock)()))
}

fn page(table: &RouteTable, asked: &Asked, now: Duration) -> Value {
    if let Some(host) = &asked.host {
        let routes: Vec<_> =
            table.by_host(host).map(|route| route.describe(now)).into_iter().collect();
        return json!({"synced": table.is_synced(), "total": table.len(), "routes": routes});
    }
    let after = asked.after.as_deref().unwrap_or_default();
    let mut all: Vec<&Arc<Route>> = table.iter().filter(|route| route.host() > after).collect();
    all.sort_unstable_by(|a, b| a.host().cmp(b.host()));
    let limit = asked.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let shown = all.get(..limit.min(all.len())).unwrap_or_default();
    let next = shown.last().filter(|_| all.len() > limit).map(|route| route.host());
    let routes: Vec<_> = shown.iter().map(|route| route.describe(now)).collect();
    json!({"synced": table.is_synced(), "total": table.len(), "routes": routes, "next": next})
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use domain::{
        access::AccessPolicy,
        activity::Tracker,
        route::{AgentSpec, RouteSpec, State},
        workload::{Protocol, WorkloadKind, WorkloadRef},
    };

    use super::*;

    fn table(names: &[&str]) -> RouteTable {
        let tracker = Tracker::new();
        RouteTable::new(names.iter().map(|name| {
            let workload = WorkloadRef {
                kind: WorkloadKind::Workspace,
                project: "team".parse().unwrap(),
                name: name.parse().unwrap(),
            };
            let cell = tracker.cell(&workload);
            let spec = RouteSpec {
                host: format!("{name}--team.localhost"),
                access: AccessPolicy {
                    owner: Some("alice".parse().unwrap()),
                    ..Default::default()
                },
                state: State::Running,
                endpoints: vec![SocketAddr::from(([10, 0, 0, 1], 80)).into()],
                routing: Default::default(),
                protocol: Protocol::Http,
                wake_hold: Duration::from_secs(60),
                traffic: Default::default(),
                agent: Some(AgentSpec { port: 22, host_key: "ssh-ed25519 KEY".to_owned() }),
                workload,
            };
            Arc::new(Route::new(spec, cell, None))
        }))
    }

    fn hosts(page: &Value) -> Vec<&str> {
        let routes = page["routes"].as_array().unwrap();
        routes
            .iter()
            .map(|route| route["host"].as_str().unwrap().split("--").next().unwrap())
            .collect()
    }

    #[test]
    fn one_host_or_page_by_page() {
        let table = table(&["c", "a", "b"]);
        let ask = |host: Option<&str>, after: Option<&str>, limit| {
            let (host, after) = (host.map(str::to_owned), after.map(str::to_owned));
            page(&table, &Asked { host, after, limit }, Duration::ZERO)
        };
        let one = ask(Some("b--team.localhost"), None, None);
        assert_eq!(hosts(&one), ["b"]);
        let endpoint = &one["routes"][0]["endpoints"][0];
        assert_eq!(endpoint["address"], "10.0.0.1:80");
        assert_eq!((&endpoint["standing"], &endpoint["outstanding"]), (&json!("good"), &json!(0)));
        assert_eq!(one["routes"][0]["access"]["owner"], "alice");
        assert!(!one.to_string().contains("KEY"));
        assert_eq!(hosts(&ask(Some("nobody"), None, None)), [""; 0]);
        let first = ask(None, None, Some(2));
        assert_eq!((hosts(&first), &first["total"]), (vec!["a", "b"], &json!(3)));
        let last = ask(None, first["next"].as_str(), Some(2));
        assert_eq!((hosts(&last), &last["next"]), (vec!["c"], &Value::Null));
        assert_eq!(hosts(&ask(None, None, Some(0))), ["a"]);
    }
}
