//! The web page and the REST API with which people see what is theirs.
//!
//! Reached through the proxy, which signs people in and forwards their access token; the token is
//! verified here again, so that nothing depends on who can reach this port.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answer;
mod list;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, header::AUTHORIZATION},
    response::Response,
    routing::get,
};
use cluster::resources::{App, Workspace};
use domain::{
    identity::{Identity, USE},
    route::RouteTable,
    token::{TokenError, Verifier, unverified_kid},
};
use jiff::Timestamp;
use kube::runtime::reflector::Store;
use runtime::{jwks::JwksFollower, service::Context};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::{net::TcpListener, sync::watch};

use self::{answer::Refusal, list::Entry};

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Shown in the SSH commands that people copy.
    pub ssh_host: String,
    #[serde(default = "ssh_port")]
    pub ssh_port: u16,
}

fn ssh_port() -> u16 {
    22
}

/// What the portal looks at.
pub struct Inputs {
    pub routes: watch::Receiver<Arc<RouteTable>>,
    pub workspaces: Store<Workspace>,
    pub apps: Store<App>,
    pub verifier: Arc<Verifier>,
    /// Asked for the issuer's keys when a token names another one.
    pub jwks: JwksFollower,
    /// The issuer's public URL: people see to their passkeys, tokens and keys there.
    pub issuer: String,
}

struct Portal {
    config: Config,
    inputs: Inputs,
}

/// Serves until shutdown.
pub async fn serve(
    config: Config,
    inputs: Inputs,
    listener: TcpListener,
    ctx: Context,
) -> std::io::Result<()> {
    let portal = Arc::new(Portal { config, inputs });
    let router = Router::new()
        .route("/", get(page))
        .route("/api/workloads", get(workloads))
        .fallback(|| async { Refusal::NotFound })
        .with_state(portal);
    ctx.health.set("portal", Ok(()));
    axum::serve(listener, router).with_graceful_shutdown(ctx.shutdown.cancelled_owned()).await
}

/// A token that was given for something else, such as another program's sign-in, shows nothing. One
/// that is limited to a workload is shown that one, because the list asks for each who may reach it.
fn may_look(identity: &Identity) -> Result<(), Refusal> {
    let has_scope = identity.credential.scopes.iter().any(|scope| scope == USE);
    if has_scope { Ok(()) } else { Err(Refusal::Scope) }
}

impl Portal {
    fn identity(&self, headers: &HeaderMap, now: Timestamp) -> Result<Arc<Identity>, Refusal> {
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token =
            value.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Refusal::NotSignedIn)?;
        let verified = self.inputs.verifier.verify(token, now);
        if matches!(verified, Err(TokenError::UnknownKey)) && unverified_kid(token).is_some() {
            self.inputs.jwks.unknown_kid();
        }
        let identity = verified.map_err(|_| Refusal::NotSignedIn)?;
        may_look(&identity)?;
        Ok(identity)
    }

    fn entries(&self, identity: &Arc<Identity>, now: Timestamp) -> Vec<Entry> {
        let table = self.inputs.routes.borrow().clone();
        let mut entries =
            list::entries(&self.inputs.workspaces, &table, identity, &self.config, now);
        entries.extend(list::entries(&self.inputs.apps, &table, identity, &self.config, now));
        entries.sort_by(|a, b| (&a.project, &a.name).cmp(&(&b.project, &b.name)));
        entries
    }
}

async fn workloads(
    State(portal): State<Arc<Portal>>,
    headers: HeaderMap,
) -> Result<Json<Vec<Entry>>, Refusal> {
    let now = Timestamp::now();
    let identity = portal.identity(&headers, now)?;
    Ok(Json(portal.entries(&identity, now)))
}

async fn page(State(portal): State<Arc<Portal>>, headers: HeaderMap) -> Result<Response, Refusal> {
    let now = Timestamp::now();
    let identity = portal.identity(&headers, now)?;
    let page = list::Page {
        user: identity.user.as_str(),
        account: &format!("{}/account", portal.inputs.issuer.trim_end_matches('/')),
        entries: portal.entries(&identity, now),
    };
    answer::page(&page)
}

#[cfg(test)]
mod tests {
    use domain::identity::{Credential, CredentialKind};

    use super::*;

    #[test]
    fn a_token_for_something_else_shows_nothing() {
        let identity = |scopes: &[&str]| Identity {
            subject: "s".to_owned(),
            user: "alice".parse().unwrap(),
            email: None,
            groups: vec![],
            credential: Credential {
                kind: CredentialKind::AccessToken,
                id: "j".to_owned(),
                session: None,
                expires_at: Timestamp::MAX,
                scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
                workload: None,
            },
        };
        assert_eq!(may_look(&identity(&["openid", USE])), Ok(()));
        assert_eq!(may_look(&identity(&["openid", "workload:manage"])), Err(Refusal::Scope));
    }
}
