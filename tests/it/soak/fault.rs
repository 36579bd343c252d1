//! What goes wrong at the broker, and heals.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ringcast::pause::Jitter;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::drain::all_in;
use super::losses::Losses;
use super::tide::Tide;
use super::{INVITES, SPARE};
use crate::broker::Broker;
use crate::cluster::Cluster;
use crate::load::declare;
use crate::operator::Operator;
use crate::place::Place;
use crate::process::POLL_EVERY;
use crate::vhost::close_connections;
use crate::worker::Config;

/// How much longer than meant it may take until each kind of trouble has come about.
const ALL_WITHIN: Duration = Duration::from_mins(3);
/// How long the spare queue may take to run empty, before it is left alone this time.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);
/// A queue that is this young does not outlive the kill of its node: RabbitMQ 3.10 answered `INTERNAL_ERROR` to every
/// consumer of one that was up to a second old then, for ever, and of none that was three seconds old.
const SETTLED_AFTER: Duration = Duration::from_secs(4);

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A node is stopped, and started again.
    Stop,
    /// A node is killed, and started again: at first the one that leads the invites queue.
    Kill,
    /// All connections are closed.
    CloseAll,
    /// The workers' connections of one role are closed.
    CloseRole,
    /// Publishers are blocked.
    MemoryAlarm,
    /// Outcomes have no queue.
    Unbind,
    /// A queue is deleted and made again, and its consumers are cancelled.
    Cancel,
}

/// Where the broker runs.
pub(super) enum Site {
    /// One node.
    Alone(Box<Broker>),
    /// Three, one of which may be away.
    Cluster(Box<Cluster>),
}

impl Site {
    /// Where clients connect, an address a node: any of them will do.
    pub(super) fn uris(&self) -> Vec<String> {
        match self {
            Self::Alone(node) => vec![node.uri()],
            Self::Cluster(cluster) => cluster.uris().to_vec(),
        }
    }

    /// The same as settings have it: `HOST:PORT`.
    pub(super) fn hosts(&self) -> Vec<String> {
        let ports: Vec<u16> = match self {
            Self::Alone(node) => vec![node.port()],
            Self::Cluster(cluster) => cluster.nodes.iter().map(Broker::port).collect(),
        };
        ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// What can happen.
    pub(super) fn kinds() -> Vec<Kind> {
        use Kind::{Cancel, CloseAll, CloseRole, Kill, MemoryAlarm, Stop, Unbind};
        vec![Stop, Kill, CloseAll, CloseRole, MemoryAlarm, Unbind, Cancel]
    }

    pub(super) fn nodes(&mut self) -> &mut [Broker] {
        match self {
            Self::Alone(node) => std::slice::from_mut(node),
            Self::Cluster(cluster) => &mut cluster.nodes,
        }
    }

    /// A node that runs.
    pub(super) fn node(&self) -> &Broker {
        match self {
            Self::Alone(node) => node,
            Self::Cluster(cluster) => cluster.running(),
        }
    }

    /// Which node leads the invites queue: what is given to workers then is under way on it.
    async fn leader(&self) -> usize {
        match self {
            Self::Alone(_) => 0,
            Self::Cluster(cluster) => cluster.leader_of(INVITES).await,
        }
    }

    /// Waits until all that can be lost with a node stands on others, too.
    pub(super) async fn await_whole(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.await_whole().await;
        }
    }
}

/// Deals what can happen, all of it in turn and in an order of its own each time.
pub(super) struct Trouble {
    dice: Jitter,
    deck: Vec<Kind>,
    made: BTreeMap<Kind, usize>,
    /// When the spare queue was made anew.
    remade: Option<Instant>,
    losses: Losses,
}

impl Trouble {
    pub(super) fn new(dice: Jitter) -> Self {
        Self { dice, deck: Vec::new(), made: BTreeMap::new(), remade: None, losses: Losses::default() }
    }

