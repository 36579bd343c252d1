//! What became of a batch of publications. Pure.
//!
//! The client library hands a returned message to whichever confirm completes next, not to its own, so a return is
//! recognised by what it carries itself; and the fates are decided only when every confirm of the batch is in, or when no
//! more will come. Then the library may still hold a return that belongs to one of the acks, but only if it had handed
//! out another: the broker sends a return before its ack, and each ack takes one that waits.

use std::collections::HashMap;

use crate::worker::mailbox::PublishError;

/// The broker's answer to one publication, without the return that it may have carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// `basic.ack`.
    Ack,
    /// `basic.nack`.
    Nack,
    /// None: the limit passed, or the channel is gone.
    Missing,
}

/// A message that the broker sent back (`basic.return`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Returned {
    /// Its own `message_id`.
    pub(super) message_id: Option<String>,
    /// Its own routing key.
    pub(super) routing_key: String,
    /// The broker's word, e.g. `NO_ROUTE`.
    pub(super) reason: String,
}

/// The fate of each publication, given as message id and routing key, in order; what was not answered gets `unanswered`.
/// Where two of a batch are alike in both and one of them came back, both count as returned: publishing again is harmless,
/// taking a loss for a success is not. Where a return is of none of them, or one came and not all were answered, no ack of
/// the batch can be believed.
pub(super) fn fates(
    published: &[(&str, &str)],
    answers: &[Answer],
    returned: &[Returned],
    unanswered: &PublishError,
) -> Vec<Result<(), PublishError>> {
    let mut back: HashMap<(&str, &str), (&str, bool)> = HashMap::with_capacity(returned.len());
    for message in returned {
        let id = message.message_id.as_deref().unwrap_or_default();
        back.insert((id, &message.routing_key), (&message.reason, false));
    }
    let mut fates: Vec<_> = published
        .iter()
        .zip(answers)
        .map(|(which, answer)| match (back.get_mut(which), answer) {
            (Some((reason, known)), _) => {
                *known = true;
                Err(PublishError::Returned(format!("{reason}, routing key {}", which.1)))
            }
            (None, Answer::Ack) => Ok(()),
            (None, Answer::Nack) => Err(PublishError::Nacked),
            (None, Answer::Missing) => Err(unanswered.clone()),
        })
        .collect();
    let all_answered = !answers.contains(&Answer::Missing);
    if back.values().any(|(_, known)| !known || !all_answered) {
        fates.iter_mut().filter(|fate| fate.is_ok()).for_each(|fate| *fate = Err(unanswered.clone()));
    }
    fates
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOST: &PublishError = &PublishError::Lost;

    fn returned(message_id: Option<&str>, routing_key: &str) -> Returned {
        Returned {
            message_id: message_id.map(str::to_owned),
            routing_key: routing_key.to_owned(),
            reason: "NO_ROUTE".to_owned(),
        }
    }

    fn no_route(key: &str) -> Result<(), PublishError> {
        Err(PublishError::Returned(format!("NO_ROUTE, routing key {key}")))
    }

    #[test]
    fn each_gets_its_own_fate() {
        let published = [("a", "k"), ("b", "k"), ("c", "k"), ("d", "k")];
        let answers = [Answer::Ack, Answer::Ack, Answer::Nack, Answer::Nack];
        let fates = fates(&published, &answers, &[returned(Some("b"), "k"), returned(Some("d"), "k")], LOST);
        assert_eq!(fates, [Ok(()), no_route("k"), Err(PublishError::Nacked), no_route("k")]);
    }

    #[test]
    fn twins_share_the_worse_fate_and_namesakes_do_not() {
        let published = [("a", "k"), ("a", "k"), ("a", "other")];
        let fates = fates(&published, &[Answer::Ack; 3], &[returned(Some("a"), "k")], LOST);
        assert_eq!(fates, [no_route("k"), no_route("k"), Ok(())]);
    }

    #[test]
    fn a_return_of_nobody_makes_every_ack_doubtful() {
        let published = [("a", "k"), ("b", "k"), ("c", "k")];
        let answers = [Answer::Ack, Answer::Nack, Answer::Ack];
        for stranger in [returned(None, "k"), returned(Some("z"), "k"), returned(Some("a"), "elsewhere")] {
            let fates = fates(&published, &answers, &[stranger, returned(Some("c"), "k")], LOST);
            assert_eq!(fates, [Err(PublishError::Lost), Err(PublishError::Nacked), no_route("k")]);
        }
    }

    #[test]
    fn what_is_not_answered_is_told_apart_from_what_is() {
        let published = [("a", "k"), ("b", "k"), ("c", "k")];
        let answers = [Answer::Ack, Answer::Missing, Answer::Nack];
        let overdue = || Err(PublishError::Unconfirmed("no answer within 10 s".into()));
        let some = PublishError::Unconfirmed("no answer within 10 s".into());
        assert_eq!(fates(&published, &answers, &[], &some), [Ok(()), overdue(), Err(PublishError::Nacked)]);
        let back = [returned(Some("c"), "k")];
        assert_eq!(fates(&published, &answers, &back, &some), [overdue(), overdue(), no_route("k")]);
    }

    /// The client library, up to some moment: each unroutable one comes back before its ack, and an ack takes what came
    /// back first and was not taken. `order`: in which places of the batch the broker is done.
    fn hear(
        ids: &[String],
        unroutable: &[bool],
        order: &[usize],
        events: usize,
    ) -> (Vec<Answer>, Vec<Returned>) {
        let (mut answers, mut back) = (vec![Answer::Missing; ids.len()], Vec::new());
        let mut held = std::collections::VecDeque::new();
        // All returns of a pair first, then both acks: the closest that they can come to each other.
        let steps = order.chunks(2).flat_map(|pair| {
            let returns = pair.iter().filter(|place| unroutable[**place]).map(|place| (*place, true));
            returns.chain(pair.iter().rev().map(|place| (*place, false))).collect::<Vec<_>>()
        });
        for (place, is_return) in steps.take(events) {
            if is_return {
                held.push_back(returned(Some(&ids[place]), "k"));
            } else {
                answers[place] = Answer::Ack;
                back.extend(held.pop_front());
            }
        }
        (answers, back)
    }

    proptest! {
        /// However the returns are spread over the confirms and ordered, nothing that came back counts as published.
        #[test]
        fn nothing_returned_is_confirmed(unroutable in prop::collection::vec(any::<bool>(), 0..60), rotation in any::<usize>()) {
            let ids: Vec<_> = (0..unroutable.len()).map(|n| format!("id-{n}")).collect();
            let published: Vec<_> = ids.iter().map(|id| (id.as_str(), "k")).collect();
            let mut back: Vec<_> =
                published.iter().zip(&unroutable).filter(|(_, gone)| **gone).map(|((id, key), _)| returned(Some(id), key)).collect();
            if !back.is_empty() {
                let by = rotation % back.len();
                back.rotate_left(by);
            }
            let fates = fates(&published, &vec![Answer::Ack; published.len()], &back, LOST);
            for (fate, gone) in fates.iter().zip(&unroutable) {
                prop_assert_eq!(fate.is_err(), *gone);
            }
        }

        /// Nor when the answers end in the middle.
        #[test]
        fn nothing_returned_is_confirmed_though_answers_are_missing(
            batch in prop::collection::vec((any::<bool>(), any::<u32>()), 0..60),
            events in 0_usize..130,
        ) {
            let unroutable: Vec<bool> = batch.iter().map(|(gone, _)| *gone).collect();
            let mut order: Vec<usize> = (0..batch.len()).collect();
            order.sort_by_key(|place| batch[*place].1);
            let ids: Vec<_> = (0..batch.len()).map(|n| format!("id-{n}")).collect();
            let published: Vec<_> = ids.iter().map(|id| (id.as_str(), "k")).collect();
            let (answers, back) = hear(&ids, &unroutable, &order, events);
            let fates = fates(&published, &answers, &back, LOST);
            for (place, fate) in fates.iter().enumerate() {
                prop_assert!(fate.is_err() || !unroutable[place], "{place} of {answers:?}, back {back:?}");
                prop_assert!(fate.is_err() || answers[place] == Answer::Ack);
            }
            if back.is_empty() {
                prop_assert!(fates.iter().zip(&answers).all(|(fate, answer)| fate.is_ok() == (*answer == Answer::Ack)));
            }
        }
    }
}
