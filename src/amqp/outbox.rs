//! Publishes what the worker posts, and says what became of it.
//!
//! Results go out in batches, each on a **lane**: a channel in confirm mode that carries one batch at a time, published by
//! one task in order. A batch is answered when all its confirms are in, because only then is it known which of its
//! messages came back. The lanes are independent, so a batch need not wait for the one before, and together they bound
//! what is unconfirmed. Copies, for `reply_to` and for onlookers, go over a channel without confirms beside the lane's,
//! and a refusal of a copy (the channel is closed over it) never reaches the results.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Error;
use super::describe::describe;
use super::dial::Link;
use super::fate::{Answer, Returned, fates};
use super::limit::{ANSWER, ask, patiently};
use super::supervisor::{Phase, phase_of};
use super::topology::LIVE;
use crate::metrics::Metrics;
use crate::worker::mailbox::{Posting, Publication, PublishError, Route};

/// Batches on their way at once.
const LANES: usize = 4;
/// Publications of one batch at most; 1024 unconfirmed in all. The client library scans all of a channel's for each
/// confirm of many.
const BATCH: usize = 256;
/// How long a channel for copies stays away after the broker closed it.
const COPIES_PAUSE: Duration = Duration::from_secs(1);

/// The wall clock in Unix seconds, for AMQP's `timestamp`.
pub(super) type UnixSeconds = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The lanes of one session.
pub(super) struct Outbox<'a> {
    link: &'a Link,
    exchange: ShortString,
    metrics: Arc<Metrics>,
    unix_seconds: UnixSeconds,
    lanes: Vec<Lane>,
}

struct Lane {
    confirming: Channel,
    copies: Channel,
    copies_since: Instant,
}

impl<'a> Outbox<'a> {
    /// Opens the lanes. Results go to `exchange`.
    pub(super) async fn open(
        link: &'a Link,
        exchange: &str,
        metrics: Arc<Metrics>,
        unix_seconds: UnixSeconds,
    ) -> Result<Self, Error> {
        let mut lanes = Vec::with_capacity(LANES);
        for _ in 0..LANES {
            let confirming = link.channel().await?;
            ask("asking for confirms", confirming.confirm_select(ConfirmSelectOptions::default()))
                .await
                .map_err(Error::Lost)?;
            lanes.push(Lane { confirming, copies: link.channel().await?, copies_since: Instant::now() });
        }
        Ok(Self { link, exchange: exchange.into(), metrics, unix_seconds, lanes })
    }

    /// Publishes until [`Phase::Closing`], and then what is posted already (then `Ok`), or until a channel is of no use any
    /// more. Postings that were taken and not confirmed are then answered [`PublishError::Lost`]; the others stay.
    pub(super) async fn serve(
        mut self,
        postings: &mut mpsc::Receiver<Posting>,
        mut phase: watch::Receiver<Phase>,
    ) -> Result<(), Error> {
        let mut idle = std::mem::take(&mut self.lanes);
        let mut busy = FuturesUnordered::new();
        let mut taken = Vec::with_capacity(BATCH);
        let (mut closing, mut exhausted) = (false, false);
        loop {
            if !closing && phase_of(&phase) == Phase::Closing {
                closing = true;
                postings.close();
            }
            if exhausted && busy.is_empty() && closing {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some(lane) = busy.next(), if !busy.is_empty() => idle.push(lane?),
                count = postings.recv_many(&mut taken, BATCH), if !exhausted && !idle.is_empty() => {
                    exhausted = count == 0;
                    if let Some(lane) = (!exhausted).then(|| idle.pop()).flatten() {
                        let batch = std::mem::replace(&mut taken, Vec::with_capacity(BATCH));
                        busy.push(self.carry(lane, batch));
                    }
                }
                _ = phase.changed(), if !closing => {}
            }
        }
    }

