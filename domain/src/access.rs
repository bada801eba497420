//! May this identity reach that workload? The answer is a proof, and only the proof can be dialled.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    activity::{Guard, How},
    endpoint::Endpoint,
    identity::Identity,
    name::{ProjectName, UserName},
    route::{AgentSpec, Progress, Route, RouteTable, State, Step},
    traffic::Traffic,
    upstream::Routing,
    workload::{Protocol, WorkloadRef},
};

/// Who may use a workload, with project roles already resolved to people and groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessPolicy {
    /// The owner; `None` denies nobody else and lets nobody in by ownership.
    pub owner: Option<UserName>,
    pub users: BTreeSet<UserName>,
    pub groups: BTreeSet<String>,
    /// Every signed-in person.
    pub everyone: bool,
}

impl AccessPolicy {
    pub fn allows(&self, identity: &Identity) -> bool {
        self.everyone
            || self.owner.as_ref() == Some(&identity.user)
            || self.users.contains(&identity.user)
            || identity.groups.iter().any(|group| self.groups.contains(group))
    }
}

/// What somebody asks for.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// By host name: lower case, without port.
    Host(&'a str),
    /// By SSH user name, `<workspace>` or `<workspace>.<project>`.
    Ssh(&'a str),
}

/// Proof that `identity` may reach the route. Cannot be made outside this module.
#[derive(Debug, Clone)]
pub struct Grant {
    identity: Arc<Identity>,
    route: Arc<Route>,
}

/// `None` for "no such thing" and for "not yours" alike: an outsider learns nothing.
pub fn authorize(
    table: &RouteTable,
    identity: &Arc<Identity>,
    target: Target<'_>,
) -> Option<Grant> {
    let route = match target {
        Target::Host(host) => table.by_host(host)?,
        Target::Ssh(user) => by_ssh_user(table, identity, user)?,
    };
    (route.spec().access.allows(identity) && identity.credential.reaches(route.workload()))
        .then(|| Grant { identity: identity.clone(), route: route.clone() })
}

/// Without a project the workspace is one's own: the one in the project that bears the person's
/// name, else the only one of that name that the person owns.
fn by_ssh_user<'t>(
    table: &'t RouteTable,
    identity: &Identity,
    user: &str,
) -> Option<&'t Arc<Route>> {
    let (name, project) = match user.split_once('.') {
        Some((name, project)) => (name, Some(project.parse::<ProjectName>().ok()?)),
        None => (user, None),
    };
    if let Some(project) = project {
        return table.workspaces(name).iter().find(|route| route.workload().project == project);
    }
    let owned = || {
        table
            .workspaces(name)
            .iter()
            .filter(|route| route.spec().access.owner.as_ref() == Some(&identity.user))
    };
    let personal = owned().find(|r| r.workload().project.as_str() == identity.user.as_str());
    personal.or_else(|| {
        let mut all = owned();
        all.next().filter(|_| all.next().is_none())
    })
}

