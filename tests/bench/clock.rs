//! How long a call is the worker's: from the invite in its pipe to the request at the peer, beside a bare h2 client that is fed the same
//! invites. See `README.md` beside this file.
//!
//! This process writes the invites at their times and is the peer; so both moments are read from one clock.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

#[allow(dead_code, reason = "another benchmark uses more of it")]
mod child;
mod cores;
#[allow(dead_code, reason = "another benchmark holds answers back")]
mod endpoint;
mod feed;
mod guard;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/place.rs"]
mod place;
#[allow(dead_code, reason = "another benchmark starts more with it")]
mod program;
#[allow(dead_code, reason = "another benchmark runs it by itself")]
mod reference;
#[allow(dead_code, reason = "another benchmark prints with it")]
mod report;
mod summary;
#[allow(dead_code, reason = "another benchmark reads more of an invite")]
mod traffic;
#[allow(dead_code, reason = "another benchmark has many apps")]
mod worker;

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicU64;

use child::Running;
use clap::{Parser, Subcommand};
use cores::Cores;
use endpoint::Endpoint;
use feed::{Feed, Times};
use place::Place;
use ringcast::simulator::Identity;
use serde_json::json;
use summary::float;
use traffic::Shape;
use worker::Worker;

pub type Failure = Box<dyn Error + Send + Sync>;

/// Rates, in percent of what the slower of the two carries.
const SHARES: [u64; 4] = [10, 20, 50, 80];
/// Rates are multiples of it.
const STEP: u64 = 100;
/// How many times the bare client's time may be ours, at the median and for one in a hundred.
const P50_MAX: f64 = 3.0;
const P99_MAX: f64 = 5.0;

/// Measures the time from an invite in the pipe of `ringcast pipe` to its request at the peer, at fixed rates, beside a bare h2 client
#[derive(Parser)]
#[command(
    name = "clock",
    after_help = "Fails (exit 1) when an invite is lost or not accepted. Times are told beside their limits, not judged. \
`cargo bench --bench clock` runs the full size; without cargo's `--bench`, as in `cargo test --benches`, the smoke size."
)]
struct Arguments {
    /// Seconds of a measured run [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Rounds of one run of each at each rate [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Invites a second in place of the shares of the capacity; once or more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Vec<u64>,
    /// The size for a test suite, the same checks: a second at a fifth of the capacity, one round
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
    /// Be the bare client; the benchmark starts it by itself
    #[command(hide = true)]
    Bare(reference::Fed),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.role {
        Some(Role::Bare(fed)) => reference::run_fed(fed),
        None => measure(&arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("clock: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Ringcast,
    Bare,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Ringcast => "ringcast",
            Self::Bare => "bare h2",
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), Failure> {
    let smoke = arguments.smoke || !arguments.bench;
    let (flat_out, seconds, rounds) = match (smoke, cfg!(debug_assertions)) {
        (false, _) => (100_000, 3, 5),
        (true, false) => (20_000, 1, 1),
        (true, true) => (5_000, 1, 1),
    };
    let seconds = arguments.seconds.unwrap_or(seconds);
    let rounds = arguments.rounds.unwrap_or(rounds);

    let program = program::head()?;
    let mut bed = Bed::start()?;
    head(&format!("{program}{}", bed.cores.told()));
    let ours = bed.run(Who::Ringcast, None, flat_out)?;
    line(Who::Ringcast, None, &ours);
    let bare = bed.run(Who::Bare, None, flat_out)?;
    line(Who::Bare, None, &bare);
    let capacity = ours.rate.min(bare.rate);
    let rates: Vec<u64> = match (&arguments.rate[..], smoke) {
        ([], false) => SHARES.map(|share| share_of(capacity, share)).to_vec(),
        ([], true) => vec![share_of(capacity, 20)],
        (rates, _) => rates.to_vec(),
    };
    let mut pairs: Vec<Vec<(Times, Times)>> = rates.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (rate, pairs) in rates.iter().zip(&mut pairs) {
            let count = rate * seconds;
            let ours = bed.run(Who::Ringcast, Some(*rate), count)?;
            line(Who::Ringcast, Some(*rate), &ours);
            let bare = bed.run(Who::Bare, Some(*rate), count)?;
            line(Who::Bare, Some(*rate), &bare);
            pairs.push((ours, bare));
        }
    }
    for (rate, pairs) in rates.iter().zip(&pairs) {
        conclude(*rate, capacity, pairs, smoke)?;
    }
    Ok(())
}

/// So many percent of the capacity, down to a round number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is a small positive number"
)]
fn share_of(capacity: f64, percent: u64) -> u64 {
    (capacity as u64 * percent / 100 / STEP * STEP).max(STEP)
}

