//! Clients: applications that sign people in here (RFC 6749, section 2).

mod uri;

use runtime::secret::SecretError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::uri::is_resource;
use self::uri::{is_key_set_uri, is_redirect_uri, is_same_redirect};
use crate::{
    config::{ClientConfig, Config},
    issuer::GateHosts,
    jws::{JwkSet, JwkSetError},
    scope,
    secret::{self, Secret},
};

/// Shortest client secret, in bytes: it is kept as a plain digest, so it has to be long.
const SECRET_MIN: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    /// The gateways together: codes go to any workload's host.
    Gate,
    /// Keeps no secret.
    Public,
    Confidential,
}

impl ClientKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Public => "public",
            Self::Confidential => "confidential",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Gate, Self::Public, Self::Confidential].into_iter().find(|k| k.as_str() == text)
    }
}

/// How a client may come by tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrantType {
    AuthorizationCode,
    RefreshToken,
    /// For devices without a browser (RFC 8628).
    DeviceCode,
    /// Fewer scopes or another audience for a token that the client has (RFC 8693).
    TokenExchange,
}

/// What a client is beyond its secret and its addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    /// What people see instead of the id.
    pub name: Option<String>,
    /// The text of a JSON Web Key Set: the client authenticates by assertions alone.
    pub keys: Option<String>,
    /// Where the key set is instead.
    pub jwks_uri: Option<String>,
    pub grant_types: Vec<GrantType>,
    /// Audiences that it may ask for (RFC 8707).
    pub resources: Vec<String>,
    /// People are asked before it gets anything.
    pub third_party: bool,
    /// Only pushed requests are accepted (RFC 9126, section 4).
    pub pushed_only: bool,
    /// Where it wants to be told that a session is over.
    pub back_channel_logout_uri: Option<String>,
}

impl Profile {
    /// True when the client authenticates by assertions.
    pub fn has_keys(&self) -> bool {
        self.keys.is_some() || self.jwks_uri.is_some()
    }
}

#[derive(Debug, Clone)]
pub struct Client {
    pub id: String,
    pub kind: ClientKind,
    /// SHA-256 of the secret; none for public clients, and nothing, which no digest is, for those
    /// that authenticate by keys.
    pub secret_digest: Option<Vec<u8>>,
    pub redirect_uris: Vec<String>,
    pub post_logout_uris: Vec<String>,
    pub scopes: Vec<String>,
    pub profile: Profile,
}

/// How a client proves who it is.
enum Proof {
    None,
    /// The digest of its secret.
    Secret(Vec<u8>),
    /// The text of its key set.
    Keys(String),
    /// The address of its key set.
    KeysAt(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("client `{0}`: {1}")]
    Secret(String, SecretError),
    #[error("client `{0}`: the secret must have {SECRET_MIN} characters or more")]
    ShortSecret(String),
    #[error("client `{0}` needs one of `secret_file`, `jwks_file`, `jwks_uri` and `public = true`")]
    NoSecret(String),
    #[error(
        "client `{0}`: jwks_uri must use https, or http on loopback (private addresses are fetched only with `private_key_sets`)"
    )]
    KeySetUri(String),
    #[error("client `{0}`: cannot read its key set: {1}")]
    KeyFile(String, std::io::Error),
    #[error("client `{0}`: its key set is of no use: {1}")]
    Keys(String, JwkSetError),
    #[error("client `{0}`: `{1}` is no resource; use an absolute URI without #")]
    Resource(String, String),
    #[error("client `{0}`: the back-channel logout URI must use https, or http on loopback")]
    LogoutUri(String),
    #[error("client `{0}`: authorization_code needs a redirect URI, and a redirect URI needs it")]
    NoRedirectUri(String),
    #[error("client id `{0}` is used twice, or is not 1 to 128 plain characters without spaces")]
    Id(String),
    #[error("client `{0}`: `{1}` is no redirect URI; use https, or http on loopback, without #")]
    Uri(String, String),
    #[error("client `{0}`: there is no scope `{1}`")]
    Scope(String, String),
}

impl Client {
    /// The gate and the clients of the settings, with their secrets read.
    pub fn from_config(config: &Config) -> Result<Vec<Self>, ClientError> {
        let gate = config.gate_client_id.clone();
        let mut clients = vec![Self {
            secret_digest: Some(read_secret(&gate, &config.client_secret_file)?),
            id: gate,
            kind: ClientKind::Gate,
            redirect_uris: Vec::new(),
            post_logout_uris: Vec::new(),
            scopes: scope::KNOWN.map(str::to_owned).to_vec(),
            profile: Profile {
                grant_types: vec![
                    GrantType::AuthorizationCode,
                    GrantType::RefreshToken,
                    GrantType::TokenExchange,
                ],
                ..Profile::default()
            },
        }];
        for client in &config.clients {
            if clients.iter().any(|other| other.id == client.id) {
                return Err(ClientError::Id(client.id.clone()));
            }
            clients.push(Self::of(client)?);
        }
        Ok(clients)
    }

