//! Requests of nobody that we know.

use std::{net::IpAddr, sync::atomic::Ordering::Relaxed};

use jiff::Timestamp;
use runtime::audit::Event;

use super::{
    Decision, Gate,
    head::{Audience, Head},
    identify::Unidentified,
    origin, preflight, refused,
};
use crate::{
    answer::{Answer, Refusal},
    session::{login::Attempt, return_path::ReturnPath},
};

impl Gate {
    /// Nobody we know: a navigation signs in, everything else is told how to.
    pub(super) fn unidentified(
        &self,
        unidentified: Unidentified,
        head: &Head<'_>,
        host: &str,
        from: IpAddr,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let (refusal, sign_in_helps) = match unidentified {
            Unidentified::NotYet => return Err(Refusal::NotYet),
            Unidentified::Nothing => (Refusal::NotSignedIn, true),
            Unidentified::Session(why) => (Refusal::SessionOver(why), true),
            Unidentified::Bad(why) => (Refusal::BadCredential(why), false),
        };
        // Nobody fills the audit log without a credential that once was good.
        if !sign_in_helps && self.refused_second.swap(now.as_second(), Relaxed) != now.as_second() {
            let detail = Some("bad credential");
            let to = Some(host);
            self.record(now, Event { from: Some(from), to, detail, ..refused() });
        }
        if !sign_in_helps {
            return Err(refusal);
        }
        match head.audience() {
            Audience::Navigation if head.is_prefetch() => Err(refusal),
            Audience::Navigation if ReturnPath::fits(head.target) => {
                let to = ReturnPath::new(head.target);
                Ok(Decision::Answer(self.sessions.start_login(
                    head,
                    host,
                    &to,
                    Attempt::First,
                    now,
                )))
            }
            Audience::Navigation => Err(Refusal::LinkTooLong),
            Audience::Submission => Err(Refusal::FormWithoutSession(self.page_of(head, host))),
            Audience::Client | Audience::Upgrade => Err(refusal),
        }
    }

    /// Where the form was, as far as the browser says.
    fn page_of(&self, head: &Head<'_>, host: &str) -> ReturnPath {
        let own = origin::own(host, self.external_port);
        let path = head.single("referer").and_then(|referer| referer.strip_prefix(&own));
        ReturnPath::new(path.unwrap_or("/"))
    }

    /// Of a workload that nobody has proven a right to nothing is said but whether it names the origin
    /// that asks.
    pub(super) fn preflight(&self, head: &Head<'_>, host: &str) -> Answer {
        let table = self.routes.borrow().clone();
        let allowed = table.by_host(host).map(|route| &route.traffic().allowed_origins);
        let origin = head.single("origin");
        let named = allowed.is_some_and(|all| all.iter().any(|one| Some(one.as_str()) == origin));
        preflight::answer(head, head.preflight().unwrap_or_default(), named)
    }
}
