//! All pools of one worker: which app pushes over which, and their state together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::future::join_all;

use super::Settings;
use super::address::Addresses;
use super::dial::Dial;
use super::pool::{Parts, Pool};
use super::provider_token::TokenMint;
use super::request::{Template, TemplateError};
use crate::clock::Clock;
use crate::domain::app::{App, Environment};
use crate::metrics::Metrics;
use crate::pause::Jitter;

/// All pools of one worker. Clones share them.
#[derive(Clone)]
pub struct Apns {
    /// By the index of an app and of an environment.
    pools: Arc<Vec<[Arc<Pool>; 2]>>,
    /// Each pool once, in the order of environment, team and key.
    distinct: Arc<Vec<(PoolName, Arc<Pool>)>>,
}

/// What a pool is bound to: APNs binds a connection to environment, team and key.
type PoolName = (Environment, String, String);

/// The state of one pool, for readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// Which of Apple's two worlds.
    pub environment: Environment,
    /// The signing key's id.
    pub key_id: String,
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
}

impl Apns {
    /// Sets up the pools of `apps`; nothing is dialled yet. `dials` opens connections, by environment. Signs once with each
    /// key, so that a broken one shows now.
    pub fn new(
        settings: &Settings,
        apps: &[Arc<App>],
        dials: &[Dial; 2],
        clock: &Clock,
        metrics: &Arc<Metrics>,
        jitter: &Jitter,
    ) -> Result<Self, SetupError> {
        let mut distinct: BTreeMap<PoolName, Arc<Pool>> = BTreeMap::new();
        let ids = Arc::new(AtomicU64::new(0));
        let addresses = Environment::ALL.map(|_| Arc::new(Addresses::default()));
        let mut templates = Vec::with_capacity(2);
        for environment in Environment::ALL {
            let template = Template::new(settings.endpoint(environment), apps.iter().map(AsRef::as_ref))?;
            templates.push(Arc::new(template));
        }
        let mut pools = Vec::with_capacity(apps.len());
        for credentials in &settings.credentials {
            let mut pair = Vec::with_capacity(2);
            for environment in Environment::ALL {
                let credential = &credentials[environment.index()];
                let name = (environment, credential.team_id.clone(), credential.key_id.clone());
                if !distinct.contains_key(&name) {
                    let mint = TokenMint::new(credential, clock.clone());
                    mint.current()?;
                    let pool = Pool::new(Parts {
                        environment,
                        connections: settings.connections.clone(),
                        request_timeout: settings.request_timeout,
                        dial: Arc::clone(&dials[environment.index()]),
                        addresses: Arc::clone(&addresses[environment.index()]),
                        mint: Arc::new(mint),
                        template: Arc::clone(&templates[environment.index()]),
                        clock: clock.clone(),
                        metrics: Arc::clone(metrics),
                        jitter: jitter.clone(),
                        ids: Arc::clone(&ids),
                    });
                    distinct.insert(name.clone(), pool);
                }
                pair.push(Arc::clone(&distinct[&name]));
            }
            let [production, sandbox] =
                <[_; 2]>::try_from(pair).unwrap_or_else(|_| unreachable!("two environments"));
            pools.push([production, sandbox]);
        }
        Ok(Self { pools: Arc::new(pools), distinct: Arc::new(distinct.into_iter().collect()) })
    }

    /// Opens the connections that each app needs by default; the other environment's open at their first push.
    pub fn start(&self, apps: &[Arc<App>]) {
        for app in apps {
            self.pools[app.index][app.environment.index()].start();
        }
    }

    /// Every pool's state.
    pub fn states(&self) -> Vec<PoolState> {
        let state = |((environment, _, key_id), pool): &(PoolName, Arc<Pool>)| PoolState {
            environment: *environment,
            key_id: key_id.clone(),
            is_usable: pool.is_usable(),
            is_started: pool.is_started(),
            trouble: pool.trouble(),
        };
        self.distinct.iter().map(state).collect()
    }

    /// Writes the gauges that only a scrape needs.
    pub fn refresh(&self, apps: &[Arc<App>], metrics: &Metrics) {
        for environment in Environment::ALL {
            let (mut used, mut allowed, mut oldest, mut suspects) = (0, 0, Duration::ZERO, 0);
            for ((_, _, _), pool) in self.distinct.iter().filter(|((of, _, _), _)| *of == environment) {
                let load = pool.load();
                used += load.0;
                allowed += load.1;
                oldest = oldest.max(load.2);
                suspects += pool.suspects();
            }
            metrics.apns_suspect_tokens(environment.as_str(), suspects);
            metrics.apns_streams(environment.as_str(), used, allowed);
            metrics.apns_oldest_unanswered(environment.as_str(), oldest);
        }
        for app in apps {
            for environment in Environment::ALL {
                let is_open = self.pools[app.index][environment.index()].circuit.trouble().is_some();
                metrics.apns_circuit(&app.name, environment.as_str(), is_open);
            }
            if let Some(age) = self.pools[app.index][app.environment.index()].parts.mint.age_seconds() {
                metrics.provider_token_age(
                    &app.name,
                    Duration::from_secs(age.max(0).unsigned_abs()).as_secs_f64(),
                );
            }
        }
    }

    /// Closes every connection after its open streams, within a limit.
    pub async fn close(&self) {
        join_all(self.distinct.iter().map(|(_, pool)| pool.close())).await;
    }

    /// The pool that an app's pushes take.
    pub(super) fn pool(&self, app: usize, environment: Environment) -> &Arc<Pool> {
        &self.pools[app][environment.index()]
    }
}
