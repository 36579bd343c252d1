//! `ringcast pipe`: the delivery core without a broker. Invites come as JSON lines on stdin, outcomes and token events go as
//! JSON lines to stdout, in any order.
//!
//! stdin is read on a thread of its own, because a read cannot be called off; everything else stays on the core's thread.
//! The lines of one read go to it together. At most `amqp.prefetch` invites are under way, so memory stays flat however long
//! the input is.
//! There is one shard, whatever `worker.shards` says: one input has one reader, and nothing hands lines from thread to thread.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::app::{self, Core, Ending, Signals, StartError};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::pause::Jitter;
use crate::worker;
use crate::worker::mailbox::{self, Delivery, Posting, Properties, Receipt, Route, Settlement};

/// Bytes read at once at most: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks read ahead.
const CHUNKS_AHEAD: usize = 2;

/// Results written at once at most.
const RESULTS_AT_ONCE: usize = 256;

/// Runs until the input has ended and everything is answered. A signal ends the input: what was taken from it by then is
/// answered, within `worker.shutdown_grace`; a second signal cuts it off.
pub fn run(config: Config) -> Result<Ending, StartError> {
    app::block_on(pipe(config))?
}

async fn pipe(config: Config) -> Result<Ending, StartError> {
    let mut signals = Signals::listen()?;
    if config.shards > 1 {
        tracing::info!(shards = config.shards, "worker.shards is for `ringcast run`; this is one shard");
    }
    let metrics = Metrics::new();
    let prefetch = usize::from(config.amqp.prefetch);
    let (outbox, postings) = mailbox::outbox(2 * prefetch);
    let core = Core::start(&config, outbox, &metrics, &Jitter::random(), None)?;

    let (lines, read) = mpsc::channel(CHUNKS_AHEAD);
    let bytes_max = config.worker.invite_bytes_max;
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || read_lines(io::stdin().lock(), bytes_max, &lines))?;

    let (deliveries, delivered) = mpsc::channel(prefetch);
    let (_never, stop) = watch::channel(false);
    let (end_input, input_ended) = watch::channel(false);
    let answering = async {
        let working = worker::run(Arc::clone(&core.worker), delivered, stop);
        let (died, ()) = tokio::join!(pump(read, deliveries, prefetch, input_ended), working);
        core.close().await;
        died
    };
    let told = async {
        signals.next().await;
        end_input.send_replace(true);
        tokio::select! {
            biased;
            () = signals.next() => Ending::Cut,
            () = sleep(config.shutdown_grace) => Ending::GraceRanOut,
        }
    };
    let ending = tokio::select! {
        biased;
        died = answering => if died == 0 { Ending::Done } else { Ending::Cut },
        error = write_results(postings) => {
            tracing::error!(%error, "stdout takes no more; what was read and not answered is lost");
            Ending::Cut
        }
        ending = told => ending,
    };
    Ok(ending)
}

/// Reads lines and sends them on without the blanks around them, blank ones left out, those of one read together. Of a line
/// that is too long only so much is kept as shows that it is.
fn read_lines(mut input: impl Read, bytes_max: usize, lines: &mpsc::Sender<Vec<Bytes>>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut line = Line { bytes_max, bytes: Vec::new(), too_long: false };
    loop {
        let (ready, ended) = match input.read(&mut buffer) {
            Ok(0) => (vec![line.end()], true),
            Ok(read) => (line.split(&Bytes::copy_from_slice(&buffer[..read])), false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(%error, "stdin cannot be read; it counts as ended");
                return;
            }
        };
        let ready: Vec<Bytes> = ready.into_iter().filter(|line| !line.is_empty()).collect();
        if !ready.is_empty() && lines.blocking_send(ready).is_err() || ended {
            return;
        }
    }
}

/// A line of which the end was not read yet: without blanks before it, and cut off one byte over the limit.
struct Line {
    bytes_max: usize,
    bytes: Vec<u8>,
    too_long: bool,
}

impl Line {
    /// The lines that end in a chunk; what is left of it begins the next one. A line that lies in the chunk as a whole is not
    /// copied.
    fn split(&mut self, chunk: &Bytes) -> Vec<Bytes> {
        let mut lines = Vec::new();
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let from = rest;
            // Reading from memory cannot fail.
            let length = rest.skip_until(b'\n').unwrap_or(from.len());
            match from[..length].strip_suffix(b"\n") {
                Some(whole) if self.bytes.is_empty() => {
                    let line = whole.trim_ascii();
                    lines.push(chunk.slice_ref(&line[..line.len().min(self.bytes_max + 1)]));
                }
                Some(last) => {
                    self.extend(last);
                    lines.push(self.end());
                }
                None => self.extend(from),
            }
        }
        lines
    }

    fn extend(&mut self, part: &[u8]) {
        let part = if self.bytes.is_empty() { part.trim_ascii_start() } else { part };
        let (kept, over) =
            part.split_at(part.len().min((self.bytes_max + 1).saturating_sub(self.bytes.len())));
        self.bytes.extend_from_slice(kept);
        self.too_long |= !over.trim_ascii().is_empty();
    }

    /// The line, without blanks behind it; the next one begins.
    fn end(&mut self) -> Bytes {
        let mut line = std::mem::take(&mut self.bytes);
        if !std::mem::take(&mut self.too_long) {
            line.truncate(line.trim_ascii_end().len());
        }
        line.into()
    }
}

