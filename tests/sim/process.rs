//! One worker process: how it starts, and every way in which it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringcast::apns::Apns;
use ringcast::metrics::Metrics;
use ringcast::worker::mailbox::outbox;
use ringcast::worker::{self, Worker};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::broker::{Line, Order, Phase, keep};
use crate::deadly::Deadly;
use crate::world::{World, acme};

/// How long a worker may take to finish what it has begun.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(40);

impl World {
    /// One worker process, with everything that is its own.
    pub fn start_worker(&self, number: u64) -> Running {
        let jitter = self.jitter(number);
        let metrics = Metrics::new();
        let apps = vec![acme(self.plan.expiration_max)];
        let power = Arc::new(AtomicBool::new(true));
        let apns = self.build_apns(number, &power, &metrics, &jitter);
        let settings = worker::Settings {
            name: format!("worker-{number}"),
            devices_max: 100,
            invite_bytes_max: 65_536,
            deadline_max: Duration::from_mins(5),
            ring_time_min: Duration::ZERO,
            attempts_max: 3,
            answer_grace: Duration::from_secs(1),
            suspect_percent_max: 20,
            timeline: self.tells_times(),
        };
        let prefetch = self.plan.prefetch;
        let (outbox, postings) = outbox(2 * prefetch);
        let gateway = Deadly {
            apns: apns.clone(),
            worker: number,
            broker: self.broker.clone(),
            deaths: self.deaths.clone(),
        };
        let worker = Worker::new(
            gateway,
            settings,
            apps,
            apns.key_ids(),
            self.plan.broker.onlookers,
            prefetch,
            outbox,
            self.clock.clone(),
            Arc::clone(&metrics),
            jitter,
        );
        // Both of its consumers' prefetches.
        let (deliveries, delivered) = mpsc::channel(2 * prefetch);
        let (stop, stopped) = watch::channel(false);
        let working = tokio::spawn(worker::run(Arc::new(worker), delivered, stopped));
        let (order, orders) = watch::channel(Order::default());
        let line = Line { worker: number, prefetch, deliveries, postings };
        let broker = tokio::spawn(keep(self.broker.clone(), line, orders));
        Running { number, apns, working, stop, broker, order, power, metrics }
    }
}

/// One worker process while it runs.
pub struct Running {
    pub number: u64,
    apns: Apns,
    working: JoinHandle<()>,
    stop: watch::Sender<bool>,
    broker: JoinHandle<()>,
    order: watch::Sender<Order>,
    power: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

impl Running {
    /// The connections to the broker are lost; the next ones follow.
    pub fn cut(&self) {
        self.order.send_modify(|order| order.cuts += 1);
    }

    /// How many handlers died, by the worker's own count.
    pub fn panics(&self) -> usize {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix("ringcast_handler_panics_total "));
        line.and_then(|count| count.parse().ok()).expect("it counts deaths")
    }

    fn turn(&self, phase: Phase) {
        self.order.send_modify(|order| order.phase = phase);
    }

    /// `kill -9`: nothing is finished, nothing is said. The broker may notice it late.
    pub async fn kill(self) {
        self.turn(Phase::Dead);
        self.power.store(false, Ordering::Relaxed);
        self.working.abort();
        // It was aborted: there is nothing to learn from it.
        let _ = self.working.await;
        self.apns.close().await;
    }

    /// SIGTERM: what was begun is finished, within the grace; else it is killed. True where it was finished.
    pub async fn stop(mut self) -> bool {
        self.turn(Phase::Drain);
        self.stop.send_replace(true);
        let Ok(ended) = timeout(SHUTDOWN_GRACE, &mut self.working).await else {
            self.kill().await;
            return false;
        };
        ended.expect("the worker ends well");
        self.turn(Phase::Close);
        // The end of its sessions is the end of its task.
        let _ = self.broker.await;
        self.apns.close().await;
        true
    }
}
