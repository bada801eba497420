//! Reading an authorization request (RFC 6749, section 4.1.1; OpenID Connect Core, section 3.1.2.1).

use jiff::Timestamp;

use super::{
    authorize::{Refusal, with_query},
    error::PageError,
    issue::IdClaims,
    params::Params,
};
use crate::{
    client::{Client, GrantType},
    federation, pkce,
    server::Server,
    store::Session,
};

/// Longest query that is looked at: the sign-in form carries it, and the gate's has in it where the
/// person wanted to go.
pub(super) const QUERY_MAX: usize = 16 * 1024;
/// Longest part behind `#` that is carried along.
const FRAGMENT_MAX: usize = 2 * 1024;
/// Longest `nonce`: it is stored.
const NONCE_MAX: usize = 512;
/// What a pushed request's reference begins with (RFC 9126, section 2.2).
pub(super) const PUSHED: &str = "urn:ietf:params:oauth:request_uri:";

/// A query, and whether the client sent it to us itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    pub text: String,
    pub pushed: bool,
    /// What followed `#` where the person wanted to go, without the `#`; empty for nothing. A browser
    /// takes it along from one redirect to the next and drops it at a form.
    pub fragment: String,
}

impl Query {
    pub fn new(text: String, pushed: bool) -> Self {
        Self { text, pushed, fragment: String::new() }
    }
}

/// What a page says that followed `#`, if it can stand in an address.
pub(super) fn fragment(text: Option<&str>) -> String {
    let text = text.unwrap_or_default();
    let text = text.strip_prefix('#').unwrap_or(text);
    let plain =
        text.len() <= FRAGMENT_MAX && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if plain { text.to_owned() } else { String::new() }
}

/// A request whose client and redirect URI are known to belong together.
#[derive(Debug)]
pub(super) struct AuthorizationRequest {
    /// What it was read from.
    pub query: Query,
    pub client: Client,
    pub redirect_uri: String,
    pub scope: String,
    pub resources: Vec<String>,
    pub nonce: Option<String>,
    pub challenge: pkce::Challenge,
    pub prompt: Prompt,
    /// Who is expected to sign in, as a name to begin with.
    pub login_hint: Option<String>,
    pub state: Option<String>,
    /// Seconds since the sign-in at most.
    max_age: Option<i64>,
    /// The subject of an ID token of ours: nobody else will do.
    expected: Option<String>,
}

/// `prompt`: `never` stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Prompt {
    /// Show nothing.
    pub never: bool,
    /// Sign in again.
    pub login: bool,
    /// Ask for consent again.
    pub consent: bool,
}

impl Prompt {
    /// None when `none` is not alone.
    pub fn parse(text: &str) -> Option<Self> {
        let mut prompt = Self::default();
        let mut count = 0;
        for value in text.split_ascii_whitespace() {
            count += 1;
            match value {
                "none" => prompt.never = true,
                "login" | "select_account" => prompt.login = true,
                "consent" => prompt.consent = true,
                _ => {}
            }
        }
        (!prompt.never || count == 1).then_some(prompt)
    }
}

/// The query itself, or the one that it refers to.
pub(super) async fn resolve(app: &Server, text: &str, now: Timestamp) -> Result<Query, Refusal> {
    let params = Params::parse(text.as_bytes());
    let reference = params.get("request_uri").and_then(|uri| uri.strip_prefix(PUSHED));
    let (Some(reference), Some(client_id)) = (reference, params.get("client_id")) else {
        return Ok(Query::new(text.to_owned(), false));
    };
    let pushed = app.store.pushed_request(reference, client_id, now).await?;
    let text = pushed.ok_or_else(|| {
        PageError::bad_request(
            "The request to sign in has expired. Go back to the application and start again.",
        )
    })?;
    Ok(Query::new(text, true))
}

