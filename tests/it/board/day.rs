//! A day on which much goes wrong, watched by a Prometheus, and what the board's queries find of it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::dashboard::{Dashboard, sent, sent_over, text};
use super::town::{Incident, Town};
use crate::process::POLL_EVERY;
use crate::prometheus::{Prometheus, Sample, Series};

/// How long each incident is there at least, and until it is seen or gone again at most.
const HELD: Duration = Duration::from_secs(2);
const SEEN_WITHIN: Duration = Duration::from_mins(1);

/// What goes wrong in a day, the tile that must say so, and what else must be seen meanwhile. Those of a group come together
/// where time is short. Results that come back make workers look at the topology at once: that comes after the restart, at which a
/// session may have begun while a queue was missing.
const DAY: [&[(Incident, &str, &str)]; 6] = [
    &[
        (Incident::Slow, "Apple", "sum(ringcast_apns_late_answers_total) > 0"),
        (Incident::Mistakes, "The callers", "sum(ringcast_ledger_answers_total) > 0"),
    ],
    &[
        (Incident::Spoiled, "The settings", "sum(ringcast_credential_reloads_total) > 0"),
        (
            Incident::Blocked,
            "The broker",
            "sum(ringcast_amqp_missing) > 0 and count(ringcast_amqp_reading == 0)",
        ),
    ],
    &[
        (Incident::Killed, "The workers", "sum(up) < 2"),
        (Incident::Restart, "The broker", "sum(ringcast_amqp_connected) == 0"),
    ],
    &[
        (Incident::Failing, "Apple", "sum(ringcast_attempts_total{class=\"transient\"}) > 0"),
        (Incident::Unbound, "The broker", "sum(ringcast_amqp_publishes_total{result=\"returned\"}) > 0"),
    ],
    &[(
        Incident::Untrusted,
        "The settings",
        "sum(ringcast_apns_pools{state=\"unconnected\"}) > 0 and sum(ringcast_apns_dial_failures_total{reason=\"trust\"}) > 0",
    )],
    &[(Incident::Away, "The way to Apple", "sum(ringcast_apns_goaways_total) > 0")],
];
/// Tiles that must not blame their side for an incident. What fills workers up and lets calls expire is not always theirs, and a
/// connection that nobody trusts is not the network's.
const INNOCENT: [(Incident, &str); 4] = [
    (Incident::Unbound, "The workers"),
    (Incident::Untrusted, "The workers"),
    (Incident::Untrusted, "The way to Apple"),
    (Incident::Away, "The workers"),
];
pub(super) const TILES: [&str; 6] =
    ["Apple", "The way to Apple", "The broker", "The settings", "The callers", "The workers"];

/// The board that is asked, and the Prometheus that answers.
pub(super) struct Day<'a> {
    board: &'a Dashboard,
    prometheus: &'a Prometheus,
}

impl<'a> Day<'a> {
    pub(super) fn new(board: &'a Dashboard, prometheus: &'a Prometheus) -> Self {
        Self { board, prometheus }
    }

    /// One incident after the other, in `at_least` that time; without, several at once, in as little time as it takes. It ends
    /// while Apple refuses a credential.
    pub(super) async fn pass(&self, town: &mut Town, at_least: Option<Duration>) {
        let all = DAY.iter().map(|group| group.iter().copied());
        let groups: Vec<Vec<_>> = match at_least {
            None => all.map(Iterator::collect).collect(),
            Some(_) => all.flatten().map(|incident| vec![incident]).collect(),
        };
        // Each is there as long as the calm before it.
        let held = at_least.map_or(HELD, |time| time / (2 * u32::try_from(groups.len()).expect("few") + 3));
        sleep(held).await;
        for tile in TILES {
            self.await_tile(town, tile, |signs| signs == 0.0).await;
        }
        for group in groups {
            let is_now = |other: &Incident| group.iter().any(|(incident, ..)| incident == other);
            let innocent = INNOCENT.iter().filter(|(incident, _)| is_now(incident)).map(|(_, tile)| *tile);
            let innocent: BTreeSet<&str> = innocent.collect();
            for tile in group.iter().map(|(_, tile, _)| *tile).chain(innocent.iter().copied()) {
                self.await_tile(town, tile, |signs| signs == 0.0).await;
            }
            let struck = Instant::now();
            let until = struck + held;
            for (incident, ..) in &group {
                town.strike(*incident).await;
            }
            for (incident, tile, seen) in &group {
                self.await_tile(town, tile, |signs| signs > 0.0).await;
                self.prometheus.await_query(seen, SEEN_WITHIN, |samples| !samples.is_empty()).await;
                println!("{incident:?}: {tile}");
            }
            sleep_until(until).await;
            for tile in innocent {
                self.assert_innocent(tile, struck.elapsed()).await;
            }
            for (incident, ..) in group.iter().rev() {
                town.mend(*incident).await;
            }
            if at_least.is_some() {
                sleep(held).await;
            }
        }
        for tile in TILES {
            self.await_tile(town, tile, |signs| signs == 0.0).await;
        }
        town.strike(Incident::Revoked).await;
        self.await_tile(town, "The settings", |signs| signs > 0.0).await;
        sleep(held).await;
        for tile in TILES.into_iter().filter(|tile| *tile != "The settings") {
            self.await_tile(town, tile, |signs| signs == 0.0).await;
        }
        self.await_tile(town, "The settings", |signs| signs > 0.0).await;
    }

