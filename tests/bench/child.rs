//! A process under measurement: started, watched, weighed through `/proc` while it still lives, and never left behind.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::Failure;

/// A run in which nothing moves for this long has failed.
const STALL: Duration = Duration::from_secs(30);

/// A process that nobody watches has failed when it takes this long.
const LIFE_MAX: Duration = Duration::from_mins(15);

/// Ticks a second in `/proc/<pid>/stat`: `USER_HZ`, 100 on every architecture that Linux serves us on (proc(5)).
const TICKS_A_SECOND: u64 = 100;

/// A child process. Dropped, it is killed and reaped.
pub struct Running {
    child: Child,
    name: &'static str,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU in its own code, all threads, those that ended included.
    pub user: Duration,
    /// CPU in the kernel on its behalf.
    pub system: Duration,
    /// The most memory that was ever resident (`VmHWM`), in KiB.
    pub peak_kib: u64,
}

impl Usage {
    /// CPU altogether.
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }

    /// What two processes have used together; the peak is the larger one.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            user: self.user + other.user,
            system: self.system + other.system,
            peak_kib: self.peak_kib.max(other.peak_kib),
        }
    }

    /// The CPU used since an earlier look; the peak stays what it is.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            peak_kib: self.peak_kib,
        }
    }
}

impl Running {
    /// Starts a command whose stdin and stdout are pipes; its stderr is ours.
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self, Failure> {
        Self::spawn(name, command.stdin(Stdio::piped()).stdout(Stdio::piped()))
    }

    /// Starts a command whose stdin is a pipe; its stdout goes into a file, where nobody must be woken to read it.
    pub fn feed(
        name: &'static str,
        command: &mut Command,
        stdout: fs::File,
    ) -> Result<(Self, ChildStdin), Failure> {
        let mut running = Self::spawn(name, command.stdin(Stdio::piped()).stdout(stdout))?;
        let stdin = running.child.stdin.take().ok_or("its stdin is a pipe, but it is gone")?;
        Ok((running, stdin))
    }

    /// Starts a server that says in one line on stderr where it listens; that line comes back.
    pub fn serve(name: &'static str, command: &mut Command) -> Result<(Self, String), Failure> {
        let mut running =
            Self::spawn(name, command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let stderr = running.child.stderr.take().ok_or("its stderr is a pipe, but it is gone")?;
        let mut stderr = BufReader::new(stderr);
        let mut line = String::new();
        stderr.read_line(&mut line)?;
        pass_on(stderr);
        Ok((running, line))
    }

    fn spawn(name: &'static str, command: &mut Command) -> Result<Self, Failure> {
        let child = command.spawn().map_err(|error| format!("{name} does not start: {error}"))?;
        Ok(Self { child, name })
    }

    /// The two ends that talk to it, once.
    pub fn pipes(&mut self) -> Result<(ChildStdin, ChildStdout), Failure> {
        match (self.child.stdin.take(), self.child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok((stdin, stdout)),
            _ => Err(format!("the pipes of {} were taken before", self.name).into()),
        }
    }

    /// What it has used up to now. It must still live: a process that ended has nothing left to read.
    pub fn usage(&self) -> Result<Usage, Failure> {
        let pid = self.child.id();
        let gone = |error| format!("{} ended before it was weighed: {error}", self.name);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(gone)?;
        let (_, user, system) = cpu(pid).map_err(|error| format!("{}: {error}", self.name))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
        let peak_kib = peak.ok_or_else(|| format!("{} has no VmHWM: it ended", self.name))?.parse()?;
        Ok(Usage { user, system, peak_kib })
    }

    /// Runs `talk` on a thread of its own, which counts along what was answered. Where that count stands still for too long
    /// the process is killed, because its end is what `talk` may wait for.
    pub fn unless_stalled<T: Send>(
        &mut self,
        talk: impl FnOnce(&AtomicU64) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        let progress = AtomicU64::new(0);
        thread::scope(|scope| {
            let (done, ended) = sync_channel(1);
            let progress = &progress;
            scope.spawn(move || {
                // The other end waits for it, or has given the run up.
                let _ = done.send(talk(progress));
            });
            let mut seen = 0;
            loop {
                match ended.recv_timeout(STALL) {
                    Ok(result) => return result,
                    Err(RecvTimeoutError::Disconnected) => return Err("the other thread panicked".into()),
                    Err(RecvTimeoutError::Timeout) => {
                        let now = progress.load(Ordering::Relaxed);
                        if now == seen {
                            self.kill();
                            return Err(format!("it stands still after {now} answers; it was killed").into());
                        }
                        seen = now;
                    }
                }
            }
        })
    }

    /// The CPU of all its threads that there are, to the nanosecond: what `usage()` tells in hundredths of a second.
    pub fn spent(&self) -> Result<Duration, Failure> {
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end between the two looks.
            let Ok(told) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let told = told.split_whitespace().next().ok_or("/proc/<pid>/task/<tid>/schedstat is empty")?;
            nanos += told.parse::<u64>()?;
        }
        if nanos == 0 { Err("the kernel keeps no schedstat".into()) } else { Ok(Duration::from_nanos(nanos)) }
    }

