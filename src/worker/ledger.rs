//! What this worker remembers of invites, so that a message that comes again does not ring again.
//!
//! Bounded: the broker redelivers only what was unacknowledged, so a few prefetches' worth is enough to answer every
//! redelivery to this worker. An invite is marked known when its outcome is final, never before.

use std::collections::{HashMap, VecDeque, hash_map};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::mailbox::Publication;
use crate::domain::id::{ApnsId, Identity};

/// Everything that one invite caused, to be published again if the invite comes again: the outcome first, then the token events.
pub(super) type Known = Arc<[Publication]>;

/// Calls and tokens: mostly one.
type Tried = SmallVec<[ApnsId; 1]>;

/// A table by ids that are digests.
pub(super) type DigestMap<K, V> = HashMap<K, V, BuildHasherDefault<DigestHasher>>;

/// A digest is as good as its own hash: nobody can choose what SHA-256 makes of a message.
#[derive(Debug, Default)]
pub(super) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// Their length is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The memory of one worker.
#[derive(Clone, Debug)]
pub(super) struct Ledger(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    entries_max: usize,
    entries: DigestMap<Identity, Entry>,
    /// Known invites, oldest first.
    known: VecDeque<Identity>,
    /// Which invite tried a call and token.
    tried: DigestMap<ApnsId, Identity>,
}

#[derive(Debug)]
enum Entry {
    /// Copies that came meanwhile wait for the end of it.
    InFlight {
        waiting: Vec<oneshot::Sender<()>>,
    },
    Known {
        known: Known,
        tried: Tried,
    },
}

/// What the ledger says about an invite that came.
#[derive(Debug)]
pub(super) enum Admission {
    /// Never seen, as far as it remembers. The ticket is the right and the duty to handle it.
    New(Ticket),
    /// Its outcome is known.
    Known(Known),
}

/// The right to handle one invite. Dropped without [`Ticket::finish`] (a panic, a give-back), the invite is unknown again and
/// its claims are free.
#[derive(Debug)]
pub(super) struct Ticket {
    ledger: Ledger,
    identity: Identity,
    tried: Tried,
}

impl Ledger {
    /// A ledger that remembers this many finished invites.
    pub(super) fn new(entries_max: usize) -> Self {
        Self(Arc::new(Mutex::new(Table {
            entries_max: entries_max.max(1),
            entries: HashMap::default(),
            known: VecDeque::new(),
            tried: HashMap::default(),
        })))
    }

    /// Admits an invite. One that is being handled already is waited for, not handled twice.
    pub(super) async fn admit(&self, identity: Identity) -> Admission {
        loop {
            let done = match self.0.lock().entries.entry(identity) {
                hash_map::Entry::Vacant(entry) => {
                    entry.insert(Entry::InFlight { waiting: Vec::new() });
                    return Admission::New(Ticket { ledger: self.clone(), identity, tried: Tried::new() });
                }
                hash_map::Entry::Occupied(entry) => match entry.into_mut() {
                    Entry::Known { known, .. } => return Admission::Known(Arc::clone(known)),
                    Entry::InFlight { waiting } => {
                        // Who gave up waiting leaves room.
                        waiting.retain(|copy| !copy.is_closed());
                        let (copy, done) = oneshot::channel();
                        waiting.push(copy);
                        done
                    }
                },
            };
            // Nothing is ever sent: this ends, with an error, when the invite is known or its ticket was dropped.
            let _ = done.await;
        }
    }

    /// How many invites are being handled, and how many finished ones are remembered.
    pub(super) fn count(&self) -> (usize, usize) {
        let table = self.0.lock();
        (table.entries.len() - table.known.len(), table.known.len())
    }

    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        let table = self.0.lock();
        (table.entries.len(), table.tried.len())
    }
}

impl Ticket {
    /// Claims a call and token for a push of this invite; false when another remembered invite tried it, or another device of
    /// this one has it.
    pub(super) fn claim(&mut self, id: ApnsId) -> bool {
        match self.ledger.0.lock().tried.entry(id) {
            hash_map::Entry::Vacant(free) => {
                free.insert(self.identity);
                self.tried.push(id);
                true
            }
            hash_map::Entry::Occupied(_) => false,
        }
    }

