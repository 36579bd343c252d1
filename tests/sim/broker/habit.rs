//! How the broker of a world behaves, as far as RabbitMQ 3.10 to 4.3 and the ways to them allow.

use std::time::Duration;

use ringcast::worker::mailbox::PublishError;

use crate::plan::Dice;

/// What a delivery says of how often it was returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Count {
    /// Nothing, as a classic queue does; it has no delivery limit either.
    Never,
    /// Nothing while it was never returned.
    #[default]
    FromOne,
    /// A number, zero for the first time.
    FromZero,
}

/// How likely each trouble is, and what the broker's version does. The default is a broker without trouble.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habits {
    /// A result is refused, and nobody has it.
    pub nacked: f64,
    /// A result is stored, and its publisher is told that it was refused, or that nobody knows: its channel was closed.
    pub doubtful: f64,
    /// A confirm takes seconds, so many that its publisher may give it up.
    pub late: f64,
    /// A confirm never comes.
    pub unconfirmed: f64,
    /// A channel for results is not opened in time, which costs the session.
    pub mute: f64,
    /// The two sides of a session that ends see it at different times, or deliveries come with the end.
    pub rough_end: f64,
    /// What was given up lies twice among such.
    pub dead_lettered_twice: f64,
    /// What a settlement takes to the broker, at most; those on the way are lost with the session.
    pub way_max: Duration,
    pub count: Count,
    /// A planned give-back counts as a return, as before RabbitMQ 4.3.
    pub give_back_counts: bool,
    /// Somebody looks at live copies of the results.
    pub onlookers: bool,
}

/// What the broker says to one result.
pub(super) type Answer = Result<(), PublishError>;

/// What becomes of one result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    /// The answer, and whether the broker has the result then.
    pub(super) answer: Answer,
    pub(super) stored: bool,
    /// Until the answer; `None`: there is none.
    pub(super) wait: Option<Duration>,
}

impl Habits {
    /// Returned more often, a message is given up.
    pub const DELIVERY_LIMIT: u32 = 20;

    /// The broker of a random world: half of them mean well.
    pub fn draw(dice: &Dice) -> Self {
        let way_max = dice.millis(1, 40);
        let count = match dice.pick(8) {
            0 => Count::Never,
            1..=4 => Count::FromOne,
            _ => Count::FromZero,
        };
        let version = Self {
            way_max,
            count,
            give_back_counts: dice.chance(0.6),
            onlookers: dice.chance(0.2),
            ..Self::default()
        };
        if dice.chance(0.5) {
            return version;
        }
        let sometimes = |most: f64| if dice.chance(0.4) { most * dice.draw() } else { 0.0 };
        Self {
            nacked: sometimes(0.4),
            doubtful: sometimes(0.3),
            late: sometimes(0.3),
            unconfirmed: sometimes(0.05),
            mute: sometimes(0.1),
            rough_end: if dice.chance(0.7) { 0.8 } else { 0.0 },
            dead_lettered_twice: sometimes(0.5),
            ..version
        }
    }

    /// The same version without its troubles.
    pub(super) fn healed(self) -> Self {
        let Self { way_max, count, give_back_counts, onlookers, .. } = self;
        Self { way_max, count, give_back_counts, onlookers, ..Self::default() }
    }

    pub(super) fn fate(&self, dice: &Dice, is_bound: bool) -> Fate {
        /// Beyond what a publisher waits.
        const LATE_MAX_MS: u64 = 12_000;
        let wait = if dice.chance(self.unconfirmed) {
            None
        } else if dice.chance(self.late) {
            Some(dice.millis(30, LATE_MAX_MS))
        } else {
            Some(dice.millis(1, 30))
        };
        let (answer, stored) = if dice.chance(self.nacked) {
            (Err(PublishError::Nacked), false)
        } else if !is_bound {
            (Err(PublishError::Returned("NO_ROUTE".into())), false)
        } else if dice.chance(self.doubtful) {
            let closed = || PublishError::Unconfirmed("the channel was closed".into());
            (Err(if dice.chance(0.5) { PublishError::Nacked } else { closed() }), true)
        } else {
            (Ok(()), true)
        };
        Fate { answer, stored, wait }
    }
}
