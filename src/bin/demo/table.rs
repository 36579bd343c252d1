//! What happened, beside what had to happen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringcast::simulator::Record;
use serde_json::Value;

use crate::road::Harvest;
use crate::show::{Show, Tone};
use crate::town::{Call, LATENCY_MIN, Plot};

/// Sentences about single calls and phones that are told; more are counted.
const SENTENCES_MAX: usize = 10;

/// Everything that is known at the end.
pub(crate) struct Evidence<'a> {
    /// The town.
    pub(crate) calls: &'a [Call],
    /// What came back.
    pub(crate) harvest: &'a Harvest,
    /// What the simulated Apple saw.
    pub(crate) journal: &'a [Record],
    /// Where originals of malformed invites are.
    pub(crate) aside: &'static str,
    /// Invites still in the queue.
    pub(crate) left: usize,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    what: String,
    expected: String,
    seen: String,
    right: bool,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    sections: Vec<(&'static str, Vec<Row>)>,
    /// What is wrong with single calls and phones.
    sentences: Vec<String>,
}

impl Table {
    /// Compares. Nothing in it depends on how fast the machine is but the latencies, which have only a lower bound.
    pub(crate) fn of(evidence: &Evidence<'_>) -> Self {
        let mut sentences = Vec::new();
        let outcomes = read_outcomes(evidence, &mut sentences);
        let sections = vec![
            ("invites", invites(evidence, &outcomes)),
            ("devices", devices(evidence, &outcomes, &mut sentences)),
            ("token events", token_events(evidence, &mut sentences)),
            ("what Apple saw", pushes(evidence, &mut sentences)),
            ("push latency", latencies(&outcomes)),
        ];
        Self { sections, sentences }
    }

    /// Whether all is as it had to be.
    pub(crate) fn is_right(&self) -> bool {
        let mut rows = self.sections.iter().flat_map(|(_, rows)| rows);
        self.sentences.is_empty() && rows.all(|row| row.right)
    }

    /// Writes it.
    pub(crate) fn show(&self, show: &mut Show) {
        let heading = format!("{:<44}{:>12}{:>12}", "", "expected", "seen");
        let heading = show.paint(Tone::Quiet, &heading);
        show.line(&heading);
        for (title, rows) in &self.sections {
            let title = show.paint(Tone::Loud, title);
            show.line(&title);
            for Row { what, expected, seen, right } in rows {
                let (tone, verdict) = if *right { (Tone::Good, "ok") } else { (Tone::Bad, "DIFFERS") };
                let verdict = show.paint(tone, verdict);
                show.line(&format!("  {what:<42}{expected:>12}{seen:>12}  {verdict}"));
            }
        }
        for sentence in self.sentences.iter().take(SENTENCES_MAX) {
            let sentence = show.paint(Tone::Bad, sentence);
            show.line(&sentence);
        }
        if let Some(more) = self.sentences.len().checked_sub(SENTENCES_MAX).filter(|more| *more > 0) {
            show.line(&format!("… and {more} more"));
        }
    }
}

/// A row of two numbers that must be equal.
fn row(what: impl Into<String>, expected: usize, seen: usize) -> Row {
    let (right, expected, seen) = (expected == seen, expected.to_string(), seen.to_string());
    Row { what: what.into(), expected, seen, right }
}

/// Rows for each word that is expected or seen.
fn rows(expected: &BTreeMap<String, usize>, seen: &BTreeMap<String, usize>) -> Vec<Row> {
    let words: BTreeSet<_> = expected.keys().chain(seen.keys()).collect();
    let count = |counts: &BTreeMap<String, usize>, word| counts.get(word).copied().unwrap_or(0);
    words.into_iter().map(|word| row(word, count(expected, word), count(seen, word))).collect()
}

fn tally(words: impl IntoIterator<Item = impl Into<String>>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word.into()).or_default() += 1;
    }
    counts
}

