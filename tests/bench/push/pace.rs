//! A fixed rate, and the time that each push takes at it.
//!
//! h2load's timer for `--rps` ticks every 10 ms, so pushes come in bursts of a hundredth of the rate. Invites come in the
//! same bursts here.

use std::fs;
use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::bed::{self, Bed};
use super::child::{Running, run_whole};
use super::traffic::{self, Shape};
use super::{Failure, STREAMS_MAX};

/// The tick of h2load's timer.
const TICK: Duration = Duration::from_millis(10);

/// Invites that are written at once: a pipe takes 64 KiB.
const WRITTEN_AT_ONCE: usize = 64;

/// A run at a fixed rate.
pub struct Paced {
    /// Pushes a second, from the first one to the last answer.
    pub reached: f64,
    /// Microseconds of each push, the shortest first.
    times: Vec<u64>,
}

impl Paced {
    fn new(mut times: Vec<u64>, span: Duration) -> Self {
        times.sort_unstable();
        let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
        Self { reached: f64::from(count) / span.as_secs_f64(), times }
    }

    /// In milliseconds: so many of a thousand pushes took no longer.
    pub fn per_mille(&self, share: usize) -> f64 {
        let place = (self.times.len() * share).div_ceil(1000).max(1) - 1;
        Duration::from_micros(self.times.get(place).copied().unwrap_or_default()).as_secs_f64() * 1e3
    }
}

/// `ringcast pipe`: from before its invite is written to the pipe until its outcome was read from the other.
pub fn ringcast(bed: &Bed, run: u32, rate: u32, count: u64) -> Result<Paced, Failure> {
    // One more, which opens the connection.
    let count = count + 1;
    let mut invites = Vec::new();
    Shape::ONE.write(&mut invites, run, 0..count)?;
    let mut running = Running::start("ringcast", &mut bed.alone(&bed.ringcast(STREAMS_MAX)?))?;
    let (stdin, stdout) = running.pipes()?;
    let (written, mut reading, stdin) =
        running.unless_stalled(|progress| exchange(&invites, rate, count, (stdin, stdout), progress))?;
    drop(stdin);
    running.finish()?;

    Shape::ONE.read_all(&mut &reading.bytes[..], run, count, &AtomicU64::new(0))?;
    let mut times = Vec::new();
    let mut read = 0;
    let last = reading.arrivals.last().map(|(_, when)| *when).ok_or("no outcome came")?;
    for (end, when) in reading.arrivals.drain(..) {
        // A line counts when its end was read.
        while let Some(length) = reading.bytes[read..end].iter().position(|byte| *byte == b'\n') {
            let number = traffic::number_of(&reading.bytes[read..read + length])?;
            read += length + 1;
            if number > 0 {
                let begun = written.partition_point(|(end, _)| *end <= number);
                let (_, begun) =
                    written.get(begun).ok_or("an outcome came for an invite that was not written")?;
                times.push(u64::try_from(when.duration_since(*begun).as_micros())?);
            }
        }
    }
    // The first of the chunks is the invite that opens the connection.
    let (_, first) = written.get(1).ok_or("nothing was written at a rate")?;
    Ok(Paced::new(times, last.duration_since(*first)))
}

/// Chunks that were written: the number behind their last invite, and when writing began.
type Written = Vec<(u64, Instant)>;

/// What was read: everything, and how much of it was there when.
struct Reading {
    bytes: Vec<u8>,
    arrivals: Vec<(usize, Instant)>,
    lines: u64,
}

/// Writes the invites at their rate and reads the outcomes. They are looked at later: here it would cost what is measured.
fn exchange(
    invites: &[u8],
    rate: u32,
    count: u64,
    (mut stdin, mut stdout): (ChildStdin, ChildStdout),
    progress: &AtomicU64,
) -> Result<(Written, Reading, ChildStdin), Failure> {
    let lines: Vec<&[u8]> = invites.split_inclusive(|byte| *byte == b'\n').collect();
    let (first, paced) = lines.split_first().ok_or("no invites")?;
    let mut reading =
        Reading { bytes: Vec::with_capacity(2 * invites.len()), arrivals: Vec::new(), lines: 0 };
    let began = Instant::now();
    stdin.write_all(first)?;
    reading.read_until(1, &mut stdout, progress)?;
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let written = write_paced(&mut stdin, paced, rate, (1, began))?;
            Ok::<_, Failure>((written, stdin))
        });
        reading.read_until(count, &mut stdout, progress)?;
        let (written, stdin) = writer.join().map_err(|_| "the writer of invites panicked")??;
        Ok((written, reading, stdin))
    })
}

impl Reading {
    fn read_until(
        &mut self,
        lines: u64,
        stdout: &mut ChildStdout,
        progress: &AtomicU64,
    ) -> Result<(), Failure> {
        let mut chunk = vec![0; 1 << 16];
        while self.lines < lines {
            let length = stdout.read(&mut chunk)?;
            if length == 0 {
                return Err(format!("the outcomes ended after {}", self.lines).into());
            }
            self.bytes.extend_from_slice(&chunk[..length]);
            self.arrivals.push((self.bytes.len(), Instant::now()));
            self.lines += u64::try_from(chunk[..length].split(|byte| *byte == b'\n').count() - 1)?;
            progress.store(self.lines, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Every tick, what is due by now. Where the pipe is full it comes late, as h2load's does at its limit of streams; then the
/// rate that was reached tells it.
fn write_paced(
    stdin: &mut ChildStdin,
    lines: &[&[u8]],
    rate: u32,
    before: (u64, Instant),
) -> Result<Written, Failure> {
    let mut written = vec![before];
    let began = Instant::now();
    let (mut done, mut tick) = (0, began);
    while done < lines.len() {
        tick += TICK;
        loop {
            let wait = tick.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            thread::park_timeout(wait);
        }
        let due = began.elapsed().as_micros() * u128::from(rate) / 1_000_000;
        let due = usize::try_from(due)?.min(lines.len());
        while done < due {
            let end = due.min(done + WRITTEN_AT_ONCE);
            let chunk = lines[done..end].concat();
            written.push((before.0 + u64::try_from(end)?, Instant::now()));
            stdin.write_all(&chunk)?;
            done = end;
        }
    }
    Ok(written)
}

/// `h2load`, by its own account: from a request's start to the end of its answer.
pub fn h2load(bed: &Bed, rate: u32, count: u64) -> Result<Paced, Failure> {
    let log = bed.path("h2load.log");
    let mut command = bed.h2load(STREAMS_MAX, count);
    command.arg(format!("--rps={rate}")).arg("--log-file").arg(&log);
    bed::check(&run_whole("h2load", &mut bed.alone(&command))?.said, count)?;
    let (mut times, mut first, mut last) = (Vec::new(), u64::MAX, 0);
    for line in fs::read_to_string(&log)?.lines() {
        let mut fields = line.split('\t');
        let mut next = || -> Result<u64, Failure> { Ok(fields.next().ok_or("a short line")?.parse()?) };
        let (began, status, took) = (next()?, next()?, next()?);
        if status != 200 {
            return Err(format!("h2load was answered {status}").into());
        }
        (first, last) = (first.min(began), last.max(began + took));
        times.push(took);
    }
    fs::remove_file(&log)?;
    if u64::try_from(times.len())? != count {
        return Err(format!("h2load wrote {} of {count} lines to its log", times.len()).into());
    }
    Ok(Paced::new(times, Duration::from_micros(last.saturating_sub(first))))
}
