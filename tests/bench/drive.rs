//! Runs of `ringcast pipe` against the simulator, weighed from the first outcome on: the start is not in it.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::thread;

use parking_lot::Mutex;

use super::Failure;
use super::child::Running;
use super::guard::guarded;
use super::place::Place;
use super::program::{self, TEAM_ID};
use super::summary::float;
use super::traffic::Shape;
use super::worker::{self, Worker};

/// The simulator, and what it takes to push to it.
pub struct Bed {
    place: Place,
    _simulator: Running,
    identity: PathBuf,
    port: u16,
    runs: u32,
}

/// Whether valgrind is installed.
pub fn valgrind() -> bool {
    let asked =
        Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

impl Bed {
    pub fn start() -> Result<Self, Failure> {
        let place = Place::new("growth");
        let identity = place.path("identity");
        // A second key, whose file is made by the simulator.
        let key_id = worker::key_id(1);
        let script =
            place.write("script.toml", format!("[[key]]\nkey_id = \"{key_id}\"\nteam_id = \"{TEAM_ID}\"\n"));
        let (simulator, port) = program::simulator(&identity, Some(&script))?;
        Ok(Self { place, _simulator: simulator, identity, port, runs: 0 })
    }

    /// The CPU of a push, in microseconds, in each part of a run: up to the first mark, from there to the second, and so on. One
    /// invite a connection and app goes before, and is not in it.
    pub fn cpu(&mut self, worker: &Worker, shape: Shape, marks: &[u64]) -> Result<Vec<f64>, Failure> {
        let config = self.config(worker)?;
        self.runs += 1;
        let run = self.runs;
        let first = worker.connections.max(worker.apps);
        let all = marks.last().copied().ok_or("a run without marks")? + first;
        let mut running = Running::start("ringcast", &mut program::ringcast("pipe", &config)?)?;
        let (mut stdin, stdout) = running.pipes()?;
        let progress = AtomicU64::new(0);
        let weighed = |running: &Mutex<Running>| {
            shape.write(&mut stdin, run, 0..first)?;
            let mut stdout = BufReader::with_capacity(1 << 16, stdout);
            let mut seen = vec![false; usize::try_from(all)?];
            shape.read(&mut stdout, run, &mut seen, first, &progress)?;
            let (mut parts, mut done, mut spent) = (Vec::new(), 0, running.lock().spent()?);
            for mark in marks {
                // Nothing behind the mark is written before all up to it is answered, and weighed.
                thread::scope(|scope| {
                    let writer = scope.spawn(|| shape.write(&mut stdin, run, first + done..first + mark));
                    shape.read(&mut stdout, run, &mut seen, mark - done, &progress)?;
                    writer.join().map_err(|_| "the writer of invites panicked")?
                })?;
                let now = running.lock().spent()?;
                let pushes = (mark - done) * shape.devices;
                parts.push(now.saturating_sub(spent).as_secs_f64() * 1e6 / float(pushes));
                (done, spent) = (*mark, now);
            }
            Ok(parts)
        };
        let (running, parts) = guarded(running, &progress, weighed)?;
        drop(stdin);
        running.finish()?;
        Ok(parts)
    }

    /// The instructions of a push of the program itself, by callgrind: two runs with so many pushes, and the difference by the
    /// pushes between them.
    pub fn instructions(
        &mut self,
        worker: &Worker,
        shape: Shape,
        short: u64,
        long: u64,
    ) -> Result<f64, Failure> {
        let invites = |pushes: u64| (pushes / shape.devices).max(1);
        let (short, long) = (invites(short), invites(long));
        let least = self.count(worker, shape, short)?;
        let most = self.count(worker, shape, long)?;
        Ok(float(most.saturating_sub(least)) / float((long - short) * shape.devices))
    }

    /// All instructions of a run with so many invites.
    fn count(&mut self, worker: &Worker, shape: Shape, invites: u64) -> Result<u64, Failure> {
        let config = self.config(worker)?;
        self.runs += 1;
        let run = self.runs;
        let (input, outcomes, told) =
            (self.place.path("invites"), self.place.path("outcomes"), self.place.path("told"));
        shape.write(File::create(&input)?, run, 0..invites)?;
        let mut command = Command::new("valgrind");
        program::free_of_settings(&mut command);
        command.arg("--tool=callgrind").arg(format!("--log-file={}", told.display()));
        command.arg("--callgrind-out-file=/dev/null").arg(program::path()?);
        command.arg("pipe").arg("--config").arg(config);
        // Looking at files goes by the clock: valgrind's hours would count it a hundred times.
        command.env("RINGCAST__APNS__RELOAD_INTERVAL", "0s");
        // And it warns that connections take long to open.
        command.env("RINGCAST__LOG__LEVEL", "error");
        command.stdin(File::open(&input)?).stdout(File::create(&outcomes)?);
        let status = command.status()?;
        let told = std::fs::read_to_string(&told)?;
        if !status.success() {
            return Err(format!("valgrind ended with {status}: {told}").into());
        }
        let mut outcomes = BufReader::new(File::open(&outcomes)?);
        shape.read_all(&mut outcomes, run, invites, &AtomicU64::new(0))?;
        let collected = told.lines().find_map(|line| line.split_once("Collected :"));
        let (_, collected) = collected.ok_or_else(|| format!("callgrind tells no sum: {told}"))?;
        Ok(collected.trim().parse()?)
    }

    fn config(&self, worker: &Worker) -> Result<PathBuf, Failure> {
        worker.config(&self.place.path("config.toml"), &self.identity, self.port, worker::PATIENT)
    }
}
