//! What a worker weighs when nothing is to be done, and what each push in flight adds. See `README.md` beside this file.
//!
//! This process is Apple's side, too: it lets pushes lie until all of them are in flight, so that their number is known.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

#[allow(dead_code, reason = "another benchmark counts invites there")]
mod admin;
#[path = "../../src/bin/demo/broker.rs"]
mod broker;
#[allow(dead_code, reason = "another benchmark uses more of it")]
mod child;
#[allow(dead_code, reason = "another benchmark looks at the clock")]
mod endpoint;
mod guard;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/place.rs"]
mod place;
#[allow(dead_code, reason = "another benchmark starts more with it")]
mod program;
#[allow(dead_code, reason = "another benchmark prints with it")]
mod report;
mod summary;
#[allow(dead_code, reason = "another benchmark reads more of an outcome")]
mod traffic;
#[allow(dead_code, reason = "another benchmark uses more of it")]
mod worker;

use std::error::Error;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use broker::{Broker, Ports};
use child::Running;
use clap::Parser;
use endpoint::Endpoint;
use guard::guarded;
use parking_lot::Mutex;
use place::Place;
use ringcast::simulator::Identity;
use serde_json::json;
use summary::float;
use traffic::Shape;
use worker::Worker;

pub type Failure = Box<dyn Error + Send + Sync>;

/// What a worker may weigh at idle, in MiB.
const IDLE_MAX: f64 = 24.0;
/// What a push in flight may add, in KiB.
const PUSH_MAX: f64 = 16.0;
/// A few invites go first, again and again, until every connection has had its first answer: it then has room for a thousand. So many
/// times a connection at once, so often at most, and with such pauses: few, because the worker remembers them.
const FIRST: u64 = 2;
const FIRST_TIMES: u64 = 1_000;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// How often it is looked whether all is in flight.
const POLL_EVERY: Duration = Duration::from_millis(2);

/// Measures what a worker weighs at idle, and what each push in flight adds
#[derive(Parser)]
#[command(
    name = "memory",
    after_help = "Fails (exit 1) when an invite is not accepted or a limit on memory is exceeded. `ringcast run` needs RabbitMQ; \
--without-broker leaves it out."
)]
struct Arguments {
    /// Leaves the worker at RabbitMQ out
    #[arg(long)]
    without_broker: bool,
    /// The size for a test suite: 500 pushes in flight alone, without a broker
    #[arg(long)]
    smoke: bool,
    /// Cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// Pushes in flight.
struct Load {
    invites: u64,
    devices: u64,
    connections: u64,
}

const LOADS: [Load; 3] = [
    Load { invites: 500, devices: 1, connections: 2 },
    Load { invites: 2_000, devices: 1, connections: 4 },
    Load { invites: 2_000, devices: 4, connections: 10 },
];

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("memory: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), Failure> {
    let smoke = arguments.smoke || !arguments.bench;
    let mut bed = Bed::start()?;
    println!("{}\n", program::head()?);
    let mut beyond = Vec::new();
    if !arguments.without_broker && !smoke {
        let idle = mib(tokio::runtime::Runtime::new()?.block_on(bed.idle())?);
        println!("ringcast run, ready, no calls yet: {idle:.1} MiB, at most {IDLE_MAX}\n");
        summary::line("ringcast run at idle", &format!("{idle:.1} MiB"), &format!("at most {IDLE_MAX}"));
        report::keep("memory", &json!({ "idle_mib": idle, "program": "run" }))?;
        if idle > IDLE_MAX {
            beyond.push(format!("{idle:.1} MiB at idle"));
        }
    }
    println!(
        "{:<13} {:>8} {:>8} {:>12} {:>9} {:>14} {:>9} {:>10} {:>11}",
        "ringcast pipe",
        "invites",
        "devices",
        "connections",
        "idle MiB",
        "in flight MiB",
        "peak MiB",
        "after MiB",
        "KiB a push"
    );
    for load in LOADS.iter().take(if smoke { 1 } else { LOADS.len() }) {
        let Weight { idle, in_flight, peak, after } = bed.in_flight(load)?;
        let Load { invites, devices, connections } = *load;
        let push = (float(peak) - float(idle)) / float(invites * devices);
        println!(
            "{:<13} {invites:>8} {devices:>8} {connections:>12} {:>9.1} {:>14.1} {:>9.1} {:>10.1} {push:>11.2}",
            format!("{} pushes", invites * devices),
            mib(idle),
            mib(in_flight),
            mib(peak),
            mib(after),
        );
        if !smoke {
            report::keep(
                "memory",
                &json!({ "program": "pipe", "pushes": invites * devices, "idle_mib": mib(idle), "peak_mib": mib(peak), "push_kib": push }),
            )?;
        }
        let pushes = invites * devices;
        summary::line(
            &format!("a push, {pushes} in flight"),
            &format!("{push:.2} KiB"),
            &format!("at most {PUSH_MAX}"),
        );
        if push > PUSH_MAX {
            beyond.push(format!("{push:.1} KiB a push, {} in flight", invites * devices));
        }
        if mib(idle) > IDLE_MAX {
            beyond.push(format!("{:.1} MiB at idle with {connections} connections", mib(idle)));
        }
    }
    println!("\nat most {PUSH_MAX} KiB a push in flight, {IDLE_MAX} MiB at idle");
    // A debug build is twice as large; the limits are the release's.
    if beyond.is_empty() || cfg!(debug_assertions) {
        Ok(())
    } else {
        Err(format!("beyond the limits: {}", beyond.join(", ")).into())
    }
}

/// What a process had resident at times, in KiB.
struct Weight {
    /// Connections open and used, all answered.
    idle: u64,
    /// All pushes at the peer, none answered.
    in_flight: u64,
    /// The most there was until all outcomes were written.
    peak: u64,
    /// What is left when all is answered.
    after: u64,
}

/// Apple's side, and what it takes to push to it.
struct Bed {
    place: Place,
    endpoint: Endpoint,
    identity: PathBuf,
    runs: u32,
}

impl Bed {
    fn start() -> Result<Self, Failure> {
        let place = Place::new("memory");
        let identity = place.path("identity");
        let endpoint = Endpoint::start(&Identity::open_or_create(&identity, program::KEY_ID)?)?;
        Ok(Self { place, endpoint, identity, runs: 0 })
    }

