//! Distributed traces: the W3C trace context that requests carry, and spans of our own.
//!
//! Whether a request is recorded is decided here and by chance alone: what an outsider says of it
//! counts for nothing. Outsiders' trace identifiers are continued or dropped, as configured.

use std::{fmt, str::FromStr, time::SystemTime};

use jiff::Timestamp;
use rand::Rng as _;
use runtime::otlp::{Exporter, Span, Value};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::gate::head::Head;

/// Longest `tracestate` that is passed on (section 3.3.1.5).
const STATE_MAX: usize = 512;
/// Most members of it (section 3.3.1.1).
const MEMBERS_MAX: usize = 32;

/// Settings of traces.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TraceConfig {
    /// Where spans are sent: an OpenTelemetry collector's OTLP/HTTP port, such as
    /// `http://collector:4318`. None are made when unset.
    pub otlp_url: Option<String>,
    /// Which part of the requests is recorded: 1 is all, 0.01 each hundredth.
    pub ratio: f64,
    /// What becomes of a trace that a client has begun.
    pub incoming: Incoming,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self { otlp_url: None, ratio: 0.01, incoming: Incoming::Continue }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Incoming {
    /// Its identifier is kept, here and in the workload.
    #[default]
    Continue,
    /// It ends here.
    Drop,
}

/// The `traceparent` field (W3C Trace Context, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Never 0.
    pub trace: u128,
    /// The span that caused the request. Never 0.
    pub parent: u64,
    pub sampled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct Malformed;

impl FromStr for TraceParent {
    type Err = Malformed;

    /// Version 00, and what of later versions has the same beginning.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let hex = |range: std::ops::Range<usize>| {
            let digits = text.get(range).ok_or(Malformed)?;
            // In lower case only.
            let all = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            u128::from_str_radix(digits, 16).ok().filter(|_| all).ok_or(Malformed)
        };
        let dash = |at: usize| text.as_bytes().get(at) == Some(&b'-');
        let version = hex(0..2)?;
        let ended = match text.len() {
            55 => true,
            56.. => version > 0 && dash(55),
            _ => false,
        };
        if version == 0xff || !ended || !dash(2) || !dash(35) || !dash(52) {
            return Err(Malformed);
        }
        let (trace, parent, flags) = (hex(3..35)?, hex(36..52)?, hex(53..55)?);
        let parent = u64::try_from(parent).unwrap_or(0);
        if trace == 0 || parent == 0 {
            return Err(Malformed);
        }
        Ok(Self { trace, parent, sampled: flags & 1 == 1 })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, parent, sampled } = *self;
        write!(f, "00-{trace:032x}-{parent:016x}-{:02x}", u8::from(sampled))
    }
}

/// What an admitted request carries on to the upstream, and the span that is recorded of it.
#[derive(Debug)]
pub struct Carried {
    parent: TraceParent,
    state: Option<String>,
    span: Option<Recording>,
}

impl Carried {
    /// Fields for the upstream, in place of the client's own.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        let state = self.state.iter().map(|state| ("tracestate", state.clone()));
        std::iter::once(("traceparent", self.parent.to_string())).chain(state)
    }

    /// Says how the request was answered.
    pub fn answered(&mut self, status: u16) {
        if let Some(recording) = &mut self.span {
            recording.span.failed = status >= 500 || status == 0;
            recording
                .span
                .attributes
                .push(("http.response.status_code", Value::Int(status.into())));
        }
    }
}

/// Sent when dropped, which is the end of the exchange.
#[derive(Debug)]
struct Recording {
    span: Span,
    exporter: Exporter,
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut span = std::mem::take(&mut self.span);
        span.end = nanos(SystemTime::now());
        self.exporter.send(span);
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Decides what is recorded.
#[derive(Debug)]
pub struct Traces {
    incoming: Incoming,
    ratio: f64,
    exporter: Option<Exporter>,
}

impl Traces {
    /// Without an exporter nothing is recorded.
    pub fn new(config: &TraceConfig, exporter: Option<Exporter>) -> Self {
        Self { incoming: config.incoming, ratio: config.ratio, exporter }
    }

