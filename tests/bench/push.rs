//! `ringcast pipe` beside h2load and a bare h2 client, on an endpoint that is nobody's: see `README.md` beside this file.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

#[path = "push/bed.rs"]
mod bed;
#[path = "push/callgrind.rs"]
mod callgrind;
#[allow(dead_code, reason = "another benchmark uses more of it")]
mod child;
mod cores;
#[path = "push/pace.rs"]
mod pace;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/place.rs"]
mod place;
#[allow(dead_code, reason = "another benchmark starts more with it")]
mod program;
#[allow(dead_code, reason = "another benchmark feeds it")]
mod reference;
mod summary;
#[allow(dead_code, reason = "another benchmark uses more of it")]
mod traffic;
#[allow(dead_code, reason = "another benchmark has many apps")]
mod worker;

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bed::Bed;
use callgrind::{Cost, Profile};
use child::{Usage, run_whole};
use clap::{Parser, Subcommand};
use cores::Cores;
use pace::Paced;
use summary::float;
use traffic::Shape;

/// Whatever went wrong, in words.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Streams in flight where pushes go out as fast as they can.
const STREAMS: u16 = 200;

/// Streams that may be in flight at a fixed rate: as many as APNs allows, so that they are not what is measured.
pub const STREAMS_MAX: u16 = 1000;

/// Fixed rates, in pushes a second.
const RATES: [u32; 2] = [5_000, 40_000];

/// Pushes of the shorter run under callgrind: enough for tables and buffers to have grown.
const COUNTED_FEW: u64 = 500;

/// A rate counts as held from this share of it on.
const HELD: f64 = 0.95;

