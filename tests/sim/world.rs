//! The world of one seed: everything real but the network and the broker.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringcast::apns::dial::Dial;
use ringcast::apns::tls::Dials;
use ringcast::apns::{self, Apns, Credential, Endpoint, ProviderKey};
use ringcast::clock::Clock;
use ringcast::domain::app::{App, Environment, PayloadKeys};
use ringcast::metrics::Metrics;
use ringcast::pause::Jitter;
use ringcast::simulator::Environment::{Production, Sandbox};
use ringcast::simulator::{self, Options, Record, Simulator, Target, VerifyingKey};
use ringcast::worker::mailbox::{Posting, Route, outbox};
use ringcast::worker::{self, Worker};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::broker::{Broker, Happening, Message, Order};
use crate::network::Pipes;
use crate::plan::{self, Event, HEALED_AFTER, Plan};

/// 2026-11-21T09:30:00Z.
pub const STARTED_AT: i64 = 1_795_253_400_000;

/// How long one attempt may stay unanswered here.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long after the healing everything must be drained.
const DRAINED_WITHIN: Duration = Duration::from_mins(2);

/// How long a worker may take to finish what it has begun.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(40);

/// What happened in one world.
pub struct History {
    pub messages: Vec<Message>,
    /// What connections were ordered, and when, in milliseconds since 1970.
    pub orders: Vec<(u64, Target, simulator::Order)>,
    pub happenings: Vec<Happening>,
    pub records: Vec<Record>,
    /// Connections that Apple ever saw.
    pub connections_total: u64,
    /// Whether everything was drained in time after the healing.
    pub drained: bool,
    /// Whether the last worker stopped in time.
    pub stopped: bool,
    /// Ended handlers that must not have.
    pub panics: bool,
}

impl History {
    /// Everything that must be the same when the seed runs again.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for happening in &self.happenings {
            let line = match happening {
                Happening::Delivered { at, identity, redelivered } => {
                    format!("{at:?} delivered {identity:?} redelivered={redelivered}")
                }
                Happening::Stored { at, publication } => {
                    format!(
                        "{at:?} stored {:?} {}",
                        publication.route,
                        String::from_utf8_lossy(&publication.body)
                    )
                }
                Happening::Confirmed { at, message_id } => format!("{at:?} confirmed {message_id}"),
                Happening::Settled { at, identity, settlement } => {
                    format!("{at:?} {settlement:?} {identity:?}")
                }
                Happening::Cut { at } => format!("{at:?} cut"),
            };
            let _ = writeln!(text, "{line}");
        }
        for record in &self.records {
            let _ = writeln!(text, "{record:?}");
        }
        text
    }
}

/// Sums over many worlds, so that a simulation in which nothing happens does not pass.
#[derive(Debug, Default)]
pub struct Totals {
    invites: usize,
    requests: usize,
    rung: usize,
    redelivered: usize,
    cuts: usize,
    outcomes: usize,
    results: std::collections::BTreeMap<String, usize>,
}

