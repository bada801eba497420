//! How many connections there may be, in all and from one address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

/// Counts connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Limits {
    all_max: usize,
    per_address_max: usize,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    /// `None` for one that brings many clients.
    address: Option<IpAddr>,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    All,
    Address,
}

impl Full {
    pub fn reason(self) -> &'static str {
        match self {
            Self::All => "limit",
            Self::Address => "address-limit",
        }
    }
}

impl Limits {
    pub fn new(all_max: usize, per_address_max: usize) -> Self {
        Self { all_max, per_address_max, counts: Arc::default() }
    }

    pub fn take(&self, address: IpAddr) -> Result<Permit, Full> {
        let address = share(address);
        let mut counts = self.counts.lock();
        if counts.all >= self.all_max {
            return Err(Full::All);
        }
        // Beyond its first connection no address gets more than is left for all others: the next
        // greedy one takes half of the rest, and there is always room for one that has none.
        let most = self.per_address_max.min(self.all_max.saturating_sub(counts.all));
        let mine = counts.by_address.entry(address).or_default();
        if *mine > 0 && *mine >= most || *mine >= self.per_address_max {
            return Err(Full::Address);
        }
        *mine += 1;
        counts.all += 1;
        Ok(Permit { address: Some(address), counts: self.counts.clone() })
    }

    /// A place that is counted in all only.
    pub fn take_for_many(&self) -> Result<Permit, Full> {
        let mut counts = self.counts.lock();
        if counts.all >= self.all_max {
            return Err(Full::All);
        }
        counts.all += 1;
        Ok(Permit { address: None, counts: self.counts.clone() })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.all = counts.all.saturating_sub(1);
        let Some(address) = &self.address else { return };
        if let Some(mine) = counts.by_address.get_mut(address) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                counts.by_address.remove(address);
            }
        }
    }
}

/// One customer holds a whole IPv6 /64, and an IPv4 address may come mapped.
pub fn share(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = v6.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_11_idle_connections_of_a_few_addresses_leave_room_for_everybody_else() {
        let limits = Limits::new(1000, 400);
        let mut held = Vec::new();
        for greedy in 0..9u8 {
            let address = IpAddr::from([192, 0, 2, greedy]);
            while let Ok(permit) = limits.take(address) {
                held.push(permit);
            }
        }
        assert!(held.len() < 1000, "{} of 1000 are taken", held.len());
        let others = (0..50u8).map(|other| limits.take(IpAddr::from([198, 51, 100, other])));
        let others: Vec<_> = others.collect();
        let served = others.iter().filter(|other| other.is_ok()).count();
        assert!(served > 0 && others[0].is_ok(), "{served} of 50");
    }

    #[test]
    fn attack_11_one_address_leaves_room_for_others() {
        let limits = Limits::new(10, 3);
        let greedy = |n| IpAddr::V6(format!("2001:db8::{n}").parse().unwrap());
        let held: Vec<_> = (1..=3).map(|n| limits.take(greedy(n)).unwrap()).collect();
        assert_eq!(limits.take(greedy(4)).unwrap_err(), Full::Address);
        let other = limits.take("192.0.2.1".parse().unwrap()).unwrap();
        let mapped = limits.take("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        drop(held);
        assert!(limits.take(greedy(4)).is_ok());
        drop((other, mapped));
        assert_eq!(limits.counts.lock().all, 0);
        assert!(limits.counts.lock().by_address.is_empty());
    }
}
