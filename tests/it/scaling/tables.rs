//! The tables of SCALING.md.

use std::fmt::Write as _;

use super::day::{Told, pass};
use super::{BOTH, Behavior, Chart, FOR_INVITES, Incident, Load, Policy, READY, Scaler, told};

/// What the page reckons with: seconds of an invite while Apple is slow.
const SLOW: f64 = 2.0;
/// Calls a second that one queue of one broker carries: see the page.
const BROKER: f64 = 10_000.0;

/// Each by the name that stands in the page.
pub(super) fn all() -> Vec<(&'static str, String)> {
    vec![
        ("numbers", numbers()),
        ("workers", workers()),
        ("sizes", sizes()),
        ("hours", hours()),
        ("incidents", incidents()),
        ("slow", slow()),
        ("choices", choices()),
    ]
}

/// The values that the replay goes by.
fn numbers() -> String {
    let Chart {
        min,
        max,
        ready_per_worker,
        occupancy_percent,
        failure_threshold,
        fallback,
        behavior,
        scrape,
    } = Chart::default();
    let policy = |policy: &Policy| match policy {
        Policy::Pods(pods, seconds) => format!("{pods} in {seconds} s"),
        Policy::Percent(percent, seconds) => format!("{percent} % in {seconds} s"),
    };
    let policies = |policies: &[Policy]| policies.iter().map(policy).collect::<Vec<_>>().join(" or ");
    let mut table = head(&["value", "is"]);
    for (value, is) in [
        ("`autoscaling.min`", min.to_string()),
        ("`autoscaling.max`", max.to_string()),
        (
            "`autoscaling.behavior.scaleUp`",
            format!("{}, whichever is more; no window", policies(&behavior.up)),
        ),
        (
            "`autoscaling.behavior.scaleDown`",
            format!("{}; a window of {} s", policies(&behavior.down), behavior.down_window),
        ),
        ("`autoscaling.keda.readyPerWorker`", ready_per_worker.to_string()),
        ("`autoscaling.keda.prometheus.occupancyPercent`", occupancy_percent.to_string()),
        (
            "`autoscaling.keda.fallback`",
            format!("after {failure_threshold} failures {fallback}, or as many as there are"),
        ),
        ("`monitoring.podMonitor.interval`", format!("{scrape} s")),
    ] {
        row(&mut table, &[value.to_owned(), is]);
    }
    table
}

/// Which load wants how many, by Little's law.
fn workers() -> String {
    let mut table = head(&[
        "calls/s",
        "held, 60 ms each",
        "workers at 30 %",
        "held, 2 s each",
        "workers that hold it, prefetch 500",
        "prefetch 2000",
        "what bounds first",
    ]);
    let chart = Chart::default();
    for peak in [50.0, 500.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0] {
        let load = Load::new(peak);
        let held = peak * load.takes;
        let share = f64::from(chart.occupancy_percent) / 100.0;
        let at_ease = (held / (share * f64::from(load.prefetch))).ceil().max(f64::from(chart.min));
        let hold = |prefetch: f64| (peak * SLOW / (prefetch * FOR_INVITES)).ceil().max(f64::from(chart.min));
        let bound = if peak > BROKER {
            format!("one queue of one broker: {} of them", count((peak / BROKER).ceil()))
        } else if hold(f64::from(load.prefetch)) > f64::from(chart.max) {
            "prefetch × max, when Apple is slow".to_owned()
        } else {
            "nothing".to_owned()
        };
        row(
            &mut table,
            &[
                count(peak),
                count(held),
                count(at_ease),
                count(peak * SLOW),
                count(hold(500.0)),
                count(hold(2000.0)),
                bound,
            ],
        );
    }
    table
}

fn sizes() -> String {
    let mut table = head(&[
        "busiest calls/s",
        "calls of the day",
        "workers",
        "changes",
        "worker-hours",
        "waited",
        "late",
    ]);
    for peak in [60.0, 600.0, 6000.0, 20_000.0, 40_000.0] {
        let day = told(&Load::new(peak), BOTH, None);
        row(
            &mut table,
            &[
                count(peak),
                millions(day.calls),
                span(&day),
                day.changes.to_string(),
                count(day.worker_hours),
                calls(day.waited),
                calls(day.late),
            ],
        );
    }
    table
}

/// The workers over a day, hour by hour.
fn hours() -> String {
    let load = Load::new(20_000.0);
    let (both, ready) = (told(&load, BOTH, None), told(&load, READY, None));
    let mut chart = String::from("```text\nhour  calls/s  both triggers          the queue's alone\n");
    for (hour, (with, without)) in both.hours.iter().zip(&ready.hours).enumerate() {
        let bar = |(_, fewest, most): &(f64, u32, u32)| {
            let bar = "█".repeat(at(*fewest)) + &"░".repeat(at(most - fewest));
            let numbers = if fewest == most { fewest.to_string() } else { format!("{fewest}-{most}") };
            format!("{bar}{} {numbers:<5}", " ".repeat(12 - at(*most)))
        };
        let line = format!("{hour:02}    {:>7}  {}     {}", count(with.0), bar(with), bar(without));
        writeln!(chart, "{}", line.trim_end()).expect("a text takes everything");
    }
    chart + "```\n"
}

fn incidents() -> String {
    let mut table =
        head(&["busiest calls/s", "incident", "both triggers", "the queue's alone", "always 2", "always 10"]);
    for peak in [6000.0, 20_000.0] {
        for incident in [None].into_iter().chain(Incident::ALL.map(Some)) {
            let load = Load::new(peak);
            let what = |scaler| outcome(&told(&load, scaler, incident));
            row(
                &mut table,
                &[
                    count(peak),
                    incident.map_or("none", name).to_owned(),
                    what(BOTH),
                    what(READY),
                    what(Scaler::Fixed(2)),
                    what(Scaler::Fixed(10)),
                ],
            );
        }
    }
    table
}

