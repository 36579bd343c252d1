//! The spans of one invite: its own, one for each attempt, and one for its results. No device token is in them.
//!
//! Names follow OpenTelemetry's conventions for messaging where these have one.

use tokio::time::Instant;

use super::proto::{KeyValue, Kind, Span, Status, StatusCode};
use crate::domain::outcome::InviteResult;
use crate::domain::trace::{SpanId, TraceContext};
use crate::pause::Jitter;
use crate::worker::timeline::{Attempt, End};
use crate::worker::trace::{Confirm, Story};

/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`: the next bit is set or not on purpose.
const KNOWS_PARENT: u32 = 0x100;

/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`: the parent is another process's span.
const PARENT_IS_REMOTE: u32 = 0x200;

/// The spans of a story, the invite's first.
pub(super) fn spans(story: &Story) -> Vec<Span> {
    let ids = Jitter::seeded(u64::from_be_bytes(story.context.span_id.to_bytes()));
    let mut spans = Vec::with_capacity(story.spans());
    spans.push(invite(story));
    for (device, attempt) in story.timeline.iter().flat_map(|timeline| &timeline.attempts) {
        spans.push(push(story, *device, attempt, &ids));
    }
    spans.extend(story.confirm.as_ref().map(|confirm| results(story, confirm, &ids)));
    spans
}

/// From the delivery to the ack.
fn invite(story: &Story) -> Span {
    let mut attributes = vec![
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.operation.name", "process"),
        KeyValue::new("messaging.operation.type", "process"),
        KeyValue::new("messaging.message.body.size", story.body_bytes),
        KeyValue::new("redelivered", story.redelivered),
        KeyValue::new("devices", story.devices),
    ];
    let mut add =
        |key, value: Option<String>| attributes.extend(value.map(|value| KeyValue::new(key, value)));
    add("messaging.message.id", story.message_id.clone());
    add("messaging.message.conversation_id", story.correlation_id.clone());
    add("call.id", story.call_id.map(|id| id.to_string()));
    add("app", story.app.as_ref().map(|app| app.name.clone()));
    add("result", story.result.map(|result| result.as_str().to_owned()));
    let is_told_again = story.result.is_none();
    if is_told_again {
        attributes.push(KeyValue::new("told_again", true));
    }
    if let Some(omitted) =
        story.timeline.as_ref().map(|timeline| timeline.omitted).filter(|omitted| *omitted > 0)
    {
        attributes.push(KeyValue::new("attempts.omitted", omitted));
    }
    let confirmed = story.confirm.is_some_and(|confirm| confirm.confirmed);
    let error = match story.result {
        _ if !confirmed => Some("its results were not confirmed; the broker delivers it again".to_owned()),
        None | Some(InviteResult::Accepted | InviteResult::Duplicate) => None,
        Some(result) => Some(story.error.clone().unwrap_or_else(|| result.as_str().to_owned())),
    };
    let remote = story.parent.map_or(0, |_| PARENT_IS_REMOTE);
    Span {
        parent_span_id: story.parent.map(|parent| parent.to_bytes().to_vec()).unwrap_or_default(),
        flags: u32::from(story.context.flags()) | KNOWS_PARENT | remote,
        ..span(
            story,
            story.context,
            "process invite",
            Kind::Consumer,
            [story.received.1, story.ended],
            attributes,
            error,
        )
    }
}

