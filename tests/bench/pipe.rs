//! What `ringcast pipe` costs a push, and whether its memory stays flat: see `README.md` beside this file.
//!
//! Three processes, each with its own CPU account: this one (makes invites, judges outcomes), `ringcast pipe`, and
//! `apns-simulator`. In each round the reference, a bare h2 client in a process of its own, then sends the same pushes.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

#[allow(dead_code, reason = "another benchmark uses more of it")]
mod child;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/place.rs"]
mod place;
#[allow(dead_code, reason = "another benchmark starts more with it")]
mod program;
#[allow(dead_code, reason = "another benchmark feeds it")]
mod reference;
#[allow(dead_code, reason = "what only other benchmarks keep")]
mod report;
mod summary;
#[allow(dead_code, reason = "another benchmark uses more of it")]
mod traffic;
#[allow(dead_code, reason = "another benchmark has many apps")]
mod worker;

use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use child::Running;
use clap::{Parser, Subcommand};
use place::Place;
use report::Row;
use tokio::time::Instant;
use traffic::Shape;
use worker::Worker;

/// Whatever went wrong, in words.
pub type Failure = Box<dyn Error + Send + Sync>;

/// How much more memory many invites may take than few.
const GROWTH_MAX: f64 = 1.5;

/// A process that does not end so long after its stdin did has failed.
const STALL: Duration = Duration::from_secs(30);

