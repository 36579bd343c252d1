//! What a connection that misbehaves costs the calls on it, and the others, on the clock of the wall: see `README.md` beside
//! this file. The bounds themselves are asserted in virtual time, in `tests/sim/stalled.rs`; here they are only told.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

#[allow(dead_code, reason = "the other benchmark weighs processes, this one does not")]
mod child;
#[allow(dead_code, reason = "another benchmark starts more with it")]
mod program;
#[allow(dead_code, reason = "outcomes are read for their times")]
mod traffic;
#[allow(dead_code, reason = "another benchmark has many apps")]
mod worker;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use child::Running;
use ringcast::simulator::faults::Fault;
use ringcast::simulator::{Identity, Options, Order, Simulator, Target};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use traffic::Shape;
use worker::Worker;

pub type Failure = Box<dyn Error + Send + Sync>;

const CONNECTIONS: u64 = 4;
/// Calls a second, and how long they come.
const RATE: u64 = 500;
const CALLS: u64 = 2_500;
/// When the second of the four connections begins to misbehave.
const BEGINS: Duration = Duration::from_secs(2);
/// What Apple's answers take otherwise.
const LATENCY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(60));
/// `apns.request_timeout`, short enough for a benchmark.
const REQUEST_TIMEOUT: &str = "2s";

/// What happens to the connection.
#[derive(Clone, Copy)]
enum Incident {
    Nothing,
    Frozen,
    Slow,
    Mute,
}

impl Incident {
    const ALL: [Self; 4] = [Self::Nothing, Self::Frozen, Self::Slow, Self::Mute];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Frozen => "frozen: no PONG, no answer",
            Self::Slow => "answers after 1.5 s",
            Self::Mute => "PONGs, no answer",
        }
    }

    fn begin(self, simulator: &Simulator) {
        match self {
            Self::Nothing => {}
            Self::Frozen => simulator.order_to(Target::Connection(2), Order::Freeze),
            Self::Slow => {
                let slow = Duration::from_millis(1_500);
                simulator.faults().add(Fault::latency(slow, slow).connection(2));
            }
            Self::Mute => {
                simulator.faults().add(Fault::silence(false).connection(2));
            }
        }
    }
}

/// What became of one call.
struct Told {
    number: u64,
    attempts: u64,
    latency_ms: u64,
}

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("incident: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), Failure> {
    println!("{}", program::head()?);
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("incident-{}", std::process::id()));
    std::fs::create_dir_all(&place)?;
    println!(
        "one of {CONNECTIONS} connections, {RATE} calls/s, answers after {} to {} ms, request_timeout {REQUEST_TIMEOUT}; \
         times in ms from a call's first attempt to its answer\n",
        LATENCY.0.as_millis(),
        LATENCY.1.as_millis()
    );
    println!(
        "{:28}{:>8}{:>10}{:>12}{:>12}{:>10}{:>10}{:>10}{:>12}",
        "incident", "calls", "repeated", "median", "slowest", "others:", "median", "p99", "connections"
    );
    let mut ended = Ok(());
    for incident in Incident::ALL {
        ended = run(incident, &place);
        if ended.is_err() {
            break;
        }
    }
    // Left over, it is a few small files in the target folder.
    let _ = std::fs::remove_dir_all(&place);
    ended
}

fn run(incident: Incident, place: &Path) -> Result<(), Failure> {
    let (ready, started) = mpsc::channel();
    let (end, ends) = tokio::sync::oneshot::channel::<()>();
    let folder = place.join("identity");
    let serving = thread::spawn(move || -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let identity = Identity::open_or_create(&folder, program::KEY_ID)?;
            let simulator = Simulator::new(Options::new(identity.verifying_key()))?;
            simulator.faults().add(Fault::latency(LATENCY.0, LATENCY.1));
            let listening = simulator.listen(([127, 0, 0, 1], 0).into(), identity.server_config()).await?;
            ready.send((simulator.clone(), listening.local_addr().port()))?;
            // Dropped: the run is over all the same.
            let _ = ends.await;
            listening.shutdown().await;
            Ok(())
        })
    });
    let (simulator, port) = started.recv().map_err(|_| "the simulator did not start")?;
    let told = push(incident, place, &simulator, port);
    // It may have ended by itself, and says so below.
    let _ = end.send(());
    serving.join().map_err(|_| "the simulator panicked")??;
    let told = told?;
    tell(incident, &told, simulator.connections_total());
    Ok(())
}

