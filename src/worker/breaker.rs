//! Whether to believe Apple when it calls a token bad or another app's.
//!
//! One wrong setting, an environment or a bundle id, makes every good token look so, and whoever reads the events would drop
//! tokens that ring. So each app and environment has a breaker, which looks at the last [`WINDOW`] answers about tokens. While
//! it is open, events about suspect tokens go to quarantine. It opens at a suspect token
//!
//! - when none of these answers was `accepted`, as after a start: nothing shows that the settings are right; or
//! - when two tokens or more, and more than `worker.suspect_percent_max` percent, are suspect.
//!
//! It closes at an accepted push when one suspect token is left in the window, or no more than half of that share; so one that
//! a single token opened closes at once. It errs towards quarantine, where nothing is lost, and a mistake that is made while a
//! worker runs condemns few good tokens until it opens: ten at the default of 20 percent.
//!
//! A token that is pushed again and again counts once while it is in the window. A 410 counts for nothing: it is Apple's firm
//! word about one token, is never kept back, and a wave of them must not hide one of the other kind. No other answer says
//! anything about the token. Nothing is forgotten with time: environment and bundle id of a running worker do not change, and a
//! quiet night shows nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::report::Seldom;
use crate::domain::app::{App, Environment};
use crate::domain::id::DeviceToken;
use crate::domain::timestamp::Timestamp;
use crate::domain::token_event::TokenEvent;
use crate::metrics::Metrics;

/// Answers about tokens that are looked at, the newest.
const WINDOW: u64 = 50;

/// A percentage that no share is beyond: such a breaker never opens.
const NEVER: u64 = 100;

/// Where to look.
const CHECK: &str =
    "are the app's environment and bundle_id right, and the tokens and environments in its invites?";

/// The breakers of all apps; clones share them.
#[derive(Clone)]
pub struct Breakers(Arc<Shared>);

struct Shared {
    /// By the apps' indices.
    apps: Vec<(Arc<App>, [Watched; 2])>,
    metrics: Arc<Metrics>,
}

struct Watched {
    state: Mutex<State>,
    seldom: Seldom,
}

struct State {
    breaker: Breaker,
    /// Since when it is open, and what opened it, for people.
    open: Option<(Timestamp, String)>,
    /// The log says that it is open.
    is_told: bool,
}

impl Breakers {
    /// All closed, and their gauges say so. `percent_max`: `worker.suspect_percent_max`.
    pub(super) fn new(apps: &[Arc<App>], percent_max: u32, metrics: Arc<Metrics>) -> Self {
        let watched = |app: &Arc<App>| {
            let both = Environment::ALL.map(|environment| {
                metrics.breaker(&app.name, environment.as_str(), false);
                let breaker = Breaker::new(percent_max);
                Watched {
                    state: Mutex::new(State { breaker, open: None, is_told: false }),
                    seldom: Seldom::default(),
                }
            });
            (Arc::clone(app), both)
        };
        Self(Arc::new(Shared { apps: apps.iter().map(watched).collect(), metrics }))
    }

    /// Apple accepted a push.
    pub(super) fn accepted(&self, app: &App, environment: Environment) {
        let mut state = self.watched(app, environment).state.lock();
        if !state.breaker.accepted() {
            return;
        }
        state.open = None;
        self.0.metrics.breaker(&app.name, environment.as_str(), false);
        let is_told = std::mem::take(&mut state.is_told);
        drop(state);
        if is_told {
            tracing::info!(
                app = app.name,
                environment = environment.as_str(),
                "Apple accepts again: events about suspect tokens are no longer kept back"
            );
        }
    }

    /// Apple called a token bad or another app's. Whether to keep the event about it back.
    pub(super) fn suspect(&self, app: &App, event: &TokenEvent) -> bool {
        let watched = self.watched(app, event.environment);
        let mut state = watched.state.lock();
        let opens = state.breaker.suspect(&event.token);
        let (share, reason) = (state.breaker.share(), event.reason.as_deref().unwrap_or_default());
        if opens {
            state.open = Some((event.observed_at, format!("{share}, the last with {reason}")));
            self.0.metrics.breaker(&app.name, event.environment.as_str(), true);
        }
        let keeps_back = state.breaker.is_open;
        // One that opens and closes in turn is told once a minute, one that stays open at last.
        let tells = keeps_back && !state.is_told && watched.seldom.is_due();
        state.is_told |= tells;
        // Whoever waits for the log must not make `/readyz` and other calls wait.
        drop(state);
        if tells {
            tracing::warn!(
                app = app.name,
                environment = event.environment.as_str(),
                apns.topic = event.topic,
                apns.reason = reason,
                "{share}, so their events are kept back in ringcast.quarantined-tokens until Apple accepts again: {CHECK}"
            );
        }
        keeps_back
    }

