//! The whole worker beside a bare loop of the AMQP client library, on one RabbitMQ: see `README.md` beside this file.
//!
//! The broker, `apns-simulator`, one or two workers or bare loops, and this process, which publishes and looks on.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

mod bare;
#[path = "../../src/bin/demo/broker.rs"]
mod broker;
#[allow(dead_code, reason = "the other benchmarks use more of it")]
mod child;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/place.rs"]
mod place;
#[allow(dead_code, reason = "another benchmark counts instructions with it")]
mod program;
mod summary;
#[allow(dead_code, reason = "the other benchmarks use more of it")]
mod traffic;

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{ChildStdin, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use broker::{Broker, Ports};
use child::{Running, Usage};
use clap::{Parser, Subcommand};
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use place::Place;
use ringcast::amqp::Settings;
use ringcast::amqp::dial::{Dialer, Link};
use tokio::time::{Instant, sleep};

pub type Failure = Box<dyn Error + Send + Sync>;

const TEAM_ID: &str = "TEAM123456";
const KEY_ID: &str = "KEY1234567";
const INVITES: &str = "ringcast.invites";
const OUTCOMES: &str = "ringcast.outcomes";
/// The default of `amqp.prefetch`, said aloud because the bare loop takes the same.
const PREFETCH: u16 = 500;
const DEVICES: [u64; 3] = [1, 2, 4];
const WORKERS: [u16; 2] = [1, 2];
/// With one device: at least so much of the bare loop's rate, at most so much of its CPU.
const RATE_MIN: f64 = 0.9;
const CPU_MAX: f64 = 1.8;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A run in which nothing moves for this long has failed.
const STALL: Duration = Duration::from_secs(30);

/// Relays invites that wait in a queue: `ringcast run`, with pushes to `apns-simulator`, beside a bare loop that consumes,
/// publishes with confirms and acks
#[derive(Parser)]
#[command(
    name = "relay",
    after_help = "Fails (exit 1) when an invite is lost, doubled or not accepted. Needs RabbitMQ."
)]
struct Arguments {
    /// Invites of a run [default: 40000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1000..))]
    invites: Option<u64>,
    /// Rounds of one run each [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// The size for a test suite, the same checks: one worker, one device, 6000 invites, one round
    #[arg(long)]
    smoke: bool,
    /// Cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Be the bare loop; the benchmark starts it by itself
    #[command(hide = true)]
    Bare(bare::Task),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.role {
        Some(Role::Bare(task)) => bare::run(task),
        None => {
            let runtime = tokio::runtime::Runtime::new().map_err(Failure::from);
            runtime.and_then(|runtime| runtime.block_on(measure(&arguments)))
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("relay: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<(), Failure> {
    let smoke = arguments.smoke || !arguments.bench;
    let (devices, workers) =
        if smoke { (&DEVICES[..1], &WORKERS[..1]) } else { (&DEVICES[..], &WORKERS[..]) };
    let invites = arguments.invites.unwrap_or(if smoke { 6_000 } else { 40_000 });
    let rounds = arguments.rounds.unwrap_or(if smoke { 1 } else { 3 });
    let bed = Bed::start(Place::new("relay")).await?;
    println!("{}, prefetch {PREFETCH}\n", program::head()?);
    println!(
        "{:<16} {:>7} {:>8} {:>9} {:>26} {:>10} {:>12}",
        "run", "devices", "invites", "invites/s", "CPU us/invite (user+sys)", "broker us", "outcome B"
    );
    let mut kinds: Vec<_> = workers
        .iter()
        .flat_map(|workers| devices.iter().map(|devices| Kind::new(*devices, *workers)))
        .collect();
    let mut number = 0;
    for _ in 0..rounds {
        for kind in &mut kinds {
            number += 1;
            let worker = bed.run(number, kind, invites, Who::Worker).await?;
            let bare = bed.run(number, kind, invites, Who::Bare).await?;
            kind.pairs.push((worker, bare));
        }
    }
    println!();
    for kind in &kinds {
        kind.tell();
    }
    Ok(())
}

/// Rows that are compared.
struct Kind {
    devices: u64,
    workers: u16,
    pairs: Vec<(Row, Row)>,
}

impl Kind {
    fn new(devices: u64, workers: u16) -> Self {
        Self { devices, workers, pairs: Vec::new() }
    }

    fn tell(&self) {
        let rate = self.each(|row| row.rate, |worker, bare| worker / bare);
        let cpu = self.each(|row| row.micros(row.usage.cpu()), |worker, bare| worker / bare);
        let more = self.each(|row| row.micros(row.usage.cpu()), |worker, bare| worker - bare);
        let limit = |limit: String| if self.devices == 1 { limit } else { String::new() };
        let what = format!("relay, workers {}, devices {}, worker / bare loop", self.workers, self.devices);
        summary::rounds(&format!("{what}: rate"), &rate, &limit(format!("at least {RATE_MIN}")));
        summary::rounds(&format!("{what}: CPU an invite"), &cpu, &limit(format!("at most {CPU_MAX}")));
        println!("CPU of the worker beyond the bare loop's: {:.1} us an invite\n", summary::median(&more));
    }

    /// Of each round, what both sides come to.
    fn each(&self, of: impl Fn(&Row) -> f64, both: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        self.pairs.iter().map(|(worker, bare)| both(of(worker), of(bare))).collect()
    }
}

/// The middle of a run, from a tenth to nine tenths.
struct Row {
    invites: u64,
    rate: f64,
    usage: Usage,
}

impl Row {
    fn micros(&self, spent: Duration) -> f64 {
        spent.as_secs_f64() * 1e6 / float(self.invites)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Worker,
    Bare,
}

/// A process that relays.
struct Relay {
    process: Running,
    /// Its end is what the bare loop ends by.
    stdin: ChildStdin,
    progress: Progress,
}

enum Progress {
    /// By the worker's own counter.
    Admin(SocketAddr),
    /// By what the bare loop said last.
    Said(Arc<AtomicU64>),
}

impl Relay {
    fn end(self) -> Result<(), Failure> {
        drop(self.stdin);
        match self.progress {
            // What it has not settled would come again, to the next one.
            Progress::Admin(_) => self.process.stop(),
            Progress::Said(_) => self.process.finish(),
        }
    }

    /// How many invites it has settled. A worker that does not listen yet has none.
    fn settled(&self) -> u64 {
        match &self.progress {
            Progress::Admin(address) => accepted(*address).unwrap_or(0),
            Progress::Said(settled) => settled.load(Ordering::Relaxed),
        }
    }
}

fn accepted(admin: SocketAddr) -> Option<u64> {
    let mut stream = TcpStream::connect(admin).ok()?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: ringcast\r\nConnection: close\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("ringcast_invites_total{app=\"acme\",result=\"accepted\"} "))?;
    line.parse().ok()
}

/// Everything but who relays.
struct Bed {
    place: Place,
    broker: Broker,
    _simulator: Running,
    _link: Link,
    channel: Channel,
    /// What differs from the defaults, but for the port of the admin endpoints.
    config: String,
    /// For the admin endpoints.
    ports: Ports,
}

impl Bed {
    async fn start(place: Place) -> Result<Self, Failure> {
        let broker =
            Broker::start().await?.ok_or("RabbitMQ is not installed: apt-get install rabbitmq-server")?;
        let identity = place.path("identity");
        let (simulator, port) = program::simulator(&identity, None)?;
        let ports = Ports::claim().ok_or("every block of ports is in use")?;
        // A TOML text, quoted and escaped.
        let file = |name: &str| format!("{:?}", identity.join(name).display().to_string());
        let (ca_file, key_file) = (file("ca.pem"), file(&format!("AuthKey_{KEY_ID}.p8")));
        let config = format!(
            "[amqp]\nuri = \"{}\"\nprefetch = {PREFETCH}\n[apns]\nproduction = \"https://127.0.0.1:{port}\"\nca_file = {ca_file}\n\
             [log]\nlevel = \"warn,lapin=off\"\n[apps.acme]\nbundle_id = \"com.acme.voice\"\n\
             [apps.acme.auth]\nteam_id = \"{TEAM_ID}\"\nkey_id = \"{KEY_ID}\"\nkey_file = {key_file}\n",
            broker.uri()
        );
        let settings = Settings {
            uri: broker.uri(),
            hosts: Vec::new(),
            ca_file: None,
            client: None,
            declare: true,
            invites: vec![INVITES.to_owned()],
            results_exchange: "ringcast.results".to_owned(),
            live: false,
            prefetch: PREFETCH,
            consumer_priority: 0,
        };
        let link = Dialer::new(&settings).await?.dial("relay").await?;
        ringcast::amqp::topology::Topology::of(&settings).declare(&link).await?;
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { place, broker, _simulator: simulator, _link: link, channel, config, ports })
    }

    /// Lets invites wait in the queue, and measures how they are relayed. Each must have one outcome at the end.
    async fn run(&self, run: u32, kind: &Kind, invites: u64, who: Who) -> Result<Row, Failure> {
        for queue in [INVITES, OUTCOMES] {
            self.channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        }
        self.publish(run, invites, kind.devices).await?;
        let broker_before = self.broker_cpu().await?;
        let outcome = self.place.path("outcome.json");
        let mut relays = Vec::new();
        for number in 0..kind.workers {
            relays.push(match who {
                Who::Worker => self.start_worker(number)?,
                Who::Bare => self.start_bare(&outcome)?,
            });
        }
        let row = watch(&relays, invites).await?;
        self.await_outcomes(invites).await?;
        let broker = self.broker_cpu().await?.saturating_sub(broker_before);
        for relay in relays {
            relay.end()?;
        }
        if who == Who::Worker {
            // The bare loop then publishes the like of it.
            let got = self.channel.basic_get(OUTCOMES.into(), BasicGetOptions { no_ack: true }).await?;
            std::fs::write(&outcome, got.ok_or("an outcome went away")?.delivery.data)?;
        }
        let name = if who == Who::Worker { "worker" } else { "bare loop" };
        println!(
            "{:<16} {:>7} {invites:>8} {:>9.0} {:>10.1} ({:>5.1} + {:>5.1}) {:>10.1} {:>12}",
            if kind.workers == 1 { name.to_owned() } else { format!("{} {name}s", kind.workers) },
            kind.devices,
            row.rate,
            row.micros(row.usage.cpu()),
            row.micros(row.usage.user),
            row.micros(row.usage.system),
            broker.as_secs_f64() * 1e6 / float(invites),
            std::fs::metadata(&outcome)?.len(),
        );
        Ok(row)
    }

    fn start_worker(&self, number: u16) -> Result<Relay, Failure> {
        let admin = SocketAddr::from(([127, 0, 0, 1], self.ports.first + number));
        let file = self.place.path(&format!("config-{number}.toml"));
        std::fs::write(&file, format!("{}[admin]\nlisten = \"{admin}\"\n", self.config))?;
        let mut process = Running::start("ringcast", &mut program::ringcast("run", file.as_ref())?)?;
        let (stdin, _) = process.pipes()?;
        Ok(Relay { process, stdin, progress: Progress::Admin(admin) })
    }

    fn start_bare(&self, outcome: &Path) -> Result<Relay, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").arg("--uri").arg(self.broker.uri()).arg("--outcome").arg(outcome);
        let mut process =
            Running::start("the bare loop", command.arg("--prefetch").arg(PREFETCH.to_string()))?;
        let settled = Arc::new(AtomicU64::new(0));
        let ((stdin, stdout), said) = (process.pipes()?, Arc::clone(&settled));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                said.store(line.parse().unwrap_or(0), Ordering::Relaxed);
            }
        });
        Ok(Relay { process, stdin, progress: Progress::Said(settled) })
    }

    /// Publishes invites with confirms, a batch at a time.
    async fn publish(&self, run: u32, invites: u64, devices: u64) -> Result<(), Failure> {
        let deadline = traffic::deadline();
        for first in (0..invites).step_by(1_000) {
            let mut confirms = Vec::new();
            for number in first..invites.min(first + 1_000) {
                let (key, options) = (INVITES.into(), BasicPublishOptions::default());
                let properties = BasicProperties::default().with_delivery_mode(2);
                let body = invite(run, number, devices, &deadline.to_string());
                let publish =
                    self.channel.basic_publish("".into(), key, options, body.as_bytes(), properties);
                confirms.push(publish.await?);
            }
            for confirm in confirms {
                confirm.await?;
            }
        }
        Ok(())
    }

    /// Returns when as many outcomes lie in their queue as there were invites.
    async fn await_outcomes(&self, invites: u64) -> Result<(), Failure> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let until = Instant::now() + STALL;
        loop {
            let queue = self.channel.queue_declare(OUTCOMES.into(), options, FieldTable::default()).await?;
            let outcomes = u64::from(queue.message_count());
            if outcomes == invites {
                return Ok(());
            }
            if outcomes > invites || Instant::now() > until {
                return Err(format!("{invites} invites have {outcomes} outcomes").into());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The CPU that the broker has used so far, by its own account.
    async fn broker_cpu(&self) -> Result<Duration, Failure> {
        let told = self.broker.ctl(&["eval", "element(1, erlang:statistics(runtime))."]).await?;
        Ok(Duration::from_millis(told.trim().parse()?))
    }
}

/// An invite to so many devices.
fn invite(run: u32, number: u64, devices: u64, deadline: &str) -> String {
    let mut tokens = String::new();
    for device in 0..devices {
        let token = traffic::token(run, number * devices + device);
        let comma = if device == 0 { "" } else { "," };
        // A String takes everything.
        let _ = write!(
            tokens,
            r#"{comma}{{"token":"{token}","environment":"production","id":"phone-{device}"}}"#
        );
    }
    format!(
        r#"{{"call_id":"{}","app":"acme","deadline":"{deadline}","caller":{{"handle":"+15551234567","name":"Ada Lovelace"}},"has_video":false,"devices":[{tokens}],"payload":{{"room":"r-17"}}}}"#,
        traffic::call_id(run, number),
    )
}

/// Looks on until all invites are settled, and weighs the middle of it.
async fn watch(relays: &[Relay], invites: u64) -> Result<Row, Failure> {
    let (mut first, mut last) = (None, None);
    let (mut seen, mut moved) = (0, Instant::now());
    while seen < invites {
        sleep(LOOK_EVERY).await;
        let now = relays.iter().map(Relay::settled).sum();
        if now != seen {
            (seen, moved) = (now, Instant::now());
        } else if moved.elapsed() > STALL {
            return Err(format!("it stands still at {seen} of {invites}").into());
        }
        if (invites / 10..=invites / 10 * 9).contains(&seen) {
            let mut usage = Usage::default();
            for relay in relays {
                let its = relay.process.usage()?;
                usage.user += its.user;
                usage.system += its.system;
            }
            let look = (seen, Instant::now(), usage);
            first.get_or_insert(look);
            last = Some(look);
        }
    }
    let ((from, began, before), (to, ended, after)) =
        first.zip(last).filter(|(first, last)| first.0 < last.0).ok_or("it was over before it was seen")?;
    let invites = to - from;
    Ok(Row { invites, rate: float(invites) / (ended - began).as_secs_f64(), usage: after.since(&before) })
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}
