//! Whether the process lives and whether it is ready: the rooms report here, the endpoints read.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Without a heartbeat for longer, the core counts as stuck. Far above any pause that heals by itself.
const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(10);

/// Between two heartbeats of [`Health::beat`].
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Where the rooms of a shard report; clones share one state, and so do all shards of a process.
#[derive(Clone)]
pub struct Health {
    shared: Arc<Shared>,
    /// Its place among them.
    shard: usize,
}

struct Shared {
    /// By shard, the last heartbeat; `None`: it has finished its work, and is silent for that.
    beaten: Vec<Mutex<Option<Instant>>>,
    contributors: Mutex<Vec<Contributor>>,
}

struct Contributor {
    name: String,
    shard: usize,
    readiness: Box<dyn Fn() -> Readiness + Send>,
}

/// What one room says about taking work: reasons against it, and notes that hinder nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    reasons: Vec<String>,
    notes: Vec<String>,
}

impl Readiness {
    /// Nothing is in the way.
    pub fn ready() -> Self {
        Self::default()
    }

    /// Something is in the way. One line, without the room's name.
    pub fn not_ready(reason: impl Into<String>) -> Self {
        Self::default().with_reason(reason)
    }

    /// Something more is in the way.
    #[must_use]
    pub fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reasons.push(reason.into());
        self
    }

    /// Something worth knowing, ready or not: a pool without a connection while another has one.
    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl Health {
    /// Alive from now on, and not ready until somebody reports.
    pub fn new() -> Self {
        Self::of_shards(1).remove(0)
    }

    /// The same for each shard of a process, one at least.
    pub fn of_shards(count: usize) -> Vec<Self> {
        let beaten = (0..count.max(1)).map(|_| Mutex::new(Some(Instant::now()))).collect();
        let shared = Arc::new(Shared { beaten, contributors: Mutex::new(Vec::new()) });
        (0..shared.beaten.len()).map(|shard| Self { shared: Arc::clone(&shared), shard }).collect()
    }

    /// Adds a condition of being ready. `readiness` is asked on the admin thread at each request: it reads a flag and
    /// returns, and it does not call back into this `Health`. A second one of the same name, in the same shard, replaces the first.
    pub fn ready_when(&self, name: &str, readiness: impl Fn() -> Readiness + Send + 'static) {
        let shard = self.shard;
        let contributor = Contributor { name: name.to_owned(), shard, readiness: Box::new(readiness) };
        let mut contributors = self.shared.contributors.lock();
        match contributors.iter_mut().find(|earlier| earlier.name == name && earlier.shard == shard) {
            Some(earlier) => *earlier = contributor,
            None => contributors.push(contributor),
        }
    }

    /// The core does its rounds. To be called more often than every ten seconds, from the core's own thread.
    pub fn heartbeat(&self) {
        *self.shared.beaten[self.shard].lock() = Some(Instant::now());
    }

    /// Beats once a second for as long as it is polled: a task for the core's runtime.
    pub async fn beat(&self) -> Infallible {
        loop {
            self.heartbeat();
            tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        }
    }

    /// The shard has finished its work: no heartbeat is expected of it while the others finish theirs.
    pub fn rest(&self) {
        *self.shared.beaten[self.shard].lock() = None;
    }

    /// As if the last heartbeat lay so long back.
    #[cfg(test)]
    pub(super) fn silent_for(&self, age: Duration) {
        if let Some(beaten) = &mut *self.shared.beaten[self.shard].lock() {
            *beaten -= age;
        }
    }

    /// A sentence where a core has not been heard for too long.
    pub(super) fn stuck(&self) -> Option<String> {
        let shards = &self.shared.beaten;
        shards.iter().zip(1..).find_map(|(beaten, number)| {
            let age = beaten.lock().map(|beaten| beaten.elapsed()).filter(|age| *age > HEARTBEAT_AGE_MAX)?;
            let which = if shards.len() > 1 { format!(" of shard {number}") } else { String::new() };
            Some(format!("the core{which} has been stuck for {} seconds", age.as_secs()))
        })
    }

    /// Whether work can be taken, and the lines that say so: reasons, then notes, each with its room, and with its shards where
    /// it is not of all. What hinders one shard hinders the whole.
    pub(super) fn readiness(&self) -> (bool, String) {
        let contributors = self.shared.contributors.lock();
        let count = self.shared.beaten.len();
        let (mut reasons, mut notes) = (Lines::default(), Lines::default());
        for Contributor { name, shard, readiness } in contributors.iter() {
            let Readiness { reasons: against, notes: beside } = readiness();
            reasons.add(name, *shard, against);
            notes.add(name, *shard, beside);
        }
        for shard in (0..count).filter(|shard| !contributors.iter().any(|one| one.shard == *shard)) {
            reasons.add("starting", shard, vec!["nothing has reported yet".to_owned()]);
        }
        let ready = reasons.0.is_empty();
        let first = if ready { "ready\n".to_owned() } else { reasons.text(count) };
        (ready, first + &notes.text(count))
    }
}

