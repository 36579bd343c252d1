//! Workers at one broker that come and go while a load goes on, and the account of it. The benchmark `rollout` includes this
//! file, too.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::apple::Apple;
use crate::client;
use crate::contract::instant;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Kind, Plan, Verdict, now, read_all};
use crate::process::Process;
use crate::worker::{Config, READY_WITHIN, Worker};

/// Long for a machine that does nothing else.
const ANSWERED_WITHIN: Duration = Duration::from_mins(3);

/// Calls at a steady rate, for as long as something else goes on.
pub(crate) struct Load {
    publisher: Process,
    plan: Plan,
    pace: Duration,
    rings_for: Duration,
}

impl Load {
    /// Calls come every `pace`, and each rings for `rings_for`. `salt` as in [`Plan::new`].
    pub(crate) fn start(place: &Place, uri: &str, salt: u16, pace: Duration, rings_for: Duration) -> Self {
        let text = |path: &Path| path.to_str().expect("the test's paths are UTF-8").to_owned();
        let (python, program) = (text(&client::python()), text(&client::program()));
        let args = [&program, uri, "stream", "ringcast.invites"];
        let publisher = Process::start(&python, &args, &[], place.as_ref(), "load");
        Self { publisher, plan: Plan::new(0, salt), pace, rings_for }
    }

    /// Calls until `deed` is done, however long that takes.
    pub(crate) async fn during<T>(&mut self, deed: impl Future<Output = T>) -> T {
        let mut deed = pin!(deed);
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                done = &mut deed => return done,
                () = sleep_until(next) => {}
            }
            self.call(1).await;
            next += self.pace;
        }
    }

    /// Calls that many times at once.
    pub(crate) async fn call(&mut self, count: usize) {
        for _ in 0..count {
            let number = self.plan.invites.len();
            self.plan.add(now() + self.rings_for);
            self.publisher.write(self.plan.message(number).line().as_bytes()).await;
        }
    }

    /// Waits until every call is confirmed.
    pub(crate) async fn end(mut self) -> Plan {
        self.publisher.close_stdin();
        let status = self.publisher.ended(ANSWERED_WITHIN).await;
        assert!(status.success(), "{}", self.publisher.last_words());
        self.plan
    }
}

/// The workers, the oldest first.
pub(crate) struct Fleet {
    place: Place,
    uri: String,
    apple: Apple,
    /// Each with its settings, which hold its port.
    workers: VecDeque<(Worker, Config)>,
    started: usize,
    settings: fn(&mut Config),
}

/// What came of a load.
pub(crate) struct Account {
    pub(crate) verdict: Verdict,
    /// From a call to Apple's yes, for each device that it rang at.
    pub(crate) accepted: Vec<Span>,
    /// From a call to the end of its outcome's making, for each call that rang.
    pub(crate) settled: Vec<Span>,
}

/// How long something took, on the clock of the wall, which all processes share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// When it was called, in milliseconds since 1970.
    pub(crate) called_ms: i64,
    /// How long it took from there, in milliseconds.
    pub(crate) took_ms: i64,
    /// One worker had it and gave it back, or had it on its way when it was told to stop.
    pub(crate) changed_hands: bool,
}

impl Fleet {
    /// No workers yet, and the queues for them. `settings`: what is set for each.
    pub(crate) async fn new(place: Place, uri: String, apple: Apple, settings: fn(&mut Config)) -> Self {
        let fleet = Self { place, uri, apple, workers: VecDeque::new(), started: 0, settings };
        declare(&fleet.place, &fleet.config("nobody")).await;
        fleet
    }

    /// A load for these workers.
    pub(crate) fn load(&self, salt: u16, pace: Duration, rings_for: Duration) -> Load {
        Load::start(&self.place, &self.uri, salt, pace, rings_for)
    }

    fn config(&self, name: &str) -> Config {
        let mut config = Config::new(&self.apple);
        config.text("amqp", "uri", &self.uri).text("worker", "name", name);
        (self.settings)(&mut config);
        config
    }

