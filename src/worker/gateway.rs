//! The one trait: how the worker reaches APNs.
//!
//! Apple's refusal is a value, a failure to send is an error: what comes back is exactly what the policy must know.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::app::{App, Environment};
use crate::domain::id::{ApnsId, DeviceToken};
use crate::domain::policy::PushError;
use crate::domain::response::Response;
use crate::domain::timestamp::Timestamp;

/// Sends pushes to APNs.
pub trait Gateway: Send + Sync + 'static {
    /// Makes one attempt. It starts before the push's deadline or not at all ([`PushError::NotSent`]), and it ends at
    /// `answer_by` at the latest.
    ///
    /// It may be let go of before the trail is marked, and then writes nothing, now or later: it marks the trail in the same
    /// poll in which it writes. Where an attempt was written and is given up, its trail may still hear of its answer. Once the trail
    /// is finished, a written one may be let go of, too.
    fn push(&self, push: &Push) -> impl Future<Output = Result<Response, PushError>> + Send;
}

/// One push to one device, the same in every attempt.
#[derive(Debug)]
pub struct Push {
    /// The app it is for.
    pub app: Arc<App>,
    /// Where the token belongs.
    pub environment: Environment,
    /// A well-formed token.
    pub token: DeviceToken,
    /// `apns-id`.
    pub apns_id: ApnsId,
    /// The body, shared by all devices of the invite.
    pub body: Bytes,
    /// Nothing is sent from here on.
    pub deadline: Instant,
    /// The same instant on the wall, for `apns-expiration`.
    pub deadline_at: Timestamp,
    /// An attempt written before the deadline may be answered until here.
    pub answer_by: Instant,
    /// Which connection the last attempt used.
    pub trail: Trail,
}

/// Which key signs for each app and environment now, by their indices; none where a certificate does. Shared by those who
/// sign and those who tell of it.
#[derive(Clone, Debug, Default)]
pub struct KeyIds(Arc<RwLock<Vec<AppKeyIds>>>);

/// Which key signs for one app, by environment.
pub type AppKeyIds = [Option<Arc<str>>; 2];

impl KeyIds {
    /// The key that signs now.
    pub fn get(&self, app: usize, environment: Environment) -> Option<Arc<str>> {
        self.0.read().get(app)?[environment.index()].clone()
    }

    /// Other keys sign from now on.
    pub fn replace(&self, key_ids: Vec<AppKeyIds>) {
        *self.0.write() = key_ids;
    }
}

/// What the attempts of a push leave behind: when the first was written, and which connection the last one used, so that
/// the next goes elsewhere. The gateway marks it.
#[derive(Debug, Default)]
pub struct Trail {
    first: OnceLock<Instant>,
    connection: AtomicU64,
    lost: AtomicU64,
    lost_on: AtomicU64,
    /// Attempts that were written.
    marks: AtomicU32,
    /// What became of the push is known.
    done: AtomicBool,
    /// Where the answer of the last attempt comes if it comes after it was given up.
    late: Mutex<Option<oneshot::Receiver<Response>>>,
    /// When the last attempt was written, where somebody wants to know it.
    written: Option<Box<Mutex<Option<Instant>>>>,
}

impl Trail {
    /// One that remembers when each attempt is written.
    pub fn timed() -> Self {
        Self { written: Some(Box::default()), ..Self::default() }
    }

    /// An attempt is written now on this connection; ids start at 1.
    pub fn mark(&self, connection: u64, now: Instant) {
        self.first.get_or_init(|| now);
        self.connection.store(connection, Ordering::Relaxed);
        self.marks.fetch_add(1, Ordering::Relaxed);
        if let Some(written) = &self.written {
            *written.lock() = Some(now);
        }
    }

    /// When the attempt that ended was written; once for each. `None`: it was not, or nobody wanted to know.
    pub fn take_written(&self) -> Option<Instant> {
        self.written.as_ref()?.lock().take()
    }

    /// How many attempts were written.
    pub fn marks(&self) -> u32 {
        self.marks.load(Ordering::Relaxed)
    }

    /// What became of the push is known though an attempt waits for its answer: the attempt may be let go of.
    pub fn finish(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// The same.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// The attempt that is given up now may be answered after all: here.
    pub fn hear_late(&self, answer: oneshot::Receiver<Response>) {
        *self.late.lock() = Some(answer);
    }

    /// The same; once for each attempt. `None`: no answer can come any more.
    pub fn take_late(&self) -> Option<oneshot::Receiver<Response>> {
        self.late.lock().take()
    }

    /// When the first attempt was written.
    pub fn first(&self) -> Option<Instant> {
        self.first.get().copied()
    }

    /// An attempt on that connection may have rung and is given up, at that turn of the gateway's; turns start at 1.
    pub fn lose(&self, turn: u64, connection: u64) {
        self.lost.store(turn, Ordering::Relaxed);
        self.lost_on.store(connection, Ordering::Relaxed);
    }

    /// When an attempt that may have rung was given up, 0 for never. It is repeated once at most, so that the repeat must go
    /// where there was life since.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The connection that it was given up on, 0 for none.
    pub fn lost_on(&self) -> u64 {
        self.lost_on.load(Ordering::Relaxed)
    }

    /// The connection of the last attempt, 0 before the first.
    pub fn last(&self) -> u64 {
        self.connection.load(Ordering::Relaxed)
    }
}
