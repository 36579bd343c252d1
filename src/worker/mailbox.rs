//! The two flows between the broker and the worker: deliveries in, publications out.
//!
//! Both are bounded channels, so the other end is the test double: the AMQP rooms, `ringcast pipe` and the model broker
//! of the simulation all fill and drain the same two types. This is the only file outside `amqp/` that uses AMQP's
//! words.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::domain::trace::{TraceContext, TraceId};

/// One message from an invites queue, or one that the broker gave up on. It stays unacknowledged until its [`Receipt`] is settled.
#[derive(Debug)]
pub struct Delivery {
    /// The message body as it came.
    pub body: Bytes,
    /// The properties that the worker reads.
    pub properties: Properties,
    /// The broker says that this message was delivered before, to whomever.
    pub redelivered: bool,
    /// How often it was returned to its queue before, for whatever reason, where the broker counts.
    pub returned: Option<u32>,
    /// The broker gave the message up: it is answered, and never pushed.
    pub given_up: Option<GivenUp>,
    /// Settles the delivery. It travels with the work.
    pub receipt: Receipt,
}

/// AMQP properties of a delivery, as far as the contract reads them. Odd values are left out, never an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// `message_id`, part of the invite's identity. An empty one counts as absent.
    pub message_id: Option<String>,
    /// `correlation_id`, carried to every result.
    pub correlation_id: Option<String>,
    /// `reply_to`: a queue that gets an unconfirmed copy of the outcome.
    pub reply_to: Option<String>,
    /// `content_encoding`; an invite that has one is malformed, because a push must not be compressed.
    pub content_encoding: Option<String>,
    /// W3C trace context from `headers.traceparent`, carried to every result.
    pub traceparent: Option<String>,
    /// W3C trace context from `headers.tracestate`, carried to every result.
    pub tracestate: Option<String>,
}

/// Why the broker gave a message up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// It waited longer than its time to live.
    Expired,
    /// It was returned to its queue more often than the queue's delivery limit allows.
    DeliveryLimit,
    /// It lies among those given up, and does not say why.
    Unsaid,
}

/// What the broker is told about one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: everything it caused was confirmed. `basic.ack`.
    Ack,
    /// Unreadable, poison or given up for no known reason, and its outcome was confirmed: dead-letter the original.
    /// `basic.reject`, no requeue.
    Reject,
    /// Its handler died: somebody should try again, and it counts towards the delivery limit. `basic.reject`, requeue.
    Requeue,
    /// It was not started and this worker stops: a planned give-back. `basic.nack`, requeue, which does not
    /// count towards the delivery limit from RabbitMQ 4.3 on; before, it does.
    GiveBack,
}

/// The duty to settle one delivery, exactly once. Dropped unsettled (a panic, a lost publish) it means
/// [`Settlement::Requeue`].
#[derive(Debug)]
pub struct Receipt {
    delivery_tag: u64,
    settlements: Option<mpsc::Sender<(u64, Settlement)>>,
}

impl Receipt {
    /// A receipt that reports to `settlements`. The channel must hold as many settlements as there can be unsettled
    /// deliveries (the prefetch), because settling never waits.
    pub fn new(delivery_tag: u64, settlements: mpsc::Sender<(u64, Settlement)>) -> Self {
        Self { delivery_tag, settlements: Some(settlements) }
    }

    /// Everything this delivery caused was confirmed.
    pub fn ack(self) {
        self.settle(Settlement::Ack);
    }

    /// The delivery is unreadable or poison, and its outcome was confirmed.
    pub fn reject(self) {
        self.settle(Settlement::Reject);
    }

    /// The delivery was not started; another worker shall have it.
    pub fn give_back(self) {
        self.settle(Settlement::GiveBack);
    }

    /// Whether settling can still reach the broker. False once the AMQP channel is gone: the broker gives the message
    /// to somebody else, so starting work on it would ring twice.
    pub fn is_live(&self) -> bool {
        self.settlements.as_ref().is_some_and(|sender| !sender.is_closed())
    }

    /// Returns when settling cannot reach the broker any more.
    pub async fn gone(&self) {
        if let Some(sender) = &self.settlements {
            sender.closed().await;
        }
    }

    fn settle(mut self, settlement: Settlement) {
        self.send(settlement);
    }

    fn send(&mut self, settlement: Settlement) {
        if let Some(sender) = self.settlements.take() {
            // Closed: the AMQP channel is gone and the broker requeues by itself. Full cannot be, by `new`.
            let _ = sender.try_send((self.delivery_tag, settlement));
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.send(Settlement::Requeue);
    }
}

/// Where a publication goes. The names are shared, not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The results exchange, with this routing key: persistent, `mandatory`, confirmed.
    Results(Arc<str>),
    /// A queue by name through the default exchange: a copy that nobody waits for.
    Reply(Arc<str>),
    /// The live exchange, with this routing key: a copy that nobody waits for.
    Live(Arc<str>),
}

