//! What happened to an invite when: noted while it is handled, where somebody wants to know it, and told by its outcome
//! (`worker.timeline`) and by its spans.
//!
//! All times come from one look at the wall clock, when the invite was taken, and from tokio's clock since: they keep their
//! order, whatever happens to the wall clock meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use super::gateway::Push;
use super::late::Heard;
use crate::domain::app::Environment;
use crate::domain::outcome::Step;
use crate::domain::policy::{Class, PushError};
use crate::domain::response::Response;
use crate::domain::timestamp::Timestamp;

/// Attempts that are noted for one device: the first ones, and the last.
const DEVICE_ATTEMPTS_MAX: usize = 16;

/// Attempts that are told of one invite, the earliest ones.
const ATTEMPTS_MAX: usize = 100;

/// Letters of an error that are told.
const ERROR_MAX: usize = 200;

/// An invite's way from its delivery to its result.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// When the caller pressed call, where the invite says so.
    pub created_at: Option<Timestamp>,
    /// When the worker took it, on the wall.
    pub received_at: Timestamp,
    /// The same, on tokio's clock.
    pub received: Instant,
    /// When its last device was final.
    pub settled: Instant,
    /// The attempts in the order in which they began, each after its device's place among the invite's, from 0.
    pub attempts: Vec<(usize, Attempt)>,
    /// How many more there were.
    pub omitted: usize,
}

/// One attempt for one device.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Where it was pushed.
    pub environment: Environment,
    /// Which attempt for the device, from 1; `None` where nothing was attempted after all.
    pub number: Option<u32>,
    /// Why it was made.
    pub class: Class,
    /// When a stream was asked for.
    pub asked: Instant,
    /// When it was handed to a connection; `None`: it was not.
    pub written: Option<Instant>,
    /// When it was over.
    pub ended: Instant,
    /// How it ended.
    pub end: End,
    /// Why it is made again, and after which pause.
    pub retry: Option<(Class, Duration)>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// APNs answered.
    Answered {
        /// Its status.
        status: u16,
        /// Its word, verbatim.
        reason: Option<String>,
    },
    /// It was written and has no answer: it may have rung.
    Unanswered(String),
    /// It surely was not processed.
    Unprocessed(String),
    /// Nothing was written, and nothing will be.
    Unsent(String),
}

impl End {
    /// What the gateway made of it.
    pub(super) fn of(result: &Result<Response, PushError>) -> Self {
        match result {
            Ok(response) | Err(PushError::ProviderToken(response) | PushError::CutShort(response)) => {
                Self::Answered {
                    status: response.status,
                    reason: response.reason.as_ref().map(|reason| reason.as_str().to_owned()),
                }
            }
            Err(error) => {
                let text = error.to_string().chars().take(ERROR_MAX).collect();
                match error {
                    PushError::Unknown(_) => Self::Unanswered(text),
                    PushError::NotProcessed(_) => Self::Unprocessed(text),
                    _ => Self::Unsent(text),
                }
            }
        }
    }
}

/// The attempts of one device while they are made. It costs nothing where nobody wants to know.
#[derive(Debug, Default)]
pub(super) struct Notes {
    attempts: Option<Vec<Attempt>>,
    omitted: usize,
}

impl Notes {
    /// `wanted`: somebody wants to know.
    pub(super) fn new(wanted: bool) -> Self {
        Self { attempts: wanted.then(Vec::new), omitted: 0 }
    }

    /// An attempt begins: when, if somebody wants to know.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.attempts.is_some().then(Instant::now)
    }

    /// An attempt that was given up was answered after all.
    pub(super) fn hear(&mut self, push: &Push, heard: &Heard) {
        let end = End::Answered {
            status: heard.response.status,
            reason: heard.response.reason.as_ref().map(|reason| reason.as_str().to_owned()),
        };
        let (environment, number, at) = (push.environment, Some(heard.number), heard.at);
        let class = heard.class;
        self.add(Attempt {
            environment,
            number,
            class,
            asked: at,
            written: None,
            ended: at,
            end,
            retry: None,
        });
    }

    /// A written attempt is not waited for, since its push was answered meanwhile.
    pub(super) fn leave(&mut self, push: &Push, number: u32, class: Class, asked: Option<Instant>) {
        let Some(asked) = asked else { return };
        let (environment, number, written) = (push.environment, Some(number), push.trail.take_written());
        let (ended, end) =
            (Instant::now(), End::Unanswered("an earlier attempt was answered meanwhile".into()));
        self.add(Attempt { environment, number, class, asked, written, ended, end, retry: None });
    }

    /// An attempt is over.
    pub(super) fn add(&mut self, attempt: Attempt) {
        let Some(attempts) = &mut self.attempts else { return };
        if attempts.len() == DEVICE_ATTEMPTS_MAX {
            attempts.pop();
            self.omitted += 1;
        }
        attempts.push(attempt);
    }
}

