//! Stops calls that Apple would refuse for their credential, until one gets through.
//!
//! A wrong key refuses every call. To go on asking would lower the stream limit and look like an attack (Apple, *Handling
//! notification responses from APNs*), and each caller would wait for an answer that is known. While the circuit is open a
//! call is refused at once, with the reason; now and then one goes through as a probe, and closes it when it is answered
//! otherwise.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::timestamp::Timestamp;

/// Refusals of the credential in a row that open it; one is enough on a fresh connection.
const REFUSALS: u32 = 3;

/// The pause before the first probe; doubled with each that is refused.
const PROBE_PAUSE: Duration = Duration::from_secs(2);

/// The longest pause between probes: a mended setting shows within this.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(30);

/// One credential's circuit.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    /// There is something to look at. The usual case goes without a lock.
    stirred: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    refusals: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    since: Timestamp,
    why: String,
    probe_at: Instant,
    pause: Duration,
    /// A probe went through and has no answer yet.
    is_probed: bool,
}

impl Open {
    fn text(&self) -> String {
        format!("Apple refuses this credential since {}: {}", self.since, self.why)
    }
}

impl Circuit {
    /// Whether a call may go; one at a time is let through an open circuit to probe it. Else since when not, and why.
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.stirred.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = Instant::now();
        let mut inner = self.inner.lock();
        match &mut inner.open {
            Some(open) if now < open.probe_at => Err(open.text()),
            Some(open) => {
                open.probe_at = now + open.pause;
                open.is_probed = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Since when it is open, and why; looks only.
    pub(super) fn trouble(&self) -> Option<String> {
        if !self.stirred.load(Ordering::Relaxed) {
            return None;
        }
        self.inner.lock().open.as_ref().map(Open::text)
    }

    /// Apple refused the credential; `surely`: on a fresh connection, or the connection itself. True when this opens it.
    pub(super) fn refused(&self, why: &str, surely: bool, at: Timestamp) -> bool {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        self.stirred.store(true, Ordering::Relaxed);
        inner.refusals += 1;
        if let Some(open) = &mut inner.open {
            why.clone_into(&mut open.why);
            // What was under way when it opened is no probe, and says nothing new.
            let is_new = std::mem::take(&mut open.is_probed) || now >= open.probe_at;
            if is_new {
                open.pause = (open.pause * 2).min(PROBE_PAUSE_MAX);
            }
            if is_new || surely {
                open.probe_at = now + open.pause;
            }
            return false;
        }
        if !surely && inner.refusals < REFUSALS {
            return false;
        }
        inner.open = Some(Open {
            since: at,
            why: why.to_owned(),
            probe_at: now + PROBE_PAUSE,
            pause: PROBE_PAUSE,
            is_probed: false,
        });
        true
    }

    /// Apple answered something else: the credential is good. True when this closes it.
    pub(super) fn answered(&self) -> bool {
        if !self.stirred.load(Ordering::Relaxed) {
            return false;
        }
        let mut inner = self.inner.lock();
        self.stirred.store(false, Ordering::Relaxed);
        std::mem::take(&mut *inner).open.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp::from_unix_ms(1_795_253_400_000);

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_refusals_in_a_row_and_a_probe_closes_it() {
        let circuit = Circuit::default();
        assert!(!circuit.refused("403 Forbidden", false, AT) && !circuit.refused("403 Forbidden", false, AT));
        assert_eq!(circuit.check(), Ok(()));
        assert!(circuit.refused("403 Forbidden", false, AT));
        let told = circuit.check().unwrap_err();
        assert!(!circuit.refused("403 late", false, AT), "it is open already");
        assert!(told.contains("since 2026-") && told.ends_with("403 Forbidden"), "{told}");

        tokio::time::advance(PROBE_PAUSE).await;
        assert_eq!(circuit.check(), Ok(()), "the probe");
        assert!(circuit.check().is_err(), "no second one beside it");
        assert!(!circuit.refused("403 Forbidden", false, AT), "it is open already");
        tokio::time::advance(PROBE_PAUSE).await;
        assert!(circuit.check().is_err(), "the next probe comes later");
        tokio::time::advance(PROBE_PAUSE).await;
        assert_eq!(circuit.check(), Ok(()));
        assert!(circuit.answered() && !circuit.answered());
        assert_eq!((circuit.check(), circuit.trouble()), (Ok(()), None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_between_refusals_keeps_it_closed_and_a_sure_refusal_opens_it() {
        let circuit = Circuit::default();
        for _ in 0..5 {
            assert!(!circuit.refused("403 Forbidden", false, AT));
            assert!(!circuit.answered());
        }
        assert!(circuit.refused("403 ExpiredProviderToken on a fresh connection", true, AT));
        assert!(circuit.trouble().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_were_under_way_when_it_opened_do_not_put_the_probe_off() {
        let circuit = Circuit::default();
        for _ in 0..500 {
            circuit.refused("403 InvalidProviderToken", false, AT);
        }
        tokio::time::advance(PROBE_PAUSE).await;
        assert_eq!(circuit.check(), Ok(()), "the probe");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_never_answered_is_followed_by_another() {
        let circuit = Circuit::default();
        circuit.refused("403 Forbidden", true, AT);
        for _ in 0..3 {
            tokio::time::advance(PROBE_PAUSE).await;
            assert_eq!(circuit.check(), Ok(()));
        }
    }
}
