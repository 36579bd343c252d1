//! One connection to the collector over HTTP/1.1, kept as long as it lasts.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper::body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Endpoint;

/// How long a post may take from the dial to the end of the answer; OpenTelemetry's own default.
const POST_WITHIN: Duration = Duration::from_secs(10);

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
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Collector {
    pub(super) fn new(endpoint: Endpoint, mut headers: HeaderMap, tls: Option<Arc<ClientConfig>>) -> Self {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let host = HeaderValue::from_str(&endpoint.authority).expect("an authority can stand in a header");
        headers.insert(HOST, host);
        Self { endpoint, headers, tls, sender: None }
    }

    /// Host and port.
    pub(super) fn authority(&self) -> &str {
        &self.endpoint.authority
    }

    /// Posts a request and gives the answer's body.
    pub(super) async fn post(&mut self, body: Bytes) -> Result<Bytes, PostError> {
        // Whatever fails before the answer has come costs the connection, which is put back only then.
        let posted = timeout(POST_WITHIN, self.try_post(body)).await;
        posted.unwrap_or_else(|_| {
            Err(PostError::Passing(format!("no answer within {} s", POST_WITHIN.as_secs())))
        })
    }

    async fn try_post(&mut self, body: Bytes) -> Result<Bytes, PostError> {
        let passing = |error: hyper::Error| PostError::Passing(explain(&error));
        let mut sender = match self.sender.take().filter(|kept| !kept.is_closed()) {
            Some(kept) => kept,
            None => self.dial().await.map_err(|error| PostError::Passing(explain(&error)))?,
        };
        let mut request = Request::post(self.endpoint.path.as_str()).body(Full::new(body));
        if let Ok(request) = &mut request {
            request.headers_mut().clone_from(&self.headers);
        }
        let request = request.map_err(|error| PostError::Final(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(passing)?;
        let status = answer.status();
        let body = read(answer.into_body()).await?;
        self.sender = Some(sender);
        match status {
            status if status.is_success() => Ok(body),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(PostError::Passing(format!("it answers {status}"))),
            status => Err(PostError::Final(format!("it answers {status}"))),
        }
    }

    async fn dial(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return shake_hands(stream).await };
        let name = ServerName::try_from(self.endpoint.host.clone()).map_err(io::Error::other)?;
        shake_hands(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?).await
    }
}

async fn shake_hands(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> io::Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Its end shows at the next post.
    tokio::spawn(connection);
    Ok(sender)
}

async fn read<B>(body: B) -> Result<Bytes, PostError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    collected.map(Collected::to_bytes).map_err(|error| PostError::Passing(explain(error.as_ref())))
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
