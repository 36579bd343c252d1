//! The thread that posts spans: some at a time, again where they were not taken, and the rest when the worker stops.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::post::{Collector, PostError};
use super::proto::{self, KeyValue, Request, Resource, ResourceSpans, Scope, ScopeSpans, Span};
use super::{Endpoint, RootError, Settings, spans, tls};
use crate::metrics::Metrics;
use crate::pause::{Jitter, Pause};
use crate::worker::trace::{Story, Tracer, tracer};

/// Stories that wait at most, fewer where they have many spans; a second's worth of a busy worker.
const STORIES_MAX: usize = 4096;

/// How long stories are gathered before they are posted together.
const GATHER: Duration = Duration::from_millis(500);

/// Spans of one request, as OpenTelemetry's own exporters have it. A single story may go beyond it.
const SPANS_MAX: usize = 512;

/// The pause after spans that were not taken; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long a worker that stops posts what is left.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no TLS.
    #[error(transparent)]
    Roots(#[from] RootError),
    /// The system gives no thread.
    #[error("no thread for traces: {0}")]
    System(#[from] io::Error),
}

/// The running thread. Dropped, it ends by itself, and nobody waits for it.
#[derive(Debug)]
pub struct Exporter {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Exporter {
    /// Posts what is left, for two seconds at most, and joins the thread. Blocks.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the traces had died");
        }
    }
}

/// Starts the thread, and gives the worker's end of it. `worker_name`: `service.instance.id`.
pub fn start(
    endpoint: &Endpoint,
    settings: &Settings,
    worker_name: &str,
    metrics: &Arc<Metrics>,
) -> Result<(Tracer, Exporter), SetupError> {
    let tls = if endpoint.is_tls { Some(tls::configure(settings.ca_file.as_deref())?) } else { None };
    let (tracer, told) = tracer(STORIES_MAX, settings.sample_ratio, Jitter::random(), Arc::clone(metrics));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let export = Export {
        told,
        collector: Collector::new(endpoint.clone(), settings.headers.clone(), tls),
        resource: Resource {
            attributes: vec![
                KeyValue::new("service.name", settings.service_name.as_str()),
                KeyValue::new("service.instance.id", worker_name),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            ],
        },
        metrics: Arc::clone(metrics),
        pause: Pause::new(PAUSE, PAUSE_MAX, Jitter::random()),
        trouble: false,
        batch: Vec::new(),
    };
    let thread =
        std::thread::Builder::new().name("traces".to_owned()).spawn(move || run(runtime, export, stopped))?;
    tracing::info!(collector = endpoint.authority, "traces are exported");
    Ok((tracer, Exporter { stop, thread }))
}

fn run(runtime: Runtime, mut export: Export, stopped: oneshot::Receiver<()>) {
    runtime.block_on(async {
        tokio::select! {
            biased;
            // The sender says nothing, it is dropped.
            _ = stopped => {}
            () = export.serve() => {}
        }
        export.flush().await;
    });
    // What still blocks (a name lookup) must not hold the worker's end up.
    runtime.shutdown_background();
}

struct Export {
    told: mpsc::Receiver<Box<Story>>,
    collector: Collector,
    resource: Resource,
    metrics: Arc<Metrics>,
    pause: Pause,
    /// The log says that spans are not taken.
    trouble: bool,
    /// What is posted next, or just now: it outlives a post that is broken off.
    batch: Vec<Span>,
}

impl Export {
    /// Posts until the worker is gone.
    async fn serve(&mut self) {
        while let Some(story) = self.told.recv().await {
            self.batch.extend(spans::spans(&story));
            sleep(GATHER).await;
            // All that came meanwhile, in requests of their own size.
            loop {
                self.gather();
                if self.batch.is_empty() {
                    break;
                }
                while let Err(PostError::Passing(_)) = self.post().await {
                    sleep(self.pause.lengthen()).await;
                }
                self.pause.reset();
            }
        }
    }

    /// Posts what is left, once each, while there is time.
    async fn flush(&mut self) {
        self.told.close();
        let until = Instant::now() + FLUSH_WITHIN;
        loop {
            self.gather();
            if self.batch.is_empty() {
                return;
            }
            let posted = timeout_at(until, self.post()).await;
            if !matches!(posted, Ok(Ok(()) | Err(PostError::Final(_)))) {
                break;
            }
        }
        let mut left = self.batch.len();
        while let Ok(story) = self.told.try_recv() {
            left += story.spans();
        }
        self.metrics.spans("failed", left);
        tracing::warn!(
            spans = left,
            "the worker stops; these spans the collector of traces did not take in time"
        );
    }

    /// Fills the batch with what waits.
    fn gather(&mut self) {
        while self.batch.len() < SPANS_MAX
            && let Ok(story) = self.told.try_recv()
        {
            self.batch.extend(spans::spans(&story));
        }
    }

