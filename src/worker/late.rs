//! Answers of attempts that were given up: late, and the truth. What Apple accepted has rung, so it is neither pushed again nor
//! told as `unknown` while its call can still be told.

use std::pin::pin;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::gateway::{Gateway, Push};
use crate::domain::policy::{Class, Progress, PushError, Verdict};
use crate::domain::response::Response;

/// What is awaited of one push's attempts, and what came of it.
#[derive(Default)]
pub(super) struct Late {
    awaited: Option<FuturesUnordered<Awaited>>,
    decided: Option<Heard>,
}

/// An attempt by its number and its class, and its answer, if it comes.
type Awaited = BoxFuture<'static, (u32, Class, Option<Response>)>;

/// One more attempt.
pub(super) enum Repeat {
    /// It ended, and nothing else was heard.
    Ended(Result<Response, PushError>),
    /// A late answer decided. `written`: meanwhile it was on its way; what becomes of it does not matter.
    Needless { written: bool },
}

/// A late answer that decides.
pub(super) struct Heard {
    /// Which attempt's it is, from 1.
    pub(super) number: u32,
    /// Why that one was made.
    pub(super) class: Class,
    /// What it decides.
    pub(super) verdict: Verdict,
    /// The answer.
    pub(super) response: Response,
    /// When it came.
    pub(super) at: Instant,
}

impl Late {
    /// This attempt was given up.
    pub(super) fn expect(&mut self, push: &Push, number: u32, class: Class) {
        if let Some(answer) = push.trail.take_late() {
            let answer = async move { (number, class, answer.await.ok()) };
            self.awaited.get_or_insert_default().push(answer.boxed());
        }
    }

    /// Whether an answer came that decides. A refusal does not, where another attempt may have rung since.
    pub(super) fn has_decided(&mut self, progress: &Progress) -> bool {
        let of_token = |heard: &mut Heard| {
            matches!(heard.verdict, Verdict::Accepted | Verdict::InvalidToken | Verdict::SuspectToken)
        };
        if progress.may_have_rung() {
            self.decided.take_if(|heard| !of_token(heard));
        }
        self.decided.is_some()
    }

    /// Makes one more attempt, for as long as nothing decides.
    pub(super) async fn or_push<G: Gateway>(
        &mut self,
        gateway: &G,
        push: &Push,
        progress: &mut Progress,
    ) -> Repeat {
        let marks = push.trail.marks();
        let mut pushing = pin!(gateway.push(push));
        // Biased: what has rung is not pushed, though there be a stream for it now.
        tokio::select! {
            biased;
            () = self.hear(progress) => {}
            result = &mut pushing => return Repeat::Ended(result),
        }
        let written = push.trail.marks() > marks;
        match &self.decided {
            // What refuses the older one may accept the newer one.
            Some(heard) if heard.verdict != Verdict::Accepted && written => Repeat::Ended(pushing.await),
            None => Repeat::Ended(pushing.await),
            Some(_) => {
                push.trail.finish();
                Repeat::Needless { written }
            }
        }
    }

    /// Waits until `until` for what decides, if nothing did before.
    pub(super) async fn decide(&mut self, progress: &mut Progress, until: Instant) -> Option<Heard> {
        if self.decided.is_none() {
            // Elapsed: nothing decided.
            let _ = timeout_at(until, self.hear(progress)).await;
        }
        self.decided.take()
    }

    /// Ends when an answer decides, or when no more can come.
    async fn hear(&mut self, progress: &mut Progress) {
        while let Some((number, class, response)) = self.next().await {
            if let Some(verdict) = progress.hear(&response) {
                self.decided = Some(Heard { number, class, verdict, response, at: Instant::now() });
                return;
            }
        }
    }

