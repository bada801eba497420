//! One provider: what it publishes, fetched when it is first needed, and the code flow with it.

use std::{borrow::Cow, sync::Arc, sync::Mutex, sync::PoisonError, time::Duration};

use anyhow::Context;
use jiff::Timestamp;
use openidconnect::{
    AuthType, AuthorizationCode, ClientId, ClientSecret, CsrfToken, IssuerUrl, LoginHint, Nonce,
    OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError,
    Scope, StandardErrorResponse, StandardTokenResponse, TokenResponse,
    core::{
        CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreErrorResponseType,
        CoreGenderClaim, CoreTokenType,
    },
};
use tokio::time::Instant;
use url::{Host, Url};

use super::{
    config::ProviderConfig,
    fetch::{Fetch, FetchError},
    openid::{Fields, Metadata, OtherClaims, UpstreamClient},
    profile::{self, Claims, Profile, ProfileError},
    verify::{Failure, object, verify},
};
use crate::{issuer::Issuer, store::Authentication};

/// What a provider publishes is asked for again after this long.
const FRESH: Duration = Duration::from_secs(3600);
/// A provider that failed is not asked again for this long: many may be waiting to sign in.
const PAUSE: Duration = Duration::from_secs(2);
/// Keys that a token names and we do not know are asked for at most this often.
const KEYS_AGAIN: Duration = Duration::from_secs(1);
/// How far a provider's clock may be from ours, in seconds.
pub(crate) const LEEWAY: i64 = 60;
/// Most methods that are taken over, and the longest name of one and of a context: tokens carry them.
const METHODS_MAX: usize = 16;
const METHOD_MAX: usize = 64;
const CONTEXT_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It does not answer, or with an error of its own.
    #[error("the provider does not answer: {0}")]
    Down(String),
    /// It answered, and not as it should: its settings or ours are wrong.
    #[error("the provider's answer is of no use: {0}")]
    Unusable(String),
    /// The code was not taken.
    #[error("the provider refused the code: {0}")]
    Refused(String),
    /// What it sent is not proven to be for us, now, and about this sign-in.
    #[error("the answer could not be verified: {0}")]
    Unverified(String),
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// What a sign-in asks of the provider.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub state: &'a str,
    pub nonce: &'a str,
    /// The PKCE verifier (RFC 7636).
    pub verifier: &'a str,
}

/// Somebody who signed in at the provider, verified.
#[derive(Debug)]
pub struct SignedIn {
    pub subject: String,
    pub profile: Profile,
    /// For signing out there: a hint, and no credential with us.
    pub id_token: String,
    /// When they last proved who they are, in seconds since the epoch, if the provider says.
    pub auth_time: Option<i64>,
    /// How they did. Empty when the provider does not say.
    pub amr: Vec<String>,
    pub acr: Option<String>,
}

pub struct Provider {
    pub config: ProviderConfig,
    issuer: IssuerUrl,
    redirect_uri: RedirectUrl,
    return_uri: String,
    secret: Option<ClientSecret>,
    fetch: Fetch,
    known: Mutex<Known>,
    /// Held by whoever asks, so that the others wait for the same answer.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    published: Option<Arc<Published>>,
    failed: Option<(Instant, String)>,
}

/// What the provider published, and a client made of it.
struct Published {
    metadata: Metadata,
    client: UpstreamClient,
    at: Instant,
}