    /// A sentence for an operator for each that is open.
    pub fn open(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        for (app, both) in &self.0.apps {
            for (environment, watched) in Environment::ALL.into_iter().zip(both) {
                if let Some((since, why)) = &watched.state.lock().open {
                    sentences.push(format!(
                        "{} in {} since {since}: {why}, so their events are kept back: {CHECK}",
                        app.name,
                        environment.as_str()
                    ));
                }
            }
        }
        sentences
    }

    fn watched(&self, app: &App, environment: Environment) -> &Watched {
        &self.0.apps[app.index].1[environment.index()]
    }
}

/// The state machine of one app and environment: two inputs, and each says whether it changed the state.
#[derive(Debug)]
struct Breaker {
    percent_max: u64,
    /// Answers that counted so far.
    answers: u64,
    /// The suspect tokens among the last [`WINDOW`] of them, the oldest first, each with its number.
    suspects: VecDeque<(u64, DeviceToken)>,
    is_open: bool,
}

impl Breaker {
    fn new(percent_max: u32) -> Self {
        Self { percent_max: percent_max.into(), answers: 0, suspects: VecDeque::new(), is_open: false }
    }

    /// A push was accepted. True when this closes it.
    fn accepted(&mut self) -> bool {
        self.answers += 1;
        if !self.is_open {
            return false;
        }
        self.slide();
        self.is_open = self.is_beyond(self.percent_max / 2);
        !self.is_open
    }

    /// A token is suspect. True when this opens it.
    fn suspect(&mut self, token: &DeviceToken) -> bool {
        self.slide();
        if !self.suspects.iter().any(|(_, known)| known == token) {
            self.answers += 1;
            self.suspects.push_back((self.answers, token.clone()));
            self.slide();
        }
        if self.is_open || self.percent_max == NEVER {
            return false;
        }
        self.is_open = self.suspects.len() as u64 == self.seen() || self.is_beyond(self.percent_max);
        self.is_open
    }

    /// Forgets what is out of the window.
    fn slide(&mut self) {
        while self.suspects.front().is_some_and(|(number, _)| number + WINDOW <= self.answers) {
            self.suspects.pop_front();
        }
    }

    /// Answers in the window.
    fn seen(&self) -> u64 {
        self.answers.min(WINDOW)
    }

    /// Whether more than one of them, and more than this share, are suspect.
    fn is_beyond(&self, percent: u64) -> bool {
        let suspects = self.suspects.len() as u64;
        suspects > 1 && 100 * suspects > percent * self.seen()
    }

