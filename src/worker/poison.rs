//! Which invites make their handler die, so that they are not handled for ever.
//!
//! Poison is what *died here*, not what came often: the broker's count also rises with every lost connection (and, before
//! RabbitMQ 4.3, with every planned give-back), and an innocent invite that was on its way through three of them must still
//! ring. So an invite counts as poison only in a worker that saw its handler die, from the third delivery on, whoever had
//! the first two. A worker without such a memory tries once, and knows then. That costs at most one death per worker more;
//! a process that dies of an invite remembers nothing, and for that there is the queue's delivery limit, whose answer is
//! given without a push.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::ledger::DigestMap;
use crate::domain::id::{CallId, Identity};

/// Deliveries that a poisonous invite gets before it is answered without being handled.
const TRIALS: u32 = 2;

/// What is known of the deaths of an invite's handlers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Deaths {
    /// How many died here.
    pub count: u32,
    /// The last one died before it had read the invite.
    pub unread: bool,
}

/// The memory of one worker: how often the handler of an invite died. Bounded: the oldest are forgotten.
#[derive(Debug)]
pub(super) struct Poison(Mutex<Table>);

#[derive(Debug)]
struct Table {
    entries_max: usize,
    deaths: DigestMap<Identity, Deaths>,
    /// Oldest first.
    order: VecDeque<Identity>,
    /// The last one, until it is told.
    last: Option<Death>,
}

/// Whose handler died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Death {
    pub(super) identity: Identity,
    /// The call, if it had been read by then.
    pub(super) call_id: Option<CallId>,
}

/// Stands beside a handler, and notes when it dies.
#[derive(Debug)]
pub(super) struct Witness<'p> {
    poison: &'p Poison,
    identity: Identity,
    /// The call, once the invite was read.
    call_id: Option<CallId>,
}

impl Witness<'_> {
    /// The invite was read.
    pub(super) fn reads(&mut self, call_id: CallId) {
        self.call_id = Some(call_id);
    }
}

impl Poison {
    /// A memory of this many invites.
    pub(super) fn new(entries_max: usize) -> Self {
        let entries_max = entries_max.max(1);
        let (deaths, order) = (DigestMap::default(), VecDeque::new());
        Self(Mutex::new(Table { entries_max, deaths, order, last: None }))
    }

    /// Notes it if the handler dies while the witness is there. The receipt must outlive it: what comes again is known then.
    pub(super) fn witness(&self, identity: Identity) -> Witness<'_> {
        Witness { poison: self, identity, call_id: None }
    }

    /// The death that was noted last, once.
    pub(super) fn last_death(&self) -> Option<Death> {
        self.0.lock().last.take()
    }

    /// How the handlers of this invite died here.
    pub(super) fn deaths(&self, identity: &Identity) -> Deaths {
        self.0.lock().deaths.get(identity).copied().unwrap_or_default()
    }

    /// It was handled after all.
    pub(super) fn forget(&self, identity: &Identity) {
        let mut table = self.0.lock();
        if !table.deaths.is_empty() && table.deaths.remove(identity).is_some() {
            table.order.retain(|other| other != identity);
        }
    }

    fn note(&self, death: Death) {
        let mut table = self.0.lock();
        table.last = Some(death);
        let identity = death.identity;
        let deaths = table.deaths.entry(identity).or_default();
        *deaths = Deaths { count: deaths.count.saturating_add(1), unread: death.call_id.is_none() };
        if deaths.count == 1 {
            table.order.push_back(identity);
        }
        if table.order.len() > table.entries_max
            && let Some(oldest) = table.order.pop_front()
        {
            table.deaths.remove(&oldest);
        }
    }
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.poison.note(Death { identity: self.identity, call_id: self.call_id });
        }
    }
}

/// Whether an invite is not to be handled again, by how often its handler died here and how often the broker says that it
/// was returned before; not every broker counts.
pub(super) fn is_poison(deaths: Deaths, returned: Option<u32>) -> bool {
    deaths.count > 0 && returned.unwrap_or_default().max(deaths.count) >= TRIALS
}

/// Whether it is not so much as read: reading it is what its handler died of, or even its answer.
pub(super) fn is_unreadable(deaths: Deaths, returned: Option<u32>) -> bool {
    deaths.count > TRIALS || deaths.unread && is_poison(deaths, returned)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn identity(name: &str) -> Identity {
        Identity::of(Some(name), b"")
    }

    fn call() -> CallId {
        CallId::parse("6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a").expect("a UUID")
    }

    fn die(poison: &Poison, name: &str) {
        let died = catch_unwind(AssertUnwindSafe(|| {
            let mut witness = poison.witness(identity(name));
            witness.reads(call());
            panic!("a handler dies, on purpose");
        }));
        assert!(died.is_err());
    }

    #[test]
    fn poison_is_what_died_here_and_came_a_third_time() {
        let is_poison = |count, returned| is_poison(Deaths { count, unread: false }, returned);
        // Innocent, however often it was returned.
        assert!(!is_poison(0, None) && !is_poison(0, Some(2)) && !is_poison(0, Some(19)));
        // Died here once, as the first or second delivery.
        assert!(!is_poison(1, Some(0)) && !is_poison(1, Some(1)) && !is_poison(1, None));
        // Others had the first ones; or all died here, where the broker does not count.
        assert!(is_poison(1, Some(2)) && is_poison(2, None) && is_poison(2, Some(1)));
        // What was read can be answered with its devices, unless that is deadly, too.
        let read = |count| is_unreadable(Deaths { count, unread: false }, Some(19));
        assert!(!read(0) && !read(1) && !read(2) && read(3));
        let unread = |count, returned| is_unreadable(Deaths { count, unread: true }, returned);
        assert!(!unread(1, None) && !unread(1, Some(1)) && unread(1, Some(2)) && unread(2, None));
    }

    #[test]
    fn deaths_are_noted_and_nothing_else() {
        let poison = Poison::new(2);
        drop(poison.witness(identity("a")));
        assert_eq!((poison.deaths(&identity("a")).count, poison.last_death()), (0, None));
        die(&poison, "a");
        die(&poison, "a");
        assert_eq!(poison.deaths(&identity("a")), Deaths { count: 2, unread: false });
        assert_eq!(poison.deaths(&identity("b")), Deaths::default());
        let last = Some(Death { identity: identity("a"), call_id: Some(call()) });
        assert_eq!((poison.last_death(), poison.last_death()), (last, None), "told once");
        poison.forget(&identity("a"));
        assert_eq!(poison.deaths(&identity("a")).count, 0);
        assert!(poison.0.lock().order.is_empty());
    }

    #[test]
    fn the_oldest_deaths_are_forgotten() {
        let poison = Poison::new(2);
        for name in ["a", "b", "a", "c"] {
            die(&poison, name);
        }
        let deaths = ["a", "b", "c"].map(|name| poison.deaths(&identity(name)).count);
        assert_eq!(deaths, [0, 1, 1]);
    }
}
