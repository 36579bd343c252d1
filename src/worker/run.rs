//! The loop of a worker: all invites at once, until it is told to stop and all is done.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use super::Settings;
use super::breaker::Breakers;
use super::crew::Crew;
use super::gateway::{Gateway, KeyIds};
use super::handle::{Fate, handle, told};
use super::ledger::Ledger;
use super::mailbox::{Delivery, Outbox};
use super::poison::Poison;
use super::report::{Flood, Seldom};
use super::trace::Tracer;
use super::untaken::Untaken;
use crate::clock::Clock;
use crate::domain::app::App;
use crate::domain::invite::Rules;
use crate::domain::timestamp::Timestamp;
use crate::metrics::Metrics;
use crate::pause::Jitter;

/// Everything that handling an invite needs.
pub struct Worker<G> {
    pub(super) gateway: G,
    pub(super) settings: Settings,
    pub(super) rules: Rules,
    /// Routing keys of outcomes, by the app's index.
    outcome_keys: Vec<Arc<str>>,
    pub(super) key_ids: KeyIds,
    pub(super) copies_live: bool,
    pub(super) outbox: Outbox,
    pub(super) ledger: Ledger,
    pub(super) poison: Poison,
    pub(super) breakers: Breakers,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) jitter: Jitter,
    pub(super) skew_told: Seldom,
    pub(super) flood: Flood,
    pub(super) untaken: Untaken,
    pub(super) tracer: Option<Tracer>,
}

impl<G: Gateway> Worker<G> {
    /// A worker for these apps. `key_ids`: which key signs for an app and environment, for token events.
    /// `copies_live`: whether results are copied to the live exchange. `prefetch`: how many invites can be
    /// unsettled at once.
    #[expect(clippy::too_many_arguments, reason = "its parts, each used once, by app.rs and the simulation")]
    pub fn new(
        gateway: G,
        settings: Settings,
        apps: Vec<Arc<App>>,
        key_ids: KeyIds,
        copies_live: bool,
        prefetch: usize,
        outbox: Outbox,
        clock: Clock,
        metrics: Arc<Metrics>,
        jitter: Jitter,
    ) -> Self {
        /// The broker can redeliver what was unacknowledged when a connection went: at most a prefetch each time.
        const PREFETCHES_REMEMBERED: usize = 4;
        /// An eighth of the memory that the chart allows a shard, and room for all of them with 4 KiB each. Results with a sentence
        /// for each of a hundred devices are twenty times as long.
        const BYTES_REMEMBERED: usize = 32 << 20;
        /// See `ledger.rs`.
        const DEADLINES_REMEMBERED: u32 = 2;
        let retention = settings.deadline_max.saturating_mul(DEADLINES_REMEMBERED);
        let breakers = Breakers::new(&apps, settings.suspect_percent_max, Arc::clone(&metrics));
        let outcome_keys = apps.iter().map(|app| format!("outcome.{}", app.name).into()).collect();
        let rules = Rules {
            apps,
            devices_max: settings.devices_max,
            invite_bytes_max: settings.invite_bytes_max,
            deadline_max: settings.deadline_max,
        };
        let remembered = prefetch.saturating_mul(PREFETCHES_REMEMBERED);
        Self {
            gateway,
            settings,
            rules,
            outcome_keys,
            key_ids,
            copies_live,
            outbox,
            ledger: Ledger::new(remembered, BYTES_REMEMBERED, retention),
            poison: Poison::new(remembered),
            breakers,
            clock,
            metrics,
            jitter,
            skew_told: Seldom::default(),
            flood: Flood::default(),
            untaken: Untaken::default(),
            tracer: None,
        }
    }

    /// Tells of its invites by this tracer.
    #[must_use]
    pub fn traced_by(self, tracer: Option<Tracer>) -> Self {
        Self { tracer, ..self }
    }
}

impl<G> Worker<G> {
    /// The results that the broker does not take.
    pub fn untaken(&self) -> Untaken {
        self.untaken.clone()
    }

    /// The breakers for suspect tokens.
    pub fn breakers(&self) -> Breakers {
        self.breakers.clone()
    }

    /// Writes the gauges that only a scrape needs, and forgets what is too old, as a worker without invites would not.
    pub fn refresh(&self) {
        let (count, age) =
            self.untaken.backlog().map_or((0, Duration::ZERO), |backlog| (backlog.count, backlog.age));
        self.metrics.amqp_untaken(count, age);
        self.ledger.forget_old(Instant::now());
        let (in_flight, remembered) = self.ledger.count();
        self.metrics.ledger_entries(in_flight, remembered);
    }

