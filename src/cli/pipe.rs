//! `ringcast pipe`: the delivery core without a broker. Invites come as JSON lines on stdin, outcomes and token events go as
//! JSON lines to stdout, in any order.
//!
//! All of it is on the core's thread where stdin and stdout are pipes (`pipe/stdio.rs`); what is no pipe is read and written on
//! threads of its own. The lines of one read go on together. At most `amqp.prefetch` invites are under way, so memory stays flat
//! however long the input is.
//! There is one shard, whatever `worker.shards` says: one input has one reader, and nothing hands lines from thread to thread.

mod stdio;

use std::io;
use std::sync::Arc;

use stdio::{Lines, Stdout};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::app::{self, Core, Ending, Signals, StartError};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::pause::Jitter;
use crate::worker;
use crate::worker::mailbox::{self, Delivery, Posting, Properties, Receipt, Route, Settlement};

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

    let lines = Lines::of_stdin(config.worker.invite_bytes_max)?;
    let (deliveries, delivered) = mpsc::channel(prefetch);
    let (_never, stop) = watch::channel(false);
    let (end_input, input_ended) = watch::channel(false);
    let answering = async {
        let working = worker::run(Arc::clone(&core.worker), delivered, stop);
        let (died, ()) = tokio::join!(pump(lines, deliveries, prefetch, input_ended), working);
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

/// Hands lines to the worker, as many at once as the prefetch allows, until the input ends or is ended; then waits until all
/// are settled. Returns how many of them died without an answer.
async fn pump(
    mut lines: Lines,
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
                // What was read is still answered.
                ended = true;
                lines.close();
            }
            more = lines.next(), if deliveries.is_some() && ready.as_slice().is_empty() => match more {
                Some(more) => ready = more.into_iter(),
                None => deliveries = None,
            },
        }
    }
    died
}

/// Writes results as they come; each is confirmed when it is written. Returns when stdout takes no more.
async fn write_results(mut postings: mpsc::Receiver<Posting>) -> io::Error {
    let mut stdout = match Stdout::open() {
        Ok(stdout) => stdout,
        Err(error) => return error,
    };
    let mut batch = Vec::with_capacity(RESULTS_AT_ONCE);
    let mut text = Vec::new();
    while postings.recv_many(&mut batch, RESULTS_AT_ONCE).await > 0 {
        text.clear();
        // Copies for onlookers have no place here.
        for posting in batch.iter().filter(|posting| matches!(posting.publication.route, Route::Results(_))) {
            text.extend_from_slice(&posting.publication.body);
            text.push(b'\n');
        }
        if !text.is_empty()
            && let Err(error) = stdout.write(&mut text).await
        {
            return error;
        }
        for posting in batch.drain(..) {
            // The one who asked may be gone.
            let _ = posting.answer.send(Ok(()));
        }
    }
    io::Error::from(io::ErrorKind::BrokenPipe)
}