pub(super) async fn read(app: &Server, query: Query) -> Result<AuthorizationRequest, Refusal> {
    let params = Params::parse(query.text.as_bytes());
    let client = match params.get("client_id") {
        Some(id) => app.store.client(id).await?,
        None => None,
    };
    let client = client.ok_or_else(|| {
        PageError::bad_request(
            "The application that sent you here is not known. Tell whoever runs it that its \
             client_id is not registered.",
        )
    })?;
    let redirect_uri = params
        .get("redirect_uri")
        .filter(|uri| client.may_redirect_to(uri, &app.gate))
        .ok_or_else(|| {
            PageError::bad_request(
                "The application that sent you here wants you sent to an address that is not \
                 its own. Go back, and tell whoever runs it that its redirect_uri is not registered.",
            )
        })?
        .to_owned();
    let state = params.get("state").map(str::to_owned);
    let checked = check(app, &client, &params, query.pushed);
    let checked = checked
        .map_err(|(error, text)| refusal(app, &redirect_uri, state.as_deref(), error, text))?;
    let Checked { challenge, prompt, max_age, expected, resources } = checked;
    let scope = client.granted_scope(params.get("scope").unwrap_or_default());
    Ok(AuthorizationRequest {
        client,
        redirect_uri,
        scope,
        resources,
        nonce: params.get("nonce").map(str::to_owned),
        challenge,
        prompt,
        login_hint: params.get("login_hint").map(str::to_owned),
        state,
        max_age,
        expected,
        query,
    })
}

/// What is left to find out once we know whom to tell.
struct Checked {
    challenge: pkce::Challenge,
    prompt: Prompt,
    max_age: Option<i64>,
    expected: Option<String>,
    resources: Vec<String>,
}

/// An error's code and description.
type Flaw = (&'static str, &'static str);

fn check(app: &Server, client: &Client, params: &Params, pushed: bool) -> Result<Checked, Flaw> {
    if params.has_doubled() {
        return Err(("invalid_request", "a parameter is given more than once"));
    }
    for (name, error, text) in [
        ("request", "request_not_supported", "request objects are not supported"),
        ("request_uri", "request_uri_not_supported", "only a pushed request_uri is supported"),
        ("registration", "registration_not_supported", "registration is not supported"),
    ] {
        if params.get(name).is_some() {
            return Err((error, text));
        }
    }
    if client.profile.pushed_only && !pushed {
        return Err(("invalid_request", "this client has to push its requests"));
    }
    if !client.may_use(GrantType::AuthorizationCode) {
        return Err(("unauthorized_client", "the client may not use the code flow"));
    }
    match params.get("response_type") {
        Some("code") => {}
        Some(_) => return Err(("unsupported_response_type", "response_type must be code")),
        None => return Err(("invalid_request", "response_type=code is missing")),
    }
    if params.get("response_mode").is_some_and(|mode| mode != "query") {
        return Err(("invalid_request", "response_mode must be query"));
    }
    if params.get("code_challenge_method") != Some("S256") {
        return Err(("invalid_request", "code_challenge_method must be S256"));
    }
    let challenge = params.get("code_challenge").and_then(pkce::Challenge::parse);
    let challenge = challenge
        .ok_or(("invalid_request", "code_challenge must be a base64url SHA-256 digest"))?;
    if params.get("nonce").is_some_and(|nonce| nonce.len() > NONCE_MAX) {
        return Err(("invalid_request", "nonce is too long"));
    }
    let mut prompt = Prompt::parse(params.get("prompt").unwrap_or_default())
        .ok_or(("invalid_request", "prompt=none stands alone"))?;
    let max_age = params.get("max_age").map(str::parse::<u32>).transpose();
    let max_age = max_age
        .map_err(|_| ("invalid_request", "max_age must be a number of seconds"))?
        .map(i64::from);
    // No sign-in is younger than nothing.
    prompt.login |= max_age == Some(0) && !prompt.never;
    let expected = match params.get("id_token_hint") {
        None => None,
        Some(hint) => {
            let hint = app.ring.read_hint::<IdClaims>(hint);
            let ours = hint.filter(|hint| hint.iss == app.issuer.as_str());
            let ours = ours.ok_or(("invalid_request", "id_token_hint is no ID token of ours"))?;
            Some(ours.sub)
        }
    };
    let resources = client
        .granted_resources(params.all("resource"))
        .ok_or(("invalid_target", "the client may not ask for this resource"))?;
    Ok(Checked { challenge, prompt, max_age, expected, resources })
}

