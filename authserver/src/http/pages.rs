//! The pages that people see: one style sheet, a script that nothing but passkeys needs, and one that
//! keeps what follows `#` in an address.

use askama::Template;
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use url::Url;

use super::account::{self, sessions, ssh_keys, tokens};

#[derive(Template)]
#[template(path = "sign_in.html")]
pub(super) struct SignInPage<'a> {
    /// Where it leads: a host, or an application's name.
    pub destination: Option<&'a str>,
    /// What was typed before.
    pub name: &'a str,
    /// Why it is shown again; empty the first time.
    pub problem: &'a str,
    pub ticket: &'a str,
    pub providers: Vec<ProviderLink<'a>>,
    /// Whether a password will do.
    pub local: bool,
}

/// The question for a second proof.
#[derive(Template)]
#[template(path = "second_proof.html")]
pub(super) struct SecondProofPage<'a> {
    pub name: &'a str,
    /// Why it is asked.
    pub why: &'a str,
    /// Why it is asked again; empty the first time.
    pub problem: &'a str,
    pub ticket: &'a str,
    /// What the person has.
    pub password: bool,
    pub passkey: bool,
    pub provider: &'a str,
    /// Where the provider is asked again.
    pub again: &'a str,
}

/// Another provider to sign in with.
pub(super) struct ProviderLink<'a> {
    pub name: &'a str,
    pub address: String,
}

#[derive(Template)]
#[template(path = "sign_out.html")]
pub(super) struct SignOutPage<'a> {
    pub name: &'a str,
    /// That end with it.
    pub devices: &'a [String],
    pub ticket: &'a str,
}

/// What somebody else's application would get, and where it is.
#[derive(Template)]
#[template(path = "consent.html")]
pub(super) struct ConsentPage<'a> {
    pub name: &'a str,
    pub client: &'a str,
    pub host: &'a str,
    pub rights: Vec<&'static str>,
    pub resources: &'a [String],
    pub ticket: &'a str,
}

/// The field for a device's code.
#[derive(Template)]
#[template(path = "device_code.html")]
pub(super) struct DeviceCodePage<'a> {
    pub name: &'a str,
    pub code: &'a str,
    pub problem: &'a str,
}

/// What a device would get, from where it asks, and for whom.
#[derive(Template)]
#[template(path = "device.html")]
pub(super) struct DevicePage<'a> {
    pub name: &'a str,
    pub client: &'a str,
    pub code: &'a str,
    pub rights: Vec<&'static str>,
    pub resources: &'a [String],
    pub address: &'a str,
    /// The browser's address, when it is another.
    pub elsewhere: Option<&'a str>,
    pub time: &'a str,
    pub ticket: &'a str,
}

/// The person's own account.
#[derive(Template)]
#[template(path = "account.html")]
pub(super) struct AccountPage<'a> {
    pub name: &'a str,
    pub email: Option<&'a str>,
    pub portal: &'a str,
    /// What passkeys are to them.
    pub use_of_passkeys: account::UseOfPasskeys,
    /// Whether they proved so lately who they are that they may change something.
    pub fresh: bool,
    /// Where to go when not.
    pub confirm: &'a str,
    pub passkeys: Vec<PasskeyLine<'a>>,
    pub sessions: Vec<sessions::Line>,
    pub applications: Vec<sessions::ApplicationLine>,
    pub tokens: Vec<tokens::Line>,
    pub new_token: tokens::NewToken,
    pub keys: Vec<ssh_keys::Line>,
    pub new_key: ssh_keys::NewKey,
    pub problem: &'a str,
}

pub(super) struct PasskeyLine<'a> {
    pub id: &'a str,
    pub name: &'a str,
    /// Days.
    pub added: String,
    pub used: Option<String>,
    pub blocked: bool,
}

/// A token, this once.
#[derive(Template)]
#[template(path = "token.html")]
pub(super) struct TokenPage<'a> {
    pub name: &'a str,
    pub expires: &'a str,
    pub token: &'a str,
    /// What it opens, if it opens workloads.
    pub address: Option<&'a str>,
    /// Whether that is a workload's own, and not a pattern.
    pub exact: bool,
}

#[derive(Template)]
#[template(path = "home.html")]
struct HomePage<'a> {
    name: &'a str,
    portal: &'a str,
}

#[derive(Template)]
#[template(path = "message.html")]
struct MessagePage<'a> {
    title: &'a str,
    text: &'a str,
    /// Address and text.
    link: Option<(&'a str, &'a str)>,
    /// Another one, for who does not want the first.
    aside: Option<(&'a str, &'a str)>,
}