    fn config(&self, worker: &Worker, more: &str) -> Result<PathBuf, Failure> {
        worker.config(&self.place.path("config.toml"), &self.identity, self.endpoint.port, more)
    }

    /// A run of `ringcast pipe` with so many pushes in flight at once.
    fn in_flight(&mut self, load: &Load) -> Result<Weight, Failure> {
        self.runs += 1;
        let (run, few) = (self.runs, FIRST * load.connections);
        let all = few * FIRST_TIMES + load.invites;
        let (connections, usual) = (load.connections, Worker::DEFAULT);
        let connections_max = connections.max(usual.connections_max);
        let worker = Worker { prefetch: load.invites, connections, connections_max, ..usual };
        let config = self.config(&worker, worker::PATIENT)?;
        let arrivals = self.endpoint.expect(run, all)?;
        let shape = Shape { devices: load.devices, apps: 1 };
        let used = self.endpoint.connections_used();
        let mut running = Running::start("ringcast", &mut program::ringcast("pipe", &config)?)?;
        let (mut stdin, stdout) = running.pipes()?;
        let mut stdout = BufReader::with_capacity(1 << 16, stdout);
        let weighed = |running: &Mutex<Running>| {
            let (mut seen, progress) = (vec![false; usize::try_from(all)?], AtomicU64::new(0));
            let mut first = 0;
            while self.endpoint.connections_used() < used + load.connections {
                if first == few * FIRST_TIMES {
                    return Err("not all connections are used".into());
                }
                shape.write(&mut stdin, run, first..first + few)?;
                shape.read(&mut stdout, run, &mut seen, few, &progress)?;
                first += few;
                thread::park_timeout(FIRST_PAUSE);
            }
            let all = first + load.invites;
            let idle = running.lock().resident_kib()?;
            self.endpoint.answer(false);
            shape.write(&mut stdin, run, first..all)?;
            while arrivals.requests.load(Ordering::Acquire) < all * load.devices {
                thread::park_timeout(POLL_EVERY);
                running.lock().resident_kib()?;
            }
            let in_flight = running.lock().resident_kib()?;
            self.endpoint.answer(true);
            shape.read(&mut stdout, run, &mut seen, load.invites, &progress)?;
            let running = running.lock();
            Ok(Weight { idle, in_flight, peak: running.usage()?.peak_kib, after: running.resident_kib()? })
        };
        let weighed = guarded(running, &arrivals.count, weighed);
        self.endpoint.answer(true);
        let (running, weight) = weighed?;
        drop((stdin, stdout));
        running.finish()?;
        Ok(weight)
    }

    /// What `ringcast run` has resident when it is ready, in KiB.
    async fn idle(&self) -> Result<u64, Failure> {
        let broker =
            Broker::start().await?.ok_or("RabbitMQ is not installed: apt-get install rabbitmq-server")?;
        let ports = Ports::claim().ok_or("every block of ports is in use")?;
        let admin = SocketAddr::from(([127, 0, 0, 1], ports.first));
        let more = format!("[admin]\nlisten = \"{admin}\"\n");
        let config = self.config(&Worker::DEFAULT, &more)?;
        let mut command = program::ringcast("run", &config)?;
        command.env("RINGCAST__AMQP__URI", broker.uri()).env("RINGCAST__AMQP__DECLARE", "true");
        let running = Running::start("ringcast", &mut command)?;
        while !admin::is_ready(admin) {
            running.resident_kib()?;
            tokio::time::sleep(POLL_EVERY).await;
        }
        let idle = running.resident_kib()?;
        running.stop()?;
        Ok(idle)
    }
}

fn mib(kib: u64) -> f64 {
    float(kib) / 1024.0
}
