//! The core: what happens to one invite between its delivery and its ack.

mod bar;
mod breaker;
mod crew;
mod device;
mod dispatch;
pub mod gateway;
mod handle;
mod invalidation;
mod late;
mod ledger;
pub mod mailbox;
mod poison;
mod publish;
mod report;
mod run;
pub mod timeline;
pub mod trace;
mod untaken;

use std::time::Duration;

pub use breaker::Breakers;
pub use run::{Worker, run};
pub use untaken::{Backlog, Untaken};

/// What the worker is told by the configuration (`[worker]`).
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name that outcomes carry as `worker`; the host name unless configured.
    pub name: String,
    /// Devices of one invite at most.
    pub devices_max: usize,
    /// Bytes of an invite at most.
    pub invite_bytes_max: usize,
    /// How far ahead a deadline may lie.
    pub deadline_max: Duration,
    /// An invite with less left counts as expired.
    pub ring_time_min: Duration,
    /// Attempts per device that were answered or ambiguous, at most.
    pub attempts_max: u32,
    /// How long after the deadline an attempt written before it may still be answered.
    pub answer_grace: Duration,
    /// Percent of an app's answers about tokens that may be suspect before a setting is suspected; 100: never.
    pub suspect_percent_max: u32,
    /// Outcomes say what happened when.
    pub timeline: bool,
}