    /// For a request that was admitted; `to` names the workload or service. `None`, at the cost of a
    /// look for the field and a random number, for one that carries nothing and is not recorded.
    pub fn begin(
        &self,
        head: &Head<'_>,
        to: impl fmt::Display,
        now: Timestamp,
    ) -> Option<Box<Carried>> {
        let recorded = self.exporter.as_ref().filter(|_| rand::rng().random::<f64>() < self.ratio);
        let incoming = match self.incoming {
            Incoming::Continue => incoming(head),
            Incoming::Drop => None,
        };
        if recorded.is_none() && incoming.is_none() {
            return None;
        }
        let state = incoming.and_then(|_| state(head));
        let Some(exporter) = recorded else {
            let before = incoming?;
            // Where nothing is recorded at all, the decision is left to others.
            let sampled = before.sampled && self.exporter.is_none();
            return Some(Box::new(Carried {
                parent: TraceParent { sampled, ..before },
                state,
                span: None,
            }));
        };
        let fresh = || rand::rng().random_range(1..=u128::MAX);
        let trace = incoming.map_or_else(fresh, |before| before.trace);
        let id = rand::rng().random_range(1..=u64::MAX);
        let start = u64::try_from(now.as_nanosecond()).unwrap_or(0);
        let span = Span {
            trace,
            id,
            parent: incoming.map(|before| before.parent),
            name: head.method.to_owned(),
            start,
            end: start,
            failed: false,
            attributes: vec![
                ("http.request.method", Value::Text(head.method.to_owned())),
                ("server.address", Value::Text(head.authority.to_owned())),
                ("url.path", Value::Text(head.path().to_owned())),
                ("dormouse.to", Value::Text(to.to_string())),
            ],
        };
        let span = Some(Recording { span, exporter: exporter.clone() });
        Some(Box::new(Carried {
            parent: TraceParent { trace, parent: id, sampled: true },
            state,
            span,
        }))
    }
}

fn incoming(head: &Head<'_>) -> Option<TraceParent> {
    head.single("traceparent")?.parse().ok()
}

/// All `tracestate` fields in one, if they are well-formed.
fn state(head: &Head<'_>) -> Option<String> {
    let mut all = String::new();
    for value in head.values("tracestate") {
        let value = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
        if !value.is_empty() {
            all.push_str(if all.is_empty() { "" } else { "," });
            all.push_str(value);
        }
    }
    let members = || all.split(',').map(|member| member.trim_matches([' ', '\t']));
    let good = |member: &str| {
        let printable = member.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let pair = member.split_once('=');
        member.is_empty() || printable && pair.is_some_and(|(key, _)| !key.is_empty())
    };
    let well_formed = !all.is_empty()
        && all.len() <= STATE_MAX
        && members().count() <= MEMBERS_MAX
        && members().all(good);
    well_formed.then_some(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gate::head::Field;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let read: TraceParent = GOOD.parse().unwrap();
        assert_eq!(read.trace, 0x4bf92f3577b34da6a3ce929d0e0e4736);
        assert_eq!((read.parent, read.sampled), (0x00f067aa0ba902b7, true));
        assert_eq!(read.to_string(), GOOD);
        let later = format!("cc{}-what-the-future-will-be-like", &GOOD[2..]);
        assert_eq!(later.parse(), Ok(read));
        assert!(!format!("{}-00", &GOOD[..52]).parse::<TraceParent>().unwrap().sampled);
        let bad = [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-"),
            &format!("{GOOD}0"),
            &format!("ff{}", &GOOD[2..]),
            &format!("cc{}.x", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            &GOOD.replace("4bf9", "+bf9"),
            &GOOD.replace("4bf9", "4bf\u{e9}"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ];
        for text in bad {
            assert_eq!(text.parse::<TraceParent>(), Err(Malformed), "{text:?}");
        }
    }

    fn begin(traces: &Traces, fields: &[(&str, &str)]) -> Option<Box<Carried>> {
        let fields: Vec<_> =
            fields.iter().map(|(name, v)| Field { name, value: v.as_bytes() }).collect();
        let head = Head { method: "GET", target: "/a?secret", authority: "h", fields: &fields };
        traces.begin(&head, "App alice/echo", Timestamp::UNIX_EPOCH)
    }

    fn off(incoming: Incoming) -> Traces {
        Traces::new(&TraceConfig { incoming, ..TraceConfig::default() }, None)
    }

    #[test]
    fn without_spans_a_good_context_passes_and_a_bad_one_does_not() {
        let fields = |fields: &[(&str, &str)]| {
            let carried = begin(&off(Incoming::Continue), fields)?;
            Some(
                carried
                    .fields()
                    .map(|(name, value)| format!("{name}: {value}"))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(fields(&[]), None);
        assert_eq!(fields(&[("tracestate", "a=b")]), None);
        assert_eq!(fields(&[("traceparent", "x"), ("tracestate", "a=b")]), None);
        assert_eq!(fields(&[("traceparent", GOOD), ("Traceparent", GOOD)]), None, "two are none");
        let parent = format!("traceparent: {GOOD}");
        assert_eq!(fields(&[("Traceparent", GOOD)]), Some(vec![parent.clone()]));
        let both = [("traceparent", GOOD), ("tracestate", "a=b"), ("tracestate", "c=d, e=f")];
        let state = "tracestate: a=b,c=d, e=f".to_owned();
        assert_eq!(fields(&both), Some(vec![parent.clone(), state]));
        for bad in
            ["nothing", "=b", "a=\u{e9}", &"a=b,".repeat(40), &format!("a={}", "b".repeat(600))]
        {
            let both = [("traceparent", GOOD), ("tracestate", bad)];
            assert_eq!(fields(&both), Some(vec![parent.clone()]), "{bad:?}");
        }
        assert!(begin(&off(Incoming::Drop), &[("traceparent", GOOD)]).is_none());
    }

    #[test]
    fn a_span_continues_the_clients_trace_under_a_name_of_its_own() {
        let (exporter, mut sent) = Exporter::to_channel(4);
        let config = TraceConfig { ratio: 1.0, ..TraceConfig::default() };
        let traces = Traces::new(&config, Some(exporter));
        let mut carried = begin(&traces, &[("traceparent", &GOOD.replace("-01", "-00"))]).unwrap();
        let (_, field) = carried.fields().next().unwrap();
        let told: TraceParent = field.parse().unwrap();
        carried.answered(502);
        drop(carried);
        let span = sent.try_recv().unwrap();
        assert_eq!((span.trace, span.id, told.sampled), (told.trace, told.parent, true));
        assert_eq!(span.trace, 0x4bf92f3577b34da6a3ce929d0e0e4736);
        assert_eq!(span.parent, Some(0x00f067aa0ba902b7));
        assert!(span.failed && span.end > span.start);
        assert!(!format!("{span:?}").contains("secret"), "no query");
        let fresh = begin(&traces, &[]).unwrap();
        drop(fresh);
        assert_eq!(sent.try_recv().unwrap().parent, None);
    }

    #[test]
    fn what_a_client_says_of_recording_counts_for_nothing() {
        let (exporter, mut sent) = Exporter::to_channel(4);
        let config = TraceConfig { ratio: 0.0, ..TraceConfig::default() };
        let traces = Traces::new(&config, Some(exporter));
        let carried = begin(&traces, &[("traceparent", GOOD)]).unwrap();
        let (_, field) = carried.fields().next().unwrap();
        assert_eq!(field, GOOD.replace("-01", "-00"));
        drop(carried);
        assert!(sent.try_recv().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_read_as_it_was_written(text in "[0-9a-fA-F-]{0,60}|\\PC{0,60}") {
            if let Ok(read) = text.parse::<TraceParent>() {
                prop_assert!(read.trace != 0 && read.parent != 0);
                prop_assert_eq!(&read.to_string()[3..52], &text[3..52]);
            }
        }

        #[test]
        fn what_is_written_is_read(trace in 1u128.., parent in 1u64.., sampled: bool) {
            let written = TraceParent { trace, parent, sampled };
            prop_assert_eq!(written.to_string().parse(), Ok(written));
        }
    }
}
