//! What happens instead of, or around, the honest answer.
//!
//! A [`Fault`] says to whom it happens, which of their requests it strikes, how long an answer is held back, and what
//! is done instead of answering. Faults are looked at in the order they were added: the delays of all that strike add
//! up, the first one with an action decides. A [`ConnectFault`] does the same to new connections.
//!
//! Every request is judged honestly first; a fault says whether Apple *processed* it all the same, that is, whether
//! the phone would have rung: only where the honest judgement accepted it, and the fault says so.

use std::time::Duration;

use bytes::Bytes;

use super::peer::Address;

mod book;
#[cfg(test)]
mod tests;

pub(super) use book::Strike;
pub use book::{FaultId, Faults};

/// A fault that strikes requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Whose requests.
    pub whom: Whom,
    /// Which of them.
    pub when: When,
    /// How long the answer is held back.
    pub latency: Option<Latency>,
    /// What is done instead of the honest answer; `None`: the honest answer, after the latency.
    pub action: Option<Action>,
}

/// Whose requests a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// Everybody's.
    Everybody,
    /// Those to this device token (lower-case hex).
    Token(String),
    /// Those to device tokens that begin so (lower-case hex).
    Prefix(String),
    /// Those on this connection; connections are numbered from 1.
    Connection(u64),
}

/// Which of somebody's requests (or which new connections) a fault strikes: after the first `skip`, every `every`-th,
/// each with `probability`, at most `count` times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct When {
    /// That many pass first.
    pub skip: u64,
    /// Of the rest the first and then each n-th is meant; 1: all.
    pub every: u64,
    /// Of those, each is struck with this probability, from 0 to 1.
    pub probability: f64,
    /// No more than that many are struck; `None`: no limit.
    pub count: Option<u64>,
    /// `skip`, `every` and `count` count each device token's requests apart, so that "the first push to each".
    pub each_token: bool,
    /// Only at this address; others are not counted either. `None`: at all.
    pub address: Option<Address>,
}

impl Default for When {
    fn default() -> Self {
        Self { skip: 0, every: 1, probability: 1.0, count: None, each_token: false, address: None }
    }
}

/// A delay, drawn evenly from the range, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Shortest.
    pub min: Duration,
    /// Longest.
    pub max: Duration,
}

/// What is done instead of the honest answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Another answer.
    Answer(Answer),
    /// `RST_STREAM` with an HTTP/2 error code: 7 (`REFUSED_STREAM`) promises that nothing was processed.
    Reset {
        /// RFC 9113 section 7.
        code: u32,
        /// Whether the phone rang.
        processed: bool,
    },
    /// GOAWAY for the whole connection.
    GoAway(GoAway),
    /// No answer to this request, ever; the connection lives and answers PINGs.
    Silence {
        /// Whether the phone rang.
        processed: bool,
    },
    /// The whole connection stands still from now on, PINGs included; the transport stays open.
    Freeze {
        /// Whether the phone rang.
        processed: bool,
    },
    /// The transport is dropped at once.
    Close {
        /// Whether the phone rang.
        processed: bool,
    },
}

/// An answer that is not the honest one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// For the JSON body, where `body` is `None`; any word, known to Apple or not.
    pub reason: Option<String>,
    /// The JSON body's `timestamp`, in milliseconds since 1970-01-01 UTC.
    pub timestamp_ms: Option<u64>,
    /// The body, verbatim, JSON or not, maybe empty.
    pub body: Option<Bytes>,
    /// Whether the phone rang.
    pub processed: bool,
}

impl Answer {
    /// An answer with a status and a reason, nothing processed (but with 200).
    pub fn new(status: u16, reason: &str) -> Self {
        let reason = (!reason.is_empty()).then(|| reason.to_owned());
        Self { status, reason, timestamp_ms: None, body: None, processed: status == 200 }
    }
}

/// A GOAWAY. Its last stream id is always true: no stream above it was processed, and none will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoAway {
    /// Error code (RFC 9113 section 7); 0 for an orderly end.
    pub code: u32,
    /// Apple's JSON reason in the debug data; `None`: no debug data.
    pub reason: Option<String>,
    /// The debug data, verbatim, JSON or not, instead of `reason`.
    pub debug: Option<Bytes>,
    /// Which requests in flight still count.
    pub last_stream: LastStream,
    /// Whether the request that was struck is still served; else it counts among the unprocessed.
    pub serve_this: bool,
    /// Two GOAWAYs in a row, the first with the highest possible id and `NO_ERROR` (RFC 9113 section 6.8).
    pub twice: bool,
    /// What then becomes of the connection.
    pub then: Ending,
}

impl Default for GoAway {
    fn default() -> Self {
        Self {
            code: 0,
            reason: None,
            debug: None,
            last_stream: LastStream::Newest,
            serve_this: true,
            twice: false,
            then: Ending::Drain,
        }
    }
}

