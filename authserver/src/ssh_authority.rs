//! Signs OpenSSH user certificates (PROTOCOL.certkeys of OpenSSH), so that people need not register
//! the key of each of their machines.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::secret::random;
use crate::ssh_key::PublicKey;

const ED25519: &str = "ssh-ed25519";

/// `type` of a certificate for people.
const USER: u32 = 1;

/// What a certificate allows, sorted as the format wants it. Everything else, such as the
/// forwarding of agents, stays off.
const EXTENSIONS: [&str; 2] = ["permit-port-forwarding", "permit-pty"];

/// The key that signs certificates.
pub struct SshAuthority {
    pair: Ed25519KeyPair,
    blob: Vec<u8>,
}

/// What is certified about a key.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    pub serial: u64,
    pub key_id: &'a str,
    /// The only name that it is good for.
    pub principal: &'a str,
    /// Seconds since the epoch; the second is the first moment at which it is over.
    pub valid_after: u64,
    pub valid_before: u64,
    /// An extension of ours: its name, with a domain in it, and its value. Others pass it over.
    pub session: Option<(&'a str, &'a str)>,
}

impl SshAuthority {
    /// From the 256 bits that are the private key (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let mut blob = Vec::new();
        put(&mut blob, ED25519.as_bytes());
        put(&mut blob, pair.public_key().as_ref());
        Some(Self { pair, blob })
    }

    /// `ssh-ed25519 <base64>`: what those have to trust who take the certificates.
    pub fn public_key(&self) -> String {
        format!("{ED25519} {}", STANDARD.encode(&self.blob))
    }

    /// The certificate as one line, as it stands in a `-cert.pub` file. None for a key whose text
    /// is damaged, which no [`PublicKey`] is.
    pub fn certify(&self, key: &PublicKey, statement: Statement<'_>) -> Option<String> {
        let (algorithm, encoded) = key.text().split_once(' ')?;
        let key = STANDARD.decode(encoded).ok()?;
        // The fields after the name are the same in a key and in its certificate.
        let fields = key.get(algorithm.len().checked_add(4)?..)?;
        let (base, domain) = algorithm.split_once('@').unwrap_or((algorithm, "openssh.com"));
        let name = format!("{base}-cert-v01@{domain}");

        let mut principals = Vec::new();
        put(&mut principals, statement.principal.as_bytes());
        let mut extensions = Vec::new();
        for extension in EXTENSIONS {
            put(&mut extensions, extension.as_bytes());
            put(&mut extensions, &[]);
        }
        if let Some((name, value)) = statement.session {
            put(&mut extensions, name.as_bytes());
            // A value is a string within the string.
            let mut data = Vec::new();
            put(&mut data, value.as_bytes());
            put(&mut extensions, &data);
        }

        let mut blob = Vec::new();
        put(&mut blob, name.as_bytes());
        put(&mut blob, &random());
        blob.extend_from_slice(fields);
        blob.extend_from_slice(&statement.serial.to_be_bytes());
        blob.extend_from_slice(&USER.to_be_bytes());
        put(&mut blob, statement.key_id.as_bytes());
        put(&mut blob, &principals);
        blob.extend_from_slice(&statement.valid_after.to_be_bytes());
        blob.extend_from_slice(&statement.valid_before.to_be_bytes());
        put(&mut blob, &[]);
        put(&mut blob, &extensions);
        put(&mut blob, &[]);
        put(&mut blob, &self.blob);
        let mut signature = Vec::new();
        put(&mut signature, ED25519.as_bytes());
        put(&mut signature, self.pair.sign(&blob).as_ref());
        put(&mut blob, &signature);
        Some(format!("{name} {}", STANDARD.encode(blob)))
    }
}

/// A string with its length in front (RFC 4251, section 5).
fn put(blob: &mut Vec<u8>, field: &[u8]) {
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    blob.extend_from_slice(&length.to_be_bytes());
    blob.extend_from_slice(field);
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    /// What OpenSSH reads of a certificate for a key of that type. None without OpenSSH.
    fn read_by_openssh(kind: &str, bits: &str) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-b", bits, "-N", "", "-f"])
            .arg(&file)
            .output();
        let Ok(made) = made else {
            println!("skipped: ssh-keygen is not installed (install openssh-client)");
            return None;
        };
        assert!(made.status.success(), "{made:?}");
        let public = fs::read_to_string(file.with_extension("pub")).unwrap();
        let authority = SshAuthority::from_seed(&[7; 32]).unwrap();
        let statement = Statement {
            serial: 42,
            key_id: "alice/some-token",
            principal: "alice",
            valid_after: 1_800_000_000,
            valid_before: 1_800_028_800,
            session: Some(("session@auth.example.com", "sid-1")),
        };
        let key = PublicKey::parse(&public).unwrap();
        let certificate = authority.certify(&key, statement).unwrap();
        let file = folder.path().join("key-cert.pub");
        fs::write(&file, certificate).unwrap();
        let read = Command::new("ssh-keygen")
            .env("TZ", "UTC")
            .arg("-L")
            .arg("-f")
            .arg(&file)
            .output()
            .unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        // The authority's fingerprint, as OpenSSH computes it.
        let file = folder.path().join("authority.pub");
        fs::write(&file, authority.public_key()).unwrap();
        let shown = Command::new("ssh-keygen").arg("-l").arg("-f").arg(&file).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let text = String::from_utf8(read.stdout).unwrap();
        assert!(text.contains(shown.split(' ').nth(1).unwrap()), "{text} {shown}");
        Some(text)
    }

    #[test]
    fn openssh_reads_certificates_for_every_type_of_key() {
        for (kind, bits, name) in [
            ("ed25519", "256", "ssh-ed25519-cert-v01@openssh.com"),
            ("ecdsa", "256", "ecdsa-sha2-nistp256-cert-v01@openssh.com"),
            ("ecdsa", "521", "ecdsa-sha2-nistp521-cert-v01@openssh.com"),
            ("rsa", "2048", "ssh-rsa-cert-v01@openssh.com"),
        ] {
            let Some(text) = read_by_openssh(kind, bits) else { return };
            for part in [
                &format!("Type: {name} user certificate"),
                "Key ID: \"alice/some-token\"",
                "Serial: 42",
                "Valid: from 2027-01-15T08:00:00 to 2027-01-15T16:00:00",
                "Principals: \n                alice\n",
                "Critical Options: (none)",
                "Extensions: \n                permit-port-forwarding\n                permit-pty\n",
                "session@auth.example.com",
            ] {
                assert!(text.contains(part), "{part:?} is not in {text}");
            }
        }
    }

    #[test]
    fn security_keys_have_names_of_their_own() {
        let mut blob = Vec::new();
        put(&mut blob, b"sk-ssh-ed25519@openssh.com");
        put(&mut blob, &[9; 32]);
        put(&mut blob, b"ssh:");
        let text = format!("sk-ssh-ed25519@openssh.com {}", STANDARD.encode(blob));
        let key = PublicKey::parse(&text).unwrap();
        let statement = Statement {
            serial: 1,
            key_id: "k",
            principal: "alice",
            valid_after: 0,
            valid_before: 1,
            session: None,
        };
        let authority = SshAuthority::from_seed(&[7; 32]).unwrap();
        let certificate = authority.certify(&key, statement).unwrap();
        assert!(certificate.starts_with("sk-ssh-ed25519-cert-v01@openssh.com AAAA"));
    }
}
