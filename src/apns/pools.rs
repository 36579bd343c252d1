//! All pools of one worker: which app pushes over which, and their state together.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use super::credential::Credential;
use super::pool::Pool;
use super::request::TemplateError;
use super::slot::{Ask, NoSlot, Slot};
use super::table::{Entry, Maker, Table, find};
use super::tls::{Dials, RootError};
use super::{ClientCertificate, Settings};
use crate::clock::Clock;
use crate::domain::app::{App, Environment};
use crate::metrics::Metrics;
use crate::pause::Jitter;
use crate::worker::gateway::{KeyIds, Push};

/// All pools of one worker. Clones share them.
#[derive(Clone)]
pub struct Apns(pub(super) Arc<Shared>);

/// What the clones share.
pub(super) struct Shared {
    table: RwLock<Arc<Table>>,
    /// Counts the swaps of the table.
    swaps: watch::Sender<u64>,
    key_ids: KeyIds,
    /// Pools of new credentials, until they are usable.
    pub(super) warming: Mutex<Vec<Entry>>,
    /// Pools that no app uses any more, until they are closed.
    pub(super) leaving: Mutex<Vec<Entry>>,
    pub(super) maker: Maker,
}

/// The state of one pool, for readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// Which of Apple's two worlds.
    pub environment: Environment,
    /// Whose connections these are, for people: a key's id and team, or a certificate's fingerprint.
    pub credential: String,
    /// At least one connection can carry a push.
    pub is_usable: bool,
    /// It opens connections; a pool that nobody needs yet does not.
    pub is_started: bool,
    /// Why the last connection could not be opened, until one can.
    pub trouble: Option<String>,
}