impl Provider {
    pub(super) fn new(config: ProviderConfig, ours: &Issuer) -> anyhow::Result<Self> {
        let id = &config.id;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        anyhow::ensure!(
            (1..=40).contains(&id.len()) && id.bytes().all(plain),
            "the provider id `{id}` must be of lower-case letters, digits and hyphens"
        );
        anyhow::ensure!(
            is_issuer(&config.issuer),
            "the issuer of provider `{id}` must be an https address"
        );
        anyhow::ensure!(
            !config.groups_claim.is_empty() || config.allowed_groups.is_empty(),
            "provider `{id}` has allowed_groups, so groups_claim must name the claim with the groups"
        );
        let secret = match &config.client_secret_file {
            Some(file) => Some(ClientSecret::new(
                runtime::secret::read(file).with_context(|| format!("provider `{id}`"))?,
            )),
            None => None,
        };
        let http = runtime::http::client(config.ca_file.as_deref())
            .with_context(|| format!("provider `{id}`"))?;
        Ok(Self {
            issuer: IssuerUrl::new(config.issuer.clone())?,
            redirect_uri: RedirectUrl::new(ours.at(&format!("{}{id}", super::RETURN)))?,
            return_uri: ours.at("/sign-out"),
            secret,
            fetch: Fetch(http),
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            config,
        })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it published within the last `age`; else asks it. What was known before serves when
    /// it does not answer.
    async fn published(&self, age: Duration) -> Result<Arc<Published>, UpstreamError> {
        if let Some(answer) = self.remembered(age) {
            return answer;
        }
        let _asking = self.asking.lock().await;
        // Somebody else may have asked meanwhile.
        if let Some(answer) = self.remembered(age) {
            return answer;
        }
        let asked = Box::pin(self.discover()).await;
        let mut known = self.known();
        match asked {
            Ok(published) => {
                let published = Arc::new(published);
                *known = Known { published: Some(published.clone()), failed: None };
                Ok(published)
            }
            Err(error) => {
                let text = error.to_string();
                tracing::warn!(provider = %self.config.id, error = %text, "discovery failed");
                known.failed = Some((Instant::now(), text));
                known.published.clone().ok_or(error)
            }
        }
    }

    fn remembered(&self, age: Duration) -> Option<Result<Arc<Published>, UpstreamError>> {
        let known = self.known();
        if let Some(published) = known.published.as_ref().filter(|p| p.at.elapsed() < age) {
            return Some(Ok(published.clone()));
        }
        let (at, text) = known.failed.as_ref()?;
        if at.elapsed() >= PAUSE {
            return None;
        }
        Some(known.published.clone().ok_or_else(|| UpstreamError::Down(text.clone())))
    }

    async fn discover(&self) -> Result<Published, UpstreamError> {
        let metadata = Metadata::discover_async(self.issuer.clone(), &self.fetch).await;
        let metadata = metadata.map_err(|error| {
            use openidconnect::DiscoveryError::{Request, Response};
            let down = match &error {
                Request(_) => true,
                Response(status, ..) => status.is_server_error(),
                _ => false,
            };
            let text = runtime::http::whole(&error);
            if down { UpstreamError::Down(text) } else { UpstreamError::Unusable(text) }
        })?;
        if metadata.token_endpoint().is_none() {
            return Err(UpstreamError::Unusable("it has no token endpoint".to_owned()));
        }
        let others = [
            Some(metadata.authorization_endpoint().url()),
            metadata.token_endpoint().map(|url| url.url()),
            metadata.userinfo_endpoint().map(|url| url.url()),
            Some(metadata.jwks_uri().url()),
        ];
        if !others.into_iter().flatten().all(is_protected) {
            return Err(UpstreamError::Unusable("an endpoint is not https".to_owned()));
        }
        // What the specification takes for granted when nothing is said.
        let methods = metadata.token_endpoint_auth_methods_supported();
        let basic =
            methods.is_none_or(|all| all.contains(&CoreClientAuthMethod::ClientSecretBasic));
        let client = UpstreamClient::from_provider_metadata(
            metadata.clone(),
            ClientId::new(self.config.client_id.clone()),
            self.secret.clone(),
        )
        .set_redirect_uri(self.redirect_uri.clone())
        .set_auth_type(if basic { AuthType::BasicAuth } else { AuthType::RequestBody });
        Ok(Published { metadata, client, at: Instant::now() })
    }

    /// Where to send the browser. With `again`, even somebody who is signed in there has to prove
    /// who they are.
    pub async fn authorize_url(
        &self,
        ask: Ask<'_>,
        again: bool,
        login_hint: Option<&str>,
    ) -> Result<Url, UpstreamError> {
        let published = self.published(FRESH).await?;
        let verifier = PkceCodeVerifier::new(ask.verifier.to_owned());
        let scopes = self.config.scopes.iter().filter(|scope| *scope != "openid");
        let (state, nonce) = (ask.state.to_owned(), ask.nonce.to_owned());
        let request = published
            .client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                move || CsrfToken::new(state),
                move || Nonce::new(nonce),
            )
            .set_redirect_uri(Cow::Borrowed(&self.redirect_uri))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .add_scopes(scopes.cloned().map(Scope::new));
        let request = match again {
            true => request.add_prompt(CoreAuthPrompt::Login).set_max_age(Duration::ZERO),
            false => request,
        };
        let request = match login_hint {
            Some(hint) => request.set_login_hint(LoginHint::new(hint.to_owned())),
            None => request,
        };
        Ok(request.url().0)
    }

