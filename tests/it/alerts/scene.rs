//! One installation: a worker, an Apple of its own, a queue of its own, and calls that go on all the time.

use super::caller::{Caller, Calls};
use crate::apple::Apple;
use crate::load::declare;
use crate::place::Place;
use crate::worker::{Config, Worker};

/// What is to be built.
pub(super) struct Plan<'a> {
    /// The job under which it is scraped.
    pub(super) name: &'static str,
    /// The broker and its virtual host.
    pub(super) uri: &'a str,
    /// Added to the script of Apple's side.
    pub(super) script: &'a str,
    /// How long each of Apple's answers takes.
    pub(super) latency_ms: (u64, u64),
    pub(super) calls: Calls,
}

/// See the module.
pub(super) struct Scene {
    pub(super) name: &'static str,
    pub(super) apple: Apple,
    pub(super) config: Config,
    worker: Option<Worker>,
    _caller: Caller,
    // Last: it is removed when all of them are gone.
    place: Place,
}

impl Plan<'_> {
    pub(super) fn new<'a>(name: &'static str, uri: &'a str) -> Plan<'a> {
        Plan { name, uri, script: "", latency_ms: (5, 20), calls: Calls::default() }
    }

    /// Builds it, with other settings where `adjust` wants them, and waits until the worker is ready.
    pub(super) async fn build(self, adjust: impl FnOnce(&mut Config, &Place)) -> Scene {
        let mut scene = self.prepare(adjust).await;
        scene.start_worker().await_ready().await;
        scene
    }

    /// The same without a worker.
    pub(super) async fn prepare(self, adjust: impl FnOnce(&mut Config, &Place)) -> Scene {
        let place = Place::new(self.name);
        let apple = Apple::start(&place, self.latency_ms, self.script).await;
        let queue = format!("calls.{}", self.name);
        let mut config = Config::new(&apple);
        config.text("amqp", "uri", self.uri).set("amqp", "invites", &format!("[{queue:?}]"));
        adjust(&mut config, &place);
        declare(&place, &config).await;
        let caller = Caller::start(self.uri, queue, self.calls).await;
        Scene { name: self.name, apple, config, worker: None, _caller: caller, place }
    }
}

impl Scene {
    /// Starts the worker, and waits for nothing.
    pub(super) fn start_worker(&mut self) -> &mut Worker {
        self.worker.insert(Worker::start(&self.place, &self.config, "worker"))
    }

    /// Kills the worker.
    pub(super) async fn kill_worker(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            worker.kill().await;
        }
    }

    /// The same, but starts it again at once, and waits until it is ready.
    pub(super) async fn replace_worker(&mut self) {
        self.kill_worker().await;
        self.start_worker().await_ready().await;
    }
}
