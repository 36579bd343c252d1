//! Work with a process that must not stand still.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Failure;
use super::child::Running;

/// A run in which nothing moves for this long has failed.
const STALL: Duration = Duration::from_mins(1);
/// How often it is looked whether something moved.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Does `work` with a process. When `progress` stands still the process is killed, which ends whatever `work` waits for at its pipes.
pub fn guarded<T>(
    running: Running,
    progress: &AtomicU64,
    work: impl FnOnce(&Mutex<Running>) -> Result<T, Failure>,
) -> Result<(Running, T), Failure> {
    let running = Mutex::new(running);
    let over = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&running, progress, &over));
        let done = work(&running);
        over.store(true, Ordering::Release);
        watch.thread().unpark();
        let stalled = watch.join().map_err(|_| "the watch panicked")?;
        if stalled { Err("it stands still; it was killed".into()) } else { done }
    })?;
    Ok((running.into_inner(), done))
}

/// Says whether it had to kill.
fn watch(running: &Mutex<Running>, progress: &AtomicU64, over: &AtomicBool) -> bool {
    let (mut seen, mut moved) = (0, Instant::now());
    while !over.load(Ordering::Acquire) {
        thread::park_timeout(LOOK_EVERY);
        let now = progress.load(Ordering::Acquire);
        if now != seen {
            (seen, moved) = (now, Instant::now());
        } else if moved.elapsed() > STALL {
            running.lock().kill();
            return true;
        }
    }
    false
}
