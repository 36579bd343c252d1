//! One request and its answer, or what comes instead.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};

use super::super::Environment;
use super::super::faults::{Action, Answer, GoAway, Strike};
use super::super::journal::{Body, Record};
use super::super::provider_token::{Admitted, Claims, fingerprint};
use super::super::rules::{self, Reason, Refusal};
use super::state::{Connection, Held};

/// A body is read to its end, but no more than this is kept of it: enough to see that it is too large.
const BODY_KEPT_BYTES: usize = 16 * 1024;

static APNS_UNIQUE_ID: HeaderName = HeaderName::from_static("apns-unique-id");

/// Serves one request from its headers to its end.
pub(super) async fn run(
    connection: &Connection<'_>,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, mut stream) = request.into_parts();
    let Some(body) = read_body(connection, &mut stream).await else {
        return; // the client gave it up
    };
    let stream = respond.stream_id().as_u32();
    let shared = connection.shared;
    if connection.is_unprocessed(stream) {
        shared.journal.note(false, |sequence| {
            let notes = Notes::of_fault((shared.options.clock)(), "going away");
            record(connection, sequence, stream, &head.uri, &head.headers, &body, notes)
        });
        respond.send_reset(Code::REFUSED_STREAM);
        return;
    }
    let judged = judge(connection, &head, &body);
    let token = rules::path_token(head.uri.path()).and_then(rules::read_token).unwrap_or_default();
    let Strike { latency, action } = shared.faults.strike(&token, connection.spot, &shared.chance);
    let accepted = judged.verdict.is_ok();
    let authorized = judged.authorized;
    let bad_device_token =
        action.is_none() && judged.verdict.is_err_and(|refusal| refusal.reason == Reason::BadDeviceToken);
    let apns_id = judged.apns_id;
    let honest = || Reply::honest(judged.verdict);
    let (reply, fault) = match &action {
        None => (Some(honest()), None),
        Some(Action::Answer(answer)) => (Some(Reply::other(answer)), Some("answer")),
        Some(Action::Reset { .. }) => (None, Some("reset")),
        Some(Action::GoAway(go_away)) => (go_away.serve_this.then(honest), Some("goaway")),
        Some(Action::Silence { .. }) => (None, Some("silence")),
        Some(Action::Freeze { processed }) => (processed.then(honest), Some("freeze")),
        Some(Action::Close { .. }) => (None, Some("close")),
    };
    let processed = accepted && action.as_ref().is_none_or(lets_ring);
    let sequence = shared.journal.note(processed, |sequence| {
        let notes = Notes {
            at_ms: judged.at_ms,
            claims: judged.claims.clone(),
            apns_id: Some(&apns_id),
            status: reply.as_ref().map(|reply| reply.status.as_u16()),
            reason: reply.as_ref().and_then(|reply| reply.reason.clone()),
            fault,
            delay_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            processed,
        };
        record(connection, sequence, stream, &head.uri, &head.headers, &body, notes)
    });
    let counts = !action.as_ref().is_some_and(promises_unprocessed);
    if latency.is_zero() {
        if counts {
            connection.judged(stream, None);
        }
    } else {
        let otherwise = shared.journal.is_kept().then(|| {
            let notes = Notes {
                claims: judged.claims,
                apns_id: Some(&apns_id),
                ..Notes::of_fault(judged.at_ms, "goaway")
            };
            record(connection, sequence, stream, &head.uri, &head.headers, &body, notes)
        });
        if counts {
            connection.judged(stream, Some(Held { processed, otherwise }));
        }
        let waited = wait(connection, latency, &mut respond).await;
        if !connection.settle(stream) {
            respond.send_reset(Code::REFUSED_STREAM); // a GOAWAY has left it out
            return;
        }
        if waited.is_err() {
            return;
        }
    }
    act(connection, action.as_ref(), &mut respond);
    match reply {
        Some(reply) if !connection.is_silent() => {
            connection.answered(reply.status.as_u16(), authorized, bad_device_token);
            answer(connection, reply, apns_id, &mut respond);
        }
        _ => {
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await; // until the client gives up
        }
    }
}