    /// Starts workers, all at once, and waits until each is ready.
    pub(crate) async fn grow(&mut self, count: usize) {
        for _ in 0..count {
            self.started += 1;
            let name = format!("worker-{}", self.started);
            let config = self.config(&name);
            self.workers.push_back((Worker::start(&self.place, &config, &name), config));
        }
        let first = self.workers.len() - count;
        for (worker, _) in self.workers.iter_mut().skip(first) {
            worker.await_ready().await;
        }
    }

    /// Tells the oldest to stop, all at once, and waits until each has ended well: within its grace, and with all that it had
    /// begun.
    pub(crate) async fn shrink(&mut self, count: usize) {
        let mut leaving: Vec<_> = self.workers.drain(..count).collect();
        for (worker, _) in &leaving {
            worker.tell_to_stop();
        }
        for (worker, _) in &mut leaving {
            worker.await_stopped().await;
        }
    }

    /// A new worker for each old one, one by one, as a Deployment with `maxSurge: 1` and `maxUnavailable: 0` does it.
    pub(crate) async fn replace(&mut self) {
        for _ in 0..self.workers.len() {
            self.grow(1).await;
            self.shrink(1).await;
        }
    }

    /// Waits until each worker that is there has answered something.
    pub(crate) async fn await_all_at_work(&mut self) {
        for (worker, _) in &mut self.workers {
            let answered = |_, text: &str| {
                let mut lines = text.lines().filter(|line| line.starts_with("ringcast_invites_total{"));
                lines.any(|line| !line.ends_with(" 0"))
            };
            worker.await_endpoint("/metrics", READY_WITHIN, answered).await;
        }
    }

    /// How many invites wait for a worker with room.
    pub(crate) async fn waiting(&self) -> usize {
        client::depth(&self.uri, "ringcast.invites").await
    }

    /// Waits until at least so many invites wait for a worker with room.
    pub(crate) async fn await_waiting(&self, count: usize) {
        client::await_depth(&self.uri, "ringcast.invites", count, ANSWERED_WITHIN).await;
    }

    /// Waits until all is answered, ends all workers, and judges: each invite has its one outcome, each dead token its one
    /// event, each device its push, and each worker took part.
    pub(crate) async fn settle(mut self, plan: &Plan) -> Account {
        client::await_depth(&self.uri, "ringcast.outcomes", plan.invites.len(), ANSWERED_WITHIN).await;
        self.shrink(self.workers.len()).await;
        for queue in ["ringcast.invites", "ringcast.expired", "ringcast.quarantined-tokens"] {
            assert_eq!(client::depth(&self.uri, queue).await, 0, "nothing is left in {queue}");
        }
        let outcomes = read_all(&self.uri, "ringcast.outcomes").await;
        let events = read_all(&self.uri, "ringcast.invalid-tokens").await;
        let dead = client::depth(&self.uri, "ringcast.dead").await;
        let pushes = self.apple.stop().await;
        let verdict = plan.judge(&outcomes, &events, &pushes);
        assert_eq!(outcomes.len(), plan.invites.len(), "one outcome for each invite: {verdict:?}");
        assert_eq!(events.len(), plan.dead_tokens().len(), "one event for each dead token");
        assert_eq!(dead, plan.count(Kind::Malformed), "the malformed ones are kept");
        assert!(verdict.rang_twice.is_empty(), "nobody rings twice: {verdict:?}");
        let at_work: BTreeSet<&str> = verdict.by_worker.keys().map(String::as_str).collect();
        assert_eq!(at_work.len(), self.started, "each worker took part: {at_work:?}");
        let span = |number: usize, end_ms: i64| {
            let called_ms = plan.invites[number].made_ms;
            let changed_hands = verdict.redelivered.contains(&number);
            Span { called_ms, took_ms: end_ms - called_ms, changed_hands }
        };
        let owners = plan.owners();
        let accepted = pushes.iter().filter(|push| push.status() == Some(200));
        let accepted = accepted.map(|push| span(owners[push.token()], push.answered_ms())).collect();
        let settled = outcomes.iter().map(|message| (plan.number(message), message));
        let settled = settled.filter(|(number, _)| plan.invites[*number].kind == Kind::Good);
        let settled =
            settled.map(|(number, message)| span(number, instant(&message.json()["settled_at"]))).collect();
        Account { verdict, accepted, settled }
    }
}
