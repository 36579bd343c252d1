//! One day of calls, the workers, and what decides how many there are.

use super::fleet::Fleet;
use super::keda::{Keda, Look};
use super::tide::{DAY, Tide};
use super::{Call, Chart, FOR_INVITES, Incident, Load, SYNC, Scaler, TICKS};

/// What a day was like.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// Calls of the day.
    pub(super) calls: f64,
    /// Calls of which the deadline passed before a push was begun.
    pub(super) late: f64,
    /// Calls that waited for more than a second before a push was begun, the late ones included.
    pub(super) waited: f64,
    /// The longest wait of a call before it was begun, in seconds.
    pub(super) longest: f64,
    pub(super) fewest: u32,
    pub(super) most: u32,
    pub(super) worker_hours: f64,
    /// Of each hour: calls a second, and the fewest and the most workers that there were or were being started.
    pub(super) hours: Vec<(f64, u32, u32)>,
    /// How often there were to be more, or fewer.
    pub(super) changes: u32,
}

impl Told {
    /// No deadline passed; amounts are not whole.
    pub(super) fn all_rang(&self) -> bool {
        self.late < 0.5
    }

    /// And none waited for more than a second.
    pub(super) fn all_rang_at_once(&self) -> bool {
        self.waited < 0.5
    }
}

/// Lets a day pass.
pub(super) fn pass(load: &Load, scaler: Scaler, chart: &Chart, incident: Option<Incident>) -> Told {
    let tide = Tide::new(load.peak);
    let call = |second: u32| Call {
        takes: incident.and_then(|incident| incident.takes(second)).unwrap_or(load.takes),
        pace: load.pace,
        room: f64::from(load.prefetch) * FOR_INVITES,
        deadline: load.deadline * TICKS,
    };
    let mut keda = match scaler {
        Scaler::Fixed(_) => None,
        Scaler::Keda(triggers) => Some(Keda::new(chart, triggers)),
    };
    let first = if let Scaler::Fixed(workers) = scaler { workers } else { chart.min };
    let mut fleet = Fleet::new(first);
    let mut told = Told { fewest: u32::MAX, ..Told::default() };
    let mut scraped = 0.0;
    let mut worker_seconds = 0.0;
    for second in 0..DAY {
        let now = call(second);
        let struck =
            |part: fn(Incident, u32) -> bool| incident.is_some_and(|incident| part(incident, second));
        let broker = !struck(Incident::broker_away);
        let rate = tide.rate(second) * incident.map_or(1.0, |incident| incident.times(second));
        for tick in second * TICKS..(second + 1) * TICKS {
            fleet.arrive(tick, rate / f64::from(TICKS));
            fleet.tick(tick, &now, broker);
        }
        told.calls += rate;
        // Prometheus scrapes all workers some time before the autoscaler looks.
        if second % chart.scrape == chart.scrape / 2 {
            scraped = fleet.held(&now) * 100.0 / f64::from(load.prefetch);
        }
        if let Some(keda) = &mut keda
            && second % SYNC == 0
        {
            let look = Look {
                ready: broker.then(|| fleet.in_queue(&now)),
                occupancy: (!struck(Incident::prometheus_away)).then_some(scraped),
                keda: !struck(Incident::keda_away),
            };
            let there = fleet.replicas();
            let wanted = keda.look(second, there, &look);
            told.changes += u32::from(wanted != there);
            fleet.scale(second * TICKS, wanted, load.start * TICKS);
        }
        let replicas = fleet.replicas();
        told.fewest = told.fewest.min(replicas);
        told.most = told.most.max(replicas);
        worker_seconds += f64::from(replicas);
        if second % 3600 == 0 {
            told.hours.push((0.0, replicas, replicas));
        }
        if let Some((calls, fewest, most)) = told.hours.last_mut() {
            *calls += rate / 3600.0;
            *fewest = (*fewest).min(replicas);
            *most = (*most).max(replicas);
        }
    }
    told.late = fleet.late;
    told.waited = fleet.waited;
    told.longest = f64::from(fleet.longest) / f64::from(TICKS);
    told.worker_hours = worker_seconds / 3600.0;
    told
}
