//! An invite that makes its handler die, among others that do not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ringcast::clock::Clock;
use ringcast::domain::policy::PushError;
use ringcast::domain::response::Response;
use ringcast::metrics::Metrics;
use ringcast::pause::Jitter;
use ringcast::worker::gateway::{Gateway, KeyIds, Push};
use ringcast::worker::mailbox::{Settlement, outbox};
use ringcast::worker::{self, Worker};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::broker::{Broker, Habits, Happening, Line, Message, Order, Phase, keep};
use crate::plan::{call_id, token};
use crate::world::{STARTED_AT, acme};

const PREFETCH: usize = 10;
/// The device of which the gateway dies.
const POISON: u64 = 13;

/// Counts the pushes of each token, accepts all, and dies of one.
#[derive(Clone, Default)]
struct Fragile(Arc<Mutex<BTreeMap<String, usize>>>);

impl Gateway for Fragile {
    async fn push(&self, push: &Push) -> Result<Response, PushError> {
        *self.0.lock().entry(push.token.as_str().to_owned()).or_default() += 1;
        // Long enough that the others are under way, too.
        sleep(Duration::from_millis(20)).await;
        assert!(push.token.as_str() != token(POISON), "the gateway dies, on purpose");
        Ok(Response { status: 200, reason: None, invalid_since: None })
    }
}

/// What one worker did with these messages.
struct Story {
    happenings: Vec<Happening>,
    pushes: BTreeMap<String, usize>,
    metrics: String,
}

impl Story {
    /// A call's outcomes, in order.
    fn outcomes(&self, call: u64) -> Vec<Value> {
        let stored = self.happenings.iter().filter_map(|happening| match happening {
            Happening::Stored { publication, .. } => Some(&publication.body),
            _ => None,
        });
        let outcomes = stored.map(|body| serde_json::from_slice::<Value>(body).expect("results are JSON"));
        outcomes.filter(|outcome| outcome["call_id"] == call_id(call)).collect()
    }

    /// How a message was settled, in order.
    fn settlements(&self, message: &Message) -> Vec<Settlement> {
        let settled = self.happenings.iter().filter_map(|happening| match happening {
            Happening::Settled { identity, settlement, .. } if *identity == message.identity() => {
                Some(*settlement)
            }
            _ => None,
        });
        settled.collect()
    }

    fn pushes(&self, device: u64) -> usize {
        self.pushes.get(&token(device)).copied().unwrap_or_default()
    }
}

/// An invite of a call to the device of the same number, that came back to its queue so often.
fn message(call: u64, returned: u32) -> Message {
    let deadline = time::OffsetDateTime::from_unix_timestamp(STARTED_AT / 1000 + 60).expect("a date");
    let format = &time::format_description::well_known::Rfc3339;
    let invite = json!({
        "call_id": call_id(call),
        "app": "acme",
        "deadline": deadline.format(format).expect("it can be written"),
        "devices": [{ "token": token(call) }],
    });
    Message {
        amqp_id: Some(format!("m-{call}")),
        body: invite.to_string().into(),
        redelivered: returned > 0,
        returned,
        ..Message::default()
    }
}

fn tell(messages: &[Message]) -> Story {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(work(messages))
}

