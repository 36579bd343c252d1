//! The broker's side of the worker alone, between a real RabbitMQ and the two flows: what the tests hold is what the
//! worker would hold.

#![expect(clippy::unwrap_used, reason = "these are tests, the functions between them included")]

mod confirm;
mod expired;
mod flow;
mod host;
mod loss;
mod odd;
mod rights;
mod stop;
mod terms;
mod tls;
mod topology;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use ringcast::amqp::{Phase, Settings, State, Status, Supervisor, supervisor};
use ringcast::metrics::Metrics;
use ringcast::pause::Jitter;
use ringcast::worker::mailbox::{self, Delivery, Outbox, Publication, Route};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than anything may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

fn settings(uri: String) -> Settings {
    Settings {
        uri,
        hosts: Vec::new(),
        ca_file: None,
        client: None,
        declare: false,
        invites: vec!["ringcast.invites".into()],
        results_exchange: "ringcast.results".into(),
        live: false,
        prefetch: 100,
        consumer_priority: 0,
    }
}

/// A session, and the worker's ends of the flows.
struct Rig {
    settings: watch::Sender<Settings>,
    deliveries: mpsc::Receiver<Delivery>,
    outbox: Outbox,
    status: Status,
    metrics: Arc<Metrics>,
    phase: watch::Sender<Phase>,
    running: JoinHandle<()>,
}

impl Rig {
    /// `capacity`: deliveries that may wait for the worker.
    fn start(settings: Settings, capacity: usize) -> Self {
        let (sender, deliveries) = mpsc::channel(capacity);
        let (outbox, postings) = mailbox::outbox(1000);
        let (phase, phases) = watch::channel(Phase::Running);
        let (status, metrics) = (Status::new(), Metrics::new());
        let (settings, watched) = watch::channel(settings);
        let running = tokio::spawn(supervisor::run(Supervisor {
            settings: watched,
            worker_name: "rig".into(),
            deliveries: sender,
            postings,
            status: status.clone(),
            metrics: Arc::clone(&metrics),
            phase: phases,
            pause: Box::new(|_| Duration::from_millis(50)),
            jitter: Jitter::seeded(1),
            unix_seconds: Arc::new(|| 1_795_253_400),
        }));
        Self { settings, deliveries, outbox, status, metrics, phase, running }
    }

    /// Declares the topology, starts and waits until it consumes.
    async fn start_consuming(settings: Settings, capacity: usize) -> Self {
        supervisor::declare(&settings).await.unwrap();
        let rig = Self::start(settings, capacity);
        rig.await_consuming().await;
        rig
    }

    async fn await_consuming(&self) {
        self.await_state(|state| *state == State::Consuming).await;
    }

    async fn await_state(&self, wanted: impl FnMut(&State) -> bool) -> State {
        let reached = timeout(LIMIT, self.status.wait_for(wanted)).await;
        reached.unwrap_or_else(|_| panic!("still {:?}", self.status.state()))
    }

    async fn next(&mut self) -> Delivery {
        timeout(LIMIT, self.deliveries.recv()).await.expect("a delivery comes").expect("the session lives")
    }

    /// Waits until the metrics hold `line`.
    async fn await_metric(&self, line: &str) {
        let seen = timeout(LIMIT, async {
            while !self.metrics.render().lines().any(|other| other == line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(seen.await.is_ok(), "no {line} in {}", self.amqp_metrics());
    }

    fn amqp_metrics(&self) -> String {
        let text = self.metrics.render();
        text.lines().filter(|line| line.starts_with("ringcast_amqp")).collect::<Vec<_>>().join("\n")
    }

    /// Both steps of the stop.
    async fn stop(self) {
        self.phase.send_replace(Phase::Draining);
        self.phase.send_replace(Phase::Closing);
        timeout(LIMIT, self.running).await.expect("it stops").expect("it does not panic");
        assert!(self.metrics.render().contains("ringcast_amqp_unsettled 0"), "nothing is counted as held");
    }
}

/// A result with a message id and routing key of its own.
fn result(id: &str, key: &str) -> Publication {
    Publication {
        route: Route::Results(key.into()),
        kind: "ringcast.outcome.v1",
        message_id: id.into(),
        body: format!("{{\"id\":\"{id}\"}}").into_bytes().into(),
        correlation_id: Some(format!("c-{id}")),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        tracestate: Some("vendor=1".into()),
    }
}

/// Somebody else at the same broker.
pub(crate) struct Peer {
    _connection: Connection,
    pub(crate) channel: Channel,
}

impl Peer {
    pub(crate) async fn new(uri: &str) -> Self {
        let connection = Connection::connect(uri, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await.unwrap();
        Self { _connection: connection, channel }
    }

    /// Publishes to a queue; returns once the broker has them all.
    async fn fill(&self, queue: &str, bodies: impl IntoIterator<Item = String>) {
        let mut confirms = Vec::new();
        for body in bodies {
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id(format!("m-{body}").into())
                .with_reply_to("answers".into());
            let options = BasicPublishOptions::default();
            let publish =
                self.channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties);
            confirms.push(publish.await.unwrap());
        }
        for confirm in confirms {
            assert!(confirm.await.unwrap().is_ack());
        }
    }

    /// Takes and acks `count` messages.
    async fn read(&self, queue: &str, count: usize) -> Vec<lapin::message::Delivery> {
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consume = self.channel.basic_consume(queue.into(), queue.into(), options, FieldTable::default());
        let messages: Vec<_> = timeout(LIMIT, consume.await.unwrap().take(count).collect()).await.unwrap();
        self.channel.basic_cancel(queue.into(), lapin::options::BasicCancelOptions::default()).await.unwrap();
        messages.into_iter().map(|message| message.unwrap()).collect()
    }

    /// Messages that are ready in a queue.
    async fn ready(&self, queue: &str) -> u32 {
        let options = lapin::options::QueueDeclareOptions::durable().passive();
        self.channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .unwrap()
            .message_count()
    }

    /// Waits until that many are ready.
    async fn await_ready(&self, queue: &str, count: u32) {
        let seen = timeout(LIMIT, async {
            while self.ready(queue).await != count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(seen.await.is_ok(), "{} ready in {queue}, not {count}", self.ready(queue).await);
    }
}