    /// The share, for people.
    fn share(&self) -> String {
        let (suspects, seen) = (self.suspects.len(), self.seen());
        format!("{suspects} of the last {seen} answers call a token bad or another app's")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(number: u64) -> DeviceToken {
        DeviceToken::new(&format!("{number:08x}"))
    }

    /// Feeds answers, `+` for an accepted push, `-` for a token that was never suspect before, `=` for always the same one, and
    /// gives the state after each: `|` open, `.` closed.
    fn states(breaker: &mut Breaker, answers: &str) -> String {
        let mut feed = |answer| {
            let was = breaker.is_open;
            let changed = match answer {
                '+' => breaker.accepted(),
                '-' => breaker.suspect(&token(breaker.answers + 1)),
                _ => breaker.suspect(&token(0)),
            };
            assert_eq!(changed, breaker.is_open != was, "it says when it changes");
            if breaker.is_open { '|' } else { '.' }
        };
        answers.chars().map(&mut feed).collect()
    }

    #[test]
    fn a_young_breaker_believes_nothing_until_a_push_is_accepted() {
        for (answers, expected) in [
            ("++++++", "......"),
            // All are suspect, whatever their number; one accepted push is enough for a single token.
            ("-", "|"),
            ("-+", "|."),
            ("----====", "||||||||"),
            ("====+=", "||||.."),
            // A single one never opens it once something was accepted, two do while they are more than a fifth.
            ("+-", ".."),
            ("+======", "......."),
            ("+--", "..|"),
            ("+++++++--", "........|"),
            ("++++++++--", ".........."),
            ("++++++++---", "..........|"),
            // What several tokens opened stays open until they are a tenth.
            ("--++++++++++++++++++", "|||||||||||||||||||."),
        ] {
            assert_eq!(states(&mut Breaker::new(20), answers), expected, "{answers}");
        }
    }

    #[test]
    fn a_warm_breaker_opens_at_the_eleventh_of_fifty_and_closes_at_a_tenth() {
        let mut breaker = Breaker::new(20);
        assert!(!states(&mut breaker, &"+".repeat(1_000)).contains('|'));
        assert_eq!(states(&mut breaker, &"-".repeat(12)), "..........||", "ten get away");
        // The wave goes on, and is over.
        assert!(!states(&mut breaker, &"-".repeat(1_000)).contains('.'));
        assert_eq!(states(&mut breaker, &"+".repeat(46)), "|".repeat(44) + "..");
        assert_eq!(
            states(&mut breaker, &"-".repeat(11)),
            "..........|",
            "the old ones leave as new ones come"
        );
    }

    #[test]
    fn a_steady_share_below_the_limit_never_opens_it() {
        let mut breaker = Breaker::new(20);
        assert!(
            !states(&mut breaker, &"++++-".repeat(400)).contains('|'),
            "a fifth is not more than a fifth"
        );
        let open = states(&mut breaker, &"+++-".repeat(400));
        assert!(open.ends_with('|'), "a fourth is");
        assert!(
            !states(&mut breaker, &"+++++-".repeat(400)).contains('.'),
            "it takes less to close than not to open"
        );
        assert!(states(&mut breaker, &"+++++++++-".repeat(10)).ends_with('.'));
    }

    #[test]
    fn one_token_that_is_called_again_and_again_is_one() {
        let mut breaker = Breaker::new(20);
        states(&mut breaker, "+");
        assert!(!states(&mut breaker, &"=".repeat(1_000)).contains('|'));
        assert!(!states(&mut breaker, &"+=".repeat(1_000)).contains('|'));
    }

    #[test]
    fn the_limit_is_a_setting() {
        for (percent, opens_at) in [(1, Some(2)), (10, Some(6)), (50, Some(26)), (99, Some(50)), (100, None)]
        {
            let mut breaker = Breaker::new(percent);
            states(&mut breaker, &"+".repeat(100));
            let found = states(&mut breaker, &"-".repeat(100)).find('|').map(|place| place + 1);
            assert_eq!(found, opens_at, "{percent} percent");
        }
        assert_eq!(states(&mut Breaker::new(100), "-"), ".", "it never opens");
    }

    proptest! {
        #[test]
        fn it_says_what_the_last_answers_say(answers in proptest::collection::vec(0u64..60, 1..400), percent in 1u32..=100) {
            let mut breaker = Breaker::new(percent);
            // What counted: the token of each suspect answer.
            let mut counted: Vec<Option<u64>> = Vec::new();
            for answer in answers {
                let was = breaker.is_open;
                // Many are accepted, the others are of few tokens.
                let suspect = Some(answer).filter(|number| *number < 30);
                let recent = &counted[counted.len().saturating_sub(50)..];
                match suspect {
                    Some(_) if recent.contains(&suspect) => {}
                    _ => counted.push(suspect),
                }
                let changed = match suspect {
                    None => breaker.accepted(),
                    Some(number) => breaker.suspect(&token(number)),
                };
                prop_assert_eq!(changed, breaker.is_open != was);
                let recent = &counted[counted.len().saturating_sub(50)..];
                let (all, bad) = (recent.len() as u64, recent.iter().flatten().count() as u64);
                let beyond = |percent| bad > 1 && 100 * bad > percent * all;
                let expected = match (suspect, was) {
                    _ if percent == 100 => false,
                    (Some(_), false) => bad == all || beyond(percent.into()),
                    (None, true) => beyond(u64::from(percent) / 2),
                    (_, was) => was,
                };
                prop_assert_eq!(breaker.is_open, expected);
                prop_assert!(breaker.suspects.len() <= 50);
            }
        }
    }
}
