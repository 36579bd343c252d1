//! RabbitMQ under the worker: a throw-away node with Ringcast's queues, invites that are published into them, and the CPU that it uses;
//! and how a run on it is weighed in its middle.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions};
use lapin::{BasicProperties, Channel};
use ringcast::amqp::Settings;
use ringcast::amqp::dial::{Dialer, Link};
use ringcast::amqp::topology::Topology;
use tokio::time::{Instant, sleep, sleep_until};

use super::broker::Broker;
use super::child::Usage;
use super::summary::float;
use super::{Failure, program};

pub const INVITES: &str = "ringcast.invites";
pub const OUTCOMES: &str = "ringcast.outcomes";
/// Invites that share a wait for the broker's confirms.
const BATCH: usize = 1_000;
/// Invites that come at one moment, and share a wait, where they come at a pace.
const BATCH_PACED: usize = 20;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A run in which nothing moves for this long has failed.
pub const STALL: Duration = Duration::from_secs(30);

/// A throw-away node.
pub struct Rabbit {
    node: Broker,
    _link: Link,
    /// With confirms.
    pub channel: Channel,
}

impl Rabbit {
    /// Starts it, and declares what Ringcast declares.
    pub async fn start(name: &str) -> Result<Self, Failure> {
        let node =
            Broker::start().await?.ok_or("RabbitMQ is not installed: apt-get install rabbitmq-server")?;
        let settings = Settings {
            uri: node.uri(),
            hosts: Vec::new(),
            ca_file: None,
            client: None,
            declare: true,
            invites: vec![INVITES.to_owned()],
            results_exchange: "ringcast.results".to_owned(),
            live: false,
            prefetch: 500,
            consumer_priority: 0,
        };
        let link = Dialer::new(&settings).await?.dial(name).await?;
        Topology::of(&settings).declare(&link).await?;
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { node, _link: link, channel })
    }

    pub fn uri(&self) -> String {
        self.node.uri()
    }

    /// `ringcast run` on it.
    pub fn worker(&self, config: &Path) -> Result<Command, Failure> {
        let mut command = program::ringcast("run", config)?;
        command.env("RINGCAST__AMQP__URI", self.uri());
        Ok(command)
    }

    /// Takes away what an earlier run left.
    pub async fn purge(&self) -> Result<(), Failure> {
        for queue in [INVITES, OUTCOMES] {
            self.channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        }
        Ok(())
    }

    /// Publishes invites, one a line, with confirms: as fast as they are taken, or at so many a second.
    pub async fn publish(&self, lines: &[u8], pace: Option<u64>) -> Result<(), Failure> {
        let bodies: Vec<&[u8]> = lines.trim_ascii_end().split(|byte| *byte == b'\n').collect();
        let batch = if pace.is_some() { BATCH_PACED } else { BATCH };
        let mut next = Instant::now();
        for some in bodies.chunks(batch) {
            let mut confirms = Vec::new();
            for body in some {
                let (key, options) = (INVITES.into(), BasicPublishOptions::default());
                let properties = BasicProperties::default().with_delivery_mode(2);
                confirms.push(self.channel.basic_publish("".into(), key, options, body, properties).await?);
            }
            for confirm in confirms {
                confirm.await?;
            }
            if let Some(pace) = pace {
                next += Duration::from_secs(1) * u32::try_from(batch)? / u32::try_from(pace)?;
                sleep_until(next).await;
            }
        }
        Ok(())
    }

    /// The CPU that the node has used so far, by its own account.
    pub async fn cpu(&self) -> Result<Duration, Failure> {
        let told = self.node.ctl(&["eval", "element(1, erlang:statistics(runtime))."]).await?;
        Ok(Duration::from_millis(told.trim().parse()?))
    }
}

/// The middle of a run, from a tenth of its invites to nine tenths.
pub struct Middle {
    /// Invites in it.
    pub count: u64,
    /// Invites a second.
    pub rate: f64,
    /// What was used meanwhile; the peak is that of its end.
    pub usage: Usage,
}

impl Middle {
    /// Looks on until all invites are settled: `look` says how many are, and what that has taken so far.
    pub async fn of(invites: u64, look: impl Fn() -> Result<(u64, Usage), Failure>) -> Result<Self, Failure> {
        let (mut first, mut last) = (None, None);
        let (mut seen, mut moved) = (0, Instant::now());
        while seen < invites {
            sleep(LOOK_EVERY).await;
            let (settled, usage) = look()?;
            if settled != seen {
                (seen, moved) = (settled, Instant::now());
            } else if moved.elapsed() > STALL {
                return Err(format!("it stands still at {seen} of {invites}").into());
            }
            if (invites / 10..=invites / 10 * 9).contains(&seen) {
                let look = (seen, Instant::now(), usage);
                first.get_or_insert(look);
                last = Some(look);
            }
        }
        let ((from, began, before), (to, ended, after)) = first
            .zip(last)
            .filter(|(first, last)| first.0 < last.0)
            .ok_or("it was over before it was seen")?;
        let count = to - from;
        Ok(Self { count, rate: float(count) / (ended - began).as_secs_f64(), usage: after.since(&before) })
    }

    /// Microseconds an invite of it.
    pub fn micros(&self, spent: Duration) -> f64 {
        spent.as_secs_f64() * 1e6 / float(self.count)
    }
}
