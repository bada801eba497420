//! Who a client is (RFC 6749, section 2.3; OpenID Connect Core, section 9), by one method and no
//! more.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use base64::{Engine, engine::general_purpose::STANDARD};
use url::form_urlencoded;

use super::{discovery, error::OAuthError, params::Params};
use crate::{
    assertion::{self, AssertionError},
    client::{Client, ClientKind},
    jws::JwkSet,
    server::Server,
    store::{ServiceAccount, StoreError},
};

/// Who asks for tokens: on a person's behalf, or for itself.
#[derive(Debug)]
pub(super) enum Party {
    Client(Arc<Client>),
    Service(Box<ServiceAccount>),
}

impl Party {
    pub fn id(&self) -> &str {
        match self {
            Self::Client(client) => &client.id,
            Self::Service(account) => &account.client_id,
        }
    }

    /// False for those that anybody can say they are.
    pub fn is_proven(&self) -> bool {
        !matches!(self, Self::Client(client) if client.kind == ClientKind::Public)
    }

    fn has_secret(&self, secret: &str) -> bool {
        match self {
            Self::Client(client) => client.has_secret(secret),
            Self::Service(account) => account.has_secret(secret),
        }
    }

    /// The keys of its assertions. `doubted`: those of before did not fit.
    async fn keys(&self, app: &Server, doubted: bool) -> Result<Option<Arc<JwkSet>>, StoreError> {
        let profile = match self {
            Self::Service(account) => return Ok(account.keys.clone().map(Arc::new)),
            Self::Client(client) => &client.profile,
        };
        if let Some(uri) = &profile.jwks_uri {
            return Ok(app.key_sets.get(uri, doubted, app.now()).await);
        }
        let keys = profile.keys.as_deref().map(JwkSet::from_json).transpose();
        let keys = keys.map_err(|_| StoreError::Damaged("a client's keys"))?;
        Ok(keys.map(Arc::new))
    }

    fn changes_keys(&self) -> bool {
        matches!(self, Self::Client(client) if client.profile.jwks_uri.is_some())
    }
}

/// What was presented.
#[derive(PartialEq, Eq)]
enum Presented {
    Nothing { id: String },
    Secret { id: String, secret: String },
    Assertion { id: String, assertion: String },
}

/// A client that acts for people.
pub(super) async fn authenticate(
    app: &Server,
    headers: &HeaderMap,
    form: &Params,
) -> Result<Arc<Client>, OAuthError> {
    match authenticate_party(app, headers, form).await? {
        Party::Client(client) => Ok(client),
        Party::Service(_) => {
            Err(OAuthError::new("unauthorized_client", "a service account cannot do this"))
        }
    }
}

pub(super) async fn authenticate_party(
    app: &Server,
    headers: &HeaderMap,
    form: &Params,
) -> Result<Party, OAuthError> {
    let basic = headers.contains_key(header::AUTHORIZATION);
    let refused = |description: String| OAuthError { error: "invalid_client", description, basic };
    let unknown = || refused("the client is not known, or its secret is wrong".to_owned());
    let presented = read(headers, form)?.ok_or_else(unknown)?;
    let (Presented::Nothing { id }
    | Presented::Secret { id, .. }
    | Presented::Assertion { id, .. }) = &presented;
    let party = match app.clients.get(id).await? {
        Some(client) => Party::Client(client),
        None => {
            let account = app.store.service_account(id, app.now()).await?;
            Party::Service(Box::new(account.ok_or_else(unknown)?))
        }
    };
    match presented {
        Presented::Nothing { .. } if party.is_proven() => Err(unknown()),
        Presented::Nothing { .. } => Ok(party),
        Presented::Secret { secret, .. } if party.has_secret(&secret) => Ok(party),
        // It may be a new one.
        Presented::Secret { secret, .. } => match app.clients.fresh(party.id()).await? {
            Some(client) if client.has_secret(&secret) => Ok(Party::Client(client)),
            _ => Err(unknown()),
        },
        Presented::Assertion { assertion, .. } => {
            let keys = party.keys(app, false).await?.ok_or_else(unknown)?;
            let endpoints = [discovery::TOKEN, discovery::PUSH].map(|path| app.issuer.at(path));
            let audiences = [app.issuer.as_str(), &endpoints[0], &endpoints[1]];
            let check = |keys: &JwkSet| {
                assertion::check(keys, &assertion, party.id(), &audiences, app.now())
            };
            let mut unused = check(&keys);
            if matches!(unused, Err(AssertionError::Jws(_))) && party.changes_keys() {
                // It may be signed with a key that is new.
                let keys = party.keys(app, true).await?.ok_or_else(unknown)?;
                unused = check(&keys);
            }
            let unused = unused.map_err(|error| refused(error.to_string()))?;
            if !app.store.use_assertion(party.id(), &unused.jti, unused.until).await? {
                return Err(refused(AssertionError::Replayed.to_string()));
            }
            Ok(party)
        }
    }
}

