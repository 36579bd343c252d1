//! Kubernetes' horizontal pod autoscaler for external metrics of the type `AverageValue`, as KEDA sets it up.
//!
//! After kubernetes.io, "Horizontal Pod Autoscaling" (algorithm details, configurable scaling behavior), and where that page is
//! silent after `pkg/controller/podautoscaler` of kubernetes/kubernetes: `replica_calculator.go`, `horizontal.go`.

use std::cmp::Ordering;

/// How far from its target a metric may be without any change: `--horizontal-pod-autoscaler-tolerance`, its default.
const TOLERANCE: f64 = 0.1;

/// How much may change within a period.
#[derive(Clone, Copy, Debug)]
pub(super) enum Policy {
    /// So many workers within so many seconds.
    Pods(u32, u32),
    /// So many percent of those there were within so many seconds.
    Percent(u32, u32),
}

impl Policy {
    fn period(self) -> u32 {
        match self {
            Self::Pods(_, period) | Self::Percent(_, period) => period,
        }
    }
}

/// `behavior` of an HPA; of several policies the one that allows the most counts (`selectPolicy: Max`).
#[derive(Clone, Debug)]
pub(super) struct Behavior {
    pub(super) up: Vec<Policy>,
    pub(super) down: Vec<Policy>,
    /// `scaleDown.stabilizationWindowSeconds`; that of `scaleUp` is 0.
    pub(super) down_window: u32,
}

/// An autoscaler with what it remembers. Times are seconds.
#[derive(Clone, Debug)]
pub(super) struct Hpa {
    min: u32,
    max: u32,
    behavior: Behavior,
    recommended: Vec<(u32, u32)>,
    added: Vec<(u32, u32)>,
    removed: Vec<(u32, u32)>,
}

/// How many workers a metric asks for: `ceil(sum / target)`, or no change within the tolerance.
pub(super) fn proposal(sum: f64, target: f64, current: u32) -> u32 {
    if (1.0 - sum / (target * f64::from(current))).abs() <= TOLERANCE {
        return current;
    }
    whole((sum / target).ceil())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of workers; a float saturates"
)]
fn whole(count: f64) -> u32 {
    count as u32
}

impl Hpa {
    pub(super) fn new(min: u32, max: u32, behavior: Behavior) -> Self {
        Self { min, max, behavior, recommended: Vec::new(), added: Vec::new(), removed: Vec::new() }
    }

    /// How many workers there shall be, by what each metric asks for; `None` is a metric that cannot be had.
    pub(super) fn decide(&mut self, now: u32, current: u32, metrics: &[Option<u32>]) -> u32 {
        // The highest wins. With one metric missing the others may only add; with none nothing changes.
        let Some(highest) = metrics.iter().flatten().max().copied() else { return current };
        if highest < current && metrics.iter().any(Option::is_none) {
            return current;
        }
        let desired = self.limit(now, current, self.stabilize(now, current, highest));
        self.recommended.push((now, highest));
        let window = self.behavior.down_window;
        self.recommended.retain(|(at, _)| now - at < window.max(1));
        if desired > current {
            self.added.push((now, desired - current));
        } else if desired < current {
            self.removed.push((now, current - desired));
        }
        desired
    }

    /// Less only when nothing within the window asked for more.
    fn stabilize(&self, now: u32, current: u32, asked: u32) -> u32 {
        let window = self.behavior.down_window;
        let recent = self.recommended.iter().filter(|(at, _)| now - at < window).map(|(_, asked)| *asked);
        let highest = recent.chain([asked]).max().unwrap_or(asked);
        if asked > current { asked } else { highest.min(current) }
    }

    /// Not more at once than a policy allows, not below the minimum, not above the maximum.
    fn limit(&self, now: u32, current: u32, desired: u32) -> u32 {
        let within = |events: &[(u32, u32)], period: u32| -> u32 {
            events.iter().filter(|(at, _)| now - at < period).map(|(_, change)| change).sum()
        };
        let begin = |policy: &Policy| {
            let period = policy.period();
            (current + within(&self.removed, period)).saturating_sub(within(&self.added, period))
        };
        let allowed = match desired.cmp(&current) {
            Ordering::Equal => current,
            Ordering::Greater => {
                let most = self.behavior.up.iter().map(|policy| match policy {
                    Policy::Pods(more, _) => begin(policy) + more,
                    Policy::Percent(more, _) => (begin(policy) * (100 + more)).div_ceil(100),
                });
                desired.min(most.max().unwrap_or(current).max(current))
            }
            Ordering::Less => {
                let least = self.behavior.down.iter().map(|policy| match policy {
                    Policy::Pods(fewer, _) => begin(policy).saturating_sub(*fewer),
                    Policy::Percent(fewer, _) => begin(policy) * 100_u32.saturating_sub(*fewer) / 100,
                });
                desired.max(least.min().unwrap_or(current).min(current))
            }
        };
        allowed.clamp(self.min, self.max)
    }
}

