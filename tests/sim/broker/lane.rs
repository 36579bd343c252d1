//! How results reach the broker: batch by batch, each answered as a whole, as `src/amqp/outbox.rs` has it.

use std::collections::BTreeMap;
use std::time::Duration;

use ringcast::worker::mailbox::{Posting, Route};
use tokio::time::sleep;

use super::habit::Fate;
use super::{Broker, Happening};

/// Batches on their way at once.
pub(super) const LANES: usize = 4;
/// Publications of one batch at most.
pub(super) const BATCH: usize = 256;
/// How long a worker waits for confirms before it gives the session up.
const ANSWER: Duration = Duration::from_secs(10);

/// The confirms of a batch did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overdue;

/// Results on their way. Dropped unanswered (the session ended) the worker learns that they are lost, and the broker has
/// them or not.
struct Batch {
    broker: Broker,
    worker: u64,
    postings: Vec<(Posting, Option<Sent>)>,
}

/// What the broker has read.
struct Sent {
    fate: Fate,
    stored: bool,
}

/// Carries one batch; dropped where the session ends.
pub(super) async fn carry(broker: Broker, worker: u64, batch: Vec<Posting>) -> Result<(), Overdue> {
    let (results, copies): (Vec<_>, Vec<_>) =
        batch.into_iter().partition(|posting| matches!(posting.publication.route, Route::Results(_)));
    let postings = results.into_iter().map(|posting| (posting, None)).collect();
    let mut batch = Batch { broker: broker.clone(), worker, postings };
    calm(&broker).await;
    let wait = batch.send();
    for copy in copies {
        // Nobody waits for it.
        let _ = copy.answer.send(Ok(()));
    }
    match wait {
        Some(wait) if wait < ANSWER => sleep(wait).await,
        _ => {
            // An alarm stops the clock of whoever waits.
            while {
                calm(&broker).await;
                sleep(ANSWER).await;
                broker.weather().alarm
            } {}
            return Err(Overdue);
        }
    }
    batch.answer();
    Ok(())
}

async fn calm(broker: &Broker) {
    broker.weather_until(|weather| !weather.alarm).await;
}

impl Batch {
    /// The broker reads them. Returns when the last is answered; `None`: never. Twins share their fate, as they do for
    /// `src/amqp/fate.rs`.
    fn send(&mut self) -> Option<Duration> {
        let (broker, mut fates) = (self.broker.clone(), BTreeMap::new());
        let mut longest = Some(Duration::ZERO);
        for (posting, sent) in &mut self.postings {
            let Route::Results(key) = &posting.publication.route else { continue };
            let draw = || {
                let fate = broker.habits().fate(broker.dice(), broker.is_bound(key));
                let at_once = fate.stored && broker.dice().chance(0.5);
                (fate, at_once)
            };
            let (fate, stored) = fates.entry(&posting.publication.message_id).or_insert_with(draw).clone();
            if stored {
                broker.store(&posting.publication);
            }
            longest = longest.and_then(|longest| Some(longest.max(fate.wait?)));
            *sent = Some(Sent { fate, stored });
        }
        longest
    }

    fn answer(&mut self) {
        for (posting, sent) in &mut self.postings {
            if let Some(Sent { fate: Fate { stored: true, .. }, stored: stored @ false }) = sent {
                *stored = true;
                self.broker.store(&posting.publication);
            }
        }
        let (broker, worker) = (self.broker.clone(), self.worker);
        for (posting, sent) in self.postings.drain(..) {
            let Some(Sent { fate, .. }) = sent else { continue };
            let message_id = posting.publication.message_id;
            // Whoever asked may have been killed, or may not care any more.
            if posting.answer.send(fate.answer.clone()).is_ok() && fate.answer.is_ok() {
                broker.note(|at| Happening::Confirmed { at, worker, message_id });
            }
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for (posting, sent) in &self.postings {
            if let Some(Sent { fate: Fate { stored: true, .. }, stored: false }) = sent
                && self.broker.dice().chance(0.5)
            {
                self.broker.store(&posting.publication);
            }
        }
    }
}
