//! The road without a broker: a queue in this process, at the two flows that the worker has towards RabbitMQ.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use ringcast::domain::token_event;
use ringcast::worker::mailbox::{Delivery, Posting, Properties, Receipt, Settlement};
use tokio::sync::mpsc;

use super::{ARRIVALS_MAX, Arrival, Arrivals, Kind};

/// The publisher's and reader's end.
pub(crate) struct Tray {
    invites: mpsc::Sender<(usize, Bytes)>,
    arrivals: Arrivals,
    left: Arc<AtomicUsize>,
}

/// The worker's ends.
pub(crate) struct TrayEnds {
    /// Where deliveries go.
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    /// Where results come from.
    pub(crate) postings: mpsc::Receiver<Posting>,
    /// Unsettled invites at most.
    pub(crate) prefetch: usize,
}

impl Tray {
    /// Starts the queue. It ends when either side has gone.
    pub(crate) fn start(ends: TrayEnds) -> Self {
        let (invites, published) = mpsc::channel(ends.prefetch);
        let (results, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let left = Arc::new(AtomicUsize::new(0));
        tokio::spawn(carry(ends, published, results, Arc::clone(&left)));
        Self { invites, arrivals, left }
    }

    pub(super) async fn publish(&self, number: usize, body: Bytes) -> Result<(), String> {
        self.left.fetch_add(1, Ordering::Relaxed);
        self.invites.send((number, body)).await.map_err(|_| "the queue has ended".to_owned())
    }

    pub(super) fn arrivals(&mut self) -> &mut Arrivals {
        &mut self.arrivals
    }

    pub(super) fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }
}

async fn carry(
    mut ends: TrayEnds,
    mut published: mpsc::Receiver<(usize, Bytes)>,
    results: mpsc::Sender<Result<Arrival, String>>,
    left: Arc<AtomicUsize>,
) {
    let (settle, mut settlements) = mpsc::channel(ends.prefetch);
    let mut unsettled: BTreeMap<u64, (usize, Bytes)> = BTreeMap::new();
    let mut again: VecDeque<(usize, Bytes)> = VecDeque::new();
    let mut tag = 0;
    loop {
        let room = unsettled.len() < ends.prefetch;
        // Biased: settled invites make room before new ones come.
        let (number, body, redelivered) = tokio::select! {
            biased;
            Some((tag, settlement)) = settlements.recv() => {
                let Some((number, body)) = unsettled.remove(&tag) else { continue };
                match settlement {
                    Settlement::Ack => {
                        left.fetch_sub(1, Ordering::Relaxed);
                    }
                    Settlement::Reject => {
                        left.fetch_sub(1, Ordering::Relaxed);
                        let original = Arrival { kind: Kind::Original, number, message_id: String::new(), body };
                        if results.send(Ok(original)).await.is_err() {
                            return;
                        }
                    }
                    Settlement::Requeue | Settlement::GiveBack => again.push_back((number, body)),
                }
                continue;
            }
            Some(posting) = ends.postings.recv() => {
                if !post(posting, &results).await {
                    return;
                }
                continue;
            }
            Some((number, body)) = async { again.pop_front() }, if room => (number, body, true),
            invite = published.recv(), if room => match invite {
                Some((number, body)) => (number, body, false),
                None => return,
            },
        };
        tag += 1;
        unsettled.insert(tag, (number, body.clone()));
        let properties = Properties { correlation_id: Some(number.to_string()), ..Properties::default() };
        let receipt = Receipt::new(tag, settle.clone());
        let delivery = Delivery { body, properties, redelivered, returned: None, given_up: None, receipt };
        // A worker that stops takes no more: the invite counts as left.
        let _ = ends.deliveries.send(delivery).await;
    }
}

/// Hands a result on and confirms it. False: nobody reads any more.
async fn post(posting: Posting, results: &mpsc::Sender<Result<Arrival, String>>) -> bool {
    let publication = posting.publication;
    let kind = if publication.kind == token_event::KIND { Kind::TokenEvent } else { Kind::Outcome };
    let number = publication.correlation_id.as_deref().and_then(|id| id.parse().ok());
    let arrival = match number {
        Some(number) => {
            let message_id = publication.message_id.to_string();
            Ok(Arrival { kind, number, message_id, body: Bytes::copy_from_slice(&publication.body) })
        }
        None => Err("a result came back without its call's correlation id".to_owned()),
    };
    let taken = results.send(arrival).await.is_ok();
    // The one who asked may be gone.
    let _ = posting.answer.send(Ok(()));
    taken
}
