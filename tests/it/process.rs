//! A built program as a child process. It is killed when the test lets go of it, also after a failure.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

/// How often something outside is looked at. There is nothing to await on a file or in another process.
pub(crate) const POLL_EVERY: Duration = Duration::from_millis(20);

/// The worker and all that comes with it.
pub(crate) const RINGCAST: &str = env!("CARGO_BIN_EXE_ringcast");
/// Apple's side.
pub(crate) const APNS_SIMULATOR: &str = env!("CARGO_BIN_EXE_apns-simulator");

/// See the module. Both its outputs go to files, so that it never waits for a reader.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `program` in the folder `place`, with no setting of ours from the environment but those in `env`.
    pub(crate) fn start(
        program: &str,
        args: &[&str],
        env: &[(&str, &str)],
        place: &Path,
        name: &str,
    ) -> Self {
        let (stdout, stderr) = (place.join(format!("{name}.out")), place.join(format!("{name}.err")));
        let file = |path: &Path| File::create(path).expect("the test's folder can be written");
        let mut command = Command::new(program);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("RINGCAST__")) {
            command.env_remove(key);
        }
        let mut child = command
            .args(args)
            .envs(env.iter().copied())
            .current_dir(place)
            .stdin(Stdio::piped())
            .stdout(file(&stdout))
            .stderr(file(&stderr))
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{program} does not start: {error}"));
        let stdin = child.stdin.take();
        Self { name: name.to_owned(), child, stdin, stdout, stderr }
    }

    /// Writes to its standard input.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input was not closed before");
        stdin.write_all(bytes).await.unwrap_or_else(|error| panic!("{} does not read: {error}", self.name));
        stdin.flush().await.expect("a pipe has nothing to flush");
    }

    /// Ends its standard input.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// What it wrote to standard output so far.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// What it wrote to standard error so far, and what `ringcast` has for its log's thread to write.
    pub(crate) fn stderr(&self) -> String {
        self.let_log();
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// A line was said when the thread was woken for it, and is written when that sleeps again. A thread that is never idle is not
    /// waited for.
    #[expect(clippy::disallowed_methods, reason = "who looks at the log does not await")]
    fn let_log(&self) {
        let tasks = self.child.id().map(|pid| format!("/proc/{pid}/task"));
        let is_writing = |tasks: &String| {
            let mut tasks = fs::read_dir(tasks).into_iter().flatten().flatten();
            tasks.any(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.contains("(log) R") || stat.contains("(log) D")
            })
        };
        for _ in 0..1_000 {
            if !tasks.as_ref().is_some_and(is_writing) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The end of its standard error, for the message of a failure.
    pub(crate) fn last_words(&self) -> String {
        let text = self.stderr();
        let lines: Vec<_> = text.lines().collect();
        format!("{} said last:\n{}", self.name, lines[lines.len().saturating_sub(25)..].join("\n"))
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it was not awaited yet")
    }

    /// Asks it to stop (SIGTERM).
    pub(crate) fn terminate(&self) {
        self.signal("kill -TERM \"$0\"");
    }

    /// Makes it stand still (SIGSTOP).
    pub(crate) fn freeze(&self) {
        self.signal("kill -STOP \"$0\"");
    }

    fn signal(&self, kill: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("sh").args(["-c", kill, &pid]).status();
        assert!(sent.expect("there is a shell").success(), "{} was not there to be stopped", self.name);
    }

    /// Kills it (SIGKILL), as an eviction or a crash would.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap_or_else(|error| panic!("{} cannot be killed: {error}", self.name));
    }

    /// Kills it and returns when it is gone, for a `drop` after which its folder is removed.
    #[expect(clippy::disallowed_methods, reason = "a drop cannot await")]
    pub(crate) fn end_now(&mut self) {
        // An error means that it is gone already. Five seconds are enough for the system.
        let _ = self.child.start_kill();
        for _ in 0..5_000 {
            if !self.child.try_wait().is_ok_and(|status| status.is_none()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for its end and gives the exit status.
    pub(crate) async fn ended(&mut self, within: Duration) -> ExitStatus {
        let Ok(status) = timeout(within, self.child.wait()).await else {
            panic!("{} did not end within {within:?}; {}", self.name, self.last_words())
        };
        status.expect("a child can be awaited")
    }

    /// Whether it still runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// Waits until `look` finds something in what it wrote to standard error.
    pub(crate) async fn says<T>(
        &mut self,
        what: &str,
        within: Duration,
        look: impl Fn(&str) -> Option<T>,
    ) -> T {
        let until = Instant::now() + within;
        loop {
            if let Some(found) = look(&self.stderr()) {
                return found;
            }
            assert!(self.lives(), "{} ended before it said {what}; {}", self.name, self.last_words());
            assert!(
                Instant::now() < until,
                "{} did not say {what} in {within:?}; {}",
                self.name,
                self.last_words()
            );
            sleep(POLL_EVERY).await;
        }
    }
}

/// A program that ends by itself: what it printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; `None` after a signal.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// Runs `ringcast` with nothing on standard input until it ends.
pub(crate) async fn run_ringcast(args: &[&str], env: &[(&str, &str)], place: &Path) -> Ended {
    let mut process = Process::start(RINGCAST, args, env, place, "ringcast-once");
    process.close_stdin();
    let status = process.ended(Duration::from_mins(1)).await;
    Ended { code: status.code(), stdout: process.stdout(), stderr: process.stderr() }
}
