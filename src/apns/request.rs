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

/// What is known of a request before its push.
#[derive(Debug)]
pub(super) struct Head {
    /// Those of its app, with places for the push's own.
    pub headers: HeaderMap,
    /// It is the first on its connection.
    pub is_first: bool,
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
        headers.insert(APNS_EXPIRATION, HeaderValue::from_static("0"));
        // Each push has its own; its place is kept.
        headers.insert(APNS_ID, HeaderValue::from_static(""));
        headers
    }

    /// The request of one attempt, without its body.
    pub(super) fn encode(&self, push: &Push, head: Head, clock: &Clock) -> Result<Request<()>, EncodeError> {
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
        *request.headers_mut() = head.headers;
        let headers = request.headers_mut();
        if !push.app.expiration_max.is_zero() {
            let now = Timestamp::from_unix_ms(clock.unix_ms());
            let expiration = expiration(&push.app, now, push.deadline_at);
            fill(headers, &APNS_EXPIRATION, HeaderValue::from(expiration), head.is_first);
        }
        let mut text = Uuid::encode_buffer();
        let id = Uuid::from_bytes(*push.apns_id.as_bytes()).hyphenated().encode_lower(&mut text);
        fill(headers, &APNS_ID, HeaderValue::from_str(id).map_err(http::Error::from)?, head.is_first);
        Ok(request)
    }
}

/// Puts a push's own value into its place. To insert it would make a full map grow, although nothing is added.
///
/// The first one on a connection goes into the peer's header table, so that its name is there for the others, and those
/// stay out of it, as Apple asks (*Sending notification requests to APNs*): they differ from push to push and would push
/// out what does not. h2 does so with what is marked sensitive.
fn fill(headers: &mut HeaderMap, name: &HeaderName, mut value: HeaderValue, is_first: bool) {
    if let Some(place) = headers.get_mut(name) {
        value.set_sensitive(!is_first);
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::domain::app::Environment;
    use crate::domain::id::{ApnsId, CallId, DeviceToken};
    use crate::domain::invite::tests::app;
    use crate::worker::gateway::Trail;

    const NOW: i64 = 1_795_253_400_000;

    /// The request of a push whose deadline is in half a minute.
    fn encode(expiration_max: Duration, is_first: bool) -> Request<()> {
        let app = App { expiration_max, ..app() };
        let endpoint = Endpoint { host: "apns.test".to_owned(), port: 443 };
        let template = Template::new(&endpoint, std::iter::once(&app)).unwrap();
        let headers = template.headers(0, Some(HeaderValue::from_static("bearer jwt")));
        let token = DeviceToken::new("ab01");
        let call = CallId::parse("6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a").unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let push = Push {
            app: Arc::new(app),
            environment: Environment::Production,
            apns_id: ApnsId::derive(call, &token),
            token,
            body: Bytes::new(),
            deadline,
            deadline_at: Timestamp::from_unix_ms(NOW + 30_000),
            answer_by: deadline,
            trail: Trail::default(),
        };
        template.encode(&push, Head { headers, is_first }, &Clock::simulated(NOW)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_says_whom_it_is_for_and_until_when() {
        for (expiration_max, expiration) in [(0, "0"), (20, "1795253420"), (60, "1795253430")] {
            let request = encode(Duration::from_secs(expiration_max), false);
            assert_eq!(request.uri(), "https://apns.test/3/device/ab01");
            let headers: Vec<_> =
                request.headers().iter().map(|(name, value)| (name.as_str(), value)).collect();
            let id = headers[5].1.to_str().unwrap();
            assert_eq!((headers[5].0, id.len(), id), ("apns-id", 36, id.to_lowercase().as_str()));
            assert_eq!(
                headers[..5],
                [
                    ("authorization", &HeaderValue::from_static("bearer jwt")),
                    ("apns-topic", &HeaderValue::from_str(&app().topic()).unwrap()),
                    ("apns-push-type", &HeaderValue::from_static("voip")),
                    ("apns-priority", &HeaderValue::from_static("10")),
                    ("apns-expiration", &HeaderValue::from_static(expiration)),
                ]
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_differs_from_push_to_push_goes_into_the_header_table_once_for_its_name() {
        let sensitive = |expiration_max, is_first| {
            let request = encode(Duration::from_secs(expiration_max), is_first);
            let headers = request.headers().clone();
            [APNS_ID, APNS_EXPIRATION, APNS_TOPIC].map(|name| headers[name].is_sensitive())
        };
        assert_eq!(sensitive(60, true), [false, false, false]);
        assert_eq!(sensitive(60, false), [true, true, false]);
        // It is the same in every push.
        assert_eq!(sensitive(0, false), [true, false, false]);
    }
}
