//! The road over RabbitMQ: publishes invites with confirms, reads results, and takes its own things away at the end.

use std::fmt::Display;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::select_all;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer, PublisherConfirm};
use ringcast::amqp::Settings;
use ringcast::amqp::dial::{Dialer, Link};
use ringcast::amqp::topology::{
    Binding, DEAD, INVALID_TOKENS, OUTCOMES, QUARANTINED_TOKENS, Queue, Topology,
};
use ringcast::domain::token_event;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{ARRIVALS_MAX, Arrival, Arrivals, Kind};

/// Held by the one demo that runs on a broker of somebody else's.
const LOCK: &str = "ringcast.demo.running";
/// How long an interrupted demo reads on, so that what its worker published last does not stay in a queue.
const LAST_RESULTS: Duration = Duration::from_millis(300);
/// How long the broker may take to answer one request.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a queue's length may lag behind the last acknowledgement.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Unacknowledged results of one consumer.
const PREFETCH: u16 = 1000;
/// AMQP's delivery mode for messages that survive a restart (AMQP 0-9-1, basic class).
const PERSISTENT: u8 = 2;

/// Where invites and results go.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// The invites queue.
    pub(crate) invites: &'static str,
    /// The results exchange.
    pub(crate) results: &'static str,
    outcomes: &'static str,
    tokens: &'static [&'static str],
    /// On a broker of somebody else's: all of these are the demo's own, and go at the end.
    own: bool,
}

impl Names {
    /// The contract's names, on a broker that is ours alone.
    pub(crate) const fn usual() -> Self {
        Self {
            invites: "ringcast.invites",
            results: "ringcast.results",
            outcomes: OUTCOMES,
            tokens: &[INVALID_TOKENS, QUARANTINED_TOKENS],
            own: false,
        }
    }

    /// Names of the demo's own, on a broker where others may work: it must neither ring their calls nor read their results.
    pub(crate) const fn own() -> Self {
        Self {
            invites: "ringcast.demo.invites",
            results: "ringcast.demo.results",
            outcomes: "ringcast.demo.outcomes",
            tokens: &["ringcast.demo.tokens"],
            own: true,
        }
    }

    fn topology(&self, settings: &Settings) -> Topology {
        let mut topology = Topology::of(settings);
        if self.own {
            let arguments = |wanted: &str| {
                let queue = topology.queues.iter().find(|queue| queue.name == wanted);
                queue.map(|queue| queue.arguments.clone()).unwrap_or_default()
            };
            let names = [(self.outcomes, OUTCOMES), (self.tokens[0], INVALID_TOKENS)];
            let own = names.map(|(name, like)| Queue {
                name: name.to_owned(),
                arguments: arguments(like),
                needed: true,
            });
            topology.queues.extend(own);
            for Binding { exchange, queue, .. } in &mut topology.bindings {
                if exchange == self.results {
                    *queue = if *queue == OUTCOMES { self.outcomes } else { self.tokens[0] };
                }
            }
        }
        topology
    }
}

/// The demo's end of the broker.
pub(crate) struct Post {
    link: Link,
    names: Names,
    /// The prefix of this run's correlation ids.
    run: String,
    publishing: Channel,
    confirms: Vec<PublisherConfirm>,
    arrivals: Arrivals,
    reading: JoinHandle<()>,
}

