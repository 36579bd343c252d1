//! The sizing tables of `tests/bench/README.md`: how many cores, workers, connections and broker nodes a load wants, by arithmetic from
//! what the benchmarks measured. The constants here are the one place where those measurements are reckoned with.
//!
//! `tests/bench/sizing` writes the tables into the page; a test here fails where the page has others.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Set, the page gets the tables; `tests/bench/sizing` sets it.
const WRITE: &str = "SIZING_WRITE";

/// Microseconds of a worker's CPU a call with one device, from the broker and back, where calls come one by one (`road`, 3,000 a second
/// and up; more than where they wait, so that a calm hour is not short).
const CALL: u64 = 80;
/// Microseconds of a worker's CPU that each further device of a call adds (`relay`, one device and four).
const DEVICE: u64 = 10;
/// Microseconds of a broker's CPU a call, on one node: the invite in and out, the outcome in, confirmed (`road` prints 39 where calls wait
/// to 120 where they come one by one).
const BROKER: u64 = 130;
/// What a cluster of three spends beside one node, in percent: on the same two cores it carried 20,800 messages a second, one node 36,300.
const CLUSTER_PERCENT: u64 = 175;
/// A quorum queue has a leader and two followers.
const NODES: u64 = 3;
/// Calls a second of one queue of invites in a cluster of three: half of those 20,800 messages, since a call is two, an invite and an
/// outcome. One node alone carried 18,750 (`road`, with a prefetch of 2000).
const QUEUE: u64 = 10_000;
/// Cores of a node of the broker's.
const NODE_CORES: u64 = 8;
/// Milliseconds until Apple answers. Little's law makes streams of it.
const ANSWER: u64 = 40;
/// Milliseconds that an invite is a worker's own: Apple's answer, the confirm, the ack.
const HELD: u64 = 60;
/// Streams that Apple allows on a connection.
const STREAMS: u64 = 1_000;
/// Of a connection's streams, of a core, of a worker's prefetch, at most so much is for an ordinary day, in percent: one of two may go,
/// and Apple may take twice as long.
const FULL: u64 = 50;
/// `amqp.prefetch`, of which a twentieth is for what the broker gave up on; connections of a worker at least.
const PREFETCH: u64 = 2_000;
const FOR_INVITES: u64 = PREFETCH * 95 / 100;
const CONNECTIONS: u64 = 2;
/// Workers at least: one may go at any time.
const WORKERS: u64 = 2;

/// Calls a second of the tables.
const LOADS: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
const DEVICES: [u64; 2] = [1, 3];

/// What a load wants.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    /// Of the workers, altogether, in tenths.
    cores: u64,
    workers: u64,
    /// Of all workers to Apple.
    connections: u64,
    /// Requests that Apple has not answered.
    streams: u64,
    /// Queues of invites.
    queues: u64,
    /// Of the brokers, altogether, in tenths.
    broker_cores: u64,
    nodes: u64,
}

fn size(calls: u64, devices: u64) -> Size {
    let cpu = CALL + DEVICE * (devices - 1);
    let workers_for_cpu = (calls * cpu).div_ceil(1_000_000 * FULL / 100);
    let workers_for_places = (calls * HELD / 1000).div_ceil(FOR_INVITES * FULL / 100);
    let workers = workers_for_cpu.max(workers_for_places).max(WORKERS);
    let streams = calls * devices * ANSWER / 1000;
    let connections = streams.div_ceil(workers).div_ceil(STREAMS * FULL / 100).max(CONNECTIONS) * workers;
    let broker = calls * BROKER * CLUSTER_PERCENT / 100;
    let nodes = broker.div_ceil(1_000_000 * NODES * NODE_CORES * FULL / 100) * NODES;
    Size {
        cores: (calls * cpu).div_ceil(100_000),
        workers,
        connections,
        streams,
        queues: calls.div_ceil(QUEUE),
        broker_cores: broker.div_ceil(100_000),
        nodes,
    }
}