    /// Posts the batch. It is empty after it was taken, or refused for good.
    async fn post(&mut self) -> Result<(), PostError> {
        let posted = self.collector.post(self.encode()).await;
        match &posted {
            Ok(answer) => {
                self.count(answer);
                if std::mem::take(&mut self.trouble) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Err(error) => {
                if matches!(error, PostError::Final(_)) {
                    self.metrics.spans("failed", self.batch.len());
                    self.batch.clear();
                }
                if !std::mem::replace(&mut self.trouble, true) {
                    tracing::warn!(
                        collector = self.collector.authority(),
                        %error,
                        "the collector of traces does not take spans; calls go on, and `ringcast_spans_total` counts what is lost"
                    );
                }
            }
        }
        posted.map(drop)
    }

    fn encode(&self) -> Bytes {
        let scope = Scope { name: "ringcast".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let request = Request {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans: self.batch.clone() }],
            }],
        };
        request.encode_to_vec().into()
    }

    /// The batch was taken, but for what the answer says was not.
    fn count(&mut self, answer: &[u8]) {
        let sent = self.batch.len();
        self.batch.clear();
        // An answer of another kind says nothing of spans that were not taken.
        let partial = proto::Response::decode(answer).ok().and_then(|answer| answer.partial_success);
        let rejected =
            partial.map_or(0, |partial| usize::try_from(partial.rejected_spans).unwrap_or(0)).min(sent);
        self.metrics.spans("failed", rejected);
        self.metrics.spans("exported", sent - rejected);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A body of which nothing more comes.
    const ENDLESS: &[u8] = b"<html>";

    /// A collector that gives these answers, status and body, one to each request, all on one connection.
    async fn collector(answers: Vec<(u16, Vec<u8>)>) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it listens").port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("somebody comes");
            for (status, body) in answers {
                let mut request = Vec::new();
                while !is_whole(&request) {
                    stream.read_buf(&mut request).await.expect("a request");
                }
                let length = if body == ENDLESS { usize::MAX >> 1 } else { body.len() };
                let head = format!("HTTP/1.1 {status} \r\ncontent-length: {length}\r\n\r\n");
                stream.write_all(&[head.as_bytes(), &body].concat()).await.expect("it takes the answer");
            }
            // It keeps the connection.
            std::future::pending::<()>().await;
        });
        Endpoint {
            is_tls: false,
            host: "127.0.0.1".to_owned(),
            port,
            authority: format!("127.0.0.1:{port}"),
            path: "/v1/traces".to_owned(),
        }
    }

    fn is_whole(request: &[u8]) -> bool {
        let text = String::from_utf8_lossy(request);
        let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|length| length.trim().parse().ok()).expect("a length");
        request.len() >= end + 4 + length
    }

    fn export(endpoint: Endpoint) -> Export {
        let metrics = Metrics::new();
        let (_, told) = tracer(1, 0.0, Jitter::seeded(1), Arc::clone(&metrics));
        Export {
            told,
            collector: Collector::new(endpoint, HeaderMap::new(), None),
            resource: Resource::default(),
            metrics,
            pause: Pause::new(PAUSE, PAUSE_MAX, Jitter::seeded(1)),
            trouble: false,
            batch: Vec::new(),
        }
    }

    fn counted(export: &Export) -> [u64; 2] {
        let text = export.metrics.render();
        ["exported", "failed"].map(|result| {
            let start = format!("ringcast_spans_total{{result=\"{result}\"}} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok());
            value.expect("it is there from the start")
        })
    }

    #[test]
    fn a_name_lookup_that_hangs_does_not_hold_the_end_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (hangs, hung) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || hung.recv());
        let nobody = Endpoint {
            is_tls: false,
            host: "127.0.0.1".to_owned(),
            port: 1,
            authority: "127.0.0.1:1".to_owned(),
            path: "/v1/traces".to_owned(),
        };
        let export = export(nobody);
        let (stop, stopped) = oneshot::channel();
        drop(stop);
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            run(runtime, export, stopped);
            // Who waited for it may be gone.
            let _ = ended.send(());
        });
        end.recv_timeout(Duration::from_secs(20)).expect("it ends while the lookup still hangs");
        drop(hangs);
    }

    #[tokio::test]
    async fn the_status_counts_whatever_page_comes_with_it() {
        let long = vec![b'<'; 1 << 20];
        for (status, page, expected) in [
            (200, long.clone(), [1, 0]),
            (404, long, [0, 1]),
            (200, ENDLESS.to_vec(), [1, 0]),
            (404, ENDLESS.to_vec(), [0, 1]),
        ] {
            let mut export = export(collector(vec![(status, page)]).await);
            export.batch = vec![Span::default()];
            let posted = export.post().await;
            assert!(
                !matches!(posted, Err(PostError::Passing(_))),
                "{posted:?}: they would be posted for ever"
            );
            assert_eq!((export.batch.len(), counted(&export)), (0, expected), "{status}");
        }
    }

    #[tokio::test]
    async fn what_is_not_taken_is_kept_what_is_refused_is_not() {
        let partial = proto::PartialSuccess { rejected_spans: 2, error_message: "too old".to_owned() };
        let partial = proto::Response { partial_success: Some(partial) }.encode_to_vec();
        let answers = vec![(503, Vec::new()), (200, Vec::new()), (200, partial), (400, b"no".to_vec())];
        let mut export = export(collector(answers).await);
        export.batch = vec![Span::default(); 3];
        assert!(matches!(export.post().await, Err(PostError::Passing(_))));
        assert_eq!((export.batch.len(), export.trouble), (3, true), "they are posted again");
        assert_eq!(export.post().await, Ok(()));
        assert_eq!((export.batch.len(), export.trouble, counted(&export)), (0, false, [3, 0]));
        export.batch = vec![Span::default(); 3];
        assert_eq!(export.post().await, Ok(()));
        assert_eq!(counted(&export), [4, 2], "of three it took one");
        export.batch = vec![Span::default(); 3];
        assert!(matches!(export.post().await, Err(PostError::Final(_))));
        assert_eq!((export.batch.len(), counted(&export)), (0, [4, 5]));
    }
}
