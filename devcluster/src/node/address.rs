//! Addresses: the node's own, and one for each pod from the node's `spec.podCIDR`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::str::FromStr;

/// The machine's primary IPv4 address: the one it would send from. No packet is sent to find out.
pub fn primary() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // TEST-NET-2 (RFC 5737): nobody's address, so routed like any other.
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

/// Whether this machine takes connections at `ip`: whether a socket can be bound to it.
pub fn is_local(ip: IpAddr) -> bool {
    TcpListener::bind((ip, 0)).is_ok()
}

/// A range of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    first: u32,
    last: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 range such as 127.77.0.0/24")]
pub struct NotACidr(String);

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let wrong = || NotACidr(text.to_owned());
        let (ip, bits) = text.split_once('/').ok_or_else(wrong)?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| wrong())?;
        let bits: u32 = bits.parse().map_err(|_| wrong())?;
        let hosts = match bits {
            0 => u32::MAX,
            1..=32 => u32::MAX.checked_shr(bits).unwrap_or(0),
            _ => return Err(wrong()),
        };
        let first = ip.to_bits() & !hosts;
        Ok(Self { first, last: first | hosts })
    }
}

impl Cidr {
    pub fn contains(self, ip: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&ip.to_bits())
    }

    /// The addresses pods may have: not the first and the last, which name the network and all of it.
    fn hosts(self) -> std::ops::Range<u32> {
        if self.last - self.first < 3 { self.first..self.last } else { self.first + 1..self.last }
    }

    /// Whether the machine takes connections at addresses of the range.
    pub fn is_local(self) -> bool {
        let hosts = self.hosts();
        !hosts.is_empty()
            && [hosts.start, hosts.end.saturating_sub(1)]
                .into_iter()
                .all(|ip| is_local(IpAddr::V4(Ipv4Addr::from_bits(ip))))
    }

    pub fn is_loopback(self) -> bool {
        Ipv4Addr::from_bits(self.first).is_loopback()
            && Ipv4Addr::from_bits(self.last).is_loopback()
    }
}

/// The first free address after `last`, around the range: one that was just given back rests a while.
fn pick(range: Cidr, used: &BTreeSet<Ipv4Addr>, last: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
    let hosts = range.hosts();
    let begin = last.map_or(hosts.start, |ip| ip.to_bits().saturating_add(1));
    let begin = if hosts.contains(&begin) { begin } else { hosts.start };
    (begin..hosts.end)
        .chain(hosts.start..begin)
        .map(Ipv4Addr::from_bits)
        .find(|ip| !used.contains(ip))
}

/// Which pod has which address, kept in a file so that pods keep theirs when the node starts again.
#[derive(Debug)]
pub struct PodAddresses {
    file: PathBuf,
    /// `None`: the range is not routed here, and every pod has the node's address.
    range: Option<Cidr>,
    node: IpAddr,
    /// Address by the pod's uid.
    given: BTreeMap<String, Ipv4Addr>,
    last: Option<Ipv4Addr>,
}

impl PodAddresses {
    pub fn open(file: PathBuf, range: Option<Cidr>, node: IpAddr) -> Self {
        let given: BTreeMap<String, Ipv4Addr> = std::fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let last = given.values().max().copied();
        Self { file, range, node, given, last }
    }

    /// The pod's address: the one it has, the one it `had`, or a new one. `None` when the range is used up.
    pub fn assign(&mut self, uid: &str, had: Option<IpAddr>) -> Option<IpAddr> {
        let Some(range) = self.range else { return Some(self.node) };
        if let Some(ip) = self.given.get(uid)
            && range.contains(*ip)
        {
            return Some(IpAddr::V4(*ip));
        }
        let used: BTreeSet<Ipv4Addr> = self.given.values().copied().collect();
        let had = match had {
            Some(IpAddr::V4(ip)) if range.contains(ip) && !used.contains(&ip) => Some(ip),
            _ => None,
        };
        let ip = had.or_else(|| pick(range, &used, self.last))?;
        self.last = Some(ip);
        self.given.insert(uid.to_owned(), ip);
        self.save();
        Some(IpAddr::V4(ip))
    }

    pub fn release(&mut self, uid: &str) {
        if self.given.remove(uid).is_some() {
            self.save();
        }
    }

    /// Forgets pods that are no more.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        let before = self.given.len();
        self.given.retain(|uid, _| is_there(uid));
        if self.given.len() != before {
            self.save();
        }
    }

    fn save(&self) {
        let write = || -> io::Result<()> {
            let fresh = self.file.with_extension("new");
            std::fs::write(&fresh, serde_json::to_vec(&self.given)?)?;
            std::fs::rename(&fresh, &self.file)
        };
        if let Err(error) = write() {
            tracing::warn!(file = %self.file.display(), %error, "pods may get other addresses after a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_parsed() {
        let range: Cidr = "127.77.3.0/24".parse().unwrap();
        assert!(
            range.contains(Ipv4Addr::new(127, 77, 3, 255))
                && !range.contains(Ipv4Addr::new(127, 77, 4, 0))
        );
        assert!(range.is_loopback() && !"10.0.0.0/8".parse::<Cidr>().unwrap().is_loopback());
        for wrong in ["", "127.0.0.1", "127.0.0.1/33", "::1/64", "a/8"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn pods_keep_their_address_across_restarts_and_never_share() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("addresses.json");
        let range = Some("127.77.0.0/29".parse().unwrap());
        let node = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut addresses = PodAddresses::open(file.clone(), range, node);
        let given: Vec<_> =
            (0..6).map(|i| addresses.assign(&format!("u{i}"), None).unwrap()).collect();
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 6);
        assert_eq!(addresses.assign("one too many", None), None);
        addresses.release("u2");
        let mut again = PodAddresses::open(file, range, node);
        assert_eq!(again.assign("u5", None), Some(given[5]));
        assert_eq!(again.assign("u6", Some(given[0])), Some(given[2]));
        again.retain(|uid| uid == "u6");
        assert_eq!(again.assign("u7", Some(given[0])), Some(given[0]));
    }

    #[test]
    fn without_a_routed_range_pods_have_the_nodes_address() {
        let node = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(PodAddresses::open("none".into(), None, node).assign("u", None), Some(node));
    }

    proptest! {
        #[test]
        fn picks_are_free_hosts_of_the_range(
            base in any::<u32>(), bits in 20u32..=32, used in prop::collection::btree_set(0u32..20, 0..20), last in any::<u32>()
        ) {
            let range: Cidr = format!("{}/{bits}", Ipv4Addr::from_bits(base)).parse().unwrap();
            let used: BTreeSet<_> = used.iter().map(|o| Ipv4Addr::from_bits(range.first.wrapping_add(*o))).collect();
            match pick(range, &used, Some(Ipv4Addr::from_bits(last))) {
                Some(ip) => prop_assert!(range.contains(ip) && !used.contains(&ip)),
                None => prop_assert!(range.hosts().all(|ip| used.contains(&Ipv4Addr::from_bits(ip)))),
            }
        }
    }
}
