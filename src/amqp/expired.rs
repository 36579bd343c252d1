//! The queue of what the broker gave up on, read beside the invites queues.
//!
//! Ringing does not depend on it. It has a channel and a part of the prefetch of its own, and where it cannot be read (it is
//! missing, or was deleted; the user may not) the session goes on: somebody looks again now and then.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::dial::Link;
use super::inbox::Inbox;
use super::supervisor::{Phase, phase_of};
use super::terms::Terms;
use super::topology::{EXPIRED, Look, Thing, look};
use super::{Error, Settings};
use crate::metrics::Metrics;
use crate::worker::mailbox::Delivery;

/// Where a whole connection is lost, the session ends before this, and says so itself.
const BEFORE_TOLD: Duration = Duration::from_secs(1);
/// How long until somebody looks again for a queue that could not be read.
const AGAIN: Duration = Duration::from_secs(5);

/// Hands on and settles until the phase says that it is over. `missing_told`: the log has it already that there is no such
/// queue. The sender is a weak one: while nothing is read, the worker must see the end of deliveries all the same.
pub(super) async fn read_expired(
    link: &Link,
    settings: watch::Receiver<Settings>,
    deliveries: Option<mpsc::WeakSender<Delivery>>,
    mut phase: watch::Receiver<Phase>,
    metrics: Arc<Metrics>,
    missing_told: bool,
) {
    let Some(deliveries) = deliveries else { return };
    let mut told = missing_told.then(|| missing().to_string());
    while phase_of(&phase) == Phase::Running {
        let read = async {
            let terms = Terms::of(&settings.borrow(), EXPIRED);
            let inbox = open(link, terms, &metrics).await?;
            let Some(deliveries) = deliveries.upgrade() else { return Ok(()) };
            inbox.serve(Some(deliveries), phase.clone(), settings.clone(), Arc::clone(&metrics)).await
        };
        let Err(error) = read.await else { return };
        rest(BEFORE_TOLD, &mut phase).await;
        let why = error.to_string();
        if told.as_ref() != Some(&why) {
            tracing::warn!(
                amqp.reason = %why,
                "what the broker gave up on is not answered for now; invites are rung as ever"
            );
            told = Some(why);
        }
        rest(AGAIN, &mut phase).await;
    }
}

async fn open(link: &Link, terms: Terms, metrics: &Metrics) -> Result<Inbox, Error> {
    let is_missing = look(&link.channel().await?, &Thing::Queue(EXPIRED.to_owned())).await? == Look::Missing;
    metrics.amqp_missing(EXPIRED, is_missing);
    if is_missing {
        return Err(missing());
    }
    Inbox::open(link, EXPIRED, terms).await
}

fn missing() -> Error {
    Error::Missing(vec![Thing::Queue(EXPIRED.to_owned())])
}

/// Waits, but not beyond [`Phase::Running`].
async fn rest(pause: Duration, phase: &mut watch::Receiver<Phase>) {
    tokio::select! {
        biased;
        // An error is a sender that is gone: the end, too.
        _ = phase.wait_for(|phase| *phase != Phase::Running) => {}
        () = sleep(pause) => {}
    }
}
