//! Which deliveries of one channel are unsettled, and what may be told to the broker next. Pure.
//!
//! Acks go out as one `multiple` ack over the contiguous prefix of what was reported. One slow invite at the front must
//! not hold back hundreds behind it (they would use up the prefetch), so an ack that waits behind it for longer than
//! [`PATIENCE`] goes out singly. The order of the three is what keeps the channel alive, because the broker closes it over
//! a tag that it does not know (any more): refusals and single acks are awaited before a `multiple` ack that covers them.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::worker::mailbox::Settlement;

/// How long an ack waits for those before it. Longer than most invites differ in their time, far shorter than a deadline.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

/// The unsettled deliveries of one channel, oldest first, by their tags.
#[derive(Debug)]
pub(super) struct Unsettled {
    /// The tag of the front slot. Tags of one channel are 1, 2, 3 … without a gap (AMQP 0-9-1, `delivery-tag`).
    first: u64,
    slots: VecDeque<Slot>,
    open: usize,
}

#[derive(Debug)]
enum Slot {
    /// In the worker's hands.
    Waiting,
    /// To be acked, known since then.
    Done(Instant),
    /// Taken out, to be told to the broker singly before any `multiple` ack over it.
    Taken,
}

/// A tag that is not the next one: never seen from a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfOrder;

impl Unsettled {
    /// Nothing is unsettled.
    pub(super) fn new() -> Self {
        Self { first: 1, slots: VecDeque::new(), open: 0 }
    }

    /// How many deliveries are held and were not handed out to be settled.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// The tag of the oldest delivery that is held, or of the one that comes next.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The tag of the latest delivery, 0 before any.
    pub(super) fn last(&self) -> u64 {
        self.first + self.slots.len() as u64 - 1
    }

    /// A delivery came.
    pub(super) fn deliver(&mut self, tag: u64) -> Result<(), OutOfOrder> {
        if tag != self.last() + 1 {
            return Err(OutOfOrder);
        }
        self.slots.push_back(Slot::Waiting);
        self.open += 1;
        Ok(())
    }