/// Hands lines to the worker, as many at once as the prefetch allows, until the input ends or is ended; then waits until all
/// are settled. Returns how many of them died without an answer.
async fn pump(
    mut lines: mpsc::Receiver<Vec<Bytes>>,
    deliveries: mpsc::Sender<Delivery>,
    prefetch: usize,
    mut end: watch::Receiver<bool>,
) -> usize {
    let (settle, mut settlements) = mpsc::channel(prefetch);
    let mut settled = Vec::with_capacity(prefetch);
    let mut deliveries = Some(deliveries);
    let mut ready = Vec::new().into_iter();
    let mut ended = false;
    let mut unsettled = 0_usize;
    let mut died = 0_usize;
    let mut number = 0;
    while deliveries.is_some() || unsettled > 0 {
        while let Some(sender) = deliveries.as_ref().filter(|_| unsettled < prefetch) {
            let Some(body) = ready.next() else { break };
            number += 1;
            let delivery = Delivery {
                body,
                properties: Properties::default(),
                redelivered: false,
                returned: None,
                given_up: None,
                receipt: Receipt::new(number, settle.clone()),
            };
            unsettled += 1;
            // There is room for all that may be unsettled: it fails only when the worker is gone.
            if sender.try_send(delivery).is_err() {
                deliveries = None;
            }
        }
        // Biased: settled invites make room before new ones come; an ended input goes before new ones.
        tokio::select! {
            biased;
            count = settlements.recv_many(&mut settled, prefetch), if unsettled > 0 => {
                unsettled -= count;
                died += settled.drain(..).filter(|(_, settlement)| *settlement == Settlement::Requeue).count();
            }
            _ = end.wait_for(|end| *end), if !ended => {
                // What stands in the channel is still answered.
                ended = true;
                lines.close();
            }
            more = lines.recv(), if deliveries.is_some() && ready.as_slice().is_empty() => match more {
                Some(more) => ready = more.into_iter(),
                None => deliveries = None,
            },
        }
    }
    died
}

/// Writes results as they come; each is confirmed when it is written. Returns when stdout takes no more.
async fn write_results(mut postings: mpsc::Receiver<Posting>) -> io::Error {
    let mut stdout = tokio::io::stdout();
    let mut batch = Vec::with_capacity(RESULTS_AT_ONCE);
    let mut text = Vec::new();
    while postings.recv_many(&mut batch, RESULTS_AT_ONCE).await > 0 {
        text.clear();
        // Copies for onlookers have no place here.
        for posting in batch.iter().filter(|posting| matches!(posting.publication.route, Route::Results(_))) {
            text.extend_from_slice(&posting.publication.body);
            text.push(b'\n');
        }
        let written = async {
            stdout.write_all(&text).await?;
            stdout.flush().await
        };
        if let Err(error) = written.await {
            return error;
        }
        for posting in batch.drain(..) {
            // The one who asked may be gone.
            let _ = posting.answer.send(Ok(()));
        }
    }
    io::Error::from(io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An input that gives so many bytes at once.
    struct Slow<'a> {
        input: &'a [u8],
        at_once: usize,
    }

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = buffer.len().min(self.at_once);
            self.input.read(&mut buffer[..most])
        }
    }

    fn lines(input: &str, bytes_max: usize, at_once: usize) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(100);
        read_lines(Slow { input: input.as_bytes(), at_once }, bytes_max, &sender);
        drop(sender);
        let mut lines = Vec::new();
        while let Ok(more) = receiver.try_recv() {
            lines.extend(more.into_iter().map(|line| String::from_utf8(line.to_vec()).unwrap()));
        }
        lines
    }

    #[test]
    fn lines_are_trimmed_blank_ones_left_out_and_long_ones_cut() {
        for at_once in [1, 2, 3, 4, 5, 8, 100] {
            let lines = |input, bytes_max| lines(input, bytes_max, at_once);
            assert_eq!(lines("{a}\n\n  \r\n{b}\r\n{c}", 100), ["{a}", "{b}", "{c}"]);
            assert_eq!(lines("0123456789\nab\n", 4), ["01234", "ab"]);
            assert_eq!(lines("ab          \n          cd\n", 4), ["ab", "cd"]);
            assert_eq!(lines("ab          x\n   1234   \n", 4), ["ab   ", "1234"]);
            assert_eq!(lines("a b\n12345\n1234 \n", 4), ["a b", "12345", "1234"]);
            assert_eq!(lines("", 4), Vec::<String>::new());
        }
    }
}
