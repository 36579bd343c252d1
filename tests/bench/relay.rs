//! The whole worker beside a bare loop of the AMQP client library, on one RabbitMQ: see `README.md` beside this file.
//!
//! The broker, `apns-simulator`, one or two workers or bare loops, and this process, which publishes and looks on.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

#[allow(dead_code, reason = "another benchmark waits for `/readyz`")]
mod admin;
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
mod rabbit;
mod summary;
#[allow(dead_code, reason = "the other benchmarks use more of it")]
mod traffic;
#[allow(dead_code, reason = "another benchmark has many apps")]
mod worker;

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use broker::Ports;
use child::Running;
use clap::{Parser, Subcommand};
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use place::Place;
use rabbit::{Middle, OUTCOMES, Rabbit, STALL};
use summary::float;
use tokio::time::{Instant, sleep};
use traffic::Shape;
use worker::Worker;

pub type Failure = Box<dyn Error + Send + Sync>;

const DEVICES: [u64; 3] = [1, 2, 4];
const WORKERS: [u16; 2] = [1, 2];
/// With one device: at least so much of the bare loop's rate, at most so much of its CPU.
const RATE_MIN: f64 = 0.9;
const CPU_MAX: f64 = 1.8;
const LOOK_EVERY: Duration = Duration::from_millis(50);

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
    println!("{}, prefetch {}\n", program::head()?, Worker::DEFAULT.prefetch);
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
    pairs: Vec<(Middle, Middle)>,
}

impl Kind {
    fn new(devices: u64, workers: u16) -> Self {
        Self { devices, workers, pairs: Vec::new() }
    }

    fn tell(&self) {
        let rate = self.each(|run| run.rate, |worker, bare| worker / bare);
        let cpu = self.each(|run| run.micros(run.usage.cpu()), |worker, bare| worker / bare);
        let more = self.each(|run| run.micros(run.usage.cpu()), |worker, bare| worker - bare);
        let limit = |limit: String| if self.devices == 1 { limit } else { String::new() };
        let what = format!("relay, workers {}, devices {}, worker / bare loop", self.workers, self.devices);
        summary::rounds(&format!("{what}: rate"), &rate, &limit(format!("at least {RATE_MIN}")));
        summary::rounds(&format!("{what}: CPU an invite"), &cpu, &limit(format!("at most {CPU_MAX}")));
        println!("CPU of the worker beyond the bare loop's: {:.1} us an invite\n", summary::median(&more));
    }

    /// Of each round, what both sides come to.
    fn each(&self, of: impl Fn(&Middle) -> f64, both: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        self.pairs.iter().map(|(worker, bare)| both(of(worker), of(bare))).collect()
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

    /// How many invites it has settled.
    fn settled(&self) -> u64 {
        match &self.progress {
            Progress::Admin(address) => admin::accepted(*address),
            Progress::Said(settled) => settled.load(Ordering::Relaxed),
        }
    }
}

/// Everything but who relays.
struct Bed {
    place: Place,
    rabbit: Rabbit,
    _simulator: Running,
    /// Where the simulator listens, with the identity in that folder.
    port: u16,
    identity: PathBuf,
    /// For the admin endpoints.
    ports: Ports,
}

impl Bed {
    async fn start(place: Place) -> Result<Self, Failure> {
        let rabbit = Rabbit::start("relay").await?;
        let identity = place.path("identity");
        let (simulator, port) = program::simulator(&identity, None)?;
        let ports = Ports::claim().ok_or("every block of ports is in use")?;
        Ok(Self { place, rabbit, _simulator: simulator, port, identity, ports })
    }

    /// Lets invites wait in the queue, and measures how they are relayed. Each must have one outcome at the end.
    async fn run(&self, run: u32, kind: &Kind, invites: u64, who: Who) -> Result<Middle, Failure> {
        let mut lines = Vec::new();
        Shape { devices: kind.devices, apps: 1 }.write(&mut lines, run, 0..invites)?;
        self.rabbit.purge().await?;
        self.rabbit.publish(&lines, None).await?;
        let broker_before = self.rabbit.cpu().await?;
        let outcome = self.place.path("outcome.json");
        let mut relays = Vec::new();
        for number in 0..kind.workers {
            relays.push(match who {
                Who::Worker => self.start_worker(number)?,
                Who::Bare => self.start_bare(&outcome)?,
            });
        }
        let look = || {
            let settled = relays.iter().map(Relay::settled).sum();
            let used = relays.iter().map(|relay| relay.process.usage());
            let used = used.reduce(|some, more| Ok(some?.and(&more?))).ok_or("nobody relays")??;
            Ok((settled, used))
        };
        let middle = Middle::of(invites, look).await?;
        self.await_outcomes(invites).await?;
        let broker = self.rabbit.cpu().await?.saturating_sub(broker_before);
        for relay in relays {
            relay.end()?;
        }
        if who == Who::Worker {
            // The bare loop then publishes the like of it.
            let got =
                self.rabbit.channel.basic_get(OUTCOMES.into(), BasicGetOptions { no_ack: true }).await?;
            std::fs::write(&outcome, got.ok_or("an outcome went away")?.delivery.data)?;
        }
        let name = if who == Who::Worker { "worker" } else { "bare loop" };
        println!(
            "{:<16} {:>7} {invites:>8} {:>9.0} {:>10.1} ({:>5.1} + {:>5.1}) {:>10.1} {:>12}",
            if kind.workers == 1 { name.to_owned() } else { format!("{} {name}s", kind.workers) },
            kind.devices,
            middle.rate,
            middle.micros(middle.usage.cpu()),
            middle.micros(middle.usage.user),
            middle.micros(middle.usage.system),
            broker.as_secs_f64() * 1e6 / float(invites),
            std::fs::metadata(&outcome)?.len(),
        );
        Ok(middle)
    }

    fn start_worker(&self, number: u16) -> Result<Relay, Failure> {
        let admin = SocketAddr::from(([127, 0, 0, 1], self.ports.first + number));
        let more = format!("[admin]\nlisten = \"{admin}\"\n");
        let file = self.place.path(&format!("config-{number}.toml"));
        let config = Worker::DEFAULT.config(&file, &self.identity, self.port, &more)?;
        let mut process = Running::start("ringcast", &mut self.rabbit.worker(&config)?)?;
        let (stdin, _) = process.pipes()?;
        Ok(Relay { process, stdin, progress: Progress::Admin(admin) })
    }

    fn start_bare(&self, outcome: &Path) -> Result<Relay, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").arg("--uri").arg(self.rabbit.uri()).arg("--outcome").arg(outcome);
        let mut process = Running::start(
            "the bare loop",
            command.arg("--prefetch").arg(Worker::DEFAULT.prefetch.to_string()),
        )?;
        let settled = Arc::new(AtomicU64::new(0));
        let ((stdin, stdout), said) = (process.pipes()?, Arc::clone(&settled));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                said.store(line.parse().unwrap_or(0), Ordering::Relaxed);
            }
        });
        Ok(Relay { process, stdin, progress: Progress::Said(settled) })
    }

    /// Returns when as many outcomes lie in their queue as there were invites.
    async fn await_outcomes(&self, invites: u64) -> Result<(), Failure> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let until = Instant::now() + STALL;
        loop {
            let queue =
                self.rabbit.channel.queue_declare(OUTCOMES.into(), options, FieldTable::default()).await?;
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
}
