//! What waits for a way out to one destination, and the lanes that lead there.

use std::collections::VecDeque;

use lapin::Channel;
use tokio::time::Instant;

use crate::worker::mailbox::{Posting, Route};

/// Batches on their way to one destination at once.
const LANES: usize = 4;
/// Publications of one batch at most; 800 unconfirmed of a destination. A channel may have 200 on their way whatever
/// happens to their queue; beyond that, RabbitMQ's flow control stops reading from the whole connection
/// (`credit_flow_default_credit` is 400, renewed by 200). The client library scans all of a channel's for each confirm of
/// many.
pub(super) const BATCH: usize = 200;

/// Where a posting goes: the first word of a result's routing key; `None`: it is a copy.
pub(super) fn destination(posting: &Posting) -> Option<&str> {
    match &posting.publication.route {
        Route::Results(key) => Some(key.split('.').next().unwrap_or_default()),
        Route::Reply(_) | Route::Live(_) => None,
    }
}

/// A channel that carries one batch at a time.
pub(super) struct Lane {
    pub(super) channel: Channel,
    pub(super) since: Instant,
}

/// The lanes to one destination, and what waits for one. While the broker takes nothing, invites come and go with the channels that
/// consume, each time with results: of those that wait, nobody wants any more what was posted for a delivery that is gone. So no more
/// can wait than twice what the worker has unsettled.
pub(super) struct Road {
    /// As [`destination`] has it.
    pub(super) destination: Option<String>,
    waiting: VecDeque<Posting>,
    pub(super) idle: Vec<Lane>,
    lanes: usize,
}

impl Road {
    pub(super) fn to(destination: Option<&str>) -> Self {
        let destination = destination.map(str::to_owned);
        Self { destination, waiting: VecDeque::new(), idle: Vec::new(), lanes: 0 }
    }

    pub(super) fn carries_results(&self) -> bool {
        self.destination.is_some()
    }

    /// Makes it wait for a lane. Gives back a copy for which there is no room.
    pub(super) fn take(&mut self, posting: Posting) -> Option<Posting> {
        if !self.carries_results() {
            if self.waiting.len() >= BATCH {
                return Some(posting);
            }
        } else if self.waiting.len() == self.waiting.capacity() {
            // Before it grows.
            self.waiting.retain(is_wanted);
        }
        self.waiting.push_back(posting);
        None
    }

    /// The next batch and its lane, which is to be opened where there is none yet.
    pub(super) fn next(&mut self) -> Option<(Option<Lane>, Vec<Posting>)> {
        if self.idle.is_empty() && self.lanes == LANES {
            return None;
        }
        let all_wanted = !self.carries_results();
        let mut batch = Vec::with_capacity(self.waiting.len().min(BATCH));
        while batch.len() < BATCH
            && let Some(posting) = self.waiting.pop_front()
        {
            if all_wanted || is_wanted(&posting) {
                batch.push(posting);
            }
        }
        if batch.is_empty() {
            return None;
        }
        let lane = self.idle.pop();
        self.lanes += usize::from(lane.is_none());
        Some((lane, batch))
    }
}

/// Whether somebody waits for the answer. Whoever let go of a result has lost its delivery, and with that comes another one. (Nobody
/// waits for copies.)
fn is_wanted(posting: &Posting) -> bool {
    !posting.answer.is_closed()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::worker::mailbox::{Publication, PublishError};

    type Answered = oneshot::Receiver<Result<(), PublishError>>;

    fn posting(route: Route) -> (Posting, Answered) {
        let (answer, answered) = oneshot::channel();
        (Posting { publication: Publication { route, ..Publication::sample() }, answer }, answered)
    }

    fn results(road: &mut Road, count: usize) -> Vec<Answered> {
        let post = |_| {
            let (posting, answered) = posting(Route::Results("outcome.acme".into()));
            assert!(road.take(posting).is_none(), "results always find room");
            answered
        };
        (0..count).map(post).collect()
    }

    #[test]
    fn what_nobody_waits_for_is_not_published() {
        let mut road = Road::to(Some("outcome"));
        let gone = results(&mut road, 3);
        let mut held = results(&mut road, 2);
        drop(gone);
        held.extend(results(&mut road, 1));
        let (lane, batch) = road.next().expect("a batch");
        assert!(lane.is_none() && batch.len() == 3 && batch.iter().all(is_wanted));
        assert!(road.next().is_none(), "nothing waits");
        drop(results(&mut road, 1));
        assert!(road.next().is_none(), "no lane is opened for nothing");
        assert_eq!(road.lanes, 1);
    }

    #[test]
    fn while_nothing_leaves_no_more_waits_than_somebody_wants_twice() {
        let mut road = Road::to(Some("outcome"));
        road.lanes = LANES;
        // A consuming channel is lost again and again, and what was held comes again each time.
        for _ in 0..50 {
            drop(results(&mut road, 100));
            assert!(road.next().is_none(), "all lanes are busy");
        }
        let _held = results(&mut road, 100);
        assert!(road.waiting.len() <= 300, "{} wait", road.waiting.len());
    }

    #[test]
    fn copies_leave_though_nobody_waits_and_have_a_room_of_their_own() {
        let mut road = Road::to(None);
        let copy = || posting(Route::Reply("caller".into())).0;
        assert!((0..BATCH).all(|_| road.take(copy()).is_none()));
        assert!(road.take(copy()).is_some());
        assert_eq!(road.next().expect("a batch").1.len(), BATCH);
    }
}
