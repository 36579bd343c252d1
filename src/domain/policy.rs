//! What to do after an attempt: finish, or try again, and when.
//!
//! A pure function of what happened so far, the time left and a random number that is handed in. The rules are the
//! contract's (*The push*): surely unprocessed goes again at once elsewhere, an answered failure of Apple's after a short
//! wait, an ambiguous attempt at most once more. Only answered and ambiguous attempts count towards the limit.

use std::time::Duration;

use super::response::{Action, Meaning, Response};

/// The wait before an answered failure is tried again: this, up to three times this.
const TRANSIENT_WAIT: Duration = Duration::from_millis(100);

/// The pause after the second surely unprocessed attempt in a row; it doubles with each further one.
const UNPROCESSED_PAUSE: Duration = Duration::from_millis(5);

/// The longest such pause.
const UNPROCESSED_PAUSE_MAX: Duration = Duration::from_millis(500);

/// An attempt that may have rung is worth repeating only while at least this much is left.
const AMBIGUOUS_REMAINING_MIN: Duration = Duration::from_secs(1);

/// How often a refused provider token is answered by another try. Each refusal costs its connection, and one on a fresh
/// connection stops the calls: so many only where several connections still hold the same old token.
const PROVIDER_TOKEN_REPEATS_MAX: u32 = 8;

/// Where nothing else is known.
const NO_STREAM: &str = "no connection to APNs had a stream free before the deadline";

/// Why a push has no answer. Each variant is exactly what the policy must know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The deadline came before a stream was free, or surely will. Nothing complete was written; says why, where that is
    /// known.
    #[error("{}", .0.as_ref().map_or_else(|| NO_STREAM.to_owned(), |why| format!("nothing was sent before the deadline: {why}")))]
    NotSent(Option<String>),
    /// It surely was not processed: never written, a refused stream, or above a GOAWAY's last stream id (RFC 9113 §8.7).
    #[error("surely not processed: {0}")]
    NotProcessed(String),
    /// It was written and has no answer: it may have rung.
    #[error("written, but unanswered: {0}")]
    Unknown(String),
    /// APNs refuses the credential, so that nothing was written; says since when, and why.
    #[error("{0}")]
    CredentialRefused(String),
    /// APNs refused the provider token, not the push.
    #[error("the provider token was refused: {} {}", .0.status, .0.reason_label())]
    ProviderToken(Response),
    /// APNs called the token dead, and broke off before it said since when. It did not ring.
    #[error("the answer {} broke off", .0.status)]
    CutShort(Response),
}

/// Where a device's time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In the broker's queue; the broker gave it up.
    Broker,
    /// Between publisher and worker.
    Queue,
    /// While it waited for a stream.
    Slot,
    /// Before the next attempt could start.
    Retry,
}

impl Stage {
    /// The word in outcomes and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Queue => "queue",
            Self::Slot => "slot",
            Self::Retry => "retry",
        }
    }
}

/// Why an attempt is made, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The first one.
    First,
    /// The one before surely was not processed.
    Unprocessed,
    /// The one before was answered with a failure of Apple's.
    Transient,
    /// The one before may have rung.
    Ambiguous,
}

impl Class {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Unprocessed => "unprocessed",
            Self::Transient => "transient",
            Self::Ambiguous => "ambiguous",
        }
    }
}

/// What became of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// APNs accepted it.
    Accepted,
    /// 410.
    InvalidToken,
    /// One of the two 400s about the token.
    SuspectToken,
    /// Refused for good.
    Rejected(Action),
    /// 429.
    Throttled,
    /// The deadline came before any attempt that may have reached APNs.
    Expired(Stage),
    /// Surely not accepted, and no further attempt.
    Failed,
    /// It may have rung.
    Unknown,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This is final.
    Finish(Verdict),
    /// Wait this long, then try again on another connection.
    Retry {
        /// How long to wait; the attempt still starts before the deadline.
        after: Duration,
        /// Why.
        class: Class,
    },
}

/// The policy's one setting.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Answered and ambiguous attempts at most, at least 1.
    pub attempts_max: u32,
}

/// The attempts of one device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Answered or ambiguous ones: they count towards the limit.
    counted: u32,
    /// Of these, the ones that may have rung.
    ambiguous: u32,
    /// Surely unprocessed ones in a row.
    unprocessed_in_a_row: u32,
    /// Refused provider tokens.
    provider_tokens: u32,
    /// All that were made, whatever became of them.
    made: u32,
}

