//! How much of a channel may be on its way between an SSH gateway and the agent in a pod.
//!
//! The SSH library widens a channel's window as soon as data arrives. A channel that nobody reads
//! would so fill the connection that it shares with others. Therefore each side sends no more data
//! on a channel than the other has given it credit for. More credit comes as a channel request,
//! which unlike data may follow an EOF: from the gateway a `signal` with a name of ours (RFC 4254,
//! section 6.9), from the agent an `xon-xoff` (section 6.8), which stands for [`UNIT`] bytes.
//!
//! Each side says at the start of a connection that it does so; towards one of an earlier version,
//! which does not, the other knows no limit.

/// Credit of the agent at the start of a channel, in bytes.
pub const FIRST: u32 = 16 << 10;

/// Credit of the gateway at the start of a channel, in bytes.
pub const FIRST_UP: u32 = 512 << 10;

/// What one `xon-xoff` of an agent gives the gateway, in bytes.
pub const UNIT: u32 = 64 << 10;

/// Most that one signal gives, in bytes.
pub const MOST: u32 = 16 << 20;

/// The comment in the identification of a gateway (RFC 4253, section 4.2), and the banner of an
/// agent, that gives and takes credit.
pub const OFFER: &str = "credit";

const PREFIX: &str = "credit-";
const SUFFIX: &str = "@dormouse.dev";

/// The name of the signal that gives so many bytes.
pub fn signal(bytes: u32) -> String {
    format!("{PREFIX}{bytes}{SUFFIX}")
}

/// How many bytes a signal of that name gives; `None` for other signals, and for more than [`MOST`].
pub fn given_by(signal: &str) -> Option<u32> {
    let number = signal.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|bytes| plain && *bytes <= MOST)
}

/// Whether a client with that identification gives credit.
pub fn is_offered(identification: &[u8]) -> bool {
    let mut words = identification.split(|byte| *byte == b' ');
    words.next() == Some(b"SSH-2.0-Dormouse_Gateway") && words.next() == Some(OFFER.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_signals_and_other_clients_give_nothing() {
        for name in
            ["TERM", "credit-@dormouse.dev", "credit-+1@dormouse.dev", "credit-1", "1@dormouse.dev"]
        {
            assert_eq!(given_by(name), None, "{name}");
        }
        assert_eq!(given_by("credit-99999999999@dormouse.dev"), None);
        assert_eq!(given_by(&signal(MOST + 1)), None);
        assert!(is_offered(b"SSH-2.0-Dormouse_Gateway credit"));
        assert!(!is_offered(b"SSH-2.0-Dormouse_Gateway"));
        assert!(!is_offered(b"SSH-2.0-OpenSSH_10.0 credit"));
    }

    proptest! {
        #[test]
        fn what_is_given_is_read(bytes in 0..=MOST) {
            prop_assert_eq!(given_by(&signal(bytes)), Some(bytes));
        }
    }
}
