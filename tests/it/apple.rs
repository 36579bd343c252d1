//! `apns-simulator`: Apple's side, with a script of what goes wrong, and a journal of what it saw.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::broker::Ports;
use crate::place::Place;
use crate::process::{APNS_SIMULATOR, Process};

/// Device tokens that begin so (hex) are answered 410 by every script here.
pub(crate) const DEAD: &str = "dead";
/// Since when, as the contract writes instants.
pub(crate) const DEAD_SINCE: &str = "2026-09-21T14:13:20Z";

/// Files and folders of it in the test's own.
const IDENTITY: &str = "identity";
const SCRIPT: &str = "script.toml";
const JOURNAL: &str = "journal.jsonl";

/// A running simulator with an identity of its own.
#[derive(Debug)]
pub(crate) struct Apple {
    process: Process,
    place: PathBuf,
    ports: Ports,
    url: String,
}

/// One request as the journal has it.
#[derive(Clone, Debug)]
pub(crate) struct Push(Value);

impl Push {
    /// The device token.
    pub(crate) fn token(&self) -> &str {
        self.text("token")
    }

    /// A field that is a text; empty when absent.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    /// The connection that it came on, counted from 1.
    pub(crate) fn connection(&self) -> u64 {
        self.0["connection"].as_u64().expect("the journal says on which")
    }

    /// When it was judged, in milliseconds since 1970.
    pub(crate) fn at_ms(&self) -> i64 {
        self.0["at_ms"].as_i64().expect("the journal says when")
    }

    /// When Apple's side took it or refused it: when its answer left, in milliseconds since 1970.
    pub(crate) fn answered_ms(&self) -> i64 {
        self.at_ms() + self.0["delay_ms"].as_i64().unwrap_or_default()
    }

    /// What was answered; `None`: nothing.
    pub(crate) fn status(&self) -> Option<u64> {
        self.0["status"].as_u64()
    }

    /// The payload.
    pub(crate) fn body(&self) -> &Value {
        &self.0["body"]
    }
}

impl Apple {
    /// Starts it: tokens that begin with [`DEAD`] are dead, answers take `latency_ms`, and `more` is added to the script.
    pub(crate) async fn start(place: &Place, latency_ms: (u64, u64), more: &str) -> Self {
        place.write(SCRIPT, script(latency_ms) + more);
        let ports = Ports::claim().expect("there are free ports");
        let place = place.as_ref().to_owned();
        let process = spawn(&place, &ports).await;
        let url = format!("https://localhost:{}", ports.first);
        Self { process, place, ports, url }
    }

    /// Kills it: its connections are cut, and nobody listens.
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Starts it again where it was, with the same identity and script. The journal goes on.
    pub(crate) async fn start_again(&mut self) {
        self.process = spawn(&self.place, &self.ports).await;
    }

    /// `https://localhost:PORT`
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What its certificate is signed with.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.place.join(IDENTITY).join("ca.pem")
    }

    /// The provider key that it takes.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.place.join(IDENTITY).join("AuthKey_KEY1234567.p8")
    }

    /// Stops it in the middle of what it does (SIGSTOP): its connections stay, and carry nothing.
    pub(crate) fn freeze(&self) {
        self.process.freeze();
    }

    /// Stops it and reads its journal.
    pub(crate) async fn stop(mut self) -> Vec<Push> {
        self.process.terminate();
        self.process.ended(Duration::from_secs(30)).await;
        let text =
            std::fs::read_to_string(self.place.join(JOURNAL)).expect("the simulator writes its journal");
        text.lines()
            .map(|line| Push(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))))
            .collect()
    }
}

async fn spawn(place: &Path, ports: &Ports) -> Process {
    let listen = format!("127.0.0.1:{}", ports.first);
    let args = ["--listen", &listen, "--identity", IDENTITY, "--script", SCRIPT, "--journal", JOURNAL];
    let mut process = Process::start(APNS_SIMULATOR, &args, &[], place, "apns-simulator");
    let listens = |text: &str| text.contains("listening on ").then_some(());
    process.says("that it listens", Duration::from_secs(30), listens).await;
    process
}

fn script((shortest, longest): (u64, u64)) -> String {
    let slow = format!("[[fault]]\nlatency = [\"{shortest}ms\", \"{longest}ms\"]\n");
    let dead = format!(
        "[[fault]]\ntoken_prefix = \"{DEAD}\"\ndo = \"answer\"\nstatus = 410\nreason = \"Unregistered\"\n\
         timestamp = {DEAD_SINCE}\n"
    );
    if longest == 0 { dead } else { slow + &dead }
}
