//! A person's workloads.

use std::sync::Arc;

use askama::Template;
use cluster::resources::{Phase, WorkloadResource};
use domain::{
    access::{Target, authorize},
    identity::Identity,
    route::RouteTable,
    workload::WorkloadKind,
};
use jiff::{SignedDuration, Timestamp};
use kube::runtime::reflector::Store;
use serde::Serialize;

use crate::Config;

/// One workload as its users see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub kind: &'static str,
    pub name: String,
    pub project: String,
    pub owner: String,
    pub state: &'static str,
    pub message: Option<String>,
    pub url: Option<String>,
    pub ssh: Option<String>,
    pub last_activity: Option<Timestamp>,
    /// How long ago that was, for people.
    #[serde(skip)]
    pub last_activity_ago: Option<String>,
    /// Why it is awake, or why it sleeps.
    pub why: Option<String>,
}

#[derive(Template)]
#[template(path = "list.html")]
pub struct Page<'a> {
    pub user: &'a str,
    /// The address of the person's own account.
    pub account: &'a str,
    pub entries: Vec<Entry>,
}

/// Only what the person may reach: the route table decides, as for a request.
pub fn entries<W: WorkloadResource>(
    store: &Store<W>,
    table: &RouteTable,
    identity: &Arc<Identity>,
    config: &Config,
    now: Timestamp,
) -> Vec<Entry> {
    let hosts: std::collections::HashMap<_, _> =
        table.iter().map(|route| (route.workload(), route.host())).collect();
    let mut entries = Vec::new();
    for object in store.state() {
        let Some(workload) = object.workload() else { continue };
        let Some(host) = hosts.get(&workload) else { continue };
        if authorize(table, identity, Target::Host(host)).is_none() {
            continue;
        }
        entries.push(entry(object.as_ref(), identity, config, now));
    }
    entries
}

fn entry<W: WorkloadResource>(
    object: &W,
    identity: &Identity,
    config: &Config,
    now: Timestamp,
) -> Entry {
    let meta = object.meta();
    let (name, project) =
        (meta.name.clone().unwrap_or_default(), meta.namespace.clone().unwrap_or_default());
    let status = object.status().cloned().unwrap_or_default();
    let last_activity = status.last_activity.map(|last| last.at);
    let ssh = (W::KIND == WorkloadKind::Workspace).then(|| {
        let own = identity.user.as_str() == project;
        let user = if own { name.clone() } else { format!("{name}.{project}") };
        let port =
            if config.ssh_port == 22 { String::new() } else { format!("-p {} ", config.ssh_port) };
        format!("ssh {port}{user}@{}", config.ssh_host)
    });
    Entry {
        kind: W::KIND.as_str(),
        owner: object.owner().to_owned(),
        state: status.phase.map_or("Starting", Phase::as_str),
        message: status.message,
        url: status.url,
        ssh,
        last_activity,
        last_activity_ago: last_activity.map(|at| ago(now.duration_since(at))),
        why: status.idle.map(|idle| idle.message),
        name,
        project,
    }
}

fn ago(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_leads_to_the_account() {
        let account = "https://auth.example.org/account";
        let page = Page { user: "alice", account, entries: vec![] }.render().unwrap();
        assert!(page.contains("<a href=\"https://auth.example.org/account\">Your account</a>"));
    }

    #[test]
    fn times_are_told_for_people() {
        let told = |seconds| ago(SignedDuration::from_secs(seconds));
        assert_eq!(told(-3), "just now");
        assert_eq!(told(90), "1 min ago");
        assert_eq!(told(7300), "2 h ago");
        assert_eq!(told(200_000), "2 days ago");
    }
}
