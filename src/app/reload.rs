//! Credentials, trust roots and the broker's settings while the worker runs: their files are looked at, and what changed is
//! taken over.
//!
//! A look compares what the system says of the files, links followed: a mounted secret changes by swapping a link. A change
//! is judged once it has stood still from one look to the next, so that neither a file that is half written nor one that is
//! missing for a moment is taken for a mistake. Then the whole configuration is read again, by the rules of a start.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep};

use crate::amqp;
use crate::apns::tls::Trust;
use crate::apns::{Apns, Credential};
use crate::clock::Clock;
use crate::config::{AppCertificate, Concern, Config};
use crate::domain::app::App;
use crate::metrics::Metrics;

/// How often a certificate that is expired, or soon will be, is told of again.
const REMIND_EVERY: Duration = Duration::from_hours(24);

/// A shard, to which what changed is handed on.
pub(super) struct Taker {
    /// Of its thread: there it opens its connections.
    pub(super) runtime: Handle,
    pub(super) apns: Apns,
    /// Where it finds the broker's settings.
    pub(super) amqp: watch::Sender<amqp::Settings>,
}

/// A task that ends when this goes.
pub(super) struct Task(AbortHandle);

impl Task {
    /// Ends it now.
    pub(super) fn stop(&self) {
        self.0.abort();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Looks at the files every `apns.reload_interval`, and tells of certificates, for as long as the task is kept.
pub(super) fn start(config: &Config, trust: &Trust, takers: Vec<Taker>, metrics: &Arc<Metrics>) -> Task {
    let can_be_read_again = config.can_be_read_again();
    if !can_be_read_again {
        tracing::info!(
            "the configuration, or a file that it names, is read once, from a pipe: changes wait for a start"
        );
    }
    if config.reload_interval.is_zero() || !can_be_read_again {
        return Task(tokio::spawn(remind(config.clone())).abort_handle());
    }
    let reload = Reload {
        started: config.clone(),
        current: config.clone(),
        credentials: config.apns.credentials.clone(),
        trust: trust.clone(),
        takers,
        broker: config.amqp.clone(),
        metrics: Arc::clone(metrics),
        refused: None,
        waiting: Vec::new(),
        taking: JoinSet::new(),
    };
    Task(tokio::spawn(reload.run()).abort_handle())
}

/// Tells of certificates alone.
async fn remind(config: Config) {
    loop {
        sleep(REMIND_EVERY).await;
        tell_concerns(&config);
    }
}

/// Says what is wrong with certificates, if anything is: one tenant's does not keep the others from ringing.
pub(super) fn tell_concerns(config: &Config) {
    let now = Clock::system().unix_ms();
    for one in &config.certificates {
        match one.concern(now) {
            Some(Concern::Mistake(what)) => {
                tracing::error!(app = one.app, setting = one.place, "APNs will refuse a certificate: {what}");
            }
            Some(Concern::Warning(what)) => {
                tracing::warn!(app = one.app, setting = one.place, "a certificate is running out: {what}");
            }
            None => {}
        }
    }
    if let Some(one) = &config.broker_certificate {
        match one.concern(now) {
            Some(Concern::Mistake(what)) => {
                tracing::error!(setting = one.place, "the broker will refuse a certificate: {what}");
            }
            Some(Concern::Warning(what)) => {
                tracing::warn!(setting = one.place, "a certificate is running out: {what}");
            }
            None => {}
        }
    }
}

/// What the system says of the files, by path; `None`: it cannot be looked at.
type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// Device and inode, bytes, and the times of the last changes of content and inode.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

struct Reload {
    /// What the worker runs with.
    started: Config,
    /// What was read last without a mistake: its files are looked at.
    current: Config,
    /// What was taken over last.
    credentials: Vec<[Credential; 2]>,
    trust: Trust,
    takers: Vec<Taker>,
    /// The broker's settings that were handed on last.
    broker: amqp::Settings,
    metrics: Arc<Metrics>,
    /// The mistakes of the last reading, so that the same are told once.
    refused: Option<String>,
    /// Keys that wait for a start, so that the same are told once.
    waiting: Vec<String>,
    taking: JoinSet<()>,
}

impl Reload {
    async fn run(mut self) {
        // A change between the start's reading and the first look would be missed: the first look counts as one.
        let mut judged: Option<Stamps> = None;
        let mut last: Option<Stamps> = None;
        let mut reminded = Instant::now();
        loop {
            sleep(self.started.reload_interval).await;
            if reminded.elapsed() >= REMIND_EVERY {
                reminded = Instant::now();
                tell_concerns(&self.current);
            }
            let stamps = look(&self.current).await;
            let stands_still = last.as_ref() == Some(&stamps);
            let is_new = judged.as_ref() != Some(&stamps);
            last = Some(stamps.clone());
            // After a refusal each look reads again: what is missing may be a file that is not looked at yet.
            if !stands_still || !(is_new || self.refused.is_some()) {
                continue;
            }
            let Some(read) = read_again(&self.current).await else { continue };
            if look(&self.current).await != stamps {
                continue;
            }
            match read.and_then(|read| self.check(&read.0).map(|()| read)) {
                Ok((config, trust)) => self.accept(config, &trust).await,
                Err(mistakes) => self.refuse(mistakes),
            }
            // Where other files are looked at from now on, the next look differs, and all is read once more.
            judged = Some(stamps);
        }
    }

    /// Refuses new certificates that APNs would refuse. A start takes them, for the sake of the other apps; here there is one
    /// in use that may do better.
    fn check(&self, config: &Config) -> Result<(), String> {
        let now = Clock::system().unix_ms();
        let is_new = |one: &&AppCertificate| {
            let credential = Credential::Certificate(one.certificate.clone());
            let runs = self.started.apps.iter().find(|app| app.name == one.app);
            runs.is_some_and(|app| !self.credentials[app.index].contains(&credential))
        };
        let mistake = |one: &AppCertificate| match one.concern(now) {
            Some(Concern::Mistake(what)) => Some(format!("{}: {what}", one.place)),
            _ => None,
        };
        let mistakes: Vec<String> = config.certificates.iter().filter(is_new).filter_map(mistake).collect();
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes.join("\n")) }
    }

