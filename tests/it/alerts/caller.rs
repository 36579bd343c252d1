//! A call server that never rests: invite after invite, whatever becomes of them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::plan::{now, written};

static CALLS: AtomicU32 = AtomicU32::new(0);

/// What its invites are like.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    /// Between two invites.
    pub(super) every: Duration,
    /// From now to the deadline, seconds: of one invite after the other, and so on from the first.
    pub(super) ring_seconds: &'static [i64],
    /// From now to `created_at`: what is wrong with its clock.
    pub(super) skew: time::Duration,
    /// How device tokens begin, hex.
    pub(super) prefix: &'static str,
    /// Whom they are for.
    pub(super) app: &'static str,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            every: Duration::from_millis(150),
            ring_seconds: &[30],
            skew: time::Duration::ZERO,
            prefix: "a11e",
            app: "acme",
        }
    }
}

/// See the module. It ends when the test lets go of it.
#[derive(Debug)]
pub(super) struct Caller(JoinHandle<()>);

impl Caller {
    /// Publishes to that queue from now on.
    pub(super) async fn start(uri: &str, queue: String, calls: Calls) -> Self {
        let connection = Connection::connect(uri, ConnectionProperties::default()).await;
        let connection = connection.expect("the broker takes a call server");
        let channel = connection.create_channel().await.expect("a channel");
        Self(tokio::spawn(async move {
            let mut ticks = interval(calls.every);
            // As many calls on a busy machine: what was missed is made up for.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            // It ends when the broker does, and lets go of the connection then.
            let _connection = connection;
            for ring_seconds in calls.ring_seconds.iter().cycle() {
                ticks.tick().await;
                let number = CALLS.fetch_add(1, Ordering::Relaxed);
                let body = calls.invite(number, *ring_seconds);
                let properties = BasicProperties::default().with_message_id(format!("call-{number}").into());
                let options = BasicPublishOptions::default();
                let publish =
                    channel.basic_publish("".into(), queue.as_str().into(), options, &body, properties);
                if publish.await.is_err() {
                    return;
                }
            }
        }))
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Calls {
    pub(super) fn invite(&self, number: u32, ring_seconds: i64) -> Vec<u8> {
        let width = 64 - self.prefix.len();
        let invite = json!({
            "call_id": format!("a1e27000-0000-4000-8000-{number:012x}"),
            "app": self.app,
            "deadline": written(now() + time::Duration::seconds(ring_seconds)),
            "created_at": written(now() + self.skew),
            "devices": [{ "token": format!("{}{number:0width$x}", self.prefix) }],
        });
        invite.to_string().into_bytes()
    }
}
