//! The simulation: seeded worlds of faults on a paused clock, without sockets.
//!
//! The real worker, the real pool and the real h2 run against the real simulator over in-memory pipes; only the broker is a
//! model. Every world first suffers, then heals, and must drain. What must always hold stands in `checks/`, not in the
//! worlds.
//!
//! A failing seed replays with `SIM_SEED=<seed> cargo test --test sim -- --nocapture`; with a fix, it becomes a named
//! history below.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a test, which nobody else sees")]

mod breaker;
mod broker;
mod checks;
mod day;
mod deadly;
mod giveback;
mod history;
mod incident;
mod named;
mod network;
mod plan;
mod poison;
mod process;
mod rotation;
mod stalled;
#[path = "../it/tally.rs"]
mod tally;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use history::{History, Totals};
use tally::tally;

/// How many worlds one run tries.
const SEEDS: u64 = 2_000;

/// Runs the world of a seed and checks it; the history comes back as text.
fn try_seed(seed: u64) -> Result<History, String> {
    let run = catch_unwind(AssertUnwindSafe(|| world::run(seed)));
    let history = run.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })?;
    let violations = checks::check(&history);
    if violations.is_empty() { Ok(history) } else { Err(violations.join("\n")) }
}

fn hold(seed: u64) -> History {
    match try_seed(seed) {
        Ok(history) => history,
        Err(violations) => panic!("seed {seed} (replay with SIM_SEED={seed}):\n{violations}"),
    }
}

/// The checked history of a plan that somebody wrote.
fn tell(plan: plan::Plan) -> History {
    let history = world::run_plan(0, plan);
    let violations = checks::check(&history);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    history
}

#[test]
fn every_world_keeps_the_promises() {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        let history = world::run(seed.parse().expect("SIM_SEED is a number"));
        println!("{}", history.text());
        let violations = checks::check(&history);
        assert!(violations.is_empty(), "{}", violations.join("\n"));
        return;
    }
    // A world has one thread; each core takes its share of them.
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let share = |core: u64| {
        let (mut totals, mut broken) = (Totals::default(), BTreeMap::new());
        for seed in (core..SEEDS).step_by(usize::try_from(cores).expect("few")) {
            match try_seed(seed) {
                Ok(history) => totals.add(&history),
                Err(violations) => drop(broken.insert(seed, violations)),
            }
        }
        (totals, broken)
    };
    let (totals, broken) = std::thread::scope(|scope| {
        let cores: Vec<_> = (0..cores).map(|core| scope.spawn(move || share(core))).collect();
        let (mut totals, mut broken) = (Totals::default(), BTreeMap::new());
        for core in cores {
            let (its_totals, its_broken) =
                core.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            totals.merge(its_totals);
            broken.extend(its_broken);
        }
        (totals, broken)
    });
    tally(format_args!("{SEEDS} worlds: {totals:?}"));
    if let Some((seed, violations)) = broken.first_key_value() {
        let seeds: Vec<_> = broken.keys().collect();
        panic!(
            "{} worlds break a promise: {seeds:?}\nseed {seed} (replay with SIM_SEED={seed}):\n{violations}",
            seeds.len()
        );
    }
    totals.assert_that_something_happened();
}

#[test]
fn a_seed_gives_the_same_history_twice() {
    for seed in (0..SEEDS).step_by(100) {
        let (one, other) = (hold(seed).text(), hold(seed).text());
        if one != other {
            let differs = one.lines().zip(other.lines()).find(|(a, b)| a != b);
            panic!("seed {seed} went two ways: {differs:?}");
        }
    }
}