impl Totals {
    pub fn add(&mut self, history: &History) {
        self.invites += history.messages.len();
        self.requests += history.records.len();
        self.rung += history.records.iter().filter(|record| record.processed).count();
        for happening in &history.happenings {
            match happening {
                Happening::Delivered { redelivered, .. } => self.redelivered += usize::from(*redelivered),
                Happening::Cut { .. } => self.cuts += 1,
                Happening::Stored { publication, .. } => {
                    if let Route::Results(key) = &publication.route
                        && key.starts_with("outcome.")
                    {
                        self.outcomes += 1;
                        let outcome: serde_json::Value =
                            serde_json::from_slice(&publication.body).expect("JSON");
                        for device in outcome["devices"].as_array().into_iter().flatten() {
                            let result = device["result"].as_str().unwrap_or("?").to_owned();
                            *self.results.entry(result).or_default() += 1;
                        }
                    }
                }
                Happening::Settled { .. } | Happening::Confirmed { .. } => {}
            }
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.invites += other.invites;
        self.requests += other.requests;
        self.rung += other.rung;
        self.redelivered += other.redelivered;
        self.cuts += other.cuts;
        self.outcomes += other.outcomes;
        for (result, count) in other.results {
            *self.results.entry(result).or_default() += count;
        }
    }

    pub fn assert_that_something_happened(&self) {
        for result in [
            "accepted",
            "invalid_token",
            "suspect_token",
            "rejected",
            "throttled",
            "expired",
            "failed",
            "unknown",
            "duplicate",
        ] {
            assert!(
                self.results.get(result).copied().unwrap_or(0) > 10,
                "hardly any device was {result}: {self:?}"
            );
        }
        assert!(self.redelivered > 100 && self.cuts > 500 && self.rung > 5_000, "too quiet: {self:?}");
    }
}

/// Runs the world of a seed from its start until it is drained.
pub fn run(seed: u64) -> History {
    run_plan(seed, plan::plan(seed, STARTED_AT))
}

/// Runs a world in which this happens.
pub fn run_plan(seed: u64, plan: Plan) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(live(seed, plan))
}