    /// The routing key of an outcome; that of a message of which the app is not known, too.
    pub(super) fn outcome_key(&self, app: Option<&App>) -> Arc<str> {
        app.map_or_else(|| "outcome.malformed".into(), |app| Arc::clone(&self.outcome_keys[app.index]))
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.clock.unix_ms())
    }
}

/// Deliveries that are begun at one go at most: then the connections write, so that the first of a burst does not wait for the last.
const ARRIVALS: usize = 32;

/// Handles deliveries until the flow ends or `stop` turns true; then gives back at once what was not started, whether it
/// waits for its handler or its handler for a stream, and finishes what was. By then nothing new may come, or the broker
/// could send the same again: whoever stops a worker cancels its consumers first.
///
/// All handlers are polled here, in one task, so that an invite costs no task of its own. There are as many as unsettled deliveries,
/// so the prefetch at most, and one for each invite that is rung on though its delivery was lost, until its deadline at most. One that dies
/// takes nobody along.
pub async fn run<G: Gateway>(
    worker: Arc<Worker<G>>,
    mut deliveries: mpsc::Receiver<Delivery>,
    stop: watch::Receiver<bool>,
) {
    let mut handlers = Crew::new();
    let mut told = pin!(told(&stop));
    let mut arrived = Vec::with_capacity(ARRIVALS);
    let mut given_back = 0;
    let working = poll_fn(|cx| {
        // Those that finish make room before new ones come; a stop goes before new work.
        handlers.poll_turn(cx, |ended| given_back += report(&worker, ended));
        if told.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match deliveries.poll_recv_many(cx, &mut arrived, ARRIVALS) {
            Poll::Ready(0) => return Poll::Ready(()),
            Poll::Ready(_) => {
                for delivery in arrived.drain(..) {
                    handlers.push(handle(&worker, delivery, &stop));
                }
                handlers.poll_turn(cx, |ended| given_back += report(&worker, ended));
                // There may be more, after the connections had their turn.
                cx.waker().wake_by_ref();
            }
            Poll::Pending => {}
        }
        Poll::Pending
    });
    // It lets others have their turn by itself; tokio would make handlers wait in the middle of one.
    unconstrained(working).await;
    deliveries.close();
    while let Some(delivery) = deliveries.recv().await {
        delivery.receipt.give_back();
        given_back += 1;
    }
    let finishing = poll_fn(|cx| {
        handlers.poll_turn(cx, |ended| given_back += report(&worker, ended));
        if handlers.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    });
    unconstrained(finishing).await;
    if given_back > 0 {
        tracing::info!(invites = given_back, "invites that were not started went back for other workers");
    }
}