    /// True when the response's `iss` is this provider (RFC 9207, section 2.4): a code of another
    /// is never sent to this one's token endpoint.
    pub async fn is_issuer(&self, iss: Option<&str>) -> Result<bool, UpstreamError> {
        match iss {
            Some(iss) => Ok(iss == self.config.issuer),
            None => {
                let published = self.published(FRESH).await?;
                let other = published.metadata.additional_metadata();
                Ok(!other.authorization_response_iss_parameter_supported)
            }
        }
    }

    /// Redeems the code and verifies what comes for it (OpenID Connect Core, section 3.1.3.7).
    pub async fn redeem(&self, code: &str, ask: Ask<'_>) -> Result<SignedIn, UpstreamError> {
        let published = self.published(FRESH).await?;
        let tokens = published
            .client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(|error| UpstreamError::Unusable(error.to_string()))?
            .set_pkce_verifier(PkceCodeVerifier::new(ask.verifier.to_owned()))
            .request_async(&self.fetch)
            .await
            .map_err(token_error)?;
        let id_token = tokens
            .id_token()
            .ok_or_else(|| UpstreamError::Unusable("it sent no ID token".to_owned()))?;
        let nonce = Nonce::new(ask.nonce.to_owned());
        let verified = match verify(&published.client, id_token, &tokens, &nonce) {
            Err(Failure::UnknownKey) => {
                let published = self.published(KEYS_AGAIN).await?;
                verify(&published.client, id_token, &tokens, &nonce)
            }
            other => other,
        };
        let mut verified = verified.map_err(|failure| match failure {
            Failure::UnknownKey => UpstreamError::Unverified("signed by an unknown key".to_owned()),
            Failure::Other(text) => UpstreamError::Unverified(text),
        })?;
        if profile::is_incomplete(&self.config, &verified.claims)
            && published.metadata.userinfo_endpoint().is_some()
        {
            let more = self.userinfo(&published, &tokens, &verified.subject).await?;
            profile::merge(&self.config, &mut verified.claims, more);
        }
        Ok(SignedIn {
            profile: profile::read(&self.config, &verified.claims)?,
            subject: verified.subject,
            id_token: id_token.to_string(),
            auth_time: verified.auth_time,
            amr: verified.amr,
            acr: verified.acr,
        })
    }

    async fn userinfo(
        &self,
        published: &Published,
        tokens: &StandardTokenResponse<Fields, CoreTokenType>,
        subject: &str,
    ) -> Result<Claims, UpstreamError> {
        // The subject must be the ID token's (OpenID Connect Core, section 5.3.2).
        let subject = openidconnect::SubjectIdentifier::new(subject.to_owned());
        let request = published
            .client
            .user_info(tokens.access_token().clone(), Some(subject))
            .map_err(|error| UpstreamError::Unusable(error.to_string()))?;
        let info: openidconnect::UserInfoClaims<OtherClaims, CoreGenderClaim> =
            request.request_async(&self.fetch).await.map_err(|error| match error {
                openidconnect::UserInfoError::Request(error) => {
                    UpstreamError::Down(error.to_string())
                }
                other => UpstreamError::Unverified(runtime::http::whole(&other)),
            })?;
        Ok(object(&info))
    }

    /// Where a browser ends its session at the provider (OpenID Connect RP-Initiated Logout 1.0),
    /// as far as is known without asking it.
    pub fn sign_out_url(&self, id_token: &str) -> Option<String> {
        let published = self.known().published.clone()?;
        let end = published.metadata.additional_metadata().end_session_endpoint.as_ref()?;
        if !self.config.offer_sign_out || !is_protected(end.url()) {
            return None;
        }
        let mut url = end.url().clone();
        url.query_pairs_mut()
            .append_pair("id_token_hint", id_token)
            .append_pair("client_id", &self.config.client_id)
            .append_pair("post_logout_redirect_uri", &self.return_uri);
        Some(url.into())
    }
}

fn token_error(
    error: RequestTokenError<FetchError, StandardErrorResponse<CoreErrorResponseType>>,
) -> UpstreamError {
    match error {
        RequestTokenError::ServerResponse(error) => {
            UpstreamError::Refused(error.error().to_string())
        }
        RequestTokenError::Request(error) => UpstreamError::Down(error.to_string()),
        // Not the body: it may hold tokens.
        RequestTokenError::Parse(..) => UpstreamError::Unusable("no token response".to_owned()),
        RequestTokenError::Other(text) => UpstreamError::Unusable(text),
    }
}

