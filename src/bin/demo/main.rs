//! The main job, shown within seconds, with nothing installed: a small town's calls go through the real worker, over a real
//! broker where there is one, to a simulated Apple behind real TLS and HTTP/2; then what happened is compared with what had
//! to happen.
//!
//! It takes no arguments. `AMQP_URL` names a broker to use; else an installed RabbitMQ is started as a throw-away; else the
//! queue is one in this process. Exit codes: 0 all is right, 1 something is not, 130 it was interrupted. Nothing stays
//! behind.

mod broker;
mod road;
mod show;
mod stage;
mod table;
mod town;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use broker::Broker;
use ringcast::app::{self, Signals};
use ringcast::clock::Clock;
use ringcast::config::{Config, describe_uri};
use ringcast::domain::timestamp::Timestamp;
use road::{Arrival, Harvest, Kind, Names, Post, Road, Tray};
use show::{Show, Tone};
use stage::{Apple, Folder, Running};
use table::{Evidence, Table};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing_subscriber::EnvFilter;

/// The pause between two calls.
const PACE: Duration = Duration::from_millis(12);
/// How long an installed RabbitMQ may take to start; three seconds are usual.
const BROKER_WITHIN: Duration = Duration::from_secs(30);
/// How long all of it may take, from the first call on.
const SHOWN_WITHIN: Duration = Duration::from_secs(40);
/// How long nothing must come after the worker has stopped, so that nothing more will.
const QUIET: Duration = Duration::from_millis(300);

/// How much of a broker's last words is shown.
const WHY_LINES: usize = 6;

/// Malformed invites are part of the show: the worker's warning of each is not.
/// The client library logs what reaches us as values.
const LOG: &str = "warn,ringcast::worker::handle=error,lapin=off";

