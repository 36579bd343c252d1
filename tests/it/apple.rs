//! `apns-simulator`: Apple's side, with a script of what goes wrong, and a journal of what it saw.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::place::Place;
use crate::process::{APNS_SIMULATOR, Process};

/// Device tokens that begin so (hex) are answered 410 by every script here.
pub(crate) const DEAD: &str = "dead";
/// Since when, as the contract writes instants.
pub(crate) const DEAD_SINCE: &str = "2026-09-21T14:13:20Z";

/// A running simulator with an identity of its own.
#[derive(Debug)]
pub(crate) struct Apple {
    process: Process,
    url: String,
    identity: PathBuf,
    journal: PathBuf,
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

    /// When it was judged, in milliseconds since 1970.
    pub(crate) fn at_ms(&self) -> i64 {
        self.0["at_ms"].as_i64().expect("the journal says when")
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
        let identity = place.path("identity");
        let journal = place.path("journal.jsonl");
        let script = place.write("script.toml", script(latency_ms) + more);
        let path = |path: &PathBuf| path.to_str().expect("the test's paths are UTF-8").to_owned();
        let args = [
            ["--listen", "127.0.0.1:0"],
            ["--identity", &path(&identity)],
            ["--script", &path(&script)],
            ["--journal", &path(&journal)],
        ];
        let mut process =
            Process::start(APNS_SIMULATOR, args.as_flattened(), &[], place.as_ref(), "apns-simulator");
        let url = process
            .says("where it listens", Duration::from_secs(30), |text| {
                let rest = text.split_once("listening on ")?.1;
                Some(rest.split_once('\n')?.0.trim().replace("127.0.0.1", "localhost"))
            })
            .await;
        Self { process, url, identity, journal }
    }

    /// `https://localhost:PORT`
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What its certificate is signed with.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.identity.join("ca.pem")
    }

    /// The provider key that it takes.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.identity.join("AuthKey_KEY1234567.p8")
    }

    /// Stops it in the middle of what it does (SIGSTOP): its connections stay, and carry nothing.
    pub(crate) fn freeze(&self) {
        self.process.freeze();
    }

    /// Stops it and reads its journal.
    pub(crate) async fn stop(mut self) -> Vec<Push> {
        self.process.terminate();
        self.process.ended(Duration::from_secs(30)).await;
        let text = std::fs::read_to_string(&self.journal).expect("the simulator writes its journal");
        text.lines()
            .map(|line| Push(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))))
            .collect()
    }
}

fn script((shortest, longest): (u64, u64)) -> String {
    let slow = format!("[[fault]]\nlatency = [\"{shortest}ms\", \"{longest}ms\"]\n");
    let dead = format!(
        "[[fault]]\ntoken_prefix = \"{DEAD}\"\ndo = \"answer\"\nstatus = 410\nreason = \"Unregistered\"\n\
         timestamp = {DEAD_SINCE}\n"
    );
    if longest == 0 { dead } else { slow + &dead }
}
