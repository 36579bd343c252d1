//! The dashboard (`charts/ringcast/dashboard.json`): its shape, the families that it shows, and every query of it, asked of
//! a real Prometheus that scraped real workers while much went wrong.
//!
//! `BOARD_SECONDS` makes the day longer, `BOARD_SERIES` names a file for what the queries found: `tests/picture` draws it.

mod blame;
mod callers;
mod dashboard;
mod day;
mod picture;
mod shape;
mod town;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics;
use crate::prometheus::Prometheus;

use dashboard::{Dashboard, families, selectors};
use day::Day;
use town::Town;

const SCRAPED_WITHIN: Duration = Duration::from_mins(1);
/// Families of the page that the board leaves out, and why.
const LEFT_OUT: [(&str, &str); 3] = [
    ("ringcast_log_lines_dropped_total", "no call depends on it"),
    ("process_virtual_memory_bytes", "nothing to act on, as its row says"),
    ("process_threads", "nothing to act on, as its row says"),
];
/// Of Prometheus itself.
const NOT_OURS: [&str; 1] = ["up"];
/// Labels that Prometheus gives to all series of a target.
const OF_THE_SCRAPE: [&str; 3] = ["namespace", "job", "instance"];

#[test]
fn the_board_shows_the_families_of_the_page() {
    let board = Dashboard::read();
    let page = metrics::families();
    let page: BTreeSet<&str> = page.iter().map(String::as_str).collect();
    let left_out: BTreeSet<&str> = LEFT_OUT.iter().map(|(family, _)| *family).collect();
    let mut shown = BTreeSet::new();
    for (place, expr) in board.expressions() {
        for family in families(expr).into_iter().filter(|family| !NOT_OURS.contains(family)) {
            assert!(page.contains(family), "{place}: {family} is not in src/metrics/README.md");
            shown.insert(family);
        }
    }
    let missing: Vec<_> = page.difference(&shown).filter(|family| !left_out.contains(**family)).collect();
    assert!(missing.is_empty(), "neither on the board nor left out for a reason: {missing:?}");
    let both: Vec<_> = left_out.intersection(&shown).collect();
    assert!(both.is_empty(), "on the board, and on the list of those that are left out: {both:?}");
    assert!(left_out.is_subset(&page), "left out, and not on the page");
}

#[test]
fn selectors_name_labels_and_values_of_the_page() {
    let page = metrics::labels();
    let mut mistakes = BTreeSet::new();
    for (place, expr) in Dashboard::read().expressions() {
        for (family, matchers) in selectors(expr) {
            for (label, value) in matchers.into_iter().filter(|(label, _)| !OF_THE_SCRAPE.contains(label)) {
                let Some(values) = page.get(family).and_then(|labels| labels.get(label)) else {
                    mistakes.insert(format!("{place}: {family} has no label {label}"));
                    continue;
                };
                // Where the page describes values in prose, any may come.
                let Some(values) = values else { continue };
                let is_plain = |word: &&str| !word.contains(['$', '.']);
                for word in value.split('|').filter(is_plain).filter(|word| !values.contains(*word)) {
                    mistakes.insert(format!("{place}: {label} of {family} is never {word:?}"));
                }
            }
        }
    }
    assert!(mistakes.is_empty(), "{mistakes:#?}");
}

#[tokio::test]
async fn every_query_finds_data_and_every_tile_its_incident() {
    let seconds: Option<u64> = std::env::var("BOARD_SECONDS").ok().map(|text| text.parse().expect("seconds"));
    let mut town = Town::start().await;
    let prometheus = Prometheus::start_in("calls", &town.targets()).await;
    prometheus.await_scraped(2, SCRAPED_WITHIN).await;
    let began = Instant::now();
    let over = tokio::sync::watch::Sender::new(false);
    let callers = town.callers.clone();
    let calling = tokio::spawn(callers.call(town.place.as_ref().to_owned(), town.uri(), over.subscribe()));
    let board = Dashboard::read();
    let day = Day::new(&board, &prometheus);
    day.pass(&mut town, seconds.map(Duration::from_secs)).await;
    let range = u32::try_from(began.elapsed().as_secs()).expect("no test is that long");

    day.ask_of_nobody().await;
    let found = day.ask_all(range).await;
    day.ask_one_by_one(range).await;
    over.send_replace(true);
    calling.await.expect("the callers do not fail");
    if let Some(file) = std::env::var_os("BOARD_SERIES") {
        std::fs::write(&file, found.to_string()).expect("BOARD_SERIES can be written");
    }
}