const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        eprintln!("demo takes no arguments; AMQP_URL names a broker to use");
        return ExitCode::from(64);
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(EnvFilter::new(LOG)).init();
    match app::block_on(perform()) {
        Ok(Ok(ending)) => ending,
        Ok(Err(sentence)) => {
            eprintln!("demo: {sentence}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is to be put away, however the story ends.
#[derive(Default)]
struct Props {
    worker: Option<Running>,
    road: Option<Road>,
    apple: Option<Apple>,
    broker: Option<Broker>,
    folder: Option<Folder>,
}

impl Props {
    async fn put_away(mut self) {
        if let Some(worker) = self.worker.take()
            && let Err(sentence) = worker.stop().await
        {
            eprintln!("demo: {sentence}");
        }
        if let Some(road) = self.road.take() {
            road.close().await;
        }
        if let Some(apple) = self.apple.take() {
            apple.stop().await;
        }
        drop(self.broker.take());
        drop(self.folder.take());
    }
}

async fn perform() -> Result<ExitCode, String> {
    let mut signals = Signals::listen().map_err(|error| format!("no signals: {error}"))?;
    let mut props = Props::default();
    let told = tokio::select! {
        biased;
        () = signals.next() => None,
        told = tell(&mut props) => Some(told),
    };
    props.put_away().await;
    match told {
        None => {
            eprintln!("demo: interrupted; everything is stopped and removed");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Some(told) => told.map(|right| if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}

/// The story. True: all is right. An error is a sentence.
async fn tell(props: &mut Props) -> Result<bool, String> {
    let mut show = Show::new();
    let clock = Clock::system();
    let now = || Timestamp::from_unix_ms(clock.unix_ms());
    let run = format!("demo-{}-{}", std::process::id(), clock.unix_ms());
    let calls = town::draw();

    let title = show
        .paint(Tone::Loud, "Ringcast: call invites from RabbitMQ, VoIP pushes to APNs, one outcome for each");
    show.line(&title);
    let folder = Folder::make(&run).map_err(|error| format!("no temporary folder: {error}"))?;
    let folder = props.folder.insert(folder);
    let apple = props.apple.insert(Apple::start(folder).await?);
    town::prepare(&apple.simulator, &calls, now());
    show.line(&format!("  apple    simulated, TLS and HTTP/2 on https://{}", apple.address()));

    let place = find_broker(&mut show, &mut props.broker).await?;
    let broker = place.as_ref().map(|(uri, names)| (uri.as_str(), names));
    let (file, config) = stage::configure(folder, apple.address(), broker)?;
    show_configuration(&mut show, &file, &config);
    let road = if let Some((_, names)) = &place {
        let road =
            props.road.insert(Road::Post(Box::new(Post::open(&config.amqp, names.clone(), &run).await?)));
        props.worker = Some(Running::serve(config).map_err(|error| format!("no thread: {error}"))?);
        road
    } else {
        let (worker, ends) = Running::pipe(config).map_err(|error| format!("no thread: {error}"))?;
        props.worker = Some(worker);
        props.road.insert(Road::Tray(Tray::start(ends)))
    };
    let worker = props.worker.as_mut().ok_or("no worker")?;

    show.line("");
    show.begin();
    let mut harvest = Harvest::default();
    let passed = pass(&calls, now, road, worker, &mut show, &mut harvest).await;
    show.end(harvest.outcomes.len());
    if let Err(sentence) = passed {
        let sentence = show.paint(Tone::Bad, &sentence);
        show.line(&sentence);
    }
    if let Some(worker) = props.worker.take() {
        worker.stop().await?;
    }
    // The worker has stopped, so that whatever it published is on its way already.
    while let Ok(arrival) = timeout(QUIET, road.next()).await {
        let Ok(arrival) = arrival else { break };
        harvest.add(arrival);
    }
    let left = road.left().await?;
    let journal = apple.simulator.journal().records();
    let aside = if place.is_some() { "in ringcast.dead" } else { "set aside" };
    let table = Table::of(&Evidence { calls: &calls, harvest: &harvest, journal: &journal, aside, left });
    show.line("");
    table.show(&mut show);
    conclude(&mut show, table.is_right());
    Ok(table.is_right())
}

/// Which broker, as the environment and the machine have it, and under which names. `None`: the queue in this process.
async fn find_broker(
    show: &mut Show,
    throw_away: &mut Option<Broker>,
) -> Result<Option<(String, Names)>, String> {
    if let Ok(uri) = std::env::var("AMQP_URL")
        && !uri.is_empty()
    {
        let shown = describe_uri(&uri);
        show.line(&format!("  broker   AMQP_URL: {shown}"));
        show.line("           the contract's queues and exchanges are declared there; the demo's messages go through");
        show.line("           ringcast.demo.*, removed at the end, so that nobody else's calls are touched");
        return Ok(Some((uri, Names::own())));
    }
    show.line("  broker   looking for an installed RabbitMQ, and starting it as a throw-away …");
    let why = match timeout(BROKER_WITHIN, Broker::start()).await {
        Ok(Ok(Some(broker))) => {
            let broker = throw_away.insert(broker);
            show.line(&format!("  broker   RabbitMQ, a throw-away on 127.0.0.1:{}", broker.port()));
            return Ok(Some((broker.uri(), Names::usual())));
        }
        Ok(Ok(None)) => {
            show.line("  broker   none is installed: the queue is one in this process");
            show.line(
                "           with RabbitMQ it would be real: apt-get install rabbitmq-server, or set AMQP_URL",
            );
            return Ok(None);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it was not ready within {} s", BROKER_WITHIN.as_secs()),
    };
    show.line("  broker   RabbitMQ is installed and does not start:");
    let lines: Vec<_> = why.lines().collect();
    for line in &lines[lines.len().saturating_sub(WHY_LINES)..] {
        show.line(&format!("             {line}"));
    }
    show.line("           so the queue is one in this process; AMQP_URL would name another broker");
    Ok(None)
}

fn show_configuration(show: &mut Show, file: &Path, config: &Config) {
    let admin = config.admin.listen;
    show.line(&format!("  worker   configured by {} · http://{admin}/metrics", file.display()));
}

/// Publishes the calls and shows what becomes of them, until everything that must come back has. The error is a sentence.
async fn pass(
    calls: &[town::Call],
    now: impl Fn() -> Timestamp,
    road: &mut Road,
    worker: &mut Running,
    show: &mut Show,
    harvest: &mut Harvest,
) -> Result<(), String> {
    let tokens: BTreeSet<_> = calls
        .iter()
        .flat_map(|call| &call.phones)
        .filter(|phone| matches!(phone.result, "invalid_token" | "suspect_token"))
        .map(|phone| &phone.token)
        .collect();
    let malformed = calls.iter().filter(|call| call.result() == "malformed").count();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let until = Instant::now() + SHOWN_WITHIN;
    let mut next = calls.iter();
    let mut calling = true;
    while calling
        || harvest.outcomes.len() < calls.len()
        || harvest.token_events.len() < tokens.len()
        || harvest.originals.len() < malformed
    {
        // Biased: what has come back is shown before new calls are made.
        tokio::select! {
            biased;
            arrival = road.next() => {
                let arrival = arrival?;
                show_arrival(calls, &arrival, show);
                harvest.add(arrival);
            }
            sentence = worker.failure() => return Err(sentence),
            _ = pace.tick(), if calling => if let Some(call) = next.next() {
                road.publish(call.number, call.body(now())).await?;
            } else {
                calling = false;
                road.confirm().await?;
            },
            () = sleep_until(until) => {
                return Err(format!("after {} s something is still missing", SHOWN_WITHIN.as_secs()));
            }
        }
    }
    Ok(())
}

fn show_arrival(calls: &[town::Call], arrival: &Arrival, show: &mut Show) {
    if arrival.kind == Kind::Outcome
        && let Some(call) = calls.get(arrival.number)
    {
        show.outcome(call, &serde_json::from_slice(&arrival.body).unwrap_or_default());
    }
}

fn conclude(show: &mut Show, right: bool) {
    show.line("");
    let (tone, verdict) = if right {
        (Tone::Good, "OK: every call has its one outcome, and every phone rang as often as it should.")
    } else {
        (Tone::Bad, "NOT OK: the lines above say what differs.")
    };
    let verdict = show.paint(tone, verdict);
    show.line(&verdict);
    show.line("");
    let heading = show.paint(Tone::Loud, "Where to go next");
    show.line(&heading);
    for (what, why) in [
        ("README.md", "what it is, and how to run it"),
        ("ringcast check --config FILE", "all mistakes at once; config/default.toml has all keys"),
        ("ringcast run --config FILE", "the worker, with your RabbitMQ and your key"),
        ("apns-simulator --identity DIR --script FILE", "the simulated Apple, with faults of your choice"),
        ("tests/run", "all tests; installs what they need"),
    ] {
        show.line(&format!("  {what:<45}{why}"));
    }
}
