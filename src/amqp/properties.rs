//! What the AMQP properties and headers of a delivery say, and those of a publication. Pure.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::worker::mailbox::{GivenUp, Properties, Publication};

/// Bytes of a header that is carried on, at most: a `traceparent` has 55, a `tracestate` 512 (W3C Trace Context).
const HEADER_MAX: usize = 512;

/// What of a message's properties goes on with the invite. Odd values are absent ones.
pub(super) fn read(from: &BasicProperties) -> Properties {
    let text = |value: &Option<ShortString>| {
        value.as_ref().map(ShortString::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let header = |name| header(from, name).and_then(header_text);
    Properties {
        message_id: text(from.message_id()),
        correlation_id: text(from.correlation_id()),
        reply_to: text(from.reply_to()),
        content_encoding: text(from.content_encoding()),
        traceparent: header("traceparent"),
        tracestate: header("tracestate"),
    }
}

/// The properties of a publication. An id that AMQP has no room for is left out.
pub(super) fn write(publication: &Publication, delivery_mode: u8, unix_seconds: u64) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_delivery_mode(delivery_mode)
        .with_content_type("application/json".into())
        .with_type(publication.kind.into())
        .with_app_id("ringcast".into())
        .with_timestamp(unix_seconds);
    if let Ok(id) = ShortString::try_new(&*publication.message_id) {
        properties = properties.with_message_id(id);
    }
    if let Some(Ok(id)) = publication.correlation_id.as_deref().map(ShortString::try_new) {
        properties = properties.with_correlation_id(id);
    }
    let trace = [("traceparent", &publication.traceparent), ("tracestate", &publication.tracestate)];
    let mut headers = FieldTable::default();
    for (name, value) in trace {
        if let Some(value) = value {
            headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
        }
    }
    if headers.inner().is_empty() { properties } else { properties.with_headers(headers) }
}

/// How often a quorum queue says that the message was returned to it; other queues do not count.
pub(super) fn returned(from: &BasicProperties) -> Option<u32> {
    let count = header(from, "x-delivery-count").and_then(header_number)?;
    // A count beyond all bounds is still one.
    u64::try_from(count).ok().map(|count| u32::try_from(count).unwrap_or(u32::MAX))
}

fn header_number(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(number) => Some(number.into()),
        AMQPValue::ShortShortUInt(number) => Some(number.into()),
        AMQPValue::ShortInt(number) => Some(number.into()),
        AMQPValue::ShortUInt(number) => Some(number.into()),
        AMQPValue::LongInt(number) => Some(number.into()),
        AMQPValue::LongUInt(number) => Some(number.into()),
        AMQPValue::LongLongInt(number) => Some(number),
        _ => None,
    }
}

/// Why the broker gave a message up, this time: the newest of its deaths. It was routed by the first one, which was another
/// queue's where a publisher has one of its own in front; that one counts where there is no list of them.
pub(super) fn given_up(from: &BasicProperties) -> GivenUp {
    let first = || header(from, "x-first-death-reason").and_then(header_text);
    match newest_death(from).or_else(first).as_deref() {
        Some("expired") => GivenUp::Expired,
        Some("delivery_limit") => GivenUp::DeliveryLimit,
        _ => GivenUp::Unsaid,
    }
}

/// RabbitMQ puts the newest death to the head of the list.
fn newest_death(from: &BasicProperties) -> Option<String> {
    let AMQPValue::FieldArray(deaths) = header(from, "x-death")? else { return None };
    let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else { return None };
    newest.inner().get("reason").and_then(header_text)
}

fn header<'a>(from: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    from.headers().as_ref()?.inner().get(name)
}

