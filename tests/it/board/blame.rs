//! The tile of the workers, asked of series that are made up: what is theirs, and what they only suffer from.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use super::dashboard::{Dashboard, sent_over};
use crate::place::Place;

/// A series: its family, its labels beside [`JOB`], its values as `promtool` writes them.
type Made = (&'static str, &'static str, &'static str);
/// What is so, the series beside the healthy ones, and the signs in the tenth minute.
type Case = (&'static str, &'static [Made], u32);

/// A sample each 15 s; rates are taken over a minute.
const EVERY: &str = "15s";
const INTERVAL: u32 = 59;
const JOB: &str = r#"job="ringcast",instance="ringcast-0""#;
/// Nobody is in trouble, and nothing is full. `prefetch` is the default, of which invites get all but a twentieth.
const HEALTHY: [Made; 8] = [
    ("up", "", "1x40"),
    ("ringcast_build_info", r#"version="1""#, "1x40"),
    ("ringcast_amqp_prefetch", "", "500x40"),
    ("ringcast_amqp_connected", r#"role="consume""#, "1x40"),
    ("ringcast_amqp_oldest_untaken_seconds", "", "0x40"),
    ("ringcast_apns_oldest_unanswered_seconds", r#"environment="production""#, "0.1x40"),
    ("ringcast_apns_dials_total", r#"environment="production",result="connected""#, "0+1x40"),
    ("ringcast_apns_dials_total", r#"environment="production",result="failed""#, "0x40"),
];
const FULL: Made = ("ringcast_amqp_unsettled", "", "475x40");
const EXPIRE: Made = ("ringcast_expired_total", r#"stage="slot""#, "0+30x40");

const CASES: [Case; 11] = [
    ("all is well", &[("ringcast_amqp_unsettled", "", "449x40")], 0),
    ("nine tenths are held", &[("ringcast_amqp_unsettled", "", "450x40")], 1),
    ("as many as may be are held", &[FULL], 1),
    ("calls expire", &[EXPIRE], 1),
    ("both", &[FULL, EXPIRE], 2),
    ("Apple is away", &[FULL, EXPIRE, ("ringcast_apns_pools", r#"state="unconnected""#, "1x40")], 0),
    (
        "Apple was away a minute ago",
        &[EXPIRE, ("ringcast_apns_pools", r#"state="unconnected""#, "1x35 0x5")],
        0,
    ),
    ("Apple was away long ago", &[EXPIRE, ("ringcast_apns_pools", r#"state="unconnected""#, "1x20 0x20")], 1),
    ("Apple fails", &[FULL, ("ringcast_apns_responses_total", r#"status="503""#, "0+9x40")], 0),
    (
        "the broker lacks a queue",
        &[FULL, ("ringcast_amqp_missing", r#"name="ringcast.outcomes""#, "1x40")],
        0,
    ),
    (
        "a handler dies meanwhile",
        &[
            FULL,
            ("ringcast_amqp_missing", r#"name="ringcast.outcomes""#, "1x40"),
            ("ringcast_handler_panics_total", "", "0+1x40"),
        ],
        1,
    ),
];

#[tokio::test]
async fn workers_are_blamed_for_what_nobody_else_explains() {
    let board = Dashboard::read();
    let expr = board.panel("The workers").targets()[0]["expr"].as_str().expect("a query").to_owned();
    let expr = sent_over(&expr, INTERVAL, 0);
    let tests: Vec<Value> = CASES
        .iter()
        .map(|(name, series, signs)| {
            let series = HEALTHY.iter().chain(*series).map(|(family, labels, values)| {
                json!({ "series": format!("{family}{{{JOB},{labels}}}"), "values": values })
            });
            json!({
                "name": name,
                "interval": EVERY,
                "input_series": series.collect::<Vec<_>>(),
                "promql_expr_test": [{
                    "expr": expr,
                    "eval_time": "10m",
                    "exp_samples": [{ "labels": "{}", "value": signs }],
                }],
            })
        })
        .collect();
    let place = Place::new("blame");
    // JSON is YAML, too.
    let file = place.write("tests.yml", json!({ "evaluation_interval": EVERY, "tests": tests }).to_string());
    let output = Command::new("promtool")
        .args(["test", "rules"])
        .arg(&file)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|error| panic!("promtool does not start: {error}; Debian's package is `prometheus`"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}
