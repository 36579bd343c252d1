//! What a connection knows of itself; its requests share it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;

use super::super::Shared;
use super::super::certificate::Certificate;
use super::super::faults::{ConnectAction, Ending, GoAway, LastStream};
use super::super::journal::Record;
use super::super::order::{Order, Signal, What};
use super::super::peer::Spot;
use super::super::provider_token::Session;
use super::super::rules::Reason;
use super::super::wire::Control;
use super::exchange;
use super::window::Windows;

/// What senders have seen Apple say to one that exceeds the stream limit.
const EXCESS: &[u8] = b"Maximum active streams violated for this endpoint.";
/// The highest stream id there is (RFC 9113 section 5.1.1).
const STREAM_ID_MAX: u32 = (1 << 31) - 1;

/// See the module.
pub(super) struct Connection<'a> {
    pub(super) shared: &'a Shared,
    pub(super) spot: Spot,
    /// What the client has shown in TLS: then its provider tokens are ignored.
    pub(super) certificate: Option<Certificate>,
    pub(super) control: Arc<Control>,
    pub(super) session: Mutex<Session>,
    state: Mutex<State>,
    /// Wakes requests that a GOAWAY has left out.
    pub(super) recalled: Notify,
    pub(super) windows: Windows,
}

#[derive(Debug, Default)]
struct State {
    /// The limit that was announced last.
    announced_limit: Option<u32>,
    /// An order's limit.
    cap: Option<u32>,
    /// One stream until an answer opens the others.
    one_stream: bool,
    /// The highest stream whose fate is out of our hands: answered, or met by a fault (but for a promise that nothing
    /// was processed).
    settled: u32,
    /// Streams that were judged and whose answer is held back.
    held: BTreeMap<u32, Held>,
    going_away: Option<u32>,
    ending: Option<Ending>,
    ended: bool,
    bad_device_tokens: u64,
}

/// A request whose answer is held back, and that can still count as unprocessed.
#[derive(Debug)]
pub(super) struct Held {
    /// Whether the journal says that the phone rang.
    pub(super) processed: bool,
    /// What the journal says where it did not after all; `None`: the journal is not kept.
    pub(super) otherwise: Option<Record>,
}

/// What the loop does next.
pub(super) enum Then {
    GoOn,
    /// Close politely.
    End,
    /// Drop the transport.
    Drop,
}

impl State {
    /// The last stream id of a GOAWAY: true, whatever is wished for.
    fn last_stream(&self, wish: LastStream) -> u32 {
        let held_above = |count: usize| self.held.range(self.settled + 1..).rev().nth(count);
        let wished = match wish {
            LastStream::Newest => held_above(0).map_or(self.settled, |(stream, _)| *stream),
            LastStream::LeaveOut(count) => held_above(count).map_or(self.settled, |(stream, _)| *stream),
            LastStream::Answered => self.settled,
            LastStream::Id(id) => id.max(self.settled),
        };
        self.going_away.map_or(wished, |before| before.min(wished))
    }

    fn then(&mut self, all_is_out: bool) -> Then {
        match self.ending {
            Some(Ending::Close) => Then::Drop,
            Some(Ending::Drain) if all_is_out && !self.ended => {
                self.ended = true;
                Then::End
            }
            _ => Then::GoOn,
        }
    }
}

impl<'a> Connection<'a> {
    pub(super) fn new(shared: &'a Shared, spot: Spot, certificate: Option<Certificate>) -> Self {
        Self {
            shared,
            spot,
            certificate,
            control: Control::new(shared.options.max_concurrent_streams),
            session: Mutex::default(),
            state: Mutex::default(),
            recalled: Notify::new(),
            windows: Windows::default(),
        }
    }

    /// Why the connection is sent away as soon as it stands.
    pub(super) fn unwelcome(&self, struck: Option<ConnectAction>) -> Option<String> {
        let elsewhere = |certificate: &Certificate| {
            certificate.environment.is_some_and(|only| only != self.shared.options.environment)
        };
        match struck {
            Some(ConnectAction::GoAway { reason }) => Some(reason),
            _ if self.certificate.as_ref().is_some_and(elsewhere) => {
                Some(Reason::BadCertificateEnvironment.as_str().to_owned())
            }
            _ => None,
        }
    }

