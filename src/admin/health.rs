//! Whether the process lives and whether it is ready: the rooms report here, the endpoints read.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Without a heartbeat for longer, the core counts as stuck. Far above any pause that heals by itself.
const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(10);

/// Between two heartbeats of [`Health::beat`].
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Where the rooms report; clones share one state.
#[derive(Clone)]
pub struct Health(Arc<Shared>);

struct Shared {
    beaten: Mutex<Instant>,
    contributors: Mutex<Vec<Contributor>>,
}

struct Contributor {
    name: String,
    readiness: Box<dyn Fn() -> Readiness + Send>,
}

/// What one room says about taking work: reasons against it, and notes that hinder nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    reasons: Vec<String>,
    notes: Vec<String>,
}

impl Readiness {
    /// Nothing is in the way.
    pub fn ready() -> Self {
        Self::default()
    }

    /// Something is in the way. One line, without the room's name.
    pub fn not_ready(reason: impl Into<String>) -> Self {
        Self::default().with_reason(reason)
    }

    /// Something more is in the way.
    #[must_use]
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reasons.push(reason.into());
        self
    }

    /// Something worth knowing, ready or not: a pool without a connection while another has one.
    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl Health {
    /// Alive from now on, and not ready until somebody reports.
    pub fn new() -> Self {
        Self(Arc::new(Shared { beaten: Mutex::new(Instant::now()), contributors: Mutex::new(Vec::new()) }))
    }

    /// Adds a condition of being ready. `readiness` is asked on the admin thread at each request: it reads a flag and
    /// returns, and it does not call back into this `Health`. A second one of the same name replaces the first.
    pub fn ready_when(&self, name: &str, readiness: impl Fn() -> Readiness + Send + 'static) {
        let contributor = Contributor { name: name.to_owned(), readiness: Box::new(readiness) };
        let mut contributors = self.0.contributors.lock();
        match contributors.iter_mut().find(|earlier| earlier.name == name) {
            Some(earlier) => *earlier = contributor,
            None => contributors.push(contributor),
        }
    }

    /// The core does its rounds. To be called more often than every ten seconds, from the core's own thread.
    pub fn heartbeat(&self) {
        *self.0.beaten.lock() = Instant::now();
    }

    /// Beats once a second for as long as it is polled: a task for the core's runtime.
    pub async fn beat(&self) -> Infallible {
        loop {
            self.heartbeat();
            tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        }
    }

    /// As if the last heartbeat lay so long back.
    #[cfg(test)]
    pub(super) fn silent_for(&self, age: Duration) {
        *self.0.beaten.lock() -= age;
    }

    /// A sentence where the core has not been heard for too long.
    pub(super) fn stuck(&self) -> Option<String> {
        let age = self.0.beaten.lock().elapsed();
        let seconds = age.as_secs();
        (age > HEARTBEAT_AGE_MAX).then(|| format!("the core has been stuck for {seconds} seconds"))
    }

    /// Whether work can be taken, and the lines that say so: reasons, then notes, each with its room.
    pub(super) fn readiness(&self) -> (bool, String) {
        let contributors = self.0.contributors.lock();
        let mut reasons = String::new();
        let mut notes = String::new();
        for Contributor { name, readiness } in contributors.iter() {
            let Readiness { reasons: against, notes: beside } = readiness();
            for line in &against {
                add_line(&mut reasons, name, line);
            }
            for line in &beside {
                add_line(&mut notes, name, line);
            }
        }
        if contributors.is_empty() {
            add_line(&mut reasons, "starting", "nothing has reported yet");
        }
        let ready = reasons.is_empty();
        if ready {
            "ready\n".clone_into(&mut reasons);
        }
        (ready, reasons + &notes)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Health").finish_non_exhaustive()
    }
}

fn add_line(lines: &mut String, name: &str, line: &str) {
    lines.push_str(name);
    lines.push_str(": ");
    lines.push_str(&line.replace('\n', " "));
    lines.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_core_without_a_heartbeat_is_stuck() {
        let health = Health::new();
        tokio::time::advance(HEARTBEAT_AGE_MAX).await;
        assert_eq!(health.stuck(), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(health.stuck().as_deref(), Some("the core has been stuck for 12 seconds"));
        health.heartbeat();
        assert_eq!(health.stuck(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_keeps_the_core_alive() {
        let health = Health::new();
        let beating = tokio::time::timeout(Duration::from_mins(1), health.beat()).await;
        assert!(beating.is_err(), "it beats for ever");
        assert_eq!(health.stuck(), None);
    }

    #[test]
    fn a_later_contributor_of_a_name_replaces_the_earlier() {
        let health = Health::new();
        health.ready_when("lifecycle", || Readiness::not_ready("starting"));
        assert_eq!(health.readiness(), (false, "lifecycle: starting\n".to_owned()));
        health.ready_when("lifecycle", Readiness::ready);
        assert_eq!(health.readiness(), (true, "ready\n".to_owned()));
        health.ready_when("lifecycle", || Readiness::not_ready("draining"));
        assert!(!health.readiness().0);
    }
}