    /// Gives a claim back: nothing was tried after all.
    pub(super) fn release(&mut self, id: ApnsId) {
        if let Some(place) = self.tried.iter().position(|tried| *tried == id) {
            self.tried.swap_remove(place);
            self.ledger.0.lock().tried.remove(&id);
        }
    }

    /// The outcome is final.
    pub(super) fn finish(mut self, known: Known) {
        let tried = std::mem::take(&mut self.tried);
        let mut table = self.ledger.0.lock();
        table.entries.insert(self.identity, Entry::Known { known, tried });
        table.known.push_back(self.identity);
        while table.known.len() > table.entries_max {
            table.forget_oldest();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.ledger.0.lock();
        if let Some(Entry::InFlight { .. }) = table.entries.get(&self.identity) {
            table.entries.remove(&self.identity);
            for id in &self.tried {
                table.tried.remove(id);
            }
        }
    }
}

impl Table {
    fn forget_oldest(&mut self) {
        let Some(identity) = self.known.pop_front() else { return };
        if let Some(Entry::Known { tried, .. }) = self.entries.remove(&identity) {
            for id in tried {
                self.tried.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{CallId, DeviceToken};

    fn nothing() -> Known {
        Arc::new([])
    }

    fn identity(name: &str) -> Identity {
        Identity::of(Some(name), b"")
    }

    fn id(token: &str) -> ApnsId {
        let call = CallId::parse("6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a").unwrap();
        ApnsId::derive(call, &DeviceToken::new(token))
    }

    async fn ticket(ledger: &Ledger, name: &str) -> Ticket {
        match ledger.admit(identity(name)).await {
            Admission::New(ticket) => ticket,
            Admission::Known(_) => panic!("{name} is known"),
        }
    }

    #[tokio::test]
    async fn a_finished_invite_is_known_until_others_push_it_out() {
        let ledger = Ledger::new(2);
        for name in ["a", "b", "c"] {
            let mut ticket = ticket(&ledger, name).await;
            assert!(ticket.claim(id(name)));
            ticket.finish(nothing());
        }
        assert_eq!(ledger.len(), (2, 2));
        let _in_flight = ticket(&ledger, "d").await;
        assert_eq!(ledger.count(), (1, 2));
        assert!(matches!(ledger.admit(identity("c")).await, Admission::Known(_)));
        assert!(matches!(ledger.admit(identity("a")).await, Admission::New(_)));
    }

    #[tokio::test]
    async fn a_second_copy_waits_for_the_first() {
        let ledger = Ledger::new(2);
        let first = ticket(&ledger, "a").await;
        let second = ledger.admit(identity("a"));
        let (admission, ()) = tokio::join!(second, async {
            tokio::task::yield_now().await;
            first.finish(nothing());
        });
        assert!(matches!(admission, Admission::Known(_)));
    }

    #[tokio::test]
    async fn an_abandoned_invite_is_new_again() {
        let ledger = Ledger::new(2);
        let mut first = ticket(&ledger, "a").await;
        assert!(first.claim(id("ab01")));
        drop(first);
        assert_eq!(ledger.len(), (0, 0));
        ticket(&ledger, "a").await;
    }

    #[tokio::test]
    async fn a_call_and_token_belong_to_one_invite() {
        let ledger = Ledger::new(2);
        let mut first = ticket(&ledger, "a").await;
        let mut second = ticket(&ledger, "b").await;
        assert!(first.claim(id("ab01")));
        assert!(!first.claim(id("ab01")), "two devices of one invite are not pushed the same");
        assert!(!second.claim(id("ab01")));
        second.release(id("ab01"));
        assert!(!second.claim(id("ab01")), "only the owner can give it back");
        first.release(id("ab01"));
        assert!(second.claim(id("ab01")));
    }
}
