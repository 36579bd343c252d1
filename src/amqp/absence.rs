//! What goes missing while a session lives.
//!
//! A session begins with a check of the topology. A queue that is deleted later is noticed by its consumer; one that takes
//! results, or their exchange, only by results that come back or by a channel that is closed. Then somebody looks again,
//! so that what is missing is named, and that it is back is noticed, too. What nobody asked for meanwhile is looked
//! at now and then: the broker writes a line to its own log for each look at something that is not there.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::dial::Link;
use super::topology::{LIVE, Presence, Thing, Topology};
use super::{Error, Settings, Status};
use crate::metrics::Metrics;

/// Between two looks, at least, and while something is missing that results need.
const AGAIN: Duration = Duration::from_secs(5);
/// Between two looks that nothing asks for. While something is missing, they begin with [`AGAIN`] and double.
const LOOK_EVERY: Duration = Duration::from_mins(5);

/// Shows in the metrics what is there and what is not, and to whoever copies results whether there is somewhere to copy them to.
pub(super) fn show(presence: &Presence, settings: &Settings, status: &Status, metrics: &Metrics) {
    for thing in &presence.there {
        metrics.amqp_missing(thing.name(), false);
    }
    // After those that are there: an exchange and a queue may share a name, and one missing is enough.
    for thing in presence.needed.iter().chain(&presence.optional) {
        metrics.amqp_missing(thing.name(), true);
    }
    let live = Thing::Exchange(LIVE.to_owned());
    let is_missed = settings.live && presence.optional.contains(&live);
    let note = || format!("nobody can look on, calls ring as ever: {}", Error::Missing(vec![live]));
    status.note(LIVE, is_missed.then(note));
}

/// Whether something is missing that results need. A queue of invites is for its reader to tell.
pub(super) fn of_results(presence: &Presence, invites: &[String]) -> bool {
    let is_invites = |thing: &Thing| matches!(thing, Thing::Queue(name) if invites.contains(name));
    !presence.needed.iter().all(is_invites)
}

/// Looks when `doubts` says that results are not taken, and then until nothing that is needed is missing; and now and then.
/// `link`: the connection that consumes, which the broker never blocks. With `amqp.declare` what is missing is made before each look,
/// bindings too, which no look would see.
pub(super) async fn watch(
    link: &Link,
    topology: &Topology,
    settings: &Settings,
    doubts: &Notify,
    status: &Status,
    metrics: &Metrics,
) -> Infallible {
    let mut told = None;
    // The look with which the session began may have come while queues were being declared.
    let mut pause = AGAIN;
    loop {
        if told.is_none() {
            // Nobody doubts: it is time all the same.
            let _ = timeout(pause, doubts.notified()).await;
        }
        if settings.declare
            && let Err(error) = topology.declare(link).await
        {
            tracing::debug!(amqp.reason = %error, "what results may need cannot be declared");
        }
        // An error is a connection that is lost, and the session's to tell; or one that may yet answer.
        if let Ok(presence) = topology.check(link).await {
            show(&presence, settings, status, metrics);
            let is_whole = presence.needed.is_empty() && presence.optional.is_empty();
            pause = if is_whole { LOOK_EVERY } else { LOOK_EVERY.min(2 * pause) };
            if of_results(&presence, &settings.invites) {
                let why = Error::Missing(presence.needed).to_string();
                if told.as_ref() != Some(&why) {
                    tracing::warn!(amqp.reason = %why, "the broker lacks something that results need");
                }
                status.lacking(Some(&why));
                told = Some(why);
            } else if told.take().is_some() {
                tracing::info!("the broker has all again that results need");
                status.lacking(None);
            }
        }
        sleep(AGAIN).await;
    }
}