/// Why the pools cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// An endpoint or a bundle id cannot stand in a request.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A key cannot sign.
    #[error(transparent)]
    Mint(#[from] super::provider_token::MintError),
    /// There can be no TLS.
    #[error(transparent)]
    Tls(#[from] RootError),
}

impl Apns {
    /// Sets up the pools of `apps`; nothing is dialled yet. `dials` says how the connections of a pool are opened. Signs
    /// once with each key, so that a broken one shows now.
    pub fn new(
        settings: &Settings,
        apps: &[Arc<App>],
        dials: &Dials,
        clock: &Clock,
        metrics: &Arc<Metrics>,
        jitter: &Jitter,
    ) -> Result<Self, SetupError> {
        let maker = Maker::new(settings, apps, Arc::clone(dials), clock, metrics, jitter)?;
        let mut made: Vec<Entry> = Vec::new();
        let mut entries = Vec::with_capacity(apps.len());
        for [production, sandbox] in &settings.credentials {
            let mut entry = |environment, credential: &Credential| {
                if let Some(known) = find(&made, &(environment, credential.name())) {
                    return Ok(known.clone());
                }
                made.push(maker.make(environment, credential)?);
                Ok::<_, SetupError>(made[made.len() - 1].clone())
            };
            entries
                .push([entry(Environment::Production, production)?, entry(Environment::Sandbox, sandbox)?]);
        }
        let table = Table::new(entries);
        let key_ids = KeyIds::default();
        key_ids.replace(table.key_ids());
        Ok(Self(Arc::new(Shared {
            table: RwLock::new(Arc::new(table)),
            swaps: watch::Sender::new(0),
            key_ids,
            warming: Mutex::default(),
            leaving: Mutex::default(),
            maker,
        })))
    }

    /// Opens the connections that each app needs by default; the other environment's open at their first push.
    pub fn start(&self, apps: &[Arc<App>]) {
        let table = self.table();
        for app in apps {
            table.entry(app.index, app.environment).pool.start();
        }
    }

    /// Which key signs for each app, now and after each swap.
    pub fn key_ids(&self) -> KeyIds {
        self.0.key_ids.clone()
    }

    /// Every pool's state. One that no app uses any more is not among them.
    pub fn states(&self) -> Vec<PoolState> {
        let state = |entry: &Entry| PoolState {
            environment: entry.name.0,
            credential: entry.credential.to_string(),
            is_usable: entry.pool.is_usable(),
            is_started: entry.pool.is_started(),
            trouble: entry.pool.trouble(),
        };
        self.table().distinct().iter().map(state).collect()
    }

    /// Writes the gauges that only a scrape needs.
    pub fn refresh(&self, apps: &[Arc<App>], metrics: &Metrics) {
        let table = self.table();
        let leaving = self.0.leaving.lock().clone();
        for environment in Environment::ALL {
            let (mut used, mut allowed, mut oldest, mut suspects) = (0, 0, Duration::ZERO, 0);
            let all = table.distinct().iter().chain(&leaving);
            for entry in all.filter(|entry| entry.name.0 == environment) {
                let load = entry.pool.load();
                used += load.0;
                allowed += load.1;
                oldest = oldest.max(load.2);
                suspects += entry.pool.suspects();
            }
            for (state, count) in states(table.distinct(), environment) {
                metrics.apns_pools(environment.as_str(), state, count);
            }
            metrics.apns_suspect_tokens(environment.as_str(), suspects);
            metrics.apns_streams(environment.as_str(), used, allowed);
            metrics.apns_oldest_unanswered(environment.as_str(), oldest);
        }
        for app in apps {
            for environment in Environment::ALL {
                let pool = &table.entry(app.index, environment).pool;
                metrics.apns_circuit(&app.name, environment.as_str(), pool.circuit.trouble().is_some());
                let is_usable = pool.is_started().then(|| pool.is_usable());
                metrics.apns_usable(&app.name, environment.as_str(), is_usable);
            }
            let mint = table.entry(app.index, app.environment).pool.parts.mint.as_ref();
            let age = mint.and_then(|mint| mint.age_seconds());
            let age = age.map(|age| Duration::from_secs(age.max(0).unsigned_abs()).as_secs_f64());
            metrics.provider_token_age(&app.name, age);
            let certificates =
                table.entries()[app.index].iter().filter_map(|one| one.credential.certificate());
            metrics.credential_expiry(&app.name, certificates.map(ClientCertificate::not_after).min());
        }
    }

    /// Closes every connection after its open streams, within a limit.
    pub async fn close(&self) {
        let table = self.table();
        let (warming, leaving) = (self.0.warming.lock().clone(), self.0.leaving.lock().clone());
        join_all(table.distinct().iter().chain(&warming).chain(&leaving).map(|entry| entry.pool.close()))
            .await;
    }

    /// A stream for a push before its deadline, the pool of its app and environment, and when it came: it is `asked` for now.
    /// Whoever waits when the table is swapped waits on with the pool of the new one.
    pub(super) async fn acquire(
        &self,
        push: &Push,
        asked: Instant,
    ) -> Result<(Arc<Pool>, Slot, Instant), NoSlot> {
        let mut now = asked;
        loop {
            let table = self.table();
            let home = Arc::clone(&table.entry(push.app.index, push.environment).pool);
            let pool = home.for_token(&push.token);
            let (avoid, lost, lost_on) = (push.trail.last(), push.trail.lost(), push.trail.lost_on());
            let ask = Ask { avoid, lost, lost_on };
            if let Some(slot) = pool.take(ask, now)? {
                return Ok((home, slot, now));
            }
            pool.start();
            let mut swaps = self.0.swaps.subscribe();
            if !Arc::ptr_eq(&table, &self.table()) {
                continue;
            }
            // Biased: a stream goes before a look at the table.
            tokio::select! {
                biased;
                slot = pool.wait(push.deadline, ask) => return slot.map(|slot| (home, slot, Instant::now())),
                _ = swaps.changed() => now = Instant::now(),
            }
        }
    }

    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.0.table.read())
    }

    /// Puts another table in place: pushes that come after this use it.
    pub(super) fn swap(&self, table: Table) {
        self.0.key_ids.replace(table.key_ids());
        *self.0.table.write() = Arc::new(table);
        self.0.swaps.send_modify(|swaps| *swaps += 1);
    }
}

/// How many pools that were begun are in each state. Whoever is refused may have connections.
fn states(entries: &[Entry], environment: Environment) -> [(&'static str, usize); 3] {
    let (mut usable, mut unconnected, mut refused) = (0, 0, 0);
    for entry in entries.iter().filter(|entry| entry.name.0 == environment && entry.pool.is_started()) {
        *match entry.pool.circuit.trouble() {
            Some(_) => &mut refused,
            None if entry.pool.is_usable() => &mut usable,
            None => &mut unconnected,
        } += 1;
    }
    [("usable", usable), ("unconnected", unconnected), ("refused", refused)]
}