impl Progress {
    /// How many attempts were made.
    pub fn attempts(&self) -> u32 {
        self.made
    }

    /// What it means that the time is up before the next attempt.
    pub fn out_of_time(&self, stage: Stage) -> Verdict {
        if self.ambiguous > 0 {
            Verdict::Unknown
        } else if self.counted > 0 {
            Verdict::Failed
        } else {
            Verdict::Expired(stage)
        }
    }

    /// An attempt was made, and is not waited for.
    pub fn leave(&mut self) {
        self.made += 1;
    }

    /// An attempt that had been given up was answered after all: what that decides, if anything.
    pub fn hear(&mut self, late: &Response) -> Option<Verdict> {
        self.ambiguous = self.ambiguous.saturating_sub(1);
        let verdict = match late.meaning() {
            Meaning::Accepted => Verdict::Accepted,
            Meaning::TokenDead => Verdict::InvalidToken,
            Meaning::TokenSuspect => Verdict::SuspectToken,
            // Another attempt may have rung.
            _ if self.ambiguous > 0 => return None,
            Meaning::Refused(action) => Verdict::Rejected(action),
            Meaning::Throttled => Verdict::Throttled,
            // It did not ring, and another attempt may.
            Meaning::ProviderTokenRefused | Meaning::Transient => return None,
        };
        Some(verdict)
    }

    /// Whether an attempt may have rung.
    pub fn may_have_rung(&self) -> bool {
        self.ambiguous > 0
    }

    /// What a verdict that would be `Unknown` is when no late answer decided.
    pub fn unheard(&self) -> Verdict {
        self.unless_rung(Verdict::Failed)
    }

    /// A verdict that does not hold for an earlier attempt which may have rung.
    fn unless_rung(&self, verdict: Verdict) -> Verdict {
        if self.ambiguous > 0 { Verdict::Unknown } else { verdict }
    }
}

impl Policy {
    /// Takes one attempt's result into `progress` and decides. `remaining`: time to the deadline. `jitter`: a random number
    /// in `[0, 1)`.
    pub fn next_step(
        self,
        progress: &mut Progress,
        result: &Result<Response, PushError>,
        remaining: Duration,
        jitter: f64,
    ) -> Step {
        if !matches!(result, Err(PushError::NotSent(_) | PushError::CredentialRefused(_))) {
            progress.made += 1;
        }
        match result {
            Ok(response) => {
                progress.counted += 1;
                progress.unprocessed_in_a_row = 0;
                match response.meaning() {
                    Meaning::Accepted => Step::Finish(Verdict::Accepted),
                    Meaning::TokenDead => Step::Finish(Verdict::InvalidToken),
                    Meaning::TokenSuspect => Step::Finish(Verdict::SuspectToken),
                    Meaning::Refused(action) => Step::Finish(progress.unless_rung(Verdict::Rejected(action))),
                    Meaning::ProviderTokenRefused => {
                        Step::Finish(progress.unless_rung(Verdict::Rejected(Action::FixConfig)))
                    }
                    Meaning::Throttled => Step::Finish(progress.unless_rung(Verdict::Throttled)),
                    Meaning::Transient => {
                        let wait = TRANSIENT_WAIT.mul_f64(1.0 + 2.0 * jitter);
                        self.counted_retry(progress, Class::Transient, wait, remaining)
                    }
                }
            }
            Err(PushError::Unknown(_)) => {
                progress.counted += 1;
                progress.ambiguous += 1;
                progress.unprocessed_in_a_row = 0;
                if progress.ambiguous > 1 || remaining < AMBIGUOUS_REMAINING_MIN {
                    return Step::Finish(Verdict::Unknown);
                }
                self.counted_retry(progress, Class::Ambiguous, Duration::ZERO, remaining)
            }
            // Another answer may be whole.
            Err(PushError::CutShort(_)) => {
                progress.counted += 1;
                progress.unprocessed_in_a_row = 0;
                let wait = TRANSIENT_WAIT.mul_f64(1.0 + 2.0 * jitter);
                self.counted_retry(progress, Class::Transient, wait, remaining)
            }
            Err(PushError::NotProcessed(_)) => {
                progress.unprocessed_in_a_row += 1;
                let pause = unprocessed_pause(progress.unprocessed_in_a_row, jitter);
                retry(progress, Class::Unprocessed, pause, remaining)
            }
            Err(PushError::ProviderToken(_)) => {
                progress.provider_tokens += 1;
                if progress.provider_tokens > PROVIDER_TOKEN_REPEATS_MAX {
                    return Step::Finish(progress.unless_rung(Verdict::Rejected(Action::FixConfig)));
                }
                let pause = unprocessed_pause(progress.provider_tokens, jitter);
                retry(progress, Class::Unprocessed, pause, remaining)
            }
            Err(PushError::CredentialRefused(_)) => {
                Step::Finish(progress.unless_rung(Verdict::Rejected(Action::FixConfig)))
            }
            Err(PushError::NotSent(_)) => {
                let stage = if progress.made == 0 { Stage::Slot } else { Stage::Retry };
                Step::Finish(progress.out_of_time(stage))
            }
        }
    }

