//! What this worker remembers of invites, so that a message that comes again does not ring again.
//!
//! Bounded, by number and by bytes: the broker redelivers only what was unacknowledged, so a few prefetches' worth is enough to
//! answer every redelivery to this worker, and results may be long. The oldest are forgotten first; those in somebody's hands,
//! never: an invite whose results the broker has not confirmed is one that it gives back. An invite is marked known when its outcome
//! is final, never before; how old it is counts from when its delivery was settled or lost.
//!
//! And timed: for twice the furthest that a deadline may lie ahead. The invite itself rings no more after its deadline. Another message
//! about its call is written while that rings, and by then its own deadline is over, too. Whoever uses the call's id again hours later
//! means to ring, and no token is kept for longer than it is of use. What was let go without a confirm the broker gives back when it can,
//! and nobody else knows what Apple said of it: that is kept for [`OWED_TURNS`] times as long more, and only then told as expired.

use std::collections::{HashMap, VecDeque, hash_map};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::mailbox::Publication;
use crate::domain::id::{ApnsId, Identity};

/// Everything that one invite caused, to be published again if the invite comes again: the outcome first, then the token events.
pub(super) type Known = Arc<[Publication]>;

/// Calls and tokens: mostly one.
type Tried = SmallVec<[ApnsId; 1]>;

/// What an entry takes beside its results, and each claim: places in the tables, which may be half empty.
const ENTRY_BYTES: usize = 400;
const CLAIM_BYTES: usize = 150;

/// How many times longer an invite is remembered whose results were not confirmed: two hours more, by default.
const OWED_TURNS: u32 = 12;

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
    bytes_max: usize,
    retention: Duration,
    entries: DigestMap<Identity, Entry>,
    /// Known invites that were let go, and since when, oldest first; each once.
    known: VecDeque<(Identity, Instant)>,
    /// What they take.
    known_bytes: usize,
    /// Which invite tried a call and token.
    tried: DigestMap<ApnsId, Identity>,
}

#[derive(Debug)]
enum Entry {
    /// Copies that came meanwhile wait for the end of it.
    InFlight { waiting: Vec<oneshot::Sender<()>> },
    Known {
        known: Known,
        tried: Tried,
        /// Handlers whose delivery of it is not settled.
        holders: usize,
        /// It is among those that may be forgotten.
        is_listed: bool,
        /// How often it is kept on when it has grown too old: not at all, once its results were confirmed.
        turns: u32,
    },
}

/// What the ledger says about an invite that came.
#[derive(Debug)]
pub(super) enum Admission {
    /// Never seen, as far as it remembers. The ticket is the right and the duty to handle it.
    New(Ticket),
    /// Its outcome is known, and stays so for as long as the ticket is held.
    Known(Known, Ticket),
}

/// The hand on one invite. While its outcome is not known, the right to handle it: dropped without [`Ticket::finish`] (a panic, a
/// give-back), the invite is unknown again and its claims are free. From then on it keeps the invite from being forgotten, until
/// [`Ticket::settled`] or, whatever happens to the handler, until it is dropped: unconfirmed then.
#[derive(Debug)]
pub(super) struct Ticket {
    ledger: Ledger,
    identity: Identity,
    tried: Tried,
    settled: Option<Instant>,
}

impl Ledger {
    /// A ledger that remembers this many finished invites for so long, and no more than take so many bytes; the last one in any case.
    pub(super) fn new(entries_max: usize, bytes_max: usize, retention: Duration) -> Self {
        Self(Arc::new(Mutex::new(Table {
            entries_max: entries_max.max(1),
            bytes_max,
            retention,
            entries: HashMap::default(),
            known: VecDeque::new(),
            known_bytes: 0,
            tried: HashMap::default(),
        })))
    }

