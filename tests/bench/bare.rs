//! The bare loop: what the client library for AMQP costs by itself.
//!
//! It consumes from the invites queue, publishes a result of the worker's size to the worker's exchange, with the same properties,
//! persistent, `mandatory` and confirmed, and acks what is confirmed. It reads no invite, pushes nothing, has no deadline, no
//! ledger, no metrics, and gives up at the first thing that is odd. It is made to be fast: batches of up to a hundred, four of them
//! on their way at once; the frames of a batch are handed over before the first is waited for, so that they share a write and a
//! wake-up; one ack settles a batch. What Ringcast costs beyond it is Ringcast's own, and the pushes.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::pin::Pin;

use futures_util::future::{MaybeDone, maybe_done};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm};

use super::Failure;

/// Deliveries that are answered together, at most.
const BATCH: usize = 100;
/// Batches that wait for their confirms at once.
const BATCHES: usize = 4;
/// How often it says how far it is.
const CALLS_A_LINE: u64 = 500;

/// What the bare loop is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Task {
    /// The broker
    #[arg(long)]
    pub uri: String,
    /// Unsettled deliveries at most
    #[arg(long)]
    pub prefetch: u16,
    /// What it publishes for each delivery
    #[arg(long)]
    pub outcome: PathBuf,
}

/// Relays until stdin ends; says on stdout how many deliveries are settled so far.
pub fn run(task: &Task) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        // Its end and its failure mean the same.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        drop(end);
    });
    runtime.block_on(async {
        tokio::select! {
            failed = relay(task) => failed,
            _ = ended => Ok(()),
        }
    })
}

async fn relay(task: &Task) -> Result<(), Failure> {
    let answer = Answer {
        body: std::fs::read(&task.outcome)?,
        properties: BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_type("ringcast.outcome.v1".into())
            .with_app_id("ringcast".into())
            .with_timestamp(1_764_000_000)
            .with_message_id("7c9e6679-7425-40de-944b-e07fc1f90ae7".into()),
        exchange: "ringcast.results".into(),
        routing_key: "outcome.acme".into(),
    };
    // As RabbitMQ advises: what publishes may be held up, and must not hold up what consumes.
    let consuming = Connection::connect(&task.uri, ConnectionProperties::default()).await?;
    let publishing = Connection::connect(&task.uri, ConnectionProperties::default()).await?;
    let (channel, out) = (consuming.create_channel().await?, publishing.create_channel().await?);
    out.confirm_select(ConfirmSelectOptions::default()).await?;
    channel.basic_qos(task.prefetch, BasicQosOptions::default()).await?;
    let mut consumer = channel
        .basic_consume(
            "ringcast.invites".into(),
            "bare".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let (mut settled, mut said) = (0, 0);
    let mut confirming = FuturesOrdered::new();
    loop {
        tokio::select! {
            biased;
            Some(confirmed) = confirming.next(), if !confirming.is_empty() => {
                let (last, count): (u64, u64) = confirmed?;
                channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
                settled += count;
                if settled >= said + CALLS_A_LINE || confirming.is_empty() {
                    said = settled;
                    writeln!(io::stdout(), "{settled}")?;
                }
            }
            delivery = consumer.next(), if confirming.len() < BATCHES => {
                let mut last = delivery.ok_or("the broker cancelled the consumer")??.delivery_tag;
                let mut count = 1;
                while count < BATCH && let Some(delivery) = consumer.next().now_or_never() {
                    last = delivery.ok_or("the broker cancelled the consumer")??.delivery_tag;
                    count += 1;
                }
                let (publishing, count) = (answer.publish(&out, count), u64::try_from(count)?);
                confirming.push_back(async move {
                    confirm(publishing).await?;
                    Ok::<_, Failure>((last, count))
                });
            }
        }
    }
}

/// What is published for each delivery.
struct Answer {
    body: Vec<u8>,
    properties: BasicProperties,
    exchange: ShortString,
    routing_key: ShortString,
}

impl Answer {
    /// Hands over `count` of them, in order.
    fn publish<'a>(
        &'a self,
        channel: &'a Channel,
        count: usize,
    ) -> Vec<Pin<Box<MaybeDone<impl Future<Output = lapin::Result<PublisherConfirm>> + 'a>>>> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        (0..count)
            .map(|_| {
                let (exchange, key) = (self.exchange.clone(), self.routing_key.clone());
                let publish =
                    channel.basic_publish(exchange, key, options, &self.body, self.properties.clone());
                let mut publish = Box::pin(maybe_done(publish));
                // The first look at it hands the frames over; it is done when they are written.
                let _ = publish.as_mut().now_or_never();
                publish
            })
            .collect()
    }
}

/// Waits until all are confirmed: the last first, because when that one is, most of the others are.
async fn confirm(
    publishing: Vec<Pin<Box<MaybeDone<impl Future<Output = lapin::Result<PublisherConfirm>>>>>>,
) -> Result<(), Failure> {
    let mut confirms = Vec::with_capacity(publishing.len());
    for mut publish in publishing.into_iter().rev() {
        publish.as_mut().await;
        confirms.push(publish.as_mut().take_output().ok_or("it was taken before")??);
    }
    for confirm in confirms {
        let confirmation = confirm.await?;
        if confirmation != Confirmation::Ack(None) {
            return Err(format!("the broker did not take a result: {confirmation:?}").into());
        }
    }
    Ok(())
}