impl GoAway {
    pub(super) fn debug_data(&self) -> Bytes {
        match (&self.debug, &self.reason) {
            (Some(debug), _) => debug.clone(),
            (None, Some(reason)) => serde_json::json!({ "reason": reason }).to_string().into(),
            (None, None) => Bytes::new(),
        }
    }
}

/// The last stream id of a [`GoAway`].
///
/// A request can be left out only while its answer is held back by a latency: then it becomes unprocessed, its record
/// in the journal says so, and it is never answered. One that was answered, or that another fault has met, keeps the
/// last id at its stream or above. A later GOAWAY may lower the id, never raise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LastStream {
    /// The newest stream that was judged: all of them still count.
    #[default]
    Newest,
    /// All but that many of the newest streams that wait for their answer.
    LeaveOut(usize),
    /// Only what was answered already.
    Answered,
    /// This stream, or the lowest above it that is true. Above the newest, streams up to it are still served.
    Id(u32),
}

/// What becomes of a connection after its GOAWAY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Streams up to the last id are answered, then it is closed.
    Drain,
    /// Closed at once; what was in flight is lost.
    Close,
    /// Left open, and nothing more comes: no answer, no PONG, no end.
    Silence,
}

/// A fault that strikes new connections.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectFault {
    /// Which ones; `each_token` says nothing here.
    pub when: When,
    /// What is done.
    pub action: ConnectAction,
}

/// What is done to a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectAction {
    /// Closed at once, before TLS.
    Refuse,
    /// Accepted, and then nothing: no TLS, no HTTP/2.
    Silence,
    /// GOAWAY with this reason right after the handshake, then closed: `BadCertificateEnvironment`, say.
    GoAway {
        /// Apple's word.
        reason: String,
    },
    /// Served, but PINGs go unanswered.
    Deaf,
    /// The server's first SETTINGS come that much later, and everything else with them.
    SlowSettings {
        /// How much.
        after: Latency,
    },
    /// Window is given back late: twelve or so bodies of 5 KiB fill the 65,535 bytes that a connection begins with, and
    /// the next one waits.
    SlowWindow {
        /// How much later each part of a body is taken off the windows of its stream and of the connection.
        after: Latency,
        /// The window that each stream begins with; `None`: 65,535 bytes, as Apple's.
        stream_window: Option<u32>,
    },
    /// This stream limit instead of the usual one, until it is healed.
    Limit {
        /// 0 included.
        streams: u32,
    },
}

impl Fault {
    /// Something done instead of every answer to everybody.
    pub fn new(action: Action) -> Self {
        Self { whom: Whom::Everybody, when: When::default(), latency: None, action: Some(action) }
    }

    /// Every answer to everybody comes that much later.
    pub fn latency(min: Duration, max: Duration) -> Self {
        let latency = Some(Latency { min, max });
        Self { whom: Whom::Everybody, when: When::default(), latency, action: None }
    }

    /// Another status and reason.
    pub fn answer(status: u16, reason: &str) -> Self {
        Self::new(Action::Answer(Answer::new(status, reason)))
    }

    /// `RST_STREAM`.
    pub fn reset(reason: h2::Reason, processed: bool) -> Self {
        Self::new(Action::Reset { code: reason.into(), processed })
    }

    /// No answer to the request.
    pub fn silence(processed: bool) -> Self {
        Self::new(Action::Silence { processed })
    }

    /// The transport is dropped.
    pub fn close(processed: bool) -> Self {
        Self::new(Action::Close { processed })
    }

    /// The connection stands still.
    pub fn freeze(processed: bool) -> Self {
        Self::new(Action::Freeze { processed })
    }

    /// GOAWAY.
    pub fn go_away(go_away: GoAway) -> Self {
        Self::new(Action::GoAway(go_away))
    }

    /// Only requests to this device token.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.whom = Whom::Token(token.to_ascii_lowercase());
        self
    }

    /// Only requests to device tokens that begin so.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.whom = Whom::Prefix(prefix.to_ascii_lowercase());
        self
    }

    /// Only requests on this connection.
    #[must_use]
    pub fn connection(mut self, number: u64) -> Self {
        self.whom = Whom::Connection(number);
        self
    }

    /// Only requests that come in at this address.
    #[must_use]
    pub fn address(mut self, address: impl Into<Address>) -> Self {
        self.when.address = Some(address.into());
        self
    }

    /// Only these of the requests. An address that was named before stays, unless `when` names another.
    #[must_use]
    pub fn when(mut self, when: When) -> Self {
        self.when = When { address: when.address.or(self.when.address), ..when };
        self
    }

    /// At most that many times.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.when.count = Some(count);
        self
    }
}