fn head(measured: &str) {
    println!("{measured}\n");
    println!(
        "{:<9} {:>9} {:>8} {:>9} {:>8} {:>8} {:>8} {:>9} {:>11} {:>12}",
        "run",
        "asked/s",
        "pushes",
        "pushes/s",
        "p50 us",
        "p99 us",
        "p99.9",
        "max us",
        "CPU us/push",
        "late, p99 us"
    );
}

fn line(who: Who, rate: Option<u64>, times: &Times) {
    let told = |value: f64| rate.map_or_else(String::new, |_| format!("{value:.0}"));
    println!(
        "{:<9} {:>9} {:>8} {:>9.0} {:>8} {:>8} {:>8} {:>9} {:>11.1} {:>12}",
        who.name(),
        rate.map_or_else(|| "flat out".to_owned(), |rate| rate.to_string()),
        times.count,
        times.rate,
        told(times.micros(500)),
        told(times.micros(990)),
        told(times.micros(999)),
        told(times.micros(1000)),
        times.cpu_micros,
        told(times.late_micros),
    );
}

/// What the rounds at one rate come to.
fn conclude(rate: u64, capacity: f64, pairs: &[(Times, Times)], smoke: bool) -> Result<(), Failure> {
    println!("\nat {rate}/s, {:.0} % of {capacity:.0}/s: ringcast / bare h2", float(rate) * 100.0 / capacity);
    let mut ratios = serde_json::Map::new();
    for (name, permille, limit) in
        [("p50", 500, Some(P50_MAX)), ("p99", 990, Some(P99_MAX)), ("p99.9", 999, None)]
    {
        let rounds: Vec<f64> =
            pairs.iter().map(|(ours, bare)| ours.micros(permille) / bare.micros(permille)).collect();
        let ratio = summary::median(&rounds);
        let limit = limit.map_or_else(String::new, |limit| format!("at most {limit}"));
        summary::rounds(&format!("{name} at {rate}/s, ringcast / bare h2"), &rounds, &limit);
        ratios.insert(name.to_owned(), json!(ratio));
    }
    if smoke {
        return Ok(());
    }
    let of = |who: fn(&(Times, Times)) -> &Times| {
        let at = |permille| {
            let rounds: Vec<f64> = pairs.iter().map(|pair| who(pair).micros(permille)).collect();
            summary::median(&rounds)
        };
        let late: Vec<f64> = pairs.iter().map(|pair| who(pair).late_micros).collect();
        json!({ "p50": at(500), "p99": at(990), "p99.9": at(999), "late": summary::median(&late) })
    };
    let figures = json!({
        "rate": rate, "capacity": capacity, "ratio": ratios, "ringcast_us": of(|pair| &pair.0), "bare_us": of(|pair| &pair.1),
    });
    report::keep("clock", &figures)
}

/// The peer, and what it takes to push to it.
struct Bed {
    cores: Cores,
    endpoint: Endpoint,
    identity: PathBuf,
    config: PathBuf,
    runs: u32,
    place: Place,
}

impl Bed {
    fn start() -> Result<Self, Failure> {
        let cores = Cores::divide()?;
        let place = Place::new("clock");
        let identity = place.path("identity");
        let endpoint = Endpoint::start(&Identity::open_or_create(&identity, program::KEY_ID)?)?;
        let config =
            Worker::DEFAULT.config(&place.path("config.toml"), &identity, endpoint.port, worker::PATIENT)?;
        Ok(Self { cores, endpoint, identity, config, runs: 0, place })
    }

    /// One process from its start to its end; its outcomes are judged when it is over.
    fn run(&mut self, who: Who, rate: Option<u64>, count: u64) -> Result<Times, Failure> {
        self.runs += 1;
        let run = self.runs;
        let outcomes = self.place.path("outcomes");
        let command = match who {
            Who::Ringcast => program::ringcast("pipe", &self.config)?,
            Who::Bare => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("bare").arg("--identity").arg(&self.identity);
                for (name, value) in [
                    ("--port", u64::from(self.endpoint.port)),
                    ("--connections", Worker::DEFAULT.connections),
                ] {
                    command.arg(name).arg(value.to_string());
                }
                command
            }
        };
        let feed = Feed::new(&self.endpoint, run, rate, count)?;
        let (running, stdin) =
            Running::feed(who.name(), &mut self.cores.give(&command), File::create(&outcomes)?)?;
        let times = feed.run(running, stdin).map_err(|error| format!("{}: {error}", who.name()))?;
        if who == Who::Ringcast {
            let mut outcomes = BufReader::new(File::open(&outcomes)?);
            Shape::ONE.read_all(&mut outcomes, run, feed.lines(), &AtomicU64::new(0))?;
        }
        Ok(times)
    }
}
