//! A queue and the workers at it, as a flow: calls are amounts, and time goes in ticks.
//!
//! A worker takes invites until it holds its prefetch. It begins as many a second as its share of a core allows, and each is its
//! own for as long as Apple and the broker take. Who is not begun before the deadline rings no more, and costs nothing.

use std::collections::VecDeque;

use super::{Call, TICKS};

/// Workers of one kind, and the calls that they have or shall have. Times are ticks.
#[derive(Clone, Debug, Default)]
pub(super) struct Fleet {
    /// Workers that take invites.
    ready: u32,
    /// Workers that are being started: when they are ready, and how many.
    starting: VecDeque<(u32, u32)>,
    /// Calls that were not begun: when they came, and how many.
    waiting: VecDeque<(u32, f64)>,
    /// Calls that were begun: when their invites are settled, and how many.
    begun: VecDeque<(u32, f64)>,
    /// What is held of calls whose time is shorter than a tick.
    passing: f64,
    /// Calls of which the deadline passed.
    pub(super) late: f64,
    /// Calls that waited for more than a second before they were begun, the late ones included.
    pub(super) waited: f64,
    /// The longest that a call waited before it was begun, in ticks.
    pub(super) longest: u32,
}

impl Fleet {
    pub(super) fn new(ready: u32) -> Self {
        Self { ready, ..Self::default() }
    }

    /// Workers that there are or shall be.
    pub(super) fn replicas(&self) -> u32 {
        self.ready + self.starting.iter().map(|(_, workers)| workers).sum::<u32>()
    }

    /// More workers, which need some ticks to start, or fewer: those that are not ready go first.
    pub(super) fn scale(&mut self, now: u32, replicas: u32, start: u32) {
        let there = self.replicas();
        if replicas > there {
            self.starting.push_back((now + start, replicas - there));
        }
        for _ in replicas..there {
            match self.starting.back_mut() {
                Some((_, workers)) if *workers > 1 => *workers -= 1,
                Some(_) => drop(self.starting.pop_back()),
                None => self.ready -= 1,
            }
        }
    }

    /// Calls come.
    pub(super) fn arrive(&mut self, now: u32, calls: f64) {
        self.waiting.push_back((now, calls));
    }

    /// A tick passes. Without a broker nothing is begun.
    pub(super) fn tick(&mut self, now: u32, call: &Call, broker: bool) {
        while let Some((_, workers)) = self.starting.pop_front_if(|(at, _)| *at <= now) {
            self.ready += workers;
        }
        while self.begun.pop_front_if(|(settled, _)| *settled <= now).is_some() {}
        while let Some((_, calls)) = self.waiting.pop_front_if(|(born, _)| now - *born >= call.deadline) {
            self.late += calls;
            self.waited += calls;
        }
        self.passing = 0.0;
        if !broker {
            return;
        }
        let tick = 1.0 / f64::from(TICKS);
        let free = (self.room(call) - self.in_flight()).max(0.0);
        // Shorter than a tick: a place serves several calls within it.
        let turns = (tick / call.takes).max(1.0);
        let mut left = (free * turns).min(f64::from(self.ready) * call.pace * tick);
        let mut calls_begun = 0.0;
        while left > 0.0
            && let Some((born, calls)) = self.waiting.front_mut()
        {
            let taken = calls.min(left);
            let wait = now - *born;
            self.longest = self.longest.max(wait);
            if wait > TICKS {
                self.waited += taken;
            }
            *calls -= taken;
            left -= taken;
            calls_begun += taken;
            if *calls <= f64::EPSILON {
                self.waiting.pop_front();
            }
        }
        if call.takes < tick {
            self.passing = calls_begun * call.takes / tick;
        } else if calls_begun > 0.0 {
            self.begun.push_back((now + ticks(call.takes), calls_begun));
        }
    }

    fn in_flight(&self) -> f64 {
        self.begun.iter().map(|(_, calls)| calls).sum()
    }