/// Whether a granted route can be dialled now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness<'a> {
    /// Never empty.
    Ready(&'a [SocketAddr]),
    /// On its way: wait for the next route table.
    Waking(Progress),
    /// Ask for a wake, then wait.
    Asleep,
    /// Stopped by a person: waiting is of no use.
    Stopped,
    Failed(&'a str),
}

impl Grant {
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    pub fn workload(&self) -> &WorkloadRef {
        self.route.workload()
    }

    pub fn host(&self) -> &str {
        self.route.host()
    }

    pub fn protocol(&self) -> Protocol {
        self.route.protocol()
    }

    pub fn wake_hold(&self) -> Duration {
        self.route.spec().wake_hold
    }

    pub fn traffic(&self) -> &Traffic {
        &self.route.spec().traffic
    }

    pub fn agent(&self) -> Option<&AgentSpec> {
        self.route.spec().agent.as_ref()
    }

    pub fn readiness(&self) -> Readiness<'_> {
        let (spec, addresses) = (self.route.spec(), self.route.addresses());
        match &spec.state {
            State::Stopped => Readiness::Stopped,
            State::Sleeping => Readiness::Asleep,
            _ if !addresses.is_empty() => Readiness::Ready(addresses),
            State::Failed { message } => Readiness::Failed(message),
            State::Starting { progress } => Readiness::Waking(progress.clone()),
            State::Running => Readiness::Waking(Progress {
                step: Step::AlmostReady,
                message: "Waiting for the program to answer".to_owned(),
            }),
        }
    }

    /// To choose from among those that are ready; also lists those that drain.
    pub fn endpoints(&self) -> &[Endpoint] {
        self.route.endpoints()
    }

    pub fn routing(&self) -> &Routing {
        &self.route.spec().routing
    }

    /// The same proof against a newer table, for waits and long-lived sessions: access may be gone.
    pub fn renew(&self, table: &RouteTable) -> Option<Grant> {
        let route = table.by_host(self.host())?;
        let same = route.workload() == self.workload();
        (same && route.spec().access.allows(&self.identity))
            .then(|| Grant { identity: self.identity.clone(), route: route.clone() })
    }

    /// Counts an exchange, WebSocket or SSH session for as long as the guard lives.
    pub fn begin(&self, how: How) -> Guard {
        Guard::new(self.route.activity().clone(), self.identity.user.clone(), how)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        activity::Tracker, route::RouteSpec, token::testing::identity, workload::WorkloadKind,
    };

    fn route(tracker: &Tracker, name: &str, project: &str, owner: &str) -> Arc<Route> {
        let workload = WorkloadRef {
            kind: WorkloadKind::Workspace,
            project: project.parse().unwrap(),
            name: name.parse().unwrap(),
        };
        let spec = RouteSpec {
            host: format!("{}.localhost", workload.host_label()),
            access: AccessPolicy { owner: Some(owner.parse().unwrap()), ..Default::default() },
            state: State::Running,
            endpoints: vec!["127.0.0.1:1".parse::<SocketAddr>().unwrap().into()],
            routing: Routing::default(),
            protocol: Protocol::Jupyter,
            wake_hold: Duration::from_secs(60),
            traffic: Traffic::default(),
            agent: None,
            workload: workload.clone(),
        };
        Arc::new(Route::new(spec, tracker.cell(&workload), None))
    }

    #[test]
    fn a_token_for_signing_in_elsewhere_opens_nothing() {
        let tracker = Tracker::new();
        let table = RouteTable::new([route(&tracker, "lab", "alice", "alice")]);
        let mut elsewhere = identity("alice", &[]);
        elsewhere.credential.scopes = vec!["openid".to_owned(), "profile".to_owned()];
        let host = Target::Host("lab--alice.localhost");
        assert!(authorize(&table, &Arc::new(elsewhere.clone()), host).is_none());
        elsewhere.credential.kind = crate::identity::CredentialKind::SshKey;
        assert!(authorize(&table, &Arc::new(elsewhere), host).is_some(), "a key has no scopes");
    }

    #[test]
    fn a_credential_for_one_workload_opens_no_other() {
        let tracker = Tracker::new();
        let table = RouteTable::new([
            route(&tracker, "lab", "alice", "alice"),
            route(&tracker, "big", "alice", "alice"),
        ]);
        let mut limited = identity("alice", &[]);
        limited.credential.workload = Some("alice/lab".to_owned());
        let limited = Arc::new(limited);
        let grant = |host| authorize(&table, &limited, Target::Host(host));
        let granted = grant("lab--alice.localhost").unwrap();
        assert!(grant("big--alice.localhost").is_none());
        assert!(granted.renew(&table).is_some());
        let mut nothing = identity("alice", &[]);
        nothing.credential.workload = Some("lab".to_owned());
        let host = Target::Host("lab--alice.localhost");
        assert!(authorize(&table, &Arc::new(nothing), host).is_none());
    }

    #[test]
    fn only_the_owner_gets_in() {
        let tracker = Tracker::new();
        let table = RouteTable::new([route(&tracker, "lab", "alice", "alice")]);
        let (alice, bob) = (Arc::new(identity("alice", &[])), Arc::new(identity("bob", &[])));
        let host = Target::Host("lab--alice.localhost");
        assert!(authorize(&table, &alice, host).is_some());
        assert!(authorize(&table, &bob, host).is_none());
        assert!(authorize(&table, &alice, Target::Ssh("lab")).is_some());
        assert!(authorize(&table, &bob, Target::Ssh("lab")).is_none());
        assert!(authorize(&table, &bob, Target::Ssh("lab.alice")).is_none());
    }

    #[test]
    fn ssh_names_match_exactly_or_not_at_all() {
        let tracker = Tracker::new();
        let table = RouteTable::new([route(&tracker, "lab", "alice", "alice")]);
        let alice = Arc::new(identity("alice", &[]));
        for bad in ["lab.", ".alice", "lab.alice.x", "LAB", "lаb", "../lab", "lab\0", "", "."] {
            assert!(authorize(&table, &alice, Target::Ssh(bad)).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_without_project_is_ones_own_and_never_a_guess() {
        let tracker = Tracker::new();
        let alice = Arc::new(identity("alice", &[]));
        let find = |routes: Vec<Arc<Route>>| {
            authorize(&RouteTable::new(routes), &alice, Target::Ssh("lab"))
                .map(|grant| grant.workload().project.to_string())
        };
        let mine = route(&tracker, "lab", "alice", "alice");
        let team = route(&tracker, "lab", "team", "alice");
        let other = route(&tracker, "lab", "ops", "alice");
        assert_eq!(find(vec![team.clone(), mine]), Some("alice".to_owned()));
        assert_eq!(find(vec![team.clone()]), Some("team".to_owned()));
        assert_eq!(find(vec![team, other]), None);
    }

    #[test]
    fn groups_and_everyone_let_in() {
        let carol = identity("carol", &["ml"]);
        let group = AccessPolicy { groups: ["ml".to_owned()].into(), ..Default::default() };
        assert!(group.allows(&carol));
        assert!(!AccessPolicy::default().allows(&carol));
        assert!(AccessPolicy { everyone: true, ..Default::default() }.allows(&carol));
    }

    #[test]
    fn a_lost_right_ends_the_grant() {
        let tracker = Tracker::new();
        let alice = Arc::new(identity("alice", &[]));
        let before = RouteTable::new([route(&tracker, "lab", "alice", "alice")]);
        let grant = authorize(&before, &alice, Target::Ssh("lab")).unwrap();
        assert!(grant.renew(&before).is_some());
        let after = RouteTable::new([route(&tracker, "lab", "alice", "bob")]);
        assert!(grant.renew(&after).is_none());
        assert!(grant.renew(&RouteTable::default()).is_none());
    }
}