const STYLE: &str = include_str!("../../assets/style.css");

pub(super) async fn style() -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "max-age=300")];
    (headers, STYLE).into_response()
}

const SCRIPT: &str = include_str!("../../assets/passkeys.js");

const SIGN_IN_SCRIPT: &str = include_str!("../../assets/sign-in.js");

pub(super) async fn script() -> Response {
    javascript(SCRIPT)
}

pub(super) async fn sign_in_script() -> Response {
    javascript(SIGN_IN_SCRIPT)
}

fn javascript(text: &'static str) -> Response {
    let kind = "text/javascript; charset=utf-8";
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=300")];
    (headers, text).into_response()
}

/// A page with a form that is sent to us. A browser applies `form-action` to where the answer
/// redirects as well, so the client's origin, `target`, has to be in it.
pub(super) fn form(status: StatusCode, page: &impl Template, target: Option<&str>) -> Response {
    let target = target.map(|target| format!(" {target}")).unwrap_or_default();
    render(status, page, &format!("'self'{target}"), "")
}

/// The same, and our script may run on it and ask us.
pub(super) fn scripted_form(
    status: StatusCode,
    page: &impl Template,
    target: Option<&str>,
) -> Response {
    let target = target.map(|target| format!(" {target}")).unwrap_or_default();
    render(status, page, &format!("'self'{target}"), " script-src 'self'; connect-src 'self';")
}

/// A page with nothing but something to read.
pub(super) fn plain(page: &impl Template) -> Response {
    render(StatusCode::OK, page, "'none'", "")
}

pub(super) fn message(
    status: StatusCode,
    title: &str,
    text: &str,
    link: Option<(&str, &str)>,
) -> Response {
    render(status, &MessagePage { title, text, link, aside: None }, "'none'", "")
}

/// A message with two ways on: address and text of each.
pub(super) fn choice(
    status: StatusCode,
    title: &str,
    text: &str,
    first: (&str, &str),
    second: (&str, &str),
) -> Response {
    let page = MessagePage { title, text, link: Some(first), aside: Some(second) };
    render(status, &page, "'none'", "")
}

pub(super) fn home(name: &str, portal: &str) -> Response {
    render(StatusCode::OK, &HomePage { name, portal }, "'none'", "")
}

/// The source expression for a redirect URI (CSP Level 3, section 2.3.1): its origin, or its scheme
/// for a native application. The URI has been checked, and still nothing that could end the
/// directive is let through.
pub(super) fn form_target(uri: &str) -> Option<String> {
    let url = Url::parse(uri).ok()?;
    let source = match url.scheme() {
        "https" | "http" => url.origin().ascii_serialization(),
        scheme => format!("{scheme}:"),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-.:/[]+".contains(&b);
    source.bytes().all(plain).then_some(source)
}

/// `more` are further directives, each with a semicolon at its end.
fn render(status: StatusCode, page: &impl Template, form_action: &str, more: &str) -> Response {
    let policy = format!(
        "default-src 'none'; style-src 'self'; img-src data:;{more} form-action {form_action}; base-uri 'none'; \
         frame-ancestors 'none'"
    );
    let html = match page.render() {
        Ok(html) => html,
        Err(error) => {
            tracing::error!(%error, "a page could not be rendered");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let policy = HeaderValue::from_str(&policy)
        .unwrap_or(HeaderValue::from_static("default-src 'none'; form-action 'self'"));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (status, headers, html).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_targets_are_origins() {
        let target = |uri: &str| form_target(uri);
        let lab = "https://lab.localhost:8443/.dormouse/callback";
        assert_eq!(target(lab).as_deref(), Some("https://lab.localhost:8443"));
        assert_eq!(target("http://[::1]:7/cb").as_deref(), Some("http://[::1]:7"));
        assert_eq!(target("com.example.app:/cb").as_deref(), Some("com.example.app:"));
        assert_eq!(target("https://a.b;script-src *").as_deref(), None);
    }

    #[test]
    fn what_people_type_is_escaped() {
        let page = SignInPage {
            destination: Some("<b>"),
            name: "\"><script>",
            problem: "no",
            ticket: "t",
            providers: vec![ProviderLink { name: "<i>Corp", address: "/x?\"><b>".to_owned() }],
            local: true,
        };
        let html = page.render().unwrap();
        assert!(!html.contains("<script>") && !html.contains("<b>") && !html.contains("<i>"));
    }
}
