//! The few pages of the gate itself, for people without and with scripts.

use askama::Template;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{
    route::{Progress, Step},
    workload::WorkloadRef,
};

/// A rendered page with the content security policy that goes with it.
#[derive(Debug)]
pub struct Page {
    pub html: String,
    pub policy: String,
}

#[derive(Template)]
#[template(path = "plain.html")]
struct Plain<'a> {
    title: &'a str,
    detail: &'a str,
    action: Option<Action<'a>>,
    nonce: &'a str,
}

struct Action<'a> {
    href: &'a str,
    label: &'a str,
    new_tab: bool,
}

#[derive(Template)]
#[template(path = "waiting.html")]
struct Waiting<'a> {
    title: &'a str,
    name: &'a str,
    steps: [StepLine; 4],
    message: &'a str,
    nonce: &'a str,
}

struct StepLine {
    label: &'static str,
    class: &'static str,
}

/// One message, no way on.
pub fn plain(title: &str, detail: &str) -> Page {
    render(|nonce| Plain { title, detail, action: None, nonce }.render())
}

/// One message and a link to go on by.
pub fn with_action(title: &str, detail: &str, href: &str, label: &str) -> Page {
    let action = || Some(Action { href, label, new_tab: false });
    render(|nonce| Plain { title, detail, action: action(), nonce }.render())
}

/// The same with a link that leaves this page where it is.
pub fn in_new_tab(title: &str, detail: &str, href: &str, label: &str) -> Page {
    let action = || Some(Action { href, label, new_tab: true });
    render(|nonce| Plain { title, detail, action: action(), nonce }.render())
}

/// Live progress of a start; opens the workload when it is ready.
pub fn waiting(workload: &WorkloadRef, progress: &Progress) -> Page {
    let reached = step_number(progress.step);
    let line = |number, label| {
        let class = match number {
            n if n < reached => "done",
            n if n == reached => "now",
            _ => "",
        };
        StepLine { label, class }
    };
    let name = workload.name.as_str();
    let title = format!("Waking {name}");
    render(|nonce| {
        let steps = [
            line(0, "Asked to wake"),
            line(1, "Placed on a machine"),
            line(2, "Starting the program"),
            line(3, "Waiting for its first answer"),
        ];
        Waiting { title: &title, name, steps, message: &progress.message, nonce }.render()
    })
}

/// Place in the waiting page's list, from 0.
pub fn step_number(step: Step) -> usize {
    match step {
        Step::Requested => 0,
        Step::Scheduled => 1,
        Step::Starting => 2,
        Step::AlmostReady => 3,
    }
}

fn render(template: impl Fn(&str) -> askama::Result<String>) -> Page {
    let nonce = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
    // A template that fails to render (it cannot, writing to memory) is an empty page.
    let html = template(&nonce).unwrap_or_default();
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; form-action 'none'; \
         base-uri 'none'; frame-ancestors 'none'"
    );
    Page { html, policy }
}
