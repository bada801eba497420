//! OpenSSH user certificates of the auth server's authority. What a certificate says about a person
//! is their name alone; who that is and which groups they are in comes from the list.

use std::collections::HashMap;

use domain::{
    identity::{Credential, CredentialKind, Identity},
    name::UserName,
};
use jiff::Timestamp;
use russh::keys::{
    HashAlg, PublicKey,
    ssh_key::{Certificate, Fingerprint, certificate::CertType},
};
use serde::Deserialize;

/// The extension in which our authority notes the sign-in session; its host follows.
const SESSION: &str = "session@";

/// Somebody whom a certificate may name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Person {
    subject: String,
    user: UserName,
    #[serde(default)]
    email: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("it is not a certificate for people")]
    NotUser,
    #[error("it was not signed by the authority of this place, or is not valid now")]
    Invalid,
    #[error("it has critical options, and none is known here")]
    CriticalOptions,
    #[error("it does not name exactly one person")]
    Principals,
    #[error("nobody here has the name it is for, or may sign in by it")]
    Unknown,
}

/// Whom certificates are believed about, and whose.
#[derive(Debug, Default)]
pub struct Certified {
    authorities: Vec<Fingerprint>,
    people: HashMap<UserName, Person>,
}

impl Certified {
    /// Keys and people that make no sense are passed over; a name that two people have is nobody's.
    pub fn new(authorities: &[String], people: Vec<Person>) -> Self {
        let authorities = authorities.iter().filter_map(|line| {
            let key = PublicKey::from_openssh(line).ok()?;
            Some(key.fingerprint(HashAlg::Sha256))
        });
        let mut by_name: HashMap<UserName, Option<Person>> = HashMap::new();
        for person in people {
            by_name
                .entry(person.user.clone())
                .and_modify(|other| *other = None)
                .or_insert(Some(person));
        }
        let people = by_name.into_iter().filter_map(|(name, person)| Some((name, person?)));
        Self { authorities: authorities.collect(), people: people.collect() }
    }

    /// False where no certificate can be good, so that clients need not try.
    pub fn is_possible(&self) -> bool {
        !self.authorities.is_empty()
    }

    /// Whether this authority's certificates are believed.
    pub fn trusts(&self, authority: &Fingerprint) -> bool {
        self.authorities.contains(authority)
    }

    /// Whose certificate it is, and of which authority. Possession of its key must have been proven.
    /// The library has looked at the dates and whether it agrees with itself, whoever signed it, and at
    /// nothing else.
    pub fn identify(
        &self,
        certificate: &Certificate,
        now: Timestamp,
    ) -> Result<(Identity, Fingerprint), CertificateError> {
        if certificate.cert_type() != CertType::User {
            return Err(CertificateError::NotUser);
        }
        let seconds = u64::try_from(now.as_second()).map_err(|_| CertificateError::Invalid)?;
        certificate
            .validate_at(seconds, &self.authorities)
            .map_err(|_| CertificateError::Invalid)?;
        // An option that is not understood must not be passed over (PROTOCOL.certkeys). Our
        // authority writes none.
        if certificate.critical_options().iter().next().is_some() {
            return Err(CertificateError::CriticalOptions);
        }
        // Without a principal it would be good for everybody.
        let [name] = certificate.valid_principals() else {
            return Err(CertificateError::Principals);
        };
        let person = self.people.get(name.as_str()).ok_or(CertificateError::Unknown)?;
        let session = certificate
            .extensions()
            .iter()
            .find_map(|(name, value)| name.starts_with(SESSION).then(|| string(value)).flatten());
        let until = i64::try_from(certificate.valid_before()).ok();
        let until = until.and_then(|until| Timestamp::from_second(until).ok());
        let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
        let identity = Identity {
            subject: person.subject.clone(),
            user: person.user.clone(),
            email: person.email.clone(),
            groups: person.groups.clone(),
            credential: Credential {
                kind: CredentialKind::SshCertificate,
                // The token that it was made with, as the authority writes it: `user/jti`.
                id: certificate.key_id().rsplit('/').next().unwrap_or_default().to_owned(),
                session,
                expires_at: until.unwrap_or(Timestamp::MAX),
                scopes: Vec::new(),
                workload: None,
            },
        };
        Ok((identity, authority))
    }

    /// Is the person still there, and in all the groups of before?
    pub fn still_names(&self, identity: &Identity) -> bool {
        self.people.get(&identity.user).is_some_and(|person| {
            person.subject == identity.subject
                && identity.groups.iter().all(|group| person.groups.contains(group))
        })
    }
}

/// An extension's value: a string within the string. The library leaves the inner one's length to
/// those who know the extension, or takes it off.
fn string(value: &str) -> Option<String> {
    let text = match value.as_bytes().split_first_chunk::<4>() {
        Some((length, rest)) if u32::from_be_bytes(*length) as usize == rest.len() => {
            value.get(4..)?
        }
        _ => value,
    };
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| text.to_owned())
}
