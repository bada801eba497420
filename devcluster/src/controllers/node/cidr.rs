//! Which addresses the pods of a node get: a /24 of loopback addresses, which Linux routes locally.

use std::collections::HashSet;
use std::net::Ipv4Addr;

/// All pods live in 127.64.0.0/10: 64 times 256 ranges.
const SECOND: u8 = 64;
const RANGES: u16 = 64 * 256;

fn index(cidr: &str) -> Option<u16> {
    let (address, length) = cidr.split_once('/')?;
    let octets = address.parse::<Ipv4Addr>().ok()?.octets();
    let ours = length == "24" && octets[0] == 127 && (SECOND..2 * SECOND).contains(&octets[1]);
    ours.then(|| u16::from(octets[1] - SECOND) * 256 + u16::from(octets[2]))
}

/// The first range that no node has, given the ranges of all nodes; `None` when all are taken.
///
/// Loopback addresses are shared by everything on the machine, other clusters of this kind included.
/// So the search begins at a place that the node's random uid says, and two clusters do not meet.
pub fn next<'a>(uid: &str, taken: impl Iterator<Item = &'a str>) -> Option<String> {
    let taken: HashSet<u16> = taken.filter_map(index).collect();
    // FNV-1a: the place must be the same on every build and machine.
    let hash = uid
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let start = u16::try_from(hash % u32::from(RANGES)).unwrap_or_default();
    let free = (0..RANGES).map(|step| (start + step) % RANGES).find(|at| !taken.contains(at))?;
    Some(format!("127.{}.{}.0/24", u16::from(SECOND) + free / 256, free % 256))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_free_range_from_the_nodes_place_is_given() {
        let first = next("uid", std::iter::empty()).unwrap();
        assert!(index(&first).is_some());
        let taken = [first.as_str(), "10.0.1.0/24", "nonsense"];
        let second = next("uid", taken.into_iter()).unwrap();
        assert_eq!(index(&second), index(&first).map(|at| (at + 1) % RANGES));
    }

    #[test]
    fn two_clusters_do_not_begin_at_one_place() {
        let one = next("0c9f6c1e-53f2-4f39-9d0b-2f4f6f1f7a01", std::iter::empty());
        let other = next("7d1d2d0c-9b1e-4a53-8a37-8a1f5e0b9c02", std::iter::empty());
        assert_ne!(one, other);
    }

    proptest! {
        #[test]
        fn no_two_nodes_share_a_range(uids in prop::collection::vec("[0-9a-f]{8}", 0..200)) {
            let mut given: Vec<String> = Vec::new();
            for uid in &uids {
                let range = next(uid, given.iter().map(String::as_str)).unwrap();
                prop_assert!(!given.contains(&range));
                given.push(range);
            }
        }
    }
}
