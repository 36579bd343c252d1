//! What an update of the workers costs the calls that come meanwhile: see `README.md` beside this file.
//!
//! The processes, the load and the judge are those of the integration tests; only sizes differ, and that the times are told.

#![allow(dead_code, unused_imports, reason = "the integration tests use the rest of their own modules")]

#[path = "../it/apple.rs"]
mod apple;
#[path = "../it/base64.rs"]
mod base64;
#[path = "../../src/bin/demo/broker.rs"]
mod broker;
#[path = "../it/client.rs"]
mod client;
#[path = "../it/contract.rs"]
mod contract;
#[path = "../it/fleet.rs"]
mod fleet;
#[path = "../it/http.rs"]
mod http;
#[path = "../it/load.rs"]
mod load;
#[path = "../it/place.rs"]
mod place;
#[path = "../it/plan.rs"]
mod plan;
#[path = "../it/process.rs"]
mod process;
#[path = "../it/vhost.rs"]
mod vhost;
#[path = "../it/worker.rs"]
mod worker;

use std::ops::Range;
use std::time::Duration;

use clap::Parser;
use tokio::time::{Instant, sleep};

use apple::Apple;
use fleet::{Fleet, Span};
use place::Place;
use plan::{milliseconds, now};

const WORKERS: usize = 3;
/// Between two calls, which have 1 to 4 devices each.
const PACE: Duration = Duration::from_millis(4);
const RINGS_FOR: Duration = Duration::from_secs(30);
/// What each of Apple's answers takes, in milliseconds.
const APPLE_MS: u64 = 30;
/// Not counted: connections open, buffers find their size.
const WARM_UP: Duration = Duration::from_secs(2);

/// Replaces three workers one by one under a steady load, again and again, and tells what that costs the calls
#[derive(Parser)]
#[command(
    name = "rollout",
    after_help = "Fails when a call is lost, rings twice or gets a second outcome, or when a worker does not end well. \
`cargo bench --bench rollout` runs the full size; without cargo's `--bench` the smoke size."
)]
struct Arguments {
    /// How often all three workers are replaced [default: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    replacements: Option<u32>,
    /// How many seconds are measured before, with nothing replaced [default: 30]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    steady: Option<u64>,
    /// The size for a test suite, the same checks: one replacement, 3 s before
    #[arg(long)]
    smoke: bool,
    /// Cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments = Arguments::parse();
    let (replacements, steady) = if arguments.smoke || !arguments.bench { (1, 3) } else { (6, 30) };
    let replacements = arguments.replacements.unwrap_or(replacements);
    let steady = Duration::from_secs(arguments.steady.unwrap_or(steady));

    let (place, broker) = (Place::new("bench-rollout"), vhost::start_broker().await);
    let apple = Apple::start(&place, (APPLE_MS, APPLE_MS), "").await;
    let mut fleet = Fleet::new(place, broker.uri(), apple, |_| {}).await;
    let mut load = fleet.load(64, PACE, RINGS_FOR);
    let (begin, change, end, took) = load
        .during(async {
            fleet.grow(WORKERS).await;
            fleet.await_all_at_work().await;
            sleep(WARM_UP).await;
            let begin = milliseconds(now());
            sleep(steady).await;
            let (change, watch) = (milliseconds(now()), Instant::now());
            for _ in 0..replacements {
                fleet.replace().await;
            }
            (begin, change, milliseconds(now()), watch.elapsed())
        })
        .await;
    let plan = load.end().await;
    let account = fleet.settle(&plan).await;

    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let profile = if cfg!(debug_assertions) { "debug: the times mean nothing" } else { "release" };
    println!("ringcast {} ({profile}), {cores} cores", env!("CARGO_PKG_VERSION"));
    println!(
        "{} calls, {:.0} a second; {WORKERS} workers; Apple answers after {APPLE_MS} ms; all workers replaced {replacements} \
         times, {:.1} s each",
        plan.invites.len(),
        1.0 / PACE.as_secs_f64(),
        took.as_secs_f64() / f64::from(replacements),
    );
    let verdict = &account.verdict;
    println!(
        "one outcome each; pushed again for want of an answer: {}; rang twice: {}\n",
        verdict.retried.len(),
        verdict.pushes_doubled.len()
    );
    println!(
        "{:<34} {:>7} {:>7} {:>7} {:>7} {:>7}",
        "ms from the call", "number", "p50", "p99", "p99.9", "max"
    );
    tell("to Apple's yes", &account.accepted, [begin, change, end]);
    tell("to the outcome", &account.settled, [begin, change, end]);
}

/// The times before the change and during it, what lies between them, and the times of the calls that changed hands.
fn tell(what: &str, spans: &[Span], [begin, change, end]: [i64; 3]) {
    let within = |stretch: Range<i64>| spans.iter().filter(move |span| stretch.contains(&span.called_ms));
    let before = Times::of(within(begin..change)).expect("there were calls all the time");
    let during = Times::of(within(change..end)).expect("there were calls all the time");
    before.tell(&format!("{what}, before"));
    during.tell(&format!("{what}, while replaced"));
    let pairs = || before.marks.iter().zip(&during.marks);
    let line = |name: &str, values: Vec<String>| println!("{name:<42} {}", values.join(" "));
    line("  more", pairs().map(|(before, during)| format!("{:>+7}", during - before)).collect());
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a benchmark")]
    let ratio = |(before, during): (&i64, &i64)| format!("{:>7.2}", *during as f64 / (*before).max(1) as f64);
    line("  times", pairs().map(ratio).collect());
    if let Some(times) = Times::of(within(change..end).filter(|span| span.changed_hands)) {
        times.tell("  those that changed hands");
    }
}

/// What some times come to.
struct Times {
    number: usize,
    /// Median, 99th and 99.9th of a hundred, and the longest.
    marks: [i64; 4],
}

impl Times {
    /// `None` of nothing.
    fn of<'a>(spans: impl Iterator<Item = &'a Span>) -> Option<Self> {
        let mut times: Vec<i64> = spans.map(|span| span.took_ms).collect();
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        let marks = [500, 990, 999, 1_000].map(|mark| times[last * mark / 1_000]);
        Some(Self { number: times.len(), marks })
    }

    fn tell(&self, name: &str) {
        let [median, p99, p999, most] = self.marks;
        println!("{name:<34} {:>7} {median:>7} {p99:>7} {p999:>7} {most:>7}", self.number);
    }
}
