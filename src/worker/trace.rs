//! The trace that an invite is part of, and what is told of it to whoever records it.
//!
//! A [`Story`] is begun where an invite is recorded, filled while it is handled, and sent on when it is over; the other end of
//! the channel makes spans of it. Handling waits for nothing of that: a story for which there is no room is left out.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::mailbox::{Properties, Publication};
use super::timeline::Timeline;
use crate::domain::app::App;
use crate::domain::id::CallId;
use crate::domain::outcome::InviteResult;
use crate::domain::timestamp::Timestamp;
use crate::domain::trace::{SpanId, TraceContext, TraceId};
use crate::metrics::Metrics;
use crate::pause::Jitter;

/// Spans of a story for which there is room, on average: its own, one for its results, and two attempts.
const SPANS_EACH: usize = 4;

/// What is told of one invite.
#[derive(Debug)]
pub struct Story {
    /// The trace, and the span of this invite.
    pub context: TraceContext,
    /// Whose child that span is; `None`: the trace begins here.
    pub parent: Option<SpanId>,
    /// `tracestate`, which belongs to the trace.
    pub tracestate: Option<String>,
    /// AMQP's `message_id`.
    pub message_id: Option<String>,
    /// AMQP's `correlation_id`.
    pub correlation_id: Option<String>,
    /// Bytes of the body.
    pub body_bytes: usize,
    /// The broker delivered it before.
    pub redelivered: bool,
    /// When it was taken, on the wall and on tokio's clock.
    pub received: (Timestamp, Instant),
    /// The call, where it could be read.
    pub call_id: Option<CallId>,
    /// The app, where it could be read and is configured.
    pub app: Option<Arc<App>>,
    /// What became of it; `None` where it was told before, and is told again.
    pub result: Option<InviteResult>,
    /// What the outcome says is wrong with the invite.
    pub error: Option<String>,
    /// How many devices it had.
    pub devices: usize,
    /// What happened when; `None` where nothing was tried.
    pub timeline: Option<Timeline>,
    /// How its results were published.
    pub confirm: Option<Confirm>,
    /// When it was settled, or could not be any more.
    pub ended: Instant,
    /// The room that its spans take up while it waits.
    pub room: Option<OwnedSemaphorePermit>,
}

/// How results were published.
#[derive(Clone, Copy, Debug)]
pub struct Confirm {
    /// When they were ready.
    pub began: Instant,
    /// When the broker had confirmed all, or the delivery was gone.
    pub ended: Instant,
    /// How many.
    pub count: usize,
    /// The broker confirmed all.
    pub confirmed: bool,
}

/// The worker's end of the flow of stories. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Tracer {
    stories: mpsc::Sender<Box<Story>>,
    /// For spans.
    room: Arc<Semaphore>,
    /// Of the invites without a trace, so many begin one.
    ratio: f64,
    /// Random numbers for ids and for the ratio.
    jitter: Jitter,
    metrics: Arc<Metrics>,
}

/// A tracer and the end from which stories are taken; at most `capacity` wait in between, fewer where they have many spans.
/// `ratio`, 0 to 1: of the invites that are part of no trace, so many begin one.
pub fn tracer(
    capacity: usize,
    ratio: f64,
    jitter: Jitter,
    metrics: Arc<Metrics>,
) -> (Tracer, mpsc::Receiver<Box<Story>>) {
    let (stories, told) = mpsc::channel(capacity);
    let room = Arc::new(Semaphore::new(SPANS_EACH * capacity));
    (Tracer { stories, room, ratio, jitter, metrics }, told)
}