/// One attempt, from when a stream was asked for.
fn push(story: &Story, device: usize, attempt: &Attempt, ids: &Jitter) -> Span {
    let mut attributes = vec![
        KeyValue::new("apns.environment", attempt.environment.as_str()),
        KeyValue::new("device", device),
        KeyValue::new("class", attempt.class.as_str()),
    ];
    if let Some(number) = attempt.number {
        attributes.push(KeyValue::new("attempt", usize::try_from(number).unwrap_or(usize::MAX)));
    }
    let waited = attempt.written.unwrap_or(attempt.ended).saturating_duration_since(attempt.asked);
    let waited = usize::try_from(waited.as_millis()).unwrap_or(usize::MAX);
    attributes.push(KeyValue::new("slot.wait_ms", waited));
    let error = match &attempt.end {
        End::Answered { status, reason } => {
            attributes.push(KeyValue::new("http.response.status_code", usize::from(*status)));
            attributes.extend(reason.as_deref().map(|reason| KeyValue::new("apns.reason", reason)));
            (*status != 200).then(|| reason.clone().unwrap_or_else(|| status.to_string()))
        }
        End::Unanswered(error) | End::Unprocessed(error) | End::Unsent(error) => Some(error.clone()),
    };
    let stage = match &attempt.end {
        End::Answered { .. } => "answered",
        End::Unanswered(_) => "unanswered",
        End::Unprocessed(_) => "unprocessed",
        End::Unsent(_) => "unsent",
    };
    attributes.push(KeyValue::new("end", stage));
    child(story, ids, "push", Kind::Client, [attempt.asked, attempt.ended], attributes, error)
}

/// From the first publication to the last confirm.
fn results(story: &Story, confirm: &Confirm, ids: &Jitter) -> Span {
    let attributes = vec![
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.operation.name", "publish"),
        KeyValue::new("messaging.operation.type", "send"),
        KeyValue::new("messaging.batch.message_count", confirm.count),
    ];
    let error = (!confirm.confirmed).then(|| "the delivery was gone before all were confirmed".to_owned());
    child(story, ids, "publish results", Kind::Producer, [confirm.began, confirm.ended], attributes, error)
}

/// A span below the invite's.
fn child(
    story: &Story,
    ids: &Jitter,
    name: &str,
    kind: Kind,
    times: [Instant; 2],
    attributes: Vec<KeyValue>,
    error: Option<String>,
) -> Span {
    let id = std::iter::repeat_with(|| SpanId::new(ids.bits())).flatten().next();
    let context = story.context.continued_by(id.expect("numbers do not end"));
    Span {
        parent_span_id: story.context.span_id.to_bytes().to_vec(),
        flags: u32::from(context.flags()) | KNOWS_PARENT,
        ..span(story, context, name, kind, times, attributes, error)
    }
}

fn span(
    story: &Story,
    context: TraceContext,
    name: &str,
    kind: Kind,
    [began, ended]: [Instant; 2],
    attributes: Vec<KeyValue>,
    error: Option<String>,
) -> Span {
    Span {
        trace_id: context.trace_id.to_bytes().to_vec(),
        id: context.span_id.to_bytes().to_vec(),
        trace_state: story.tracestate.clone().unwrap_or_default(),
        name: name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: unix_ns(story, began),
        end_time_unix_nano: unix_ns(story, ended),
        attributes,
        status: error.map(|message| Status { message, code: StatusCode::Error.into() }),
        ..Span::default()
    }
}

