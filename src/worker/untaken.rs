//! Results that the broker does not take: how many, since when, and why.
//!
//! Their invites stay unacknowledged, and once there are as many as the prefetch, nothing more is taken. That is meant: a
//! worker that cannot say what became of a call must not go on for ever. So it must be seen: in the log, in the metrics
//! and in readiness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::mailbox::{Publication, PublishError};
use super::report::Seldom;
use crate::domain::timestamp::Timestamp;

/// A result that is not taken for so long is no hiccup: a leader that changes takes about a second.
const LASTING: Duration = Duration::from_secs(10);

/// A handle; clones show the same results.
#[derive(Clone, Debug, Default)]
pub struct Untaken(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// By the order in which they were first not taken: the first is the oldest.
    waiting: Mutex<BTreeMap<u64, Waiting>>,
    seldom: Seldom,
    /// The log says that results are not taken.
    is_told: AtomicBool,
}

#[derive(Debug)]
struct Waiting {
    since: Timestamp,
    began: Instant,
    why: String,
}

/// What is not taken now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// How many results.
    pub count: usize,
    /// For how long the oldest one.
    pub age: Duration,
    /// It lasts, so that the worker does not count as ready.
    pub is_lasting: bool,
    /// A sentence for an operator.
    pub text: String,
}

impl Untaken {
    /// A result is about to be published.
    pub(super) fn attempt(&self) -> Attempt<'_> {
        Attempt { untaken: self, place: None }
    }

    /// What is not taken now; `None`: nothing.
    pub fn backlog(&self) -> Option<Backlog> {
        let waiting = self.0.waiting.lock();
        let oldest = waiting.values().next()?;
        let (count, age) = (waiting.len(), oldest.began.elapsed());
        let text = format!(
            "results are not taken and their invites stay unacknowledged: {count}, the oldest since {}: {}",
            oldest.since, oldest.why
        );
        Some(Backlog { count, age, is_lasting: age >= LASTING, text })
    }
}

/// One result, from its first publication to its end. Dropped, it does not wait any more.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    untaken: &'a Untaken,
    place: Option<u64>,
}

impl Attempt<'_> {
    /// It was not taken, and will be published again.
    pub(super) fn failed(&mut self, publication: &Publication, error: &PublishError, now: Timestamp) {
        let shared = &self.untaken.0;
        {
            let mut waiting = shared.waiting.lock();
            let next = waiting.last_key_value().map_or(0, |(last, _)| last + 1);
            let place = *self.place.get_or_insert(next);
            let why = error.to_string();
            waiting
                .entry(place)
                .and_modify(|waiting| waiting.why.clone_from(&why))
                .or_insert_with(|| Waiting { since: now, began: Instant::now(), why });
        }
        // Every invite meets it at once; the metric counts them all.
        if shared.seldom.is_due() {
            shared.is_told.store(true, Ordering::Relaxed);
            tracing::warn!(
                amqp.message_id = &*publication.message_id,
                trace.id = publication.trace_id().map(tracing::field::display),
                kind = publication.kind,
                error = %error,
                "results are not taken; their invites stay unacknowledged until that is mended (what is missing, \
                 `ringcast topology declare` makes)"
            );
        }
    }

    /// The broker has it.
    pub(super) fn taken(mut self) {
        self.leave();
        let shared = &self.untaken.0;
        if shared.is_told.load(Ordering::Relaxed)
            && shared.waiting.lock().is_empty()
            && shared.is_told.swap(false, Ordering::Relaxed)
        {
            tracing::info!("results are taken again, and none waits");
        }
    }

    fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            self.untaken.0.waiting.lock().remove(&place);
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_ms(1_795_253_400_000);

    #[tokio::test(start_paused = true)]
    async fn the_oldest_is_told_with_its_last_reason_until_it_is_taken() {
        let (untaken, publication) = (Untaken::default(), Publication::sample());
        let mut first = untaken.attempt();
        assert_eq!(untaken.backlog(), None);
        first.failed(&publication, &PublishError::Nacked, NOW);
        tokio::time::advance(LASTING / 2).await;
        let mut second = untaken.attempt();
        second.failed(&publication, &PublishError::Nacked, NOW.plus(LASTING / 2));
        first.failed(&publication, &PublishError::Returned("NO_ROUTE".into()), NOW.plus(LASTING));
        let backlog = untaken.backlog().expect("two wait");
        assert_eq!((backlog.count, backlog.age, backlog.is_lasting), (2, LASTING / 2, false));
        assert!(
            backlog.text.ends_with(
                ": 2, the oldest since 2026-11-21T09:30:00.000Z: the broker returned it: NO_ROUTE"
            ),
            "{backlog:?}"
        );
        tokio::time::advance(LASTING / 2).await;
        assert!(untaken.backlog().expect("two wait").is_lasting);
        first.taken();
        let backlog = untaken.backlog().expect("one waits");
        assert_eq!((backlog.count, backlog.age, backlog.is_lasting), (1, LASTING / 2, false));
        drop(second);
        assert_eq!(untaken.backlog(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_others_leave_has_a_place_of_its_own() {
        let (untaken, publication) = (Untaken::default(), Publication::sample());
        let mut attempts: Vec<_> = (0..3).map(|_| untaken.attempt()).collect();
        for attempt in &mut attempts {
            attempt.failed(&publication, &PublishError::Nacked, NOW);
        }
        drop(attempts.pop());
        let mut late = untaken.attempt();
        late.failed(&publication, &PublishError::Nacked, NOW);
        assert_eq!(untaken.backlog().map(|backlog| backlog.count), Some(3));
        drop(attempts);
        assert_eq!(untaken.backlog().map(|backlog| backlog.count), Some(1));
    }
}
