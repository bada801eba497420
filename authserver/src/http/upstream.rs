//! Signing in at another provider: sending the browser there, and taking it back.

use axum::{
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use runtime::audit::{Event, Outcome};

use super::{
    Caller,
    account::{self, ACCOUNT},
    authorize, cookie,
    discovery::{AUTHORIZE, DEVICE_PAGE},
    error::{PageError, try_again_in},
    pages,
    params::Params,
    second_proof,
    sign_in::{self, Goal, Next, Retry},
};
use crate::{
    federation::{Ask, NoGroups, Profile, ProfileError, Provider, SignedIn, UpstreamError},
    secret::{Purpose, Secret},
    server::{App, Server},
    store::{Arrival, Origin, Person, StoreError, UpstreamRequest},
    throttle::Key,
};

/// Longest code or state that is looked at.
const PARAMETER_MAX: usize = 8 * 1024;

/// A button on the sign-in page.
pub(super) async fn begin(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, authorize::Refusal> {
    let provider = provider(&app, &id)?;
    let query = Params::parse(query.unwrap_or_default().as_bytes());
    let Some(sealed) = query.get("ticket") else {
        return Ok(send(&app, &headers, caller, provider, &Next::Home).await?);
    };
    let ticket = sign_in::Ticket::open(&app, sealed).ok_or_else(|| {
        PageError::bad_request("This address is damaged. Go back and reload the page.")
    })?;
    let problem = ticket.problem(&headers, caller.now);
    let mut next = Next::read(&app, ticket.next).await?;
    next.keep_fragment(&query);
    if let Some(problem) = problem {
        let retry = Retry { status: StatusCode::FORBIDDEN, name: "", problem };
        return Ok(sign_in::page(&app, &headers, caller.now, &next, retry));
    }
    Ok(send(&app, &headers, caller, provider, &next).await?)
}

/// Sends the browser to the provider.
pub(super) async fn send(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    provider: &Provider,
    next: &Next,
) -> Result<Response, PageError> {
    let limited = app.limits().upstream_starts.take(&[Key::address(caller.address)], caller.now);
    if let Err(wait) = limited {
        app.metrics.sign_ins.with_label_values(&["throttled"]).inc();
        let text = format!("Too many sign-ins at once. Please wait {wait} s and try again.");
        let retry = retry(next);
        let title = "Please wait";
        let mut response = pages::message(
            StatusCode::TOO_MANY_REQUESTS,
            title,
            &text,
            Some((&retry, "Try again")),
        );
        try_again_in(&mut response, wait);
        return Ok(response);
    }
    let state = Secret::generate();
    let (nonce, verifier) = derived(app, state.as_str());
    let again = next.wants_proof();
    let hint = next.request().and_then(|request| request.login_hint.as_deref());
    let ask = Ask { state: state.as_str(), nonce: &nonce, verifier: &verifier };
    let url = match provider.authorize_url(ask, again, hint).await {
        Ok(url) => url,
        Err(error) => return Ok(failed(app, provider, next, &error)),
    };
    let (browser, set_cookie) = sign_in::form_cookie(headers);
    let goal = serde_json::to_string(&next.goal()).unwrap_or_default();
    let request = UpstreamRequest { goal, again, asked_at: caller.now.as_second() };
    app.store.begin_upstream(state.as_str(), &browser, &provider.config.id, &request).await?;
    let mut response = authorize::see_other(url.as_str());
    if let Some(cookie) = set_cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// The nonce and the PKCE verifier of a state. They are kept nowhere, and nobody without our key
/// can tell them from the state, which the provider and the browser know.
fn derived(app: &Server, state: &str) -> (String, String) {
    let tag = |purpose| {
        let sealed = app.sealer.seal(purpose, state.as_bytes());
        sealed.rsplit('.').next().unwrap_or_default().to_owned()
    };
    (tag(Purpose::UpstreamNonce), tag(Purpose::UpstreamVerifier))
}

/// Where the provider sends the browser back (OpenID Connect Core, section 3.1.2.5). Each provider
/// has an address of its own, so that no answer of one is taken for another's.
pub(super) async fn finish(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, authorize::Refusal> {
    let provider = provider(&app, &id)?;
    let query = Params::parse(query.unwrap_or_default().as_bytes());
    if query.has_doubled() {
        return Err(PageError::bad_request("That answer is ambiguous. Sign in again.").into());
    }
    let short = |name| query.get(name).filter(|value: &&str| value.len() <= PARAMETER_MAX);
    let taken = match (short("state"), cookie::get(&headers, cookie::FORM)) {
        (Some(state), Some(_)) => {
            let (browser, _) = sign_in::form_cookie(&headers);
            let taken = app.store.take_upstream(state, &browser, &id, caller.now).await?;
            taken.map(|request| (state, request))
        }
        _ => None,
    };
    let Some((state, request)) = taken else {
        return Ok(unknown(&app, caller, &headers).await?);
    };
    let goal: Goal = serde_json::from_str(&request.goal)
        .map_err(|_| PageError::bad_request("This sign-in is damaged. Begin again."))?;
    let next = Next::read(&app, goal).await?;
    match provider.is_issuer(query.get("iss")).await {
        Ok(true) => {}
        Ok(false) => {
            let error = UpstreamError::Unverified("the answer names another issuer".to_owned());
            record(&app, caller, provider, None, Outcome::Denied);
            return Ok(failed(&app, provider, &next, &error));
        }
        Err(error) => return Ok(failed(&app, provider, &next, &error)),
    }
    let Some(code) = short("code") else {
        record(&app, caller, provider, None, Outcome::Denied);
        return Ok(refused(provider, &next, query.get("error")));
    };
    let (nonce, verifier) = derived(&app, state);
    let ask = Ask { state, nonce: &nonce, verifier: &verifier };
    match Box::pin(provider.redeem(code, ask)).await {
        Ok(signed_in) => {
            let began = Began { next: &next, again: request.again, asked_at: request.asked_at };
            Ok(arrive(&app, &headers, caller, provider, began, signed_in).await?)
        }
        Err(error) => {
            record(&app, caller, provider, None, Outcome::Denied);
            Ok(failed(&app, provider, &next, &error))
        }
    }
}

fn provider<'a>(app: &'a Server, id: &str) -> Result<&'a Provider, PageError> {
    app.federation.provider(id).ok_or_else(|| PageError {
        status: StatusCode::NOT_FOUND,
        title: "There is no such provider",
        text: "Go to the start page and choose how to sign in.".to_owned(),
    })
}

/// A state that is used up, too old, of another browser or another provider, or made up.
async fn unknown(app: &Server, caller: Caller, headers: &HeaderMap) -> Result<Response, PageError> {
    if authorize::session(app, headers, caller.now).await?.is_some() {
        // Back or reload after signing in.
        return Ok(authorize::see_other("/"));
    }
    let text = "This sign-in was finished already, took too long, or began in another browser. \
                If it goes on, allow cookies for this site.";
    let link = Some(("/", "Sign in again"));
    Ok(pages::message(StatusCode::FORBIDDEN, "Please sign in again", text, link))
}

/// What a sign-in at a provider was begun for.
struct Began<'a> {
    next: &'a Next,
    again: bool,
    asked_at: i64,
}

/// Signed in there; now here, unless something stands against it.
async fn arrive(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    provider: &Provider,
    Began { next, again, asked_at }: Began<'_>,
    signed_in: SignedIn,
) -> Result<Response, authorize::Refusal> {
    let trusted = again && provider.config.trust_prompt_login;
    let proof = signed_in.authentication(trusted, caller.now);
    let enough = !again || next.takes(proof.at, asked_at, caller.now);
    let SignedIn { subject, profile, id_token, .. } = signed_in;
    let issuer = &provider.config.issuer;
    let arrival = app.store.arrive(issuer, &subject, &profile, caller.now).await?;
    let person = match arrival {
        Arrival::Known(person) => person,
        Arrival::New(person) => {
            record_as(app, caller, provider, &person, "person-added");
            person
        }
        Arrival::Disabled(person) => {
            record(app, caller, provider, Some(person.name.as_str()), Outcome::Denied);
            let text = "Your account is disabled. Ask an administrator to enable it.";
            return Ok(pages::message(StatusCode::FORBIDDEN, "You cannot sign in", text, None));
        }
        Arrival::NameTaken => {
            record(app, caller, provider, Some(profile.name.as_str()), Outcome::Denied);
            return Ok(name_taken(provider, &profile));
        }
        Arrival::NotAdmitted => {
            record(app, caller, provider, Some(profile.name.as_str()), Outcome::Denied);
            return Ok(not_admitted(provider, next));
        }
    };
    if let Err(why) = profile.groups {
        groups_unknown(app, caller, provider, &person, &subject, why).await?;
    }
    let (session, secret) =
        app.store.begin_session(person, &proof, app.session_max, caller.now).await?;
    let name = Some(session.person.name.as_str());
    let origin =
        Origin { provider: &provider.config.id, issuer, subject: &subject, id_token: &id_token };
    app.store.place_session(&session.id, &sign_in::whence(headers, caller)).await?;
    if !app.store.keep_upstream(&session, &origin).await? {
        app.store.end_session(&session.id, caller.now).await?;
        record(app, caller, provider, name, Outcome::Denied);
        let retry = retry(next);
        let text = "Your account here was changed at this moment.";
        let link = Some((retry.as_str(), "Try again"));
        return Ok(pages::message(StatusCode::FORBIDDEN, "You are not signed in", text, link));
    }
    record(app, caller, provider, name, Outcome::Allowed);
    let mut response = if enough {
        next.go(app, headers, &session, caller).await?
    } else {
        second_proof::page(app, headers, caller, &session, next, Retry::first()).await?
    };
    sign_in::set_cookies(app, &mut response, &session, &secret, caller.now);
    sign_in::renew_form_cookie(headers, &mut response);
    Ok(response)
}

/// Where the session at the provider can be ended, and the provider's name, if this session began
/// at one that can do that.
pub(super) async fn sign_out_link(
    app: &Server,
    session_id: &str,
) -> Result<Option<(String, String)>, StoreError> {
    let Some((id, id_token)) = app.store.upstream_of(session_id).await? else { return Ok(None) };
    let Some(provider) = app.federation.provider(&id) else { return Ok(None) };
    let address = provider.sign_out_url(&id_token);
    Ok(address.map(|address| (address, provider.config.name.clone())))
}

/// Raises the alarm: the person keeps the groups that are known, and nobody hears of one that they
/// left.
async fn groups_unknown(
    app: &Server,
    caller: Caller,
    provider: &Provider,
    person: &Person,
    subject: &str,
    why: NoGroups,
) -> Result<(), StoreError> {
    if why == NoGroups::Unasked {
        return Ok(());
    }
    let id = &provider.config.id;
    app.metrics.groups_unknown.with_label_values(&[id]).inc();
    let known = app.store.upstream_identity(&provider.config.issuer, subject).await?;
    let age = match known.and_then(|known| known.groups_at) {
        Some(at) => format!("as of {at}"),
        None => "that it never said".to_owned(),
    };
    let name = person.name.as_str();
    tracing::warn!(
        provider = %id, claim = %provider.config.groups_claim, person = name, %why, groups = %age,
        "a provider does not say somebody's groups; those that are known stay"
    );
    let detail = format!("provider {id}: {why}; kept: groups {age}");
    app.audit.record(
        caller.now,
        Event {
            who: Some(name),
            did: "groups-unknown",
            to: Some("Dormouse"),
            from: Some(caller.address),
            credential: None,
            outcome: Outcome::Allowed,
            detail: Some(&detail),
        },
    );
    Ok(())
}

/// Only people of certain groups may come in, and nothing says that this is one.
fn not_admitted(provider: &Provider, next: &Next) -> Response {
    let name = &provider.config.name;
    let text = format!(
        "{name} did not say which groups you are in, so it cannot be known whether you may sign in \
         here. Ask an administrator: the claim `{}` is missing.",
        provider.config.groups_claim
    );
    let retry = retry(next);
    let link = Some((retry.as_str(), "Try again"));
    pages::message(StatusCode::FORBIDDEN, "You cannot sign in", &text, link)
}

fn name_taken(provider: &Provider, profile: &Profile) -> Response {
    let text = format!(
        "You signed in with {}, but the name {} belongs to another account here. If it is yours, \
         ask an administrator to link the two.",
        provider.config.name, profile.name
    );
    pages::message(StatusCode::CONFLICT, "That name is taken", &text, None)
}

/// The provider sent the browser back without a code. What it says beside the error's name is
/// text that anybody could have put there, and is not shown.
fn refused(provider: &Provider, next: &Next, error: Option<&str>) -> Response {
    let name = &provider.config.name;
    let text = match error {
        Some("access_denied") => format!("{name} did not let you in, or you stopped there."),
        Some("temporarily_unavailable" | "server_error") => {
            format!("{name} has trouble of its own. Try again in a minute.")
        }
        _ => format!("{name} did not sign you in. If it goes on, tell whoever runs it."),
    };
    let retry = retry(next);
    let link = Some((retry.as_str(), "Try again"));
    pages::message(StatusCode::FORBIDDEN, "You are not signed in", &text, link)
}

fn failed(app: &Server, provider: &Provider, next: &Next, error: &UpstreamError) -> Response {
    tracing::warn!(provider = %provider.config.id, %error, "a sign-in failed");
    let name = &provider.config.name;
    let stay = "Whoever is signed in stays so.";
    let (status, title, text) = match error {
        UpstreamError::Down(_) => {
            let other = if app.federation.only().is_some() { "" } else { " or another way" };
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "Signing in does not work right now",
                format!(
                    "{name} does not answer. {stay} Try again in a minute{other}; if it goes on, \
                     tell whoever runs {name}."
                ),
            )
        }
        UpstreamError::Unusable(_) => (
            StatusCode::BAD_GATEWAY,
            "Signing in does not work right now",
            format!(
                "{name} answered with something that cannot be used. {stay} Tell an \
                 administrator: the authserver's log says what it was."
            ),
        ),
        UpstreamError::Refused(_) => (
            StatusCode::FORBIDDEN,
            "You are not signed in",
            format!("{name} did not confirm the sign-in. Try again."),
        ),
        UpstreamError::Unverified(_) => (
            StatusCode::FORBIDDEN,
            "You are not signed in",
            format!(
                "What {name} sent could not be verified. Try again; if it goes on, tell an \
                 administrator."
            ),
        ),
        UpstreamError::Profile(error) => {
            (StatusCode::FORBIDDEN, "You cannot sign in", no_entry(name, error))
        }
    };
    let retry = retry(next);
    let mut response = pages::message(status, title, &text, Some((&retry, "Try again")));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        try_again_in(&mut response, 30);
    }
    response
}

