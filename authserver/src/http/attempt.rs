//! One try at signing in: counted, slowed down, and written down.

use axum::{
    http::{HeaderMap, StatusCode},
    response::Response,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::name::UserName;
use runtime::audit::{Event, Outcome};
use serde::{Deserialize, Serialize};

use super::{
    Caller, cookie,
    error::try_again_in,
    sign_in::{self, Next, Retry, seal},
};
use crate::{
    secret::{self, Purpose},
    server::Server,
    throttle::Key,
};

/// What a browser remembers of a person's last sign-in in it.
#[derive(Serialize, Deserialize)]
struct Device {
    name: String,
    id: String,
}

/// The value of the device cookie for somebody who has just signed in.
pub(super) fn device(app: &Server, name: &UserName) -> String {
    let id = URL_SAFE_NO_PAD.encode(secret::random());
    seal(app, Purpose::Device, &Device { name: name.to_string(), id })
}

pub(super) struct Attempt {
    /// None when what was typed can be nobody's name, or the passkey is nobody's.
    pub name: Option<UserName>,
    means: &'static str,
    keys: Vec<Key>,
    caller: Caller,
}

/// There were too many tries: seconds to wait.
pub(super) struct Slow(u64);

impl Slow {
    pub fn problem(&self) -> String {
        format!("Too many tries. Please wait {} s and try again.", self.0)
    }

    pub fn set_retry(&self, response: &mut Response) {
        try_again_in(response, self.0);
    }

    pub fn page(
        &self,
        app: &Server,
        headers: &HeaderMap,
        caller: Caller,
        next: &Next,
        name: &str,
    ) -> Response {
        let problem = self.problem();
        let retry = Retry { status: StatusCode::TOO_MANY_REQUESTS, name, problem: &problem };
        let mut response = sign_in::page(app, headers, caller.now, next, retry);
        self.set_retry(&mut response);
        response
    }
}

impl Attempt {
    pub fn by_password(app: &Server, headers: &HeaderMap, typed: &str, caller: Caller) -> Self {
        // Telephones like to begin a word with a capital.
        let typed = typed.to_ascii_lowercase();
        let name: Option<UserName> = typed.parse().ok();
        Self::new(app, headers, name, "password", &typed, caller)
    }

    /// Counted apart from the passwords of whoever's passkey it claims to be.
    pub fn by_passkey(
        app: &Server,
        headers: &HeaderMap,
        name: Option<UserName>,
        credential_id: &[u8],
        caller: Caller,
    ) -> Self {
        let what = format!("passkey {}", URL_SAFE_NO_PAD.encode(credential_id));
        Self::new(app, headers, name, "passkey", &what, caller)
    }

    fn new(
        app: &Server,
        headers: &HeaderMap,
        name: Option<UserName>,
        means: &'static str,
        account: &str,
        caller: Caller,
    ) -> Self {
        let device = cookie::get(headers, cookie::DEVICE)
            .and_then(|sealed| app.sealer.open(Purpose::Device, sealed))
            .and_then(|bytes| serde_json::from_slice::<Device>(&bytes).ok())
            .filter(|device| name.as_ref().is_some_and(|name| name.as_str() == device.name));
        let digest = |text: &str| <[u8; 32]>::try_from(secret::digest(text)).unwrap_or_default();
        let keys = match device {
            Some(device) => vec![Key::Device(digest(&device.id))],
            None => vec![Key::Account(digest(account)), Key::address(caller.address)],
        };
        Self { name, means, keys, caller }
    }

    /// Counts it, before anything is checked.
    pub fn begin(&self, app: &Server) -> Result<(), Slow> {
        app.throttle().begin(&self.keys, self.caller.now).map_err(|wait| {
            // Counted and not audited: whoever is slowed down must not fill the log at full speed.
            app.metrics.sign_ins.with_label_values(&["throttled"]).inc();
            Slow(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
        })
    }

    pub fn succeeded(&self, app: &Server) {
        app.throttle().succeeded(&self.keys);
        app.metrics.sign_ins.with_label_values(&["succeeded"]).inc();
        self.record(app, "signed-in", Outcome::Allowed, self.means);
    }

    /// Of somebody who is signed in, and has shown once more who they are.
    pub fn confirmed(&self, app: &Server) {
        app.throttle().succeeded(&self.keys);
        self.record(app, "confirmed", Outcome::Allowed, self.means);
    }

    /// `why` is for the operator.
    pub fn refused(&self, app: &Server, why: Option<&str>) {
        app.metrics.sign_ins.with_label_values(&["refused"]).inc();
        let detail = why.map(|why| format!("{}: {why}", self.means));
        self.record(app, "refused", Outcome::Denied, detail.as_deref().unwrap_or(self.means));
    }

    fn record(&self, app: &Server, did: &str, outcome: Outcome, detail: &str) {
        let event = Event {
            who: self.name.as_ref().map(UserName::as_str),
            did,
            to: Some("Dormouse"),
            from: Some(self.caller.address),
            credential: None,
            outcome,
            detail: Some(detail),
        };
        app.audit.record(self.caller.now, event);
    }
}
