//! One push as an HTTP/2 request (Apple, *Sending notification requests to APNs*).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri};
use uuid::Uuid;

use super::Endpoint;
use crate::clock::Clock;
use crate::domain::app::App;
use crate::domain::push::expiration;
use crate::domain::timestamp::Timestamp;
use crate::worker::gateway::Push;

const APNS_EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");
const APNS_ID: HeaderName = HeaderName::from_static("apns-id");
const APNS_PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
const APNS_PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
const APNS_TOPIC: HeaderName = HeaderName::from_static("apns-topic");

/// The parts of a request that never change on a pool, prepared once.
#[derive(Debug)]
pub(super) struct Template {
    authority: Authority,
    topics: Vec<HeaderValue>,
}

/// A part of a request's body, which tells when h2 has taken all of it. What was not taken yet can still be called back,
/// where the part is small; and a request whose last part was not taken cannot have been processed.
#[derive(Debug)]
pub(super) struct Body {
    left: Bytes,
    taken: Arc<AtomicBool>,
}

/// Whether h2 has taken a body.
#[derive(Debug)]
pub(super) struct Taken(Arc<AtomicBool>);

impl Body {
    /// A body to send, and what tells that it was taken.
    pub(super) fn new(bytes: Bytes) -> (Self, Taken) {
        let taken = Arc::new(AtomicBool::new(bytes.is_empty()));
        (Self { left: bytes, taken: Arc::clone(&taken) }, Taken(taken))
    }
}

impl Taken {
    /// All of it left for the socket.
    pub(super) fn all(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Buf for Body {
    fn remaining(&self) -> usize {
        self.left.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.left
    }

    fn advance(&mut self, count: usize) {
        self.left.advance(count);
        if self.left.is_empty() {
            self.taken.store(true, Ordering::Relaxed);
        }
    }
}

/// A push that cannot be written as a request, though its parts were checked on the way in.
#[derive(Debug, thiserror::Error)]
#[error("the request cannot be written: {0}")]
pub(super) struct EncodeError(#[from] http::Error);

/// An endpoint or a bundle id that cannot stand in a request.
#[derive(Debug, thiserror::Error)]
#[error("{0} cannot stand in a request: {1}")]
pub struct TemplateError(String, String);

impl Template {
    /// Prepares requests to `endpoint` for `apps`, which are found again by their index.
    pub(super) fn new<'a>(
        endpoint: &Endpoint,
        apps: impl Iterator<Item = &'a App>,
    ) -> Result<Self, TemplateError> {
        let host =
            if endpoint.host.contains(':') { format!("[{}]", endpoint.host) } else { endpoint.host.clone() };
        let authority = if endpoint.port == 443 { host } else { format!("{host}:{}", endpoint.port) };
        let refused =
            |what: &str, error: &dyn std::fmt::Display| TemplateError(what.to_owned(), error.to_string());
        let topics = apps
            .map(|app| HeaderValue::from_str(&app.topic()).map_err(|error| refused(&app.bundle_id, &error)))
            .collect::<Result<_, _>>()?;
        let authority =
            Authority::try_from(authority.as_str()).map_err(|error| refused(&authority, &error))?;
        Ok(Self { authority, topics })
    }

    /// The headers of every request for one app, to be prepared once for a connection. `authorization` is sensitive already,
    /// and absent with a certificate.
    pub(super) fn headers(&self, app: usize, authorization: Option<HeaderValue>) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(6);
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        headers.insert(APNS_TOPIC, self.topics[app].clone());
        headers.insert(APNS_PUSH_TYPE, HeaderValue::from_static("voip"));
        headers.insert(APNS_PRIORITY, HeaderValue::from_static("10"));
        headers.insert(APNS_EXPIRATION, sensitive(HeaderValue::from_static("0")));
        // Each push has its own; its place is kept.
        headers.insert(APNS_ID, HeaderValue::from_static(""));
        headers
    }

    /// The request of one attempt, without its body. `headers`: those of its app. `apns-id` and `apns-expiration` are marked
    /// sensitive because they differ from push to push and would churn the header table.
    pub(super) fn encode(
        &self,
        push: &Push,
        headers: HeaderMap,
        clock: &Clock,
    ) -> Result<Request<()>, EncodeError> {
        const DEVICE: &str = "/3/device/";
        let token = push.token.as_str();
        let mut path = String::with_capacity(DEVICE.len() + token.len());
        path.push_str(DEVICE);
        path.push_str(token);
        let mut parts = uri::Parts::default();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::try_from(path).map_err(http::Error::from)?);
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_parts(parts).map_err(http::Error::from)?;
        *request.headers_mut() = headers;
        let headers = request.headers_mut();
        if !push.app.expiration_max.is_zero() {
            let now = Timestamp::from_unix_ms(clock.unix_ms());
            let expiration = expiration(&push.app, now, push.deadline_at);
            fill(headers, &APNS_EXPIRATION, HeaderValue::from(expiration));
        }
        let mut text = Uuid::encode_buffer();
        let id = Uuid::from_bytes(*push.apns_id.as_bytes()).hyphenated().encode_lower(&mut text);
        fill(headers, &APNS_ID, HeaderValue::from_str(id).map_err(http::Error::from)?);
        Ok(request)
    }
}

/// Puts a push's own value into its place. To insert it would make a full map grow, although nothing is added.
fn fill(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    if let Some(place) = headers.get_mut(name) {
        *place = sensitive(value);
    }
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}
