//! Limits on waiting for the broker: the client library has none.

use std::time::Duration;

use lapin::ErrorKind;
use tokio::time::timeout;

use super::describe::describe;

/// How long the broker may take to answer one request, or to confirm one publication. Far above what a quorum queue
/// needs when its leader changes, which is about a second.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How long a polite goodbye may take.
pub(super) const GOODBYE: Duration = Duration::from_secs(2);

/// How many times within a limit somebody looks whether time counts.
const LOOKS: u32 = 20;

/// The limit passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overdue;

/// One request to the broker, under [`ANSWER`]. The error is for people; `doing` completes "… failed: …".
pub(super) async fn ask<T>(
    doing: &str,
    request: impl Future<Output = lapin::Result<T>>,
) -> Result<T, String> {
    match timeout(ANSWER, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{doing} failed: {}", describe(&error))),
        Err(_) => Err(format!("{doing} failed: no answer from the broker within {} s", ANSWER.as_secs())),
    }
}

/// Whether the broker answered at all, be it with a refusal.
pub(super) fn is_answer(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(_))
}

/// Waits for `future` at most `limit`, not counting the time in which `stands_still` says that time does not count: while
/// the broker blocks publishing it says so, and answers later. That it lives is then for the heartbeat to find out.
pub(super) async fn patiently<F: Future>(
    limit: Duration,
    stands_still: impl Fn() -> bool,
    future: F,
) -> Result<F::Output, Overdue> {
    let mut future = std::pin::pin!(future);
    let mut looks = 0;
    while looks < LOOKS {
        match timeout(limit / LOOKS, &mut future).await {
            Ok(done) => return Ok(done),
            Err(_) if stands_still() => looks = 0,
            Err(_) => looks += 1,
        }
    }
    Err(Overdue)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_the_limit_or_the_answer() {
        let began = Instant::now();
        assert_eq!(patiently(ANSWER, || false, pending::<()>()).await, Err(Overdue));
        assert!(began.elapsed() >= ANSWER && began.elapsed() < ANSWER * 2, "{:?}", began.elapsed());
        assert_eq!(patiently(ANSWER, || false, async { 7 }).await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_while_the_broker_says_so() {
        let (began, blocked) = (Instant::now(), Cell::new(true));
        let answer = async {
            sleep(ANSWER * 6).await;
            blocked.set(false);
            sleep(ANSWER / 2).await;
        };
        assert_eq!(patiently(ANSWER, || blocked.get(), answer).await, Ok(()));
        assert!(began.elapsed() >= ANSWER * 6);
    }
}