async fn live(seed: u64, plan: Plan) -> History {
    let clock = Clock::simulated(STARTED_AT);
    let started = Instant::now();
    let world = World::new(seed, plan, clock);
    let mut running = world.start_worker(0);
    let mut generation = 0;
    let mut relieved = Vec::new();

    let mut messages = Vec::new();
    let mut next_message = 0;
    let mut next_event = 0;
    loop {
        let message_at = world.plan.messages.get(next_message).map(|message| message.at);
        let event_at = world.plan.events.get(next_event).map(|(at, _)| *at);
        let Some(at) = [message_at, event_at].into_iter().flatten().min() else { break };
        sleep_until(started + at).await;
        if message_at == Some(at) {
            let planned = &world.plan.messages[next_message];
            next_message += 1;
            let message = Message {
                amqp_id: planned.amqp_id.clone(),
                body: planned.body.clone().into(),
                redelivered: false,
                returned: 0,
            };
            messages.push(message.clone());
            world.broker.publish(message);
            continue;
        }
        match &world.plan.events[next_event].1 {
            Event::Apple(fault) => {
                world.simulator.faults().add(fault.clone());
            }
            Event::Connect(fault) => {
                world.simulator.faults().add_connect(fault.clone());
            }
            Event::AppleHeals => world.simulator.heal(),
            Event::Order(target, order) => world.simulator.order_to(*target, order.clone()),
            Event::HealsAt(target) => world.simulator.heal_at(*target),
            Event::CutBroker => running.cut(),
            Event::Network(up) => world.network.store(*up, Ordering::Relaxed),
            Event::Bound(bound) => world.broker.bind(*bound),
            Event::Kill => {
                running.kill().await;
                generation += 1;
                running = world.start_worker(generation);
            }
            Event::Replace => {
                running.stop().await;
                generation += 1;
                running = world.start_worker(generation);
            }
            Event::Relieve => {
                generation += 1;
                let leaving = std::mem::replace(&mut running, world.start_worker(generation));
                relieved.push(tokio::spawn(leaving.stop()));
            }
        }
        next_event += 1;
    }
    sleep_until(started + HEALED_AFTER).await;
    world.simulator.heal();
    world.broker.bind(true);
    let drained = timeout(DRAINED_WITHIN, async {
        while !world.broker.is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    let drained = drained.await.is_ok();
    let panics = running.metrics.render().contains("ringcast_handler_panics_total 1");
    let stopped = running.stop().await;
    for leaving in relieved {
        // Whether it stopped in time is no promise: the world may have been sick all the while.
        leaving.await.expect("a worker that is relieved ends well");
    }
    let ordered = world.plan.events.iter().filter_map(|(at, event)| match event {
        Event::Order(target, order) => {
            let at_ms = u64::try_from(STARTED_AT).unwrap_or(0) + u64::try_from(at.as_millis()).unwrap_or(0);
            Some((at_ms, *target, order.clone()))
        }
        _ => None,
    });
    History {
        messages,
        orders: ordered.collect(),
        happenings: world.broker.happenings(),
        records: world.simulator.journal().records(),
        connections_total: world.simulator.connections_total(),
        drained,
        stopped,
        panics,
    }
}

/// Everything that outlives a worker.
pub struct World {
    seed: u64,
    plan: Plan,
    clock: Clock,
    broker: Broker,
    pub simulator: Simulator,
    /// Whether new connections to Apple can be made.
    network: Arc<AtomicBool>,
    key: p256::SecretKey,
}

impl World {
    fn new(seed: u64, plan: Plan, clock: Clock) -> Self {
        let key = p256::SecretKey::from_slice(&[7; 32]).expect("a scalar");
        let point =
            p256::ecdsa::VerifyingKey::from(p256::ecdsa::SigningKey::from(&key)).to_encoded_point(false);
        let verifying_key = VerifyingKey::from_sec1(point.as_bytes()).expect("a point");
        let wall = clock.clone();
        let options = Options {
            seed,
            max_concurrent_streams: plan.max_streams,
            one_stream_first: plan.one_stream_first,
            one_stream_after_rejection: plan.one_stream_after_rejection,
            bad_device_tokens_max: plan.bad_device_tokens_max,
            environment: if plan.sandbox { Sandbox } else { Production },
            clock: Arc::new(move || u64::try_from(wall.unix_ms()).unwrap_or(0)),
            ..Options::new(verifying_key)
        };
        let simulator = Simulator::new(options).expect("no file, no failure");
        for (token, state) in &plan.devices {
            simulator.devices().set(token, state.clone());
        }
        let broker = Broker::new(seed, plan.nack_probability);
        let network = Arc::new(AtomicBool::new(true));
        Self { seed, plan, clock, broker, simulator, network, key }
    }

    /// A world without broker and worker, on a clock that starts now.
    pub fn alone(plan: Plan) -> (Self, Clock) {
        let clock = Clock::simulated(STARTED_AT);
        (Self::new(0, plan, clock.clone()), clock)
    }

    /// The connections of a worker that never loses its power.
    pub fn apns(&self, worker: u64) -> Apns {
        let jitter = Jitter::seeded(self.seed.wrapping_mul(31).wrapping_add(worker));
        self.build_apns(&Arc::new(AtomicBool::new(true)), &Metrics::new(), &jitter)
    }

    fn build_apns(&self, power: &Arc<AtomicBool>, metrics: &Arc<Metrics>, jitter: &Jitter) -> Apns {
        let apps = vec![acme(self.plan.expiration_max)];
        let (team_id, key_id) = ("TEAM123456".into(), "KEY1234567".into());
        let credential = Credential::Token(ProviderKey { team_id, key_id, key: self.key.clone() });
        let endpoint = || Endpoint { host: "apns.test".into(), port: 443 };
        let settings = apns::Settings {
            endpoints: [endpoint(), endpoint()],
            ca_file: None,
            proxy: None,
            connections: self.plan.connections..=self.plan.connections_max,
            request_timeout: REQUEST_TIMEOUT,
            credentials: vec![[credential.clone(), credential]],
        };
        let dial = self.dial(power);
        let dials: Dials = Arc::new(move |_, _| Ok(Arc::clone(&dial)));
        let apns = Apns::new(&settings, &apps, &dials, &self.clock, metrics, jitter).expect("sound settings");
        apns.start(&apps);
        apns
    }

    /// One worker process, with everything that is its own.
    fn start_worker(&self, generation: u64) -> Running {
        let jitter = Jitter::seeded(self.seed.wrapping_mul(31).wrapping_add(generation));
        let metrics = Metrics::new();
        let apps = vec![acme(self.plan.expiration_max)];
        let power = Arc::new(AtomicBool::new(true));
        let apns = self.build_apns(&power, &metrics, &jitter);
        let settings = worker::Settings {
            name: format!("worker-{generation}"),
            devices_max: 100,
            invite_bytes_max: 65_536,
            deadline_max: Duration::from_mins(5),
            ring_time_min: Duration::ZERO,
            attempts_max: 3,
            answer_grace: Duration::from_secs(1),
        };
        let prefetch = self.plan.prefetch;
        let (outbox, postings) = outbox(2 * prefetch);
        let worker = Worker::new(
            apns.clone(),
            settings,
            apps,
            apns.key_ids(),
            false,
            prefetch,
            outbox,
            self.clock.clone(),
            Arc::clone(&metrics),
            jitter,
        );
        let (deliveries, delivered) = mpsc::channel(prefetch);
        let (stop, stopped) = watch::channel(false);
        let working = tokio::spawn(worker::run(Arc::new(worker), delivered, stopped));
        let (order, orders) = watch::channel(Order::Run);
        let broker = tokio::spawn(connect(self.broker.clone(), prefetch, deliveries, postings, orders));
        Running { apns, working, stop, broker, order, power, metrics }
    }

    /// A dialler whose connections are pipes to the simulator. They break when the power goes.
    fn dial(&self, power: &Arc<AtomicBool>) -> Dial {
        Arc::new(Pipes {
            simulator: self.simulator.clone(),
            power: Arc::clone(power),
            network: Arc::clone(&self.network),
            addresses: self.plan.addresses,
            way: self.plan.way,
        })
    }
}

/// The one app of every world.
pub fn acme(expiration_max: Duration) -> Arc<App> {
    Arc::new(App {
        index: 0,
        name: "acme".into(),
        bundle_id: "com.acme.voice".into(),
        environment: Environment::Production,
        expiration_max,
        payload: PayloadKeys {
            call_id: "callUUID".into(),
            handle: "handle".into(),
            name: "callerName".into(),
            has_video: "hasVideo".into(),
            deadline: "expiresAt".into(),
            opaque: false,
        },
    })
}

/// Connects to the broker again and again, as the supervisor does, until it is told to end for good.
async fn connect(
    broker: Broker,
    prefetch: usize,
    deliveries: mpsc::Sender<ringcast::worker::mailbox::Delivery>,
    mut postings: mpsc::Receiver<Posting>,
    order: watch::Receiver<Order>,
) {
    while order.has_changed().is_ok() {
        broker.session(prefetch, &deliveries, &mut postings, order.clone()).await;
        sleep(Duration::from_millis(300)).await;
    }
}

/// One worker process while it runs.
struct Running {
    apns: Apns,
    working: JoinHandle<()>,
    stop: watch::Sender<bool>,
    broker: JoinHandle<()>,
    order: watch::Sender<Order>,
    power: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Running {
    /// The connection to the broker is lost; the next one follows.
    fn cut(&self) {
        self.order.send_replace(Order::Cut);
        let order = self.order.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(100)).await;
            order.send_if_modified(|order| {
                let cut = *order == Order::Cut;
                if cut {
                    *order = Order::Run;
                }
                cut
            });
        });
    }

    /// `kill -9`: nothing is finished, nothing is said.
    async fn kill(self) {
        self.order.send_replace(Order::Cut);
        self.power.store(false, Ordering::Relaxed);
        self.working.abort();
        // It was aborted: there is nothing to learn from it.
        let _ = self.working.await;
        drop(self.order);
        // The broker sees the connection go, and that is all it sees.
        let _ = self.broker.await;
        self.apns.close().await;
    }

    /// SIGTERM: what was begun is finished, within the grace; else it is killed. True where it was finished.
    async fn stop(mut self) -> bool {
        self.order.send_replace(Order::Drain);
        self.stop.send_replace(true);
        let Ok(ended) = timeout(SHUTDOWN_GRACE, &mut self.working).await else {
            self.kill().await;
            return false;
        };
        ended.expect("the worker ends well");
        // Acks are on their way: they are settled before the connection is closed.
        sleep(Duration::from_millis(1)).await;
        self.order.send_replace(Order::Cut);
        drop(self.order);
        // The session's end is the end of its task.
        let _ = self.broker.await;
        self.apns.close().await;
        true
    }
}
