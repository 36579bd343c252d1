//! One invites queue, or the queue of what the broker gave up on: consumes, hands deliveries to the worker, and settles them.
//!
//! One task does both, because acks from several tasks overtake each other and kill the channel. The worker's receipts
//! report through a channel that this task owns: once the task has ended, every receipt still out says that it is not
//! live any more, and the broker gives those messages to somebody else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as Message;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions,
};
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::describe::describe;
use super::limit::{ANSWER, ask};
use super::properties;
use super::settlement::Unsettled;
use super::supervisor::{Phase, phase_of};
use super::terms::{PREFETCH_MAX, Terms};
use super::topology::EXPIRED;
use super::{Error, Settings};
use crate::metrics::Metrics;
use crate::worker::mailbox::{Delivery, Receipt, Settlement};

/// So many settlements of a channel are on their way into a quorum queue's log at one time; RabbitMQ keeps further ones back.
const UNDER_WAY_MAX: usize = 32;
/// How long they may take. A quorum queue writes its log many times in that.
const ARRIVED_WITHIN: Duration = Duration::from_secs(1);

/// A consumer that has begun, on a channel of its own.
pub(super) struct Inbox {
    queue: String,
    terms: Terms,
    channel: Channel,
    consumer: Consumer,
}

impl Inbox {
    /// Begins to consume from `queue` on a channel that nobody else uses.
    pub(super) async fn open(channel: Channel, queue: &str, terms: Terms) -> Result<Self, Error> {
        let consumer = consume(&channel, queue, terms, "ringcast").await?;
        Ok(Self { queue: queue.to_owned(), terms, channel, consumer })
    }

    /// Hands on and settles until [`Phase::Closing`] (then `Ok`) or until the channel is of no use any more. Other terms in
    /// `settings` are taken over on the way.
    pub(super) async fn serve(
        self,
        deliveries: Option<mpsc::Sender<Delivery>>,
        mut phase: watch::Receiver<Phase>,
        mut settings: watch::Receiver<Settings>,
        metrics: Arc<Metrics>,
    ) -> Result<(), Error> {
        // As many as can be unsettled, under two terms while they change: a receipt never waits.
        let (reporter, mut settlements) = mpsc::channel(2 * usize::from(PREFETCH_MAX) + 1);
        let mut reports = Vec::new();
        let mut serving = Serving {
            queue: self.queue,
            terms: self.terms,
            renewals: 0,
            held_until: 0,
            channel: self.channel,
            consumer: self.consumer,
            consumed: false,
            deliveries,
            reporter,
            unsettled: Unsettled::new(),
            waiting: VecDeque::new(),
            refusals: Vec::new(),
            told_at: VecDeque::new(),
            gauge: Gauge { metrics, shown: 0 },
        };
        loop {
            match phase_of(&phase) {
                Phase::Running => {
                    let terms = Terms::of(&settings.borrow_and_update(), &serving.queue);
                    serving.renew(terms).await?;
                }
                Phase::Draining => serving.drain().await?,
                Phase::Closing => break,
            }
            let overdue = serving.unsettled.next_overdue();
            let mut reserved = None;
            tokio::select! {
                biased;
                // An error is a sender that is gone, which the loop's head sees as the end.
                _ = phase.changed() => {}
                // A sender that is gone changes nothing any more.
                Ok(()) = settings.changed() => {}
                // Never zero: `serving` keeps a sender.
                _ = settlements.recv_many(&mut reports, usize::from(u16::MAX)) => {}
                item = serving.consumer.next(), if !serving.consumed => serving.take(item)?,
                room = room(serving.deliveries.as_ref()), if !serving.waiting.is_empty() => reserved = room,
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {}
            }
            serving.take_all_ready()?;
            if serving.hand_on(reserved) == Worker::Gone {
                serving.drain().await?;
            }
            serving.settle(&mut reports).await?;
        }
        // The worker has settled everything that it will settle.
        settlements.close();
        while let Ok(report) = settlements.try_recv() {
            reports.push(report);
        }
        serving.give_back_waiting();
        serving.settle(&mut reports).await?;
        serving.let_arrive().await;
        Ok(())
    }
}

/// Whether the worker still takes deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    There,
    Gone,
}

