//! What happens in the world of a seed: who calls whom, and what goes wrong when.

use std::time::Duration;

use ringcast::pause::Jitter;
use ringcast::simulator::faults::{
    Action, Answer, ConnectAction, ConnectFault, Ending, Fault, GoAway, LastStream, Latency, When,
};
use ringcast::simulator::{DeviceState, Order, Target};
use serde_json::{Value, json};

use crate::broker::Habits;
use crate::deadly::{Deadliness, Dying};
use crate::network::address;

/// Faults come before this; then everything heals.
pub const HEALED_AFTER: Duration = Duration::from_secs(40);

/// Random numbers of one seed.
pub struct Dice(Jitter);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Jitter::seeded(seed))
    }

    pub fn draw(&self) -> f64 {
        self.0.draw()
    }

    pub fn chance(&self, probability: f64) -> bool {
        self.0.draw() < probability
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "small numbers"
    )]
    pub fn pick(&self, below: u64) -> u64 {
        (self.0.draw() * below as f64) as u64
    }

    pub fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.pick(to - from))
    }
}

/// One message to publish.
#[derive(Clone)]
pub struct Message {
    pub at: Duration,
    pub amqp_id: Option<String>,
    pub body: Vec<u8>,
    /// How long the broker keeps it for whoever takes it.
    pub expires_in: Option<Duration>,
    /// How often it came back already.
    pub returned: u32,
}

impl Message {
    fn new(at: Duration, amqp_id: Option<String>, body: Vec<u8>) -> Self {
        Self { at, amqp_id, body, expires_in: None, returned: 0 }
    }
}

/// Something that goes wrong at an instant.
pub enum Event {
    /// A fault of Apple's, for requests.
    Apple(Fault),
    /// A fault of Apple's, for new connections.
    Connect(ConnectFault),
    /// Apple heals.
    AppleHeals,
    /// Some of Apple's connections are told something.
    Order(Target, Order),
    /// Some of them heal.
    HealsAt(Target),
    /// The connection to the broker is lost.
    CutBroker,
    /// No new connection to Apple can be made, or it can again.
    Network(bool),
    /// Results whose routing key begins so have no queue; `None`: all have one.
    Unbound(Option<&'static str>),
    /// A memory alarm of the broker's is raised or cleared.
    Alarm(bool),
    /// The broker crashes, or its queue loses its leader; or it is back.
    Away(bool),
    /// What the broker gave up cannot be read, or can be again.
    ExpiredGone(bool),
    /// The worker is killed and another one starts.
    Kill,
    /// The worker is stopped in good order and another one starts.
    Replace,
    /// Another worker starts, and beside it this one is stopped in good order.
    Relieve,
}

/// Everything that a seed decides in advance.
pub struct Plan {
    pub messages: Vec<Message>,
    pub events: Vec<(Duration, Event)>,
    pub devices: Vec<(String, DeviceState)>,
    pub prefetch: usize,
    pub connections: usize,
    pub connections_max: usize,
    /// How many addresses Apple has.
    pub addresses: u8,
    /// How long bytes are on their way to Apple, and back.
    pub way: Duration,
    pub one_stream_first: bool,
    pub one_stream_after_rejection: bool,
    /// GOAWAY after that many bad device tokens on a connection.
    pub bad_device_tokens_max: Option<u64>,
    pub sandbox: bool,
    pub max_streams: u32,
    pub expiration_max: Duration,
    /// How the broker behaves.
    pub broker: Habits,
    /// How many workers there are at a time.
    pub workers: usize,
    pub deaths: Vec<Deadliness>,
}

impl Plan {
    /// A world in which nothing happens yet, for a named history.
    pub fn quiet() -> Self {
        Self {
            messages: Vec::new(),
            events: Vec::new(),
            devices: Vec::new(),
            prefetch: 16,
            connections: 2,
            connections_max: 4,
            addresses: 4,
            way: Duration::ZERO,
            one_stream_first: true,
            one_stream_after_rejection: false,
            bad_device_tokens_max: None,
            sandbox: false,
            max_streams: 100,
            expiration_max: Duration::ZERO,
            broker: Habits::default(),
            workers: 1,
            deaths: Vec::new(),
        }
    }

    /// The same with so many connections, on which many streams may be open from the start.
    pub fn wide(connections: usize, connections_max: usize) -> Self {
        Self {
            connections,
            connections_max,
            prefetch: 2_000,
            one_stream_first: false,
            max_streams: 1_000,
            ..Self::quiet()
        }
    }