/// Those of a room beside each other, in the order in which the rooms first had one.
#[derive(Default)]
struct Lines(Vec<Line>);

struct Line {
    room: String,
    text: String,
    /// Those that say it.
    shards: Vec<usize>,
}

impl Lines {
    fn add(&mut self, room: &str, shard: usize, said: Vec<String>) {
        for text in said {
            let same =
                |line: &&mut Line| line.room == room && line.text == text && !line.shards.contains(&shard);
            if let Some(line) = self.0.iter_mut().find(same) {
                line.shards.push(shard);
                continue;
            }
            let place =
                self.0.iter().rposition(|line| line.room == room).map_or(self.0.len(), |last| last + 1);
            self.0.insert(place, Line { room: room.to_owned(), text, shards: vec![shard] });
        }
    }

    /// `count`: of all shards.
    fn text(&self, count: usize) -> String {
        let line = |Line { room, text, shards }: &Line| {
            let numbers: Vec<String> = shards.iter().map(|shard| (shard + 1).to_string()).collect();
            let whose = match numbers.len() {
                all if all == count => String::new(),
                1 => format!("shard {}: ", numbers[0]),
                _ => format!("shards {}: ", numbers.join(", ")),
            };
            format!("{room}: {whose}{}\n", text.replace('\n', " "))
        };
        self.0.iter().map(line).collect()
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Health").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_core_without_a_heartbeat_is_stuck() {
        let health = Health::new();
        tokio::time::advance(HEARTBEAT_AGE_MAX).await;
        assert_eq!(health.stuck(), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(health.stuck().as_deref(), Some("the core has been stuck for 12 seconds"));
        health.heartbeat();
        assert_eq!(health.stuck(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn each_shard_has_a_heart_of_its_own() {
        let shards = Health::of_shards(3);
        tokio::time::advance(HEARTBEAT_AGE_MAX + Duration::from_secs(1)).await;
        shards[0].heartbeat();
        shards[2].heartbeat();
        let stuck = "the core of shard 2 has been stuck for 11 seconds";
        assert!(shards.iter().all(|health| health.stuck().as_deref() == Some(stuck)));
        shards[1].rest();
        assert_eq!(shards[0].stuck(), None, "it has finished");
    }

    #[test]
    fn one_shard_that_is_not_ready_is_told_and_what_all_say_is_said_once() {
        let shards = Health::of_shards(3);
        let told = Arc::new(Mutex::new(vec![Readiness::ready(); 3]));
        shards[0].ready_when("worker", Readiness::ready);
        let young = (false, "starting: shards 2, 3: nothing has reported yet\n".to_owned());
        assert_eq!(shards[0].readiness(), young);
        for (shard, health) in shards.iter().enumerate() {
            let told = Arc::clone(&told);
            health.ready_when("worker", Readiness::ready);
            health.ready_when("amqp", move || told.lock()[shard].clone());
            health.ready_when("apns", move || Readiness::ready().with_note(format!("of {}", shard.min(1))));
        }
        let readiness = || shards[2].readiness();
        let notes = "apns: shard 1: of 0\napns: shards 2, 3: of 1\n";
        assert_eq!(readiness(), (true, format!("ready\n{notes}")));
        told.lock()[1] = Readiness::not_ready("lost");
        assert_eq!(readiness(), (false, format!("amqp: shard 2: lost\n{notes}")));
        told.lock()[2] = Readiness::not_ready("lost").with_reason("and blocked");
        let both = format!("amqp: shards 2, 3: lost\namqp: shard 3: and blocked\n{notes}");
        assert_eq!(readiness(), (false, both));
        told.lock().fill(Readiness::not_ready("lost"));
        assert_eq!(readiness(), (false, format!("amqp: lost\n{notes}")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_keeps_the_core_alive() {
        let health = Health::new();
        let beating = tokio::time::timeout(Duration::from_mins(1), health.beat()).await;
        assert!(beating.is_err(), "it beats for ever");
        assert_eq!(health.stuck(), None);
    }

    #[test]
    fn a_later_contributor_of_a_name_replaces_the_earlier() {
        let health = Health::new();
        health.ready_when("lifecycle", || Readiness::not_ready("starting"));
        assert_eq!(health.readiness(), (false, "lifecycle: starting\n".to_owned()));
        health.ready_when("lifecycle", Readiness::ready);
        assert_eq!(health.readiness(), (true, "ready\n".to_owned()));
        health.ready_when("lifecycle", || Readiness::not_ready("draining"));
        assert!(!health.readiness().0);
    }
}