    /// A client that is not in the settings. It is given a secret unless it is public, has keys, or
    /// brings a secret of its own; the secret is returned, and nobody can see it again.
    pub fn register(config: &ClientConfig) -> Result<(Self, Option<Secret>), ClientError> {
        let own = config.secret_file.is_some() || config.jwks_file.is_some();
        if own || config.public || config.jwks_uri.is_some() {
            return Ok((Self::of(config)?, None));
        }
        let secret = Secret::generate();
        let client = Self::with_proof(config, Proof::Secret(secret.digest()))?;
        Ok((client, Some(secret)))
    }

    fn of(config: &ClientConfig) -> Result<Self, ClientError> {
        let id = &config.id;
        let (secret, keys, uri) = (&config.secret_file, &config.jwks_file, &config.jwks_uri);
        let proof = match (secret, keys, uri, config.public) {
            (Some(file), None, None, false) => Proof::Secret(read_secret(id, file)?),
            (None, Some(file), None, false) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| ClientError::KeyFile(id.clone(), error))?;
                JwkSet::from_json(&text).map_err(|error| ClientError::Keys(id.clone(), error))?;
                Proof::Keys(text)
            }
            (None, None, Some(uri), false) if is_key_set_uri(uri) => Proof::KeysAt(uri.clone()),
            (None, None, Some(_), false) => return Err(ClientError::KeySetUri(id.clone())),
            (None, None, None, true) => Proof::None,
            _ => return Err(ClientError::NoSecret(id.clone())),
        };
        Self::with_proof(config, proof)
    }

    fn with_proof(config: &ClientConfig, proof: Proof) -> Result<Self, ClientError> {
        let id = config.id.clone();
        let is_plain =
            (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_plain {
            return Err(ClientError::Id(id));
        }
        let (mut keys, mut jwks_uri) = (None, None);
        let (kind, secret_digest) = match proof {
            Proof::None => (ClientKind::Public, None),
            Proof::Secret(digest) => (ClientKind::Confidential, Some(digest)),
            Proof::Keys(text) => {
                keys = Some(text);
                (ClientKind::Confidential, Some(Vec::new()))
            }
            Proof::KeysAt(uri) => {
                jwks_uri = Some(uri);
                (ClientKind::Confidential, Some(Vec::new()))
            }
        };
        let uris = config.redirect_uris.iter().chain(&config.post_logout_redirect_uris);
        for uri in uris {
            if !is_redirect_uri(uri) {
                return Err(ClientError::Uri(id, uri.clone()));
            }
        }
        if let Some(scope) = config.scopes.iter().find(|s| !scope::KNOWN.contains(&s.as_str())) {
            return Err(ClientError::Scope(id, scope.clone()));
        }
        if let Some(resource) = config.resources.iter().find(|resource| !is_resource(resource)) {
            return Err(ClientError::Resource(id, resource.clone()));
        }
        let logout_uri = config.back_channel_logout_uri.as_deref();
        if logout_uri.is_some_and(|uri| !(is_redirect_uri(uri) && uri.starts_with("http"))) {
            return Err(ClientError::LogoutUri(id));
        }
        let by_code = config.grant_types.contains(&GrantType::AuthorizationCode);
        if by_code == config.redirect_uris.is_empty() {
            return Err(ClientError::NoRedirectUri(id));
        }
        let profile = Profile {
            name: config.name.clone(),
            keys,
            jwks_uri,
            grant_types: config.grant_types.clone(),
            resources: config.resources.clone(),
            third_party: config.third_party,
            pushed_only: config.pushed_requests_only,
            back_channel_logout_uri: config.back_channel_logout_uri.clone(),
        };
        Ok(Self {
            id,
            kind,
            secret_digest,
            redirect_uris: config.redirect_uris.clone(),
            post_logout_uris: config.post_logout_redirect_uris.clone(),
            scopes: config.scopes.clone(),
            profile,
        })
    }

    pub fn may_use(&self, grant_type: GrantType) -> bool {
        self.profile.grant_types.contains(&grant_type)
    }

    /// What people see.
    pub fn name(&self) -> &str {
        self.profile.name.as_deref().unwrap_or(&self.id)
    }

    /// Compared character by character (RFC 9700, section 2.1), but for the port on loopback.
    pub fn may_redirect_to(&self, uri: &str, gate: &GateHosts) -> bool {
        match self.kind {
            ClientKind::Gate => gate.is_callback(uri),
            ClientKind::Public | ClientKind::Confidential => {
                self.redirect_uris.iter().any(|known| is_same_redirect(known, uri))
            }
        }
    }

    pub fn may_return_to(&self, uri: &str, gate: &GateHosts) -> bool {
        match self.kind {
            ClientKind::Gate => gate.is_signed_out_page(uri),
            ClientKind::Public | ClientKind::Confidential => {
                self.post_logout_uris.iter().any(|known| known == uri)
            }
        }
    }

    /// What is left of a grant: of its scopes those that the client may still have.
    pub fn kept_scope(&self, granted: &str) -> String {
        scope::allowed(granted, |scope| self.scopes.iter().any(|own| own == scope)).join(" ")
    }

    /// The same for a grant's audiences. None when it had some of its own and none is left: then it is
    /// for nobody, and not for the usual one.
    pub fn kept_resources(&self, granted: &[String]) -> Option<Vec<String>> {
        let own = |one: &&String| self.profile.resources.contains(one);
        let kept: Vec<String> = granted.iter().filter(own).cloned().collect();
        (granted.is_empty() || !kept.is_empty()).then_some(kept)
    }

    /// The scopes it gets of those it asks for. The gate is part of Dormouse, so what people do
    /// through it with their own account is theirs to do, asked for or not.
    pub fn granted_scope(&self, requested: &str) -> String {
        let mut scopes =
            scope::allowed(requested, |scope| self.scopes.iter().any(|own| own == scope));
        if self.kind == ClientKind::Gate {
            for own in [scope::ACCOUNT, "workload:use", "workload:manage", "usage:read"] {
                if !scopes.contains(&own) {
                    scopes.push(own);
                }
            }
        }
        scopes.join(" ")
    }

    /// The resources that it asks for, each once; none if it may not ask for one of them.
    pub fn granted_resources<'a>(
        &self,
        requested: impl Iterator<Item = &'a str>,
    ) -> Option<Vec<String>> {
        let mut resources = Vec::new();
        for resource in requested {
            if !self.profile.resources.iter().any(|own| own == resource) {
                return None;
            }
            if !resources.iter().any(|known| known == resource) {
                resources.push(resource.to_owned());
            }
        }
        Some(resources)
    }

    pub fn has_secret(&self, presented: &str) -> bool {
        self.secret_digest
            .as_deref()
            .filter(|_| !self.profile.has_keys())
            .is_some_and(|digest| secret::same(digest, &secret::digest(presented)))
    }
}