/// The wall time of an instant, by the one look at the wall clock when the invite was taken.
fn unix_ns(story: &Story, instant: Instant) -> u64 {
    let (at, received) = story.received;
    let start = u64::try_from(at.unix_ms()).unwrap_or(0).saturating_mul(1_000_000);
    let since = instant.saturating_duration_since(received).as_nanos();
    start.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::proto::Value;
    use super::*;
    use crate::domain::app::Environment;
    use crate::domain::policy::Class;
    use crate::domain::timestamp::Timestamp;
    use crate::worker::timeline::Timeline;

    const START_NS: u64 = 1_795_253_400_000_000_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn story(start: Instant, attempts: Vec<(usize, Attempt)>, result: Option<InviteResult>) -> Story {
        let at = Timestamp::from_unix_ms(1_795_253_400_000);
        let remote = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let remote = remote.expect("it is right");
        Story {
            context: remote.continued_by(SpanId::new(7).expect("not 0")),
            parent: Some(remote.span_id),
            tracestate: Some("a=b".to_owned()),
            message_id: Some("m".to_owned()),
            correlation_id: None,
            body_bytes: 300,
            redelivered: false,
            received: (at, start),
            call_id: None,
            app: None,
            result,
            error: None,
            devices: 1,
            timeline: Some(Timeline {
                created_at: None,
                received_at: at,
                received: start,
                settled: start + ms(60),
                attempts,
                omitted: 3,
            }),
            confirm: Some(Confirm {
                began: start + ms(60),
                ended: start + ms(65),
                count: 2,
                confirmed: true,
            }),
            ended: start + ms(66),
            room: None,
        }
    }

    fn attempt(start: Instant, end: End) -> Attempt {
        Attempt {
            environment: Environment::Sandbox,
            number: Some(1),
            class: Class::First,
            asked: start + ms(1),
            written: Some(start + ms(11)),
            ended: start + ms(51),
            end,
            retry: None,
        }
    }

    fn told<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
        let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
        attribute.value.as_ref()?.value.as_ref()
    }

    fn error(span: &Span) -> Option<&str> {
        span.status.as_ref().map(|status| status.message.as_str())
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_and_results_are_children_of_the_invite() {
        let start = Instant::now();
        let end = End::Answered { status: 410, reason: Some("Unregistered".to_owned()) };
        let story = story(start, vec![(0, attempt(start, end))], Some(InviteResult::Undeliverable));
        let spans = spans(&story);
        let [invite, push, results] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(spans.len(), story.spans());
        assert_eq!(invite.parent_span_id, story.parent.expect("a parent").to_bytes());
        assert_eq!(invite.id, story.context.span_id.to_bytes());
        assert_eq!(
            (invite.start_time_unix_nano, invite.end_time_unix_nano),
            (START_NS, START_NS + 66_000_000)
        );
        assert_eq!((invite.flags, push.flags, results.flags), (0x301, 0x101, 0x101));
        for child in [push, results] {
            assert_eq!(child.parent_span_id, invite.id);
            assert_eq!(child.trace_id, invite.trace_id);
            assert_eq!(child.trace_state, "a=b");
        }
        let ids = [invite, push, results].map(|span| &span.id);
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
        assert_eq!(push.start_time_unix_nano, START_NS + 1_000_000);
        assert_eq!(told(push, "slot.wait_ms"), Some(&Value::Number(10)));
        assert_eq!(told(push, "http.response.status_code"), Some(&Value::Number(410)));
        assert_eq!(told(push, "apns.environment"), Some(&Value::Text("sandbox".to_owned())));
        assert_eq!(told(invite, "attempts.omitted"), Some(&Value::Number(3)));
        assert_eq!(
            (error(invite), error(push), error(results)),
            (Some("undeliverable"), Some("Unregistered"), None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_rang_or_was_told_before_is_no_error() {
        let start = Instant::now();
        let accepted = End::Answered { status: 200, reason: None };
        for result in [Some(InviteResult::Accepted), Some(InviteResult::Duplicate), None] {
            let story = story(start, vec![(0, attempt(start, accepted.clone()))], result);
            let spans = spans(&story);
            assert!(spans.iter().all(|span| span.status.is_none()), "{spans:?}");
            assert_eq!(told(&spans[0], "told_again").is_some(), result.is_none());
        }
        let mut lost = story(start, Vec::new(), Some(InviteResult::Accepted));
        lost.confirm.as_mut().expect("it is published").confirmed = false;
        assert!(spans(&lost).iter().all(|span| span.status.is_some()), "nobody may have its outcome");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trace_that_begins_here_has_no_parent() {
        let mut story = story(Instant::now(), Vec::new(), None);
        story.parent = None;
        let spans = spans(&story);
        assert_eq!((spans[0].parent_span_id.len(), spans[0].flags), (0, 0x101));
    }
}
