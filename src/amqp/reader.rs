//! Reads one queue for as long as a session lives.
//!
//! Each queue has a channel and a part of the prefetch of its own, and what goes wrong with it (it is missing or was deleted,
//! the broker cancels its consumer, its replicas have no majority, the user may not) is no matter of the others: their
//! deliveries stay with us, their calls ring, and somebody looks again now and then for the one that could not be read.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::dial::Link;
use super::inbox::Inbox;
use super::limit::ask;
use super::supervisor::{Phase, phase_of};
use super::terms::Terms;
use super::topology::{EXPIRED, Look, Thing, look};
use super::{Error, Settings, Status};
use crate::metrics::Metrics;
use crate::worker::mailbox::Delivery;

/// How long until somebody looks again for a queue that could not be read: at first, since a queue whose leader moves is there
/// again in a moment, and then each time twice as long, up to the last. A try that took longer than that begins anew.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// What reads one queue.
pub(super) struct Reader<'a> {
    pub(super) link: &'a Link,
    /// One of the invites queues, or that of what the broker gave up on, without which the worker is as ready as with it.
    pub(super) queue: String,
    pub(super) settings: watch::Receiver<Settings>,
    /// A weak sender: while nothing is read, the worker must see the end of deliveries all the same.
    pub(super) deliveries: mpsc::WeakSender<Delivery>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) status: Status,
    pub(super) metrics: Arc<Metrics>,
    /// The log has it already that there is no such queue.
    pub(super) missing_told: bool,
}

impl Reader<'_> {
    /// Hands on and settles until the phase says that it is over. An error is the session's: the connection is lost, or the
    /// queue is to be declared anew.
    pub(super) async fn read(mut self) -> Result<(), Error> {
        let mut told = self.missing_told.then(|| self.missing().to_string());
        let mut pause = AGAIN;
        while phase_of(&self.phase) == Phase::Running {
            let began = Instant::now();
            // The connection itself answers this one; where it does not, it is of no use to the others either.
            let mut channel = self.link.channel().await?;
            let Err(error) = self.serve(&mut channel, &mut told).await else { return Ok(()) };
            let declares = self.settings.borrow().declare && matches!(error, Error::Missing(_));
            if declares || !self.link.connection().status().connected() {
                return Err(error);
            }
            let why = error.to_string();
            self.show(Some(&why));
            if told.as_ref() != Some(&why) {
                self.tell(&why);
                told = Some(why);
            }
            leave(&channel).await;
            if began.elapsed() > AGAIN_MAX {
                pause = AGAIN;
            }
            self.rest(pause).await;
            pause = AGAIN_MAX.min(2 * pause);
        }
        Ok(())
    }

    /// Begins to consume and serves, on a channel that is to be left if it fails. A consumer that the broker begins only when
    /// nobody waits for it any more would keep its messages for as long as the channel is open.
    async fn serve(&self, channel: &mut Channel, told: &mut Option<String>) -> Result<(), Error> {
        let is_missing = look(channel, &Thing::Queue(self.queue.clone())).await? == Look::Missing;
        self.metrics.amqp_missing(&self.queue, is_missing);
        if is_missing {
            return Err(self.missing());
        }
        // A look that was refused has closed it.
        if !channel.status().connected() {
            *channel = self.link.channel().await?;
        }
        let terms = Terms::of(&self.settings.borrow(), &self.queue);
        let inbox = Inbox::open(channel.clone(), &self.queue, terms).await?;
        let Some(deliveries) = self.deliveries.upgrade() else {
            leave(channel).await;
            return Ok(());
        };
        let _reading = Reading::of(&self.metrics, &self.queue);
        self.show(None);
        if told.take().is_some() {
            tracing::info!(amqp.queue = self.queue, "the queue is read again");
        }
        let (phase, settings) = (self.phase.clone(), self.settings.clone());
        inbox.serve(Some(deliveries), phase, settings, Arc::clone(&self.metrics)).await
    }

    fn missing(&self) -> Error {
        Error::Missing(vec![Thing::Queue(self.queue.clone())])
    }

    /// Readiness depends on the invites queues alone; of the other one it has a note.
    fn show(&self, unread: Option<&str>) {
        if self.queue == EXPIRED {
            let note = |why| format!("what the broker gave up on is not answered: {why}");
            self.status.note(EXPIRED, unread.map(note));
        } else {
            self.status.read(&self.queue, unread);
        }
    }

    fn tell(&self, why: &str) {
        let (queue, reason) = (self.queue.as_str(), why);
        if queue == EXPIRED {
            tracing::warn!(
                amqp.reason = reason,
                "what the broker gave up on is not answered for now; invites are rung as ever"
            );
        } else {
            tracing::warn!(
                amqp.queue = queue,
                amqp.reason = reason,
                "a queue of invites is not read; trying again until it is, and the others are read as ever"
            );
        }
    }

    /// Waits, but not beyond [`Phase::Running`].
    async fn rest(&mut self, pause: Duration) {
        tokio::select! {
            biased;
            // An error is a sender that is gone: the end, too.
            _ = self.phase.wait_for(|phase| *phase != Phase::Running) => {}
            () = sleep(pause) => {}
        }
    }
}

/// Closes a channel that may be open still, so that the broker gives what was unsettled on it to somebody else.
async fn leave(channel: &Channel) {
    if channel.status().connected()
        && let Err(slow) = ask("closing a channel", channel.close(200, "OK".into())).await
    {
        tracing::debug!(amqp.reason = slow, "the broker is slow with a channel that is left");
    }
}

/// Shows in the metrics that a queue is read, for as long as it is kept.
struct Reading<'a> {
    metrics: &'a Metrics,
    queue: &'a str,
}

impl<'a> Reading<'a> {
    fn of(metrics: &'a Metrics, queue: &'a str) -> Self {
        metrics.amqp_reading(queue, true);
        Self { metrics, queue }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.metrics.amqp_reading(self.queue, false);
    }
}
