//! An operator who changes the broker's queues while workers run.

use lapin::options::{QueueBindOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};

/// Somebody at the broker who may change its queues.
pub(crate) struct Operator {
    _connection: Connection,
    channel: Channel,
}

impl Operator {
    /// `uri`: of a broker that is up.
    pub(crate) async fn connect(uri: &str) -> Self {
        let connection = Connection::connect(uri, ConnectionProperties::default());
        let connection = connection.await.expect("the broker is up");
        let channel = connection.create_channel().await.expect("a channel");
        Self { _connection: connection, channel }
    }

    /// Whether outcomes have their queue.
    pub(crate) async fn bind(&self, bound: bool) {
        let (queue, exchange, key) =
            ("ringcast.outcomes".into(), "ringcast.results".into(), "outcome.#".into());
        let table = FieldTable::default();
        let done = if bound {
            self.channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), table).await
        } else {
            self.channel.queue_unbind(queue, exchange, key, table).await
        };
        done.expect("an operator may");
    }

    /// Deletes a queue with what is in it.
    pub(crate) async fn delete(&self, queue: &str) {
        self.channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .expect("an operator may");
    }
}