    /// Takes over what may change in a running worker.
    async fn accept(&mut self, config: Config, trust: &Trust) {
        if self.refused.take().is_some() {
            tracing::info!("the configuration has no mistakes any more");
        }
        let roots_changed = self.trust.replace(trust);
        if roots_changed {
            tracing::info!("the trust roots for APNs changed; new connections use them");
        }
        let certificate_changed = shown_to_broker(&config) != shown_to_broker(&self.current);
        if certificate_changed {
            tracing::info!("the client certificate for the broker changed; the next connection uses it");
        }
        let broker_changed = self.renew_broker(&config) || certificate_changed;
        let credentials = self.credentials_of_known_apps(&config);
        let changed = credentials != self.credentials;
        let mut waiting = self.started.differences(&config);
        waiting.extend(self.credentials_that_wait(&config));
        if !waiting.is_empty() && waiting != self.waiting {
            tracing::info!(
                settings = waiting.join(", "),
                "settings changed; they take effect at the next start"
            );
        }
        self.waiting = waiting;
        self.current = config;
        if changed || certificate_changed {
            tell_concerns(&self.current);
        }
        if changed {
            self.credentials.clone_from(&credentials);
            // What was asked for before and has not come is given up.
            self.taking.shutdown().await;
            self.take(credentials);
        } else if roots_changed || broker_changed {
            self.metrics.credential_reload("taken");
        }
    }

    /// Each shard opens connections of its own, on its own thread. It counts as taken when the last one uses what is new.
    fn take(&mut self, credentials: Vec<[Credential; 2]>) {
        let credentials = Arc::new(credentials);
        let waited_for = Arc::new(AtomicUsize::new(self.takers.len()));
        let is_refused = Arc::new(AtomicBool::new(false));
        for Taker { runtime, apns, .. } in &self.takers {
            let (apns, metrics, credentials) =
                (apns.clone(), Arc::clone(&self.metrics), Arc::clone(&credentials));
            let (waited_for, is_refused) = (Arc::clone(&waited_for), Arc::clone(&is_refused));
            let take = async move {
                match apns.update(&credentials).await {
                    Ok(()) => {
                        if waited_for.fetch_sub(1, Ordering::Relaxed) == 1 {
                            metrics.credential_reload("taken");
                        }
                    }
                    // What one cannot use none can.
                    Err(error) => {
                        if !is_refused.swap(true, Ordering::Relaxed) {
                            metrics.credential_reload("refused");
                            tracing::warn!(%error, "new credentials cannot be used; those in use stay");
                        }
                    }
                }
            };
            self.taking.spawn_on(take, runtime);
        }
    }

