//! The world of one seed: everything real but the network and the broker.

use std::collections::{BTreeMap, VecDeque};
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
use ringcast::simulator::{Options, Simulator, VerifyingKey};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::broker::{Broker, Message};
use crate::deadly::Deaths;
use crate::history::History;
use crate::network::{Dialled, Pipes};
use crate::plan::{self, Event, HEALED_AFTER, Plan};
use crate::process::Running;

/// 2026-11-21T09:30:00Z.
pub const STARTED_AT: i64 = 1_795_253_400_000;

/// How long one attempt may stay unanswered here.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long after the healing everything must be drained.
const DRAINED_WITHIN: Duration = Duration::from_mins(2);

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
    let mut scene = Scene { started: 0, running: VecDeque::new(), relieved: Vec::new() };
    for _ in 0..world.plan.workers {
        scene.start(&world);
    }

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
                redelivered: planned.returned > 0,
                returned: planned.returned,
                expires_at: planned.expires_in.map(|expires_in| at + expires_in),
                given_up: None,
            };
            messages.push(message.clone());
            world.broker.publish(message);
            continue;
        }
        scene.play(&world, &world.plan.events[next_event].1).await;
        next_event += 1;
    }
    sleep_until(started + HEALED_AFTER).await;
    world.simulator.heal();
    world.broker.heal();
    let drained = timeout(DRAINED_WITHIN, async {
        while !world.broker.is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    let drained = drained.await.is_ok();
    let (mut stopped, mut panics) = (true, BTreeMap::new());
    for running in scene.running {
        panics.insert(running.number, running.panics());
        stopped &= running.stop().await;
    }
    for leaving in scene.relieved {
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
        prefetch: world.plan.prefetch,
        orders: ordered.collect(),
        happenings: world.broker.happenings(),
        records: world.simulator.journal().records(),
        dialled: world.dialled.lock().clone(),
        connections_total: world.simulator.connections_total(),
        drained,
        stopped,
        panics,
    }
}

/// Who works, and what happens to them. What happens to a worker happens to each in turn.
struct Scene {
    started: u64,
    running: VecDeque<Running>,
    relieved: Vec<JoinHandle<bool>>,
}

impl Scene {
    fn start(&mut self, world: &World) {
        self.running.push_back(world.start_worker(self.started));
        self.started += 1;
    }

    fn take_turn(&mut self) -> Running {
        self.running.pop_front().expect("somebody always works")
    }

    async fn play(&mut self, world: &World, event: &Event) {
        match event {
            Event::Apple(fault) => {
                world.simulator.faults().add(fault.clone());
            }
            Event::Connect(fault) => {
                world.simulator.faults().add_connect(fault.clone());
            }
            Event::AppleHeals => world.simulator.heal(),
            Event::Order(target, order) => world.simulator.order_to(*target, order.clone()),
            Event::HealsAt(target) => world.simulator.heal_at(*target),
            Event::Network(up) => world.network.store(*up, Ordering::Relaxed),
            Event::Unbound(prefix) => world.broker.unbind(*prefix),
            Event::Alarm(raised) => world.broker.alarm(*raised),
            Event::Away(true) => world.broker.go_away(),
            Event::Away(false) => world.broker.come_back(),
            Event::ExpiredGone(gone) => world.broker.mislay_expired(*gone),
            Event::CutBroker => {
                let running = self.take_turn();
                running.cut();
                self.running.push_back(running);
            }
            Event::Kill => {
                self.take_turn().kill().await;
                self.start(world);
            }
            Event::Replace => {
                self.take_turn().stop().await;
                self.start(world);
            }
            Event::Relieve => {
                let leaving = self.take_turn();
                self.start(world);
                self.relieved.push(tokio::spawn(leaving.stop()));
            }
        }
    }
}

/// Everything that outlives a worker.
pub struct World {
    seed: u64,
    pub plan: Plan,
    pub clock: Clock,
    pub broker: Broker,
    pub simulator: Simulator,
    /// Whether new connections to Apple can be made.
    network: Arc<AtomicBool>,
    dialled: Dialled,
    /// Which handlers die.
    pub deaths: Deaths,
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
        let broker = Broker::new(seed, plan.broker);
        let network = Arc::new(AtomicBool::new(true));
        let (dialled, deaths) = (Dialled::default(), Deaths::new(&plan.deaths));
        Self { seed, plan, clock, broker, simulator, network, dialled, deaths, key }
    }

    /// A world without broker and worker, on a clock that starts now.
    pub fn alone(plan: Plan) -> (Self, Clock) {
        let clock = Clock::simulated(STARTED_AT);
        (Self::new(0, plan, clock.clone()), clock)
    }

    /// The connections of a worker that never loses its power.
    pub fn apns(&self, worker: u64) -> Apns {
        self.build_apns(worker, &Arc::new(AtomicBool::new(true)), &Metrics::new(), &self.jitter(worker))
    }

    /// Whether outcomes say here what happened when.
    pub fn tells_times(&self) -> bool {
        self.seed.is_multiple_of(2)
    }

    pub fn jitter(&self, worker: u64) -> Jitter {
        Jitter::seeded(self.seed.wrapping_mul(31).wrapping_add(worker))
    }

    pub fn build_apns(
        &self,
        worker: u64,
        power: &Arc<AtomicBool>,
        metrics: &Arc<Metrics>,
        jitter: &Jitter,
    ) -> Apns {
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
        let dial = self.dial(worker, power);
        let dials: Dials = Arc::new(move |_, _| Ok(Arc::clone(&dial)));
        let apns = Apns::new(&settings, &apps, &dials, &self.clock, metrics, jitter).expect("sound settings");
        apns.start(&apps);
        apns
    }

    /// A dialler whose connections are pipes to the simulator. They break when the power goes.
    fn dial(&self, worker: u64, power: &Arc<AtomicBool>) -> Dial {
        Arc::new(Pipes {
            simulator: self.simulator.clone(),
            worker,
            dialled: Arc::clone(&self.dialled),
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