/// Everything an action does besides answering.
fn act(connection: &Connection<'_>, action: Option<&Action>, respond: &mut SendResponse<Bytes>) {
    match action {
        None | Some(Action::Answer(_) | Action::Silence { .. }) => {}
        Some(Action::Reset { code, .. }) => respond.send_reset(Code::from(*code)),
        Some(Action::GoAway(go_away)) => {
            connection.go_away(go_away);
            if !go_away.serve_this {
                respond.send_reset(Code::REFUSED_STREAM);
            }
        }
        Some(Action::Freeze { .. }) => connection.control.freeze(true),
        Some(Action::Close { .. }) => connection.close(),
    }
}

fn promises_unprocessed(action: &Action) -> bool {
    match action {
        Action::Reset { code, .. } => Code::from(*code) == Code::REFUSED_STREAM,
        Action::GoAway(GoAway { serve_this, .. }) => !serve_this,
        _ => false,
    }
}

/// Whether an accepted push rings although this is done.
fn lets_ring(action: &Action) -> bool {
    match action {
        Action::Answer(Answer { processed, .. })
        | Action::Reset { processed, .. }
        | Action::Silence { processed }
        | Action::Freeze { processed }
        | Action::Close { processed } => *processed && !promises_unprocessed(action),
        Action::GoAway(go_away) => go_away.serve_this,
    }
}

/// Waits, or until a GOAWAY leaves the stream out. Fails when the client gives it up before.
async fn wait(
    connection: &Connection<'_>,
    latency: Duration,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), ()> {
    let stream = respond.stream_id().as_u32();
    let mut over = pin!(tokio::time::sleep(latency));
    loop {
        tokio::select! {
            biased;
            () = connection.recalled.notified() => if connection.is_unprocessed(stream) { return Ok(()) },
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return Err(()),
            () = &mut over => return Ok(()),
        }
    }
}

/// The whole body, up to [`BODY_KEPT_BYTES`]; `None` when the stream broke.
async fn read_body(connection: &Connection<'_>, stream: &mut RecvStream) -> Option<Bytes> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.ok()?;
        connection.windows.used(stream.flow_control(), chunk.len(), &connection.shared.chance);
        if first.is_empty() {
            first = chunk;
        } else if rest.is_empty() {
            rest.reserve(first.len() + chunk.len());
            rest.extend_from_slice(&first);
            rest.extend_from_slice(&chunk);
        } else if rest.len() < BODY_KEPT_BYTES {
            rest.extend_from_slice(&chunk);
        }
    }
    Some(if rest.is_empty() { first } else { rest.freeze() })
}

struct Judged {
    at_ms: u64,
    /// Certificate or provider token are good.
    authorized: bool,
    verdict: Result<(), Refusal>,
    claims: Option<Arc<Claims>>,
    apns_id: HeaderValue,
}

/// The honest judgement: request, provider token and device token.
fn judge(connection: &Connection<'_>, head: &Parts, body: &Bytes) -> Judged {
    let shared = connection.shared;
    let at_ms = (shared.options.clock)();
    let request = rules::Request {
        method: &head.method,
        path: head.uri.path_and_query().map_or("", |path| path.as_str()),
        headers: &head.headers,
        body,
    };
    let topics = connection.certificate.as_ref().map(|certificate| &*certificate.topics);
    let policy = rules::Policy { bundle_id: shared.options.bundle_id.as_deref(), topics };
    let (mut authorized, mut admitted): (_, Option<Admitted>) = (false, None);
    let verdict = rules::judge(&request, &policy, |authorization| {
        match &connection.certificate {
            Some(certificate) => certificate.check(at_ms)?,
            None => {
                admitted = Some(connection.session.lock().admit(authorization, &shared.keyring, at_ms)?);
            }
        }
        authorized = true;
        Ok(())
    });
    let apns_id = match head.headers.get(&rules::APNS_ID) {
        Some(sent) if verdict.as_ref().err() != Some(&Reason::BadMessageId) => sent.clone(),
        _ => new_id(connection),
    };
    let verdict = match verdict {
        Ok(push) if !admitted.as_ref().is_none_or(|admitted| admitted.may_push_to(push.bundle_id)) => {
            Err(Reason::TopicDisallowed.into())
        }
        Ok(push) => shared.devices.judge(&push.token, push.topic),
        Err(reason) => Err(reason.into()),
    };
    Judged { at_ms, authorized, verdict, claims: admitted.map(|admitted| admitted.claims), apns_id }
}

fn new_id(connection: &Connection<'_>) -> HeaderValue {
    let id = connection.shared.chance.lock().uuid().hyphenated().to_string();
    HeaderValue::from_str(&id).expect("a UUID is plain ASCII")
}