/// None when there is nothing that could be a client.
fn read(headers: &HeaderMap, form: &Params) -> Result<Option<Presented>, OAuthError> {
    let several = || {
        let text = "the client authenticates in more than one way";
        Err(OAuthError::new("invalid_request", text))
    };
    let (named, secret) = (form.get("client_id"), form.get("client_secret"));
    let assertion = form.get("client_assertion");
    if headers.contains_key(header::AUTHORIZATION) {
        let Some((id, basic)) = basic_credentials(headers) else { return Ok(None) };
        if secret.is_some() || assertion.is_some() || named.is_some_and(|named| named != id) {
            return several();
        }
        return Ok(Some(Presented::Secret { id, secret: basic }));
    }
    if let Some(assertion) = assertion {
        if secret.is_some() {
            return several();
        }
        if form.get("client_assertion_type") != Some(assertion::TYPE) {
            let text = format!("client_assertion_type must be {}", assertion::TYPE);
            return Err(OAuthError::new("invalid_request", text));
        }
        let id = assertion::unverified_client(assertion);
        // The one that is named is the one whose keys are asked (RFC 7521, section 4.2).
        let id = id.filter(|id| named.is_none_or(|named| named == id));
        return Ok(id.map(|id| Presented::Assertion { id, assertion: assertion.to_owned() }));
    }
    let Some(id) = named.map(str::to_owned) else { return Ok(None) };
    Ok(Some(match secret {
        Some(secret) => Presented::Secret { id, secret: secret.to_owned() },
        None => Presented::Nothing { id },
    }))
}

/// True when there is something that could be a client, presented in one way.
pub(super) fn is_readable(headers: &HeaderMap, form: &Params) -> bool {
    read(headers, form).is_ok_and(|presented| presented.is_some())
}

/// Both parts are form-encoded before they are joined (RFC 6749, section 2.3.1).
fn basic_credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (scheme, encoded) = values.next()?.to_str().ok()?.split_once(' ')?;
    if values.next().is_some() || !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    Some((form_decode(id)?, form_decode(secret)?))
}

/// Secrets that were not encoded, as many clients send them, come through whole if they have no
/// `%` or `+`; `=` and `&` are no separators here.
fn form_decode(part: &str) -> Option<String> {
    let escaped = part.replace('=', "%3D").replace('&', "%26");
    let pair = form_urlencoded::parse(escaped.as_bytes()).next();
    pair.map(|(text, _)| text.into_owned())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn basic(text: &str) -> HeaderMap {
        let value = format!("Basic {}", STANDARD.encode(text));
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(&value).unwrap())])
    }

    fn error(headers: &HeaderMap, form: &str) -> Option<&'static str> {
        read(headers, &Params::parse(form.as_bytes())).err().map(|error| error.error)
    }

    #[test]
    fn one_way_and_no_more() {
        let none = HeaderMap::new();
        let kind = "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3A\
                    jwt-bearer";
        for (headers, form) in [
            (basic("a:b"), "client_secret=b".to_owned()),
            (basic("a:b"), "client_id=c".to_owned()),
            (basic("a:b"), format!("client_assertion=x.y.z&{kind}")),
            (none.clone(), format!("client_id=a&client_secret=b&client_assertion=x.y.z&{kind}")),
            (none.clone(), "client_assertion=x.y.z".to_owned()),
        ] {
            assert_eq!(error(&headers, &form), Some("invalid_request"), "{form}");
        }
        let read = |headers: &HeaderMap, form: &str| {
            read(headers, &Params::parse(form.as_bytes())).unwrap()
        };
        assert!(read(&none, "").is_none());
        assert!(read(&none, &format!("client_assertion=x.y.z&{kind}")).is_none());
        let secret = Presented::Secret { id: "a".to_owned(), secret: "b=&c".to_owned() };
        assert!(read(&basic("a:b=&c"), "client_id=a") == Some(secret));
    }

    proptest! {
        #[test]
        fn encoded_credentials_are_read_back(id in "\\PC{1,20}", secret in "\\PC{1,40}") {
            let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let headers = basic(&format!("{}:{}", encode(&id), encode(&secret)));
            prop_assert_eq!(basic_credentials(&headers), Some((id, secret)));
        }

        #[test]
        fn no_credentials_panic(text in "\\PC{0,60}", form in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&basic(&text), &Params::parse(&form));
            let _ = read(&HeaderMap::new(), &Params::parse(&form));
        }
    }
}
