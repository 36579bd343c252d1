//! The road of the calls: invites go to the worker, results come back. It is RabbitMQ ([`amqp`]) or, where there is none, a
//! queue in this process ([`tray`]), with the same two flows.

mod amqp;
mod tray;

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::mpsc;

pub(crate) use amqp::{Names, Post};
pub(crate) use tray::{Tray, TrayEnds};

/// Results that wait to be shown.
pub(crate) const ARRIVALS_MAX: usize = 1024;

/// Something that came back.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// What it is.
    pub(crate) kind: Kind,
    /// The number of its call.
    pub(crate) number: usize,
    /// The result's `message_id`; empty for an original.
    pub(crate) message_id: String,
    /// JSON, but for an original, which may be anything.
    pub(crate) body: Bytes,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What became of an invite.
    Outcome,
    /// What Apple said of a token.
    TokenEvent,
    /// A malformed invite, as it was published.
    Original,
}

/// Either road.
pub(crate) enum Road {
    /// Over RabbitMQ.
    Post(Box<Post>),
    /// In this process.
    Tray(Tray),
}

impl Road {
    /// Publishes an invite. The error is a sentence.
    pub(crate) async fn publish(&mut self, number: usize, body: Vec<u8>) -> Result<(), String> {
        match self {
            Self::Post(post) => post.publish(number, &body).await,
            Self::Tray(tray) => tray.publish(number, body.into()).await,
        }
    }

    /// The next thing that comes back. The error is a sentence: nothing more will come.
    pub(crate) async fn next(&mut self) -> Result<Arrival, String> {
        let arrivals = match self {
            Self::Post(post) => post.arrivals(),
            Self::Tray(tray) => tray.arrivals(),
        };
        arrivals.recv().await.unwrap_or_else(|| Err("nothing comes back any more".to_owned()))
    }

    /// Whether every invite was taken over by the broker. The error is a sentence.
    pub(crate) async fn confirm(&mut self) -> Result<(), String> {
        match self {
            Self::Post(post) => post.confirm().await,
            Self::Tray(_) => Ok(()),
        }
    }

    /// How many invites are still in the queue, unsettled ones included. The error is a sentence.
    pub(crate) async fn left(&mut self) -> Result<usize, String> {
        match self {
            Self::Post(post) => post.left().await,
            Self::Tray(tray) => Ok(tray.left()),
        }
    }

    /// Takes away what the demo made on a broker that is not its own, and says goodbye.
    pub(crate) async fn close(self) {
        if let Self::Post(post) = self {
            post.close().await;
        }
    }
}

/// Where arrivals come from; an error is a sentence, and the last thing that comes.
type Arrivals = mpsc::Receiver<Result<Arrival, String>>;

/// What came back, by call.
#[derive(Debug, Default)]
pub(crate) struct Harvest {
    /// Outcomes, usually one each.
    pub(crate) outcomes: BTreeMap<usize, Vec<Arrival>>,
    /// Token events.
    pub(crate) token_events: Vec<Arrival>,
    /// Originals of malformed invites.
    pub(crate) originals: Vec<Arrival>,
}

impl Harvest {
    /// Puts one where it belongs.
    pub(crate) fn add(&mut self, arrival: Arrival) {
        match arrival.kind {
            Kind::Outcome => self.outcomes.entry(arrival.number).or_default().push(arrival),
            Kind::TokenEvent => self.token_events.push(arrival),
            Kind::Original => self.originals.push(arrival),
        }
    }
}