async fn work(messages: &[Message]) -> Story {
    let (gateway, metrics) = (Fragile::default(), Metrics::new());
    let settings = worker::Settings {
        name: "worker".into(),
        devices_max: 100,
        invite_bytes_max: 65_536,
        deadline_max: Duration::from_mins(5),
        ring_time_min: Duration::ZERO,
        attempts_max: 3,
        answer_grace: Duration::from_secs(1),
        suspect_percent_max: 20,
        timeline: true,
    };
    let (outbox, postings) = outbox(2 * PREFETCH);
    let worker = Worker::new(
        gateway.clone(),
        settings,
        vec![acme(Duration::ZERO)],
        KeyIds::default(),
        false,
        PREFETCH,
        outbox,
        Clock::simulated(STARTED_AT),
        Arc::clone(&metrics),
        Jitter::seeded(1),
    );
    let broker = Broker::new(1, Habits::default());
    for message in messages {
        broker.publish(message.clone());
    }
    let (deliveries, delivered) = mpsc::channel(2 * PREFETCH);
    let (stop, stopped) = watch::channel(false);
    let (order, orders) = watch::channel(Order::default());
    let working = tokio::spawn(worker::run(Arc::new(worker), delivered, stopped));
    let line = Line { worker: 0, prefetch: PREFETCH, deliveries, postings };
    let session = tokio::spawn(keep(broker.clone(), line, orders));
    let drained = timeout(Duration::from_secs(30), async {
        while !broker.is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(drained.await.is_ok(), "the queue is not empty: {:?}", broker.happenings());
    stop.send_replace(true);
    working.await.expect("the worker lives");
    order.send_modify(|order| order.phase = Phase::Close);
    session.await.expect("the broker lives");
    let pushes = gateway.0.lock().clone();
    Story { happenings: broker.happenings(), pushes, metrics: metrics.render() }
}

#[test]
fn the_third_delivery_of_a_poisonous_invite_is_answered_and_not_handled() {
    let messages: Vec<_> = (10..20).map(|call| message(call, 0)).collect();
    let story = tell(&messages);
    let poison = message(POISON, 0);
    assert_eq!(story.pushes(POISON), 2, "not handled a third time");
    let outcomes = story.outcomes(POISON);
    assert_eq!(outcomes.len(), 1);
    let outcome = &outcomes[0];
    assert_eq!(outcome["result"], "undeliverable");
    assert!(outcome["error"].as_str().is_some_and(|error| error.contains("failed before")), "{outcome}");
    assert_eq!((&outcome["earlier_attempt"], &outcome["redelivered"]), (&json!("possible"), &json!(true)));
    let device = &outcome["devices"][0];
    assert_eq!((&device["result"], &device["action"]), (&json!("failed"), &json!("none")));
    assert_eq!(
        story.settlements(&poison),
        [Settlement::Requeue, Settlement::Requeue, Settlement::Reject],
        "and then the broker keeps it where dead letters lie"
    );
    let place =
        |wanted: &dyn Fn(&Happening) -> bool| story.happenings.iter().position(wanted).expect("it happened");
    let id = poison.identity().outcome_id().to_string();
    let confirmed = place(&|it| matches!(it, Happening::Confirmed { message_id, .. } if **message_id == *id));
    let rejected = place(&|it| matches!(it, Happening::Settled { settlement: Settlement::Reject, .. }));
    assert!(confirmed < rejected);
    assert!(story.metrics.contains("ringcast_handler_panics_total 2\n"), "{}", story.metrics);
    let barred = "ringcast_barred_total{app=\"acme\",environment=\"production\",why=\"poison\"} 1\n";
    assert!(story.metrics.contains(barred), "{}", story.metrics);
    for call in (10..20).filter(|call| *call != POISON) {
        let results: Vec<_> = story.outcomes(call).iter().map(|outcome| outcome["result"].clone()).collect();
        assert_eq!((results, story.pushes(call)), (vec![json!("accepted")], 1), "call {call}");
        assert_eq!(story.settlements(&message(call, 0)), [Settlement::Ack]);
    }
}

#[test]
fn an_innocent_invite_rings_however_often_connections_were_lost_over_it() {
    let often: Vec<_> = (1..=8).map(|call| message(call, u32::try_from(call).expect("few") * 2)).collect();
    let story = tell(&often);
    for invite in 1..=8 {
        assert_eq!(story.outcomes(invite)[0]["result"], "accepted", "call {invite}");
        assert_eq!(story.pushes(invite), 1);
    }
}

#[test]
fn a_worker_that_others_died_before_tries_once() {
    let story = tell(&[message(POISON, 2)]);
    assert_eq!(story.pushes(POISON), 1);
    assert_eq!(story.settlements(&message(POISON, 2)), [Settlement::Requeue, Settlement::Reject]);
    assert_eq!(story.outcomes(POISON)[0]["result"], "undeliverable");
}

#[test]
fn the_same_invite_once_more_gets_the_same_end() {
    let story = tell(&[message(POISON, 0), message(1, 0), message(POISON, 0)]);
    assert_eq!(story.pushes(POISON), 2);
    let outcomes = story.outcomes(POISON);
    assert_eq!(outcomes.len(), 2);
    assert_eq!(outcomes[0], outcomes[1]);
    let settlements = story.settlements(&message(POISON, 0));
    assert_eq!(settlements.iter().filter(|it| **it == Settlement::Reject).count(), 2, "{settlements:?}");
}