/// Pushes invites through `ringcast pipe` to `apns-simulator` on 127.0.0.1; measures memory, rate and CPU a push beside a
/// bare h2 client
#[derive(Parser)]
#[command(
    name = "pipe",
    after_help = "Fails (exit 1) when an invite is lost or not accepted, or when memory grows with their number. \
`cargo bench --bench pipe` runs the full size; without cargo's `--bench`, as in `cargo test --benches`, the smoke size."
)]
struct Arguments {
    /// Invites of a measured run [default: 200000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    invites: Option<u64>,
    /// Invites of the short run that memory is compared with; fewer do not fill the tables [default: 20000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    few: Option<u64>,
    /// Rounds of one measured run and one run of the reference, one after the other [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// The size for a test suite, the same checks: 100000 invites (30000 in a debug build), 10000 in the short run, one round
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
    /// Be the reference; the benchmark starts it by itself
    #[command(hide = true)]
    Reference(reference::Task),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.role {
        Some(Role::Reference(task)) => reference::run(task),
        None => measure(&arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("pipe: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), Failure> {
    let smoke = arguments.smoke || !arguments.bench;
    let (invites, few, rounds) = match (smoke, cfg!(debug_assertions)) {
        (false, _) => (200_000, 20_000, 3),
        (true, false) => (100_000, 10_000, 1),
        // An eighth of the speed, and the same limit on memory.
        (true, true) => (30_000, 10_000, 1),
    };
    let invites = arguments.invites.unwrap_or(invites);
    let few = arguments.few.unwrap_or(few);
    let rounds = arguments.rounds.unwrap_or(rounds);

    let place = Place::new("pipe");
    let bed = Bed::start(&place)?;
    report::head(&program::head()?);
    let short = bed.pipe(0, few)?;
    report::line("ringcast, few", &short);
    let mut pairs = Vec::new();
    for round in 1..=rounds {
        let pipe = bed.pipe(2 * round, invites)?;
        report::line("ringcast", &pipe);
        let reference = bed.reference(2 * round + 1, invites)?;
        report::line("reference", &reference);
        pairs.push((pipe, reference));
    }
    report::ratios(&pairs);
    let peak = pairs.iter().map(|(pipe, _)| pipe.usage.peak_kib).max().unwrap_or_default();
    let growth = report::memory(&short, invites, peak, GROWTH_MAX);
    if growth > GROWTH_MAX {
        return Err(format!("memory grows with the invites: {growth:.2} times, at most {GROWTH_MAX}").into());
    }
    Ok(())
}

/// The simulator, and what it takes to push to it.
struct Bed {
    simulator: Running,
    identity: PathBuf,
    config: PathBuf,
    port: u16,
}

impl Bed {
    fn start(place: &Place) -> Result<Self, Failure> {
        let identity = place.path("identity");
        let (simulator, port) = program::simulator(&identity, None)?;
        let config = Worker::DEFAULT.config(&place.path("config.toml"), &identity, port, "")?;
        Ok(Self { simulator, identity, config, port })
    }

    /// A run of `ringcast pipe`.
    fn pipe(&self, run: u32, count: u64) -> Result<Row, Failure> {
        let mut command = program::ringcast("pipe", &self.config)?;
        self.weigh("ringcast", &mut command, count, |mut stdin, stdout, progress| {
            let writer = thread::spawn(move || Shape::ONE.write(&mut stdin, run, 0..count).map(|()| stdin));
            let mut stdout = BufReader::with_capacity(1 << 16, stdout);
            let attempts = Shape::ONE.read_all(&mut stdout, run, count, progress)?;
            let stdin = writer.join().map_err(|_| "the writer of invites panicked")??;
            Ok(Answered { attempts, stdin, stdout })
        })
    }

    /// A run of the reference.
    fn reference(&self, run: u32, count: u64) -> Result<Row, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("reference").arg("--identity").arg(&self.identity);
        for (name, value) in [
            ("--port", u64::from(self.port)),
            ("--run", u64::from(run)),
            ("--pushes", count),
            ("--connections", Worker::DEFAULT.connections),
            ("--streams", Worker::DEFAULT.prefetch),
        ] {
            command.arg(name).arg(value.to_string());
        }
        self.weigh("the reference", &mut command, count, |stdin, stdout, progress| {
            let mut stdout = BufReader::new(stdout);
            let mut accepted = 0;
            while accepted < count {
                let mut line = String::new();
                stdout.read_line(&mut line)?;
                accepted = line.trim().parse().map_err(|_| format!("it ended after {accepted} pushes"))?;
                progress.store(accepted, Ordering::Relaxed);
            }
            Ok(Answered { attempts: count, stdin, stdout })
        })
    }

    /// Runs a command and weighs it when everything is answered, before the end of its stdin lets it end.
    fn weigh(
        &self,
        name: &'static str,
        command: &mut Command,
        count: u64,
        talk: impl FnOnce(ChildStdin, ChildStdout, &AtomicU64) -> Result<Answered, Failure> + Send,
    ) -> Result<Row, Failure> {
        let before = self.simulator.usage()?;
        let started = Instant::now();
        let mut running = Running::start(name, command)?;
        let (stdin, stdout) = running.pipes()?;
        let (answered, elapsed) = running
            .unless_stalled(|progress| {
                let answered = talk(stdin, stdout, progress)?;
                Ok((answered, started.elapsed()))
            })
            .map_err(|error| format!("{name}: {error}"))?;
        let usage = running.usage()?;
        let simulator = self.simulator.usage()?.since(&before);
        let Answered { attempts, stdin, stdout } = answered;
        drop(stdin);
        let rest = read_rest(stdout).map_err(|error| format!("{name}: {error}"))?;
        if !rest.is_empty() {
            return Err(format!("{name} says more than was asked: {}", String::from_utf8_lossy(&rest)).into());
        }
        running.finish()?;
        Ok(Row { count, attempts, elapsed, usage, simulator })
    }
}

/// A run in which everything was answered. Its stdin is still open.
struct Answered {
    attempts: u64,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// What else comes until stdout is closed.
fn read_rest(mut stdout: BufReader<ChildStdout>) -> Result<Vec<u8>, Failure> {
    let (done, ended) = sync_channel(1);
    thread::spawn(move || {
        let mut rest = Vec::new();
        // The other end waits for it, or has given up.
        let _ = done.send(stdout.read_to_end(&mut rest).map(|_| rest));
    });
    Ok(ended.recv_timeout(STALL).map_err(|_| "it does not end when its stdin does")??)
}