impl SignedIn {
    /// When and how the person proved who they are, as far as the provider can be believed. A time
    /// that lies ahead is as good as none: cut to now, it would make every sign-in a fresh one. When
    /// the provider says none, the moment of return counts if `trusted`: the round trip was begun with
    /// `prompt=login`, and an operator says that the provider asks then.
    pub fn authentication(&self, trusted: bool, now: Timestamp) -> Authentication {
        let (now_at, latest) = (now.as_second(), now.as_second().saturating_add(LEEWAY));
        let at = match self.auth_time {
            Some(at) if (1..=latest).contains(&at) => Timestamp::from_second(at.min(now_at)).ok(),
            Some(at) => {
                tracing::warn!(auth_time = at, "a provider's auth_time cannot be, and is left out");
                None
            }
            None => trusted.then_some(now),
        };
        let plain = |text: &str, most| {
            (1..=most).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b))
        };
        let mut amr = self.amr.clone();
        amr.retain(|method| plain(method, METHOD_MAX));
        amr.truncate(METHODS_MAX);
        let acr = self.acr.clone().filter(|acr| plain(acr, CONTEXT_MAX));
        Authentication { at, amr, acr, ..Authentication::elsewhere() }
    }
}

/// Whether a provider can be called that.
pub fn is_issuer(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| is_protected(&url))
}

/// Nobody on the way can read or change it: https, or this very machine.
fn is_protected(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

#[cfg(test)]
mod tests {
    use super::{super::NoGroups, *};
    use crate::federation::Email;

    const NOW: i64 = 1_800_000_000;

    /// What came, with that `auth_time`.
    fn signed_in(auth_time: Option<i64>) -> SignedIn {
        let (name, groups) = ("carol".parse().unwrap(), Err(NoGroups::Missing));
        let profile = Profile { name, email: Email::Unsaid, groups, admitted_before: Vec::new() };
        let (subject, id_token) = ("u-1".to_owned(), String::new());
        SignedIn { subject, profile, id_token, auth_time, amr: Vec::new(), acr: None }
    }

    #[test]
    fn a_providers_auth_time_is_taken_as_it_is_unless_it_lies_ahead() {
        let now = Timestamp::from_second(NOW).unwrap();
        let at = |auth_time, trusted| {
            let at = signed_in(auth_time).authentication(trusted, now).at;
            at.map(|at| at.as_second() - NOW)
        };
        for trusted in [false, true] {
            assert_eq!(at(Some(NOW - 86_400), trusted), Some(-86_400));
            assert_eq!(at(Some(NOW), trusted), Some(0));
            assert_eq!(at(Some(NOW + LEEWAY), trusted), Some(0), "a clock that is a little ahead");
            for wrong in [NOW + LEEWAY + 1, NOW * 1000, i64::MAX, 0, -1, i64::MIN] {
                assert_eq!(at(Some(wrong), trusted), None, "{wrong}");
            }
        }
        assert_eq!((at(None, false), at(None, true)), (None, Some(0)));
    }

    #[test]
    fn what_a_provider_says_of_the_means_is_taken_within_bounds() {
        let now = Timestamp::from_second(NOW).unwrap();
        let mut carol = signed_in(None);
        carol.amr = vec!["mfa".to_owned(), String::new(), "a\nb".to_owned(), "x".repeat(65)];
        carol.acr = Some("urn:example:gold".to_owned());
        let taken = carol.authentication(false, now);
        assert_eq!((taken.method.as_str(), taken.amr), ("fed", vec!["mfa".to_owned()]));
        assert_eq!(taken.acr.as_deref(), Some("urn:example:gold"));
        carol.amr = vec!["otp".to_owned(); 100];
        carol.acr = Some("x".repeat(257));
        let taken = carol.authentication(false, now);
        assert_eq!((taken.amr.len(), taken.acr), (16, None));
    }

    #[test]
    fn only_what_is_protected_is_asked() {
        for good in
            ["https://id.example.com", "http://127.0.0.1:9", "http://[::1]/", "http://localhost:1"]
        {
            assert!(is_protected(&good.parse().unwrap()), "{good}");
        }
        for bad in [
            "http://id.example.com",
            "http://localhost.evil.example",
            "file:///x",
            "http://10.0.0.1",
        ] {
            assert!(!is_protected(&bad.parse().unwrap()), "{bad}");
        }
    }
}
