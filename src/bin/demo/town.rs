//! A small town on the telephone: two hundred calls, what is odd about some of them, and what must become of each.
//!
//! The town is drawn from a seed, so that every run tells the same story. Nobody in it is real.

use std::time::Duration;

use ringcast::domain::timestamp::Timestamp;
use ringcast::simulator::{DeviceState, Fault, Simulator};
use serde_json::{Value, json};
use uuid::Uuid;

/// How many calls there are.
pub(crate) const CALLS: usize = 200;

/// The app that all phones have.
pub(crate) const APP: &str = "town";

/// How soon and how late the simulated Apple answers.
pub(crate) const LATENCY_MIN: Duration = Duration::from_millis(40);
const LATENCY_MAX: Duration = Duration::from_millis(120);

/// How long a phone would ring.
const RING: Duration = Duration::from_secs(30);

/// How long ago a dead token died, and for how long a late call lay about.
const THREE_DAYS: Duration = Duration::from_hours(72);
const TOO_LATE: Duration = Duration::from_secs(2);

const SEED: u64 = 7;

/// The first calls are plain ones, so that one sees what is usual.
const PLAIN_AT_FIRST: usize = 6;

const ROLES: [&str; 20] = [
    "the baker",
    "the beekeeper",
    "the clockmaker",
    "the cobbler",
    "the ferrywoman",
    "the fishmonger",
    "the gardener",
    "the glazier",
    "the innkeeper",
    "the lamplighter",
    "the librarian",
    "the mayor",
    "the midwife",
    "the miller",
    "the nightwatch",
    "the organist",
    "the postwoman",
    "the shepherd",
    "the stationer",
    "the tinker",
];

/// How often each odd thing happens; all other calls are plain.
const ODD: [(Plot, usize); 8] = [
    (Plot::Late, 8),
    (Plot::OldPhone, 6),
    (Plot::Gone, 2),
    (Plot::Suspect, 1),
    (Plot::Hiccup, 2),
    (Plot::Refused, 1),
    (Plot::Twice, 1),
    (Plot::Malformed, MALFORMED.len()),
];

/// What is done to an invite so that it is none.
const MALFORMED: [fn(&mut Value); 5] = [
    |invite| invite["call_id"] = json!("42"),
    |invite| invite["deadline"] = json!("in half a minute"),
    |invite| invite["devices"] = json!([]),
    |invite| invite["app"] = json!("village"),
    |invite| *invite = json!("ring, please"),
];

/// What is odd about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plot {
    /// Nothing.
    Plain,
    /// Its deadline has passed when it is published.
    Late,
    /// One of the callee's phones has lost the app: a dead token among live ones.
    OldPhone,
    /// The callee's only phone has lost the app.
    Gone,
    /// The only token is one that Apple does not know.
    Suspect,
    /// Apple answers 503 once, then accepts.
    Hiccup,
    /// Apple refuses the stream once, then accepts.
    Refused,
    /// One phone stands twice in the invite.
    Twice,
    /// It is no invite.
    Malformed,
}

impl Plot {
    /// What to say beside its outcome.
    pub(crate) fn note(self) -> &'static str {
        match self {
            Self::Plain | Self::Malformed => "",
            Self::Late => "too late, so not pushed",
            Self::OldPhone | Self::Gone | Self::Suspect => "reported",
            Self::Hiccup => "503 at first",
            Self::Refused => "stream refused at first",
            Self::Twice => "listed twice",
        }
    }
}

/// One of the callee's phones, as it stands in the invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Phone {
    /// Device token, lower-case hex.
    pub(crate) token: String,
    /// The device result that is right.
    pub(crate) result: &'static str,
    /// How many pushes Apple must see for this entry.
    pub(crate) pushes: usize,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// From 0.
    pub(crate) number: usize,
    /// Who calls.
    pub(crate) caller: &'static str,
    /// Who is called.
    pub(crate) callee: &'static str,
    /// What is odd about it.
    pub(crate) plot: Plot,
    /// `CallKit`'s id of it.
    pub(crate) id: Uuid,
    /// In the invite's order; of a malformed one, what stands there all the same.
    pub(crate) phones: Vec<Phone>,
    /// Which of [`MALFORMED`], where it is.
    mistake: usize,
}

impl Call {
    /// The invite's body, as it is published at `now`.
    pub(crate) fn body(&self, now: Timestamp) -> Vec<u8> {
        let (created_at, deadline) = if self.plot == Plot::Late {
            let before = |span: Duration| {
                Timestamp::from_unix_ms(now.unix_ms() - i64::try_from(span.as_millis()).unwrap_or(0))
            };
            (before(RING + TOO_LATE), before(TOO_LATE))
        } else {
            (now, now.plus(RING))
        };
        let devices: Vec<_> = self.phones.iter().map(|phone| json!({ "token": phone.token })).collect();
        let handle = format!("{}@town.example", self.caller.trim_start_matches("the "));
        let mut invite = json!({
            "call_id": self.id.to_string(),
            "app": APP,
            "created_at": created_at.to_string(),
            "deadline": deadline.to_string(),
            "caller": { "handle": handle, "name": self.caller },
            "devices": devices,
        });
        if self.plot == Plot::Malformed {
            MALFORMED[self.mistake](&mut invite);
        }
        invite.to_string().into_bytes()
    }

    /// Who calls whom.
    pub(crate) fn parties(&self) -> String {
        let role = |whom: &'static str| whom.trim_start_matches("the ");
        format!("{} → {}", role(self.caller), role(self.callee))
    }

