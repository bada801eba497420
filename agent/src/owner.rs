//! Whose is a port of this machine? Where pods are processes of one machine, `localhost` is everybody's:
//! a port there is the workspace's own only if one of its processes listens on it.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listener {
    address: IpAddr,
    inode: u64,
}

/// Where the workspace itself answers on that port. `own` is the pod's address, which only its
/// processes are given; looks at the whole of `/proc`, so it is run on a thread beside.
pub fn find(own: IpAddr, port: u16) -> Option<SocketAddr> {
    let table = |name| fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default();
    let listeners = [listeners(&table("tcp"), port), listeners(&table("tcp6"), port)].concat();
    if listeners.is_empty() {
        return None;
    }
    let sockets = sockets_of(&family(std::os::unix::process::parent_id()));
    choose(own, &listeners, &sockets).map(|address| SocketAddr::new(address, port))
}

/// The pod's address if somebody listens there; else a loopback address or all addresses, if every
/// socket that listens at that very address is ours.
fn choose(own: IpAddr, listeners: &[Listener], ours: &HashSet<u64>) -> Option<IpAddr> {
    let at = |address: IpAddr| listeners.iter().filter(move |l| l.address == address);
    let is_ours = |address: IpAddr| {
        let mut found = at(address).peekable();
        found.peek().is_some() && found.all(|listener| ours.contains(&listener.inode))
    };
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    if at(own).next().is_some() {
        return Some(own);
    }
    if let Some(address) = loopback.into_iter().find(|address| is_ours(*address)) {
        return Some(address);
    }
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    // A socket for all addresses of either family may be the one that answers at the pod's.
    let wildcards = all.into_iter().filter(|address| at(*address).next().is_some());
    let wildcards: Vec<IpAddr> = wildcards.collect();
    (!wildcards.is_empty() && wildcards.into_iter().all(is_ours)).then_some(own)
}

/// The sockets that listen on a port, from the text of `/proc/net/tcp` or `tcp6` (`proc_net(5)`).
fn listeners(table: &str, port: u16) -> Vec<Listener> {
    const LISTEN: &str = "0A";
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, number) = fields.get(1)?.split_once(':')?;
        let here = u16::from_str_radix(number, 16).ok()? == port;
        let listens = *fields.get(3)? == LISTEN;
        let inode = fields.get(9)?.parse().ok()?;
        (here && listens).then_some(Listener { address: address_from_hex(address)?, inode })
    };
    table.lines().filter_map(line).collect()
}

/// Words of four bytes, each as this machine reads it as a number.
fn address_from_hex(text: &str) -> Option<IpAddr> {
    let word = |from: usize| {
        let word = u32::from_str_radix(text.get(from..from + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match text.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let bytes = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            let bytes: [u8; 16] = bytes.try_into().ok()?;
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// The processes below `root`: the agent's parent, which holds the container. Nobody's, if that is
/// the machine's first process.
fn family(root: u32) -> Vec<u32> {
    if root <= 1 {
        return Vec::new();
    }
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for pid in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = pid.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some(parent) = parent(&String::from_utf8_lossy(&stat)) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut next) = (Vec::new(), vec![root]);
    while let Some(pid) = next.pop() {
        found.push(pid);
        next.extend(children.remove(&pid).unwrap_or_default());
    }
    found
}

/// The name in brackets may hold anything, so the fields are counted from the last one on
/// (`proc_pid_stat(5)`).
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The numbers of all sockets that these processes have open.
fn sockets_of(processes: &[u32]) -> HashSet<u64> {
    let mut found = HashSet::new();
    for pid in processes {
        for open in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let link = fs::read_link(open.path()).unwrap_or_default();
            let inode = link.to_str().and_then(|link| {
                link.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
            });
            found.extend(inode);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 64, 0, 7));

    fn chosen(listeners: &[(&str, u64)], ours: &[u64]) -> Option<String> {
        let listeners: Vec<_> = listeners
            .iter()
            .map(|(address, inode)| Listener { address: address.parse().unwrap(), inode: *inode })
            .collect();
        choose(OWN, &listeners, &ours.iter().copied().collect()).map(|address| address.to_string())
    }

    #[test]
    fn attack_22_a_port_of_the_machine_is_not_the_workspaces() {
        for foreign in ["127.0.0.1", "::1", "0.0.0.0", "::", "127.64.0.8", "10.0.0.1"] {
            assert_eq!(chosen(&[(foreign, 1)], &[2]), None, "{foreign}");
        }
        // Two sockets share the address: either may be given the connection.
        assert_eq!(chosen(&[("127.0.0.1", 1), ("127.0.0.1", 2)], &[1]), None);
        assert_eq!(chosen(&[("0.0.0.0", 1), ("::", 2)], &[1]), None);
        // Ours, but neither at the loopback nor at the pod's address.
        assert_eq!(chosen(&[("10.0.0.1", 1)], &[1]), None);
    }

    #[test]
    fn the_workspaces_own_server_is_found_where_it_listens() {
        assert_eq!(chosen(&[("127.0.0.1", 1)], &[1]).unwrap(), "127.0.0.1");
        assert_eq!(chosen(&[("::1", 1), ("0.0.0.0", 2)], &[1]).unwrap(), "::1");
        assert_eq!(chosen(&[("0.0.0.0", 1)], &[1]).unwrap(), "127.64.0.7");
        assert_eq!(chosen(&[("127.64.0.7", 9), ("0.0.0.0", 2)], &[]).unwrap(), "127.64.0.7");
        assert_eq!(chosen(&[("127.0.0.1", 9), ("::", 1)], &[1]).unwrap(), "127.64.0.7");
        assert_eq!(chosen(&[], &[1]), None);
    }

    #[test]
    fn the_machines_tables_say_who_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
        let found = listeners(&table, port);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].address, Ipv4Addr::LOCALHOST);
        let own = std::process::id();
        assert!(family(own).contains(&own));
        assert!(sockets_of(&family(own)).contains(&found[0].inode));
        assert!(family(1).is_empty(), "the machine is nobody's family");
        let line = "   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 \
                    0A 00000000:00000000 00:00000000 00000000  1000        0 123 1";
        let v6 = listeners(line, 8080);
        assert_eq!((v6[0].address, v6[0].inode), (IpAddr::V6(Ipv6Addr::LOCALHOST), 123));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}|[ 0-9A-F:]{0,120}") {
            let _ = (listeners(&text, 80), parent(&text), address_from_hex(&text));
        }

        /// Whatever listens, a socket that is not ours is dialled at the pod's own address only.
        #[test]
        fn a_foreign_socket_is_never_chosen(
            sockets in prop::collection::vec((0usize..6, 0u64..4), 0..6), ours in prop::collection::hash_set(0u64..4, 0..4),
        ) {
            let places = ["127.0.0.1", "::1", "0.0.0.0", "::", "127.64.0.8", "192.0.2.1"];
            let listeners: Vec<_> = sockets
                .iter()
                .map(|(place, inode)| Listener { address: places[*place].parse().unwrap(), inode: *inode })
                .collect();
            if let Some(address) = choose(OWN, &listeners, &ours) {
                let meant = |l: &&Listener| l.address == address || address == OWN && l.address.is_unspecified();
                prop_assert!(listeners.iter().filter(meant).all(|l| ours.contains(&l.inode)));
            }
        }
    }
}
