//! Wall time, in one place.
//!
//! Everything that waits uses `tokio::time::Instant`. Wall time is asked for at four points only: when an invite is
//! admitted, before its push is written, for `apns-expiration`, and for the provider token's `iat`. It comes from a [`Clock`] that is handed
//! down, so that a simulation on a paused clock sees both kinds of time move together.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use tokio::time::Instant;

/// A source of wall time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Simulated(Arc<Simulated>),
}

#[derive(Debug)]
struct Simulated {
    started: Instant,
    started_at: i64,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that shows `unix_ms` now and runs with tokio's clock, paused or not.
    pub fn simulated(unix_ms: i64) -> Self {
        Self(Source::Simulated(Arc::new(Simulated { started: Instant::now(), started_at: unix_ms })))
    }

    /// Milliseconds since 1970-01-01T00:00:00Z; negative on a machine whose clock stands before that.
    pub fn unix_ms(&self) -> i64 {
        match &self.0 {
            Source::System => system_unix_ms(),
            Source::Simulated(clock) => {
                let elapsed = Instant::now().duration_since(clock.started).as_millis();
                clock.started_at.saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX))
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn system_unix_ms() -> i64 {
    let now = std::time::SystemTime::now();
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_moves_with_tokio_time() {
        let clock = Clock::simulated(1_000);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(clock.unix_ms(), 1_250);
    }

    #[test]
    fn the_system_clock_is_past_2020() {
        assert!(Clock::system().unix_ms() > 1_577_836_800_000);
    }
}
