//! Whether a request is a person's doing, by `domain::classify`.

use domain::{
    access::Grant,
    activity::Guard,
    classify::{Form, Name, Read, request},
};
use jiff::Timestamp;

use super::{
    Admitted, Gate,
    head::{Audience, Head},
};

impl Gate {
    /// What the request is doing, as far as its head tells, and what its body will.
    pub(super) fn judge(
        &self,
        guard: &Guard,
        grant: &Grant,
        head: &Head<'_>,
        audience: Audience,
        by_session: bool,
        now: Timestamp,
    ) -> (Option<&'static str>, Option<(Form, Name)>) {
        let upgrade = audience == Audience::Upgrade;
        // Opening a socket is nobody's doing, but a program's use; what is said on it may be.
        if upgrade && by_session {
            return (None, None);
        }
        match request::read(grant.protocol(), &head.asked(!by_session)) {
            Read::Body(form, name) => (guard.foresee(name, now), Some((form, name))),
            Read::Whole(name) => {
                // It does not go on for as long as the socket is open.
                let ruling = match upgrade {
                    true => guard.hear(name, None, now),
                    false => guard.hear_request(name, now),
                };
                let label = ruling.label(name);
                self.metrics.judged(label);
                if label == "unknown" {
                    let (workload, path) = (grant.workload(), head.path());
                    tracing::debug!(%workload, path, "no rule knows a request: it counts as a person's");
                }
                (ruling.doing(name), None)
            }
        }
    }

    /// Some of a request's body, as an engine carries it; `end` says that it was the last.
    pub fn hear_body(&self, admitted: &Admitted, bytes: &[u8], end: bool) {
        let Some(guard) = admitted.guard.as_ref().filter(|guard| guard.waits_for_body()) else {
            return;
        };
        if let Some((name, ruling)) = guard.body(bytes, end, Timestamp::now()) {
            self.metrics.judged(ruling.label(name));
        }
    }
}
