//! The faults of one simulator, and how often each has struck.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::super::chance::Chance;
use super::super::order::Target;
use super::super::peer::{Address, Addresses, Spot};
use super::{Action, ConnectAction, ConnectFault, Fault, Latency, When, Whom};

/// Tokens whose requests are counted apart, per fault; tokens beyond are not struck.
const COUNTED_TOKENS_MAX: usize = 1_000_000;

/// All faults of a simulator; they may be changed at any time.
#[derive(Debug, Default)]
pub struct Faults {
    book: Mutex<Book>,
    /// Lets the usual case, no fault at all, go without a lock.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct Book {
    next_id: u64,
    faults: Vec<(FaultId, Fault, Counts)>,
    connect_faults: Vec<(FaultId, ConnectFault, Count)>,
    /// Who met with silence until it is healed.
    silent: Vec<Target>,
}

/// Names a fault, to remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(u64);

/// What strikes one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Strike {
    pub(in super::super) latency: Duration,
    pub(in super::super) action: Option<Action>,
}

impl Faults {
    /// Adds a fault behind all others.
    pub fn add(&self, fault: Fault) -> FaultId {
        let mut book = self.book.lock();
        let id = book.next_id();
        book.faults.push((id, fault, Counts::default()));
        self.any.store(true, Relaxed);
        id
    }

    /// Adds a fault that strikes new connections.
    pub fn add_connect(&self, fault: ConnectFault) -> FaultId {
        let mut book = self.book.lock();
        let id = book.next_id();
        book.connect_faults.push((id, fault, Count::default()));
        self.any.store(true, Relaxed);
        id
    }

    /// Removes one fault; false when it is gone already.
    pub fn remove(&self, id: FaultId) -> bool {
        let mut book = self.book.lock();
        let before = book.len();
        book.faults.retain(|(other, ..)| *other != id);
        book.connect_faults.retain(|(other, ..)| *other != id);
        self.any.store(book.len() > 0, Relaxed);
        book.len() < before
    }

    /// Removes all faults.
    pub fn clear(&self) {
        let mut book = self.book.lock();
        book.faults.clear();
        book.connect_faults.clear();
        book.silent.clear();
        self.any.store(false, Relaxed);
    }

    /// Lets new connections of `target` meet with silence until that is healed.
    pub(in super::super) fn silence(&self, target: Target) {
        let mut book = self.book.lock();
        book.silent.push(target);
        self.any.store(true, Relaxed);
    }

    /// True where silence reigns.
    pub(in super::super) fn is_silent(&self, spot: Spot) -> bool {
        self.any.load(Relaxed) && self.book.lock().silent.iter().any(|target| target.includes(spot))
    }

    /// Removes what goes wrong for `target` alone.
    pub(in super::super) fn heal(&self, target: Target, addresses: &Addresses) {
        let is_here = |named: Option<Address>| match (named, target) {
            (Some(named), Target::Address(address)) => addresses.are_same(named, address),
            _ => false,
        };
        let is_this = |whom: &Whom| matches!((whom, target), (Whom::Connection(one), Target::Connection(other)) if *one == other);
        let mut book = self.book.lock();
        book.faults.retain(|(_, fault, _)| !is_this(&fault.whom) && !is_here(fault.when.address));
        book.connect_faults.retain(|(_, fault, _)| !is_here(fault.when.address));
        book.silent.retain(|silent| match silent {
            Target::Address(address) => !is_here(Some(*address)),
            other => *other != target,
        });
        self.any.store(book.len() > 0, Relaxed);
    }

    pub(in super::super) fn strike(&self, token: &str, spot: Spot, chance: &Mutex<Chance>) -> Strike {
        let mut strike = Strike::default();
        if !self.any.load(Relaxed) {
            return strike;
        }
        let mut book = self.book.lock();
        let mut chance = chance.lock();
        for (_, fault, counts) in &mut book.faults {
            let already_decided = strike.action.is_some() && fault.latency.is_none();
            if already_decided || !fault.includes(token, spot) {
                continue;
            }
            if !counts.of(token, &fault.when).is_some_and(|count| count.hit(&fault.when, &mut chance)) {
                continue;
            }
            if let Some(latency) = fault.latency {
                strike.latency += latency.draw(&mut chance);
            }
            if strike.action.is_none() {
                strike.action.clone_from(&fault.action);
            }
        }
        strike
    }

    pub(in super::super) fn strike_connect(
        &self,
        spot: Spot,
        chance: &Mutex<Chance>,
    ) -> Option<ConnectAction> {
        if !self.any.load(Relaxed) {
            return None;
        }
        let mut book = self.book.lock();
        if book.silent.iter().any(|target| target.includes(spot)) {
            return Some(ConnectAction::Silence);
        }
        let mut chance = chance.lock();
        let mut struck = |(_, fault, count): &mut (FaultId, ConnectFault, Count)| {
            (fault.when.is_at(spot) && count.hit(&fault.when, &mut chance)).then(|| fault.action.clone())
        };
        book.connect_faults.iter_mut().find_map(&mut struck)
    }
}

impl Book {
    fn len(&self) -> usize {
        self.faults.len() + self.connect_faults.len() + self.silent.len()
    }

    fn next_id(&mut self) -> FaultId {
        self.next_id += 1;
        FaultId(self.next_id)
    }
}

impl When {
    fn is_at(&self, spot: Spot) -> bool {
        self.address.is_none_or(|address| spot.is_at(address))
    }
}

impl Fault {
    fn includes(&self, token: &str, spot: Spot) -> bool {
        let whom = match &self.whom {
            Whom::Everybody => true,
            Whom::Token(only) => only == token,
            Whom::Prefix(prefix) => token.starts_with(prefix.as_str()),
            Whom::Connection(only) => *only == spot.connection,
        };
        whom && self.when.is_at(spot)
    }
}

#[derive(Debug, Default)]
struct Counts {
    together: Count,
    apart: BTreeMap<String, Count>,
}

impl Counts {
    fn of(&mut self, token: &str, when: &When) -> Option<&mut Count> {
        if !when.each_token {
            return Some(&mut self.together);
        }
        if !self.apart.contains_key(token) {
            if self.apart.len() >= COUNTED_TOKENS_MAX {
                return None;
            }
            self.apart.insert(token.to_owned(), Count::default());
        }
        self.apart.get_mut(token)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    seen: u64,
    struck: u64,
}

impl Count {
    fn hit(&mut self, when: &When, chance: &mut Chance) -> bool {
        let number = self.seen;
        self.seen += 1;
        let meant = number >= when.skip && (number - when.skip).is_multiple_of(when.every.max(1));
        let left = when.count.is_none_or(|count| self.struck < count);
        let struck = meant && left && chance.hit(when.probability);
        self.struck += u64::from(struck);
        struck
    }
}

impl Latency {
    pub(in super::super) fn draw(self, chance: &mut Chance) -> Duration {
        Duration::from_millis(chance.between(whole_ms(self.min), whole_ms(self.max)))
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
