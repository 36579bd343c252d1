//! Flow control: how soon a client gets back the window that its bodies have used (RFC 9113 section 5.2).

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use h2::FlowControl;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::super::chance::Chance;
use super::super::faults::Latency;

/// How late window is given back on one connection, and what waits for it.
#[derive(Default)]
pub(super) struct Windows {
    /// Lets the usual case, at once, go without a lock.
    slow: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    after: Option<Latency>,
    due: Vec<Due>,
}

/// Window to be given back at an instant.
pub(super) struct Due {
    at: Instant,
    flow: FlowControl,
    bytes: usize,
}

impl Due {
    /// Waits for the instant and gives the window back.
    pub(super) async fn give_back(mut self) {
        sleep_until(self.at).await;
        give_back(&mut self.flow, self.bytes);
    }
}

impl Windows {
    pub(super) fn slow_down(&self, after: Latency) {
        self.state.lock().after = Some(after);
        self.slow.store(true, Relaxed);
    }

    /// What is on its way still comes late.
    pub(super) fn speed_up(&self) {
        if self.slow.swap(false, Relaxed) {
            self.state.lock().after = None;
        }
    }

    /// Part of a body was read.
    pub(super) fn used(&self, flow: &mut FlowControl, bytes: usize, chance: &Mutex<Chance>) {
        if !self.slow.load(Relaxed) {
            return give_back(flow, bytes);
        }
        let mut state = self.state.lock();
        let wait = state.after.map_or(Duration::ZERO, |after| after.draw(&mut chance.lock()));
        state.due.push(Due { at: Instant::now() + wait, flow: flow.clone(), bytes });
    }

    /// What came to wait since the last call.
    pub(super) fn take_due(&self) -> Vec<Due> {
        if self.slow.load(Relaxed) { std::mem::take(&mut self.state.lock().due) } else { Vec::new() }
    }
}

fn give_back(flow: &mut FlowControl, bytes: usize) {
    let _ = flow.release_capacity(bytes); // fails only on a broken stream
}