/// A handler that died dropped its receipt on the way: the broker gives the invite to somebody else, or to us again. Gives 1
/// for an invite that was given back.
fn report<G>(worker: &Worker<G>, ended: std::thread::Result<Fate>) -> usize {
    match ended {
        Ok(fate) => usize::from(fate == Fate::GivenBack),
        Err(panic) => {
            worker.metrics.handler_panic();
            // What was made up when it happened may hold what the invite said.
            let error = panic.downcast_ref::<&str>().copied();
            let death = worker.poison.last_death();
            tracing::error!(
                call.id = death.and_then(|death| death.call_id).map(tracing::field::display),
                outcome.message_id = death.map(|death| tracing::field::display(death.identity.outcome_id())),
                error,
                "the handler of an invite died; the invite is requeued"
            );
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::gateway::Push;
    use super::super::mailbox::{
        GivenUp, Posting, Properties, Publication, Receipt, Route, Settlement, outbox,
    };
    use super::*;
    use crate::domain::id::{CallId, Identity};
    use crate::domain::invite::tests::app;
    use crate::domain::policy::PushError;
    use crate::domain::response::Response;

    struct Nobody;

    impl Gateway for Nobody {
        async fn push(&self, push: &Push) -> Result<Response, PushError> {
            panic!("{push:?} is pushed")
        }
    }

    fn worker(outbox: Outbox) -> Worker<Nobody> {
        let settings = Settings {
            name: "worker".into(),
            devices_max: 1,
            invite_bytes_max: 1024,
            deadline_max: Duration::from_mins(5),
            ring_time_min: Duration::ZERO,
            attempts_max: 1,
            answer_grace: Duration::ZERO,
            suspect_percent_max: 20,
            timeline: false,
        };
        let (clock, jitter, metrics) = (Clock::simulated(0), Jitter::seeded(1), Metrics::new());
        let apps = vec![Arc::new(app())];
        Worker::new(Nobody, settings, apps, KeyIds::default(), false, 1, outbox, clock, metrics, jitter)
    }

    /// Handles one delivery of this body: what was published, and how it was settled. `change` makes it odd.
    async fn handled(
        worker: &Arc<Worker<Nobody>>,
        postings: &mut mpsc::Receiver<Posting>,
        body: &Bytes,
        change: impl FnOnce(&mut Delivery),
    ) -> (Vec<Publication>, Settlement) {
        let (deliveries, delivered) = mpsc::channel(1);
        let (settle, mut settled) = mpsc::channel(1);
        let mut delivery = Delivery {
            body: body.clone(),
            properties: Properties::default(),
            redelivered: false,
            returned: None,
            given_up: None,
            receipt: Receipt::new(1, settle),
        };
        change(&mut delivery);
        deliveries.send(delivery).await.expect("there is room");
        drop(deliveries);
        let (stop, stopped) = watch::channel(false);
        let mut published = Vec::new();
        let mut running = pin!(run(Arc::clone(worker), delivered, stopped));
        loop {
            tokio::select! {
                biased;
                Some(Posting { publication, answer }) = postings.recv() => {
                    // Nobody waits for a copy.
                    let _ = answer.send(Ok(()));
                    published.push(publication);
                }
                () = &mut running => break,
            }
        }
        drop(stop);
        published.extend(std::iter::from_fn(|| postings.try_recv().ok()).map(|posting| posting.publication));
        (published, settled.recv().await.expect("it is settled").1)
    }

    fn text(publication: &Publication) -> String {
        String::from_utf8_lossy(&publication.body).into_owned()
    }

    /// What the log says.
    #[derive(Clone, Default)]
    struct Lines(Arc<parking_lot::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_line_of_a_death_names_the_call_and_its_outcome() {
        let worker = worker(outbox(1).0);
        let body = Bytes::from_static(b"{}");
        let identity = Identity::of(None, &body);
        let died = die(&worker, &body, true);
        let lines = Lines::default();
        let written = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone()).finish();
        let given_back = tracing::subscriber::with_default(log, || report(&worker, died));
        let told = String::from_utf8(lines.0.lock().clone()).expect("a log is text");
        assert_eq!(given_back, 0);
        for part in [CALL, &identity.outcome_id().to_string(), "a handler dies, on purpose"] {
            assert!(told.contains(part), "{part} in {told}");
        }
    }

    const CALL: &str = "6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a";

    /// A handler of this body dies, once it has read it or before.
    fn die(worker: &Worker<Nobody>, body: &Bytes, is_read: bool) -> std::thread::Result<Fate> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut witness = worker.poison.witness(Identity::of(None, body));
            if is_read {
                witness.reads(CallId::parse(CALL).expect("a UUID"));
            }
            panic!("a handler dies, on purpose");
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn an_invite_whose_reading_or_answer_is_deadly_is_not_read_again() {
        let cases =
            [(3, true, "even while it was only to be answered"), (3, false, "read"), (2, false, "read")];
        for (times, is_read, said) in cases {
            let (outbox, mut postings) = outbox(1);
            let worker = Arc::new(worker(outbox));
            let body = late_invite(1);
            for _ in 0..times {
                die(&worker, &body, is_read).expect_err("it dies");
            }
            let again = |delivery: &mut Delivery| {
                (delivery.redelivered, delivery.returned) = (true, Some(times));
            };
            let (published, settled) = handled(&worker, &mut postings, &body, again).await;
            let [outcome] = &published[..] else { panic!("{published:?}") };
            assert_eq!(*outcome.message_id, Identity::of(None, &body).outcome_id().to_string());
            let text = text(outcome);
            assert!(text.contains(r#""result":"malformed""#) && text.contains("not read again"), "{text}");
            assert!(text.contains(said), "{text}");
            assert_eq!(settled, Settlement::Reject);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_invite_that_died_once_it_was_read_is_answered_with_its_devices() {
        let (outbox, mut postings) = outbox(1);
        let worker = Arc::new(worker(outbox));
        let body = late_invite(1);
        for _ in 0..2 {
            die(&worker, &body, true).expect_err("it dies");
        }
        let (published, settled) = handled(&worker, &mut postings, &body, |_| {}).await;
        let text = text(&published[0]);
        assert!(text.contains(r#""result":"undeliverable""#) && text.contains("ab01"), "{text}");
        assert_eq!(settled, Settlement::Reject);
    }

    #[tokio::test(start_paused = true)]
    async fn a_malformed_invite_that_somebody_may_have_rung_says_so() {
        type Change = fn(&mut Delivery);
        let (outbox, mut postings) = outbox(1);
        let worker = Arc::new(worker(outbox));
        let body = Bytes::from_static(b"{}");
        let cases: [(Change, bool); 3] = [
            (|_| {}, false),
            (|delivery| delivery.redelivered = true, true),
            (|delivery| delivery.given_up = Some(GivenUp::Expired), true),
        ];
        for (change, said) in cases {
            let (published, _) = handled(&worker, &mut postings, &body, change).await;
            let [outcome] = &published[..] else { panic!("{published:?}") };
            assert_eq!(text(outcome).contains(r#""earlier_attempt":"possible""#), said, "{}", text(outcome));
        }
    }

    /// Not to be pushed: it is too late.
    fn late_invite(call: u64) -> Bytes {
        let deadline = r#""deadline":"1969-12-31T23:59:59Z","devices":[{"token":"ab01"}]"#;
        format!(r#"{{"call_id":"6f1c6d0e-6f3b-4f5e-9a51-{call:012}","app":"acme",{deadline}}}"#).into()
    }

    #[tokio::test(start_paused = true)]
    async fn an_invite_whose_results_nobody_takes_is_known_however_many_others_pass() {
        let (outbox, mut postings) = outbox(1);
        let worker = Arc::new(worker(outbox));
        let (deliveries, delivered) = mpsc::channel(1);
        let (settle, settled) = mpsc::channel(1);
        let held = Delivery {
            body: late_invite(0),
            properties: Properties::default(),
            redelivered: false,
            returned: None,
            given_up: None,
            receipt: Receipt::new(1, settle),
        };
        deliveries.send(held).await.expect("there is room");
        drop(deliveries);
        let (_stop, stopped) = watch::channel(false);
        let holding = tokio::spawn(run(Arc::clone(&worker), delivered, stopped));
        let Posting { publication, answer } = postings.recv().await.expect("it is published");
        // More than are remembered.
        for call in 1..10 {
            let (_, settled) = handled(&worker, &mut postings, &late_invite(call), |_| {}).await;
            assert_eq!(settled, Settlement::Ack);
        }
        drop((settled, answer));
        holding.await.expect("it ends with its delivery");
        let (again, _) =
            handled(&worker, &mut postings, &late_invite(0), |delivery| delivery.redelivered = true).await;
        assert_eq!(text(&again[0]), text(&publication), "it is told again, and not handled again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_is_answered_under_its_own_correlation() {
        let (outbox, mut postings) = outbox(2);
        let worker = Arc::new(worker(outbox));
        let body = late_invite(1);
        let mut told = Vec::new();
        for (correlation, trace) in [("first", Some("00-a-b-01")), ("second", None)] {
            let change = |delivery: &mut Delivery| {
                delivery.properties = Properties {
                    correlation_id: Some(correlation.to_owned()),
                    reply_to: Some("caller".to_owned()),
                    traceparent: trace.map(str::to_owned),
                    ..Properties::default()
                };
            };
            let (published, settled) = handled(&worker, &mut postings, &body, change).await;
            assert_eq!(settled, Settlement::Ack);
            let [outcome, reply] = &published[..] else { panic!("{published:?}") };
            assert_eq!(reply.route, Route::Reply("caller".into()));
            for one in [outcome, reply] {
                assert_eq!(one.correlation_id.as_deref(), Some(correlation));
                assert_eq!(one.traceparent.as_deref(), trace);
            }
            told.push((outcome.message_id.clone(), text(outcome)));
        }
        assert_eq!(told[0], told[1], "it is the same outcome");
        assert!(told[0].1.contains(r#""result":"expired""#), "{}", told[0].1);
        assert_eq!(worker.ledger.count(), (0, 1), "the second was answered from memory");
    }
}