    /// What is resident now (`VmRSS`), in KiB.
    pub fn resident_kib(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let now = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).map(str::trim);
        Ok(now.and_then(|now| now.strip_suffix(" kB")).ok_or("it has no VmRSS: it ended")?.parse()?)
    }

    /// Waits for its end, which its closed stdin brings about; any exit code but 0 is a failure.
    pub fn finish(mut self) -> Result<(), Failure> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", self.name).into()) }
    }

    /// Tells it to stop, as Kubernetes does, and waits for its end.
    pub fn stop(self) -> Result<(), Failure> {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        if !told.success() {
            return Err(format!("{} cannot be told to stop: {told}", self.name).into());
        }
        self.finish()
    }

    /// Ends it, so that whoever waits for it at a pipe sees the end.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// A process that was weighed over its whole life.
pub struct Ended {
    /// What it wrote to stdout, where that is a pipe.
    pub said: String,
    /// From its start to its end.
    pub elapsed: Duration,
    /// CPU; its memory is gone with it.
    pub usage: Usage,
}

/// Runs a command to its end, which must be a good one, and weighs it then: a process that ended keeps its CPU account
/// until somebody waits for it.
pub fn run_whole(name: &'static str, command: &mut Command) -> Result<Ended, Failure> {
    let started = Instant::now();
    let mut running = Running::spawn(name, command.stderr(Stdio::piped()))?;
    let said = running.child.stdout.take().map(collect);
    let complaints =
        running.child.stderr.take().map(collect).ok_or("its stderr is a pipe, but it is gone")?;
    // Whoever ends closes both.
    let late = |_| format!("{name} does not end, or leaves something behind that does not");
    let complaints = complaints.recv_timeout(LIFE_MAX).map_err(late)?;
    let said = said.map(|said| said.recv_timeout(STALL).map_err(late)).transpose()?.unwrap_or_default();
    let elapsed = started.elapsed();
    let (user, system) = loop {
        let (state, user, system) = cpu(running.child.id())?;
        if state == 'Z' {
            break (user, system);
        }
        if started.elapsed() > LIFE_MAX {
            return Err(format!("{name} closed its stderr and does not end").into());
        }
        thread::park_timeout(Duration::from_millis(1));
    };
    running.finish().map_err(|error| format!("{error}: {}", complaints.trim()))?;
    Ok(Ended { said, elapsed, usage: Usage { user, system, peak_kib: 0 } })
}

/// Reads to the end, on a thread of its own.
fn collect(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (done, ended) = sync_channel(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before a failure is told; the process itself says by its status how it went.
        let _ = from.read_to_end(&mut bytes);
        let _ = done.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    ended
}

/// State, user and system time of a process: of all its threads, those that ended included.
fn cpu(pid: u32) -> Result<(char, Duration, Duration), Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_err(|error| format!("it ended before it was weighed: {error}"))?;
    // The name in brackets may hold anything; behind it come fields 3 and up, of which 14 and 15 are the ticks.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let state = fields.next().and_then(|state| state.chars().next()).ok_or("/proc/<pid>/stat is short")?;
    let mut ticks = fields.skip(10);
    let mut next = || -> Result<Duration, Failure> {
        let ticks: u64 = ticks.next().ok_or("/proc/<pid>/stat is short")?.parse()?;
        Ok(Duration::from_millis(ticks * 1000 / TICKS_A_SECOND))
    };
    Ok((state, next()?, next()?))
}

/// What a server says later goes to our stderr; a full pipe must not stop it.
fn pass_on(stderr: BufReader<ChildStderr>) {
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            eprintln!("{line}");
        }
    });
}