/// One message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Where to.
    pub route: Route,
    /// AMQP `type`, e.g. `ringcast.outcome.v1`.
    pub kind: &'static str,
    /// AMQP `message_id`: the same for every copy of one result.
    pub message_id: Arc<str>,
    /// JSON.
    pub body: Arc<[u8]>,
    /// The invite's `correlation_id`.
    pub correlation_id: Option<String>,
    /// The invite's `traceparent` header.
    pub traceparent: Option<String>,
    /// The invite's `tracestate` header.
    pub tracestate: Option<String>,
}

impl Publication {
    /// The trace that it is part of, for the log.
    pub(super) fn trace_id(&self) -> Option<TraceId> {
        TraceContext::parse(self.traceparent.as_deref()?).map(|context| context.trace_id)
    }

    /// One for tests to change.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        Self {
            route: Route::Results("outcome.acme".into()),
            kind: "ringcast.outcome.v1",
            message_id: "m".into(),
            body: (*b"{}").into(),
            correlation_id: None,
            traceparent: None,
            tracestate: None,
        }
    }
}

/// Why a publication was not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound for it: the broker sent it back (`basic.return`). Nobody has it; the same publication may be
    /// tried again.
    #[error("the broker returned it: {0}")]
    Returned(String),
    /// The broker refused it (`basic.nack`). The same publication may be tried again.
    #[error("the broker refused it: its queue is full, or has no leader now")]
    Nacked,
    /// The broker did not answer, though the connection lives: the limit passed, or the channel was closed over this or
    /// another publication. It may or may not have it; the same publication may be tried again.
    #[error("the broker did not confirm it: {0}")]
    Unconfirmed(String),
    /// The connection went before the broker answered: it may or may not have it.
    #[error("the connection was lost before the broker confirmed it")]
    Lost,
}

/// A publication on its way to the publisher task, with the promise to answer.
#[derive(Debug)]
pub struct Posting {
    /// What to publish.
    pub publication: Publication,
    /// Where the answer goes. Dropping it means [`PublishError::Lost`].
    pub answer: oneshot::Sender<Result<(), PublishError>>,
}

/// The worker's end of the flow out. Clones post to the same publisher task.
#[derive(Clone, Debug)]
pub struct Outbox(mpsc::Sender<Posting>);

/// An outbox and the end that a publisher task drains. At most `capacity` postings wait in between.
pub fn outbox(capacity: usize) -> (Outbox, mpsc::Receiver<Posting>) {
    let (sender, receiver) = mpsc::channel(capacity);
    (Outbox(sender), receiver)
}

impl Outbox {
    /// Publishes and returns when the broker has confirmed. While there is no broker, it waits.
    pub async fn publish(&self, publication: Publication) -> Result<(), PublishError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Posting { publication, answer }).await.map_err(|_| PublishError::Lost)?;
        answered.await.unwrap_or(Err(PublishError::Lost))
    }

    /// Posts a copy that nobody waits for. It is left out when there is no room: a result never waits for a copy.
    pub fn copy(&self, publication: Publication) {
        let (answer, _) = oneshot::channel();
        let _ = self.0.try_send(Posting { publication, answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt() -> (Receipt, mpsc::Receiver<(u64, Settlement)>) {
        let (sender, receiver) = mpsc::channel(1);
        (Receipt::new(7, sender), receiver)
    }

    #[test]
    fn a_receipt_settles_once_as_told() {
        for (settle, expected) in [
            (Receipt::ack as fn(Receipt), Settlement::Ack),
            (Receipt::reject, Settlement::Reject),
            (Receipt::give_back, Settlement::GiveBack),
            (drop::<Receipt>, Settlement::Requeue),
        ] {
            let (receipt, mut settled) = receipt();
            settle(receipt);
            assert_eq!(settled.try_recv(), Ok((7, expected)));
            assert!(settled.try_recv().is_err(), "settled twice");
        }
    }

    #[test]
    fn a_receipt_knows_when_its_channel_is_gone() {
        let (receipt, settled) = receipt();
        assert!(receipt.is_live());
        drop(settled);
        assert!(!receipt.is_live());
        receipt.ack();
    }

    #[tokio::test]
    async fn a_dropped_posting_is_lost() {
        let (outbox, mut postings) = outbox(1);
        let (answer, ()) = tokio::join!(outbox.publish(Publication::sample()), async {
            drop(postings.recv().await);
        });
        assert_eq!(answer, Err(PublishError::Lost));
    }
}