    /// The next answer; `None` when no more can come.
    async fn next(&mut self) -> Option<(u32, Class, Response)> {
        while let Some((number, class, answer)) = self.awaited.as_mut()?.next().await {
            if let Some(answer) = answer {
                return Some((number, class, answer));
            }
        }
        self.awaited = None;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use parking_lot::Mutex;
    use tokio::sync::oneshot;
    use tokio::time::{sleep, sleep_until};

    use super::super::dispatch::{Dispatched, dispatch};
    use super::super::gateway::Trail;
    use super::*;
    use crate::domain::app::Environment;
    use crate::domain::id::{ApnsId, CallId, DeviceToken};
    use crate::domain::invite::tests::app;
    use crate::domain::policy::Policy;
    use crate::domain::response::Reason;
    use crate::domain::timestamp::Timestamp;
    use crate::metrics::Metrics;
    use crate::pause::Jitter;

    const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
    const GRACE: Duration = Duration::from_secs(1);

    /// What the peer does with one attempt: how long it waits for a stream, when it is answered, and how.
    type Attempt = (u64, Option<(u64, u16)>);

    /// Attempts in turn, each given up after `REQUEST_TIMEOUT`.
    struct Apple(Mutex<Vec<Attempt>>);

    impl Gateway for Apple {
        async fn push(&self, push: &Push) -> Result<Response, PushError> {
            let (wait, answer) = self.0.lock().remove(0);
            sleep(Duration::from_millis(wait)).await;
            let written = Instant::now();
            push.trail.mark(1, written);
            let answer =
                answer.map(|(after, status)| (written + Duration::from_millis(after), response(status)));
            if let Some((at, answer)) = &answer
                && *at <= written + REQUEST_TIMEOUT
            {
                sleep_until(*at).await;
                return Ok(answer.clone());
            }
            sleep(REQUEST_TIMEOUT).await;
            if let Some((at, answer)) = answer {
                let (late, heard) = oneshot::channel();
                push.trail.hear_late(heard);
                tokio::spawn(async move {
                    sleep_until(at).await;
                    // Its call may be over.
                    let _ = late.send(answer);
                });
            }
            Err(PushError::Unknown("no answer".into()))
        }
    }

    fn response(status: u16) -> Response {
        let word = if status == 429 { "TooManyRequests" } else { "Unregistered" };
        let reason = (status != 200).then(|| Reason::parse(word));
        Response { status, reason, invalid_since: None }
    }

    /// What becomes of a call that rings for so long, and when it is settled, in milliseconds.
    async fn ring(ring_for: u64, attempts: &[Attempt]) -> (Dispatched, u64) {
        let token = DeviceToken::new("ab01");
        let call = CallId::parse("6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a").unwrap();
        let deadline = Instant::now() + Duration::from_millis(ring_for);
        let push = Push {
            app: Arc::new(app()),
            environment: Environment::Production,
            apns_id: ApnsId::derive(call, &token),
            token,
            body: Bytes::new(),
            deadline,
            deadline_at: Timestamp::from_unix_ms(0),
            answer_by: deadline + GRACE,
            trail: Trail::timed(),
        };
        let began = Instant::now();
        let apple = Apple(Mutex::new(attempts.to_vec()));
        let policy = Policy { attempts_max: 3 };
        let told = dispatch(&apple, policy, &push, &Jitter::seeded(1), &Metrics::new(), true).await;
        let took = u64::try_from(began.elapsed().as_millis()).unwrap();
        (told, took)
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_rung_is_not_pushed_again_while_its_repeat_waits_for_a_stream() {
        let (told, took) = ring(20_000, &[(0, Some((6_000, 200))), (8_000, None)]).await;
        assert_eq!((told.verdict, told.attempts, took), (Verdict::Accepted, 1, 6_000));
        assert_eq!(told.latency, Some(Duration::from_secs(6)));
        assert_eq!(told.response.map(|answer| answer.status), Some(200));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_decides_though_the_repeat_has_none() {
        let (told, took) = ring(20_000, &[(0, Some((6_000, 200))), (0, None)]).await;
        assert_eq!((told.verdict, told.attempts, took), (Verdict::Accepted, 2, 6_000));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_attempt_is_waited_for_as_long_as_the_grace() {
        for (after, verdict, settled) in
            [(5_900, Verdict::Accepted, 10_900), (6_100, Verdict::Unknown, 11_000)]
        {
            let (told, took) = ring(20_000, &[(0, None), (0, Some((after, 200)))]).await;
            assert_eq!((told.verdict, told.attempts, took), (verdict, 2, settled));
        }
        // Nor beyond the grace of the call.
        let (told, took) = ring(4_500, &[(0, Some((5_600, 200)))]).await;
        assert_eq!((told.verdict, took), (Verdict::Unknown, 5_500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeat_that_is_accepted_is_not_undone_by_an_older_refusal() {
        let (told, ..) = ring(20_000, &[(0, Some((5_500, 410))), (0, Some((1_000, 200)))]).await;
        assert_eq!((told.verdict, told.attempts), (Verdict::Accepted, 2));
        let (told, took) = ring(20_000, &[(0, Some((5_500, 410))), (2_000, Some((1_000, 200)))]).await;
        assert_eq!((told.verdict, told.attempts, took), (Verdict::InvalidToken, 1, 5_500));
    }

    #[tokio::test(start_paused = true)]
    async fn what_surely_did_not_ring_is_no_unknown() {
        // The first one did not, so that the second may be repeated.
        let (told, took) = ring(20_000, &[(0, Some((6_000, 503))), (0, None), (0, None)]).await;
        assert_eq!((told.verdict, told.attempts, took), (Verdict::Unknown, 3, 15_000));
        let busy = [(0, Some((6_000, 503))), (0, Some((5_500, 503))), (0, Some((100, 503)))];
        let (told, took) = ring(20_000, &busy).await;
        assert_eq!((told.verdict, told.attempts, took), (Verdict::Failed, 3, 10_500));
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_refusal_does_not_speak_for_a_repeat_that_may_have_rung() {
        // The repeat is on its way when the first one is refused, and has no answer itself.
        let (told, took) = ring(20_000, &[(0, Some((6_000, 429))), (0, None), (0, None)]).await;
        assert_eq!((told.verdict, told.attempts, took), (Verdict::Unknown, 3, 15_000));
        let (told, took) = ring(20_000, &[(0, Some((6_000, 429))), (2_000, None)]).await;
        assert_eq!((told.verdict, told.attempts, took), (Verdict::Throttled, 1, 6_000));
        // What is said of the token later is said of it.
        let (told, took) = ring(20_000, &[(0, Some((6_000, 429))), (0, Some((2_000, 410)))]).await;
        assert_eq!((told.verdict, told.attempts, took), (Verdict::InvalidToken, 2, 7_000));
    }
}