/// The first outcome of each call.
fn read_outcomes(evidence: &Evidence<'_>, sentences: &mut Vec<String>) -> BTreeMap<usize, Value> {
    let mut outcomes = BTreeMap::new();
    for (number, arrivals) in &evidence.harvest.outcomes {
        let body = arrivals.first().map(|arrival| &arrival.body[..]).unwrap_or_default();
        match serde_json::from_slice(body) {
            Ok(outcome) => drop(outcomes.insert(*number, outcome)),
            Err(error) => sentences.push(format!("the outcome of call {number} cannot be read: {error}")),
        }
    }
    outcomes
}

fn invites(evidence: &Evidence<'_>, outcomes: &BTreeMap<usize, Value>) -> Vec<Row> {
    let expected = tally(evidence.calls.iter().map(Call::result));
    let seen = tally(outcomes.values().map(|outcome| outcome["result"].as_str().unwrap_or("?")));
    let repeated = evidence.harvest.outcomes.values().filter(|arrivals| arrivals.len() > 1).count();
    let message_ids: BTreeSet<_> =
        evidence.harvest.outcomes.values().flatten().map(|arrival| &arrival.message_id).collect();
    let malformed = evidence.calls.iter().filter(|call| call.plot == Plot::Malformed);
    let malformed: BTreeSet<_> = malformed.map(|call| call.number).collect();
    let originals: BTreeSet<_> = evidence.harvest.originals.iter().map(|arrival| arrival.number).collect();
    let mut rows = rows(&expected, &seen);
    rows.extend([
        row("without an outcome", 0, evidence.calls.len().saturating_sub(evidence.harvest.outcomes.len())),
        row("with more than one outcome", 0, repeated),
        row("distinct message ids of outcomes", evidence.calls.len(), message_ids.len()),
        row(
            format!("malformed originals {}", evidence.aside),
            malformed.len(),
            malformed.intersection(&originals).count(),
        ),
        row(format!("other originals {}", evidence.aside), 0, originals.difference(&malformed).count()),
        row("left in the queue", 0, evidence.left),
    ]);
    rows
}

fn devices(
    evidence: &Evidence<'_>,
    outcomes: &BTreeMap<usize, Value>,
    sentences: &mut Vec<String>,
) -> Vec<Row> {
    let mut expected = Vec::new();
    let mut seen = Vec::new();
    for call in evidence.calls.iter().filter(|call| call.plot != Plot::Malformed) {
        let right: Vec<_> = call.phones.iter().map(|phone| phone.result).collect();
        let empty = Vec::new();
        let devices = outcomes.get(&call.number).and_then(|outcome| outcome["devices"].as_array());
        let found: Vec<_> =
            devices.unwrap_or(&empty).iter().map(|device| device["result"].as_str().unwrap_or("?")).collect();
        if devices.is_some() && found != right {
            sentences.push(format!(
                "call {} ({}): its devices are {}, and should be {}",
                call.number,
                call.parties(),
                found.join(", "),
                right.join(", ")
            ));
        }
        expected.extend(right);
        seen.extend(found.into_iter().map(str::to_owned));
    }
    rows(&tally(expected), &tally(seen))
}

/// One event for each token that Apple calls dead or suspect, and none else.
fn token_events(evidence: &Evidence<'_>, sentences: &mut Vec<String>) -> Vec<Row> {
    let phones = || evidence.calls.iter().flat_map(|call| &call.phones);
    let confidence = |result| match result {
        "invalid_token" => Some("dead"),
        "suspect_token" => Some("suspect"),
        _ => None,
    };
    let expected: BTreeMap<_, _> =
        phones().filter_map(|phone| Some((phone.token.as_str(), confidence(phone.result)?))).collect();
    let events: Vec<Value> = evidence
        .harvest
        .token_events
        .iter()
        .map(|arrival| serde_json::from_slice(&arrival.body).unwrap_or_default())
        .collect();
    let said = |event: &Value| event["confidence"].as_str().unwrap_or("?").to_owned();
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    for event in &events {
        let token = event["token"].as_str().unwrap_or_default();
        *told.entry(token).or_default() += 1;
        if expected.get(token).copied() != Some(&*said(event)) {
            sentences.push(format!("an event calls the token {} {}", fingerprint(token), said(event)));
        }
    }
    let mut rows = rows(&tally(expected.values().copied()), &tally(events.iter().map(said)));
    rows.push(row("tokens told more than once", 0, told.values().filter(|count| **count > 1).count()));
    rows
}

