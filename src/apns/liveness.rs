//! Whether a connection lives: a PING goes beside a request that looks late, and now and then on an idle connection.
//!
//! A connection without a PONG is dead and leaves with all that it holds; one that is slow and has its PONG stays, since to
//! throw it out would ring phones twice. While a PONG is awaited the replacement is already dialled.

use std::sync::{Arc, Weak};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connection::Connection;
use super::pool::{End, Pool, REAP_WAIT};

/// A request that is unanswered for so long looks late.
const LATE: Duration = Duration::from_millis(300);

/// A PONG that is out for so long, and for half as long again as the last one, raises doubt: the replacement is dialled.
const DOUBTFUL: Duration = Duration::from_millis(300);

/// However long the way is, this raises doubt.
const DOUBTFUL_MAX: Duration = Duration::from_millis(700);

/// How long a PONG may take; with [`LATE`] it bounds what a dead connection costs a call.
const PONG_WAIT: Duration = Duration::from_secs(1);

/// Between two PINGs while a request that had one is still unanswered.
const AGAIN: Duration = Duration::from_secs(1);

/// Between two PINGs on a connection on which nothing is late. Apple allows them after an hour (*Sending notification
/// requests to APNs*), senders were seen to use 10 s to 10 min; what sits between forgets idle connections within minutes.
const IDLE: Duration = Duration::from_secs(15);

/// How long a connection that is out of use may stay after the last late answer was waited for. A dead one would stay for
/// as long as the system tries to write to it.
const LINGER: Duration = Duration::from_secs(1);

/// Watches one connection until it has ended. It keeps no hold on it. `way`: how long its first PONG took.
pub(super) async fn watch(
    pool: Arc<Pool>,
    connection: Weak<Connection>,
    mut ping_pong: PingPong,
    driver: AbortHandle,
    mut way: Duration,
) {
    let Some(alarm) = connection.upgrade().map(|connection| Arc::clone(&connection.alarm)) else { return };
    let mut heard = Instant::now();
    // The newest stream that a PING has spoken for.
    let mut probed = 0;
    let mut retired_at = None;
    loop {
        let looked = connection.upgrade().map(|connection| {
            if connection.retired().is_some() && retired_at.is_none() {
                retired_at = Some(Instant::now());
            }
            pool.look(&connection, probed)
        });
        let Some(Some(look)) = looked else { break };
        if retired_at.is_some_and(|at| at.elapsed() > pool.parts.request_timeout + REAP_WAIT) {
            break;
        }
        let at = [
            look.prove.then_some(heard),
            look.oldest_unprobed.map(|given| given + LATE),
            look.oldest.map(|given| (given + LATE).max(heard + AGAIN)),
            Some(heard + IDLE),
        ];
        let at = at.into_iter().flatten().min().unwrap_or(heard);
        if at > Instant::now() {
            // Biased: who was woken looks anew.
            tokio::select! {
                biased;
                () = alarm.notified() => {}
                () = sleep_until(at) => {}
            }
            continue;
        }
        let sent = Instant::now();
        let ping = ping_pong.ping(Ping::opaque());
        tokio::pin!(ping);
        let doubtful = way.mul_f64(1.5).clamp(DOUBTFUL, DOUBTFUL_MAX);
        let mut pong = timeout(doubtful, &mut ping).await;
        if pong.is_err() {
            if let Some(connection) = connection.upgrade() {
                pool.doubt(&connection);
            }
            pong = timeout(PONG_WAIT.saturating_sub(doubtful), &mut ping).await;
        }
        match pong {
            Ok(Ok(_)) => {
                heard = Instant::now();
                probed = look.newest;
                way = heard - sent;
                pool.parts.metrics.apns_ping(pool.environment(), way);
                if let Some(connection) = connection.upgrade() {
                    pool.hear(&connection);
                }
            }
            // The connection has ended, and its driver says so.
            Ok(Err(_)) => break,
            Err(_) => {
                if let Some(connection) = connection.upgrade() {
                    pool.abandon(&connection, End::NoPong, "it answers no PING");
                }
                break;
            }
        }
    }
    // What is left to write gets a moment.
    sleep(LINGER).await;
    driver.abort();
}
