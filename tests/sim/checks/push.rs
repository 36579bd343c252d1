//! What Apple saw: invariants 1 and 4.

use std::collections::BTreeSet;

use ringcast::simulator::Record;

use super::{Story, since_start, unix_ms};

/// Invariant 1.
pub fn none_after_its_deadline(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for ((call, token), records) in &story.rings {
        let deadline = story.deadlines.get(call).copied().unwrap_or(i64::MIN);
        for record in records {
            let at = i64::try_from(record.at_ms).unwrap_or(i64::MAX);
            if at >= deadline && !story.was_held(record) {
                report(format!("call {call} was pushed to {token} {} ms after its deadline", at - deadline));
            }
            let expiration: i64 =
                record.expiration.as_deref().and_then(|text| text.parse().ok()).unwrap_or(-1);
            if expiration != 0 && (expiration * 1000 <= at || expiration * 1000 > deadline) {
                report(format!("call {call}: apns-expiration {expiration} at {at}, deadline {deadline}"));
            }
        }
    }
}

/// Invariant 4. A phone rings again only where the sender could not know; whatever repeats has the same ids.
pub fn none_needless(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for ((call, token), records) in &story.rings {
        let ids: BTreeSet<_> = records.iter().map(|record| &record.apns_id).collect();
        if ids.len() > 1 {
            report(format!("call {call} to {token} was pushed under {} ids", ids.len()));
        }
        for (worker, records) in story.by_worker(records) {
            for (place, pair) in records.windows(2).enumerate() {
                let [first, then] = pair else { continue };
                // A connection on which a request was not answered in time may be given up with all that it held.
                let late = story.overdue_on(first.connection, then.at_ms);
                let wedged = first.reason.as_deref() == Some("TooManyProviderTokenUpdates");
                let final_word = matches!(first.status, Some(400 | 410 | 413 | 418 | 429)) && !wedged;
                let repeatable = !first.processed && !final_word;
                let uncertain = late || story.is_uncertain(first);
                if !repeatable && !uncertain && handlings(story, call, worker, first, then) == 1 {
                    report(format!(
                        "call {call} to {token}: request {} of worker {worker} was needless after {first:?}",
                        place + 2
                    ));
                }
            }
            // One handling rings at most twice: once, and once more after an ambiguous attempt.
            let rung = records.iter().filter(|record| record.processed).count();
            let (first, last) = (records[0], records[records.len() - 1]);
            let handlings = handlings(story, call, worker, first, last);
            if rung > 2 * handlings {
                report(format!(
                    "call {call} rang {rung} times at {token} from worker {worker}, which handled it {handlings} times"
                ));
            }
        }
    }
}

/// How often a worker may have handled a call between two of its requests, however often it was delivered: again where a
/// handler died in between, and where so much came in between that the worker may have forgotten the call.
fn handlings(story: &Story<'_>, call: &str, worker: u64, first: &Record, then: &Record) -> usize {
    let deaths = story.deaths.get(&(call.to_owned(), worker)).into_iter().flatten();
    let between = first.at_ms..=then.at_ms;
    let deaths = deaths.filter(|at| between.contains(&unix_ms(**at))).count();
    1 + deaths + story.forgotten(worker, since_start(first.at_ms), since_start(then.at_ms))
}

/// A worker pushes only what it was given, and neither what the broker gave up on nor what it gave back itself.
pub fn none_without_a_delivery(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for ((call, token), records) in &story.rings {
        for (worker, records) in story.by_worker(records) {
            let kept = story.identities(call).any(|identity| {
                let key = (*identity, worker);
                let taken = story.taken.get(&key).into_iter().flatten();
                let ringable =
                    taken.filter(|taken| taken.given_up.is_none() && unix_ms(taken.at) <= records[0].at_ms);
                let given_up =
                    story.taken.get(&key).into_iter().flatten().filter(|taken| taken.given_up.is_some());
                let all = ringable.clone().count() + given_up.count();
                let given_back = story.given_back.get(&key).copied().unwrap_or_default();
                ringable.count() > 0 && all > given_back
            });
            if !kept {
                report(format!("call {call} was pushed to {token} by worker {worker}, whose it was not"));
            }
        }
    }
}