/// An answer, ready to be sent.
struct Reply {
    status: StatusCode,
    reason: Option<Cow<'static, str>>,
    body: Bytes,
}

impl Reply {
    fn honest(verdict: Result<(), Refusal>) -> Self {
        let Err(Refusal { reason, timestamp_ms }) = verdict else {
            return Self { status: StatusCode::OK, reason: None, body: Bytes::new() };
        };
        let body = refusal_body(reason.as_str(), timestamp_ms);
        Self { status: read_status(reason.status()), reason: Some(Cow::Borrowed(reason.as_str())), body }
    }

    fn other(answer: &Answer) -> Self {
        let body = match (&answer.body, &answer.reason) {
            (Some(body), _) => body.clone(),
            (None, Some(reason)) => refusal_body(reason, answer.timestamp_ms),
            (None, None) => Bytes::new(),
        };
        let reason = answer.reason.clone().map(Cow::Owned);
        Self { status: read_status(answer.status), reason, body }
    }
}

/// A status out of HTTP's range can only come from a fault; 500 stands in for it.
fn read_status(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn refusal_body(reason: &str, timestamp_ms: Option<u64>) -> Bytes {
    let mut body = serde_json::json!({ "reason": reason });
    if let Some(timestamp_ms) = timestamp_ms {
        body["timestamp"] = timestamp_ms.into();
    }
    body.to_string().into()
}

fn answer(
    connection: &Connection<'_>,
    reply: Reply,
    mut apns_id: HeaderValue,
    respond: &mut SendResponse<Bytes>,
) {
    apns_id.set_sensitive(true); // unique each time: keep it out of the compression table
    let mut response = Response::new(());
    *response.status_mut() = reply.status;
    response.headers_mut().insert(&rules::APNS_ID, apns_id);
    if connection.shared.options.environment == Environment::Sandbox && reply.status == StatusCode::OK {
        response.headers_mut().insert(&APNS_UNIQUE_ID, new_id(connection));
    }
    // An error only says that the client has given the stream up.
    if let Ok(mut stream) = respond.send_response(response, reply.body.is_empty())
        && !reply.body.is_empty()
    {
        let _ = stream.send_data(reply.body, true);
    }
}

/// What a record says besides the request.
pub(super) struct Notes<'a> {
    at_ms: u64,
    claims: Option<Arc<Claims>>,
    apns_id: Option<&'a HeaderValue>,
    status: Option<u16>,
    reason: Option<Cow<'static, str>>,
    fault: Option<&'static str>,
    delay_ms: u64,
    processed: bool,
}

impl Notes<'_> {
    pub(super) fn of_fault(at_ms: u64, fault: &'static str) -> Self {
        Self {
            at_ms,
            claims: None,
            apns_id: None,
            status: None,
            reason: None,
            fault: Some(fault),
            delay_ms: 0,
            processed: false,
        }
    }
}

pub(super) fn record(
    connection: &Connection<'_>,
    sequence: u64,
    stream: u32,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
    notes: Notes<'_>,
) -> Record {
    let text = |name| rules::header(headers, name).map(|value| String::from_utf8_lossy(value).into_owned());
    let apns_id = match notes.apns_id {
        Some(id) => String::from_utf8_lossy(id.as_bytes()).into_owned(),
        None => text(&rules::APNS_ID).unwrap_or_default(),
    };
    let authorization =
        notes.claims.or_else(|| fingerprint(headers.get(http::header::AUTHORIZATION)?.as_bytes()));
    Record {
        at_ms: notes.at_ms,
        sequence,
        connection: connection.spot.connection,
        address: connection.spot.address.map(|address| address.socket),
        stream,
        path: uri.path().to_owned(),
        token: rules::path_token(uri.path()).unwrap_or_default().to_ascii_lowercase(),
        apns_id,
        topic: text(&rules::APNS_TOPIC),
        expiration: text(&rules::APNS_EXPIRATION),
        priority: text(&rules::APNS_PRIORITY),
        push_type: text(&rules::APNS_PUSH_TYPE),
        authorization,
        certificate: connection.certificate.as_ref().map(|certificate| certificate.bundle_id.clone()),
        body: Body(Bytes::copy_from_slice(body)), // not a slice of a read buffer that it would keep alive
        status: notes.status,
        reason: notes.reason,
        fault: notes.fault,
        delay_ms: notes.delay_ms,
        processed: notes.processed,
    }
}
