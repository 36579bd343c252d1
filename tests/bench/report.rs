//! What was measured, as text, and as lines that a plot is drawn from.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::Failure;
use super::child::Usage;
use super::summary::{self, float};

/// The files that this process has begun.
static KEPT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Adds a line of figures to `target/bench/<name>.jsonl`, for `tests/bench/plot`. The first one of a process replaces the file that
/// an earlier run left.
pub fn keep(name: &str, figures: &Value) -> Result<(), Failure> {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench").join(format!("{name}.jsonl"));
    fs::create_dir_all(file.with_file_name(""))?;
    let anew = KEPT.lock().insert(name.to_owned());
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(anew).append(!anew).open(file)?;
    writeln!(file, "{figures}")?;
    Ok(())
}

/// One run.
pub struct Row {
    /// Pushes, all of them accepted.
    pub count: u64,
    /// How many attempts they took.
    pub attempts: u64,
    /// From the start of the process to the last answer.
    pub elapsed: Duration,
    /// What the process used in that time.
    pub usage: Usage,
    /// What the simulator used in that time.
    pub simulator: Usage,
}

impl Row {
    fn micros(&self, spent: Duration) -> f64 {
        spent.as_secs_f64() * 1e6 / float(self.count)
    }

    fn rate(&self) -> f64 {
        float(self.count) / self.elapsed.as_secs_f64()
    }
}

fn mib(kib: u64) -> f64 {
    float(kib) / 1024.0
}

/// The machine, the versions and the columns.
pub fn head(measured: &str) {
    println!("{measured}\n");
    println!(
        "{:<14} {:>8} {:>8} {:>7} {:>9} {:>24} {:>9} {:>10}",
        "run", "pushes", "attempts", "s", "pushes/s", "CPU us/push (user+sys)", "peak MiB", "simulator"
    );
}

/// One run as a line.
pub fn line(name: &str, row: &Row) {
    println!(
        "{:<14} {:>8} {:>8} {:>7.2} {:>9.0} {:>8.1} ({:>5.1} + {:>5.1}) {:>9.1} {:>7.1} us",
        name,
        row.count,
        row.attempts,
        row.elapsed.as_secs_f64(),
        row.rate(),
        row.micros(row.usage.cpu()),
        row.micros(row.usage.user),
        row.micros(row.usage.system),
        mib(row.usage.peak_kib),
        row.micros(row.simulator.cpu()),
    );
}

/// Ringcast against the reference, round by round.
pub fn ratios(pairs: &[(Row, Row)]) {
    println!();
    ratio("CPU a push, ringcast / reference", pairs, |row| row.micros(row.usage.cpu()));
    ratio("pushes/s, ringcast / reference", pairs, Row::rate);
}

fn ratio(name: &str, pairs: &[(Row, Row)], of: impl Fn(&Row) -> f64) {
    let ratios: Vec<f64> = pairs.iter().map(|(pipe, reference)| of(pipe) / of(reference)).collect();
    summary::rounds(name, &ratios, "");
}

/// The peak with many invites against the one with few; how many times more comes back.
pub fn memory(few: &Row, invites: u64, peak_kib: u64, most: f64) -> f64 {
    let growth = float(peak_kib) / float(few.usage.peak_kib.max(1));
    let figure = format!("{growth:.2} ({:.1} / {:.1} MiB)", mib(peak_kib), mib(few.usage.peak_kib));
    summary::line(
        &format!("memory, {invites} invites / {}", few.count),
        &figure,
        &format!("at most {most:.2}"),
    );
    growth
}
