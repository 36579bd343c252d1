//! The whole effort for one device: attempts until the policy says that it is over.

use std::time::Duration;

use futures_util::future::{Either, FutureExt, join_all};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep};

use super::gateway::{Gateway, Push};
use super::late::{Late, Repeat};
use super::timeline::{Attempt, End, Notes};
use crate::domain::policy::{Class, Policy, Progress, PushError, Step, Verdict};
use crate::domain::response::Response;
use crate::metrics::Metrics;
use crate::pause::Jitter;

/// What became of one device, with what is known about the way there.
#[derive(Debug)]
pub(super) struct Dispatched {
    /// The result.
    pub verdict: Verdict,
    /// How many attempts were made.
    pub attempts: u32,
    /// From when the first attempt was written to the end; `None` when none was.
    pub latency: Option<Duration>,
    /// The answer that decided, or the last one.
    pub response: Option<Response>,
    /// The last failure that was no answer.
    pub error: Option<PushError>,
    /// When the last attempt ended.
    pub ended: Instant,
    /// What happened when.
    pub notes: Notes,
}

/// Pushes until the policy finishes. The gateway looks at the deadline before every attempt, the policy before every repeat.
/// `noted`: somebody wants to know what happened when.
pub(super) async fn dispatch<G: Gateway>(
    gateway: &G,
    policy: Policy,
    push: &Push,
    jitter: &Jitter,
    metrics: &Metrics,
    noted: bool,
) -> Dispatched {
    let mut notes = Notes::new(noted);
    let mut progress = Progress::default();
    let mut class = Class::First;
    let (mut response, mut error) = (None, None);
    let mut late = Late::default();
    let (mut verdict, mut ended) = loop {
        let asked = notes.begin();
        let result = if class == Class::First {
            gateway.push(push).await
        } else {
            // Boxed: few need it, and all would carry its room.
            match Box::pin(late.or_push(gateway, push, &mut progress)).await {
                Repeat::Ended(result) => result,
                Repeat::Needless { written } => {
                    if written {
                        progress.leave();
                        metrics.attempt(class.as_str());
                        notes.leave(push, progress.attempts(), class, asked);
                    }
                    break (Verdict::Unknown, Instant::now());
                }
            }
        };
        if !matches!(result, Err(PushError::NotSent(_) | PushError::CredentialRefused(_))) {
            metrics.attempt(class.as_str());
        }
        let ended = Instant::now();
        let remaining = push.deadline.saturating_duration_since(ended);
        let step = policy.next_step(&mut progress, &result, remaining, jitter.draw());
        if let Some(asked) = asked {
            let end = End::of(&result);
            let number = (!matches!(end, End::Unsent(_))).then_some(progress.attempts());
            notes.add(Attempt {
                environment: push.environment,
                number,
                class,
                asked,
                // What was called back in time was not written after all.
                written: push.trail.take_written().filter(|_| number.is_some()),
                ended,
                end,
                retry: match step {
                    Step::Retry { after, class } => Some((class, after)),
                    Step::Finish(_) => None,
                },
            });
        }
        match result {
            Ok(answer) | Err(PushError::ProviderToken(answer) | PushError::CutShort(answer)) => {
                response = Some(answer);
            }
            Err(failure) => {
                late.expect(push, progress.attempts(), class);
                error = Some(failure);
            }
        }
        match step {
            // What the newest attempt says of the token or the phone is the truth.
            Step::Finish(verdict @ (Verdict::Accepted | Verdict::InvalidToken | Verdict::SuspectToken)) => {
                break (verdict, ended);
            }
            _ if late.has_decided(&progress) => break (Verdict::Unknown, ended),
            Step::Finish(verdict) => break (verdict, ended),
            Step::Retry { after, class: next } => {
                class = next;
                if !after.is_zero() {
                    sleep(after).await;
                }
            }
        }
    };
    if verdict == Verdict::Unknown {
        let grace = push.answer_by.saturating_duration_since(push.deadline);
        let until = (Instant::now() + grace).min(push.answer_by);
        if let Some(heard) = late.decide(&mut progress, until).await {
            notes.hear(push, &heard);
            (verdict, ended, response) = (heard.verdict, heard.at, Some(heard.response));
        } else {
            verdict = progress.unheard();
        }
    }
    let attempts = progress.attempts();
    let latency = push.trail.first().filter(|_| attempts > 0).map(|first| ended - first);
    Dispatched { verdict, attempts, latency, response, error, ended, notes }
}

/// Waits for all of them; for one without the machinery that several take.
pub(super) fn all<F: Future>(
    mut futures: impl ExactSizeIterator<Item = F>,
) -> impl Future<Output = SmallVec<[F::Output; 1]>> {
    if futures.len() == 1
        && let Some(only) = futures.next()
    {
        return Either::Left(only.map(|output| SmallVec::from([output])));
    }
    Either::Right(join_all(futures).map(SmallVec::from_vec))
}
