//! Signatures that `ssh-keygen -Y sign` makes (PROTOCOL.sshsig of OpenSSH): by one over our own text
//! somebody shows that they have a key's private half.

use aws_lc_rs::{
    digest,
    rsa::PublicKeyComponents,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
        VerificationAlgorithm,
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::ssh_key::{Fields, PublicKey, SshKeyError};

/// What the signature is for, `-n` of the command: one that was made for something else is not taken.
pub const NAMESPACE: &str = "dormouse-ssh-key";

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
const MAGIC: &[u8] = b"SSHSIG";

/// Longest text that is looked at, in bytes: one by an RSA key of 8192 bits has about 4,500.
const TEXT_MAX: usize = 16 * 1024;

/// Bit 0 of a security key's flags: somebody touched it.
const PRESENT: u8 = 1;

/// The command that signs a text, which has no character in it that a shell knows.
pub fn command(text: &str) -> String {
    format!("echo {text} | ssh-keygen -Y sign -n {NAMESPACE} -f ~/.ssh/id_ed25519")
}

/// The key whose private half signed the text, with whatever end of line a shell puts behind it.
pub fn signer(armored: &str, text: &str) -> Result<PublicKey, SshKeyError> {
    let blob = read(armored)?;
    let signed = Signed::parse(&blob).ok_or(DAMAGED)?;
    let key = PublicKey::of_blob(signed.key)?;
    if signed.namespace != NAMESPACE.as_bytes() {
        return Err(SshKeyError(
            "that signature was made for something else; use the command as shown",
        ));
    }
    let ends = ["", "\n", "\r\n", " \r\n", " \n"];
    let is_ours = ends.iter().any(|end| {
        let message = signed.message(format!("{text}{end}").as_bytes());
        message.is_some_and(|message| verifies(signed.key, signed.signature, &message))
    });
    if is_ours {
        Ok(key)
    } else {
        Err(SshKeyError("that signature is not over the text of this page; run the command again"))
    }
}

const DAMAGED: SshKeyError =
    SshKeyError("that signature is damaged; paste all that the command prints");

fn read(armored: &str) -> Result<Vec<u8>, SshKeyError> {
    if armored.contains("PRIVATE KEY") {
        return Err(SshKeyError("that is a private key: keep it to yourself, and run the command"));
    }
    let body = armored.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let Some((body, _)) = body.filter(|_| armored.len() <= TEXT_MAX) else {
        return Err(SshKeyError(
            "run the command and paste all that it prints: it begins with -----BEGIN SSH SIGNATURE-----",
        ));
    };
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).map_err(|_| DAMAGED)
}

/// The fields of a signature.
struct Signed<'a> {
    key: &'a [u8],
    namespace: &'a [u8],
    reserved: &'a [u8],
    hash: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn parse(blob: &'a [u8]) -> Option<Self> {
        let rest = blob.strip_prefix(MAGIC)?.strip_prefix(&1_u32.to_be_bytes())?;
        let mut fields = Fields(rest);
        let signed = Self {
            key: fields.next()?,
            namespace: fields.next()?,
            reserved: fields.next()?,
            hash: fields.next()?,
            signature: fields.next()?,
        };
        fields.0.is_empty().then_some(signed)
    }

    /// What is signed of that text. None for a hash that is not accepted.
    fn message(&self, text: &[u8]) -> Option<Vec<u8>> {
        let algorithm = match self.hash {
            b"sha512" => &digest::SHA512,
            b"sha256" => &digest::SHA256,
            _ => return None,
        };
        let mut message = MAGIC.to_vec();
        let hash = digest::digest(algorithm, text);
        for field in [self.namespace, self.reserved, self.hash, hash.as_ref()] {
            message.extend_from_slice(&u32::try_from(field.len()).ok()?.to_be_bytes());
            message.extend_from_slice(field);
        }
        Some(message)
    }
}

fn verifies(key: &[u8], signature: &[u8], message: &[u8]) -> bool {
    check(key, signature, message).unwrap_or_default()
}