impl Tracer {
    /// The story of an invite that is recorded: whoever asked for it records it, or it is part of no trace and chosen.
    pub(super) fn begin(
        &self,
        properties: &Properties,
        body_bytes: usize,
        redelivered: bool,
        received: (Timestamp, Instant),
    ) -> Option<Box<Story>> {
        let remote = context(properties);
        let context = match remote {
            Some(remote) => remote.is_sampled().then(|| remote.continued_by(self.span_id()))?,
            None if self.jitter.draw() < self.ratio => TraceContext::new(self.trace_id(), self.span_id()),
            None => return None,
        };
        Some(Box::new(Story {
            context,
            parent: remote.map(|remote| remote.span_id),
            // Without a trace that can be read it belongs to nothing (W3C Trace Context §3.3).
            tracestate: remote.and(properties.tracestate.clone()),
            message_id: properties.message_id.clone(),
            correlation_id: properties.correlation_id.clone(),
            body_bytes,
            redelivered,
            received,
            call_id: None,
            app: None,
            result: None,
            error: None,
            devices: 0,
            timeline: None,
            confirm: None,
            ended: received.1,
            room: None,
        }))
    }

    /// It is over.
    pub(super) fn end(&self, mut story: Box<Story>) {
        story.ended = Instant::now();
        let spans = story.spans();
        // A story of many attempts takes as much memory as many of one.
        let room = u32::try_from(spans).map(|spans| Arc::clone(&self.room).try_acquire_many_owned(spans));
        story.room = room.ok().and_then(Result::ok);
        if story.room.is_none() || self.stories.try_send(story).is_err() {
            self.metrics.spans("dropped", spans);
        }
    }

    fn span_id(&self) -> SpanId {
        loop {
            if let Some(id) = SpanId::new(self.jitter.bits()) {
                return id;
            }
        }
    }

    fn trace_id(&self) -> TraceId {
        loop {
            if let Some(id) =
                TraceId::new(u128::from(self.jitter.bits()) << 64 | u128::from(self.jitter.bits()))
            {
                return id;
            }
        }
    }
}

impl Story {
    /// How many spans it makes: its own, one for each attempt, one for the results.
    pub fn spans(&self) -> usize {
        let attempts = self.timeline.as_ref().map_or(0, |timeline| timeline.attempts.len());
        1 + attempts + usize::from(self.confirm.is_some())
    }
}

/// What an invite's `traceparent` says; `None` where there is none that can be read.
fn context(properties: &Properties) -> Option<TraceContext> {
    TraceContext::parse(properties.traceparent.as_deref()?)
}

/// The trace that a line of the log names: the one that is recorded, else the one that the invite is part of.
pub(super) fn trace_id(properties: &Properties, story: Option<&Story>) -> Option<TraceId> {
    let context = story.map(|story| story.context).or_else(|| context(properties));
    context.map(|context| context.trace_id)
}

/// Carries the invite's trace and correlation to a result. Where the invite is recorded, the trace goes on under its span.
pub(super) fn carry(properties: &Properties, story: Option<&Story>, publication: &mut Publication) {
    publication.correlation_id.clone_from(&properties.correlation_id);
    if let Some(story) = story {
        publication.traceparent = Some(story.context.to_string());
        publication.tracestate.clone_from(&story.tracestate);
    } else {
        publication.traceparent.clone_from(&properties.traceparent);
        publication.tracestate.clone_from(&properties.tracestate);
    }
}

#[cfg(test)]
mod tests {
    use super::super::mailbox::Route;
    use super::super::timeline::{Attempt, End};
    use super::*;
    use crate::domain::app::Environment;
    use crate::domain::policy::Class;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn begin(ratio: f64, traceparent: Option<&str>) -> (Properties, Option<Box<Story>>) {
        let (tracer, _told) = tracer(1, ratio, Jitter::seeded(1), Metrics::new());
        let properties = Properties {
            traceparent: traceparent.map(str::to_owned),
            tracestate: Some("a=b".to_owned()),
            ..Properties::default()
        };
        let story = tracer.begin(&properties, 2, false, (Timestamp::from_unix_ms(0), Instant::now()));
        (properties, story)
    }

    fn carried(properties: &Properties, story: Option<&Story>) -> (Option<String>, Option<String>) {
        let mut publication = Publication {
            route: Route::Results("outcome.acme".into()),
            kind: "ringcast.outcome.v1",
            message_id: "m".into(),
            body: Arc::default(),
            correlation_id: None,
            traceparent: None,
            tracestate: None,
        };
        carry(properties, story, &mut publication);
        (publication.traceparent, publication.tracestate)
    }

