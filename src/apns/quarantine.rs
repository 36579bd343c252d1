//! Which tokens were suspect lately. Their pushes take connections of their own: after a rejection APNs was seen to allow
//! one stream until the next accepted push, and that must not hold up anybody else.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::id::DeviceToken;

/// How long a token stays suspect after Apple's word.
const SUSPECT_FOR: Duration = Duration::from_hours(1);

/// Tokens remembered at most; the oldest go first.
const SUSPECTS_MAX: usize = 10_000;

/// The tokens that Apple called bad or foreign lately.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// The usual case, none at all, goes without a lock.
    count: AtomicUsize,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    until: HashMap<DeviceToken, Instant>,
    /// In the order of their ends; an entry that was renewed or cleared is passed over.
    order: VecDeque<(Instant, DeviceToken)>,
}

impl Suspects {
    /// Whether Apple rejected this token lately.
    pub(super) fn hold(&self, token: &DeviceToken) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.memory.lock().until.get(token).is_some_and(|until| *until > Instant::now())
    }

    /// Apple called it bad, or not this topic's.
    pub(super) fn note(&self, token: &DeviceToken) {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        let until = now + SUSPECT_FOR;
        memory.until.insert(token.clone(), until);
        memory.order.push_back((until, token.clone()));
        memory.forget(now);
        self.count.store(memory.until.len(), Ordering::Relaxed);
    }

    /// Apple accepted it.
    pub(super) fn clear(&self, token: &DeviceToken) {
        let mut memory = self.memory.lock();
        memory.until.remove(token);
        self.count.store(memory.until.len(), Ordering::Relaxed);
    }

    /// How many are suspect.
    pub(super) fn len(&self) -> usize {
        if self.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut memory = self.memory.lock();
        memory.forget(Instant::now());
        self.count.store(memory.until.len(), Ordering::Relaxed);
        memory.until.len()
    }
}

impl Memory {
    /// Whose time is over, and the oldest of too many.
    fn forget(&mut self, now: Instant) {
        while let Some((end, _)) = self.order.front()
            && (*end <= now || self.order.len() > SUSPECTS_MAX)
        {
            let Some((end, oldest)) = self.order.pop_front() else { break };
            if self.until.get(&oldest) == Some(&end) {
                self.until.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_suspect_for_an_hour_or_until_it_is_accepted() {
        let (suspects, token, other) =
            (Suspects::default(), DeviceToken::new("ab01"), DeviceToken::new("ab02"));
        assert!(!suspects.hold(&token));
        suspects.note(&token);
        suspects.note(&other);
        assert!(suspects.hold(&token) && suspects.hold(&other));
        suspects.clear(&other);
        assert!(!suspects.hold(&other));
        tokio::time::advance(SUSPECT_FOR / 2).await;
        suspects.note(&token);
        tokio::time::advance(SUSPECT_FOR / 2).await;
        assert!(suspects.hold(&token), "renewed");
        assert_eq!(suspects.len(), 1);
        tokio::time::advance(SUSPECT_FOR / 2).await;
        assert!(!suspects.hold(&token));
        assert_eq!(suspects.len(), 0, "though no other token is suspect since");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_whatever_comes() {
        let suspects = Suspects::default();
        for number in 0..SUSPECTS_MAX + 100 {
            suspects.note(&DeviceToken::new(&format!("{number:08x}")));
        }
        for _ in 0..3 * SUSPECTS_MAX {
            suspects.note(&DeviceToken::new("ab01"));
        }
        let memory = suspects.memory.lock();
        assert!(memory.order.len() <= SUSPECTS_MAX && memory.until.len() <= SUSPECTS_MAX);
        assert_eq!(suspects.len(), memory.until.len());
    }
}