fn check(key: &[u8], signature: &[u8], message: &[u8]) -> Option<bool> {
    let mut key = Fields(key);
    let kind = key.next()?;
    let mut parts = Fields(signature);
    let (algorithm, value) = (parts.next()?, parts.next()?);
    let by = |algorithm: &'static dyn VerificationAlgorithm,
              key: &[u8],
              message: &[u8],
              value: &[u8]| {
        UnparsedPublicKey::new(algorithm, key).verify(message, value).is_ok()
    };
    let good = match kind {
        b"ssh-ed25519" if algorithm == kind => by(&ED25519, key.next()?, message, value),
        b"ssh-rsa" => {
            let (e, n) = (number(key.next()?), number(key.next()?));
            let parameters = match algorithm {
                b"rsa-sha2-512" => &RSA_PKCS1_2048_8192_SHA512,
                b"rsa-sha2-256" => &RSA_PKCS1_2048_8192_SHA256,
                _ => return None,
            };
            PublicKeyComponents { n, e }.verify(parameters, message, value).is_ok()
        }
        b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384" | b"ecdsa-sha2-nistp521"
            if algorithm == kind =>
        {
            let (parameters, size): (&'static dyn VerificationAlgorithm, usize) = match kind {
                b"ecdsa-sha2-nistp256" => (&ECDSA_P256_SHA256_FIXED, 32),
                b"ecdsa-sha2-nistp384" => (&ECDSA_P384_SHA384_FIXED, 48),
                _ => (&ECDSA_P521_SHA512_FIXED, 66),
            };
            let _curve = key.next()?;
            by(parameters, key.next()?, message, &fixed(value, size)?)
        }
        b"sk-ssh-ed25519@openssh.com" if algorithm == kind => {
            let point = key.next()?;
            let message = touched(key.next()?, &mut parts, message)?;
            by(&ED25519, point, &message, value)
        }
        b"sk-ecdsa-sha2-nistp256@openssh.com" if algorithm == kind => {
            let _curve = key.next()?;
            let point = key.next()?;
            let message = touched(key.next()?, &mut parts, message)?;
            by(&ECDSA_P256_SHA256_FIXED, point, &message, &fixed(value, 32)?)
        }
        _ => return None,
    };
    Some(good && parts.0.is_empty())
}

/// What a security key signs (PROTOCOL.u2f of OpenSSH): flags and counter stand behind the signature.
/// None when nobody touched it.
fn touched(application: &[u8], parts: &mut Fields<'_>, message: &[u8]) -> Option<Vec<u8>> {
    let (state, rest) = parts.0.split_at_checked(5)?;
    parts.0 = rest;
    let present = state.first()? & PRESENT != 0;
    let hash = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
    let signed = [hash(application).as_ref(), state, hash(message).as_ref()].concat();
    present.then_some(signed)
}

/// The digits of a positive `mpint` (RFC 4251, section 5).
fn number(mpint: &[u8]) -> &[u8] {
    let zeros = mpint.iter().take_while(|byte| **byte == 0).count();
    mpint.get(zeros..).unwrap_or_default()
}