    fn counted_retry(self, progress: &Progress, class: Class, wait: Duration, remaining: Duration) -> Step {
        if progress.counted >= self.attempts_max {
            return Step::Finish(progress.unless_rung(Verdict::Failed));
        }
        retry(progress, class, wait, remaining)
    }
}

/// A retry that could not start in time is over now, not later.
fn retry(progress: &Progress, class: Class, after: Duration, remaining: Duration) -> Step {
    if after >= remaining {
        return Step::Finish(progress.out_of_time(Stage::Retry));
    }
    Step::Retry { after, class }
}

/// None after the first, then doubling from milliseconds, half to one and a half times.
fn unprocessed_pause(in_a_row: u32, jitter: f64) -> Duration {
    let Some(doublings) = in_a_row.checked_sub(2) else { return Duration::ZERO };
    let pause = UNPROCESSED_PAUSE.saturating_mul(1 << doublings.min(16)).min(UNPROCESSED_PAUSE_MAX);
    pause.mul_f64(0.5 + jitter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::response::Reason;

    const POLICY: Policy = Policy { attempts_max: 3 };
    const LONG: Duration = Duration::from_secs(30);

    #[expect(clippy::unnecessary_wraps, reason = "an attempt's result, as the policy takes it")]
    fn answer(status: u16, reason: &str) -> Result<Response, PushError> {
        Ok(Response { status, reason: Some(Reason::parse(reason)), invalid_since: None })
    }

    fn unknown() -> Result<Response, PushError> {
        Err(PushError::Unknown("lost".into()))
    }

    fn unprocessed() -> Result<Response, PushError> {
        Err(PushError::NotProcessed("refused".into()))
    }

    /// Feeds results until the policy finishes; the last must finish it.
    fn run(results: &[Result<Response, PushError>]) -> (Verdict, Vec<Class>) {
        let mut progress = Progress::default();
        let mut classes = Vec::new();
        for result in results {
            match POLICY.next_step(&mut progress, result, LONG, 0.5) {
                Step::Finish(verdict) => return (verdict, classes),
                Step::Retry { class, .. } => classes.push(class),
            }
        }
        panic!("not finished after {classes:?}");
    }

    #[test]
    fn stories_end_as_the_contract_says() {
        use Class::{Ambiguous, Transient, Unprocessed};
        let ok = || Ok(Response { status: 200, reason: None, invalid_since: None });
        let busy = || answer(503, "ServiceUnavailable");
        let closed = || Err(PushError::CredentialRefused("since then".into()));
        let expired_token = || Err(PushError::ProviderToken(answer(403, "ExpiredProviderToken").unwrap()));
        let cut_short = || Err(PushError::CutShort(answer(410, "Unregistered").unwrap()));
        let table = [
            (vec![ok()], Verdict::Accepted, vec![]),
            (vec![busy(), ok()], Verdict::Accepted, vec![Transient]),
            (vec![busy(), busy(), busy()], Verdict::Failed, vec![Transient, Transient]),
            (vec![unknown(), ok()], Verdict::Accepted, vec![Ambiguous]),
            (vec![unknown(), unknown()], Verdict::Unknown, vec![Ambiguous]),
            (vec![unknown(), busy(), busy()], Verdict::Unknown, vec![Ambiguous, Transient]),
            (vec![unknown(), answer(429, "TooManyRequests")], Verdict::Unknown, vec![Ambiguous]),
            (vec![unknown(), answer(410, "Unregistered")], Verdict::InvalidToken, vec![Ambiguous]),
            (vec![unknown(), answer(403, "Forbidden")], Verdict::Unknown, vec![Ambiguous]),
            (vec![answer(429, "TooManyRequests")], Verdict::Throttled, vec![]),
            (vec![answer(400, "BadDeviceToken")], Verdict::SuspectToken, vec![]),
            (
                vec![unprocessed(), unprocessed(), unprocessed(), ok()],
                Verdict::Accepted,
                vec![Unprocessed; 3],
            ),
            (vec![expired_token(), ok()], Verdict::Accepted, vec![Unprocessed]),
            (vec![cut_short(), answer(410, "Unregistered")], Verdict::InvalidToken, vec![Transient]),
            (vec![cut_short(), cut_short(), cut_short()], Verdict::Failed, vec![Transient, Transient]),
            (
                vec![expired_token(); 1 + PROVIDER_TOKEN_REPEATS_MAX as usize],
                Verdict::Rejected(Action::FixConfig),
                vec![Unprocessed; PROVIDER_TOKEN_REPEATS_MAX as usize],
            ),
            (vec![Err(PushError::NotSent(None))], Verdict::Expired(Stage::Slot), vec![]),
            (
                vec![unprocessed(), Err(PushError::NotSent(None))],
                Verdict::Expired(Stage::Retry),
                vec![Unprocessed],
            ),
            (vec![busy(), Err(PushError::NotSent(None))], Verdict::Failed, vec![Transient]),
            (vec![closed()], Verdict::Rejected(Action::FixConfig), vec![]),
            (vec![busy(), closed()], Verdict::Rejected(Action::FixConfig), vec![Transient]),
            (vec![unknown(), closed()], Verdict::Unknown, vec![Ambiguous]),
        ];
        for (results, verdict, classes) in table {
            assert_eq!(run(&results), (verdict, classes), "{results:?}");
        }
    }

    #[test]
    fn a_retry_that_cannot_start_in_time_is_over_now() {
        let short = Duration::from_millis(50);
        let busy = answer(503, "Shutdown");
        let step = POLICY.next_step(&mut Progress::default(), &busy, short, 0.0);
        assert_eq!(step, Step::Finish(Verdict::Failed));
        let step = POLICY.next_step(&mut Progress::default(), &unprocessed(), Duration::ZERO, 0.0);
        assert_eq!(step, Step::Finish(Verdict::Expired(Stage::Retry)));
        let step = POLICY.next_step(&mut Progress::default(), &unknown(), Duration::from_millis(999), 0.0);
        assert_eq!(step, Step::Finish(Verdict::Unknown));
    }

    fn any_result() -> impl Strategy<Value = Result<Response, PushError>> {
        prop_oneof![
            Just(unknown()),
            Just(unprocessed()),
            Just(Err(PushError::ProviderToken(answer(429, "TooManyProviderTokenUpdates").unwrap()))),
            Just(answer(500, "InternalServerError")),
            Just(Err(PushError::CredentialRefused("since then".into()))),
            Just(answer(429, "TooManyRequests")),
            Just(answer(200, "")),
        ]
    }

    proptest! {
        #[test]
        fn no_history_breaks_the_limits(
            results in proptest::collection::vec((any_result(), 0u64..40_000, 0.0f64..1.0), 1..60),
            attempts_max in 1u32..6,
        ) {
            let policy = Policy { attempts_max };
            let mut progress = Progress::default();
            let (mut counted, mut ambiguous) = (0, 0);
            for (result, remaining, jitter) in &results {
                let remaining = Duration::from_millis(*remaining);
                counted += u32::from(matches!(result, Ok(_) | Err(PushError::Unknown(_))));
                ambiguous += u32::from(matches!(result, Err(PushError::Unknown(_))));
                match policy.next_step(&mut progress, result, remaining, *jitter) {
                    Step::Retry { after, .. } => {
                        prop_assert!(after < remaining);
                        prop_assert!(counted < attempts_max);
                        prop_assert!(ambiguous <= 1);
                    }
                    Step::Finish(verdict) => {
                        if ambiguous > 0 {
                            prop_assert!(!matches!(
                                verdict,
                                Verdict::Expired(_) | Verdict::Failed | Verdict::Throttled | Verdict::Rejected(_)
                            ));
                        }
                        prop_assert!(counted <= attempts_max);
                        return Ok(());
                    }
                }
            }
        }
    }
}