    /// Admits an invite that came now. One that is being handled already is waited for, not handled twice.
    pub(super) async fn admit(&self, identity: Identity, now: Instant) -> Admission {
        loop {
            let done = {
                let ticket = || Ticket { ledger: self.clone(), identity, tried: Tried::new(), settled: None };
                let mut table = self.0.lock();
                table.forget_old(now);
                match table.entries.entry(identity) {
                    hash_map::Entry::Vacant(entry) => {
                        entry.insert(Entry::InFlight { waiting: Vec::new() });
                        return Admission::New(ticket());
                    }
                    hash_map::Entry::Occupied(entry) => match entry.into_mut() {
                        Entry::Known { known, holders, .. } => {
                            *holders += 1;
                            return Admission::Known(Arc::clone(known), ticket());
                        }
                        Entry::InFlight { waiting } => {
                            // Who gave up waiting leaves room.
                            waiting.retain(|copy| !copy.is_closed());
                            let (copy, done) = oneshot::channel();
                            waiting.push(copy);
                            done
                        }
                    },
                }
            };
            // Nothing is ever sent: this ends, with an error, when the invite is known or its ticket was dropped.
            let _ = done.await;
        }
    }

    /// Forgets what is too old by now. Whoever does not come to admit or to finish anything does so now and then.
    pub(super) fn forget_old(&self, now: Instant) {
        self.0.lock().forget_old(now);
    }

    /// How many invites are in somebody's hands for the first time, and how many are remembered that were let go.
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
    pub(super) fn finish(&mut self, known: Known) {
        let tried = std::mem::take(&mut self.tried);
        let entry = Entry::Known { known, tried, holders: 1, is_listed: false, turns: OWED_TURNS };
        self.ledger.0.lock().entries.insert(self.identity, entry);
    }

    /// The results were confirmed and the delivery settled, now: the invite may be forgotten in its turn.
    pub(super) fn settled(mut self, now: Instant) {
        self.settled = Some(now);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.ledger.0.lock();
        match table.entries.get_mut(&self.identity) {
            Some(Entry::InFlight { .. }) => {
                table.entries.remove(&self.identity);
                for id in &self.tried {
                    table.tried.remove(id);
                }
            }
            Some(Entry::Known { known, tried, holders, is_listed, turns }) => {
                *holders -= 1;
                *turns = if self.settled.is_some() { 0 } else { *turns };
                if *holders == 0 && !*is_listed {
                    *is_listed = true;
                    let weight = weight(known, tried);
                    table.list(self.identity, weight, self.settled.unwrap_or_else(Instant::now));
                }
            }
            None => {}
        }
    }
}

/// The memory that a known invite takes.
fn weight(known: &Known, tried: &Tried) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let result = |one: &Publication| {
        let carried = text(&one.correlation_id) + text(&one.traceparent) + text(&one.tracestate);
        size_of::<Publication>() + one.message_id.len() + one.body.len() + carried
    };
    ENTRY_BYTES + CLAIM_BYTES * tried.len() + known.iter().map(result).sum::<usize>()
}

impl Table {
    fn is_over(&self) -> bool {
        self.known.len() > self.entries_max || self.known_bytes > self.bytes_max && self.known.len() > 1
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((identity, since)) = self.known.front().copied()
            && now.saturating_duration_since(since) >= self.retention
        {
            if let Some(Entry::Known { turns: turns @ 1.., .. }) = self.entries.get_mut(&identity) {
                *turns -= 1;
                self.known.rotate_left(1);
                self.known.back_mut().expect("there is a front").1 = now;
            } else {
                self.forget_oldest();
            }
        }
    }

    /// One more may be forgotten.
    fn list(&mut self, identity: Identity, weight: usize, now: Instant) {
        self.known_bytes += weight;
        self.known.push_back((identity, now));
        self.forget_old(now);
        while self.is_over() {
            self.forget_oldest();
        }
    }

