//! An onlooker's side of [`LIVE`]: copies of results as they pass, by a queue of its own that goes with it.
//!
//! Copies are worth nothing later, so nothing waits for an onlooker who is slow: the queue keeps the newest few thousand, and
//! what was taken from it is bounded by the prefetch.

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::time::timeout;

use super::describe::{describe, reply_code};
use super::dial::{Dialer, Link};
use super::limit::{ANSWER, ask};
use super::topology::{LIVE, Thing};
use super::{Error, Settings};

/// Copies that the broker keeps for an onlooker; the oldest go first.
const KEPT_MAX: i32 = 10_000;
/// Bytes of them: with a timeline, one may have tens of thousands.
const KEPT_BYTES_MAX: i32 = 32 << 20;
/// Copies on their way to an onlooker.
const PREFETCH: u16 = 100;

/// Takes copies until it is dropped.
pub struct Onlooker {
    link: Link,
    consumer: Consumer,
}

impl Onlooker {
    /// Connects, as `name` in the broker's list, and begins to take copies. Errors: the broker cannot be reached or refuses us,
    /// there is no exchange, or its user may not look on.
    pub async fn begin(settings: &Settings, name: &str) -> Result<Self, Error> {
        let link = Dialer::new(settings).await?.dial(name).await?;
        let consumer = consume(link.channel().await?).await?;
        Ok(Self { link, consumer })
    }

    /// Scheme, host and port of the broker.
    pub fn endpoint(&self) -> &str {
        self.link.endpoint()
    }

    /// The body of the next copy. Errors: [`Error::Lost`], and then there are no more.
    pub async fn next(&mut self) -> Result<Vec<u8>, Error> {
        let lost =
            |why: &str| Error::Lost(format!("the connection to {} is lost: {why}", self.link.endpoint()));
        match self.consumer.next().await {
            Some(Ok(copy)) => {
                let acked = ask("acking a copy", copy.acker.ack(BasicAckOptions::default())).await;
                if acked.map_err(|why| lost(&why))? {
                    Ok(copy.data)
                } else {
                    Err(lost("its channel is closed"))
                }
            }
            Some(Err(error)) => Err(lost(&describe(&error))),
            None => Err(lost("the broker ended it")),
        }
    }

    /// Says goodbye to the broker, which then drops the queue.
    pub async fn close(self) {
        self.link.close().await;
    }
}

async fn consume(channel: Channel) -> Result<Consumer, Error> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(KEPT_MAX));
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongInt(KEPT_BYTES_MAX));
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, arguments);
    let queue = request("a queue of our own", queue).await?.name().clone();
    let (exchange, options, none) = (LIVE.into(), QueueBindOptions::default(), FieldTable::default());
    let bind = channel.queue_bind(queue.clone(), exchange, "".into(), options, none.clone());
    request(&format!("a binding to exchange {LIVE}"), bind).await?;
    let qos = channel.basic_qos(PREFETCH, BasicQosOptions::default());
    request("the prefetch", qos).await?;
    let consume = channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), none);
    request("a consumer", consume).await
}

/// One request for a thing that an onlooker needs.
async fn request<T>(what: &str, request: impl Future<Output = lapin::Result<T>>) -> Result<T, Error> {
    match timeout(ANSWER, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let said = describe(&error);
            Err(match reply_code(&error) {
                Some(404) => Error::Missing(vec![Thing::Exchange(LIVE.to_owned())]),
                Some(403) => Error::Declare {
                    what: what.to_owned(),
                    reason: format!(
                        "the user may not ({said}); give it what `ringcast topology permissions` prints for READER"
                    ),
                },
                _ => Error::Lost(format!("{what} cannot be had: {said}")),
            })
        }
        Err(_) => Err(Error::Lost(format!("{what} cannot be had: no answer from the broker"))),
    }
}
