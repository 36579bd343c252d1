//! Whether the worker consumes, and if not, why: for readiness.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// What the broker's side is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Consuming from every invites queue.
    Consuming,
    /// Consuming from some of the invites queues.
    Partly {
        /// Which others cannot be read, and why: for an operator.
        reason: String,
    },
    /// Not consuming: no session yet, lost, refused, something missing, or stopping.
    NotConsuming {
        /// A sentence for an operator.
        reason: String,
        /// Since when, on tokio's clock; it does not move while only the reason changes.
        since: Instant,
    },
    /// Consuming, but something that results need went missing: they are not taken.
    Lacking {
        /// A sentence for an operator.
        reason: String,
    },
    /// Connected, but the broker takes no publications (a memory or disk alarm).
    Blocked {
        /// The broker's reason.
        reason: String,
    },
}

/// A handle to the present [`State`]; clones show the same one.
#[derive(Clone, Debug)]
pub struct Status(Arc<watch::Sender<Facts>>);

/// What the state follows from.
#[derive(Debug)]
struct Facts {
    /// Why there is no session, or none that consumes.
    without: Option<String>,
    /// Why the broker takes no publications.
    blocked: Option<String>,
    /// What results need and the broker lacks.
    lacking: Option<String>,
    /// What the broker lacks and calls do not need, by name, each with a sentence for an operator.
    notes: BTreeMap<&'static str, String>,
    /// The invites queues of the session, each with the reason why it is not read.
    queues: BTreeMap<String, Option<String>>,
    /// Since when nothing is consumed, if so.
    idle_since: Option<Instant>,
}

impl Facts {
    fn state(&self) -> State {
        let unread = || self.queues.values().flatten().map(String::as_str).collect::<Vec<_>>().join("; ");
        match (&self.idle_since, &self.without, &self.blocked) {
            (Some(since), why, _) => {
                State::NotConsuming { reason: why.clone().unwrap_or_else(unread), since: *since }
            }
            (None, _, Some(reason)) => State::Blocked { reason: reason.clone() },
            (None, ..) if let Some(reason) = &self.lacking => State::Lacking { reason: reason.clone() },
            (None, ..) if self.queues.values().any(Option::is_some) => State::Partly { reason: unread() },
            (None, ..) => State::Consuming,
        }
    }

    fn settle(&mut self) {
        let idle = self.without.is_some() || self.queues.values().all(Option::is_some);
        self.idle_since = idle.then(|| self.idle_since.unwrap_or_else(Instant::now));
    }
}

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

