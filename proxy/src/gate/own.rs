//! `/.dormouse/` on every workload's host is ours.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use domain::access::{Grant, Readiness};
use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    Gate,
    head::{Audience, Head},
    identify::{SignedIn, Unidentified},
    origin,
};
use crate::{
    answer::{Answer, Body, Refusal},
    pages,
};

/// A comment line this often shows that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A waiting page that is left open asks anew after this.
const EVENTS_MAX: Duration = Duration::from_secs(600);

/// Which of our paths, byte for byte: any other spelling is the workload's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    No,
    Callback,
    SignOut,
    SignedOut,
    WhoAmI,
    Wake,
    Unknown,
}

/// What another site's page could make of a path of ours with the browser's cookies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It changes nothing.
    Nothing,
    /// It changes something, whatever the method.
    Change,
    /// It changes something only for whoever knows a secret of this browser's way to the issuer.
    Proven,
    /// It changes nothing before a person was asked, and people are asked by links.
    Asked,
}

impl Own {
    pub const ALL: [Self; 7] = [
        Self::No,
        Self::Callback,
        Self::SignOut,
        Self::SignedOut,
        Self::WhoAmI,
        Self::Wake,
        Self::Unknown,
    ];

    fn effect(self) -> Effect {
        match self {
            Self::No | Self::WhoAmI | Self::Unknown => Effect::Nothing,
            Self::Wake => Effect::Change,
            Self::Callback | Self::SignedOut => Effect::Proven,
            Self::SignOut => Effect::Asked,
        }
    }

    /// Whether a page may send this with the browser's cookies. `No` is the workload's, which may
    /// allow other origins than its own.
    pub fn may_act(self, head: &Head<'_>, host: &str, port: u16, allowed: &[String]) -> bool {
        match self.effect() {
            Effect::Nothing | Effect::Proven if head.is_safe() => true,
            Effect::Asked if head.is_safe() => origin::may_show(head, host, port),
            Effect::Nothing if self == Self::No => origin::may_act(head, host, port, allowed),
            Effect::Nothing | Effect::Change | Effect::Proven | Effect::Asked => {
                origin::may_act(head, host, port, &[])
            }
        }
    }

    /// What follows `/.dormouse/`.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::No | Self::Unknown => None,
            Self::Callback => Some("callback"),
            Self::SignOut => Some("sign-out"),
            Self::SignedOut => Some("signed-out"),
            Self::WhoAmI => Some("whoami"),
            Self::Wake => Some("wake"),
        }
    }

    /// What is not in [`Self::ALL`] is not served.
    pub fn of(path: &str) -> Self {
        let Some(name) = path.strip_prefix("/.dormouse/") else { return Self::No };
        Self::ALL.into_iter().find(|own| own.name() == Some(name)).unwrap_or(Self::Unknown)
    }
}

pub(super) fn who_am_i(signed_in: &SignedIn<'_>, grant: Option<&Grant>) -> Answer {
    let identity = &signed_in.identity;
    let body = json!({
        "user": identity.user.as_str(),
        "email": identity.email,
        "groups": identity.groups,
        "expires_at": identity.credential.expires_at.to_string(),
        "workload": grant.map(|grant| grant.workload().to_string()),
    });
    Answer::json(200, &body)
}

impl Gate {
    /// What must work for whoever is not signed in, on any host of ours, whether it exists or not.
    pub(super) async fn own_before_sign_in(
        &self,
        own: Own,
        head: &Head<'_>,
        host: &str,
        identified: &Result<SignedIn<'_>, Unidentified>,
        from: IpAddr,
        now: Timestamp,
    ) -> Option<Answer> {
        if matches!(own, Own::SignOut | Own::SignedOut)
            && !own.may_act(head, host, self.external_port, &[])
        {
            return Some(Refusal::CrossOrigin.answer(head.audience()));
        }
        match own {
            Own::Callback if head.method != "GET" => {
                Some(Refusal::MethodNotAllowed.answer(Audience::Client))
            }
            Own::Callback => {
                let landed = self.sessions.finish_login(head, host, identified.is_ok(), now).await;
                let outcome = match (&landed.who, landed.problem) {
                    (Some(_), _) => Some(Outcome::Allowed),
                    (None, Some(_)) => Some(Outcome::Failed),
                    (None, None) => None,
                };
                // Who comes with a made-up state is not written down: it costs nothing to try.
                if let Some(outcome) = outcome {
                    let label = if landed.who.is_some() { "signed-in" } else { "failed" };
                    self.metrics.sign_ins.with_label_values(&[label]).inc();
                    if landed.problem != Some("unknown state") {
                        self.record(
                            now,
                            Event {
                                who: landed.who.as_ref().map(|who| who.user.as_str()),
                                did: "signed-in",
                                to: Some(host),
                                from: Some(from),
                                credential: landed.who.as_ref().map(|who| &who.credential),
                                outcome,
                                detail: landed.problem,
                            },
                        );
                    }
                }
                Some(landed.answer)
            }
            Own::SignOut => Some(self.sessions.sign_out(head, host)),
            Own::SignedOut => Some(self.sessions.signed_out(head)),
            _ => None,
        }
    }