fn read_secret(id: &str, file: &std::path::Path) -> Result<Vec<u8>, ClientError> {
    let text =
        runtime::secret::read(file).map_err(|error| ClientError::Secret(id.to_owned(), error))?;
    if text.len() < SECRET_MIN {
        return Err(ClientError::ShortSecret(id.to_owned()));
    }
    Ok(secret::digest(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(kind: ClientKind, uris: &[&str]) -> Client {
        Client {
            id: "c".to_owned(),
            kind,
            secret_digest: Some(secret::digest("s")),
            redirect_uris: uris.iter().map(|&uri| uri.to_owned()).collect(),
            post_logout_uris: Vec::new(),
            scopes: vec!["openid".to_owned()],
            profile: Profile::default(),
        }
    }

    #[test]
    fn attack_13_registered_uris_are_compared_exactly() {
        let gate = GateHosts::new(&"https://auth.localhost".parse().unwrap(), "localhost").unwrap();
        let client = client(ClientKind::Confidential, &["https://app.example/cb"]);
        assert!(client.may_redirect_to("https://app.example/cb", &gate));
        for bad in [
            "https://app.example/cb/",
            "https://app.example/cb?x",
            "https://app.example/cb#x",
            "https://app.example:443/cb",
            "https://APP.example/cb",
            "https://u@app.example/cb",
            "https://sub.app.example/cb",
            "https://lab.localhost/.dormouse/callback",
            "",
        ] {
            assert!(!client.may_redirect_to(bad, &gate), "{bad}");
        }
    }

    #[test]
    fn scopes_and_secrets() {
        assert_eq!(client(ClientKind::Public, &[]).granted_scope("openid account"), "openid");
        assert_eq!(
            client(ClientKind::Gate, &[]).granted_scope("openid x"),
            "openid account workload:use workload:manage usage:read"
        );
        let client = client(ClientKind::Confidential, &[]);
        assert!(client.has_secret("s") && !client.has_secret("") && !client.has_secret("S"));
        let by_keys = Profile { keys: Some(String::new()), ..Profile::default() };
        let by_keys =
            Client { secret_digest: Some(Vec::new()), profile: by_keys, ..client.clone() };
        assert!(!by_keys.has_secret("") && !by_keys.has_secret("s"));
        let public = Client { secret_digest: None, ..client };
        assert!(!public.has_secret("") && !public.has_secret("s"));
    }
}
