//! Which address of an endpoint the next connection takes.
//!
//! Connections spread over distinct addresses, so that one that goes silent holds few calls, and an address that failed is
//! left alone for a while. It is never given up: when all have failed, the one whose rest ends first is tried.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long an address rests after its first failure; doubled with each further one.
const REST: Duration = Duration::from_secs(10);

/// The longest rest: one that has recovered is used again within this.
const REST_MAX: Duration = Duration::from_mins(3);

/// Addresses remembered at most; Apple's names were seen to have eight.
const REMEMBERED_MAX: usize = 256;

/// What a pool remembers of its endpoint's addresses.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    turn: usize,
    failed: BTreeMap<SocketAddr, Failed>,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    until: Instant,
    rest: Duration,
}

impl Addresses {
    /// The best of `found`: rested before resting, then one that fewer of `in_use` have, then in turn. `None` only where
    /// nothing was found.
    pub(super) fn choose(&self, found: &[SocketAddr], in_use: &[SocketAddr]) -> Option<SocketAddr> {
        let now = Instant::now();
        let mut memory = self.0.lock();
        memory.turn = memory.turn.wrapping_add(1);
        let turn = memory.turn;
        let rank = |(place, address): &(usize, SocketAddr)| {
            let resting = memory.failed.get(address).map(|failed| failed.until).filter(|until| *until > now);
            let used = in_use.iter().filter(|other| *other == address).count();
            (resting, used, place.wrapping_add(turn) % found.len())
        };
        found.iter().copied().enumerate().min_by_key(rank).map(|(_, address)| address)
    }

    /// Whether one of `found` has rested: there is another one to try at once.
    pub(super) fn has_rested(&self, found: &[SocketAddr]) -> bool {
        self.has_unused(found, &[])
    }

    /// Whether one of `found` that nobody uses has rested: the pool could spread better than it does.
    pub(super) fn has_unused(&self, found: &[SocketAddr], in_use: &[SocketAddr]) -> bool {
        let now = Instant::now();
        let memory = self.0.lock();
        let rested =
            |address: &SocketAddr| memory.failed.get(address).is_none_or(|failed| failed.until <= now);
        found.iter().any(|address| !in_use.contains(address) && rested(address))
    }

    /// It did not take a connection, or one to it went silent.
    pub(super) fn failed(&self, address: SocketAddr) {
        let now = Instant::now();
        let mut memory = self.0.lock();
        if memory.failed.len() >= REMEMBERED_MAX {
            memory.failed.retain(|_, failed| failed.until > now);
        }
        let known = memory.failed.get(&address).copied();
        // Several connections that go silent together are one failure.
        if known.is_some_and(|failed| failed.until > now + failed.rest / 2) {
            return;
        }
        if known.is_none() && memory.failed.len() >= REMEMBERED_MAX {
            return;
        }
        let rest = known.map_or(REST, |failed| (failed.rest * 2).min(REST_MAX));
        memory.failed.insert(address, Failed { until: now + rest, rest });
    }

    /// A request was answered on a connection to it.
    pub(super) fn works(&self, address: SocketAddr) {
        self.0.lock().failed.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|last| SocketAddr::from(([127, 0, 0, last], 443))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_spread_over_distinct_addresses_in_turn() {
        let (memory, all) = (Addresses::default(), addresses(3));
        let mut in_use = Vec::new();
        for _ in 0..3 {
            in_use.push(memory.choose(&all, &in_use).unwrap());
        }
        in_use.sort_unstable();
        assert_eq!(in_use, all);
        assert!(!memory.has_unused(&all, &in_use));
        let firsts: Vec<_> = (0..3).map(|_| memory.choose(&all, &[]).unwrap()).collect();
        assert!(firsts.iter().any(|first| *first != firsts[0]), "not always the first: {firsts:?}");
        assert_eq!(memory.choose(&[], &[]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_failed_rests_ever_longer_and_is_used_again() {
        let (memory, all) = (Addresses::default(), addresses(2));
        let chosen = || -> Vec<_> { (0..4).map(|_| memory.choose(&all, &[]).unwrap()).collect() };
        memory.failed(all[0]);
        memory.failed(all[0]);
        assert_eq!(chosen(), [all[1]; 4], "the other one, even if it is in use");
        assert_eq!(memory.choose(&all, &[all[1]]), Some(all[1]));
        tokio::time::advance(REST).await;
        assert!(chosen().contains(&all[0]), "two failures at once are one");
        memory.failed(all[0]);
        tokio::time::advance(REST).await;
        assert_eq!(chosen(), [all[1]; 4], "the second rest is longer");
        memory.works(all[0]);
        assert!(chosen().contains(&all[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_have_failed_the_first_to_be_rested_is_tried() {
        let (memory, all) = (Addresses::default(), addresses(3));
        for address in [all[1], all[0], all[2]] {
            memory.failed(address);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(memory.choose(&all, &[]), Some(all[1]));
        assert!(!memory.has_unused(&all, &[]));
    }
}