impl Timeline {
    /// Puts together what was noted of the devices, which come in the invite's order.
    pub(super) fn new(
        created_at: Option<Timestamp>,
        (received_at, received): (Timestamp, Instant),
        settled: Instant,
        devices: Vec<Notes>,
    ) -> Self {
        let (mut all, mut omitted) = (Vec::new(), 0);
        for (device, notes) in devices.into_iter().enumerate() {
            omitted += notes.omitted;
            all.extend(notes.attempts.into_iter().flatten().map(|attempt| (device, attempt)));
        }
        all.sort_by_key(|(_, attempt)| attempt.asked);
        omitted += all.len().saturating_sub(ATTEMPTS_MAX);
        all.truncate(ATTEMPTS_MAX);
        Self { created_at, received_at, received, settled, attempts: all, omitted }
    }

    /// The wall time of an instant, in whole milliseconds.
    pub fn at(&self, instant: Instant) -> Timestamp {
        self.received_at.plus(instant.saturating_duration_since(self.received))
    }

    /// The steps as the outcome tells them, in order of time.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::with_capacity(4 + 3 * self.attempts.len());
        steps.extend(self.created_at.map(|at| Step::new(at, "created")));
        steps.push(Step::new(self.received_at, "received"));
        for (device, attempt) in &self.attempts {
            self.tell(*device, attempt, &mut steps);
        }
        let settled = self.at(self.settled);
        if self.omitted > 0 {
            steps.push(Step { count: Some(self.omitted), ..Step::new(settled, "omitted") });
        }
        steps.push(Step::new(settled, "settled"));
        // Stable: what happened in the same millisecond stays in order.
        steps.sort_by_key(|step| step.at);
        steps
    }

    fn tell(&self, device: usize, attempt: &Attempt, steps: &mut Vec<Step>) {
        let step = |instant, stage| Step {
            device: Some(device),
            attempt: attempt.number,
            ..Step::new(self.at(instant), stage)
        };
        if let Some(written) = attempt.written {
            let wait_ms = Some(whole_ms(written.saturating_duration_since(attempt.asked)));
            steps.push(Step { wait_ms, ..step(written, "written") });
        }
        let ended = |stage, error: &String| Step { error: Some(error.clone()), ..step(attempt.ended, stage) };
        steps.push(match &attempt.end {
            End::Answered { status, reason } => {
                Step { status: Some(*status), reason: reason.clone(), ..step(attempt.ended, "answered") }
            }
            End::Unanswered(error) => ended("unanswered", error),
            End::Unprocessed(error) => ended("unprocessed", error),
            End::Unsent(error) => {
                let wait_ms = Some(whole_ms(attempt.ended.saturating_duration_since(attempt.asked)));
                Step { wait_ms, ..ended("unsent", error) }
            }
        });
        if let Some((class, pause)) = attempt.retry {
            let (class, wait_ms) = (Some(class.as_str()), Some(whole_ms(pause)));
            let next = attempt.number.map(|number| number + 1);
            steps.push(Step { attempt: next, class, wait_ms, ..step(attempt.ended, "retry") });
        }
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::response::Reason;

    const RECEIVED_AT: Timestamp = Timestamp::from_unix_ms(1_795_253_400_000);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn told(timeline: &Timeline) -> Value {
        serde_json::to_value(timeline.steps()).expect("texts and numbers")
    }

    fn attempt(start: Instant, number: u32, asked: u64, result: &Result<Response, PushError>) -> Attempt {
        Attempt {
            environment: Environment::Production,
            number: Some(number),
            class: Class::First,
            asked: start + ms(asked),
            written: Some(start + ms(asked + 3)),
            ended: start + ms(asked + 50),
            end: End::of(result),
            retry: None,
        }
    }

    fn notes(attempts: impl IntoIterator<Item = Attempt>) -> Notes {
        let mut notes = Notes::new(true);
        attempts.into_iter().for_each(|attempt| notes.add(attempt));
        notes
    }

    fn answer(status: u16, reason: Option<&str>) -> Response {
        Response { status, reason: reason.map(Reason::parse), invalid_since: None }
    }

    #[tokio::test(start_paused = true)]
    async fn the_steps_of_two_devices_come_in_order_of_time() {
        let start = Instant::now();
        let busy = attempt(start, 1, 0, &Ok(answer(503, Some("ServiceUnavailable"))));
        let busy = Attempt { retry: Some((Class::Transient, ms(120))), ..busy };
        let again = Attempt { class: Class::Transient, ..attempt(start, 2, 170, &Ok(answer(200, None))) };
        let silent = attempt(start, 1, 20, &Err(PushError::Unknown("no answer within 50 ms".to_owned())));
        let created_at = Some(Timestamp::from_unix_ms(RECEIVED_AT.unix_ms() - 40));
        let devices = vec![notes([busy, again]), Notes::new(true), notes([silent])];
        let timeline = Timeline::new(created_at, (RECEIVED_AT, start), start + ms(221), devices);
        assert_eq!(
            told(&timeline),
            json!([
                { "at": "2026-11-21T09:29:59.960Z", "stage": "created" },
                { "at": "2026-11-21T09:30:00.000Z", "stage": "received" },
                { "at": "2026-11-21T09:30:00.003Z", "stage": "written", "device": 0, "attempt": 1, "wait_ms": 3 },
                { "at": "2026-11-21T09:30:00.023Z", "stage": "written", "device": 2, "attempt": 1, "wait_ms": 3 },
                { "at": "2026-11-21T09:30:00.050Z", "stage": "answered", "device": 0, "attempt": 1, "status": 503,
                  "reason": "ServiceUnavailable" },
                { "at": "2026-11-21T09:30:00.050Z", "stage": "retry", "device": 0, "attempt": 2,
                  "class": "transient", "wait_ms": 120 },
                { "at": "2026-11-21T09:30:00.070Z", "stage": "unanswered", "device": 2, "attempt": 1,
                  "error": "written, but unanswered: no answer within 50 ms" },
                { "at": "2026-11-21T09:30:00.173Z", "stage": "written", "device": 0, "attempt": 2, "wait_ms": 3 },
                { "at": "2026-11-21T09:30:00.220Z", "stage": "answered", "device": 0, "attempt": 2, "status": 200 },
                { "at": "2026-11-21T09:30:00.221Z", "stage": "settled" },
            ])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_never_written_says_how_long_it_waited() {
        let start = Instant::now();
        let late = attempt(start, 0, 5, &Err(PushError::NotSent(None)));
        let late = Attempt { number: None, written: None, ..late };
        let timeline = Timeline::new(None, (RECEIVED_AT, start), start + ms(55), vec![notes([late])]);
        assert_eq!(
            told(&timeline)[1],
            json!({ "at": "2026-11-21T09:30:00.055Z", "stage": "unsent", "device": 0, "wait_ms": 50,
                    "error": "no connection to APNs had a stream free before the deadline" })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_ahead_shows() {
        let start = Instant::now();
        let created_at = Some(RECEIVED_AT.plus(ms(9_000)));
        let timeline = Timeline::new(created_at, (RECEIVED_AT, start), start + ms(1), vec![]);
        let steps: Vec<_> = timeline.steps().iter().map(|step| step.stage).collect();
        assert_eq!(steps, ["received", "settled", "created"]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_bounded_and_says_what_is_left_out() {
        let start = Instant::now();
        let unprocessed = Err(PushError::NotProcessed("x".repeat(5_000)));
        let device =
            || notes((1..=40).map(|number| attempt(start, number, u64::from(number) * 10, &unprocessed)));
        let timeline = Timeline::new(None, (RECEIVED_AT, start), start + ms(600), vec![device()]);
        let numbers: Vec<_> = timeline.attempts.iter().filter_map(|(_, attempt)| attempt.number).collect();
        assert_eq!(numbers, [(1..=15).collect::<Vec<_>>(), vec![40]].concat(), "the first ones and the last");
        assert_eq!(timeline.omitted, 24);
        let devices = (0..1_000).map(|_| device()).collect();
        let timeline = Timeline::new(None, (RECEIVED_AT, start), start + ms(600), devices);
        let steps = timeline.steps();
        assert_eq!(steps.len(), 1 + 2 * 100 + 2);
        let [.., omitted, settled] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!((omitted.stage, omitted.count), ("omitted", Some(1_000 * 40 - 100)));
        assert_eq!(settled.stage, "settled");
        assert!(serde_json::to_vec(&steps).expect("texts and numbers").len() < 50_000);
    }

    #[test]
    fn nobody_who_wants_to_know_costs_nothing() {
        let mut notes = Notes::new(false);
        assert_eq!(notes.begin(), None);
        notes.add(attempt(Instant::now(), 1, 0, &Ok(answer(200, None))));
        assert!(notes.attempts.is_none());
    }
}
