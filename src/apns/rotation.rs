//! New credentials in a running worker: make before break.
//!
//! A credential that changed gets a pool of its own, which is opened while pushes go on over the old one. Once it is usable
//! the table is swapped, and the old pool closes when its open streams have finished.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::credential::Credential;
use super::pool::REAP_WAIT;
use super::pools::{Apns, SetupError};
use super::table::{Entry, Table, find};
use crate::domain::app::Environment;

/// How often a pool that warms up or empties is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A new pool that takes longer is worth a word. It goes on trying, and the old one goes on serving.
const WARM_WAIT: Duration = Duration::from_secs(30);

/// An app that is to push over another pool.
struct Change {
    app: usize,
    entry: Entry,
}

impl Change {
    fn replaces<'a>(&self, table: &'a Table) -> &'a Entry {
        table.entry(self.app, self.entry.name.0)
    }
}

impl Apns {
    /// Takes over the credentials of all apps, by their index and environment. What did not change keeps its connections.
    /// Returns when all are in use, which may be never: a caller that drops this and asks again may do so, and what was
    /// asked for before is given up. Not to be called twice at once.
    ///
    /// Errors: a credential cannot be used at all, and nothing was changed.
    pub async fn update(&self, credentials: &[[Credential; 2]]) -> Result<(), SetupError> {
        let mut changes = self.prepare(credentials)?;
        let begun = Instant::now();
        let mut is_told = false;
        loop {
            let table = self.table();
            // A pool that carries nothing is worth no waiting.
            let is_due =
                |change: &Change| change.entry.pool.is_usable() || !change.replaces(&table).pool.is_usable();
            let (due, waiting) = changes.into_iter().partition(is_due);
            self.take_over(due, &waiting);
            changes = waiting;
            if changes.is_empty() {
                return Ok(());
            }
            if !is_told && begun.elapsed() >= WARM_WAIT {
                is_told = true;
                self.tell_waiting(&changes);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Opens the pools that are new, and gives up those that were to come and are not wanted any more.
    fn prepare(&self, credentials: &[[Credential; 2]]) -> Result<Vec<Change>, SetupError> {
        let table = self.table();
        let mut warming = self.0.warming.lock();
        let mut wanted: Vec<Entry> = Vec::new();
        let mut changes = Vec::new();
        for (app, environment) in
            (0..table.entries().len()).flat_map(|app| Environment::ALL.map(|environment| (app, environment)))
        {
            let credential = &credentials[app][environment.index()];
            let name = (environment, credential.name());
            if table.entry(app, environment).name == name {
                continue;
            }
            let known = find(table.distinct(), &name).or_else(|| find(&wanted, &name));
            let entry = if let Some(known) = known {
                known.clone()
            } else {
                let entry = match find(&warming, &name) {
                    Some(earlier) => earlier.clone(),
                    None => self.0.maker.make(environment, credential)?,
                };
                wanted.push(entry.clone());
                entry
            };
            changes.push(Change { app, entry });
        }
        for change in changes.iter().filter(|change| change.replaces(&table).pool.is_started()) {
            change.entry.pool.start();
        }
        let earlier = std::mem::replace(&mut *warming, wanted);
        let unwanted: Vec<Entry> =
            earlier.into_iter().filter(|entry| find(&warming, &entry.name).is_none()).collect();
        drop(warming);
        for entry in unwanted {
            self.dismiss(entry);
        }
        Ok(changes)
    }

    /// From now on these apps push over their new pools; the old ones close, where no app uses them any more and none waits
    /// for them.
    fn take_over(&self, changes: Vec<Change>, waiting: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let before = self.table();
        let mut entries = before.entries().to_vec();
        for change in changes {
            let environment = change.entry.name.0;
            let slot = &mut entries[change.app][environment.index()];
            tracing::info!(
                app = self.0.maker.apps[change.app].name,
                apns.environment = environment.as_str(),
                credential = %change.entry.credential,
                before = %slot.credential,
                "a new credential is in use"
            );
            *slot = change.entry;
        }
        let after = Table::new(entries);
        let is_unused = |entry: &Entry| find(after.distinct(), &entry.name).is_none();
        let is_awaited = |entry: &Entry| waiting.iter().any(|change| change.entry.name == entry.name);
        let (awaited, left): (Vec<Entry>, Vec<Entry>) =
            before.distinct().iter().filter(|entry| is_unused(entry)).cloned().partition(is_awaited);
        {
            let mut warming = self.0.warming.lock();
            warming.retain(is_unused);
            warming.extend(awaited);
        }
        self.swap(after);
        for entry in left {
            self.dismiss(entry);
        }
    }

    /// Closes a pool once its open streams have finished, late answers included.
    fn dismiss(&self, entry: Entry) {
        self.0.leaving.lock().push(entry.clone());
        let apns = self.clone();
        tokio::spawn(async move {
            let until = Instant::now() + apns.0.maker.request_timeout + REAP_WAIT;
            while entry.pool.load().0 > 0 && Instant::now() < until {
                sleep(LOOK_EVERY).await;
            }
            entry.pool.close().await;
            apns.0.leaving.lock().retain(|other| !Arc::ptr_eq(&other.pool, &entry.pool));
        });
    }

    fn tell_waiting(&self, changes: &[Change]) {
        for Change { app, entry } in changes {
            tracing::warn!(
                app = self.0.maker.apps[*app].name,
                apns.environment = entry.name.0.as_str(),
                credential = %entry.credential,
                error = entry.pool.trouble(),
                "a new credential has no usable connection yet; the one in use goes on until it has"
            );
        }
    }
}