impl Post {
    /// Declares what is needed and begins to read results. `run` tells this run's messages from all others.
    pub(crate) async fn open(settings: &Settings, names: Names, run: &str) -> Result<Self, String> {
        let dialer = Dialer::new(settings).await.map_err(|error| error.to_string())?;
        let link = dialer.dial("ringcast demo").await.map_err(|error| error.to_string())?;
        if names.own {
            lock(&link).await?;
        }
        names.topology(settings).declare(&link).await.map_err(|error| error.to_string())?;
        let publishing = link.channel().await.map_err(|error| error.to_string())?;
        ask("asking for confirms", publishing.confirm_select(ConfirmSelectOptions::default())).await?;

        let consuming = link.channel().await.map_err(|error| error.to_string())?;
        ask("setting a prefetch", consuming.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        let mut consumers = Vec::new();
        for queue in [&[names.outcomes], names.tokens, &[DEAD]].concat() {
            let options = BasicConsumeOptions::default();
            let consumer = consuming.basic_consume(queue.into(), "".into(), options, FieldTable::default());
            consumers.push(ask(&format!("reading {queue}"), consumer).await?);
        }
        if names.own {
            // Left by a demo that was killed.
            ask(
                "emptying the invites queue",
                publishing.queue_purge(names.invites.into(), QueuePurgeOptions::default()),
            )
            .await?;
        }
        let (results, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let reading = tokio::spawn(read(consumers, format!("{run}-"), results));
        Ok(Self { link, names, run: run.to_owned(), publishing, confirms: Vec::new(), arrivals, reading })
    }

    pub(super) async fn publish(&mut self, number: usize, body: &[u8]) -> Result<(), String> {
        let id: ShortString = format!("{}-{number}", self.run).into();
        let properties = BasicProperties::default()
            .with_message_id(id.clone())
            .with_correlation_id(id)
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish =
            self.publishing.basic_publish("".into(), self.names.invites.into(), options, body, properties);
        self.confirms.push(ask("publishing an invite", publish).await?);
        Ok(())
    }

    pub(super) async fn confirm(&mut self) -> Result<(), String> {
        for confirm in self.confirms.drain(..) {
            match ask("publishing an invite", confirm).await? {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                    return Err(format!("the broker returned an invite: {}", returned.reply_text));
                }
                _ => return Err("the broker refused an invite".to_owned()),
            }
        }
        Ok(())
    }

    pub(super) fn arrivals(&mut self) -> &mut Arrivals {
        &mut self.arrivals
    }

    pub(super) async fn left(&mut self) -> Result<usize, String> {
        let until = Instant::now() + SETTLED_WITHIN;
        loop {
            let options = QueueDeclareOptions::durable().passive();
            let look =
                self.publishing.queue_declare(self.names.invites.into(), options, FieldTable::default());
            let left = ask("counting the invites", look).await?.message_count() as usize;
            if left == 0 || Instant::now() >= until {
                return Ok(left);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    pub(super) async fn close(self) {
        if self.names.own {
            sleep(LAST_RESULTS).await;
        }
        self.reading.abort();
        // Its end lets go of its channel's consumers; what they had and is not ours goes back.
        let _ = self.reading.await;
        if self.names.own {
            let Names { invites, results, outcomes, tokens, .. } = self.names;
            if let Ok(channel) = self.link.channel().await {
                for queue in [&[invites, outcomes], tokens].concat() {
                    let gone = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
                    let _ = ask("deleting a queue", gone).await;
                }
                let gone = channel.exchange_delete(results.into(), ExchangeDeleteOptions::default());
                let _ = ask("deleting an exchange", gone).await;
            }
        }
        self.link.close().await;
    }
}

/// Nobody else's demo may run on this broker: a queue that one connection alone may have, and that goes with it.
async fn lock(link: &Link) -> Result<(), String> {
    let channel = link.channel().await.map_err(|error| error.to_string())?;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let lock = channel.queue_declare(LOCK.into(), options, FieldTable::default());
    match ask("locking", lock).await {
        Ok(_) => Ok(()),
        Err(error) if error.contains("RESOURCE_LOCKED") => {
            Err("another demo runs on this broker; wait for its end".to_owned())
        }
        Err(error) => Err(error),
    }
}

/// Reads results until nobody wants them. Takes what is this run's, and leaves the rest alone.
async fn read(consumers: Vec<Consumer>, prefix: String, results: mpsc::Sender<Result<Arrival, String>>) {
    let mut deliveries = select_all(consumers);
    // Kept unacknowledged, they go back to their queue when the channel closes.
    while let Some(delivery) = deliveries.next().await {
        let arrival = match delivery {
            Ok(delivery) => match recognise(&delivery, &prefix) {
                Some(arrival) => {
                    match ask("acknowledging a result", delivery.ack(BasicAckOptions::default())).await {
                        Ok(_) => Ok(arrival),
                        Err(error) => Err(error),
                    }
                }
                None => continue,
            },
            Err(error) => Err(format!("the broker hung up: {error}")),
        };
        if results.send(arrival).await.is_err() {
            return;
        }
    }
}

fn recognise(delivery: &Delivery, prefix: &str) -> Option<Arrival> {
    let properties = &delivery.properties;
    let correlation_id = properties.correlation_id().as_ref()?.as_str();
    let number = correlation_id.strip_prefix(prefix)?.parse().ok()?;
    let message_id = properties.message_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default();
    let kind = match properties.kind().as_ref().map(ShortString::as_str) {
        Some(token_event::KIND) => Kind::TokenEvent,
        Some(_) => Kind::Outcome,
        None => Kind::Original,
    };
    Some(Arrival { kind, number, message_id, body: delivery.data.clone().into() })
}

/// One request to the broker, within [`ANSWER`].
async fn ask<T, E: Display>(doing: &str, request: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(ANSWER, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{doing} failed: {error}")),
        Err(_) => Err(format!("{doing} failed: no answer from the broker")),
    }
}