    fn room(&self, call: &Call) -> f64 {
        f64::from(self.ready) * call.room
    }

    /// What the workers hold: begun, or waiting in a worker.
    pub(super) fn held(&self, call: &Call) -> f64 {
        self.wanted().min(self.room(call))
    }

    /// What is ready in the queue: what the workers have no room for.
    pub(super) fn in_queue(&self, call: &Call) -> f64 {
        (self.wanted() - self.room(call)).max(0.0).round()
    }

    fn wanted(&self) -> f64 {
        self.in_flight() + self.passing + self.waiting.iter().map(|(_, calls)| calls).sum::<f64>()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a call")]
fn ticks(seconds: f64) -> u32 {
    (seconds * f64::from(TICKS)).ceil() as u32
}

#[cfg(test)]
fn flow(fleet: &mut Fleet, call: &Call, rate: f64, seconds: u32) {
    for now in 0..seconds * TICKS {
        fleet.arrive(now, rate / f64::from(TICKS));
        fleet.tick(now, call, true);
    }
}

#[cfg(test)]
fn call(takes: f64) -> Call {
    Call { takes, pace: 5000.0, room: 500.0, deadline: 30 * TICKS }
}

#[test]
fn workers_hold_rate_times_seconds() {
    // Little: 2,000 a second for 60 ms each are 120; for 2 s each they were 4,000, of which four workers hold 2,000.
    for (takes, held, ready) in [(0.06, 120.0, 0.0), (0.5, 1000.0, 0.0), (0.25, 500.0, 0.0)] {
        let call = call(takes);
        let mut fleet = Fleet::new(4);
        flow(&mut fleet, &call, 2000.0, 60);
        assert!((fleet.held(&call) - held).abs() < 1.0, "{takes}: {}", fleet.held(&call));
        assert!((fleet.in_queue(&call) - ready).abs() < 1.0);
        assert_eq!((fleet.late, fleet.longest), (0.0, 0));
    }
    let slow = call(2.0);
    let mut fleet = Fleet::new(4);
    flow(&mut fleet, &slow, 2000.0, 10);
    assert!((fleet.held(&slow) - 2000.0).abs() < 1.0);
    // 1,000 a second are begun, 1,000 more wait each second.
    assert!((fleet.in_queue(&slow) - 9000.0).abs() < 1500.0, "{}", fleet.in_queue(&slow));
}

#[test]
fn a_call_rings_before_its_deadline_or_is_late() {
    let call = call(0.06);
    let mut fleet = Fleet::new(1);
    // 5,000 of 10,000 a second are begun: after a minute the oldest have waited for 30 s, and from then on half are late.
    flow(&mut fleet, &call, 10_000.0, 120);
    assert!((fleet.late - 60.0 * 5000.0).abs() < 10_000.0, "{}", fleet.late);
    assert_eq!(fleet.longest, 30 * TICKS - 1);
}

#[test]
fn workers_that_start_are_of_use_later_and_go_first() {
    let mut fleet = Fleet::new(2);
    fleet.scale(0, 5, 40);
    assert_eq!((fleet.replicas(), fleet.ready), (5, 2));
    fleet.tick(39, &call(0.06), true);
    assert_eq!(fleet.ready, 2);
    fleet.scale(39, 4, 40);
    fleet.tick(40, &call(0.06), true);
    assert_eq!((fleet.replicas(), fleet.ready), (4, 4));
    fleet.scale(41, 2, 40);
    assert_eq!((fleet.replicas(), fleet.ready), (2, 2));
}

#[test]
fn nothing_is_begun_without_a_broker() {
    let call = call(0.06);
    let mut fleet = Fleet::new(2);
    fleet.arrive(0, 100.0);
    fleet.tick(0, &call, false);
    assert!((fleet.in_queue(&call)).abs() < 1e-9 && (fleet.held(&call) - 100.0).abs() < 1e-9);
    fleet.tick(TICKS, &call, true);
    assert_eq!(fleet.longest, TICKS);
}