    /// One after another, each healed before the next, until then and until each has come about.
    pub(super) async fn make(&mut self, site: &mut Site, tide: &Mutex<Tide>, town: Town<'_>, until: Instant) {
        loop {
            sleep(self.between(0.3, 2.0)).await;
            if Instant::now() >= until && self.made.len() == Site::kinds().len() {
                return;
            }
            assert!(Instant::now() < until + ALL_WITHIN, "not every kind of trouble came about: {self}");
            if self.deck.is_empty() {
                self.deck = Site::kinds();
            }
            let kind = self.deck.swap_remove(self.pick(self.deck.len()));
            // Shown where the test fails.
            println!("{kind:?}");
            if self.strike(kind, site, tide, town).await {
                *self.made.entry(kind).or_default() += 1;
            } else {
                self.deck.push(kind);
            }
        }
    }

    /// Whether it came about.
    async fn strike(&mut self, kind: Kind, site: &mut Site, tide: &Mutex<Tide>, town: Town<'_>) -> bool {
        let mut place = self.pick(site.uris().len());
        // The first kill takes the node that the most depends on; further ones take any.
        if kind == Kind::Kill && !self.made.contains_key(&kind) {
            place = site.leader().await;
        }
        let uri = site.uris().swap_remove(place);
        let node = &mut site.nodes()[place];
        match kind {
            Kind::Stop => {
                let away = self.between(0.0, 2.0);
                let stop = async {
                    node.stop().await.expect("the broker stops");
                    sleep(away).await;
                    node.start_again().await.expect("the broker starts again");
                };
                self.losses.during("node stopped", stop).await;
                site.await_whole().await;
            }
            Kind::Kill => {
                if let Some(remade) = self.remade {
                    sleep_until(remade + SETTLED_AFTER).await;
                }
                let away = self.between(0.0, 2.0);
                let kill = async {
                    node.kill().expect("the broker can be killed");
                    sleep(away).await;
                    node.start_again().await.expect("the broker starts again");
                };
                self.losses.during("node killed", kill).await;
                site.await_whole().await;
            }
            Kind::CloseAll => {
                let close = node.ctl(&["close_all_connections", "soak"]);
                self.losses.during("all closed", close).await.expect("the broker closes connections");
            }
            Kind::CloseRole => {
                let role = ["ringcast consume ", "ringcast publish "][self.pick(2)];
                self.losses.during(format!("{role}closed"), close_connections(node, role)).await;
            }
            Kind::MemoryAlarm => {
                node.ctl(&["set_vm_memory_high_watermark", "0"]).await.expect("the broker raises an alarm");
                sleep(self.between(0.5, 3.0)).await;
                node.ctl(&["set_vm_memory_high_watermark", "0.6"]).await.expect("the broker clears it");
            }
            Kind::Unbind => {
                let operator = Operator::connect(&uri).await;
                operator.bind(false).await;
                sleep(self.between(0.5, 2.5)).await;
                operator.bind(true).await;
            }
            Kind::Cancel => {
                let operator = Operator::connect(&uri).await;
                tide.lock().await.spare(true);
                let empty = is_spare_empty(node, tide).await;
                if empty {
                    operator.delete(SPARE).await;
                    sleep(self.between(0.0, 1.0)).await;
                    declare(town.place, town.config).await;
                    site.await_whole().await;
                    self.remade = Some(Instant::now());
                }
                tide.lock().await.spare(false);
                return empty;
            }
        }
        true
    }

    /// What deliveries were lost by it. An alarm and a missing binding take none, and the queue that is deleted is empty.
    pub(super) fn losses(&self) -> &Losses {
        &self.losses
    }

    fn between(&self, least: f64, most: f64) -> Duration {
        Duration::from_secs_f64(least + self.dice.draw() * (most - least))
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "small numbers"
    )]
    fn pick(&self, below: usize) -> usize {
        (self.dice.draw() * below as f64) as usize
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made: Vec<String> = self.made.iter().map(|(kind, count)| format!("{count} × {kind:?}")).collect();
        formatter.write_str(&made.join(", "))
    }
}

/// What an operator needs to make the queues.
#[derive(Clone, Copy)]
pub(super) struct Town<'a> {
    pub(super) place: &'a Place,
    pub(super) config: &'a Config,
}

/// Waits until all that was published to the spare queue is confirmed, and then taken and settled.
async fn is_spare_empty(node: &Broker, tide: &Mutex<Tide>) -> bool {
    let until = Instant::now() + EMPTY_WITHIN;
    while Instant::now() < until {
        if tide.lock().await.is_spare_confirmed() && all_in(node, SPARE).await == 0 {
            return true;
        }
        sleep(POLL_EVERY).await;
    }
    false
}
