//! The workers, and what happens to their processes: they are killed, or told to stop, and started again.

use std::fmt;
use std::time::Duration;

use ringcast::pause::Jitter;
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

use super::WORKERS;
use super::losses::Losses;
use crate::place::Place;
use crate::worker::{Config, Worker};

/// Two workers, one of which is always left alone.
pub(super) struct Watch<'a> {
    place: &'a Place,
    configs: &'a [Config; 2],
    workers: [Worker; 2],
    killed: usize,
    stopped: usize,
    /// Told to stop and ended with something unsettled, since the broker was away or Apple silent.
    overdue: usize,
    losses: Losses,
}

impl<'a> Watch<'a> {
    /// Starts both and waits until they are ready.
    pub(super) async fn start(place: &'a Place, configs: &'a [Config; 2]) -> Self {
        let start = |number: usize| Worker::start(place, &configs[number], WORKERS[number]);
        let mut workers = [start(0), start(1)];
        for worker in &mut workers {
            worker.await_ready().await;
        }
        Self { place, configs, workers, killed: 0, stopped: 0, overdue: 0, losses: Losses::default() }
    }

    /// Ends and starts one after the other until it is over; of each two ends one is a kill. Both run at the end.
    pub(super) async fn disturb(&mut self, dice: Jitter, mut over: Receiver<bool>) {
        let mut kills = false;
        for turn in 0.. {
            let calm = Duration::from_secs_f64(1.0 + 4.0 * dice.draw());
            if timeout(calm, over.wait_for(|over| *over)).await.is_ok() {
                return;
            }
            let number = turn % WORKERS.len();
            let worker = &mut self.workers[number];
            kills = if turn % 2 == 0 { dice.draw() < 0.5 } else { !kills };
            if kills {
                self.losses.during("worker killed", worker.kill()).await;
                self.killed += 1;
            } else {
                worker.tell_to_stop();
                self.stopped += 1;
                if worker.await_end().await != Some(0) {
                    self.losses.ended("worker stopped too late");
                    self.overdue += 1;
                }
            }
            // Its log begins anew.
            self.losses.heard(WORKERS[number], &self.workers[number].log());
            self.workers[number] = Worker::start(self.place, &self.configs[number], WORKERS[number]);
        }
    }

    pub(super) async fn await_ready(&mut self) {
        for worker in &mut self.workers {
            worker.await_ready().await;
        }
    }

    /// How many deliveries both hold.
    pub(super) async fn unsettled(&self) -> f64 {
        let mut sum = 0.0;
        for worker in &self.workers {
            sum += worker.metric("ringcast_amqp_unsettled").await.unwrap_or_default();
        }
        sum
    }

    /// Stops both: nothing is held, so they end well.
    pub(super) async fn stop(&mut self) {
        for (worker, name) in self.workers.iter_mut().zip(WORKERS) {
            worker.stop().await;
            self.losses.heard(name, &worker.log());
        }
    }

    /// What deliveries were lost by these ends, and by what the workers say themselves.
    pub(super) fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Both kinds of end came about.
    pub(super) fn assert_disturbed(&self) {
        assert!(self.killed > 0 && self.stopped > 0, "workers were killed, and stopped: {self}");
    }

    pub(super) fn log(&self) -> String {
        let tail = |worker: &Worker| {
            let log = worker.log();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        };
        self.workers.iter().map(tail).collect::<Vec<_>>().join("\n\n")
    }
}

impl fmt::Display for Watch<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { killed, stopped, overdue, .. } = self;
        write!(formatter, "{killed} killed, {stopped} stopped ({overdue} of these with something unsettled)")
    }
}
