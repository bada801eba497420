//! Whom to believe about a client's address: load balancers in front of us, and nobody else.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::gate::head::Head;

/// Networks from which `X-Forwarded-For` is believed. None by default.
#[derive(Debug, Clone, Default)]
pub struct TrustedHops(Vec<IpNet>);

impl TrustedHops {
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Where a request comes from: the peer itself, or, if that is trusted, the rightmost address of
    /// `X-Forwarded-For` that is not. What stands left of that anybody may have written, so a
    /// malformed entry ends the search at the hop that passed it on.
    pub fn client(&self, peer: IpAddr, head: &Head<'_>) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return client;
        }
        let mut values: Vec<_> = head.values("x-forwarded-for").collect();
        while let Some(value) = values.pop() {
            for entry in value.rsplit(|&byte| byte == b',') {
                let Some(address) = address(entry) else { return client };
                client = address;
                if !self.trusts(client) {
                    return client;
                }
            }
        }
        client
    }
}

/// An address, which some write with a port.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim_matches([' ', '\t']);
    let address = text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::head::Field;

    fn client(trusted: &[&str], peer: &str, lines: &[&str]) -> String {
        let hops = TrustedHops::new(trusted.iter().map(|net| net.parse().unwrap()).collect());
        let fields: Vec<_> = lines
            .iter()
            .map(|line| Field { name: "X-Forwarded-For", value: line.as_bytes() })
            .collect();
        let head = Head { method: "GET", target: "/", authority: "", fields: &fields };
        hops.client(peer.parse().unwrap(), &head).to_string()
    }

    #[test]
    fn attack_2_nobody_is_trusted_by_default() {
        assert_eq!(client(&[], "10.0.0.1", &["6.6.6.6"]), "10.0.0.1");
        assert_eq!(client(&["10.1.0.0/16"], "10.0.0.1", &["6.6.6.6"]), "10.0.0.1");
    }

    #[test]
    fn attack_2_only_what_a_trusted_hop_saw_counts() {
        let lb = ["10.0.0.0/8", "fd00::/8"];
        assert_eq!(client(&lb, "10.0.0.1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(client(&lb, "::ffff:10.0.0.1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(client(&lb, "fd00::1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(client(&lb, "10.0.0.1", &["6.6.6.6, 192.0.2.7, 10.0.0.9"]), "192.0.2.7");
        assert_eq!(client(&lb, "10.0.0.1", &["6.6.6.6", "192.0.2.7:99"]), "192.0.2.7");
        assert_eq!(client(&lb, "10.0.0.1", &["6.6.6.6, evil, 10.0.0.9"]), "10.0.0.9");
        assert_eq!(client(&lb, "10.0.0.1", &["6.6.6.6,"]), "10.0.0.1");
        assert_eq!(client(&lb, "10.0.0.1", &["10.0.0.2, 10.0.0.3"]), "10.0.0.2");
        assert_eq!(client(&lb, "10.0.0.1", &[]), "10.0.0.1");
    }
}
