//! The worker's gateway to APNs: finds the pool of a push and makes one attempt on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::future::join_all;
use h2::client::ResponseFuture;
use tokio::time::{Instant, timeout, timeout_at};

use super::dial::Dial;
use super::pool::{Parts, Pool, REAP_WAIT, Slot};
use super::provider_token::TokenMint;
use super::request::{Template, TemplateError};
use super::{Settings, response};
use crate::clock::Clock;
use crate::domain::app::{App, Environment};
use crate::domain::policy::PushError;
use crate::domain::response::{Meaning, Response};
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::pause::Jitter;
use crate::worker::gateway::{Gateway, Push};

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
                        connections: settings.connections,
                        request_timeout: settings.request_timeout,
                        dial: Arc::clone(&dials[environment.index()]),
                        mint,
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
            let (mut used, mut allowed, mut oldest) = (0, 0, Duration::ZERO);
            for ((_, _, _), pool) in self.distinct.iter().filter(|((of, _, _), _)| *of == environment) {
                let load = pool.load();
                used += load.0;
                allowed += load.1;
                oldest = oldest.max(load.2);
            }
            metrics.apns_streams(environment.as_str(), used, allowed);
            metrics.apns_oldest_unanswered(environment.as_str(), oldest);
        }
        for app in apps {
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
}

impl Gateway for Apns {
    async fn push(&self, push: &Push) -> Result<Response, PushError> {
        let pool = &self.pools[push.app.index][push.environment.index()];
        pool.start();
        let asked = Instant::now();
        let slot = pool.acquire(push.deadline, push.trail.last()).await.ok_or(PushError::NotSent)?;
        let written = Instant::now();
        pool.parts.metrics.stage("slot", written - asked);
        if written >= push.deadline {
            return Err(PushError::NotSent);
        }
        push.trail.mark(slot.connection.id, written);
        let answer = write(pool, &slot, push)?;
        await_answer(slot, push, answer, written).await
    }
}

/// Hands the request to the connection. Whatever fails here was surely not processed: without its body a request is not
/// complete.
fn write(pool: &Pool, slot: &Slot, push: &Push) -> Result<ResponseFuture, PushError> {
    let authorization = slot
        .connection
        .authorization(&pool.parts.mint)
        .map_err(|error| PushError::NotProcessed(error.to_string()))?;
    let now = Timestamp::from_unix_ms(pool.parts.clock.unix_ms());
    let request = pool
        .parts
        .template
        .encode(push, authorization, now)
        .map_err(|error| PushError::NotProcessed(error.to_string()))?;
    let refused = |error: h2::Error| {
        pool.retire(&slot.connection, &error.to_string());
        PushError::NotProcessed(error.to_string())
    };
    let (answer, mut stream) =
        slot.connection.sender.clone().send_request(request, false).map_err(refused)?;
    stream.send_data(push.body.clone(), true).map_err(refused)?;
    Ok(answer)
}

/// Waits for the answer, at most `request_timeout` and never beyond `answer_by`.
async fn await_answer(
    slot: Slot,
    push: &Push,
    mut answer: ResponseFuture,
    written: Instant,
) -> Result<Response, PushError> {
    let pool = Arc::clone(slot.pool());
    let limit = written + pool.parts.request_timeout;
    let head = match timeout_at(limit.min(push.answer_by), &mut answer).await {
        Ok(Ok(head)) => head,
        Ok(Err(error)) => return Err(classify(&error)),
        Err(_) => {
            let waited = written.elapsed();
            if !slot.connection.is_proven() {
                // Its only stream is taken by a request that may never be answered.
                pool.retire(&slot.connection, "its first request was not answered");
            }
            reap(slot, answer, limit);
            return Err(PushError::Unknown(format!("no answer within {} ms", waited.as_millis())));
        }
    };
    let response = response::read(head, push.answer_by).await;
    let metrics = &pool.parts.metrics;
    metrics.stage("apns", written.elapsed());
    metrics.apns_response(pool.parts.environment.as_str(), response.status, &response.reason_label());
    if response.meaning() == Meaning::ProviderTokenRefused {
        // The connection stays wedged; a fresh one starts with a fresh look at the token.
        pool.retire(&slot.connection, &response.reason_label());
        return Err(PushError::ProviderToken(response));
    }
    if response.status != 403 {
        slot.prove();
    }
    Ok(response)
}

/// Waits on for an answer that comes too late to matter to its call: it is counted, and its stream stays given out until
/// then. From `limit` on (the request's own, which the call's end may have forestalled) the connection is out of use.
fn reap(slot: Slot, mut answer: ResponseFuture, limit: Instant) {
    tokio::spawn(async move {
        let pool = slot.pool();
        let mut answered = timeout_at(limit, &mut answer).await;
        if answered.is_err() {
            pool.retire(&slot.connection, "a request was not answered in time");
            answered = timeout(REAP_WAIT, answer).await;
        }
        if let Ok(Ok(head)) = answered {
            slot.prove();
            pool.parts.metrics.late_answer(pool.parts.environment.as_str(), head.status().as_u16());
        }
    });
}

/// Whether the peer surely did not process a request that failed (RFC 9113 §8.7): a refused stream, or one above the last
/// id of a GOAWAY. An I/O error says nothing, whatever the stream's number.
fn classify(error: &h2::Error) -> PushError {
    let refused = error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if refused || (error.is_go_away() && error.is_remote()) {
        PushError::NotProcessed(error.to_string())
    } else {
        PushError::Unknown(error.to_string())
    }
}