    /// The tile had no sign, all that time.
    async fn assert_innocent(&self, tile: &str, time: Duration) {
        let expr = sent(&self.board.panel(tile).targets()[0], 0);
        for part in expr.split("\n+ ") {
            let most = format!("max_over_time(({part})[{}ms:500ms])", time.as_millis());
            let [Sample { value, .. }] = self.prometheus.query(&most).await[..] else { panic!("no {part}") };
            assert!(value == 0.0, "{tile:?} blames its side: {part}");
        }
    }

    /// Where nobody is scraped, no tile is fine: the workers' has a sign, the others are empty; and no number stands above them.
    pub(super) async fn ask_of_nobody(&self) {
        for panel in
            self.board.panels().filter(|panel| panel.0["options"]["reduceOptions"]["calcs"][0] == "last")
        {
            for target in panel.targets() {
                let expr = sent(target, 0).replace("(ringcast)", "(nobody)");
                let values: Vec<f64> =
                    self.prometheus.query(&expr).await.iter().map(|sample| sample.value).collect();
                let is_so = match (panel.title(), text(&target["legendFormat"])) {
                    ("The workers", _) => values == [1.0],
                    (title, _) if TILES.contains(&title) => values.is_empty(),
                    (_, "serving") => values == [0.0],
                    _ => values.len() == 1 && values[0].is_nan(),
                };
                assert!(is_so, "{:?} is {values:?} of nobody", panel.title());
            }
        }
    }

    async fn await_tile(&self, town: &Town, title: &str, is_so: impl Fn(f64) -> bool) {
        let tile = self.board.panel(title);
        let expr = sent(&tile.targets()[0], 0);
        let until = Instant::now() + SEEN_WITHIN;
        loop {
            let samples = self.prometheus.query(&expr).await;
            if let [Sample { value, .. }] = &samples[..]
                && is_so(*value)
            {
                return;
            }
            if Instant::now() >= until {
                let parts = expr.split("\n+ ");
                let mut signs = Vec::new();
                for part in parts {
                    signs.push((part, self.prometheus.query(part).await.first().map(|sample| sample.value)));
                }
                panic!("the tile {title:?} is {samples:?}, by {signs:#?}; {}", town.log());
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// Asks everything that the board asks, and gives all of it as JSON for the picture. Fails where something found nothing.
    pub(super) async fn ask_all(&self, range: u32) -> Value {
        let mut panels = serde_json::Map::new();
        let mut empty = Vec::new();
        for panel in self.board.panels() {
            let mut targets = Vec::new();
            for target in panel.targets() {
                let series = self.ask(target, range).await;
                if !has_number(&series) {
                    empty.push(format!(
                        "{:?}, query {}: {}",
                        panel.title(),
                        text(&target["refId"]),
                        text(&target["expr"])
                    ));
                }
                targets.push(series.iter().map(written).collect::<Vec<_>>());
            }
            panels.insert(panel.id().to_string(), json!(targets));
        }
        for annotation in self.board.annotations() {
            if self.prometheus.query(&sent(annotation, range)).await.is_empty() {
                empty.push(format!("the annotation {:?}", text(&annotation["name"])));
            }
        }
        for (name, series, label) in self.board.lists() {
            let samples = self.prometheus.query(&sent_over(series, 1, range)).await;
            if !samples.iter().any(|sample| sample.labels.contains_key(label)) {
                empty.push(format!("the variable {name}: no {label} in {series}"));
            }
        }
        assert!(empty.is_empty(), "no data for {}", empty.join("\n"));
        let starts = self.prometheus.query_range("process_start_time_seconds", range).await;
        let starts: BTreeSet<String> =
            starts.iter().flat_map(|series| &series.values).map(|(_, start)| start.to_string()).collect();
        json!({ "panels": panels, "starts": starts })
    }

    /// Asks everything once more with single values of the variables: each query that heeds one finds something with one of its values.
    pub(super) async fn ask_one_by_one(&self, range: u32) {
        let mut empty = Vec::new();
        for (name, series, label) in self.board.lists() {
            let samples = self.prometheus.query(&sent_over(series, 1, range)).await;
            let values: BTreeSet<&String> =
                samples.iter().filter_map(|sample| sample.labels.get(label)).collect();
            let variable = format!("${name}");
            for panel in self.board.panels() {
                let heeding =
                    panel.targets().iter().filter(|target| text(&target["expr"]).contains(&variable));
                for target in heeding {
                    let mut found = false;
                    for value in &values {
                        let mut target = target.clone();
                        target["expr"] = json!(text(&target["expr"]).replace(&variable, value));
                        found = found || has_number(&self.ask(&target, range).await);
                    }
                    if !found {
                        empty.push(format!(
                            "{:?}, query {}, with one {name}",
                            panel.title(),
                            text(&target["refId"])
                        ));
                    }
                }
            }
        }
        assert!(empty.is_empty(), "no data for {}", empty.join("\n"));
    }

    async fn ask(&self, target: &Value, range: u32) -> Vec<Series> {
        let expr = sent(target, range);
        if target["instant"] == true {
            let now = self.prometheus.query("time()").await[0].value;
            let sample = |Sample { labels, value }: Sample| Series { labels, values: vec![(now, value)] };
            return self.prometheus.query(&expr).await.into_iter().map(sample).collect();
        }
        self.prometheus.query_range(&expr, range).await
    }
}

fn has_number(series: &[Series]) -> bool {
    series.iter().flat_map(|series| &series.values).any(|(_, value)| !value.is_nan())
}

/// JSON has no NaN: that is null.
fn written(series: &Series) -> Value {
    let values: Vec<Value> =
        series.values.iter().map(|(at, value)| json!([at, value.is_finite().then_some(value)])).collect();
    json!({ "labels": series.labels, "values": values })
}
