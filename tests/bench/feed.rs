//! Feeds a process with invites, flat out or at a rate, and tells how long each took to the endpoint.
//!
//! At a rate the invites have an absolute schedule, which no answer holds up. An invite counts from the moment at which it is written;
//! one that came due while an earlier one was still being written, because the pipe was full, counts from its own time.

use std::io::Write;
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::Failure;
use super::child::Running;
use super::endpoint::{Arrivals, Endpoint};
use super::guard::guarded;
use super::summary::float;
use super::traffic::Shape;

/// Invites that go first, until their requests have come: the process has started, its connections are open and in use.
const FIRST: u64 = 64;
/// How often it is looked whether all has come.
const POLL_EVERY: Duration = Duration::from_millis(1);
/// Bytes written at once where it goes flat out.
const CHUNK: usize = 1 << 16;

/// What is fed.
pub struct Feed<'a> {
    endpoint: &'a Endpoint,
    arrivals: Arc<Arrivals>,
    /// Invites a second; `None`: flat out.
    rate: Option<u64>,
    /// Invites that count, behind the first ones.
    count: u64,
    /// All of them, one JSON line each.
    text: Vec<u8>,
}

/// How long they took.
pub struct Times {
    pub count: u64,
    /// Requests a second, from a tenth of them to nine tenths.
    pub rate: f64,
    /// CPU of the process a push.
    pub cpu_micros: f64,
    /// How late the writer was with one in a hundred, at least.
    pub late_micros: f64,
    /// In nanoseconds, sorted; none where it went flat out.
    sorted: Vec<u64>,
}

impl Times {
    /// So many of a thousand took at most as long.
    pub fn micros(&self, permille: usize) -> f64 {
        float(quantile(&self.sorted, permille)) / 1e3
    }
}

fn quantile(sorted: &[u64], permille: usize) -> u64 {
    let rank = (sorted.len() * permille).div_ceil(1000).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

impl<'a> Feed<'a> {
    pub fn new(endpoint: &'a Endpoint, run: u32, rate: Option<u64>, count: u64) -> Result<Self, Failure> {
        let mut text = Vec::new();
        Shape::ONE.write(&mut text, run, 0..FIRST + count)?;
        let arrivals = endpoint.expect(run, FIRST + count)?;
        Ok(Self { endpoint, arrivals, rate, count, text })
    }

    /// How many invites there are.
    pub fn lines(&self) -> u64 {
        FIRST + self.count
    }

    /// Feeds that process until all has come and it has ended.
    pub fn run(&self, running: Running, mut stdin: ChildStdin) -> Result<Times, Failure> {
        let fed = |running: &Mutex<Running>| self.feed(running, &mut stdin);
        let (running, times) = guarded(running, &self.arrivals.count, fed)?;
        drop(stdin);
        running.finish()?;
        Ok(times)
    }

    fn feed(&self, running: &Mutex<Running>, stdin: &mut ChildStdin) -> Result<Times, Failure> {
        let ends: Vec<usize> =
            self.text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        let first = usize::try_from(FIRST)?;
        stdin.write_all(&self.text[..ends[first - 1]])?;
        self.come(running, FIRST)?;
        let before = running.lock().usage()?;
        let (sent, late) = if let Some(rate) = self.rate {
            self.pace(stdin, rate, first, &ends)?
        } else {
            for chunk in self.text[ends[first - 1]..].chunks(CHUNK) {
                stdin.write_all(chunk)?;
            }
            (Vec::new(), Vec::new())
        };
        self.come(running, self.lines())?;
        let usage = running.lock().usage()?.since(&before);
        let mut came: Vec<u64> = (first..ends.len()).map(|number| self.arrivals.at(number)).collect();
        // The first tenth warms up.
        let mut sorted: Vec<u64> = came
            .iter()
            .zip(&sent)
            .skip(sent.len() / 10)
            .map(|(came, sent)| came.saturating_sub(*sent))
            .collect();
        sorted.sort_unstable();
        came.sort_unstable();
        let (from, to) = (quantile(&came, 100), quantile(&came, 900));
        Ok(Times {
            count: self.count,
            rate: float(self.count) * 0.8 / (float(to - from) / 1e9),
            cpu_micros: usage.cpu().as_secs_f64() * 1e6 / float(self.count),
            late_micros: late.get(late.len() * 99 / 100).map_or(0.0, |late| float(*late) / 1e3),
            sorted,
        })
    }

    /// Writes each line at its time. When each was sent comes back, and how late, sorted.
    fn pace(
        &self,
        stdin: &mut ChildStdin,
        rate: u64,
        first: usize,
        ends: &[usize],
    ) -> Result<(Vec<u64>, Vec<u64>), Failure> {
        let begin = self.endpoint.now() + 1_000_000;
        let due = |number: usize| begin + (number - first) as u64 * 1_000_000_000 / rate;
        let (mut sent, mut late) = (Vec::with_capacity(ends.len()), Vec::with_capacity(ends.len()));
        let mut next = first;
        let mut slept = true;
        while next < ends.len() {
            let now = self.endpoint.now();
            if due(next) > now {
                thread::park_timeout(Duration::from_nanos(due(next) - now));
                slept = true;
                continue;
            }
            // All that is due goes at once.
            let mut end = next + 1;
            while end < ends.len() && due(end) <= now {
                end += 1;
            }
            for number in next..end {
                sent.push(if slept { now } else { due(number) });
                late.push(now - due(number));
            }
            stdin.write_all(&self.text[ends[next - 1]..ends[end - 1]])?;
            (next, slept) = (end, false);
        }
        late.sort_unstable();
        Ok((sent, late))
    }

    /// Waits until so many have come.
    fn come(&self, running: &Mutex<Running>, count: u64) -> Result<(), Failure> {
        while self.arrivals.count.load(Ordering::Acquire) < count {
            // It has ended: then nothing comes any more.
            running.lock().usage()?;
            thread::park_timeout(POLL_EVERY);
        }
        Ok(())
    }
}