    /// Server-sent events for the waiting page: `progress` at each change, then `ready` or `failed`.
    /// Asks for the workload as long as it sleeps.
    pub(super) fn wake_events(&self, grant: Grant) -> Result<Answer, Refusal> {
        let place = self.holds.take(grant.workload()).ok_or(Refusal::TooManyHeld)?;
        let (events, body) = mpsc::channel::<Bytes>(8);
        let mut routes = self.routes.clone();
        let (waker, going) = (self.waker.clone(), self.going.clone());
        let end = Instant::now() + EVENTS_MAX;
        let story = async move {
            let _place = place;
            let mut grant = grant;
            let mut said = Bytes::new();
            while Instant::now() < end {
                if matches!(grant.readiness(), Readiness::Asleep) {
                    waker.ask(&grant);
                }
                let (event, last) = describe(&grant);
                if event != said {
                    said = event.clone();
                    if events.send(event).await.is_err() || last {
                        return;
                    }
                }
                match timeout(HEARTBEAT, routes.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) => {
                        if events.send(Bytes::from_static(b": still here\n\n")).await.is_err() {
                            return;
                        }
                    }
                }
                let table = routes.borrow_and_update().clone();
                let Some(renewed) = grant.renew(&table) else {
                    let gone = event_of("failed", &json!({ "message": "It is no longer here." }));
                    let _ = events.send(gone).await;
                    return;
                };
                grant = renewed;
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = story => {}
                () = going.cancelled() => {}
            }
        });
        let mut answer = Answer::new(200, "text/event-stream", "")
            // Some proxies in front collect answers unless told not to.
            .with("X-Accel-Buffering", "no".to_owned());
        answer.body = Body::Stream(body);
        Ok(answer)
    }
}

fn describe(grant: &Grant) -> (Bytes, bool) {
    let progress = |step: usize, message: &str| {
        (event_of("progress", &json!({ "step": step, "message": message })), false)
    };
    let failed = |message: String| (event_of("failed", &json!({ "message": message })), true);
    match grant.readiness() {
        Readiness::Ready(_) => (event_of("ready", &json!({})), true),
        Readiness::Asleep => progress(0, "Asked to wake"),
        Readiness::Waking(now) => progress(pages::step_number(now.step), &now.message),
        Readiness::Stopped => {
            failed("It was stopped by a person. Its owner can start it again.".to_owned())
        }
        Readiness::Failed(message) => failed(format!("It did not start: {message}")),
    }
}

/// One event of the stream (HTML, section 9.2.6). JSON holds no line breaks, so one line is enough.
fn event_of(name: &str, data: &serde_json::Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::{super::head::Field, *};

    const HOST: &str = "lab--alice.example.org";

    fn may(own: Own, method: &str, site: &'static str, mode: &'static str) -> bool {
        let fields = [("sec-fetch-site", site), ("sec-fetch-mode", mode)];
        let fields = fields.map(|(name, value)| Field { name, value: value.as_bytes() });
        let head = Head { method, target: "/", authority: HOST, fields: &fields };
        own.may_act(&head, HOST, 443, &[])
    }

    #[test]
    fn attack_9_no_neighbours_page_changes_anything_by_a_path_of_ours() {
        for own in Own::ALL {
            for method in ["POST", "PUT", "DELETE", "PATCH", "PROPFIND"] {
                assert!(may(own, method, "same-origin", "cors"), "{own:?} {method}");
                for site in ["same-site", "cross-site"] {
                    for mode in ["navigate", "no-cors", "cors"] {
                        assert!(!may(own, method, site, mode), "{own:?} {method} {site} {mode}");
                    }
                }
            }
            let hidden = may(own, "GET", "same-site", "no-cors");
            let opened = may(own, "GET", "same-site", "navigate");
            let expected = match own.effect() {
                Effect::Change => (false, false),
                Effect::Asked => (false, true),
                Effect::Nothing | Effect::Proven => (true, true),
            };
            assert_eq!((hidden, opened), expected, "{own:?}");
        }
        let changing: Vec<_> =
            Own::ALL.into_iter().filter(|own| own.effect() != Effect::Nothing).collect();
        assert_eq!(changing, [Own::Callback, Own::SignOut, Own::SignedOut, Own::Wake]);
    }
}
