//! `ringcast run` with a configuration of the test's own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::apple::Apple;
use crate::broker::Ports;
use crate::http;
use crate::place::Place;
use crate::process::{POLL_EVERY, Process, RINGCAST};

/// A worker that starts while the machine compiles needs seconds.
pub(crate) const READY_WITHIN: Duration = Duration::from_mins(1);
/// The longest that a stop may take here: the default grace, and some for the machine.
pub(crate) const GRACE: Duration = Duration::from_secs(40);

/// A configuration file in the making: sections of keys, each with its literal in TOML.
#[derive(Debug)]
pub(crate) struct Config {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    admin: Ports,
}

impl Config {
    /// One app, `acme`, that pushes to `apple` in both environments, and admin endpoints on a free port.
    pub(crate) fn new(apple: &Apple) -> Self {
        let mut config = Self::bare();
        config
            .text("apns", "production", apple.url())
            .text("apns", "sandbox", apple.url())
            .path("apns", "ca_file", &apple.ca_file())
            .text("apps.acme", "bundle_id", "com.acme.voice")
            .text("apps.acme.auth", "team_id", "TEAM123456")
            .text("apps.acme.auth", "key_id", "KEY1234567")
            .path("apps.acme.auth", "key_file", &apple.key_file());
        config
    }

    /// Admin endpoints on a free port, and nothing else.
    pub(crate) fn bare() -> Self {
        let admin = Ports::claim().expect("there are free ports");
        let mut config = Self { sections: BTreeMap::new(), admin };
        let listen = format!("127.0.0.1:{}", config.admin.first);
        config.text("admin", "listen", &listen);
        config
    }

    /// Sets a key to a literal.
    pub(crate) fn set(&mut self, section: &str, key: &str, literal: &str) -> &mut Self {
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), literal.to_owned());
        self
    }

    /// Sets a key to a text.
    pub(crate) fn text(&mut self, section: &str, key: &str, text: &str) -> &mut Self {
        self.set(section, key, &format!("{text:?}"))
    }

    /// Sets a key to a path.
    pub(crate) fn path(&mut self, section: &str, key: &str, path: &Path) -> &mut Self {
        self.text(section, key, path.to_str().expect("the test's paths are UTF-8"))
    }

    /// Writes it to a file, one line a key.
    pub(crate) fn write(&self, place: &Place, name: &str) -> PathBuf {
        let mut text = String::new();
        for (section, keys) in &self.sections {
            writeln!(text, "[{section}]").expect("a text takes everything");
            for (key, literal) in keys {
                writeln!(text, "{key} = {literal}").expect("a text takes everything");
            }
            text += "\n";
        }
        place.write(name, text)
    }

    /// The port of the admin endpoints.
    pub(crate) fn admin_port(&self) -> u16 {
        self.admin.first
    }
}

/// A running worker. Killed when the test lets go of it.
#[derive(Debug)]
pub(crate) struct Worker {
    process: Process,
    admin_port: u16,
}

impl Worker {
    /// Starts it and waits for nothing.
    pub(crate) fn start(place: &Place, config: &Config, name: &str) -> Self {
        let file = config.write(place, &format!("{name}.toml"));
        let file = file.to_str().expect("the test's paths are UTF-8");
        Self::start_file(place, file, config, name)
    }

    /// Starts it with a file that somebody else wrote; of `config` only the port of the admin endpoints is used.
    pub(crate) fn start_file(place: &Place, file: &str, config: &Config, name: &str) -> Self {
        let process = Process::start(RINGCAST, &["run", "--config", file], &[], place.as_ref(), name);
        Self { process, admin_port: config.admin_port() }
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start_ready(place: &Place, config: &Config, name: &str) -> Self {
        let mut worker = Self::start(place, config, name);
        worker.await_ready().await;
        worker
    }

    /// Waits until `/readyz` says 200.
    pub(crate) async fn await_ready(&mut self) {
        self.await_endpoint("/readyz", READY_WITHIN, |status, _| status == 200).await;
    }

    /// Waits until an admin endpoint answers as `expected` says, and gives the text.
    pub(crate) async fn await_endpoint(
        &mut self,
        path: &str,
        within: Duration,
        expected: impl Fn(u16, &str) -> bool,
    ) -> String {
        let until = Instant::now() + within;
        let mut last = None;
        loop {
            if let Some((status, text)) = http::fetch(self.admin_port, path).await {
                if expected(status, &text) {
                    return text;
                }
                last = Some((status, text));
            }
            assert!(self.process.lives(), "the worker ended; {}", self.process.last_words());
            assert!(
                Instant::now() < until,
                "{path} did not answer as expected in {within:?}, but {last:?}; {}",
                self.process.last_words()
            );
            sleep(POLL_EVERY).await;
        }
    }

    /// An admin endpoint's status and text, now.
    pub(crate) async fn fetch(&self, path: &str) -> (u16, String) {
        http::fetch(self.admin_port, path).await.unwrap_or_else(|| panic!("{path} is not served"))
    }

    /// The sum over all labels of a family in `/metrics`; `None` where it is not there.
    pub(crate) async fn metric(&self, family: &str) -> Option<f64> {
        let (_, text) = self.fetch("/metrics").await;
        let values: Vec<f64> = text
            .lines()
            .filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Stops it with SIGTERM: it must finish what it started, within its grace, and say so by status 0.
    pub(crate) async fn stop(&mut self) {
        self.tell_to_stop();
        self.await_stopped().await;
    }

    /// Sends SIGTERM and waits for nothing.
    pub(crate) fn tell_to_stop(&self) {
        self.process.terminate();
    }

    /// Waits for the end of one that was told to stop.
    pub(crate) async fn await_stopped(&mut self) {
        let code = self.await_end().await;
        assert_eq!(code, Some(0), "a stop that finished everything; {}", self.process.last_words());
    }

    /// The same for one that need not finish everything, and gives its exit code.
    pub(crate) async fn await_end(&mut self) -> Option<i32> {
        self.process.ended(GRACE).await.code()
    }

    /// Kills it.
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Whether it still runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.process.lives()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        self.process.stderr()
    }
}
