//! One connection to the collector over HTTP/1.1, kept as long as it lasts.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Endpoint;

/// How long a post may take from the dial to the head of the answer; OpenTelemetry's own default.
const POST_WITHIN: Duration = Duration::from_secs(10);

/// How long the rest of the answer may take, which comes with the head.
const BODY_WITHIN: Duration = Duration::from_secs(1);

/// Bytes of an answer that are read: it says how many spans were not taken, and why.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Why spans were not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PostError {
    /// It may go well next time (OTLP, *Failures*): no connection, no answer in time, 429, 502, 503, 504.
    #[error("{0}")]
    Passing(String),
    /// The collector will not take these spans.
    #[error("{0}")]
    Final(String),
}

/// See the module.
pub(super) struct Collector {
    endpoint: Endpoint,
    headers: HeaderMap,
    /// For `https`.
    tls: Option<Arc<ClientConfig>>,
    connection: Option<Connection>,
}

/// An open connection. Dropped, its socket is closed, whatever is still to be written.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    #[expect(dead_code, reason = "its drop is what counts")]
    driving: JoinSet<()>,
}

impl Collector {
    pub(super) fn new(endpoint: Endpoint, mut headers: HeaderMap, tls: Option<Arc<ClientConfig>>) -> Self {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let host = HeaderValue::from_str(&endpoint.authority).expect("an authority can stand in a header");
        headers.insert(HOST, host);
        Self { endpoint, headers, tls, connection: None }
    }

    /// Host and port.
    pub(super) fn authority(&self) -> &str {
        &self.endpoint.authority
    }

    /// Posts a request and gives the answer's body, which is empty where it is too long or does not come to its end.
    pub(super) async fn post(&mut self, body: Bytes) -> Result<Bytes, PostError> {
        // Whatever fails before the whole answer has come costs the connection, which is put back only then.
        let (connection, answer) = timeout(POST_WITHIN, self.ask(body)).await.unwrap_or_else(|_| {
            Err(PostError::Passing(format!("no answer within {} s", POST_WITHIN.as_secs())))
        })?;
        // The status says what became of the spans, whatever page comes with it: else one without end would have them posted
        // for ever.
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect();
        let body = timeout(BODY_WITHIN, body).await.ok().and_then(Result::ok).map(Collected::to_bytes);
        if body.is_some() {
            self.connection = Some(connection);
        }
        match status {
            status if status.is_success() => Ok(body.unwrap_or_default()),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(PostError::Passing(format!("it answers {status}"))),
            status => Err(PostError::Final(format!("it answers {status}"))),
        }
    }

    async fn ask(&mut self, body: Bytes) -> Result<(Connection, Response<Incoming>), PostError> {
        let mut connection = match self.connection.take().filter(|kept| !kept.sender.is_closed()) {
            Some(kept) => kept,
            None => self.dial().await.map_err(|error| PostError::Passing(explain(&error)))?,
        };
        let mut request = Request::post(self.endpoint.path.as_str()).body(Full::new(body));
        if let Ok(request) = &mut request {
            request.headers_mut().clone_from(&self.headers);
        }
        let request = request.map_err(|error| PostError::Final(error.to_string()))?;
        let answer = connection.sender.send_request(request).await;
        let answer = answer.map_err(|error| PostError::Passing(explain(&error)))?;
        Ok((connection, answer))
    }

    async fn dial(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return shake_hands(stream).await };
        let name = ServerName::try_from(self.endpoint.host.clone()).map_err(io::Error::other)?;
        shake_hands(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?).await
    }
}

async fn shake_hands(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Connection> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let mut driving = JoinSet::new();
    driving.spawn(async {
        // Its end shows at the next post.
        let _ = connection.await;
    });
    Ok(Connection { sender, driving })
}

/// An error with what caused it: hyper's alone says little.
fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