    /// Publishes a call `at` milliseconds that rings for `ring_for` milliseconds on these devices. `copy` tells messages of
    /// one call apart.
    pub fn call(
        mut self,
        call: u64,
        copy: &str,
        at: u64,
        ring_for: i64,
        devices: &[u64],
        started_at: i64,
    ) -> Self {
        let deadline = started_at + i64::try_from(at).unwrap_or(0) + ring_for;
        let devices: Vec<Value> = devices.iter().map(|number| json!({ "token": token(*number) })).collect();
        let body = json!({
            "call_id": call_id(call), "app": "acme", "deadline": instant(deadline), "devices": devices,
        });
        let at = Duration::from_millis(at);
        self.messages.push(Message::new(at, Some(copy.to_owned()), body.to_string().into_bytes()));
        self
    }

    /// The same with a caller's name of so many bytes.
    pub fn large_call(mut self, call: u64, at: u64, ring_for: i64, bytes: usize, started_at: i64) -> Self {
        let deadline = started_at + i64::try_from(at).unwrap_or(0) + ring_for;
        let body = json!({
            "call_id": call_id(call), "app": "acme", "deadline": instant(deadline),
            "payload": { "filler": "x".repeat(bytes) }, "devices": [{ "token": token(call) }],
        });
        let at = Duration::from_millis(at);
        self.messages.push(Message::new(at, None, body.to_string().into_bytes()));
        self
    }