impl AuthorizationRequest {
    /// False when the person has to sign in (again).
    pub fn is_satisfied_by(&self, session: &Session, now: Timestamp) -> bool {
        let age = session.authentication.at.map(|at| now.duration_since(at).as_secs());
        let young = self.max_age.is_none_or(|most| age.is_some_and(|age| age <= most));
        // `max_age=0` with `prompt=none` cannot be met.
        let possible = self.max_age != Some(0);
        !self.prompt.login && young && possible && self.expects(session)
    }

    /// True when a session that another provider has already is not enough.
    pub fn wants_proof(&self) -> bool {
        self.prompt.login || self.max_age.is_some()
    }

    /// Whether a proof of that moment will do, for somebody who was asked for one at `asked_at`. A
    /// provider could be kept from asking: its address can be changed on the way.
    pub fn takes(&self, at: Option<Timestamp>, asked_at: i64, now: Timestamp) -> bool {
        let asked_at = asked_at.saturating_sub(federation::LEEWAY);
        let earliest = match self.max_age {
            Some(most) if !self.prompt.login => asked_at.min(now.as_second().saturating_sub(most)),
            _ => asked_at,
        };
        !self.wants_proof() || at.is_some_and(|at| at.as_second() >= earliest)
    }

    /// False for somebody else than the one the client asked for by an ID token.
    pub fn expects(&self, session: &Session) -> bool {
        self.expected.as_ref().is_none_or(|subject| *subject == session.person.subject)
    }

    pub fn refuse(&self, app: &Server, error: &'static str, text: &'static str) -> Refusal {
        refusal(app, &self.redirect_uri, self.state.as_deref(), error, text)
    }
}

/// An error response (RFC 6749, section 4.1.2.1), with the issuer in it (RFC 9207).
fn refusal(
    app: &Server,
    redirect_uri: &str,
    state: Option<&str>,
    error: &'static str,
    text: &'static str,
) -> Refusal {
    let fields = [
        ("error", Some(error)),
        ("error_description", Some(text)),
        ("state", state),
        ("iss", Some(app.issuer.as_str())),
    ];
    Refusal::Redirect { location: with_query(redirect_uri, &fields), error, text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_follows_the_hash_is_carried_if_it_can_stand_in_an_address() {
        assert_eq!(fragment(Some("#/experiments/7")), "/experiments/7");
        assert_eq!(fragment(Some("a=1&b=%20")), "a=1&b=%20");
        for none in
            [None, Some(""), Some("#"), Some("a b"), Some("a\r\nSet-Cookie: x"), Some("#a#b")]
        {
            assert_eq!(fragment(none), "", "{none:?}");
        }
        assert_eq!(fragment(Some(&"x".repeat(FRAGMENT_MAX + 1))), "");
    }

    #[test]
    fn prompts() {
        let prompt = |text| Prompt::parse(text);
        assert_eq!(prompt(""), Some(Prompt::default()));
        assert_eq!(prompt("none"), Some(Prompt { never: true, ..Prompt::default() }));
        let both = Prompt { never: false, login: true, consent: true };
        assert_eq!(prompt("login consent"), Some(both));
        assert_eq!(prompt("unknown"), Some(Prompt::default()));
        for bad in ["none login", "consent none", "none none"] {
            assert_eq!(prompt(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_prompt_is_both_silent_and_loud(text in "(none|login|consent|x| ){0,6}") {
            if let Some(prompt) = Prompt::parse(&text) {
                prop_assert!(!prompt.never || !(prompt.login || prompt.consent));
            }
        }
    }
}
