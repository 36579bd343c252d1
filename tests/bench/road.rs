//! What a call costs one worker on the whole road, from a real RabbitMQ to the simulator of APNs and back: see `README.md`
//! beside this file. `charts/ringcast/SCALING.md` reckons with these figures.
//!
//! Four processes: the broker, `ringcast run`, `apns-simulator`, and this one, which publishes and looks on.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

mod admin;
#[path = "../../src/bin/demo/broker.rs"]
mod broker;
#[allow(dead_code, reason = "the other benchmarks use more of it")]
mod child;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/place.rs"]
mod place;
#[allow(dead_code, reason = "another benchmark counts instructions with it")]
mod program;
#[allow(dead_code, reason = "another benchmark looks at its queues")]
mod rabbit;
#[allow(dead_code, reason = "this one is not in the table of them all")]
mod summary;
#[allow(dead_code, reason = "outcomes are counted here, not read")]
mod traffic;
#[allow(dead_code, reason = "another benchmark has many apps")]
mod worker;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use broker::Ports;
use child::Running;
use place::Place;
use rabbit::{Middle, Rabbit, STALL};
use summary::float;
use tokio::time::{Instant, sleep};
use traffic::Shape;
use worker::Worker;

pub type Failure = Box<dyn Error + Send + Sync>;

/// What Apple's answers take.
const LATENCY: &str = "40ms";
/// Calls that wait in the queue when the worker starts.
const CALLS: u64 = 60_000;
/// Calls a second where they come one after the other, and how long they do.
const PACES: [u64; 2] = [1_000, 3_000];
const PACED_FOR: u64 = 10;
const PREFETCHES: [u64; 3] = [100, 500, 2000];

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::from);
    match runtime.and_then(|runtime| runtime.block_on(measure())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("road: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> Result<(), Failure> {
    let place = Place::new("road");
    let bed = Bed::start(place).await?;
    println!("{}, Apple answers after {LATENCY}\n", program::head()?);
    println!(
        "{:<22} {:>8} {:>8} {:>8} {:>9} {:>24} {:>9} {:>9}",
        "calls", "prefetch", "ready s", "calls", "calls/s", "CPU us/call (user+sys)", "peak MiB", "broker us"
    );
    let mut run = 0;
    for prefetch in PREFETCHES {
        run += 1;
        bed.run(run, prefetch, None).await?;
    }
    for pace in PACES {
        run += 1;
        bed.run(run, 500, Some(pace)).await?;
    }
    Ok(())
}

/// Everything but the worker.
struct Bed {
    place: Place,
    rabbit: Rabbit,
    _simulator: Running,
    /// Where the simulator listens, with the identity in that folder.
    port: u16,
    identity: PathBuf,
    admin: SocketAddr,
    /// Keeps the port of the admin endpoints ours.
    _ports: Ports,
}

impl Bed {
    async fn start(place: Place) -> Result<Self, Failure> {
        let rabbit = Rabbit::start("road").await?;
        let script = place.write("script.toml", format!("[[fault]]\nlatency = \"{LATENCY}\"\n"));
        let identity = place.path("identity");
        let (simulator, port) = program::simulator(&identity, Some(&script))?;
        let ports = Ports::claim().ok_or("every block of ports is in use")?;
        let admin = SocketAddr::from(([127, 0, 0, 1], ports.first));
        Ok(Self { place, rabbit, _simulator: simulator, port, identity, admin, _ports: ports })
    }

    /// One worker, and calls that wait for it, or that come at a pace.
    async fn run(&self, run: u32, prefetch: u64, pace: Option<u64>) -> Result<(), Failure> {
        let calls = pace.map_or(CALLS, |pace| pace * PACED_FOR);
        let mut invites = Vec::new();
        Shape::ONE.write(&mut invites, run, 0..calls)?;
        self.rabbit.purge().await?;
        if pace.is_none() {
            self.rabbit.publish(&invites, None).await?;
        }
        let more = format!("[admin]\nlisten = \"{}\"\n", self.admin);
        let worker = Worker { prefetch, ..Worker::DEFAULT };
        let config = worker.config(&self.place.path("config.toml"), &self.identity, self.port, &more)?;
        let broker_before = self.rabbit.cpu().await?;
        let mut command = self.rabbit.worker(&config)?;
        let began = Instant::now();
        let worker = Running::start("ringcast", &mut command)?;
        while !admin::is_ready(self.admin) {
            if began.elapsed() > STALL {
                return Err("the worker does not get ready".into());
            }
            sleep(Duration::from_millis(2)).await;
        }
        let ready = began.elapsed();
        let middle = Middle::of(calls, || Ok((admin::accepted(self.admin), worker.usage()?)));
        let (middle, published) = tokio::join!(middle, async {
            match pace {
                Some(_) => self.rabbit.publish(&invites, pace).await,
                None => Ok(()),
            }
        });
        published?;
        let middle = middle?;
        let broker = self.rabbit.cpu().await?.saturating_sub(broker_before);
        println!(
            "{:<22} {prefetch:>8} {:>8.3} {calls:>8} {:>9.0} {:>8.1} ({:>5.1} + {:>5.1}) {:>9.1} {:>9.1}",
            pace.map_or_else(|| "wait in the queue".to_owned(), |pace| format!("come, {pace}/s")),
            ready.as_secs_f64(),
            middle.rate,
            middle.micros(middle.usage.cpu()),
            middle.micros(middle.usage.user),
            middle.micros(middle.usage.system),
            float(worker.usage()?.peak_kib) / 1024.0,
            broker.as_secs_f64() * 1e6 / float(calls),
        );
        // What it has not settled would come again, to the next one.
        worker.stop()
    }
}