fn slow() -> String {
    let mut table = head(&[
        "busiest calls/s",
        "`amqp.prefetch`",
        "`occupancyPercent`",
        "`max`",
        "both triggers",
        "always `max`",
    ]);
    for (peak, prefetch, occupancy_percent, max) in [
        (2000.0, 500, 30, 10),
        (6000.0, 500, 30, 10),
        (6000.0, 500, 30, 30),
        (6000.0, 2000, 8, 10),
        (20_000.0, 2000, 8, 10),
        (20_000.0, 2000, 8, 24),
    ] {
        let load = Load { prefetch, ..Load::new(peak) };
        let chart = Chart { max, occupancy_percent, ..Chart::default() };
        let what = |scaler| outcome(&pass(&load, scaler, &chart, Some(Incident::AppleSlow)));
        let numbers = [prefetch.to_string(), occupancy_percent.to_string(), max.to_string()];
        row(&mut table, &[&[count(peak)], &numbers[..], &[what(BOTH), what(Scaler::Fixed(max))]].concat());
    }
    table
}

/// Each value against others, all else as it is.
fn choices() -> String {
    let mut table = head(&[
        "with",
        "worker-hours and changes, 20,000/s",
        "burst, 6,000/s",
        "burst, 20,000/s",
        "Apple slow, 2,000/s",
        "KEDA away, 20,000/s",
    ]);
    let chart = Chart::default();
    let behaving = |up: &[Policy], down: Policy, down_window| Chart {
        behavior: Behavior { up: up.to_vec(), down: vec![down], down_window },
        ..Chart::default()
    };
    let (up, down) = (&chart.behavior.up[..], chart.behavior.down[0]);
    let usual = Load::new(0.0);
    let variations = [
        ("**the chart's values**", chart.clone(), usual),
        ("`occupancyPercent` 15", Chart { occupancy_percent: 15, ..chart.clone() }, usual),
        ("`occupancyPercent` 50", Chart { occupancy_percent: 50, ..chart.clone() }, usual),
        ("`occupancyPercent` 80", Chart { occupancy_percent: 80, ..chart.clone() }, usual),
        ("`min` 4", Chart { min: 4, ..chart.clone() }, usual),
        ("`readyPerWorker` 5000", Chart { ready_per_worker: 5000, ..chart.clone() }, usual),
        ("up: 100 % or 4 in 15 s (the HPA's own)", behaving(&[up[0], Policy::Pods(4, 15)], down, 300), usual),
        ("up: 1 in 60 s", behaving(&[Policy::Pods(1, 60)], down, 300), usual),
        ("down: 100 % in 15 s (the HPA's own)", behaving(up, Policy::Percent(100, 15), 300), usual),
        ("down: no window", behaving(up, Policy::Percent(100, 15), 0), usual),
        ("workers ready after 60 s", chart.clone(), Load { start: 60, ..usual }),
        ("a quarter of a core for each", chart.clone(), Load { pace: 2500.0, ..usual }),
    ];
    for (name, chart, load) in variations {
        let day = |peak, incident| pass(&Load { peak, ..load }, BOTH, &chart, incident);
        let plain = day(20_000.0, None);
        row(
            &mut table,
            &[
                name.to_owned(),
                format!("{}, {}", count(plain.worker_hours), plain.changes),
                outcome(&day(6000.0, Some(Incident::Burst))),
                outcome(&day(20_000.0, Some(Incident::Burst))),
                outcome(&day(2000.0, Some(Incident::AppleSlow))),
                outcome(&day(20_000.0, Some(Incident::KedaAway))),
            ],
        );
    }
    table
}

fn name(incident: Incident) -> &'static str {
    match incident {
        Incident::Burst => "burst",
        Incident::AppleSlow => "Apple slow",
        Incident::BrokerRestart => "broker away",
        Incident::PrometheusAway => "Prometheus away",
        Incident::KedaAway => "KEDA away",
    }
}

/// How many were late, or else how long the longest wait was; and what it cost.
fn outcome(day: &Told) -> String {
    let what = if !day.all_rang() {
        format!("**{} late**", calls(day.late))
    } else if !day.all_rang_at_once() {
        format!("{} waited, {:.0} s at most", calls(day.waited), day.longest)
    } else {
        "–".to_owned()
    };
    format!("{what}; {}", span(day))
}

fn span(day: &Told) -> String {
    if day.fewest == day.most { day.most.to_string() } else { format!("{} to {}", day.fewest, day.most) }
}

fn calls(number: f64) -> String {
    if number < 0.5 {
        "0".to_owned()
    } else if number < 1e6 {
        format!("{},000", count((number / 1000.0).ceil()))
    } else {
        millions(number)
    }
}

fn millions(number: f64) -> String {
    format!("{:.1} million", number / 1e6)
}

/// A number as people write it.
fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

fn at(number: u32) -> usize {
    usize::try_from(number).expect("a few workers")
}

fn head(columns: &[&str]) -> String {
    let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
    let mut table = String::new();
    row(&mut table, &columns);
    row(&mut table, &vec!["---".to_owned(); columns.len()]);
    table
}

fn row(table: &mut String, cells: &[String]) {
    writeln!(table, "| {} |", cells.join(" | ")).expect("a text takes everything");
}

#[test]
fn numbers_are_written_as_people_do() {
    assert_eq!([count(7.0), count(1234.4), count(1e6)], ["7", "1,234", "1,000,000"]);
    assert_eq!(
        [calls(0.0), calls(1.0), calls(71_628.0), calls(8.63e6)],
        ["0", "1,000", "72,000", "8.6 million"]
    );
}
