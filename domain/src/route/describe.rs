//! A route as operators are shown it. Addresses are text here: nothing can be dialled with it.

use std::time::Duration;

use serde::Serialize;

use super::{Route, State};
use crate::{
    endpoint::{Endpoint, Revision, Standing},
    name::UserName,
    workload::WorkloadRef,
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description<'r> {
    pub host: &'r str,
    pub workload: &'r WorkloadRef,
    pub state: &'r State,
    /// `http`, `h2c` or `https`.
    pub upstream: &'static str,
    pub sticky: bool,
    pub canary_weight: u8,
    pub endpoints: Vec<EndpointDescription<'r>>,
    pub access: AccessDescription<'r>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDescription<'r> {
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<&'r str>,
    pub ready: bool,
    pub canary: bool,
    pub outstanding: u32,
    /// `good`, `ejected`, `half-open` or `probing`.
    pub standing: &'static str,
    /// Until it may be tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct AccessDescription<'r> {
    pub owner: Option<&'r UserName>,
    pub users: Vec<&'r UserName>,
    pub groups: Vec<&'r str>,
    pub everyone: bool,
}

impl Route {
    /// `now` is of the clock that exchanges are begun with.
    pub fn describe(&self, now: Duration) -> Description<'_> {
        let (spec, access) = (&self.spec, &self.spec.access);
        Description {
            host: &spec.host,
            workload: &spec.workload,
            state: &spec.state,
            upstream: spec.routing.protocol.as_str(),
            sticky: spec.routing.sticky,
            canary_weight: spec.routing.canary_weight,
            endpoints: self.endpoints.iter().map(|e| endpoint(e, now)).collect(),
            access: AccessDescription {
                owner: access.owner.as_ref(),
                users: access.users.iter().collect(),
                groups: access.groups.iter().map(String::as_str).collect(),
                everyone: access.everyone,
            },
        }
    }
}

fn endpoint(endpoint: &Endpoint, now: Duration) -> EndpointDescription<'_> {
    let standing = endpoint.load().standing(now);
    let (text, ejected_seconds) = match standing {
        Standing::Good => ("good", None),
        Standing::Ejected(until) => ("ejected", Some(until.saturating_sub(now).as_secs_f64())),
        Standing::HalfOpen => ("half-open", None),
        Standing::Probing => ("probing", None),
    };
    EndpointDescription {
        address: endpoint.address().to_string(),
        pod: endpoint.pod(),
        ready: endpoint.is_ready(),
        canary: endpoint.revision() == Revision::Canary,
        outstanding: endpoint.load().outstanding(),
        standing: text,
        ejected_seconds,
    }
}
