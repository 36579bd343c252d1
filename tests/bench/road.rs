//! What a call costs one worker on the whole road, from a real RabbitMQ to the simulator of APNs and back: see `README.md`
//! beside this file. `charts/ringcast/SCALING.md` reckons with these figures.
//!
//! Four processes: the broker, `ringcast run`, `apns-simulator`, and this one, which publishes and looks on.

#![allow(unreachable_pub, missing_docs, reason = "the modules of a benchmark, which nobody else sees")]

#[path = "../../src/bin/demo/broker.rs"]
mod broker;
#[allow(dead_code, reason = "the other benchmarks use more of it")]
mod child;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../it/place.rs"]
mod place;
#[allow(dead_code, reason = "another benchmark counts instructions with it")]
mod program;
#[allow(dead_code, reason = "outcomes are counted here, not read")]
mod traffic;

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use broker::{Broker, Ports};
use child::{Running, Usage};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions};
use lapin::{BasicProperties, Channel};
use place::Place;
use ringcast::amqp::Settings;
use ringcast::amqp::dial::{Dialer, Link};
use tokio::time::{Instant, sleep, sleep_until};

pub type Failure = Box<dyn Error + Send + Sync>;

const TEAM_ID: &str = "TEAM123456";
const KEY_ID: &str = "KEY1234567";
/// What Apple's answers take.
const LATENCY: &str = "40ms";
/// Calls that wait in the queue when the worker starts.
const CALLS: u64 = 60_000;
/// Calls a second where they come one after the other, and how long they do.
const PACES: [u64; 2] = [1_000, 3_000];
const PACED_FOR: u64 = 10;
const PREFETCHES: [u16; 3] = [100, 500, 2000];
/// The invites that share a confirm of the broker's, and a moment.
const BATCH: u64 = 20;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A run in which nothing moves for this long has failed.
const STALL: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::from);
    match runtime.and_then(|runtime| runtime.block_on(measure())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("road: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> Result<(), Failure> {
    let place = Place::new("road");
    let bed = Bed::start(place).await?;
    println!("{}, Apple answers after {LATENCY}\n", program::head()?);
    println!(
        "{:<22} {:>8} {:>8} {:>8} {:>9} {:>24} {:>9} {:>9}",
        "calls", "prefetch", "ready s", "calls", "calls/s", "CPU us/call (user+sys)", "peak MiB", "broker us"
    );
    let mut run = 0;
    for prefetch in PREFETCHES {
        run += 1;
        bed.run(run, prefetch, None).await?;
    }
    for pace in PACES {
        run += 1;
        bed.run(run, 500, Some(pace)).await?;
    }
    Ok(())
}

/// Everything but the worker.
struct Bed {
    place: Place,
    broker: Broker,
    _simulator: Running,
    _link: Link,
    channel: Channel,
    admin: SocketAddr,
    /// What differs from the defaults, but for the prefetch.
    config: String,
    /// Keeps the port of the admin endpoints ours.
    _ports: Ports,
}

impl Bed {
    async fn start(place: Place) -> Result<Self, Failure> {
        let broker =
            Broker::start().await?.ok_or("RabbitMQ is not installed: apt-get install rabbitmq-server")?;
        let script = place.path("script.toml");
        std::fs::write(&script, format!("[[fault]]\nlatency = \"{LATENCY}\"\n"))?;
        let identity = place.path("identity");
        let (simulator, port) = program::simulator(&identity, Some(&script))?;
        let ports = Ports::claim().ok_or("every block of ports is in use")?;
        let admin = SocketAddr::from(([127, 0, 0, 1], ports.first));
        // A TOML text, quoted and escaped.
        let file = |name: &str| format!("{:?}", identity.join(name).display().to_string());
        let (ca_file, key_file) = (file("ca.pem"), file(&format!("AuthKey_{KEY_ID}.p8")));
        let config = format!(
            "uri = \"{}\"\ndeclare = true\n[apns]\nproduction = \"https://127.0.0.1:{port}\"\nca_file = {ca_file}\n\
             [admin]\nlisten = \"{admin}\"\n[log]\nlevel = \"warn,lapin=off\"\n[apps.acme]\nbundle_id = \"com.acme.voice\"\n\
             [apps.acme.auth]\nteam_id = \"{TEAM_ID}\"\nkey_id = \"{KEY_ID}\"\nkey_file = {key_file}\n",
            broker.uri()
        );
        let settings = Settings {
            uri: broker.uri(),
            hosts: Vec::new(),
            ca_file: None,
            client: None,
            declare: true,
            invites: vec!["ringcast.invites".to_owned()],
            results_exchange: "ringcast.results".to_owned(),
            live: false,
            prefetch: 500,
            consumer_priority: 0,
        };
        let link = Dialer::new(&settings).await?.dial("road").await?;
        ringcast::amqp::topology::Topology::of(&settings).declare(&link).await?;
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { place, broker, _simulator: simulator, _link: link, channel, admin, config, _ports: ports })
    }

    /// One worker, and calls that wait for it, or that come at a pace.
    async fn run(&self, run: u32, prefetch: u16, pace: Option<u64>) -> Result<(), Failure> {
        let calls = pace.map_or(CALLS, |pace| pace * PACED_FOR);
        for queue in ["ringcast.invites", "ringcast.outcomes"] {
            self.channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        }
        if pace.is_none() {
            self.publish(run, calls, None).await?;
        }
        let file = self.place.path("config.toml");
        std::fs::write(&file, format!("[amqp]\nprefetch = {prefetch}\n{}", self.config))?;
        let broker_before = self.broker_cpu().await?;
        let mut command = program::ringcast("run", &file)?;
        let began = Instant::now();
        let worker = Running::start("ringcast", &mut command)?;
        while !self.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if began.elapsed() > STALL {
                return Err("the worker does not get ready".into());
            }
            sleep(Duration::from_millis(2)).await;
        }
        let ready = began.elapsed();
        let (watched, published) = tokio::join!(self.watch(&worker, calls), async {
            match pace {
                Some(_) => self.publish(run, calls, pace).await,
                None => Ok(()),
            }
        });
        published?;
        let Watched { calls: counted, elapsed, usage } = watched?;
        let broker = self.broker_cpu().await?.saturating_sub(broker_before);
        let micros = |spent: Duration, calls: u64| spent.as_secs_f64() * 1e6 / float(calls);
        println!(
            "{:<22} {prefetch:>8} {:>8.3} {calls:>8} {:>9.0} {:>8.1} ({:>5.1} + {:>5.1}) {:>9.1} {:>9.1}",
            pace.map_or_else(|| "wait in the queue".to_owned(), |pace| format!("come, {pace}/s")),
            ready.as_secs_f64(),
            float(counted) / elapsed.as_secs_f64(),
            micros(usage.cpu(), counted),
            micros(usage.user, counted),
            micros(usage.system, counted),
            float(usage.peak_kib) / 1024.0,
            micros(broker, calls),
        );
        // What it has not settled would come again, to the next one.
        worker.stop()
    }

    /// Publishes invites with confirms, a batch at a time.
    async fn publish(&self, run: u32, calls: u64, pace: Option<u64>) -> Result<(), Failure> {
        let mut lines = Vec::new();
        traffic::write_invites(&mut lines, run, calls)?;
        let bodies: Vec<&[u8]> = lines.trim_ascii_end().split(|byte| *byte == b'\n').collect();
        let mut next = Instant::now();
        let batch = usize::try_from(if pace.is_some() { BATCH } else { 1_000 })?;
        for some in bodies.chunks(batch) {
            let mut confirms = Vec::new();
            for body in some {
                let properties = BasicProperties::default().with_delivery_mode(2);
                let options = BasicPublishOptions::default();
                let publish = self.channel.basic_publish(
                    "".into(),
                    "ringcast.invites".into(),
                    options,
                    body,
                    properties,
                );
                confirms.push(publish.await?);
            }
            for confirm in confirms {
                confirm.await?;
            }
            if let Some(pace) = pace {
                next += Duration::from_secs(1) * u32::try_from(BATCH)? / u32::try_from(pace)?;
                sleep_until(next).await;
            }
        }
        Ok(())
    }

    /// Looks on until all calls are accepted, and weighs the middle of it: from a tenth to nine tenths.
    async fn watch(&self, worker: &Running, calls: u64) -> Result<Watched, Failure> {
        let (mut first, mut last) = (None, None);
        let (mut seen, mut moved) = (0, Instant::now());
        while seen < calls {
            sleep(LOOK_EVERY).await;
            let now = self.accepted()?;
            if now != seen {
                (seen, moved) = (now, Instant::now());
            } else if moved.elapsed() > STALL {
                return Err(format!("it stands still at {seen} of {calls}").into());
            }
            if (calls / 10..=calls / 10 * 9).contains(&seen) {
                let look = (seen, Instant::now(), worker.usage()?);
                first.get_or_insert(look);
                last = Some(look);
            }
        }
        let peak_kib = worker.usage()?.peak_kib;
        let ((from, began, before), (to, ended, after)) = first
            .zip(last)
            .filter(|(first, last)| first.0 < last.0)
            .ok_or("it was over before it was seen")?;
        Ok(Watched {
            calls: to - from,
            elapsed: ended - began,
            usage: Usage { peak_kib, ..after.since(&before) },
        })
    }

    fn accepted(&self) -> Result<u64, Failure> {
        let page = self.get("/metrics")?;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix("ringcast_invites_total{app=\"acme\",result=\"accepted\"} "));
        Ok(line.ok_or("/metrics counts no accepted invites")?.parse()?)
    }

    fn get(&self, path: &str) -> Result<String, Failure> {
        let mut stream = TcpStream::connect(self.admin)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: ringcast\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The CPU that the broker has used so far, by its own account.
    async fn broker_cpu(&self) -> Result<Duration, Failure> {
        let told = self.broker.ctl(&["eval", "element(1, erlang:statistics(runtime))."]).await?;
        Ok(Duration::from_millis(told.trim().parse()?))
    }
}

/// The middle of a run.
struct Watched {
    calls: u64,
    elapsed: Duration,
    usage: Usage,
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}