/// Pushes invites through `ringcast pipe` to nginx on 127.0.0.1, beside h2load and a bare h2 client that send the same pushes: CPU,
/// rate, latency at fixed rates, and instructions and allocations by callgrind
#[derive(Parser)]
#[command(
    name = "push",
    after_help = "Needs nginx with its echo module, h2load and valgrind (`tests/run packages`). Fails (exit 1) when a push is lost \
or not accepted; figures are told, not judged. `cargo bench --bench push` runs the full size; without cargo's `--bench` the smoke size."
)]
struct Arguments {
    /// Pushes of a run at full speed [default: 300000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pushes: Option<u64>,
    /// Rounds of one run of each client, one after the other [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Milliseconds of a run at a fixed rate [default: 3000]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..))]
    paced: Option<u64>,
    /// The size for a test suite: 20000 pushes (5000 in a debug build), one round, 300 ms
    #[arg(long)]
    smoke: bool,
    /// Count nothing but instructions and allocations, of `ringcast` and of another build of it in turns: what a change costs
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["pushes", "paced"])]
    beside: Option<PathBuf>,
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
    Bare(reference::Task),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.role {
        Some(Role::Bare(task)) => reference::run(task),
        None => measure(&arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("push: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// How much is run.
struct Size {
    pushes: u64,
    rounds: u32,
    paced: Duration,
    /// Pushes of the longer run under callgrind beyond those of the shorter one.
    counted: u64,
}

impl Size {
    fn of(arguments: &Arguments) -> Self {
        let smoke = arguments.smoke || !arguments.bench;
        let (pushes, rounds, paced, counted) = match (smoke, cfg!(debug_assertions)) {
            (false, _) => (300_000, 5, 3000, 5000),
            (true, false) => (20_000, 1, 300, 500),
            (true, true) => (5000, 1, 300, 100),
        };
        Self {
            pushes: arguments.pushes.unwrap_or(pushes),
            rounds: arguments.rounds.unwrap_or(rounds),
            paced: Duration::from_millis(arguments.paced.unwrap_or(paced)),
            counted,
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), Failure> {
    let size = Size::of(arguments);
    let program = program::head()?;
    let cores = Cores::divide()?;
    head(&format!("{program}{}", cores.told()))?;
    let bed = Bed::start(cores)?;
    if let Some(other) = &arguments.beside {
        return beside(&bed, &size, other);
    }
    let full_speed = full_speed(&bed, &size)?;
    let paced = paced(&bed, &size)?;
    let counted = counted(&bed, &size)?;
    tell(&full_speed, &paced, &counted);
    Ok(())
}

/// The machine and the versions.
fn head(measured: &str) -> Result<(), Failure> {
    let version = |program: &'static str| -> Result<String, Failure> {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped());
        let ended = run_whole(program, &mut command).map_err(bed::missing)?;
        Ok(ended.said.trim().to_owned())
    };
    let (h2load, valgrind) = (version("h2load")?, version("valgrind")?);
    let nginx = bed::nginx_version()?;
    println!("{measured}\n{nginx}, {h2load}, {valgrind}");
    Ok(())
}

/// A run at full speed.
struct Run {
    pushes: u64,
    elapsed: Duration,
    usage: Usage,
    nginx: Usage,
}

impl Run {
    fn micros(&self, spent: Duration) -> f64 {
        spent.as_secs_f64() * 1e6 / float(self.pushes)
    }

    fn cpu(&self) -> f64 {
        self.micros(self.usage.cpu())
    }

    fn rate(&self) -> f64 {
        float(self.pushes) / self.elapsed.as_secs_f64()
    }

    fn print(&self, name: &str) {
        println!(
            "{name:<9} {:>8} {:>6.2} {:>9.0} {:>8.1} ({:>5.1} + {:>5.1}) {:>8.1} us",
            self.pushes,
            self.elapsed.as_secs_f64(),
            self.rate(),
            self.cpu(),
            self.micros(self.usage.user),
            self.micros(self.usage.system),
            self.micros(self.nginx.cpu()),
        );
    }
}

/// What was measured of all three, side by side.
struct Each<T> {
    ringcast: T,
    bare: T,
    h2load: T,
}

/// The same of the two that push at a fixed rate.
struct Pair<T> {
    ringcast: T,
    h2load: T,
}

fn full_speed(bed: &Bed, size: &Size) -> Result<Vec<Each<Run>>, Failure> {
    println!("one connection, {STREAMS} streams, as fast as they can:");
    println!("client      pushes      s  pushes/s   CPU us/push (user+sys)     nginx");
    let mut rounds = Vec::new();
    for round in 1..=size.rounds {
        let (invites, outcomes) = (bed.invites(round, size.pushes)?, bed.path("outcomes"));
        let mut command = bed.alone(&bed.ringcast(STREAMS)?);
        command.stdin(File::open(&invites)?).stdout(File::create(&outcomes)?);
        let (ringcast, _) = whole(bed, "ringcast", &mut command, size.pushes)?;
        judge(&outcomes, round, size.pushes)?;
        let mut command = bed.alone(&bed.bare(STREAMS, round, size.pushes)?);
        let (bare, said) = whole(bed, "bare h2", &mut command, size.pushes)?;
        bed::check_bare(&said, size.pushes)?;
        let mut command = bed.alone(&bed.h2load(STREAMS, size.pushes));
        let (h2load, said) = whole(bed, "h2load", &mut command, size.pushes)?;
        bed::check(&said, size.pushes)?;
        rounds.push(Each { ringcast, bare, h2load });
    }
    println!();
    Ok(rounds)
}

/// One run of one client, to its end.
fn whole(
    bed: &Bed,
    name: &'static str,
    command: &mut Command,
    pushes: u64,
) -> Result<(Run, String), Failure> {
    let before = bed.nginx()?;
    let ended = run_whole(name, command)?;
    let run = Run { pushes, elapsed: ended.elapsed, usage: ended.usage, nginx: bed.nginx()?.since(&before) };
    run.print(name);
    Ok((run, ended.said))
}

/// Whether each invite of a run has its own outcome, accepted, and nothing else was written.
fn judge(outcomes: &Path, run: u32, count: u64) -> Result<(), Failure> {
    let mut outcomes = BufReader::new(File::open(outcomes)?);
    Shape::ONE.read_all(&mut outcomes, run, count, &AtomicU64::new(0))?;
    if std::io::copy(&mut outcomes, &mut std::io::sink())? > 0 {
        return Err("ringcast says more than was asked".into());
    }
    Ok(())
}

/// The pairs of each rate.
type AtRates = Vec<(u32, Vec<Pair<Paced>>)>;

fn paced(bed: &Bed, size: &Size) -> Result<AtRates, Failure> {
    println!(
        "one connection, at a fixed rate, in bursts of 10 ms; milliseconds (ringcast: from the invite written to the"
    );
    println!("outcome read; h2load: from the request begun to its answer):");
    println!("client    wanted/s reached/s     p50     p99   p99.9     max");
    let mut rates = Vec::new();
    for (place, rate) in (1..).zip(RATES) {
        let count = u64::from(rate) * u64::try_from(size.paced.as_millis())? / 1000;
        let mut pairs = Vec::new();
        for round in 0..size.rounds {
            let ringcast = pace::ringcast(bed, place * 1000 + round, rate, count)?;
            print_paced("ringcast", rate, &ringcast);
            let h2load = pace::h2load(bed, rate, count)?;
            print_paced("h2load", rate, &h2load);
            pairs.push(Pair { ringcast, h2load });
        }
        rates.push((rate, pairs));
    }
    println!();
    Ok(rates)
}

fn print_paced(name: &str, rate: u32, paced: &Paced) {
    let [half, p99, p999, max] = [500, 990, 999, 1000].map(|share| paced.per_mille(share));
    println!("{name:<9} {rate:>8} {:>9.0} {half:>7.2} {p99:>7.2} {p999:>7.2} {max:>7.2}", paced.reached);
}

fn counted(bed: &Bed, size: &Size) -> Result<Each<Cost>, Failure> {
    let (few, many) = (COUNTED_FEW, COUNTED_FEW + size.counted);
    println!("under callgrind, {few} and {many} pushes, the difference:");
    println!("client    instructions/push  without SHA-256  allocations/push");
    let bare = |run: u32, count: u64| -> Result<Profile, Failure> {
        let profile = bed.path("profile");
        let mut command = callgrind::under(&bed.bare(STREAMS, run, count)?, &profile);
        let ended = run_whole("bare h2", command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        bed::check_bare(&ended.said, count)?;
        callgrind::read(&profile)
    };
    let h2load = |count: u64| -> Result<Profile, Failure> {
        let profile = bed.path("profile");
        let mut command = callgrind::under(&bed.h2load(STREAMS, count), &profile);
        let ended = run_whole("h2load", command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        bed::check(&ended.said, count)?;
        callgrind::read(&profile)
    };
    let each = Each {
        ringcast: count(bed, &bed.ringcast(STREAMS)?, size)?,
        bare: Cost::of(&bare(9001, few)?, &bare(9002, many)?, size.counted),
        h2load: Cost::of(&h2load(few)?, &h2load(many)?, size.counted),
    };
    for (name, cost) in [("ringcast", &each.ringcast), ("bare h2", &each.bare), ("h2load", &each.h2load)] {
        print_cost(name, cost);
    }
    println!();
    Ok(each)
}

/// What a push costs a `ringcast`.
fn count(bed: &Bed, command: &Command, size: &Size) -> Result<Cost, Failure> {
    let whole = |run: u32, count: u64| -> Result<Profile, Failure> {
        let (invites, outcomes, profile) =
            (bed.invites(run, count)?, bed.path("outcomes"), bed.path("profile"));
        let mut command = callgrind::under(command, &profile);
        run_whole("ringcast", command.stdin(File::open(&invites)?).stdout(File::create(&outcomes)?))?;
        judge(&outcomes, run, count)?;
        callgrind::read(&profile)
    };
    let (few, many) = (COUNTED_FEW, COUNTED_FEW + size.counted);
    Ok(Cost::of(&whole(9001, few)?, &whole(9002, many)?, size.counted))
}

/// What of a cost is told.
type Figure = fn(&Cost) -> f64;

/// Counts two builds in turns: no round is like the other, and what a change costs may be less than they differ.
fn beside(bed: &Bed, size: &Size, other: &Path) -> Result<(), Failure> {
    println!("under callgrind, in turns; beside it {}:", other.display());
    println!("client    instructions/push  without SHA-256  allocations/push");
    let ours = bed.ringcast(STREAMS)?;
    let theirs = callgrind::by(other, &ours);
    let mut rounds = Vec::new();
    for _ in 0..size.rounds {
        let pair = [count(bed, &ours, size)?, count(bed, &theirs, size)?];
        for (name, cost) in ["ringcast", "beside"].iter().zip(&pair) {
            print_cost(name, cost);
        }
        rounds.push(pair);
    }
    println!();
    let figures: [(&str, Figure); 3] = [
        ("user instructions a push", |cost| cost.instructions),
        ("the same without SHA-256", Cost::others),
        ("allocations a push", |cost| cost.allocations),
    ];
    for (what, figure) in figures {
        let more = |[ours, theirs]: &[Cost; 2]| 100.0 * (figure(ours) / figure(theirs) - 1.0);
        let more: Vec<f64> = rounds.iter().map(more).collect();
        summary::rounds(&format!("{what}, ringcast more than the other, in %"), &more, "");
    }
    Ok(())
}

fn print_cost(name: &str, cost: &Cost) {
    println!("{name:<9} {:>17.0} {:>16.0} {:>17.1}", cost.instructions, cost.others(), cost.allocations);
}

/// Whose run it is.
type Side = fn(&Each<Run>) -> &Run;

/// The figures for `tests/bench/run`, with the limits that they have.
fn tell(full_speed: &[Each<Run>], paced: &AtRates, counted: &Each<Cost>) {
    let (ringcast, bare, h2load): (Side, Side, Side) =
        (|each| &each.ringcast, |each| &each.bare, |each| &each.h2load);
    let ratio = |what: &str, figure: fn(&Run) -> f64, one: Side, other: Side, limit: &str| {
        let ratios: Vec<f64> =
            full_speed.iter().map(|each| figure(one(each)) / figure(other(each))).collect();
        summary::rounds(what, &ratios, limit);
    };
    ratio("CPU a push, ringcast / h2load", Run::cpu, ringcast, h2load, "at most 1.00");
    ratio("CPU a push, bare h2 / h2load", Run::cpu, bare, h2load, "");
    ratio("CPU a push, ringcast / bare h2", Run::cpu, ringcast, bare, "");
    ratio("pushes/s, ringcast / h2load", Run::rate, ringcast, h2load, "");
    ratio("pushes/s, bare h2 / h2load", Run::rate, bare, h2load, "");
    for (rate, pairs) in paced {
        let figure = |of: fn(&Paced) -> f64| {
            let of = |side: fn(&Pair<Paced>) -> &Paced| {
                summary::median(&pairs.iter().map(|pair| of(side(pair))).collect::<Vec<f64>>())
            };
            (of(|pair| &pair.ringcast), of(|pair| &pair.h2load))
        };
        for (name, of) in [
            ("p50", (|paced| paced.per_mille(500)) as fn(&Paced) -> f64),
            ("p99", |paced| paced.per_mille(990)),
        ] {
            let (ours, theirs) = figure(of);
            let what = format!("{name} at {rate}/s, ringcast / h2load");
            summary::line(&what, &format!("{:.2} ({ours:.2} / {theirs:.2} ms)", ours / theirs), "");
        }
        let (ours, theirs) = figure(|paced| paced.reached);
        if ours.min(theirs) < HELD * f64::from(*rate) {
            let reached = format!("{ours:.0}/s and {theirs:.0}/s");
            summary::line(&format!("{rate}/s was NOT held: reached by ringcast and h2load"), &reached, "");
        }
    }
    let Each { ringcast, bare, h2load } = counted;
    let beside = |ours: f64, theirs: f64| format!("{ours:.0} (h2load: {theirs:.0})");
    let instructions = beside(ringcast.instructions, h2load.instructions);
    summary::line("user instructions a push", &instructions, "at most 50000");
    summary::line("the same without SHA-256", &beside(ringcast.others(), h2load.others()), "");
    summary::line("user instructions a push, bare h2", &beside(bare.instructions, h2load.instructions), "");
    let beside = |ours: f64, theirs: f64| format!("{ours:.1} (h2load: {theirs:.1})");
    summary::line("allocations a push", &beside(ringcast.allocations, h2load.allocations), "");
    summary::line("allocations a push, bare h2", &beside(bare.allocations, h2load.allocations), "");
}
