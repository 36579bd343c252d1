//! What `charts/ringcast/SCALING.md` says in numbers: a recorded day of calls, made larger, through a model of queue and workers, with
//! the numbers of workers that KEDA and Kubernetes' autoscaler would choose by the chart's values. No clock, no chance, no network.
//!
//! `tests/scaling` writes the tables into the page; a test here fails where the page has others.

mod day;
mod fleet;
mod hpa;
mod keda;
mod page;
mod tables;
mod tide;
mod values;

use hpa::{Behavior, Policy};

const MINUTE: u32 = 60;
/// Ticks a second of the model.
const TICKS: u32 = 4;
/// Of a worker's prefetch so much is for invites; the rest is for what the broker gave up on (config/default.toml).
const FOR_INVITES: f64 = 0.95;
/// The autoscaler looks so often, in seconds: `--horizontal-pod-autoscaler-sync-period`, its default.
const SYNC: u32 = 15;

/// The chart's values that have a part in it, by `autoscaling` and `monitoring` of values.yaml.
#[derive(Clone, Debug)]
struct Chart {
    min: u32,
    max: u32,
    /// `keda.readyPerWorker`.
    ready_per_worker: u32,
    /// `keda.prometheus.occupancyPercent`.
    occupancy_percent: u32,
    /// `keda.fallback.failureThreshold`.
    failure_threshold: u32,
    /// `keda.fallback.replicas`, or as many as there are.
    fallback: u32,
    behavior: Behavior,
    /// `monitoring.podMonitor.interval`, in seconds.
    scrape: u32,
}

impl Default for Chart {
    fn default() -> Self {
        Self {
            min: 2,
            max: 10,
            ready_per_worker: 100,
            occupancy_percent: 30,
            failure_threshold: 3,
            fallback: 4,
            behavior: Behavior {
                up: vec![Policy::Percent(100, 15), Policy::Pods(10, 15)],
                down: vec![Policy::Pods(1, 60)],
                down_window: 300,
            },
            scrape: 15,
        }
    }
}

/// What comes, and what a worker makes of it.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// Calls a second in the busiest five minutes.
    peak: f64,
    /// `amqp.prefetch`.
    prefetch: u32,
    /// Calls a second that a worker can begin.
    pace: f64,
    /// Seconds that an invite is a worker's own.
    takes: f64,
    /// Seconds from a call to its deadline.
    deadline: u32,
    /// Seconds from the autoscaler's word until a worker takes invites.
    start: u32,
}

impl Load {
    /// The figures of SCALING.md.
    fn new(peak: f64) -> Self {
        Self { peak, prefetch: 500, pace: 5000.0, takes: 0.06, deadline: 30, start: 10 }
    }
}

/// What a call meets at one moment.
#[derive(Clone, Copy, Debug)]
struct Call {
    takes: f64,
    pace: f64,
    /// Invites that a worker holds at most.
    room: f64,
    /// In ticks.
    deadline: u32,
}

#[derive(Clone, Copy, Debug)]
enum Triggers {
    /// The queue's ready messages.
    Ready,
    /// These, and the workers' occupancy.
    Both,
}

#[derive(Clone, Copy, Debug)]
enum Scaler {
    Keda(Triggers),
    Fixed(u32),
}

/// Something on top of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incident {
    /// Three times the calls within ten seconds, for five minutes from 11:00.
    Burst,
    /// An invite takes two seconds, for ten minutes from 11:00.
    AppleSlow,
    /// No broker for twenty seconds from 11:00; publishers keep what they have.
    BrokerRestart,
    /// Prometheus does not answer while the day rises, from 07:00 to 11:00.
    PrometheusAway,
    /// KEDA does not answer in that time.
    KedaAway,
}

impl Incident {
    const ALL: [Self; 5] =
        [Self::Burst, Self::AppleSlow, Self::BrokerRestart, Self::PrometheusAway, Self::KedaAway];
    /// A second after the autoscaler has looked: the worst moment.
    const ELEVEN: u32 = 11 * 60 * MINUTE + 1;

    fn within(second: u32, seconds: u32) -> bool {
        (Self::ELEVEN..Self::ELEVEN + seconds).contains(&second)
    }

    fn rising(second: u32) -> bool {
        (7 * 60 * MINUTE..Self::ELEVEN).contains(&second)
    }

    /// How many times the calls of the day come.
    fn times(self, second: u32) -> f64 {
        if self == Self::Burst && Self::within(second, 5 * MINUTE) {
            1.0 + 2.0 * f64::from((second - Self::ELEVEN).min(10)) / 10.0
        } else {
            1.0
        }
    }

    /// How long an invite takes, where it is not as usual, in seconds.
    fn takes(self, second: u32) -> Option<f64> {
        (self == Self::AppleSlow && Self::within(second, 10 * MINUTE)).then_some(2.0)
    }

    fn broker_away(self, second: u32) -> bool {
        self == Self::BrokerRestart && Self::within(second, 20)
    }

    fn prometheus_away(self, second: u32) -> bool {
        self == Self::PrometheusAway && Self::rising(second)
    }

    fn keda_away(self, second: u32) -> bool {
        self == Self::KedaAway && Self::rising(second)
    }
}

fn told(load: &Load, scaler: Scaler, incident: Option<Incident>) -> day::Told {
    day::pass(load, scaler, &Chart::default(), incident)
}

const BOTH: Scaler = Scaler::Keda(Triggers::Both);
const READY: Scaler = Scaler::Keda(Triggers::Ready);

#[test]
fn on_a_plain_day_no_call_waits_while_both_triggers_look() {
    for peak in [600.0, 6000.0, 20_000.0] {
        let day = told(&Load::new(peak), BOTH, None);
        assert!(day.all_rang_at_once(), "{peak}: {day:?}");
    }
    let both = told(&Load::new(20_000.0), BOTH, None);
    let ready = told(&Load::new(20_000.0), READY, None);
    assert!(ready.waited > 1e6, "the queue alone says it when calls wait already: {ready:?}");
    assert!(ready.changes > 10 * both.changes, "and forgets it: {} and {}", ready.changes, both.changes);
}

#[test]
fn a_slow_apple_is_a_matter_of_what_all_workers_can_hold() {
    let slow = Some(Incident::AppleSlow);
    let small = Load::new(2000.0);
    assert!(told(&small, Scaler::Fixed(2), slow).late > 1e5, "two hold 950, and 4,000 are wanted");
    assert!(told(&small, BOTH, slow).all_rang());
    let large = Load::new(6000.0);
    assert!(told(&large, Scaler::Fixed(10), slow).late > 1e6, "ten hold 4,750, and 12,000 are wanted");
    assert!(told(&Load { prefetch: 2000, ..large }, BOTH, slow).all_rang());
}

#[test]
fn nobody_who_is_away_costs_a_call_that_the_least_number_of_workers_can_carry() {
    for incident in [Incident::BrokerRestart, Incident::PrometheusAway, Incident::KedaAway] {
        assert!(told(&Load::new(6000.0), BOTH, Some(incident)).all_rang(), "{incident:?}");
    }
    let large = Load::new(20_000.0);
    assert!(
        told(&large, BOTH, Some(Incident::KedaAway)).late > 1e6,
        "two cannot carry it, and nobody adds any"
    );
    assert!(told(&large, BOTH, Some(Incident::PrometheusAway)).all_rang(), "the queue is still looked at");
}
