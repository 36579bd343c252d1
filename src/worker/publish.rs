//! Results on their way out: made, published until the broker has confirmed them, and copied to whoever asked.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::dispatch::all;
use super::mailbox::{Properties, Publication, PublishError, Receipt, Route};
use super::run::Worker;
use super::trace::{Confirm, Story};
use crate::domain::id::Identity;
use crate::domain::outcome::{self, Outcome};
use crate::pause::Pause;

/// The pause after a result that nobody took; it doubles up to [`UNCONFIRMED_PAUSE_MAX`].
const UNCONFIRMED_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause before a result is published again.
const UNCONFIRMED_PAUSE_MAX: Duration = Duration::from_secs(5);

/// An outcome, ready to be published.
pub(super) fn publish_outcome(identity: &Identity, outcome: &Outcome<'_>, key: Arc<str>) -> Publication {
    Publication {
        route: Route::Results(key),
        kind: outcome::KIND,
        message_id: Arc::from(&*identity.outcome_id().hyphenated().encode_lower(&mut Uuid::encode_buffer())),
        body: outcome.to_json(),
        correlation_id: None,
        traceparent: None,
        tracestate: None,
    }
}

/// Copies the outcome to the queue that the publisher asked for.
pub(super) fn reply<G>(worker: &Worker<G>, properties: &Properties, outcome: &Publication) {
    if let Some(queue) = &properties.reply_to {
        worker.outbox.copy(Publication { route: Route::Reply(queue.as_str().into()), ..outcome.clone() });
    }
}

/// Publishes until the broker has confirmed all, as long as the delivery can still be settled. False: it cannot, and the
/// broker gives it to somebody else.
pub(super) async fn confirm<G>(
    worker: &Worker<G>,
    publications: &[Publication],
    receipt: &Receipt,
    story: Option<&mut Story>,
) -> bool {
    let began = Instant::now();
    let results = all(publications.iter().map(|result| confirm_one(worker, result, receipt))).await;
    let confirmed = results.into_iter().all(|confirmed| confirmed);
    let ended = Instant::now();
    worker.metrics.stage("confirm", ended - began);
    if let Some(story) = story {
        story.confirm = Some(Confirm { began, ended, count: publications.len(), confirmed });
    }
    confirmed
}

async fn confirm_one<G>(worker: &Worker<G>, publication: &Publication, receipt: &Receipt) -> bool {
    let mut pause = None;
    let mut attempt = worker.untaken.attempt();
    loop {
        // While the broker takes nothing, only the end of the delivery ends the wait.
        let published = tokio::select! {
            biased;
            published = worker.outbox.publish(publication.clone()) => published,
            () = receipt.gone() => return false,
        };
        match published {
            Ok(()) => {
                attempt.taken();
                if let (true, Route::Results(key)) = (worker.copies_live, &publication.route) {
                    worker
                        .outbox
                        .copy(Publication { route: Route::Live(key.clone()), ..publication.clone() });
                }
                return true;
            }
            Err(_) if !receipt.is_live() => return false,
            Err(error) => {
                // A connection that is lost is told by the one who keeps it.
                if error != PublishError::Lost {
                    attempt.failed(publication, &error, worker.now());
                }
                let pause = pause.get_or_insert_with(|| {
                    Pause::new(UNCONFIRMED_PAUSE, UNCONFIRMED_PAUSE_MAX, worker.jitter.clone())
                });
                let pause = pause.lengthen();
                tokio::select! {
                    biased;
                    () = receipt.gone() => return false,
                    () = sleep(pause) => {}
                }
            }
        }
    }
}

/// An event as JSON. Our own types of texts and numbers: writing them to memory cannot fail.
pub(super) fn to_json(event: &impl Serialize) -> Arc<[u8]> {
    serde_json::to_vec(event).expect("texts and numbers written to memory").into()
}