    /// Hands the broker's settings on. True where they changed.
    fn renew_broker(&mut self, config: &Config) -> bool {
        let renewed = self.broker.renewed(&config.amqp);
        if renewed == self.broker {
            return false;
        }
        tracing::info!(
            amqp.prefetch = renewed.prefetch,
            amqp.consumer_priority = renewed.consumer_priority,
            "the broker's settings changed; the next connection uses what is new of address and login"
        );
        for taker in &self.takers {
            taker.amqp.send_replace(renewed.clone());
        }
        self.broker = renewed;
        true
    }

    /// The credentials by the worker's own indices. An app that is gone keeps what it has, and so does one that got another
    /// bundle id: its pushes go on under the old one, which the new credential need not be for. A new one waits for a start.
    fn credentials_of_known_apps(&self, config: &Config) -> Vec<[Credential; 2]> {
        let credentials = |app: &Arc<App>| match find(config, app).filter(|other| is_same(app, other)) {
            Some(other) => config.apns.credentials[other.index].clone(),
            None => self.credentials[app.index].clone(),
        };
        self.started.apps.iter().map(credentials).collect()
    }

    /// The tables of new credentials that wait for a start, with the new bundle ids of their apps.
    fn credentials_that_wait(&self, config: &Config) -> Vec<String> {
        let waits = |app: &&Arc<App>| {
            find(config, app).is_some_and(|other| {
                !is_same(app, other) && config.apns.credentials[other.index] != self.credentials[app.index]
            })
        };
        self.started.apps.iter().filter(waits).map(|app| format!("apps.{}.auth", app.name)).collect()
    }

    fn refuse(&mut self, mistakes: String) {
        if self.refused.as_ref() != Some(&mistakes) {
            self.metrics.credential_reload("refused");
            tracing::warn!(
                mistakes,
                "the configuration changed and has mistakes; everything stays as it is, and it is read again"
            );
            self.refused = Some(mistakes);
        }
    }
}

/// The client certificate that the broker is shown, to be compared.
fn shown_to_broker(config: &Config) -> Option<Credential> {
    config.broker_certificate.as_ref().map(|one| Credential::Certificate(one.certificate.clone()))
}

/// The app of that name.
fn find<'a>(config: &'a Config, app: &App) -> Option<&'a Arc<App>> {
    config.apps.iter().find(|other| other.name == app.name)
}

/// Whether it is still the same app to Apple.
fn is_same(app: &App, other: &App) -> bool {
    app.bundle_id == other.bundle_id
}

/// Reads everything again, on a thread where it may take its time. `None`: the process ends.
async fn read_again(config: &Config) -> Option<Result<(Config, Trust), String>> {
    let config = config.clone();
    let read = move || {
        let config = config.read_again().map_err(|mistakes| mistakes.to_string())?;
        let trust = Trust::load(config.apns.ca_file.as_deref()).map_err(|error| error.to_string())?;
        Ok((config, trust))
    };
    spawn_blocking(read).await.ok()
}

async fn look(config: &Config) -> Stamps {
    let files: Vec<PathBuf> = config.files().map(PathBuf::from).collect();
    let look = move || files.into_iter().map(|file| (file.clone(), stamp(&file))).collect();
    // Its failure is the end of the process, and nothing changed then.
    spawn_blocking(look).await.unwrap_or_default()
}

fn stamp(file: &std::path::Path) -> Option<Stamp> {
    let facts = std::fs::metadata(file).ok()?;
    let changed = (facts.ctime(), facts.ctime_nsec());
    Some((facts.dev(), facts.ino(), facts.len(), (facts.mtime(), facts.mtime_nsec()), changed))
}