    /// Refuses a stream that comes after a GOAWAY, or above the limit that the client has acknowledged.
    pub(super) fn admit(
        &self,
        in_flight: usize,
        request: &http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<SendResponse<Bytes>> {
        let refusal = if self.is_unprocessed(respond.stream_id().as_u32()) {
            "going away"
        } else if in_flight >= self.control.limit() as usize {
            if self.shared.options.go_away_on_excess {
                self.go_away(&GoAway {
                    code: Code::REFUSED_STREAM.into(),
                    debug: Some(Bytes::from_static(EXCESS)),
                    ..GoAway::default()
                });
            }
            "stream limit"
        } else {
            return Some(respond);
        };
        let stream = respond.stream_id().as_u32();
        self.shared.journal.note(false, |sequence| {
            let notes = exchange::Notes::of_fault((self.shared.options.clock)(), refusal);
            exchange::record(self, sequence, stream, request.uri(), request.headers(), &[], notes)
        });
        respond.send_reset(Code::REFUSED_STREAM);
        None
    }

    /// True for streams above the last id of a GOAWAY that was sent.
    pub(super) fn is_unprocessed(&self, stream: u32) -> bool {
        self.state.lock().going_away.is_some_and(|last| stream > last)
    }

    /// A request that was judged: its answer is held back, or (`None`) comes at once.
    pub(super) fn judged(&self, stream: u32, held: Option<Held>) {
        let mut state = self.state.lock();
        match held {
            Some(held) => {
                state.held.insert(stream, held);
            }
            None => state.settled = state.settled.max(stream),
        }
    }

    /// The time of holding back is over; false where a GOAWAY has left the stream out meanwhile.
    pub(super) fn settle(&self, stream: u32) -> bool {
        let mut state = self.state.lock();
        if state.going_away.is_some_and(|last| stream > last) {
            return false;
        }
        if state.held.remove(&stream).is_some() {
            state.settled = state.settled.max(stream);
        }
        true
    }

    /// Sends a GOAWAY. Requests above its last id that are held back become unprocessed, in the journal too.
    pub(super) fn go_away(&self, go_away: &GoAway) {
        let mut state = self.state.lock();
        let last = state.last_stream(go_away.last_stream);
        if go_away.twice {
            self.control.send_go_away(STREAM_ID_MAX, 0, b"");
        }
        self.control.send_go_away(last, go_away.code, &go_away.debug_data());
        state.going_away = Some(last);
        state.ending = Some(go_away.then);
        let left_out = state.held.split_off(&last.saturating_add(1));
        drop(state);
        for (_, held) in left_out {
            self.shared.journal.amend(held.processed, held.otherwise);
        }
        self.recalled.notify_waiters();
        if go_away.then == Ending::Silence {
            self.control.deafen(true);
        }
    }

    /// What the loop does next. `all_is_out`: nothing is in flight, and nothing waits to be written.
    pub(super) fn then(&self, all_is_out: bool) -> Then {
        self.state.lock().then(all_is_out)
    }

    /// True once a GOAWAY was sent.
    pub(super) fn is_going_away(&self) -> bool {
        self.state.lock().going_away.is_some()
    }

    /// Lets one stream through until an answer opens the others, or opens them.
    pub(super) fn set_one_stream(&self, one_stream: bool) {
        let mut state = self.state.lock();
        if state.one_stream != one_stream {
            state.one_stream = one_stream;
            self.announce(&mut state);
        }
    }

    /// Another limit from outside, or (`None`) the usual one.
    pub(super) fn set_cap(&self, cap: Option<u32>) {
        let mut state = self.state.lock();
        state.cap = cap;
        self.announce(&mut state);
    }

    /// Announces the stream limit unless it stands already.
    fn announce(&self, state: &mut State) {
        let usual = self.shared.options.max_concurrent_streams;
        let cap = state.cap.map_or(usual, |cap| cap.min(usual));
        let limit = if state.one_stream { cap.min(1) } else { cap };
        if state.announced_limit.unwrap_or(usual) != limit {
            state.announced_limit = Some(limit);
            self.control.announce_limit(limit);
        }
    }

    /// What an answer does to the connection: the stream limit, and the patience with bad device tokens.
    pub(super) fn answered(&self, status: u16, authorized: bool, bad_device_token: bool) {
        let options = &self.shared.options;
        if options.one_stream_after_rejection && matches!(status, 400 | 403) {
            self.set_one_stream(true);
        } else if authorized && (status == 200 || !options.one_stream_after_rejection) {
            self.set_one_stream(false);
        }
        if bad_device_token {
            let mut state = self.state.lock();
            state.bad_device_tokens += 1;
            let too_many = options.bad_device_tokens_max == Some(state.bad_device_tokens);
            drop(state);
            if too_many {
                self.go_away(&GoAway { reason: Some("BadDeviceToken".into()), ..GoAway::default() });
            }
        }
    }

    /// Does what was ordered; true when that was to heal.
    pub(super) fn heed(&self, signal: Result<Signal, RecvError>) -> bool {
        let Ok(Signal { target, what }) = signal else { return false };
        if !target.includes(self.spot) {
            return false;
        }
        let heals = matches!(what, What::Heal);
        match what {
            What::Heal => self.heal(),
            What::Order(Order::Freeze | Order::Silence) => self.control.freeze(true),
            What::Order(Order::Deafen) => self.control.deafen(true),
            What::Order(Order::GoAway(order)) => self.go_away(&order),
            What::Order(Order::Close) => self.close(),
            What::Order(Order::Limit(streams)) => self.set_cap(Some(streams)),
            What::Order(Order::SlowWindow(after)) => self.windows.slow_down(after),
        }
        heals
    }

    fn heal(&self) {
        self.control.freeze(false);
        self.control.deafen(false);
        self.windows.speed_up();
        self.set_cap(None);
        let mut state = self.state.lock();
        if state.ending == Some(Ending::Silence) {
            state.ending = Some(Ending::Close);
        }
    }

    /// Drops the transport at the next turn.
    pub(super) fn close(&self) {
        self.state.lock().ending = Some(Ending::Close);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.state.lock().ending == Some(Ending::Close)
    }

    pub(super) fn is_silent(&self) -> bool {
        self.state.lock().ending == Some(Ending::Silence)
    }
}
