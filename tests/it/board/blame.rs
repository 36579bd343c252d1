//! The tiles, asked of series that are made up: who is blamed, and who only suffers from it.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use super::dashboard::{Dashboard, sent_over, text};
use super::day::TILES;
use crate::place::Place;

/// A series: its family, its labels beside [`JOB`], its values as `promtool` writes them.
type Made = (&'static str, &'static str, &'static str);
/// What is so, the series beside the healthy ones, and the signs in the tenth minute by tile; the others have none.
type Case = (&'static str, &'static [Made], &'static [(&'static str, u32)]);

/// A sample each 15 s; rates are taken over a minute.
const EVERY: &str = "15s";
const INTERVAL: u32 = 59;
const JOB: &str = r#"job="ringcast",instance="ringcast-0""#;
/// Nobody is in trouble, and nothing is full. `prefetch` is the default, of which invites get all but a twentieth.
const HEALTHY: [Made; 12] = [
    ("up", "", "1x40"),
    ("ringcast_build_info", r#"version="1""#, "1x40"),
    ("ringcast_amqp_prefetch", "", "500x40"),
    ("ringcast_amqp_connected", r#"role="consume""#, "1x40"),
    ("ringcast_amqp_oldest_untaken_seconds", "", "0x40"),
    ("ringcast_apns_oldest_unanswered_seconds", r#"environment="production""#, "0.1x40"),
    ("ringcast_apns_streams", r#"environment="production",kind="used""#, "9x40"),
    ("ringcast_apns_dials_total", r#"environment="production",result="connected""#, "0+1x40"),
    ("ringcast_apns_dials_total", r#"environment="production",result="failed""#, "0x40"),
    ("ringcast_apns_dial_failures_total", r#"environment="production",reason="timeout""#, "0x40"),
    ("ringcast_apns_dial_failures_total", r#"environment="production",reason="trust""#, "0x40"),
    ("ringcast_apns_dial_failures_total", r#"environment="sandbox",reason="timeout""#, "0x40"),
];
const FULL: Made = ("ringcast_amqp_unsettled", "", "475x40");
const EXPIRE: Made = ("ringcast_expired_total", r#"stage="slot""#, "0+30x40");
const UNANSWERED: Made = ("ringcast_apns_oldest_unanswered_seconds", r#"environment="production""#, "0+5x40");
const BUSY: Made = ("ringcast_apns_streams", r#"environment="production",kind="used""#, "400x40");
const ANSWERED: &str = r#"environment="production",status="200""#;
const UNCONNECTED: Made = ("ringcast_apns_pools", r#"environment="production",state="unconnected""#, "1x40");
const TIMED_OUT: Made =
    ("ringcast_apns_dial_failures_total", r#"environment="production",reason="timeout""#, "0+9x40");
const UNTRUSTED: Made =
    ("ringcast_apns_dial_failures_total", r#"environment="production",reason="trust""#, "0+9x40");
const NO_OUTCOMES: Made = ("ringcast_amqp_missing", r#"name="ringcast.outcomes""#, "1x40");
const NO_LIVE: Made = ("ringcast_amqp_missing", r#"name="ringcast.live""#, "1x40");
const NO_ENDED: Made = ("ringcast_amqp_missing", r#"name="ringcast.ended""#, "1x40");
const APPLE: &str = "Apple";
const WAY: &str = "The way to Apple";
const BROKER: &str = "The broker";
const SETTINGS: &str = "The settings";
const WORKERS: &str = "The workers";

const CASES: [Case; 23] = [
    ("all is well", &[("ringcast_amqp_unsettled", "", "449x40")], &[]),
    ("nine tenths are held", &[("ringcast_amqp_unsettled", "", "450x40")], &[(WORKERS, 1)]),
    ("as many as may be are held", &[FULL], &[(WORKERS, 1)]),
    ("calls expire", &[EXPIRE], &[(WORKERS, 1)]),
    ("both", &[FULL, EXPIRE], &[(WORKERS, 2)]),
    ("Apple is away", &[FULL, EXPIRE, UNCONNECTED, TIMED_OUT], &[(WAY, 2)]),
    (
        "Apple was away a minute ago",
        &[EXPIRE, ("ringcast_apns_pools", r#"environment="production",state="unconnected""#, "1x35 0x5")],
        &[],
    ),
    (
        "Apple was away long ago",
        &[EXPIRE, ("ringcast_apns_pools", r#"environment="production",state="unconnected""#, "1x20 0x20")],
        &[(WORKERS, 1)],
    ),
    ("no connection is trusted", &[FULL, EXPIRE, UNCONNECTED, UNTRUSTED], &[(SETTINGS, 1)]),
    (
        "a proxy refuses the sandbox, production is away",
        &[
            UNCONNECTED,
            TIMED_OUT,
            ("ringcast_apns_pools", r#"environment="sandbox",state="unconnected""#, "1x40"),
            ("ringcast_apns_dial_failures_total", r#"environment="sandbox",reason="proxy""#, "0+9x40"),
        ],
        &[(WAY, 2), (SETTINGS, 1)],
    ),
    ("Apple does not answer one push", &[FULL, EXPIRE, UNANSWERED], &[(WORKERS, 2)]),
    (
        "Apple answers no push for some seconds",
        &[
            FULL,
            EXPIRE,
            UNANSWERED,
            ("ringcast_apns_streams", r#"environment="production",kind="used""#, "400x40"),
        ],
        &[(APPLE, 1)],
    ),
    (
        "Apple answers all but one push, and workers may hold too little",
        &[FULL, EXPIRE, UNANSWERED, BUSY, ("ringcast_apns_responses_total", ANSWERED, "0+9000x40")],
        &[(WORKERS, 2)],
    ),
    (
        "Apple answered no push two minutes ago",
        &[
            EXPIRE,
            ("ringcast_apns_oldest_unanswered_seconds", r#"environment="production""#, "5x32 0x8"),
            ("ringcast_apns_streams", r#"environment="production",kind="used""#, "400x32 9x8"),
            ("ringcast_apns_responses_total", ANSWERED, "0x32 0+9000x8"),
        ],
        &[],
    ),
    (
        "all streams wait for Apple",
        &[
            FULL,
            UNANSWERED,
            ("ringcast_apns_streams", r#"environment="production",kind="used""#, "40x40"),
            ("ringcast_apns_streams", r#"environment="production",kind="allowed""#, "50x40"),
        ],
        &[(APPLE, 1)],
    ),
    (
        "Apple is slow when few call",
        &[
            ("ringcast_stage_seconds_bucket", r#"stage="apns",le="1.0""#, "0+2x40"),
            ("ringcast_stage_seconds_bucket", r#"stage="apns",le="2.0""#, "0+3x40"),
            ("ringcast_stage_seconds_bucket", r#"stage="apns",le="+Inf""#, "0+3x40"),
        ],
        &[(APPLE, 1)],
    ),
    (
        "Apple fails",
        &[FULL, ("ringcast_apns_responses_total", r#"environment="production",status="503""#, "0+9x40")],
        &[(APPLE, 1)],
    ),
    ("the broker lacks a queue", &[FULL, NO_OUTCOMES], &[(BROKER, 1)]),
    ("the broker lacks what calls ring without", &[FULL, NO_LIVE], &[(BROKER, 1), (WORKERS, 1)]),
    ("the broker lacks what nobody reads", &[FULL, NO_ENDED], &[(WORKERS, 1)]),
    (
        "a handler dies meanwhile",
        &[FULL, NO_OUTCOMES, ("ringcast_handler_panics_total", "", "0+1x40")],
        &[(BROKER, 1), (WORKERS, 1)],
    ),
    (
        "a file was refused and a worker restarted five minutes ago",
        &[
            ("ringcast_credential_reloads_total", r#"result="refused""#, "0x20 1x20"),
            ("process_start_time_seconds", "", "1x20 300x20"),
        ],
        &[(SETTINGS, 1), (WORKERS, 1)],
    ),
    (
        "invites came too often, and others from elsewhere",
        &[
            ("ringcast_barred_total", r#"environment="production",why="delivery_limit""#, "0x20 9x20"),
            ("ringcast_barred_total", r#"environment="sandbox",why="unsaid""#, "0x20 9x20"),
            ("ringcast_devices_total", r#"environment="production",result="failed""#, "0x20 18x20"),
        ],
        &[(BROKER, 1), (WORKERS, 1)],
    ),
];

#[tokio::test]
async fn tiles_blame_who_is_to_blame() {
    let board = Dashboard::read();
    let tiles =
        TILES.map(|tile| (tile, sent_over(text(&board.panel(tile).targets()[0]["expr"]), INTERVAL, 0)));
    let tests: Vec<Value> = CASES
        .iter()
        .map(|(name, series, signs)| {
            let is_said = |made: &&Made| series.iter().any(|said| (said.0, said.1) == (made.0, made.1));
            let healthy = HEALTHY.iter().filter(|made| !is_said(made));
            let series = healthy.chain(*series).map(|(family, labels, values)| {
                json!({ "series": format!("{family}{{{JOB},{labels}}}"), "values": values })
            });
            let expected = tiles.iter().map(|(tile, expr)| {
                let signs = signs.iter().find(|(lit, _)| lit == tile).map_or(0, |(_, signs)| *signs);
                json!({
                    "expr": expr,
                    "eval_time": "10m",
                    "exp_samples": [{ "labels": "{}", "value": signs }],
                })
            });
            json!({
                "name": name,
                "interval": EVERY,
                "input_series": series.collect::<Vec<_>>(),
                "promql_expr_test": expected.collect::<Vec<_>>(),
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
