//! Which addresses the pods of a node get: a /24 of loopback addresses, which Linux routes locally.

use std::collections::HashSet;
use std::net::Ipv4Addr;

/// All pods of the cluster live in 127.77.0.0/16.
const NETWORK: [u8; 2] = [127, 77];

fn third_octet(cidr: &str) -> Option<u8> {
    let (address, length) = cidr.split_once('/')?;
    let octets = address.parse::<Ipv4Addr>().ok()?.octets();
    (length == "24" && octets[..2] == NETWORK).then_some(octets[2])
}

/// The first range that no node has, given the ranges of all nodes; `None` when all 256 are taken.
pub fn next<'a>(taken: impl Iterator<Item = &'a str>) -> Option<String> {
    let taken: HashSet<u8> = taken.filter_map(third_octet).collect();
    let free = (0..=u8::MAX).find(|octet| !taken.contains(octet))?;
    Some(format!("{}.{}.{free}.0/24", NETWORK[0], NETWORK[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_free_range_is_given() {
        assert_eq!(next(std::iter::empty()).as_deref(), Some("127.77.0.0/24"));
        let taken = ["127.77.0.0/24", "127.77.2.0/24", "10.0.1.0/24", "nonsense"];
        assert_eq!(next(taken.into_iter()).as_deref(), Some("127.77.1.0/24"));
    }

    proptest! {
        #[test]
        fn no_two_nodes_share_a_range(nodes in 0..300_usize) {
            let mut given: Vec<String> = Vec::new();
            for _ in 0..nodes {
                match next(given.iter().map(String::as_str)) {
                    Some(range) => {
                        prop_assert!(!given.contains(&range));
                        given.push(range);
                    }
                    None => prop_assert_eq!(given.len(), 256),
                }
            }
        }
    }
}