/// Each by the name that stands in the page.
fn tables() -> [(&'static str, String); 2] {
    [("constants", constants()), ("sizing", sizing())]
}

fn constants() -> String {
    let rows = [
        ("a worker's CPU a call with one device", format!("{CALL} µs"), "`road`"),
        ("each further device", format!("{DEVICE} µs"), "`relay`, one device and four"),
        ("a broker's CPU a call", format!("{BROKER} µs"), "`road`, the column *broker*: 39 to 120"),
        (
            "a cluster of three's, beside it",
            format!("{CLUSTER_PERCENT} %"),
            "on the same two cores 20,800 messages a second, one node 36,300 (RabbitMQ 3.10.8)",
        ),
        (
            "calls a second of one queue",
            thousands(QUEUE),
            "half of a cluster's 20,800 messages: a call is two. One node alone: 18,750, `road` with a prefetch of 2000",
        ),
        ("Apple's answer", format!("{ANSWER} ms"), "assumed; `ringcast_stage_seconds`, `apns`, tells yours"),
        ("an invite is a worker's own for", format!("{HELD} ms"), "`road`: 40 of them Apple's"),
        ("streams of a connection", thousands(STREAMS), "what Apple announces"),
        (
            "of a core, of streams and of `amqp.prefetch` are used",
            format!("{FULL} %"),
            "chosen: one of two may go",
        ),
        ("`amqp.prefetch`", format!("{PREFETCH}, {FOR_INVITES} of them for invites"), "chosen"),
        ("cores of a broker's node", NODE_CORES.to_string(), "chosen"),
    ];
    let mut text = "| | | from |\n|---|---|---|\n".to_owned();
    for (name, value, from) in rows {
        row(&mut text, &[name.to_owned(), value, from.to_owned()]);
    }
    text
}

fn sizing() -> String {
    let mut text = "| calls a second | devices | workers' cores | workers | in flight at Apple | connections | queues | brokers' cores | nodes |\n\
                    |---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for calls in LOADS {
        for devices in DEVICES {
            let size = size(calls, devices);
            row(
                &mut text,
                &[
                    thousands(calls),
                    devices.to_string(),
                    tenths(size.cores),
                    thousands(size.workers),
                    thousands(size.streams),
                    thousands(size.connections),
                    thousands(size.queues),
                    tenths(size.broker_cores),
                    thousands(size.nodes),
                ],
            );
        }
    }
    text
}

fn row(text: &mut String, cells: &[String]) {
    // A String takes everything.
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn tenths(value: u64) -> String {
    if value >= 100 || value.is_multiple_of(10) {
        thousands(value.div_ceil(10))
    } else {
        format!("{}.{}", value / 10, value % 10)
    }
}

fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The page with another table between its two marks.
fn with(text: &str, name: &str, table: &str) -> String {
    let begin = format!("<!-- {name} -->\n");
    let end = format!("<!-- end of {name} -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("the page has no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("the page has no {end}"));
    format!("{before}{begin}\n{table}\n{end}{after}")
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/README.md")
}

#[test]
fn the_page_holds_what_the_arithmetic_says() {
    let text = fs::read_to_string(page()).expect("the page can be read");
    let expected = tables().iter().fold(text.clone(), |text, (name, table)| with(&text, name, table));
    if std::env::var_os(WRITE).is_some() {
        fs::write(page(), &expected).expect("the page can be written");
        return;
    }
    let different: Vec<_> = text.lines().zip(expected.lines()).filter(|(is, shall)| is != shall).collect();
    assert!(text == expected, "run tests/bench/sizing. Is and shall be: {different:#?}");
}

#[test]
fn a_load_wants_what_its_largest_need_is() {
    // A calm one: two workers for safety, each with its two connections, and three nodes for their copies.
    let calm = size(100, 1);
    assert_eq!(
        (calm.workers, calm.connections, calm.queues, calm.nodes),
        (WORKERS, WORKERS * CONNECTIONS, 1, NODES)
    );
    for calls in LOADS {
        for devices in DEVICES {
            let size = size(calls, devices);
            let cpu = calls * (CALL + DEVICE * (devices - 1));
            assert!(size.workers * 1_000_000 * FULL / 100 >= cpu, "{calls} of {devices}: cores");
            assert!(
                size.workers * FOR_INVITES * FULL / 100 >= calls * HELD / 1000,
                "{calls} of {devices}: places"
            );
            assert!(size.connections * STREAMS * FULL / 100 >= size.streams, "{calls} of {devices}: streams");
            assert!(
                size.connections.is_multiple_of(size.workers),
                "{calls} of {devices}: a whole number each"
            );
            assert!(size.queues * QUEUE >= calls, "{calls} of {devices}: queues");
            assert!(
                size.nodes * NODE_CORES * FULL * 10 >= size.broker_cores * 100,
                "{calls} of {devices}: nodes"
            );
            assert!(size.nodes.is_multiple_of(NODES), "{calls} of {devices}: whole clusters");
        }
    }
}

#[test]
fn numbers_are_written_for_people() {
    assert_eq!([7, 1_000, 12_345, 1_000_000].map(thousands), ["7", "1,000", "12,345", "1,000,000"]);
    assert_eq!([5, 10, 12, 100, 1_001].map(tenths), ["0.5", "1", "1.2", "10", "101"]);
}
