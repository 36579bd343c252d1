//! Which pool each app pushes over. A push reads it once; new credentials swap it as a whole.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::Settings;
use super::credential::{Credential, CredentialName};
use super::pool::{Parts, Pool};
use super::pools::SetupError;
use super::provider_token::TokenMint;
use super::request::Template;
use super::tls::Dials;
use crate::clock::Clock;
use crate::domain::app::{App, Environment};
use crate::metrics::Metrics;
use crate::pause::Jitter;
use crate::worker::gateway::AppKeyIds;

/// What a pool is bound to: APNs binds a connection to environment and credential.
pub(super) type PoolName = (Environment, CredentialName);

/// A pool, and whom it speaks for.
#[derive(Clone)]
pub(super) struct Entry {
    pub name: PoolName,
    pub credential: Credential,
    pub pool: Arc<Pool>,
}

/// See the module.
pub(super) struct Table {
    /// By the index of an app and of an environment.
    entries: Vec<[Entry; 2]>,
    /// Each pool once, by name.
    distinct: Vec<Entry>,
}

impl Table {
    pub(super) fn new(entries: Vec<[Entry; 2]>) -> Self {
        let by_name: BTreeMap<&PoolName, &Entry> =
            entries.iter().flatten().map(|entry| (&entry.name, entry)).collect();
        let distinct = by_name.into_values().cloned().collect();
        Self { entries, distinct }
    }

    pub(super) fn entries(&self) -> &[[Entry; 2]] {
        &self.entries
    }

    pub(super) fn distinct(&self) -> &[Entry] {
        &self.distinct
    }

    pub(super) fn entry(&self, app: usize, environment: Environment) -> &Entry {
        &self.entries[app][environment.index()]
    }

    pub(super) fn key_ids(&self) -> Vec<AppKeyIds> {
        let key_id = |entry: &Entry| entry.credential.key_id().map(Arc::from);
        self.entries.iter().map(|pair| pair.each_ref().map(key_id)).collect()
    }
}

/// The entry of that name.
pub(super) fn find<'a>(entries: &'a [Entry], name: &PoolName) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.name == *name)
}

/// Makes pools; what they have in common.
pub(super) struct Maker {
    pub apps: Vec<Arc<App>>,
    pub metrics: Arc<Metrics>,
    pub request_timeout: Duration,
    connections: RangeInclusive<usize>,
    dials: Dials,
    clock: Clock,
    jitter: Jitter,
    templates: [Arc<Template>; 2],
    ids: Arc<AtomicU64>,
    turns: Arc<AtomicU64>,
}

impl Maker {
    pub(super) fn new(
        settings: &Settings,
        apps: &[Arc<App>],
        dials: Dials,
        clock: &Clock,
        metrics: &Arc<Metrics>,
        jitter: &Jitter,
    ) -> Result<Self, SetupError> {
        let [production, sandbox] = Environment::ALL.map(|environment| {
            Template::new(settings.endpoint(environment), apps.iter().map(AsRef::as_ref)).map(Arc::new)
        });
        Ok(Self {
            apps: apps.to_vec(),
            metrics: Arc::clone(metrics),
            request_timeout: settings.request_timeout,
            connections: settings.connections.clone(),
            dials,
            clock: clock.clone(),
            jitter: jitter.clone(),
            templates: [production?, sandbox?],
            ids: Arc::default(),
            turns: Arc::default(),
        })
    }

    /// A pool that opens no connection yet. Signs once, so that a broken key shows now.
    pub(super) fn make(
        &self,
        environment: Environment,
        credential: &Credential,
    ) -> Result<Entry, SetupError> {
        let mint = match credential {
            Credential::Token(key) => {
                let metrics = Arc::clone(&self.metrics);
                Some(Arc::new(TokenMint::new(key, environment, self.clock.clone(), metrics)))
            }
            Credential::Certificate(_) => None,
        };
        mint.as_ref().map(|mint| mint.current()).transpose()?;
        let pool = Pool::new(Parts {
            environment,
            connections: self.connections.clone(),
            request_timeout: self.request_timeout,
            dial: (self.dials)(environment, credential)?,
            // Its own: what one credential is refused must not keep the others from an address.
            addresses: Arc::default(),
            mint,
            template: Arc::clone(&self.templates[environment.index()]),
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            jitter: self.jitter.clone(),
            ids: Arc::clone(&self.ids),
            turns: Arc::clone(&self.turns),
        });
        Ok(Entry { name: (environment, credential.name()), credential: credential.clone(), pool })
    }
}
