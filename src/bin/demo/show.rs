//! The calls as they pass, one line each: odd ones always, plain ones at first, and then a count of them.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;
use tokio::time::Instant;

use crate::town::{CALLS, Call, Plot};

/// Plain calls that are shown in full.
const PLAIN_MAX: usize = 8;
/// How often a count is written where it cannot be written over.
const COUNT_EVERY: usize = 40;
/// Letters of a worker's error that are shown.
const ERROR_MAX: usize = 48;

/// How a word is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Odd,
    /// Wrong.
    Bad,
    /// Beside the point.
    Quiet,
    /// A heading.
    Loud,
}

/// Standard output.
pub(crate) struct Show {
    terminal: bool,
    colour: bool,
    began: Instant,
    plain: usize,
    counting: bool,
}

impl Show {
    /// Colours only on a terminal, and not where `NO_COLOR` is set (<https://no-color.org>).
    pub(crate) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { terminal, colour: terminal && !unwanted, began: Instant::now(), plain: 0, counting: false }
    }

    /// The clock of the lines starts.
    pub(crate) fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// A line.
    pub(crate) fn line(&mut self, text: &str) {
        let clear = if std::mem::take(&mut self.counting) { "\r\x1b[K" } else { "" };
        // Nobody reads any more: the demo goes on to its end, which is its exit code.
        let _ = writeln!(io::stdout().lock(), "{clear}{text}");
    }

    /// A word in the colour of its tone.
    pub(crate) fn paint(&self, tone: Tone, word: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Odd => "33",
            Tone::Bad => "31",
            Tone::Quiet => "2",
            Tone::Loud => "1",
        };
        if self.colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
    }

    /// What became of a call.
    pub(crate) fn outcome(&mut self, call: &Call, outcome: &Value) {
        let result = outcome["result"].as_str().unwrap_or("?");
        if call.plot == Plot::Plain && result == "accepted" {
            self.plain += 1;
            if self.plain > PLAIN_MAX {
                self.count();
                return;
            }
        }
        let tone = match result {
            _ if result != call.result() => Tone::Bad,
            "accepted" => Tone::Good,
            "expired" => Tone::Quiet,
            _ => Tone::Odd,
        };
        let word = self.paint(tone, &format!("{result:<13}"));
        let mut parts = vec![describe(outcome)];
        let note = call.plot.note();
        if !note.is_empty() {
            parts.push(self.paint(Tone::Quiet, note));
        }
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        self.line(&format!("{}  {:<24} {word} {}", self.clock(), call.parties(), parts.join(" · ")));
    }

    fn count(&mut self) {
        let more = self.plain - PLAIN_MAX;
        let text = format!("{}  … {more} more calls rang", self.clock());
        if self.terminal {
            self.counting = true;
            let mut stdout = io::stdout().lock();
            let _ = write!(stdout, "\r\x1b[K{text}");
            let _ = stdout.flush();
        } else if more.is_multiple_of(COUNT_EVERY) {
            self.line(&text);
        }
    }

    /// The last count, so that it stays.
    pub(crate) fn end(&mut self, invites: usize) {
        let more = self.plain.saturating_sub(PLAIN_MAX);
        let text =
            format!("{}  … {more} more calls rang; {invites} of {CALLS} calls have an outcome", self.clock());
        self.line(&text);
    }

    fn clock(&self) -> String {
        format!("{:6.2} s", self.began.elapsed().as_secs_f64())
    }
}

/// Devices and latency in words, or what is wrong with an invite.
fn describe(outcome: &Value) -> String {
    if let Some(error) = outcome["error"].as_str() {
        let cut = error.char_indices().nth(ERROR_MAX).map(|(cut, _)| cut);
        return cut.map_or_else(|| error.to_owned(), |cut| format!("{}…", &error[..cut]));
    }
    let devices = outcome["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let accepted = devices.iter().filter(|device| device["result"] == "accepted").count();
    let odd = devices
        .iter()
        .filter(|device| device["result"] != outcome["result"] && device["result"] != "accepted");
    let odd = odd.map(|device| {
        let result = device["result"].as_str().unwrap_or("?");
        match (device["status"].as_u64(), device["reason"].as_str()) {
            (Some(status), Some(reason)) => format!("{status} {reason}"),
            _ => result.to_owned(),
        }
    });
    let mut parts = vec![match (accepted, devices.len()) {
        (_, 1) => "1 device".to_owned(),
        (accepted, all) if accepted == all || accepted == 0 => format!("{all} devices"),
        (accepted, all) => format!("{accepted}/{all} devices"),
    }];
    parts.extend(odd);
    let attempts = devices.iter().filter_map(|device| device["attempts"].as_u64()).max();
    if let Some(attempts) = attempts.filter(|attempts| *attempts > 1) {
        parts.push(format!("{attempts} attempts"));
    }
    let latency = devices.iter().filter_map(|device| device["latency_ms"].as_u64()).max();
    parts.extend(latency.map(|latency| format!("{latency} ms")));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn outcomes_are_put_in_words() {
        let device = |result: &str, attempts, latency_ms| json!({"result": result, "attempts": attempts, "latency_ms": latency_ms});
        let dead = json!({"result": "invalid_token", "status": 410, "reason": "Unregistered", "attempts": 1, "latency_ms": 50});
        for (outcome, words) in [
            (json!({"result": "accepted", "devices": [device("accepted", 1, 84)]}), "1 device, 84 ms"),
            (
                json!({"result": "accepted", "devices": [device("accepted", 2, 84), dead]}),
                "1/2 devices, 410 Unregistered, 2 attempts, 84 ms",
            ),
            (json!({"result": "undeliverable", "devices": [dead]}), "1 device, 410 Unregistered, 50 ms"),
            (
                json!({"result": "expired", "devices": [{"result": "expired", "attempts": 0}, {"result": "expired"}]}),
                "2 devices",
            ),
            (json!({"result": "malformed", "error": "no invite"}), "no invite"),
        ] {
            assert_eq!(describe(&outcome), words);
        }
    }
}
