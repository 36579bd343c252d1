//! The endpoints and what each answers.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};

use super::Health;
use crate::logging::{self, Level};
use crate::metrics::Metrics;

/// Bytes of a log level.
pub(super) const LEVEL_BYTES_MAX: usize = 1024;

pub(super) const ENDPOINTS: &str = "/metrics\n/livez\n/readyz\n/log-level\n";

/// What the endpoints show.
pub(super) struct Site {
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Health,
    /// Of the log, where there is one to show and change.
    pub(super) level: Option<Level>,
}

impl Site {
    pub(super) async fn answer(&self, peer: SocketAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !ENDPOINTS.lines().any(|known| known == path) {
            return text(StatusCode::NOT_FOUND, format!("There is nothing here. There is:\n{ENDPOINTS}"));
        }
        if path == "/log-level" && request.method() == Method::PUT {
            return self.set_level(peer, request).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let allowed = if path == "/log-level" { "GET, HEAD, PUT" } else { "GET, HEAD" };
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("Allowed here: {allowed}.\n"));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            return response;
        }
        match path {
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics.render());
                let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, format);
                response
            }
            "/livez" => match self.health.stuck() {
                None => text(StatusCode::OK, "alive\n".to_owned()),
                Some(sentence) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{sentence}\n")),
            },
            "/readyz" => {
                let (ready, lines) = self.health.readiness();
                let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                text(status, lines)
            }
            _ => match &self.level {
                Some(level) => text(StatusCode::OK, format!("{}\n", level.now())),
                None => text(StatusCode::NOT_FOUND, "There is no log to set.\n".to_owned()),
            },
        }
    }

    /// Takes the body for the log's level.
    async fn set_level(&self, peer: SocketAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Some(level) = &self.level else {
            return text(StatusCode::NOT_FOUND, "There is no log to set.\n".to_owned());
        };
        if !peer.ip().to_canonical().is_loopback() {
            let sentence = "The level is set from this host alone; reach it by `kubectl port-forward`.\n";
            return text(StatusCode::FORBIDDEN, sentence.to_owned());
        }
        // Every browser sends it along with a PUT, whose page may be anybody's: a name that leads here makes this host its own.
        if request.headers().contains_key(ORIGIN) {
            return text(StatusCode::FORBIDDEN, "The level is set by no web page.\n".to_owned());
        }
        let Ok(body) = Limited::new(request.into_body(), LEVEL_BYTES_MAX).collect().await else {
            let sentence = format!("A level has {LEVEL_BYTES_MAX} bytes at most.\n");
            return text(StatusCode::PAYLOAD_TOO_LARGE, sentence);
        };
        let body = body.to_bytes();
        let wanted = String::from_utf8_lossy(&body);
        let wanted = wanted.trim();
        // Told by whichever level lets it through, the old one or the new one.
        let told = tracing::enabled!(tracing::Level::WARN);
        if told && logging::check(wanted).is_ok() {
            tell_level(wanted);
        }
        match level.set(wanted) {
            Ok(()) => {
                if !told {
                    tell_level(wanted);
                }
                text(StatusCode::OK, format!("{}\n", level.now()))
            }
            Err(mistake) => text(StatusCode::BAD_REQUEST, format!("{wanted:?} {mistake}\n")),
        }
    }
}

fn tell_level(level: &str) {
    tracing::warn!(log.level = level, "the log's level is changed, until this worker ends");
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