    /// Something goes wrong, or right, `at` milliseconds.
    pub fn event(mut self, at: u64, event: Event) -> Self {
        self.events.push((Duration::from_millis(at), event));
        self
    }
}

/// The id of call `number`.
pub fn call_id(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// The token of device `number`; what it is like stands in its last digit.
pub fn token(number: u64) -> String {
    format!("{number:064x}")
}

pub fn plan(seed: u64, started_at: i64) -> Plan {
    let dice = Dice::new(seed ^ 0x5eed);
    let devices: Vec<_> =
        (0..40).filter_map(|number| Some((token(number), device_state(number, started_at)?))).collect();
    let mut messages = Vec::new();
    let mut events = Vec::new();
    // In a hasty world calls ring briefly and Apple is often busy: every repeat runs into its deadline.
    let hasty = dice.chance(0.2);
    let ring_for_max = if hasty { 1_000 } else { 30_000 };
    if hasty {
        let often = When { probability: 0.6, ..When::default() };
        events.push((Duration::ZERO, Event::Apple(Fault::answer(503, "ServiceUnavailable").when(often))));
    }
    // In some worlds whoever publishes tells the broker how long it is worth keeping.
    let expiring = dice.chance(0.3);
    let calls = 15 + dice.pick(30);
    for call in 0..calls {
        let at = dice.millis(0, 30_000);
        let amqp_id = dice.chance(0.8).then(|| format!("m-{call}"));
        let body = invite(&dice, call, at, started_at, ring_for_max);
        let expires_in = (expiring && dice.chance(0.7)).then(|| dice.millis(0, 4_000));
        let returned = if dice.chance(0.03) { 18 + u32::try_from(dice.pick(3)).unwrap_or(0) } else { 0 };
        let message = Message { expires_in, returned, ..Message::new(at, amqp_id, body) };
        if dice.chance(0.1) {
            let again = at + dice.millis(0, 3_000);
            messages.push(Message { at: again, ..message.clone() });
        }
        messages.push(message);
    }
    messages.sort_by_key(|message| message.at);
    for _ in 0..dice.pick(10) {
        events.push((dice.millis(0, 35_000), event(&dice)));
    }
    events.extend(weather(&dice));
    events.sort_by_key(|(at, _)| *at);
    let connections = 1 + usize::try_from(dice.pick(3)).unwrap_or(1);
    Plan {
        messages,
        events,
        devices,
        prefetch: prefetch(&dice),
        connections,
        connections_max: connections + usize::try_from(dice.pick(4)).unwrap_or(1),
        way: Duration::ZERO,
        addresses: 1 + u8::try_from(dice.pick(4)).unwrap_or(1),
        one_stream_first: dice.chance(0.5),
        one_stream_after_rejection: dice.chance(0.3),
        bad_device_tokens_max: dice.chance(0.3).then(|| 1 + dice.pick(3)),
        sandbox: dice.chance(0.2),
        max_streams: 1 + u32::try_from(dice.pick(8)).unwrap_or(1),
        expiration_max: if dice.chance(0.3) { dice.millis(0, 20_000) } else { Duration::ZERO },
        broker: Habits::draw(&dice),
        workers: if dice.chance(0.3) { 2 } else { 1 },
        deaths: if dice.chance(0.15) { deaths(&dice, calls) } else { Vec::new() },
    }
}

fn prefetch(dice: &Dice) -> usize {
    let prefetch = match dice.pick(10) {
        0 => 1,
        1 => 100 + dice.pick(400),
        _ => 1 + dice.pick(16),
    };
    usize::try_from(prefetch).unwrap_or(1)
}

/// What happens to the broker itself, each for a while.
fn weather(dice: &Dice) -> Vec<(Duration, Event)> {
    let mut events = Vec::new();
    let mut spell = |probability, longest, from: Event, until: Event| {
        if dice.chance(probability) {
            let begins = dice.millis(0, 25_000);
            events.push((begins, from));
            events.push((begins + dice.millis(500, longest), until));
        }
    };
    let unbound = match dice.pick(4) {
        0 => "",
        1 => "outcome",
        2 => "quarantined_token",
        _ => "invalid_token",
    };
    spell(0.25, 10_000, Event::Unbound(Some(unbound)), Event::Unbound(None));
    spell(0.2, 14_000, Event::Alarm(true), Event::Alarm(false));
    spell(0.1, 14_000, Event::Away(true), Event::Away(false));
    spell(0.1, 5_000, Event::Away(true), Event::Away(false));
    spell(0.1, 14_000, Event::ExpiredGone(true), Event::ExpiredGone(false));
    events
}

/// Calls whose handlers die: once, as of an accident, or every time.
fn deaths(dice: &Dice, calls: u64) -> Vec<Deadliness> {
    (0..=dice.pick(3))
        .map(|_| Deadliness {
            call: call_id(dice.pick(calls)),
            times: if dice.chance(0.4) { 1 } else { u32::MAX },
            dying: match dice.pick(3) {
                0 => Dying::Before,
                1 => Dying::Meanwhile(dice.millis(0, 200)),
                _ => Dying::After,
            },
        })
        .collect()
}

fn device_state(number: u64, started_at: i64) -> Option<DeviceState> {
    let since_ms = u64::try_from(started_at - 60_000).unwrap_or(0);
    match number % 10 {
        1 => Some(DeviceState::Unregistered { since_ms }),
        2 => Some(DeviceState::Unknown),
        3 if number == 3 => Some(DeviceState::Throttled),
        _ => None,
    }
}

fn invite(dice: &Dice, call: u64, at: Duration, started_at: i64, ring_for_max: u64) -> Vec<u8> {
    if dice.chance(0.05) {
        return format!("no invite {call}").into_bytes();
    }
    let published = started_at + i64::try_from(at.as_millis()).unwrap_or(0);
    let ring_for =
        if dice.chance(0.15) { -1_000 } else { i64::try_from(dice.pick(ring_for_max)).unwrap_or(0) };
    let devices: Vec<Value> = (0..=dice.pick(4))
        .map(|_| {
            let number = dice.pick(40);
            let mut device = json!({ "token": token(number) });
            if number % 10 == 1 && dice.chance(0.3) {
                device["registered_at"] = json!(instant(started_at));
            }
            if dice.chance(0.02) {
                device["token"] = json!("odd");
            }
            device
        })
        .collect();
    let filler = if dice.chance(0.1) { dice.pick(5_000) } else { 0 };
    json!({
        "call_id": call_id(call),
        "app": "acme",
        "deadline": instant(published + ring_for),
        "payload": { "filler": "x".repeat(usize::try_from(filler).unwrap_or(0)) },
        "devices": devices,
    })
    .to_string()
    .into_bytes()
}

fn instant(unix_ms: i64) -> String {
    ringcast::domain::timestamp::Timestamp::from_unix_ms(unix_ms).to_string()
}

fn event(dice: &Dice) -> Event {
    let some =
        When { probability: 0.1 + 0.6 * dice.draw(), count: Some(1 + dice.pick(20)), ..When::default() };
    let processed = dice.chance(0.5);
    match dice.pick(18) {
        0 => Event::Apple(Fault::latency(dice.millis(0, 100), dice.millis(100, 12_000)).when(some)),
        1 => Event::Apple(Fault::answer(503, "ServiceUnavailable").when(some)),
        2 => Event::Apple(Fault::answer(500, "InternalServerError").when(some)),
        3 => Event::Apple(refused_credential(dice, some)),
        4 => Event::Apple(odd_answer(dice).when(some)),
        5 => Event::Apple(Fault::reset(h2::Reason::REFUSED_STREAM, false).when(some)),
        6 => Event::Apple(Fault::reset(h2::Reason::INTERNAL_ERROR, processed).when(some)),
        7 => Event::Apple(silence(dice, some)),
        8 => Event::Apple(Fault::close(processed).when(When { count: Some(2), ..some })),
        9 => Event::Apple(Fault::go_away(go_away(dice)).when(When { count: Some(3), ..some })),
        10 => Event::Connect(ConnectFault {
            when: When { count: Some(4), ..When::default() },
            action: connect_action(dice),
        }),
        11 => Event::CutBroker,
        12 => {
            let end = dice.draw();
            if end < 0.5 {
                Event::Kill
            } else if end < 0.75 {
                Event::Replace
            } else {
                Event::Relieve
            }
        }
        13..=15 => Event::Order(target(dice), order(dice)),
        16 => Event::HealsAt(target(dice)),
        _ => Event::AppleHeals,
    }
}

/// Refusals of the credential: now and then, or on one connection for good, which is how a wedged one looks.
fn refused_credential(dice: &Dice, some: When) -> Fault {
    let fault = match dice.pick(6) {
        0 => Fault::answer(429, "TooManyProviderTokenUpdates"),
        1 => Fault::answer(403, "InvalidProviderToken"),
        2 => Fault::answer(403, "BadEnvironmentKeyInToken"),
        3 => Fault::answer(403, "BadEnvironmentKeyIdInToken"),
        4 => Fault::answer(403, "UnrelatedKeyIdInToken"),
        _ => Fault::answer(403, "ExpiredProviderToken"),
    };
    if dice.chance(0.5) { fault.connection(1 + dice.pick(6)) } else { fault.when(some) }
}

/// No answer: to some requests, to a token, on a connection, at an address.
fn silence(dice: &Dice, some: When) -> Fault {
    let silence = Fault::silence(dice.chance(0.5));
    match dice.pick(4) {
        0 => silence.when(some),
        1 => silence.token(&token(dice.pick(40))),
        2 => silence.connection(1 + dice.pick(6)),
        _ => silence.address(address(1 + u8::try_from(dice.pick(3)).unwrap_or(0))),
    }
}

fn odd_answer(dice: &Dice) -> Fault {
    let (status, body) = match dice.pick(7) {
        0 => (418, "<html>"),
        1 => (400, ""),
        2 => (503, r#"{"reason":"Service Unavailable"}"#),
        3 => (413, r#"{"reason":"PayloadTooLarge"}"#),
        4 => (410, ""),
        5 => {
            let ahead = Answer { timestamp_ms: Some(4_000_000_000_000), ..Answer::new(410, "Unregistered") };
            return Fault::new(Action::Answer(ahead));
        }
        _ => (400, r#"{"reason":"SomethingNew"}"#),
    };
    Fault::new(Action::Answer(Answer { body: Some(body.into()), ..Answer::new(status, "") }))
}

fn go_away(dice: &Dice) -> GoAway {
    GoAway {
        reason: dice.chance(0.8).then(|| "Shutdown".into()),
        serve_this: dice.chance(0.5),
        twice: dice.chance(0.3),
        last_stream: match dice.pick(3) {
            0 => LastStream::Newest,
            1 => LastStream::LeaveOut(usize::try_from(dice.pick(4)).unwrap_or(1)),
            _ => LastStream::Answered,
        },
        then: match dice.pick(3) {
            0 => Ending::Drain,
            1 => Ending::Close,
            _ => Ending::Silence,
        },
        ..GoAway::default()
    }
}

fn slowly(dice: &Dice) -> Latency {
    Latency { min: dice.millis(0, 50), max: dice.millis(50, 3_000) }
}

fn connect_action(dice: &Dice) -> ConnectAction {
    match dice.pick(7) {
        0 => ConnectAction::Refuse,
        1 => ConnectAction::Silence,
        2 => ConnectAction::Deaf,
        3 => ConnectAction::SlowSettings { after: slowly(dice) },
        4 => ConnectAction::SlowWindow { after: slowly(dice), stream_window: None },
        5 => ConnectAction::Limit { streams: u32::try_from(dice.pick(3)).unwrap_or(1) },
        _ => ConnectAction::GoAway { reason: "BadCertificateEnvironment".into() },
    }
}

fn target(dice: &Dice) -> Target {
    match dice.pick(3) {
        0 => Target::Everybody,
        1 => Target::Address(address(1 + u8::try_from(dice.pick(3)).unwrap_or(0)).into()),
        _ => Target::Connection(1 + dice.pick(6)),
    }
}

fn order(dice: &Dice) -> Order {
    match dice.pick(6) {
        0 => Order::Freeze,
        1 => Order::Silence,
        2 => Order::Deafen,
        3 => Order::Limit(u32::try_from(dice.pick(3)).unwrap_or(1)),
        4 => Order::SlowWindow(slowly(dice)),
        _ => Order::GoAway(go_away(dice)),
    }
}