/// The state of [`Inbox::serve`].
struct Serving {
    queue: String,
    terms: Terms,
    /// How often the terms have changed.
    renewals: u64,
    /// The last tag that came under the terms before these.
    held_until: u64,
    channel: Channel,
    consumer: Consumer,
    /// The consumer was cancelled by us and its stream has ended: it must not be polled again.
    consumed: bool,
    /// `None` once draining.
    deliveries: Option<mpsc::Sender<Delivery>>,
    reporter: mpsc::Sender<(u64, Settlement)>,
    unsettled: Unsettled,
    /// Consumed and not handed on yet, oldest first.
    waiting: VecDeque<Message>,
    /// Taken out of `unsettled`, to be told to the broker next.
    refusals: Vec<(u64, Settlement)>,
    /// When each of the last settlements was told, [`UNDER_WAY_MAX`] at most.
    told_at: VecDeque<Instant>,
    gauge: Gauge,
}

impl Serving {
    fn take(&mut self, item: Option<lapin::Result<Message>>) -> Result<(), Error> {
        match item {
            Some(Ok(message)) => {
                let tag = message.delivery_tag;
                self.unsettled.deliver(tag).map_err(|_| {
                    Error::Lost(format!("queue {} delivered under a tag out of order: {tag}", self.queue))
                })?;
                self.waiting.push_back(message);
                if self.deliveries.is_none() {
                    self.give_back_waiting();
                }
                Ok(())
            }
            Some(Err(error)) => {
                Err(Error::Lost(format!("consuming from queue {} ended: {}", self.queue, describe(&error))))
            }
            None if self.deliveries.is_none() => {
                self.consumed = true;
                Ok(())
            }
            None => Err(Error::Lost(format!(
                "the broker cancelled consuming from queue {}: it was deleted, its leader has moved, or a delivery was held \
                 for longer than the broker allows (consumer timeout)",
                self.queue
            ))),
        }
    }

    fn take_all_ready(&mut self) -> Result<(), Error> {
        while !self.consumed
            && let Some(item) = self.consumer.next().now_or_never()
        {
            self.take(item)?;
        }
        Ok(())
    }

    /// Hands on what the worker has room for, first into `reserved`: room that were let go would be another queue's, and might
    /// go from hand to hand for ever. A worker that stops may close its end before the phase is seen here.
    fn hand_on(&mut self, mut reserved: Option<Room>) -> Worker {
        let Some(deliveries) = &self.deliveries else { return Worker::There };
        while let Some(message) = self.waiting.front() {
            if !message.acker.usable() {
                // The channel is gone and the broker gives these to somebody else. The consumer will say why.
                self.waiting.clear();
                return Worker::There;
            }
            match reserved.take().map_or_else(|| deliveries.clone().try_reserve_owned(), Ok) {
                Ok(room) => {
                    let message = self.waiting.pop_front().expect("its front was just looked at");
                    room.send(Delivery {
                        properties: properties::read(&message.properties),
                        redelivered: message.redelivered,
                        returned: properties::returned(&message.properties),
                        given_up: (self.queue == EXPIRED).then(|| properties::given_up(&message.properties)),
                        receipt: Receipt::new(message.delivery_tag, self.reporter.clone()),
                        body: Bytes::from(message.data),
                    });
                }
                Err(mpsc::error::TrySendError::Full(_)) => return Worker::There,
                Err(mpsc::error::TrySendError::Closed(_)) => return Worker::Gone,
            }
        }
        Worker::There
    }

    /// Goes on under other terms. A new consumer takes the place of the old one, on the same channel, so that what is held
    /// stays in the worker's hands and is settled as ever. Until it is, the broker counts it beside the new prefetch; so a
    /// further change waits for it, and no more than two prefetches are ever unsettled.
    async fn renew(&mut self, terms: Terms) -> Result<(), Error> {
        if terms == self.terms || self.deliveries.is_none() || self.unsettled.first() <= self.held_until {
            return Ok(());
        }
        self.cancel().await?;
        // What was on its way comes out of the stream, which then ends.
        let rest = async {
            while let Some(item) = self.consumer.next().await {
                self.take(Some(item))?;
            }
            Ok(())
        };
        timeout(ANSWER, rest)
            .await
            .unwrap_or_else(|_| Err(Error::Lost("a cancelled consumer did not end".to_owned())))?;
        self.renewals += 1;
        let tag = format!("ringcast-{}", self.renewals);
        self.consumer = consume(&self.channel, &self.queue, terms, &tag).await?;
        self.held_until = self.unsettled.last();
        self.terms = terms;
        Ok(())
    }

    async fn cancel(&self) -> Result<(), Error> {
        let cancel = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        ask(&format!("cancelling the consumer of queue {}", self.queue), cancel).await.map_err(Error::Lost)
    }

