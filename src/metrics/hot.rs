//! What every push counts. Its series are kept, so that counting compares a word or two instead of hashing all labels;
//! whatever is not among them is found the long way, as everything else is.

use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus::{Histogram, IntCounter};

use super::Metrics;
use super::labels::{ATTEMPTS, DEVICES, ENVIRONMENTS, INVITES, STAGES, status_label};

/// The series that every push counts in.
#[derive(Default)]
pub(super) struct Hot {
    stages: Words<Histogram>,
    attempts: Words<IntCounter>,
    /// The answer of an accepted push, by environment. It has no series before the first.
    accepted: [OnceLock<IntCounter>; 2],
    apps: RwLock<Vec<AppSeries>>,
}

/// The series of one family and the word that each has for its last label.
struct Words<T>(Vec<(&'static str, T)>);

impl<T> Default for Words<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Words<T> {
    fn of(words: &[&'static str], series: impl Fn(&'static str) -> T) -> Self {
        Self(words.iter().map(|word| (*word, series(word))).collect())
    }

    fn get(&self, word: &str) -> Option<&T> {
        self.0.iter().find(|(known, _)| *known == word).map(|(_, series)| series)
    }
}

/// The series of one configured app.
struct AppSeries {
    name: String,
    invites: Words<IntCounter>,
    devices: [Words<IntCounter>; 2],
}

impl Hot {
    pub(super) fn of(metrics: &Metrics) -> Self {
        Self {
            stages: Words::of(&STAGES, |stage| metrics.stage_seconds.with_label_values(&[stage])),
            attempts: Words::of(&ATTEMPTS, |class| metrics.attempts.with_label_values(&[class])),
            ..Self::default()
        }
    }

    /// Makes the series of an app and keeps them.
    pub(super) fn start_app(&self, metrics: &Metrics, app: &str) {
        let series = AppSeries {
            name: app.to_owned(),
            invites: Words::of(&INVITES, |result| metrics.invites.with_label_values(&[app, result])),
            devices: ENVIRONMENTS.map(|environment| {
                Words::of(&DEVICES, |result| metrics.devices.with_label_values(&[app, environment, result]))
            }),
        };
        let mut apps = self.apps.write();
        apps.retain(|known| known.name != app);
        apps.push(series);
    }
}

/// The place of an environment in tables.
fn place(environment: &str) -> Option<usize> {
    ENVIRONMENTS.iter().position(|known| *known == environment)
}

impl Metrics {
    /// An invite is final. `app`: a configured name, or `None`.
    pub fn invite(&self, app: Option<&str>, result: &str) {
        let app = app.unwrap_or("unknown");
        let apps = self.hot.apps.read();
        match apps.iter().find(|known| known.name == app).and_then(|app| app.invites.get(result)) {
            Some(counter) => counter.inc(),
            None => self.invites.with_label_values(&[app, result]).inc(),
        }
    }

    /// A device is final.
    pub fn device(&self, app: &str, environment: &str, result: &str) {
        let apps = self.hot.apps.read();
        let series = apps
            .iter()
            .find(|known| known.name == app)
            .and_then(|app| app.devices[place(environment)?].get(result));
        match series {
            Some(counter) => counter.inc(),
            None => self.devices.with_label_values(&[app, environment, result]).inc(),
        }
    }

    /// APNs answered. `reason`: a word from a closed set, `none` or `other`.
    pub fn apns_response(&self, environment: &str, status: u16, reason: &str) {
        let counter = || self.apns_responses.with_label_values(&[environment, status_label(status), reason]);
        match place(environment) {
            Some(place) if status == 200 && reason == "none" => {
                self.hot.accepted[place].get_or_init(counter).inc();
            }
            _ => counter().inc(),
        }
    }

    /// Time spent in a stage: `queue`, `slot`, `apns`, `confirm`, `total`.
    pub fn stage(&self, stage: &str, spent: Duration) {
        match self.hot.stages.get(stage) {
            Some(histogram) => histogram.observe(spent.as_secs_f64()),
            None => self.stage_seconds.with_label_values(&[stage]).observe(spent.as_secs_f64()),
        }
    }

    /// An attempt starts: `first`, `unprocessed`, `transient`, `ambiguous`.
    pub fn attempt(&self, class: &str) {
        match self.hot.attempts.get(class) {
            Some(counter) => counter.inc(),
            None => self.attempts.with_label_values(&[class]).inc(),
        }
    }
}