/// Pushes all calls through `ringcast pipe` at their rate, and lets the incident begin in the middle.
fn push(incident: Incident, place: &Path, simulator: &Simulator, port: u16) -> Result<Vec<Told>, Failure> {
    let worker = Worker { prefetch: 2000, connections: CONNECTIONS, ..Worker::DEFAULT };
    let more = format!("request_timeout = \"{REQUEST_TIMEOUT}\"\n");
    let config = worker.config(&place.join("config.toml"), &place.join("identity"), port, &more)?;
    let mut running = Running::start("ringcast", &mut program::ringcast("pipe", &config)?)?;
    let (mut stdin, stdout) = running.pipes()?;
    let reader = thread::spawn(move || read(BufReader::new(stdout)));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let began = Instant::now();
        let mut has_begun = false;
        for number in 0..CALLS {
            let at = Duration::from_secs(number) / u32::try_from(RATE)?;
            sleep_until(began + at).await;
            if at >= BEGINS && !has_begun {
                has_begun = true;
                incident.begin(simulator);
            }
            Shape::ONE.write(&mut stdin, 0, number..number + 1)?;
        }
        Ok::<_, Failure>(())
    })?;
    drop(stdin);
    let told = reader.join().map_err(|_| "the reader of outcomes panicked")??;
    running.finish()?;
    if told.len() as u64 != CALLS {
        return Err(format!("{} of {CALLS} calls have an outcome", told.len()).into());
    }
    Ok(told)
}

fn read(stdout: impl BufRead) -> Result<Vec<Told>, Failure> {
    let mut told = BTreeMap::new();
    for line in stdout.lines() {
        let line = line?;
        let outcome: Value = serde_json::from_str(&line)?;
        let device = &outcome["devices"][0];
        if device["result"] != "accepted" {
            return Err(format!("a call was not accepted: {outcome}").into());
        }
        let number = traffic::number_of(line.as_bytes())?;
        let number_of = |field: &str| device[field].as_u64().unwrap_or_default();
        let one = Told { number, attempts: number_of("attempts"), latency_ms: number_of("latency_ms") };
        if told.insert(number, one).is_some() {
            return Err(format!("call {number} has two outcomes").into());
        }
    }
    Ok(told.into_values().collect())
}

fn tell(incident: Incident, told: &[Told], connections: u64) {
    let begins = BEGINS.as_secs() * RATE;
    let usual = u64::try_from(LATENCY.1.as_millis()).unwrap_or(u64::MAX) + 100;
    // Held: repeated, or answered late by the slow one. Calls from before may have been on it when it began.
    let is_held = |one: &&Told| one.attempts > 1 || one.latency_ms > usual;
    let (held, others): (Vec<_>, Vec<_>) =
        told.iter().filter(|one| one.number + RATE / 5 >= begins).partition(is_held);
    let sorted = |some: &[&Told]| {
        let mut times: Vec<u64> = some.iter().map(|one| one.latency_ms).collect();
        times.sort_unstable();
        times
    };
    let (held, others) = (sorted(&held), sorted(&others));
    let repeated = told.iter().filter(|one| one.attempts > 1).count();
    let of = |times: &[u64], percent: usize| {
        let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(place).map_or_else(|| "-".to_owned(), ToString::to_string)
    };
    println!(
        "{:28}{:>8}{repeated:>10}{:>12}{:>12}{:>10}{:>10}{:>10}{connections:>12}",
        incident.name(),
        held.len(),
        of(&held, 50),
        of(&held, 100),
        others.len(),
        of(&others, 50),
        of(&others, 99),
    );
}