    /// Publishes one batch and answers it; gives the lane back.
    async fn carry(&self, mut lane: Lane, batch: Vec<Posting>) -> Result<Lane, Error> {
        let (results, copies): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|posting| matches!(posting.publication.route, Route::Results(_)));
        let (results, oversized): (Vec<_>, Vec<_>) =
            results.into_iter().partition(|posting| fits(&posting.publication));
        for posting in oversized {
            let why = format!("its message id or routing key is longer than {SHORT_MAX} bytes");
            settle(&self.metrics, posting, Err(PublishError::Returned(why)));
        }
        let results = Batch { postings: results, metrics: &self.metrics };
        let confirms = self.publish(&lane, &results).await?;
        self.publish_copies(&mut lane, copies).await?;
        self.answer(results, confirms).await?;
        Ok(lane)
    }

    async fn publish(&self, lane: &Lane, batch: &Batch<'_>) -> Result<Vec<PublisherConfirm>, Error> {
        let writing = async {
            let mut confirms = Vec::with_capacity(batch.postings.len());
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            for posting in &batch.postings {
                let publication = &posting.publication;
                let key = ShortString::try_new(routing_key(publication)).unwrap_or_default();
                let properties = self.properties(publication, PERSISTENT);
                confirms.push(
                    lane.confirming
                        .basic_publish(self.exchange.clone(), key, options, &publication.body, properties)
                        .await?,
                );
            }
            Ok(confirms)
        };
        self.within("publishing", writing).await
    }

    async fn answer(&self, batch: Batch<'_>, confirms: Vec<PublisherConfirm>) -> Result<(), Error> {
        // All of them, before any fate is known: `fate` says why.
        let all = async { join_all(confirms).await.into_iter().collect::<lapin::Result<Vec<_>>>() };
        let confirmations = self.within("awaiting confirms", all).await?;
        let (mut answers, mut returned) = (Vec::with_capacity(confirmations.len()), Vec::new());
        for confirmation in confirmations {
            answers.push(match &confirmation {
                Confirmation::Ack(_) => Answer::Ack,
                Confirmation::Nack(_) => Answer::Nack,
                Confirmation::NotRequested => {
                    return Err(Error::Lost("a channel for results is not in confirm mode".to_owned()));
                }
            });
            returned.extend(confirmation.take_message().map(|message| Returned {
                message_id: message.properties.message_id().as_ref().map(|id| id.as_str().to_owned()),
                routing_key: message.routing_key.as_str().to_owned(),
                reason: message.reply_text.as_str().to_owned(),
            }));
        }
        batch.answer(&answers, &returned);
        Ok(())
    }

    /// Copies are answered once written; what the broker does with them is nobody's concern.
    async fn publish_copies(&self, lane: &mut Lane, copies: Vec<Posting>) -> Result<(), Error> {
        for posting in copies {
            if let Some(copies) = self.channel_for_copies(lane).await? {
                let publication = &posting.publication;
                let exchange = if matches!(publication.route, Route::Live(_)) { LIVE } else { "" };
                let written = async {
                    if let Ok(key) = ShortString::try_new(routing_key(publication)) {
                        let properties = self.properties(publication, TRANSIENT);
                        let options = BasicPublishOptions::default();
                        // An error closes the channel, which the next copy sees.
                        let _ = copies
                            .basic_publish(exchange.into(), key, options, &publication.body, properties)
                            .await;
                    }
                    Ok(())
                };
                self.within("publishing a copy", written).await?;
            }
            // Nobody may be waiting.
            let _ = posting.answer.send(Ok(()));
        }
        Ok(())
    }

    /// The lane's channel for copies, opened anew when the broker closed it; `None` when that was a moment ago.
    async fn channel_for_copies<'b>(&self, lane: &'b mut Lane) -> Result<Option<&'b Channel>, Error> {
        if !lane.copies.status().connected() {
            if lane.copies_since.elapsed() < COPIES_PAUSE {
                return Ok(None);
            }
            tracing::warn!(
                "the broker refused a copy (reply_to or live): does the exchange exist, and may the user write to it?"
            );
            lane.copies = self.link.channel().await?;
            lane.copies_since = Instant::now();
        }
        Ok(Some(&lane.copies))
    }

    async fn within<T>(
        &self,
        doing: &str,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        let blocked = || self.link.connection().status().blocked();
        match patiently(ANSWER, blocked, request).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(Error::Lost(format!("{doing} failed: {}", describe(&error)))),
            Err(_) => {
                let limit = ANSWER.as_secs();
                Err(Error::Lost(format!("{doing} failed: no answer from the broker within {limit} s")))
            }
        }
    }

    fn properties(&self, publication: &Publication, delivery_mode: u8) -> BasicProperties {
        let mut properties = BasicProperties::default()
            .with_delivery_mode(delivery_mode)
            .with_content_type("application/json".into())
            .with_type(publication.kind.into())
            .with_app_id("ringcast".into())
            .with_timestamp((self.unix_seconds)());
        if let Ok(id) = ShortString::try_new(publication.message_id.as_str()) {
            properties = properties.with_message_id(id);
        }
        if let Some(Ok(id)) = publication.correlation_id.as_deref().map(ShortString::try_new) {
            properties = properties.with_correlation_id(id);
        }
        let trace = [("traceparent", &publication.traceparent), ("tracestate", &publication.tracestate)];
        let mut headers = FieldTable::default();
        for (name, value) in trace {
            if let Some(value) = value {
                headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
            }
        }
        if headers.inner().is_empty() { properties } else { properties.with_headers(headers) }
    }
}

/// Bytes of a short string (AMQP 0-9-1, 4.2.5.3).
const SHORT_MAX: usize = 255;
/// AMQP's `delivery_mode`: written to disk, or not.
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

fn routing_key(publication: &Publication) -> &str {
    match &publication.route {
        Route::Results(key) | Route::Reply(key) | Route::Live(key) => key,
    }
}

/// Whether AMQP has room for the two texts that a return is recognised by.
fn fits(publication: &Publication) -> bool {
    publication.message_id.len() <= SHORT_MAX && routing_key(publication).len() <= SHORT_MAX
}

/// Results on their way. Dropped unanswered (the session is lost) they are answered [`PublishError::Lost`].
struct Batch<'a> {
    postings: Vec<Posting>,
    metrics: &'a Metrics,
}

impl Batch<'_> {
    fn answer(mut self, answers: &[Answer], returned: &[Returned]) {
        let published: Vec<_> = self
            .postings
            .iter()
            .map(|posting| (posting.publication.message_id.as_str(), routing_key(&posting.publication)))
            .collect();
        let fates = fates(&published, answers, returned);
        for (posting, fate) in self.postings.drain(..).zip(fates) {
            settle(self.metrics, posting, fate);
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for posting in self.postings.drain(..) {
            settle(self.metrics, posting, Err(PublishError::Lost));
        }
    }
}

fn settle(metrics: &Metrics, posting: Posting, fate: Result<(), PublishError>) {
    metrics.amqp_publish(match &fate {
        Ok(()) => "confirmed",
        Err(PublishError::Returned(_)) => "returned",
        Err(PublishError::Nacked) => "nacked",
        Err(PublishError::Lost) => "lost",
    });
    // The one who asked may have given up.
    let _ = posting.answer.send(fate);
}