/// Two numbers one behind the other, each of `size` bytes, out of two `mpint`s (RFC 5656,
/// section 3.1.2).
fn fixed(value: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut fields = Fields(value);
    let mut fixed = Vec::with_capacity(2 * size);
    for _ in 0..2 {
        let digits = number(fields.next()?);
        fixed.resize(fixed.len() + size.checked_sub(digits.len())?, 0);
        fixed.extend_from_slice(digits);
    }
    fields.0.is_empty().then_some(fixed)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        process::{Command, Stdio},
    };

    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "alice@auth.localhost/AbC-1_2";

    /// A key's public line, and OpenSSH's signature with it. None without OpenSSH.
    fn by_openssh(kind: &str, bits: &str, namespace: &str, text: &str) -> Option<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-b", bits, "-N", "", "-f"])
            .arg(&file)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut signing = Command::new("ssh-keygen")
            .args(["-Y", "sign", "-n", namespace, "-f"])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        signing.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let signed = signing.wait_with_output().unwrap();
        let public = fs::read_to_string(folder.path().join("key.pub")).unwrap();
        Some((public, String::from_utf8(signed.stdout).unwrap()))
    }

    #[test]
    fn what_openssh_signs_with_any_type_of_key_is_verified() {
        for (kind, bits) in [
            ("ed25519", "256"),
            ("ecdsa", "256"),
            ("ecdsa", "384"),
            ("ecdsa", "521"),
            ("rsa", "2048"),
        ] {
            for end in ["", "\n", "\r\n"] {
                let text = format!("{TEXT}{end}");
                let Some((public, signature)) = by_openssh(kind, bits, NAMESPACE, &text) else {
                    return;
                };
                let key = signer(&format!("\r\n {signature}"), TEXT).unwrap();
                assert_eq!(key, PublicKey::parse(&public).unwrap(), "{kind} {bits}");
                let other = signer(&signature, "mallory@auth.localhost/AbC-1_2");
                assert!(other.unwrap_err().0.contains("not over the text"), "{kind} {bits}");
            }
        }
    }

    #[test]
    fn attack_19_a_signature_for_something_else_or_with_another_key_in_it_proves_nothing() {
        let Some((_, git)) = by_openssh("ed25519", "256", "git", TEXT) else { return };
        assert!(signer(&git, TEXT).unwrap_err().0.contains("for something else"));
        let (_, one) = by_openssh("ed25519", "256", NAMESPACE, TEXT).unwrap();
        let (_, two) = by_openssh("ed25519", "256", NAMESPACE, TEXT).unwrap();
        let (one, two) = (read(&one).unwrap(), read(&two).unwrap());
        // Two's key with one's signature, and each single bit of one turned over.
        let cut = MAGIC.len() + 4 + 4 + 51;
        let swapped = [&two[..cut], &one[cut..]].concat();
        let armored = |blob: &[u8]| format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(blob));
        assert!(signer(&armored(&one), TEXT).is_ok());
        assert!(signer(&armored(&swapped), TEXT).is_err());
        for place in 0..one.len() {
            let mut bent = one.clone();
            bent[place] ^= 1;
            assert!(signer(&armored(&bent), TEXT).is_err(), "byte {place}");
        }
    }

    #[test]
    fn what_is_no_signature_is_refused_with_advice() {
        let says = |text: &str| signer(text, TEXT).unwrap_err().0;
        assert!(says("-----BEGIN OPENSSH PRIVATE KEY-----").contains("private key"));
        assert!(says("ssh-ed25519 AAAA me@home").contains("run the command"));
        assert!(says("").contains("run the command"));
        assert!(says(&format!("{BEGIN}\nU1NIU0lH\n{END}")).contains("damaged"));
        assert!(says(&format!("{BEGIN}\n!\n{END}")).contains("damaged"));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(blob in proptest::collection::vec(any::<u8>(), 0..200), tail in proptest::collection::vec(any::<u8>(), 0..120)) {
            let all = [MAGIC, &1_u32.to_be_bytes(), &tail].concat();
            for blob in [blob, all] {
                let armored = format!("{BEGIN}{}{END}", STANDARD.encode(blob));
                prop_assert!(signer(&armored, TEXT).is_err());
            }
        }

        #[test]
        fn no_key_and_signature_break_the_check(key in proptest::collection::vec(any::<u8>(), 0..90), kind in 0..7_usize, signature in proptest::collection::vec(any::<u8>(), 0..120)) {
            let kinds = ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384",
                "ecdsa-sha2-nistp521", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"];
            let kind = kinds[kind].as_bytes();
            let length = u32::try_from(kind.len()).unwrap().to_be_bytes();
            let key = [&length, kind, &key].concat();
            let signature = [&length, kind, &signature].concat();
            prop_assert!(!verifies(&key, &signature, b"x"));
        }
    }
}