    #[test]
    fn a_trace_that_is_recorded_goes_on_under_our_span() {
        let (properties, story) = begin(0.0, Some(SAMPLED));
        let story = story.expect("it is recorded");
        assert_eq!(story.parent.expect("a parent").to_string(), "00f067aa0ba902b7");
        let (traceparent, tracestate) = carried(&properties, Some(&story));
        let ours = TraceContext::parse(&traceparent.expect("a trace")).expect("ours is right");
        assert_eq!(ours, story.context);
        assert_eq!(ours.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(Some(ours.span_id), story.parent);
        assert_eq!(tracestate.as_deref(), Some("a=b"));
        assert_eq!(trace_id(&properties, Some(&story)), Some(ours.trace_id));
    }

    #[test]
    fn one_that_nobody_records_is_carried_as_it_is() {
        let unsampled = SAMPLED.replace("-01", "-00");
        let (properties, story) = begin(1.0, Some(&unsampled));
        assert!(story.is_none(), "whoever asked does not record it");
        assert_eq!(carried(&properties, None), (Some(unsampled), Some("a=b".to_owned())));
        assert!(trace_id(&properties, None).is_some(), "the log names it all the same");
    }

    #[test]
    fn an_invite_without_a_trace_begins_one_if_it_is_chosen() {
        for none in [None, Some("00-0-0-01")] {
            let (properties, story) = begin(0.0, none);
            assert!(story.is_none());
            assert_eq!(trace_id(&properties, None), None);
            let (properties, story) = begin(1.0, none);
            let story = story.expect("all are chosen");
            assert_eq!((story.parent, story.context.is_sampled()), (None, true));
            let (traceparent, tracestate) = carried(&properties, Some(&story));
            assert_eq!(traceparent, Some(story.context.to_string()));
            assert_eq!(tracestate, None, "it belongs to no trace");
        }
    }

    #[test]
    fn a_story_without_room_is_left_out_and_counted() {
        let metrics = Metrics::new();
        let (tracer, mut told) = tracer(1, 1.0, Jitter::seeded(1), Arc::clone(&metrics));
        for _ in 0..3 {
            let received = (Timestamp::from_unix_ms(0), Instant::now());
            tracer.end(tracer.begin(&Properties::default(), 2, false, received).expect("all are chosen"));
        }
        assert!(told.try_recv().is_ok() && told.try_recv().is_err());
        assert!(metrics.render().contains("ringcast_spans_total{result=\"dropped\"} 2"));
    }

    #[tokio::test]
    async fn stories_of_many_attempts_take_the_room_of_many() {
        let metrics = Metrics::new();
        let (tracer, mut told) = tracer(100, 1.0, Jitter::seeded(1), Arc::clone(&metrics));
        let received = (Timestamp::from_unix_ms(0), Instant::now());
        let tell = |attempts| {
            let mut story = tracer.begin(&Properties::default(), 2, false, received).expect("all are chosen");
            story.timeline = Some(timeline(received, attempts));
            tracer.end(story);
        };
        let mut waiting = || std::iter::from_fn(|| told.try_recv().ok()).count();
        (0..10).for_each(|_| tell(99));
        assert_eq!(waiting(), 4);
        assert!(metrics.render().contains("ringcast_spans_total{result=\"dropped\"} 600"));
        (0..200).for_each(|_| tell(1));
        assert_eq!(waiting(), 100, "there is room again");
    }

    fn timeline((received_at, received): (Timestamp, Instant), attempts: usize) -> Timeline {
        let attempt = Attempt {
            environment: Environment::Production,
            number: Some(1),
            class: Class::First,
            asked: received,
            written: None,
            ended: received,
            end: End::Unprocessed("GOAWAY".to_owned()),
            retry: None,
        };
        let attempts = vec![(0, attempt); attempts];
        Timeline { created_at: None, received_at, received, settled: received, attempts, omitted: 0 }
    }
}