    /// The invite result that is right.
    pub(crate) fn result(&self) -> &'static str {
        match self.plot {
            Plot::Late => "expired",
            Plot::Gone | Plot::Suspect => "undeliverable",
            Plot::Malformed => "malformed",
            _ => "accepted",
        }
    }
}

/// All calls, the same ones each time.
pub(crate) fn draw() -> Vec<Call> {
    let mut dice = Dice(SEED);
    let mut plots: Vec<_> = ODD.iter().flat_map(|(plot, count)| vec![*plot; *count]).collect();
    plots.resize(CALLS - PLAIN_AT_FIRST, Plot::Plain);
    for last in (1..plots.len()).rev() {
        plots.swap(last, dice.below(last + 1));
    }
    let mut mistakes = 0..MALFORMED.len();
    let plots = [vec![Plot::Plain; PLAIN_AT_FIRST], plots].concat();
    let calls = plots.into_iter().enumerate().map(|(number, plot)| {
        let from = dice.below(ROLES.len());
        let to = (from + 1 + dice.below(ROLES.len() - 1)) % ROLES.len();
        let id = uuid::Builder::from_random_bytes(dice.bytes()).into_uuid();
        let mistake = if plot == Plot::Malformed { mistakes.next().unwrap_or(0) } else { 0 };
        let phones = phones(plot, &mut dice);
        Call { number, caller: ROLES[from], callee: ROLES[to], plot, id, phones, mistake }
    });
    calls.collect()
}

fn phones(plot: Plot, dice: &mut Dice) -> Vec<Phone> {
    let mut phone = |result, pushes| {
        let [high, low] = [(); 2].map(|()| u128::from_be_bytes(dice.bytes()));
        let token = format!("{high:032x}{low:032x}");
        Phone { token, result, pushes }
    };
    match plot {
        Plot::Plain => {
            let first = phone("accepted", 1);
            let others = usize::from(first.token.as_bytes()[0]) % 4;
            let others: Vec<_> = (0..others).map(|_| phone("accepted", 1)).collect();
            [vec![first], others].concat()
        }
        Plot::Late => vec![phone("expired", 0), phone("expired", 0)],
        Plot::OldPhone => vec![phone("accepted", 1), phone("invalid_token", 1), phone("accepted", 1)],
        Plot::Gone => vec![phone("invalid_token", 1)],
        Plot::Suspect => vec![phone("suspect_token", 1)],
        Plot::Hiccup | Plot::Refused => vec![phone("accepted", 2)],
        Plot::Twice => {
            let (first, other) = (phone("accepted", 1), phone("accepted", 1));
            let again = Phone { result: "duplicate", pushes: 0, ..first.clone() };
            vec![first, other, again]
        }
        Plot::Malformed => vec![phone("", 0)],
    }
}

/// Teaches the simulated Apple what it must do with the town's phones.
pub(crate) fn prepare(simulator: &Simulator, calls: &[Call], now: Timestamp) {
    simulator.faults().add(Fault::latency(LATENCY_MIN, LATENCY_MAX));
    let since_ms = u64::try_from(now.unix_ms()).unwrap_or(0).saturating_sub(THREE_DAYS.as_secs() * 1000);
    for call in calls {
        for phone in &call.phones {
            let faults = simulator.faults();
            match (call.plot, phone.result) {
                (_, "invalid_token") => {
                    simulator.devices().set(&phone.token, DeviceState::Unregistered { since_ms });
                }
                (_, "suspect_token") => simulator.devices().set(&phone.token, DeviceState::Unknown),
                (Plot::Hiccup, _) => {
                    faults.add(Fault::answer(503, "ServiceUnavailable").token(&phone.token).times(1));
                }
                (Plot::Refused, _) => {
                    faults.add(Fault::reset(h2::Reason::REFUSED_STREAM, false).token(&phone.token).times(1));
                }
                _ => {}
            }
        }
    }
}

/// `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).expect("less than a usize")
    }

    fn bytes(&mut self) -> [u8; 16] {
        (u128::from(self.roll()) << 64 | u128::from(self.roll())).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_town_is_the_same_each_time() {
        let calls = draw();
        assert_eq!(calls, draw());
        assert_eq!(calls.len(), CALLS);
        assert!(calls[..PLAIN_AT_FIRST].iter().all(|call| call.plot == Plot::Plain));
        for (plot, count) in ODD {
            assert_eq!(calls.iter().filter(|call| call.plot == plot).count(), count, "{plot:?}");
        }
        assert!(calls.iter().all(|call| call.caller != call.callee));
        let most = calls.iter().map(|call| call.phones.len()).max();
        assert_eq!(most, Some(4));
    }

    #[test]
    fn calls_and_phones_are_told_apart() {
        let calls = draw();
        let ids: BTreeSet<_> = calls.iter().map(|call| call.id).collect();
        assert_eq!(ids.len(), CALLS);
        let phones: Vec<_> = calls.iter().flat_map(|call| &call.phones).collect();
        let tokens: BTreeSet<_> = phones.iter().map(|phone| &phone.token).collect();
        assert_eq!(tokens.len(), phones.len() - 1, "one stands twice, on purpose");
    }

    #[test]
    fn each_malformed_invite_is_so_in_its_own_way() {
        let now = Timestamp::from_unix_ms(0);
        let mut mistakes = BTreeSet::new();
        for call in draw().iter().filter(|call| call.plot == Plot::Malformed) {
            mistakes.insert(call.mistake);
            let right = Call { plot: Plot::Plain, ..call.clone() };
            assert_ne!(call.body(now), right.body(now));
        }
        assert_eq!(mistakes.len(), MALFORMED.len());
    }
}