    /// Forgets the oldest; one that is told again at this moment takes its place anew when that is over.
    fn forget_oldest(&mut self) {
        let Some((identity, _)) = self.known.pop_front() else { return };
        let hash_map::Entry::Occupied(mut entry) = self.entries.entry(identity) else { return };
        let Entry::Known { known, tried, holders, is_listed, .. } = entry.get_mut() else { return };
        self.known_bytes -= weight(known, tried);
        if *holders > 0 {
            *is_listed = false;
            return;
        }
        for id in tried.drain(..) {
            self.tried.remove(&id);
        }
        entry.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{CallId, DeviceToken};

    const RETENTION: Duration = Duration::from_mins(10);

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
        match ledger.admit(identity(name), Instant::now()).await {
            Admission::New(ticket) => ticket,
            Admission::Known(..) => panic!("{name} is known"),
        }
    }

    fn finish(mut ticket: Ticket, known: Known) {
        ticket.finish(known);
        ticket.settled(Instant::now());
    }

    #[tokio::test]
    async fn a_finished_invite_is_known_until_others_push_it_out() {
        let ledger = Ledger::new(2, usize::MAX, RETENTION);
        for name in ["a", "b", "c"] {
            let mut ticket = ticket(&ledger, name).await;
            assert!(ticket.claim(id(name)));
            finish(ticket, nothing());
        }
        assert_eq!(ledger.len(), (2, 2));
        let _in_flight = ticket(&ledger, "d").await;
        assert_eq!(ledger.count(), (1, 2));
        assert!(matches!(ledger.admit(identity("c"), Instant::now()).await, Admission::Known(..)));
        assert!(matches!(ledger.admit(identity("a"), Instant::now()).await, Admission::New(_)));
    }

