//! `ringcast pipe`: the delivery core without a broker. Invites come as JSON lines on stdin, outcomes and token events go as
//! JSON lines to stdout, in any order.
//!
//! stdin is read on a thread of its own, because a read cannot be called off; everything else stays on the core's thread.
//! At most `amqp.prefetch` invites are under way, so memory stays flat however long the input is.

use std::io::{self, BufRead};
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

/// Lines read ahead.
const LINES_AHEAD: usize = 256;

/// Results written at once at most.
const RESULTS_AT_ONCE: usize = 256;

/// Runs until the input has ended and everything is answered. A signal ends the input: what was taken from it by then is
/// answered, within `worker.shutdown_grace`; a second signal cuts it off.
pub fn run(config: Config) -> Result<Ending, StartError> {
    app::block_on(pipe(config))?
}

async fn pipe(config: Config) -> Result<Ending, StartError> {
    let mut signals = Signals::listen()?;
    let metrics = Metrics::new();
    let prefetch = usize::from(config.amqp.prefetch);
    let (outbox, postings) = mailbox::outbox(2 * prefetch);
    let core = Core::start(&config, outbox, &metrics, &Jitter::random(), None)?;

    let (lines, read) = mpsc::channel(LINES_AHEAD);
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

/// Reads lines and sends them on without the blanks around them, blank ones left out. Of a line that is too long only so much
/// is kept as shows that it is.
fn read_lines(mut input: impl BufRead, bytes_max: usize, lines: &mpsc::Sender<Bytes>) {
    loop {
        match read_line(&mut input, bytes_max) {
            Ok(Some(line)) => {
                if !line.is_empty() && lines.blocking_send(line.into()).is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "stdin cannot be read; it counts as ended");
                return;
            }
        }
    }
}

/// One line without its end and without blanks around it; cut off one byte over the limit. `None` at the end of input.
fn read_line(input: &mut impl BufRead, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut line: Vec<u8> = Vec::new();
    let mut begun = false;
    let mut too_long = false;
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let at_end = chunk.is_empty();
        if at_end && !begun {
            return Ok(None);
        }
        begun = true;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        let part = if line.is_empty() { part.trim_ascii_start() } else { part };
        let (kept, over) = part.split_at(part.len().min((bytes_max + 1).saturating_sub(line.len())));
        line.extend_from_slice(kept);
        too_long |= !over.trim_ascii().is_empty();
        let used = end.map_or(chunk.len(), |end| end + 1);
        input.consume(used);
        if at_end || end.is_some() {
            if !too_long {
                line.truncate(line.trim_ascii_end().len());
            }
            return Ok(Some(line));
        }
    }
}

/// Hands lines to the worker, as many at once as the prefetch allows, until the input ends or is ended; then waits until all
/// are settled. Returns how many of them died without an answer.
async fn pump(
    mut lines: mpsc::Receiver<Bytes>,
    deliveries: mpsc::Sender<Delivery>,
    prefetch: usize,
    mut end: watch::Receiver<bool>,
) -> usize {
    let (settle, mut settlements) = mpsc::channel(prefetch);
    let mut deliveries = Some(deliveries);
    let mut ended = false;
    let mut unsettled = 0_usize;
    let mut died = 0_usize;
    let mut number = 0;
    while deliveries.is_some() || unsettled > 0 {
        // Biased: settled invites make room before new ones come; an ended input goes before new ones.
        tokio::select! {
            biased;
            Some((_, settlement)) = settlements.recv() => {
                unsettled -= 1;
                died += usize::from(settlement == Settlement::Requeue);
            }
            _ = end.wait_for(|end| *end), if !ended => {
                // What stands in the channel is still answered.
                ended = true;
                lines.close();
            }
            line = lines.recv(), if deliveries.is_some() && unsettled < prefetch => match (line, &deliveries) {
                (Some(body), Some(sender)) => {
                    number += 1;
                    let receipt = Receipt::new(number, settle.clone());
                    let delivery = Delivery {
                        body,
                        properties: Properties::default(),
                        redelivered: false,
                        returned: None,
                        given_up: None,
                        receipt,
                    };
                    unsettled += 1;
                    if sender.send(delivery).await.is_err() {
                        deliveries = None;
                    }
                }
                _ => deliveries = None,
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

    fn lines(input: &str, bytes_max: usize) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(100);
        read_lines(io::BufReader::with_capacity(4, input.as_bytes()), bytes_max, &sender);
        drop(sender);
        let mut lines = Vec::new();
        while let Ok(line) = receiver.try_recv() {
            lines.push(String::from_utf8(line.to_vec()).unwrap());
        }
        lines
    }

    #[test]
    fn lines_are_trimmed_blank_ones_left_out_and_long_ones_cut() {
        assert_eq!(lines("{a}\n\n  \r\n{b}\r\n{c}", 100), ["{a}", "{b}", "{c}"]);
        assert_eq!(lines("0123456789\nab\n", 4), ["01234", "ab"]);
        assert_eq!(lines("ab          \n          cd\n", 4), ["ab", "cd"]);
        assert_eq!(lines("ab          x\n   1234   \n", 4), ["ab   ", "1234"]);
        assert_eq!(lines("", 4), Vec::<String>::new());
    }
}