fn no_entry(name: &str, error: &ProfileError) -> String {
    match error {
        ProfileError::NoName(claim) => format!(
            "{name} did not say your user name. Ask an administrator: the claim `{claim}` is \
             missing."
        ),
        ProfileError::UnusableName(claim) => format!(
            "Your name at {name} has characters that no user name may have. Ask an administrator \
             to take the name from another claim than `{claim}`."
        ),
        ProfileError::EmailNotAllowed => format!(
            "Your e-mail address at {name} is of no domain that may sign in here, or is not \
             confirmed. Sign in with another account, or ask an administrator."
        ),
        ProfileError::GroupNotAllowed => format!(
            "You are in no group at {name} that may sign in here. Ask an administrator to be let \
             in."
        ),
        ProfileError::TooManyGroups(_) => format!(
            "You are in more groups at {name} than there is room for. Ask an administrator to \
             choose the ones that matter, with `group_map`."
        ),
    }
}

/// Where the sign-in began.
pub(super) fn retry(next: &Next) -> String {
    match next.goal() {
        Goal::Home => "/".to_owned(),
        Goal::Account => ACCOUNT.to_owned(),
        Goal::Confirm(code) => account::confirm_address(code.as_deref()),
        Goal::Authorize { query, pushed: false, .. } => format!("{AUTHORIZE}?{query}"),
        // It was not the browser that sent it; the application has to begin again.
        Goal::Authorize { pushed: true, .. } => "/".to_owned(),
        Goal::Device(code) if code.is_empty() => DEVICE_PAGE.to_owned(),
        Goal::Device(code) => authorize::with_query(DEVICE_PAGE, &[("user_code", Some(&code))]),
    }
}

fn record(app: &Server, caller: Caller, provider: &Provider, who: Option<&str>, outcome: Outcome) {
    let allowed = outcome == Outcome::Allowed;
    let label = if allowed { "succeeded" } else { "refused" };
    app.metrics.sign_ins.with_label_values(&[label]).inc();
    let event = Event {
        who,
        did: if allowed { "signed-in" } else { "refused" },
        to: Some("Dormouse"),
        from: Some(caller.address),
        credential: None,
        outcome,
        detail: Some(&format!("provider {}", provider.config.id)),
    };
    app.audit.record(caller.now, event);
}

fn record_as(app: &Server, caller: Caller, provider: &Provider, person: &Person, did: &str) {
    let event = Event {
        who: Some(person.name.as_str()),
        did,
        to: Some("Dormouse"),
        from: Some(caller.address),
        credential: None,
        outcome: Outcome::Allowed,
        detail: Some(&format!("provider {}", provider.config.id)),
    };
    app.audit.record(caller.now, event);
}