/// The journal: every device as often as the town says, and nothing else.
fn pushes(evidence: &Evidence<'_>, sentences: &mut Vec<String>) -> Vec<Row> {
    let mut seen: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in evidence.journal {
        seen.entry(&record.token).or_default().push(record);
    }
    let (mut expected, mut rang, mut late, mut repeats, mut repeats_seen) = (0, 0, 0, 0, 0);
    let mut new_ids = 0;
    let entries = evidence.calls.iter().flat_map(|call| call.phones.iter().map(move |phone| (call, phone)));
    for (call, phone) in entries.filter(|(_, phone)| phone.result != "duplicate") {
        let records = seen.remove(phone.token.as_str()).unwrap_or_default();
        expected += phone.pushes;
        repeats += phone.pushes.saturating_sub(1);
        repeats_seen += records.len().saturating_sub(1);
        rang += usize::from(phone.result == "accepted");
        if phone.pushes == 0 {
            late += records.len();
        }
        let ids: BTreeSet<_> = records.iter().map(|record| &record.apns_id).collect();
        new_ids += ids.len().saturating_sub(1);
        let rings = records.iter().filter(|record| record.processed).count();
        if records.len() != phone.pushes || rings != usize::from(phone.result == "accepted") {
            sentences.push(format!(
                "call {} ({}), token {}: Apple saw {} pushes, {} were expected; the phone rang {rings} times",
                call.number,
                call.parties(),
                fingerprint(&phone.token),
                records.len(),
                phone.pushes
            ));
        }
        let call_id = call.id.to_string();
        if records
            .iter()
            .any(|record| record.body.json().is_none_or(|body| body["callUUID"] != call_id.as_str()))
        {
            sentences.push(format!("call {}: a push carries another call's id", call.number));
        }
    }
    let strange = seen.values().map(Vec::len).sum();
    let count = |fault: fn(&&Record) -> bool| evidence.journal.iter().filter(fault).count();
    let plots = |plot| evidence.calls.iter().filter(|call| call.plot == plot).count();
    vec![
        row("pushes", expected, evidence.journal.len()),
        row("phones that rang", rang, count(|record| record.processed)),
        row("repeats", repeats, repeats_seen),
        row("  after an answer 503", plots(Plot::Hiccup), count(|record| record.status == Some(503))),
        row("  after a refused stream", plots(Plot::Refused), count(|record| record.fault == Some("reset"))),
        row("repeats with another apns-id", 0, new_ids),
        row("pushes for expired or malformed invites", 0, late),
        row("pushes to tokens that nobody has", 0, strange),
    ]
}

/// Of accepted devices, repeats included.
fn latencies(outcomes: &BTreeMap<usize, Value>) -> Vec<Row> {
    let devices = outcomes.values().filter_map(|outcome| outcome["devices"].as_array()).flatten();
    let accepted = devices.filter(|device| device["result"] == "accepted");
    let mut latencies: Vec<_> = accepted.filter_map(|device| device["latency_ms"].as_u64()).collect();
    latencies.sort_unstable();
    let row = |percent: usize| {
        let latency = percentile(&latencies, percent).map(Duration::from_millis);
        Row {
            what: format!("p{percent}"),
            expected: format!("≥ {} ms", LATENCY_MIN.as_millis()),
            seen: latency.map_or_else(|| "none".to_owned(), |latency| format!("{} ms", latency.as_millis())),
            right: latency.is_some_and(|latency| latency >= LATENCY_MIN),
        }
    };
    vec![row(50), row(99)]
}

/// The smallest that is not less than `percent` of all; `sorted` is.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// As much of a token as may be shown.
fn fingerprint(token: &str) -> String {
    format!("{}…", token.chars().take(8).collect::<String>())
}

#[cfg(test)]
mod tests;