impl Status {
    /// Not consuming, because nothing was tried yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Facts {
            without: Some("not connected to the broker yet".to_owned()),
            blocked: None,
            lacking: None,
            notes: BTreeMap::new(),
            queues: BTreeMap::new(),
            idle_since: Some(Instant::now()),
        })))
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.0.borrow().state()
    }

    /// Waits until the state is one that `wanted` accepts, and returns it.
    pub async fn wait_for(&self, mut wanted: impl FnMut(&State) -> bool) -> State {
        let mut facts = self.0.subscribe();
        // `self` keeps the sender, so the wait cannot fail.
        facts
            .wait_for(|facts| wanted(&facts.state()))
            .await
            .map_or_else(|_| self.state(), |facts| facts.state())
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        self.0.send_modify(|facts| {
            change(facts);
            facts.settle();
        });
    }

    /// A session that is to consume from these queues began.
    pub(super) fn in_session(&self, queues: &[String]) {
        self.change(|facts| {
            facts.without = None;
            facts.blocked = None;
            facts.lacking = None;
            let unread = |queue: &String| (queue.clone(), Some(format!("queue {queue} is not read yet")));
            facts.queues = queues.iter().map(unread).collect();
        });
    }

    /// A queue is read; `unread`: it is not, and why.
    pub(super) fn read(&self, queue: &str, unread: Option<&str>) {
        self.change(|facts| {
            facts.queues.insert(queue.to_owned(), unread.map(str::to_owned));
        });
    }

    /// The broker takes no publications, and why; or it takes them again.
    pub(super) fn blocked(&self, reason: Option<String>) {
        self.change(|facts| facts.blocked = reason);
    }

    /// Something that results need is missing, and what; or all of it is there.
    pub(super) fn lacking(&self, reason: Option<&str>) {
        self.change(|facts| facts.lacking = reason.map(str::to_owned));
    }

    /// Calls ring without it, and somebody misses it all the same; or it is there. `note`: a sentence for an operator.
    pub(super) fn note(&self, name: &'static str, note: Option<String>) {
        self.change(|facts| match note {
            Some(note) => _ = facts.notes.insert(name, note),
            None => _ = facts.notes.remove(name),
        });
    }

    /// Whether somebody misses it.
    pub(super) fn is_noted(&self, name: &str) -> bool {
        self.0.borrow().notes.contains_key(name)
    }

    /// What the session does without, in sentences for an operator.
    pub fn notes(&self) -> Vec<String> {
        let facts = self.0.borrow();
        if facts.without.is_some() { Vec::new() } else { facts.notes.values().cloned().collect() }
    }

    /// There is no session that consumes.
    pub(super) fn not_consuming(&self, why: &str) {
        self.change(|facts| facts.without = Some(why.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn in_session() -> Status {
        let status = Status::new();
        status.in_session(&["a".to_owned(), "b".to_owned()]);
        status
    }

    #[tokio::test(start_paused = true)]
    async fn not_consuming_keeps_its_beginning() {
        let status = in_session();
        status.read("a", None);
        status.not_consuming("first");
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(5)).await;
        status.not_consuming("second");
        assert_eq!(status.state(), State::NotConsuming { reason: "second".into(), since: began });
        status.in_session(&["a".to_owned()]);
        let not_yet = State::NotConsuming { reason: "queue a is not read yet".into(), since: began };
        assert_eq!(status.state(), not_yet, "a session alone consumes nothing");
    }

    #[tokio::test]
    async fn one_queue_that_is_not_read_is_told_and_the_other_counts() {
        let status = in_session();
        status.read("a", None);
        status.read("b", Some("b is gone"));
        assert_eq!(status.state(), State::Partly { reason: "b is gone".into() });
        status.read("a", Some("a is gone"));
        let State::NotConsuming { reason, .. } = status.state() else { panic!("{:?}", status.state()) };
        assert_eq!(reason, "a is gone; b is gone");
        status.read("a", None);
        status.read("b", None);
        assert_eq!(status.state(), State::Consuming);
    }

    #[tokio::test]
    async fn a_broker_that_blocks_shows_until_it_does_not_or_the_session_is_over() {
        let status = in_session();
        status.blocked(Some("memory".to_owned()));
        assert!(matches!(status.state(), State::NotConsuming { .. }), "not consuming is worse");
        status.read("a", None);
        assert_eq!(status.state(), State::Blocked { reason: "memory".into() });
        status.blocked(None);
        assert!(matches!(status.state(), State::Partly { .. }));
        status.blocked(Some("disk".to_owned()));
        status.not_consuming("lost");
        status.in_session(&["a".to_owned()]);
        status.read("a", None);
        assert_eq!(status.state(), State::Consuming, "another session is not blocked");
    }

    #[tokio::test]
    async fn what_results_lack_shows_while_nothing_worse_does() {
        let status = in_session();
        status.lacking(Some("first"));
        assert!(matches!(status.state(), State::NotConsuming { .. }));
        status.read("a", None);
        status.lacking(Some("second"));
        assert_eq!(status.state(), State::Lacking { reason: "second".into() });
        status.blocked(Some("memory".to_owned()));
        assert!(matches!(status.state(), State::Blocked { .. }));
        status.blocked(None);
        status.lacking(None);
        assert!(matches!(status.state(), State::Partly { .. }));
    }

    #[tokio::test]
    async fn what_a_session_does_without_is_noted_beside_its_state() {
        let status = in_session();
        status.read("a", None);
        status.read("b", None);
        status.note("expired", Some("first".to_owned()));
        status.note("live", Some("second".to_owned()));
        assert_eq!(
            (status.state(), status.notes()),
            (State::Consuming, vec!["first".into(), "second".into()])
        );
        status.note("expired", None);
        assert_eq!(status.notes(), ["second"]);
        status.not_consuming("lost");
        assert!(status.notes().is_empty(), "without a session nobody knows");
    }

    #[tokio::test]
    async fn a_change_can_be_awaited() {
        let status = in_session();
        let other = status.clone();
        let (seen, ()) = tokio::join!(status.wait_for(|state| *state == State::Consuming), async {
            other.read("a", None);
            other.read("b", None);
        });
        assert_eq!(seen, State::Consuming);
    }
}