    /// Stops consuming, once. What still comes out of the stream goes back to the queue.
    async fn drain(&mut self) -> Result<(), Error> {
        if self.deliveries.take().is_none() {
            return Ok(());
        }
        self.cancel().await?;
        self.give_back_waiting();
        self.take_all_ready()?;
        self.settle(&mut Vec::new()).await
    }

    fn give_back_waiting(&mut self) {
        let now = Instant::now();
        for message in self.waiting.drain(..) {
            self.refusals.extend(self.unsettled.report(message.delivery_tag, Settlement::GiveBack, now));
        }
    }

    /// Tells the broker all that can be told now. Everything before the `multiple` ack is written before it.
    async fn settle(&mut self, reports: &mut Vec<(u64, Settlement)>) -> Result<(), Error> {
        let now = Instant::now();
        for (tag, settlement) in reports.drain(..) {
            self.refusals.extend(self.unsettled.report(tag, settlement, now));
        }
        let overdue = self.unsettled.take_overdue(now).into_iter().map(|tag| (tag, Settlement::Ack));
        let singly: Vec<_> = self.refusals.drain(..).chain(overdue).collect();
        if !singly.is_empty() {
            let telling = singly.iter().map(|(tag, settlement)| tell(&self.channel, *tag, *settlement));
            self.told(try_join_all(telling)).await?;
            self.note_told(singly.len());
        }
        if let Some(tag) = self.unsettled.take_prefix() {
            self.told(self.channel.basic_ack(tag, BasicAckOptions { multiple: true })).await?;
            self.note_told(1);
        }
        self.gauge.show(self.unsettled.open());
        Ok(())
    }

    fn note_told(&mut self, count: usize) {
        self.told_at.extend(std::iter::repeat_n(Instant::now(), count.min(UNDER_WAY_MAX)));
        self.told_at.drain(..self.told_at.len().saturating_sub(UNDER_WAY_MAX));
    }

    /// Settlements that RabbitMQ keeps back are forgotten when their channel closes (rabbitmq-server, issue 10327): what was
    /// acked would ring again elsewhere. Nothing tells when they have arrived; this waits until so few are young that none
    /// can have been kept back for long.
    async fn let_arrive(&self) {
        if self.told_at.len() == UNDER_WAY_MAX
            && let Some(oldest) = self.told_at.front()
        {
            sleep_until(*oldest + ARRIVED_WITHIN).await;
        }
    }

    async fn told<T>(&self, telling: impl Future<Output = lapin::Result<T>>) -> Result<(), Error> {
        let told = ask(&format!("settling deliveries of queue {}", self.queue), telling).await;
        told.map(drop).map_err(Error::Lost)
    }
}

/// Begins to consume, on the terms given.
async fn consume(channel: &Channel, queue: &str, terms: Terms, tag: &str) -> Result<Consumer, Error> {
    // For the consumers that come after it: quorum queues close the connection over a global one.
    let qos = channel.basic_qos(terms.prefetch, BasicQosOptions { global: false });
    ask("setting the prefetch", qos).await.map_err(Error::Lost)?;
    let options = BasicConsumeOptions::default();
    let consume = channel.basic_consume(queue.into(), tag.into(), options, terms.arguments());
    ask(&format!("consuming from queue {queue}"), consume).await.map_err(Error::Lost)
}

/// Room for one delivery, to be used.
type Room = mpsc::OwnedPermit<Delivery>;

/// Returns when the worker has room for a delivery, or is gone (`None`).
async fn room(deliveries: Option<&mpsc::Sender<Delivery>>) -> Option<Room> {
    match deliveries {
        Some(deliveries) => deliveries.clone().reserve_owned().await.ok(),
        None => std::future::pending().await,
    }
}

/// By the channel itself: the library's acker of a delivery does the same by a task of its own for each.
async fn tell(channel: &Channel, tag: u64, settlement: Settlement) -> lapin::Result<()> {
    match settlement {
        Settlement::Ack => channel.basic_ack(tag, BasicAckOptions::default()).await,
        Settlement::Reject => channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await,
        Settlement::Requeue => channel.basic_reject(tag, BasicRejectOptions { requeue: true }).await,
        Settlement::GiveBack => {
            channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
        }
    }
}

/// This channel's part of the gauge of unsettled deliveries; taken out of it again whenever and however it ends.
struct Gauge {
    metrics: Arc<Metrics>,
    shown: i64,
}

impl Gauge {
    fn show(&mut self, unsettled: usize) {
        let unsettled = i64::try_from(unsettled).unwrap_or(i64::MAX);
        if unsettled != self.shown {
            self.metrics.amqp_unsettled(unsettled - self.shown);
            self.shown = unsettled;
        }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.show(0);
    }
}