/// What Kubernetes does where nothing is said: "Default Behavior" of the page above.
#[cfg(test)]
fn default_behavior() -> Behavior {
    Behavior {
        up: vec![Policy::Percent(100, 15), Policy::Pods(4, 15)],
        down: vec![Policy::Percent(100, 15)],
        down_window: 300,
    }
}

#[test]
fn a_metric_asks_as_the_pages_say() {
    // kubernetes.io: 200m with a target of 100m doubles, 50m halves, by the average over the pods.
    assert_eq!(proposal(200.0 * 3.0, 100.0, 3), 6);
    assert_eq!(proposal(50.0 * 4.0, 100.0, 4), 2);
    // keda.sh, rabbitmq: one pod takes 10 messages, 30 are there: 3 pods.
    assert_eq!(proposal(30.0, 10.0, 1), 3);
    assert_eq!(proposal(31.0, 10.0, 1), 4);
    // Within a tenth nothing changes.
    assert_eq!(proposal(32.9, 10.0, 3), 3);
    assert_eq!(proposal(33.1, 10.0, 3), 4);
    assert_eq!(proposal(27.1, 10.0, 3), 3);
    assert_eq!(proposal(19.0, 10.0, 3), 2);
    assert_eq!(proposal(0.0, 10.0, 3), 0);
}

#[test]
fn more_come_at_once_and_fewer_after_the_window() {
    let mut hpa = Hpa::new(2, 10, default_behavior());
    assert_eq!(hpa.decide(0, 2, &[Some(3), Some(9)]), 6, "the highest asks for 9; 4 may come within 15 s");
    assert_eq!(hpa.decide(15, 6, &[Some(3), Some(9)]), 9);
    assert_eq!(hpa.decide(30, 9, &[Some(40)]), 10, "the maximum");
    assert_eq!(hpa.decide(45, 10, &[Some(0)]), 10);
    assert_eq!(hpa.decide(329, 10, &[Some(0)]), 10, "40 were asked for 299 s ago");
    assert_eq!(hpa.decide(330, 10, &[Some(0)]), 2, "and now 300 s ago; the minimum");
}

#[test]
fn a_policy_counts_what_changed_within_its_period() {
    // kubernetes.io: of 80 go 10 percent a minute, 8 and then 7.2, rounded up to 8, until 4 a minute are more.
    let down = vec![Policy::Pods(4, 60), Policy::Percent(10, 60)];
    let mut hpa = Hpa::new(10, 100, Behavior { down, down_window: 0, ..default_behavior() });
    assert_eq!(hpa.decide(0, 80, &[Some(10)]), 72);
    assert_eq!(hpa.decide(15, 72, &[Some(10)]), 72, "the minute's part is used up");
    assert_eq!(hpa.decide(60, 72, &[Some(10)]), 64);
    assert_eq!(hpa.decide(120, 39, &[Some(10)]), 35);
    let mut hpa = Hpa::new(1, 100, default_behavior());
    assert_eq!(hpa.decide(0, 10, &[Some(100)]), 20, "doubled, which is more than 4");
    assert_eq!(hpa.decide(5, 20, &[Some(100)]), 20);
    assert_eq!(hpa.decide(15, 20, &[Some(100)]), 40);
    let few = Behavior { up: vec![Policy::Percent(10, 60)], ..default_behavior() };
    assert_eq!(Hpa::new(1, 100, few).decide(0, 5, &[Some(100)]), 6, "half a worker is one");
}

#[test]
fn a_missing_metric_only_keeps_workers_from_going() {
    let mut hpa = Hpa::new(2, 10, Behavior { down_window: 0, ..default_behavior() });
    assert_eq!(hpa.decide(0, 5, &[Some(2), None]), 5);
    assert_eq!(hpa.decide(15, 5, &[Some(8), None]), 8);
    assert_eq!(hpa.decide(30, 8, &[None, None]), 8);
    assert_eq!(hpa.decide(45, 8, &[Some(2), Some(3)]), 3);
}
