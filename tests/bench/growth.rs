//! Whether a push costs the same whatever there is of it: invites, devices of an invite, apps, connections. See `README.md` beside this
//! file.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

#[allow(dead_code, reason = "another benchmark uses more of it")]
mod child;
mod drive;
mod guard;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/place.rs"]
mod place;
mod program;
#[allow(dead_code, reason = "another benchmark prints with it")]
mod report;
mod summary;
#[allow(dead_code, reason = "another benchmark reads more of an outcome")]
mod traffic;
mod worker;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use drive::Bed;
use serde_json::json;
use traffic::Shape;
use worker::Worker;

pub type Failure = Box<dyn Error + Send + Sync>;

/// How many times the cheapest of a row the dearest may cost.
const GROWTH_MAX: f64 = 1.2;
/// The most that `amqp.prefetch` allows: so many that each of 64 connections has some to write at once.
const MANY_IN_FLIGHT: u64 = 2000;

/// Measures CPU and instructions of a push by the number of invites, devices, apps and connections
#[derive(Parser)]
#[command(
    name = "growth",
    after_help = "Fails (exit 1) when an invite is lost or not accepted. Costs are told beside their limit, not judged. \
`cargo bench --bench growth` runs the full size; without cargo's `--bench`, as in `cargo test --benches`, the smoke size."
)]
struct Arguments {
    /// Pushes of a run of each size, ten invites at least; the row of invites has ten times as many [default: 100000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1000..))]
    pushes: Option<u64>,
    /// Rounds of all sizes, one after the other [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Only rows whose name begins so: invites, devices, apps, connections [default: all]
    #[arg(long, value_name = "ROW", default_value = "", hide_default_value = true)]
    row: String,
    /// The size for a test suite, the same checks: 2000 pushes a run, one round, no instructions
    #[arg(long)]
    smoke: bool,
    /// Cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("growth: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// One size of something, and what it takes.
struct Size {
    name: &'static str,
    worker: Worker,
    shape: Shape,
}

/// Rows, each with its sizes; the first size of a row is what the others are compared with.
fn rows() -> Vec<(&'static str, Vec<Size>)> {
    let usual = Worker::DEFAULT;
    let devices = [("1", 1), ("2", 2), ("4", 4), ("10", 10), ("30", 30), ("100", 100)]
        .map(|(name, devices)| Size { name, worker: usual, shape: Shape { devices, apps: 1 } });
    let apps =
        [("1", 1, 1), ("10", 10, 1), ("100", 100, 1), ("100, two keys", 100, 2)].map(|(name, apps, keys)| {
            Size { name, worker: Worker { apps, keys, ..usual }, shape: Shape { devices: 1, apps } }
        });
    let connected = |name, prefetch, connections| Size {
        name,
        worker: Worker {
            prefetch,
            connections,
            connections_max: connections.max(usual.connections_max),
            ..usual
        },
        shape: Shape::ONE,
    };
    let connections = [("1", 1), ("2", 2), ("4", 4), ("16", 16), ("64", 64)]
        .map(|(name, count)| connected(name, usual.prefetch, count));
    let wide = [("1", 1), ("16", 16), ("64", 64)].map(|(name, count)| connected(name, MANY_IN_FLIGHT, count));
    vec![
        ("devices", devices.into()),
        ("apps", apps.into()),
        ("connections, 500 in flight", connections.into()),
        ("connections, 2000 in flight", wide.into()),
    ]
}

/// What one size was found to cost.
#[derive(Default)]
struct Cost {
    /// Microseconds of CPU a push, of each round.
    micros: Vec<f64>,
    /// Instructions a push of the program itself, where valgrind is installed.
    instructions: Option<f64>,
}

fn measure(arguments: &Arguments) -> Result<(), Failure> {
    let smoke = arguments.smoke || !arguments.bench;
    let (pushes, rounds) = if smoke { (2_000, 1) } else { (100_000, 3) };
    let pushes = arguments.pushes.unwrap_or(pushes);
    let rounds = arguments.rounds.unwrap_or(rounds);
    let mut bed = Bed::start()?;
    println!("{}", program::head()?);
    let counted = !smoke && drive::valgrind();
    if !counted && !smoke {
        println!("no instructions: valgrind is not installed (tests/run packages)");
    }

    if "invites".starts_with(&arguments.row) {
        let row = Row { name: "invites", smoke };
        row.tell(&invites(&mut bed, pushes, rounds, counted)?)?;
    }
    for (name, sizes) in rows().into_iter().filter(|(name, _)| name.starts_with(&arguments.row)) {
        let mut costs: Vec<(String, Cost)> =
            sizes.iter().map(|size| (size.name.to_owned(), Cost::default())).collect();
        for _ in 0..rounds {
            for (size, (_, cost)) in sizes.iter().zip(&mut costs) {
                // Ten invites at least, so that one does not wait for the other.
                let invites = (pushes / size.shape.devices).max(10);
                let micros = bed.cpu(&size.worker, size.shape, &[invites])?;
                cost.micros.extend(micros);
            }
        }
        // Valgrind is so slow that the peer is always done: no more are in flight, however many may be.
        if counted && sizes.iter().all(|size| size.worker.prefetch == Worker::DEFAULT.prefetch) {
            for (size, (_, cost)) in sizes.iter().zip(&mut costs) {
                cost.instructions = Some(bed.instructions(&size.worker, size.shape, SHORT, LONG)?);
            }
        }
        let row = Row { name, smoke };
        row.tell(&costs)?;
        if name == "devices" {
            explain(&costs)?;
        }
    }
    Ok(())
}

/// Pushes of the two runs under valgrind; the difference is what counts. The shorter one has opened all connections and filled buffers.
const SHORT: u64 = 1_000;
const LONG: u64 = 4_000;

/// Parts of one long run: up to a thousandth of its invites, from there to a hundredth, to a tenth, to all.
fn invites(bed: &mut Bed, pushes: u64, rounds: u32, counted: bool) -> Result<Vec<(String, Cost)>, Failure> {
    let marks = [pushes / 100, pushes / 10, pushes, 10 * pushes];
    let mut costs = marks.map(|mark| (format!("up to {mark}"), Cost::default()));
    for _ in 0..rounds {
        for ((_, cost), micros) in costs.iter_mut().zip(bed.cpu(&Worker::DEFAULT, Shape::ONE, &marks)?) {
            cost.micros.push(micros);
        }
    }
    if counted {
        // All of them would take valgrind an hour.
        for ((_, cost), (from, to)) in costs.iter_mut().zip([(1, marks[0]), (marks[0], marks[1])]) {
            cost.instructions = Some(bed.instructions(&Worker::DEFAULT, Shape::ONE, from, to)?);
        }
    }
    Ok(costs.into())
}

/// How a row is told.
struct Row {
    name: &'static str,
    smoke: bool,
}

impl Row {
    fn tell(&self, costs: &[(String, Cost)]) -> Result<(), Failure> {
        println!(
            "\n{:<28} {:>11} {:>9}   {:>13} {:>9}",
            self.name, "CPU us/push", "times", "instructions", "times"
        );
        let (_, first) = costs.first().ok_or("a row without sizes")?;
        let mut times = Vec::new();
        for (name, cost) in costs {
            // Rounds are compared each with itself: the machine is another one in the next.
            let ratios: Vec<f64> =
                cost.micros.iter().zip(&first.micros).map(|(this, first)| this / first).collect();
            let ratio = summary::median(&ratios);
            let micros = summary::median(&cost.micros);
            let counted = cost.instructions.zip(first.instructions);
            let (instructions, counted) = match counted {
                Some((this, first)) => (format!("{this:.0}"), format!("{:.2}", this / first)),
                None => ("-".to_owned(), "-".to_owned()),
            };
            println!("  {name:<26} {micros:>11.1} {ratio:>9.2}   {instructions:>13} {counted:>9}");
            times.push(ratio);
            if !self.smoke {
                report::keep(
                    "growth",
                    &json!({ "row": self.name, "size": name, "cpu_us": micros, "times": ratio, "instructions": cost.instructions }),
                )?;
            }
        }
        let limit = format!("at most {GROWTH_MAX}, or explained");
        summary::line(&format!("{}: CPU a push", self.name), &spread(&times), &limit);
        let counted: Vec<f64> = costs.iter().filter_map(|(_, cost)| cost.instructions).collect();
        if counted.len() > 1 {
            summary::line(&format!("{}: instructions a push", self.name), &spread(&counted), &limit);
        }
        Ok(())
    }
}

/// Devices: what an invite costs, however many it has, and what each of its pushes costs, by the ends of the row; and how far the
/// sizes between are from that.
fn explain(costs: &[(String, Cost)]) -> Result<(), Failure> {
    let sizes: Vec<(f64, f64)> = costs
        .iter()
        .map(|(name, cost)| {
            let cost = cost.instructions.unwrap_or_else(|| summary::median(&cost.micros));
            Ok((name.parse()?, cost))
        })
        .collect::<Result<_, Failure>>()?;
    let [(few, dear), .., (many, cheap)] = &sizes[..] else { return Err("a row of one size".into()) };
    let invite = (dear - cheap) / (1.0 / few - 1.0 / many);
    let push = dear - invite / few;
    let off = sizes.iter().map(|(devices, cost)| cost / (invite / devices + push));
    let unit = if costs.iter().all(|(_, cost)| cost.instructions.is_some()) { "instructions" } else { "us" };
    println!(
        "  = {invite:.1} {unit} an invite, shared by its devices, and {push:.1} each; {} of that",
        spread(&off.collect::<Vec<_>>())
    );
    Ok(())
}

/// The largest by the smallest.
fn spread(values: &[f64]) -> String {
    let most = values.iter().copied().fold(f64::MIN, f64::max);
    let least = values.iter().copied().fold(f64::MAX, f64::min);
    format!("largest / smallest {:.2}", most / least)
}
