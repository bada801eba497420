//! What an engine gets for a request that may go on.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use domain::{access::Grant, activity::Guard, identity::Identity};

use super::{
    credential::Withheld,
    head::Head,
    limits::Held,
    scrub::{self, Trust},
};
use crate::{answer::Besides, upstream::sticky};

/// Where an admitted request goes. A workload only ever by its grant.
#[derive(Debug, Clone)]
pub enum Destination {
    Workload(Grant),
    Service { name: String, address: SocketAddr },
}

/// A request that may go on. Counts as presence for as long as it lives.
#[derive(Debug)]
pub struct Admitted {
    pub destination: Destination,
    pub trust: Trust,
    /// What the answer says besides, whoever gives it.
    pub besides: Besides,
    /// What of the head holds a token of ours and goes no further.
    pub withheld: Withheld,
    /// A value for both halves of a double submit that programs with a token need not bring.
    pub xsrf: Option<&'static str>,
    /// Where browsers reach us.
    pub external_port: u16,
    pub guard: Option<Guard>,
    /// Where it comes from.
    pub from: IpAddr,
    pub identity: Option<Arc<Identity>>,
    /// The access token, for a service that is given it.
    pub token: Option<String>,
    /// The pod that a browser has been using, by its cookie.
    pub sticky: Option<sticky::Tag>,
    /// What it counts against, and is held to.
    pub held: Held,
    /// A stream of server-sent events that is silent for this long is kept alive.
    pub keep_alive: Option<Duration>,
}

impl Admitted {
    pub fn user(&self) -> Option<&str> {
        self.identity.as_ref().map(|identity| identity.user.as_str())
    }

    /// Path and query for the upstream.
    pub fn target<'a>(&'a self, head: &Head<'a>) -> &'a str {
        self.withheld.target.as_deref().unwrap_or(head.target)
    }

    /// What an upstream's `Location` has to say instead: it may think that it is reached by plain
    /// HTTP, which would lead people away from TLS.
    pub fn location(&self, value: &[u8]) -> Option<Vec<u8>> {
        let host = match &self.destination {
            Destination::Workload(grant) => grant.host(),
            Destination::Service { name, .. } => name,
        };
        scrub::location(value, host, self.external_port)
    }

    /// The fields to set, after everything that looks like them was removed: what we say of the
    /// request and of who sent it. No outsider is believed: we say what we saw ourselves.
    pub fn fields(&self, head: &Head<'_>, mut set: impl FnMut(&'static str, &[u8])) {
        if let (Trust::Workload, Some(identity)) = (self.trust, &self.identity) {
            scrub::identity_fields(identity, &mut set);
        }
        let mut from = Address::new();
        let _ = write!(from, "{}", self.from);
        set("X-Forwarded-For", from.bytes());
        set("X-Forwarded-Proto", b"https");
        set("X-Forwarded-Host", head.authority.as_bytes());
        for (name, value) in self.held.trace_fields() {
            set(name, value.as_bytes());
        }
        if let Some(xsrf) = self.xsrf {
            set("X-XSRFToken", xsrf.as_bytes());
        }
        if let Some(token) = &self.token {
            set("Authorization", &[b"Bearer ", token.as_bytes()].concat());
        }
    }
}

/// The text of an address, without memory of its own.
struct Address {
    /// `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255` is the longest.
    text: [u8; 45],
    length: usize,
}

impl Address {
    fn new() -> Self {
        Self { text: [0; 45], length: 0 }
    }

    fn bytes(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or_default()
    }
}

impl std::fmt::Write for Address {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        let room = self.text.get_mut(self.length..self.length + part.len());
        room.ok_or(std::fmt::Error)?.copy_from_slice(part.as_bytes());
        self.length += part.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_fits() {
        for text in ["::", "127.0.0.1", "1111:2222:3333:4444:5555:6666:7777:8888"] {
            let mut address = Address::new();
            write!(address, "{}", text.parse::<IpAddr>().unwrap()).unwrap();
            assert_eq!(address.bytes(), text.as_bytes());
        }
    }
}
