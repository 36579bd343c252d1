//! What shards are made of, and what they have in common.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::StartError;
use super::reload::{self, Taker};
use crate::amqp;
use crate::apns::{Apns, tls};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::app::App;
use crate::metrics::Metrics;
use crate::pause::Jitter;
use crate::worker::Worker;
use crate::worker::mailbox::Outbox;
use crate::worker::trace::Tracer;

/// The parts that `run`, `pipe` and the demo share: a worker and its connections to APNs.
pub struct Core {
    /// Handles invites.
    pub worker: Arc<Worker<Apns>>,
    /// The connections that it pushes on.
    pub apns: Apns,
    pub(super) reloading: Option<Arc<reload::Task>>,
}

impl Core {
    /// Builds a worker alone and begins to open connections to APNs. It publishes to `outbox`, and tells of its invites by
    /// `tracer`.
    pub fn start(
        config: &Config,
        outbox: Outbox,
        metrics: &Arc<Metrics>,
        jitter: &Jitter,
        tracer: Option<Tracer>,
    ) -> Result<Self, StartError> {
        let setup = Setup::new(config)?;
        let mut core = setup.core(config, outbox, metrics, jitter, tracer)?;
        core.apns.start(&config.apps);
        // It has no broker.
        let amqp = watch::Sender::new(config.amqp.clone());
        let takers = vec![Taker { runtime: Handle::current(), apns: core.apns.clone(), amqp }];
        core.reloading = Some(Arc::new(setup.reload(config, takers, metrics)));
        Ok(core)
    }

    /// Takes over nothing more, and closes every connection to APNs after its open streams.
    pub async fn close(&self) {
        if let Some(reloading) = &self.reloading {
            reloading.stop();
        }
        self.apns.close().await;
    }
}

/// What all shards have in common.
pub(super) struct Setup {
    trust: tls::Trust,
    dials: tls::Dials,
}

impl Setup {
    pub(super) fn new(config: &Config) -> Result<Self, StartError> {
        reload::tell_concerns(config);
        let trust = tls::Trust::load(config.apns.ca_file.as_deref())?;
        let dials = tls::dials(&config.apns, &trust)?;
        Ok(Self { trust, dials })
    }

    /// The core of one shard. It dials nothing yet; with each key it has signed once.
    pub(super) fn core(
        &self,
        config: &Config,
        outbox: Outbox,
        metrics: &Arc<Metrics>,
        jitter: &Jitter,
        tracer: Option<Tracer>,
    ) -> Result<Core, StartError> {
        let clock = Clock::system();
        // Its own: several threads that counted who holds one would slow each other down.
        let apps: Vec<Arc<App>> = config.apps.iter().map(|app| Arc::new(App::clone(app))).collect();
        let apns = Apns::new(&config.apns, &apps, &self.dials, &clock, metrics, jitter)?;
        metrics.start_apps(apps.iter().map(|app| &*app.name));
        let worker = Worker::new(
            apns.clone(),
            config.worker.clone(),
            apps,
            apns.key_ids(),
            config.amqp.live,
            // It may be raised while the worker runs.
            usize::from(amqp::PREFETCH_MAX),
            outbox,
            clock,
            Arc::clone(metrics),
            jitter.clone(),
        );
        Ok(Core { worker: Arc::new(worker.traced_by(tracer)), apns, reloading: None })
    }

    /// Begins to look at the files, for all shards.
    pub(super) fn reload(&self, config: &Config, takers: Vec<Taker>, metrics: &Arc<Metrics>) -> reload::Task {
        reload::start(config, &self.trust, takers, metrics)
    }
}
