//! Wall time, as the simulator sees it.
//!
//! Every judgement that depends on the time of day (the age of a provider token, the journal's instants) asks a
//! [`WallClock`] that was handed in, so that a simulation can set it. [`real`] is the one for programs.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time in milliseconds since 1970-01-01 UTC.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The machine's own clock.
pub fn real() -> WallClock {
    Arc::new(unix_ms)
}

/// Milliseconds since 1970-01-01 UTC by the machine's clock; 0 where it stands before that.
#[expect(
    clippy::disallowed_methods,
    reason = "the simulator shares no code with the worker: this is its own one place"
)]
pub(super) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