    #[tokio::test]
    async fn long_results_push_others_out_before_their_number_does() {
        let long: Known =
            Arc::new([Publication { body: vec![b' '; 10_000].into(), ..Publication::sample() }]);
        let ledger = Ledger::new(100, 35_000, RETENTION);
        let in_flight = ticket(&ledger, "first").await;
        for name in ["a", "b", "c", "d"] {
            let mut ticket = ticket(&ledger, name).await;
            assert!(ticket.claim(id(name)));
            finish(ticket, Arc::clone(&long));
        }
        assert_eq!((ledger.count(), ledger.len()), ((1, 3), (4, 3)), "what is in flight is not forgotten");
        assert!(
            matches!(ledger.admit(identity("b"), Instant::now()).await, Admission::Known(..)),
            "the oldest goes first"
        );
        assert!(ticket(&ledger, "a").await.claim(id("a")));
        for short in 0..10 {
            finish(ticket(&ledger, &short.to_string()).await, nothing());
        }
        assert_eq!(ledger.count().1, 12, "short ones leave room for more");
        // One alone that is too long is known all the same.
        finish(in_flight, std::iter::repeat_n(long[0].clone(), 4).collect());
        assert_eq!(ledger.count().1, 1);
        assert!(matches!(ledger.admit(identity("first"), Instant::now()).await, Admission::Known(..)));
        finish(ticket(&ledger, "last").await, nothing());
        assert_eq!(ledger.count().1, 1);
        assert_eq!(ledger.0.lock().known_bytes, ENTRY_BYTES, "nothing is left of what is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_finished_invite_is_known_for_a_time() {
        let ledger = Ledger::new(100, usize::MAX, RETENTION);
        for name in ["a", "b"] {
            let mut ticket = ticket(&ledger, name).await;
            assert!(ticket.claim(id(name)));
            finish(ticket, nothing());
            tokio::time::advance(RETENTION / 4).await;
        }
        let in_flight = ticket(&ledger, "slow").await;
        tokio::time::advance((RETENTION / 2).saturating_sub(Duration::from_millis(1))).await;
        assert!(matches!(ledger.admit(identity("a"), Instant::now()).await, Admission::Known(..)));
        tokio::time::advance(Duration::from_millis(1)).await;
        // Its call id used again is another call. That it was asked for did not make it younger.
        assert!(ticket(&ledger, "another").await.claim(id("a")), "too old for whoever is admitted");
        assert!(matches!(ledger.admit(identity("b"), Instant::now()).await, Admission::Known(..)));
        tokio::time::advance(RETENTION).await;
        finish(in_flight, nothing());
        assert_eq!(ledger.len(), (1, 0), "too old when another is finished; what is in flight is not");
        tokio::time::advance(RETENTION).await;
        assert_eq!(ledger.count(), (0, 1));
        ledger.forget_old(Instant::now());
        assert_eq!(
            (ledger.len(), ledger.0.lock().known_bytes),
            ((0, 0), 0),
            "a quiet worker forgets as well"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_settled_is_not_forgotten() {
        let ledger = Ledger::new(2, usize::MAX, RETENTION);
        let others = async || {
            for name in ["x", "y", "z"] {
                finish(ticket(&ledger, name).await, nothing());
            }
        };
        let again = async || match ledger.admit(identity("a"), Instant::now()).await {
            Admission::Known(_, ticket) => ticket,
            Admission::New(_) => panic!("it is forgotten"),
        };
        let mut first = ticket(&ledger, "a").await;
        assert!(first.claim(id("a")));
        first.finish(nothing());
        others().await;
        tokio::time::advance(2 * RETENTION).await;
        others().await;
        assert_eq!(ledger.count(), (1, 2));
        // Two copies of it wait for the broker, too, and their handlers end in every way that handlers end.
        let (second, third) = (again().await, again().await);
        first.settled(Instant::now());
        others().await;
        drop(second);
        others().await;
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = third;
            panic!("a handler dies, on purpose");
        }));
        assert!(died.is_err());
        assert_eq!(ledger.len(), (2, 1), "it is the youngest now");
        // Told again while its turn to be forgotten comes.
        let fourth = again().await;
        others().await;
        assert_eq!(ledger.count(), (1, 2));
        tokio::time::advance(2 * RETENTION).await;
        fourth.settled(Instant::now());
        assert!(again().await.settled.is_none(), "its age counts from then");
        others().await;
        assert!(ticket(&ledger, "a").await.claim(id("a")), "in its turn it is forgotten");
        tokio::time::advance(RETENTION).await;
        ledger.forget_old(Instant::now());
        assert_eq!((ledger.len(), ledger.0.lock().known_bytes), ((0, 0), 0), "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_confirmed_is_known_for_longer() {
        let ledger = Ledger::new(2, usize::MAX, RETENTION);
        for name in ["lost", "never"] {
            ticket(&ledger, name).await.finish(nothing());
        }
        for _ in 0..OWED_TURNS {
            tokio::time::advance(RETENTION).await;
            ledger.forget_old(Instant::now());
            assert_eq!(ledger.count(), (0, 2), "the broker may have been away");
        }
        match ledger.admit(identity("lost"), Instant::now()).await {
            Admission::Known(_, again) => again.settled(Instant::now()),
            Admission::New(_) => panic!("what Apple said is forgotten"),
        }
        tokio::time::advance(RETENTION).await;
        ledger.forget_old(Instant::now());
        assert_eq!(ledger.len(), (0, 0), "one was confirmed, the other one was never asked for");
    }

    #[tokio::test]
    async fn a_second_copy_waits_for_the_first() {
        let ledger = Ledger::new(2, usize::MAX, RETENTION);
        let first = ticket(&ledger, "a").await;
        let second = ledger.admit(identity("a"), Instant::now());
        let (admission, ()) = tokio::join!(second, async {
            tokio::task::yield_now().await;
            finish(first, nothing());
        });
        assert!(matches!(admission, Admission::Known(..)));
    }

    #[tokio::test]
    async fn an_abandoned_invite_is_new_again() {
        let ledger = Ledger::new(2, usize::MAX, RETENTION);
        let mut first = ticket(&ledger, "a").await;
        assert!(first.claim(id("ab01")));
        drop(first);
        assert_eq!(ledger.len(), (0, 0));
        ticket(&ledger, "a").await;
    }

    #[tokio::test]
    async fn a_call_and_token_belong_to_one_invite() {
        let ledger = Ledger::new(2, usize::MAX, RETENTION);
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