    /// The worker settled a delivery. What is not an ack comes back, to be told to the broker now. A tag that is not in
    /// the worker's hands is ignored.
    pub(super) fn report(
        &mut self,
        tag: u64,
        settlement: Settlement,
        now: Instant,
    ) -> Option<(u64, Settlement)> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        let slot = self.slots.get_mut(index).filter(|slot| matches!(slot, Slot::Waiting))?;
        if settlement == Settlement::Ack {
            *slot = Slot::Done(now);
            return None;
        }
        *slot = Slot::Taken;
        self.open -= 1;
        Some((tag, settlement))
    }

    /// Takes out the prefix in which nothing is in the worker's hands: an ack of the returned tag, with `multiple`, settles
    /// all of it, once everything taken out before was told.
    pub(super) fn take_prefix(&mut self) -> Option<u64> {
        let mut last = None;
        while let Some(slot) = self.slots.pop_front_if(|slot| !matches!(slot, Slot::Waiting)) {
            if matches!(slot, Slot::Done(_)) {
                self.open -= 1;
                last = Some(self.first);
            }
            self.first += 1;
        }
        last
    }

    /// Takes out the acks that waited long enough behind one in the worker's hands, each to be sent singly.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<u64> {
        let mut overdue = Vec::new();
        let behind =
            (self.first..).zip(&mut self.slots).skip_while(|(_, slot)| !matches!(slot, Slot::Waiting));
        for (tag, slot) in behind {
            if matches!(slot, Slot::Done(since) if *since + PATIENCE <= now) {
                *slot = Slot::Taken;
                overdue.push(tag);
            }
        }
        self.open -= overdue.len();
        overdue
    }

    /// When the next ack will have waited long enough; `None` while none waits.
    pub(super) fn next_overdue(&self) -> Option<Instant> {
        let waiting = self.slots.iter().filter_map(|slot| match slot {
            Slot::Done(since) => Some(*since + PATIENCE),
            _ => None,
        });
        waiting.min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The broker's side: which tags it waits for. It closes the channel over any other.
    #[derive(Default)]
    struct Broker {
        outstanding: BTreeSet<u64>,
        acked: BTreeSet<u64>,
        refused: BTreeSet<u64>,
    }

    impl Broker {
        fn ack_multiple(&mut self, tag: u64) {
            assert!(self.outstanding.contains(&tag), "unknown delivery tag {tag}");
            let rest = self.outstanding.split_off(&(tag + 1));
            self.acked.append(&mut self.outstanding);
            self.outstanding = rest;
        }

        fn ack(&mut self, tag: u64) {
            assert!(self.outstanding.remove(&tag), "unknown delivery tag {tag}");
            self.acked.insert(tag);
        }

        fn refuse(&mut self, tag: u64) {
            assert!(self.outstanding.remove(&tag), "unknown delivery tag {tag}");
            self.refused.insert(tag);
        }
    }

    /// One round of the settler.
    fn settle(
        unsettled: &mut Unsettled,
        broker: &mut Broker,
        refusals: &mut Vec<(u64, Settlement)>,
        now: Instant,
    ) {
        for (tag, _) in refusals.drain(..) {
            broker.refuse(tag);
        }
        for tag in unsettled.take_overdue(now) {
            broker.ack(tag);
        }
        if let Some(tag) = unsettled.take_prefix() {
            broker.ack_multiple(tag);
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Deliver,
        /// Settles one of those in the worker's hands, by its place.
        Report(usize, bool),
        /// A round, after so many milliseconds.
        Settle(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            3 => Just(Event::Deliver),
            3 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(place, ack)| Event::Report(place, ack)),
            1 => (0_u64..80).prop_map(Event::Settle),
        ];
        prop::collection::vec(event, 0..200)
    }

    proptest! {
        #[test]
        fn every_tag_is_settled_once_and_none_unreported(events in events()) {
            let (mut unsettled, mut broker) = (Unsettled::new(), Broker::default());
            let (mut in_hand, mut refusals) = (Vec::new(), Vec::new());
            let (mut acks, mut others) = (BTreeSet::new(), BTreeSet::new());
            let (mut next, mut now) = (1, Instant::now());
            // At the end the worker settles what it still has.
            let end = std::iter::repeat_n(Event::Report(0, true), 200).chain([Event::Settle(0)]);
            for event in events.into_iter().chain(end) {
                match event {
                    Event::Deliver => {
                        unsettled.deliver(next).unwrap();
                        broker.outstanding.insert(next);
                        in_hand.push(next);
                        next += 1;
                    }
                    Event::Report(place, ack) if !in_hand.is_empty() => {
                        let tag = in_hand.remove(place % in_hand.len());
                        let settlement = if ack { Settlement::Ack } else { Settlement::Reject };
                        if ack { acks.insert(tag) } else { others.insert(tag) };
                        refusals.extend(unsettled.report(tag, settlement, now));
                        prop_assert!(unsettled.report(tag, settlement, now).is_none(), "settled twice");
                    }
                    Event::Report(..) => {}
                    Event::Settle(ms) => {
                        now += Duration::from_millis(ms);
                        settle(&mut unsettled, &mut broker, &mut refusals, now);
                        prop_assert!(broker.acked.is_subset(&acks), "acked what was not reported");
                        prop_assert_eq!(&broker.refused, &others);
                        prop_assert_eq!(unsettled.open(), broker.outstanding.len());
                        if let Some(due) = unsettled.next_overdue() {
                            prop_assert!(due > now, "an ack is overdue and was kept back");
                        }
                    }
                }
            }
            prop_assert_eq!(&broker.acked, &acks);
            prop_assert_eq!((unsettled.open(), unsettled.slots.len()), (0, 0));
        }
    }

    #[test]
    fn a_slow_one_at_the_front_holds_the_others_back_for_a_moment_only() {
        let (mut unsettled, now) = (Unsettled::new(), Instant::now());
        for tag in 1..=4 {
            unsettled.deliver(tag).unwrap();
        }
        for tag in [2, 4] {
            assert!(unsettled.report(tag, Settlement::Ack, now).is_none());
        }
        assert_eq!((unsettled.take_prefix(), unsettled.take_overdue(now)), (None, vec![]));
        assert_eq!(unsettled.next_overdue(), Some(now + PATIENCE));
        assert_eq!(unsettled.take_overdue(now + PATIENCE), [2, 4]);
        assert_eq!((unsettled.open(), unsettled.next_overdue()), (2, None));
        for tag in [1, 3] {
            assert!(unsettled.report(tag, Settlement::Ack, now).is_none());
        }
        assert_eq!((unsettled.take_prefix(), unsettled.open()), (Some(3), 0));
    }

    #[test]
    fn a_tag_out_of_order_is_noticed() {
        let mut unsettled = Unsettled::new();
        assert_eq!(unsettled.deliver(2), Err(OutOfOrder));
        assert_eq!(unsettled.deliver(1), Ok(()));
        assert_eq!(unsettled.deliver(1), Err(OutOfOrder));
        assert!(unsettled.report(9, Settlement::Ack, Instant::now()).is_none());
    }
}
