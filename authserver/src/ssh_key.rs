//! SSH public keys as people paste them: `ssh-ed25519 AAAA... comment` (RFC 4253, section 6.6).

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use sha2::{Digest, Sha256};

/// Longest line that is looked at: an RSA key of 16384 bits has about 2,800 bytes.
const LINE_MAX: usize = 8 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SshKeyError(pub &'static str);

/// A public key without its comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    text: String,
    fingerprint: String,
}

impl PublicKey {
    pub fn parse(line: &str) -> Result<Self, SshKeyError> {
        let line = line.trim();
        if line.contains("PRIVATE KEY") {
            return Err(SshKeyError(
                "that is a private key: keep it to yourself, and paste the .pub file",
            ));
        }
        if line.len() > LINE_MAX || line.contains(['\n', '\r']) {
            return Err(SshKeyError("paste one public key, on one line"));
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(algorithm), Some(encoded)) = (words.next(), words.next()) else {
            return Err(SshKeyError(
                "paste a public key such as the content of ~/.ssh/id_ed25519.pub",
            ));
        };
        let malformed = SshKeyError("that public key is damaged; copy the whole line");
        let blob = STANDARD.decode(encoded).map_err(|_| malformed.clone())?;
        let mut fields = Fields(&blob);
        if fields.next() != Some(algorithm.as_bytes()) {
            return Err(malformed);
        }
        check(algorithm, &mut fields)?;
        if !fields.0.is_empty() {
            return Err(malformed);
        }
        let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&blob)));
        Ok(Self { text: format!("{algorithm} {encoded}"), fingerprint })
    }

    /// From the bytes that are base64 in the line.
    pub fn of_blob(blob: &[u8]) -> Result<Self, SshKeyError> {
        let algorithm = Fields(blob).next().and_then(|name| std::str::from_utf8(name).ok());
        Self::parse(&format!("{} {}", algorithm.unwrap_or("-"), STANDARD.encode(blob)))
    }

    /// `<algorithm> <base64>`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// `SHA256:<base64>`, as `ssh-keygen -l` shows it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn check(algorithm: &str, fields: &mut Fields<'_>) -> Result<(), SshKeyError> {
    let malformed = SshKeyError("that public key is damaged; copy the whole line");
    let point = |curve: &str, size: usize, fields: &mut Fields<'_>| {
        let named = fields.next() == Some(curve.as_bytes());
        // Uncompressed (SEC 1, section 2.3.3), the only form that OpenSSH writes.
        let point = fields.next().is_some_and(|q| q.len() == 2 * size + 1 && q.first() == Some(&4));
        named && point
    };
    let application = |fields: &mut Fields<'_>| fields.next().is_some_and(|text| !text.is_empty());
    let whole = match algorithm {
        "ssh-ed25519" => fields.next().is_some_and(|key| key.len() == 32),
        "sk-ssh-ed25519@openssh.com" => {
            fields.next().is_some_and(|key| key.len() == 32) && application(fields)
        }
        "ecdsa-sha2-nistp256" => point("nistp256", 32, fields),
        "ecdsa-sha2-nistp384" => point("nistp384", 48, fields),
        "ecdsa-sha2-nistp521" => point("nistp521", 66, fields),
        "sk-ecdsa-sha2-nistp256@openssh.com" => {
            point("nistp256", 32, fields) && application(fields)
        }
        "ssh-rsa" => {
            let exponent = fields.next().is_some_and(|e| e.iter().any(|b| *b != 0));
            let bits = fields.next().map(bits).unwrap_or_default();
            if (1..2048).contains(&bits) || bits > 16384 {
                return Err(SshKeyError(
                    "RSA keys need 2048 to 16384 bits; make a new key with `ssh-keygen -t ed25519`",
                ));
            }
            exponent && bits > 0
        }
        _ => {
            return Err(SshKeyError(
                "that type of key is not accepted; make one with `ssh-keygen -t ed25519`",
            ));
        }
    };
    if whole { Ok(()) } else { Err(malformed) }
}

/// Bits of a positive `mpint` (RFC 4251, section 5).
fn bits(mpint: &[u8]) -> usize {
    let digits = mpint.strip_prefix(&[0]).unwrap_or(mpint);
    match digits.first() {
        Some(first) if *first != 0 => digits.len() * 8 - first.leading_zeros() as usize,
        _ => 0,
    }
}

/// Fields with a length of four bytes in front.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (field, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        self.0 = rest;
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz5fOfbrU3VwNxqTV9lT9KTXMAO8LLlqEKcn4";

    fn encode(fields: &[&[u8]]) -> String {
        let mut blob = Vec::new();
        for field in fields {
            blob.extend((field.len() as u32).to_be_bytes());
            blob.extend(*field);
        }
        STANDARD.encode(blob)
    }

    #[test]
    fn a_key_loses_its_comment() {
        let key = PublicKey::parse(&format!("  {ED25519} me@home\n")).unwrap();
        assert_eq!(key.text(), ED25519);
        assert!(key.fingerprint().starts_with("SHA256:") && key.fingerprint().len() == 50);
    }

    #[test]
    fn what_is_no_key_is_refused_with_advice() {
        let says = |text: &str| PublicKey::parse(text).unwrap_err().0;
        assert!(says("-----BEGIN OPENSSH PRIVATE KEY-----").contains("private key"));
        assert!(says("").contains("paste a public key"));
        assert!(says(&format!("{ED25519}\n{ED25519}")).contains("one line"));
        assert!(says(&format!("command=\"x\" {ED25519}")).contains("damaged"));
        assert!(says(&ED25519.replace("ssh-ed25519", "ssh-rsa")).contains("damaged"));
        let dss = encode(&[b"ssh-dss", b"x"]);
        assert!(says(&format!("ssh-dss {dss}")).contains("not accepted"));
        let certificate = encode(&[b"ssh-ed25519-cert-v01@openssh.com", &[1; 32]]);
        let text = format!("ssh-ed25519-cert-v01@openssh.com {certificate}");
        assert!(says(&text).contains("not accepted"));
        let long = encode(&[b"ssh-ed25519", &[1; 32], b"more"]);
        assert!(says(&format!("ssh-ed25519 {long}")).contains("damaged"));
    }

    #[test]
    fn rsa_keys_have_enough_bits() {
        let rsa = |bytes: usize| {
            let mut n = vec![0x80; bytes];
            n.insert(0, 0);
            PublicKey::parse(&format!("ssh-rsa {}", encode(&[b"ssh-rsa", &[1, 0, 1], &n])))
        };
        assert!(rsa(128).unwrap_err().0.contains("2048"));
        assert!(rsa(256).is_ok() && rsa(512).is_ok());
    }

    #[test]
    fn points_have_their_curve_and_size() {
        let key = |curve: &[u8], size: usize| {
            let mut q = vec![1; size];
            q[0] = 4;
            let blob = encode(&[b"ecdsa-sha2-nistp256", curve, &q]);
            PublicKey::parse(&format!("ecdsa-sha2-nistp256 {blob}")).is_ok()
        };
        assert!(key(b"nistp256", 65));
        assert!(!key(b"nistp384", 65) && !key(b"nistp256", 64));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}", blob in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = PublicKey::parse(&text);
            let _ = PublicKey::parse(&format!("ssh-ed25519 {}", STANDARD.encode(blob)));
        }
    }
}