/// A header as text; `None` where it is no text, empty, too long, or not printable ASCII.
fn header_text(value: &AMQPValue) -> Option<String> {
    let bytes = match value {
        AMQPValue::LongString(text) => text.as_bytes(),
        AMQPValue::ShortString(text) => text.as_str().as_bytes(),
        _ => return None,
    };
    let printable = bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
    let fits = (1..=HEADER_MAX).contains(&bytes.len());
    (printable && fits).then(|| String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::worker::mailbox::Route;

    fn with_headers(headers: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        let mut publication = Publication {
            route: Route::Results("outcome.acme".into()),
            kind: "ringcast.outcome.v1",
            message_id: "m".into(),
            body: Arc::default(),
            correlation_id: Some("c".into()),
            traceparent: Some("00-0af7-b7ad-01".into()),
            tracestate: Some("a=b".into()),
        };
        let written = write(&publication, 2, 1_764_000_000);
        let expected = Properties {
            message_id: Some("m".into()),
            correlation_id: Some("c".into()),
            traceparent: Some("00-0af7-b7ad-01".into()),
            tracestate: Some("a=b".into()),
            ..Properties::default()
        };
        assert_eq!(read(&written), expected);
        assert_eq!((*written.delivery_mode(), *written.timestamp()), (Some(2), Some(1_764_000_000)));
        let fixed = [written.content_type(), written.kind(), written.app_id()];
        let fixed = fixed.map(|text| text.as_ref().map(ShortString::as_str));
        assert_eq!(fixed, [Some("application/json"), Some("ringcast.outcome.v1"), Some("ringcast")]);

        publication.correlation_id = Some("c".repeat(256));
        (publication.traceparent, publication.tracestate) = (None, None);
        let written = write(&publication, 1, 0);
        assert!(written.correlation_id().is_none(), "AMQP has no room for it");
        assert!(written.headers().is_none(), "an empty table is none");
    }

    #[test]
    fn properties_are_read_and_empty_ones_are_absent() {
        let from = with_headers(&[
            ("traceparent", AMQPValue::LongString("00-0af7-b7ad-01".into())),
            ("tracestate", AMQPValue::ShortString("a=b".into())),
        ])
        .with_message_id("m".into())
        .with_correlation_id("c".into())
        .with_reply_to("r".into())
        .with_content_encoding("gzip".into());
        let expected = Properties {
            message_id: Some("m".into()),
            correlation_id: Some("c".into()),
            reply_to: Some("r".into()),
            content_encoding: Some("gzip".into()),
            traceparent: Some("00-0af7-b7ad-01".into()),
            tracestate: Some("a=b".into()),
        };
        assert_eq!(read(&from), expected);
        let empty = BasicProperties::default().with_message_id("".into()).with_content_encoding("".into());
        assert_eq!(read(&empty), Properties::default());
    }

    #[test]
    fn the_count_of_returns_is_read() {
        let counted = |count| returned(&with_headers(&[("x-delivery-count", count)]));
        assert_eq!(counted(AMQPValue::LongLongInt(2)), Some(2));
        assert_eq!(counted(AMQPValue::ShortShortUInt(3)), Some(3));
        assert_eq!(counted(AMQPValue::LongLongInt(i64::MAX)), Some(u32::MAX));
        for odd in [AMQPValue::LongInt(-1), AMQPValue::LongString("2".into()), AMQPValue::Void] {
            assert_eq!(counted(odd), None);
        }
        assert_eq!(returned(&BasicProperties::default()), None);
    }

    #[test]
    fn the_reason_of_a_death_is_read() {
        let died = |reason: &str| {
            given_up(&with_headers(&[("x-first-death-reason", AMQPValue::LongString(reason.into()))]))
        };
        assert_eq!(died("expired"), GivenUp::Expired);
        assert_eq!(died("delivery_limit"), GivenUp::DeliveryLimit);
        assert_eq!(died("maxlen"), GivenUp::Unsaid);
        assert_eq!(given_up(&BasicProperties::default()), GivenUp::Unsaid);
        let odd = with_headers(&[("x-first-death-reason", AMQPValue::LongInt(7))]);
        assert_eq!(given_up(&odd), GivenUp::Unsaid);
    }

    #[test]
    fn of_several_deaths_the_newest_is_read() {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let death = |reason: AMQPValue| {
            let mut table = FieldTable::default();
            table.insert("reason".into(), reason);
            AMQPValue::FieldTable(table)
        };
        let died = |deaths: Vec<AMQPValue>| {
            let deaths = AMQPValue::FieldArray(deaths.into());
            given_up(&with_headers(&[("x-death", deaths), ("x-first-death-reason", text("expired"))]))
        };
        let (limit, expired) = (death(text("delivery_limit")), death(text("expired")));
        assert_eq!(died(vec![limit.clone(), expired.clone()]), GivenUp::DeliveryLimit);
        assert_eq!(died(vec![expired.clone(), limit]), GivenUp::Expired);
        assert_eq!(died(vec![death(text("rejected")), expired]), GivenUp::Unsaid);
        for odd in [vec![], vec![text("delivery_limit")], vec![death(AMQPValue::LongInt(7))]] {
            assert_eq!(died(odd.clone()), GivenUp::Expired, "the first death counts: {odd:?}");
        }
    }

    #[test]
    fn odd_headers_are_ignored() {
        let long = "x".repeat(HEADER_MAX + 1);
        for odd in [
            AMQPValue::LongInt(7),
            AMQPValue::Void,
            AMQPValue::LongString("".into()),
            AMQPValue::LongString(long.into()),
            AMQPValue::LongString("a\nb".into()),
            AMQPValue::LongString(vec![0xff, 0xfe].into()),
        ] {
            let from = with_headers(&[("traceparent", odd.clone())]);
            assert_eq!(read(&from), Properties::default(), "{odd:?}");
        }
    }
}
