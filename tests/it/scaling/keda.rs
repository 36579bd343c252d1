//! KEDA's part: it asks the queue and Prometheus whenever the autoscaler asks it, every 15 s, and answers for a trigger that
//! cannot be asked.
//!
//! After keda.sh, "`ScaledObject` specification" (pollingInterval, fallback), and `pkg/fallback/fallback.go` of kedacore/keda. Between
//! one and many workers `pollingInterval` has no part in it, unless a trigger sets `useCachedMetrics`.

use super::hpa::{Hpa, proposal};
use super::{Chart, Triggers};

/// What KEDA and the autoscaler see at one look; `None` cannot be asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Invites that are ready in the queue (`protocol: amqp` counts no others).
    pub(super) ready: Option<f64>,
    /// What the workers hold, in percent of one worker's prefetch, summed over workers.
    pub(super) occupancy: Option<f64>,
    /// Whether KEDA itself answers.
    pub(super) keda: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Keda {
    hpa: Hpa,
    triggers: Vec<Trigger>,
    threshold: u32,
    fallback: u32,
}

#[derive(Clone, Debug)]
struct Trigger {
    target: f64,
    read: fn(&Look) -> Option<f64>,
    failures: u32,
}

impl Keda {
    pub(super) fn new(chart: &Chart, triggers: Triggers) -> Self {
        let trigger = |target: u32, read| Trigger { target: f64::from(target), read, failures: 0 };
        let ready = trigger(chart.ready_per_worker, |look: &Look| look.ready);
        let occupancy = trigger(chart.occupancy_percent, |look: &Look| look.occupancy);
        let triggers = match triggers {
            Triggers::Ready => vec![ready],
            Triggers::Both => vec![ready, occupancy],
        };
        Self {
            hpa: Hpa::new(chart.min, chart.max, chart.behavior.clone()),
            triggers,
            threshold: chart.failure_threshold,
            fallback: chart.fallback,
        }
    }

    /// How many workers there shall be.
    pub(super) fn look(&mut self, now: u32, current: u32, look: &Look) -> u32 {
        let mut metrics = Vec::new();
        for trigger in &mut self.triggers {
            if !look.keda {
                metrics.push(None);
                continue;
            }
            let value = (trigger.read)(look);
            trigger.failures = if value.is_some() { 0 } else { trigger.failures + 1 };
            // behavior: currentReplicasIfHigher; the answer is target × replicas, which the autoscaler divides again.
            let fallback = (trigger.failures > self.threshold)
                .then(|| f64::from(self.fallback.max(current)) * trigger.target);
            metrics.push(value.or(fallback).map(|sum| proposal(sum, trigger.target, current)));
        }
        self.hpa.decide(now, current, &metrics)
    }
}

#[test]
fn the_trigger_that_asks_for_more_wins() {
    let chart = Chart::default();
    let look = |ready, occupancy| Look { ready: Some(ready), occupancy: Some(occupancy), keda: true };
    let both = |ready, occupancy| Keda::new(&chart, Triggers::Both).look(0, 2, &look(ready, occupancy));
    let target = f64::from(chart.occupancy_percent);
    assert_eq!(both(0.0, 2.5 * target), 3);
    assert_eq!(both(4.0 * f64::from(chart.ready_per_worker), 2.5 * target), 4);
    let alone = |ready, occupancy| Keda::new(&chart, Triggers::Ready).look(0, 2, &look(ready, occupancy));
    assert_eq!(alone(0.0, 2.5 * target), 2, "it does not ask for the occupancy");
}

#[test]
fn a_trigger_that_fails_falls_back_after_the_threshold() {
    let chart = Chart::default();
    let blind = Look { ready: Some(0.0), occupancy: None, keda: true };
    let replicas = |start: u32| {
        let mut keda = Keda::new(&chart, Triggers::Both);
        let mut current = start;
        (0..8)
            .map(|look| {
                current = keda.look(look * 15, current, &blind);
                current
            })
            .collect::<Vec<_>>()
    };
    let looks = usize::try_from(chart.failure_threshold).expect("it is small");
    let few = replicas(2);
    assert!(few[..looks].iter().all(|replicas| *replicas == 2), "nothing is known, nothing changes: {few:?}");
    assert_eq!(few[7], chart.fallback, "{few:?}");
    let many = replicas(9);
    assert_eq!(many, [9; 8], "as many as there are, where that is more");
    let away = Look { ready: Some(1e6), occupancy: Some(1e6), keda: false };
    assert_eq!(Keda::new(&chart, Triggers::Both).look(0, 3, &away), 3, "without KEDA nothing changes");
}
