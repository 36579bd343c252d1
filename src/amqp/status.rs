//! Whether the worker consumes, and if not, why: for readiness.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// What the broker's side is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Consuming from every invites queue.
    Consuming,
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
pub struct Status(Arc<watch::Sender<State>>);

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

impl Status {
    /// Not consuming, because nothing was tried yet.
    pub fn new() -> Self {
        let reason = "not connected to the broker yet".to_owned();
        Self(Arc::new(watch::Sender::new(State::NotConsuming { reason, since: Instant::now() })))
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// Waits until the state is one that `wanted` accepts, and returns it.
    pub async fn wait_for(&self, wanted: impl FnMut(&State) -> bool) -> State {
        let mut states = self.0.subscribe();
        // `self` keeps the sender, so the wait cannot fail.
        states.wait_for(wanted).await.map_or_else(|_| self.state(), |state| state.clone())
    }

    pub(super) fn consuming(&self) {
        self.0.send_replace(State::Consuming);
    }

    pub(super) fn blocked(&self, reason: &str) {
        self.0.send_replace(State::Blocked { reason: reason.to_owned() });
    }

    /// Something that results need is missing. A broker that blocks, or that we do not consume from, is worse.
    pub(super) fn lacking(&self, reason: &str) {
        self.0.send_if_modified(|state| {
            let lacks = matches!(state, State::Consuming | State::Lacking { .. });
            lacks && std::mem::replace(state, State::Lacking { reason: reason.to_owned() }) != *state
        });
    }

    /// What was missing is there again.
    pub(super) fn complete(&self) {
        self.0.send_if_modified(|state| {
            let lacked = matches!(state, State::Lacking { .. });
            if lacked {
                *state = State::Consuming;
            }
            lacked
        });
    }

    pub(super) fn not_consuming(&self, why: &str) {
        self.0.send_modify(|state| match state {
            State::NotConsuming { reason, .. } => why.clone_into(reason),
            _ => *state = State::NotConsuming { reason: why.to_owned(), since: Instant::now() },
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn not_consuming_keeps_its_beginning() {
        let status = Status::new();
        status.consuming();
        status.not_consuming("first");
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(5)).await;
        status.not_consuming("second");
        assert_eq!(status.state(), State::NotConsuming { reason: "second".into(), since: began });
    }

    #[tokio::test]
    async fn what_is_missing_shows_while_nothing_worse_does() {
        let status = Status::new();
        status.lacking("queue ringcast.outcomes is missing");
        status.complete();
        assert!(matches!(status.state(), State::NotConsuming { .. }));
        status.consuming();
        status.lacking("first");
        status.lacking("second");
        assert_eq!(status.state(), State::Lacking { reason: "second".into() });
        status.complete();
        assert_eq!(status.state(), State::Consuming);
        status.blocked("memory");
        status.lacking("third");
        status.complete();
        assert_eq!(status.state(), State::Blocked { reason: "memory".into() });
    }

    #[tokio::test]
    async fn a_change_can_be_awaited() {
        let status = Status::new();
        let other = status.clone();
        let (seen, ()) =
            tokio::join!(status.wait_for(|state| *state == State::Consuming), async { other.consuming() });
        assert_eq!(seen, State::Consuming);
    }
}
