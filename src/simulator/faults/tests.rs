//! Tests of the module above.

use parking_lot::Mutex;

use super::super::chance::Chance;
use super::super::peer::Spot;
use super::*;

const FIRST: Spot = Spot { connection: 1, address: None };

fn history(fault: Fault, tokens: &[&str]) -> Vec<bool> {
    let (faults, chance) = (Faults::default(), Mutex::new(Chance::new(1)));
    faults.add(fault);
    tokens.iter().map(|token| faults.strike(token, FIRST, &chance).action.is_some()).collect()
}

#[test]
fn the_right_requests_are_struck() {
    let when = |skip, every, count| When { skip, every, count, ..When::default() };
    let (yes, no) = (true, false);
    let fault = || Fault::silence(false);
    assert_eq!(history(fault().token("AA01"), &["aa01", "aa02", "aa0101"]), [yes, no, no]);
    assert_eq!(history(fault().prefix("Aa"), &["aa01", "bbaa", "aa"]), [yes, no, yes]);
    assert_eq!(history(fault().connection(1), &["aa", "bb"]), [yes, yes]);
    assert_eq!(history(fault().connection(2), &["aa", "bb"]), [no, no]);
    assert_eq!(history(fault().when(when(1, 2, Some(2))), &["a"; 7]), [no, yes, no, yes, no, no, no]);
    let first_of_each = When { count: Some(1), each_token: true, ..When::default() };
    assert_eq!(history(fault().when(first_of_each), &["a", "b", "a", "b", "c"]), [yes, yes, no, no, yes]);
}

#[test]
fn probability_follows_the_seed() {
    let draw = |seed| {
        let (faults, chance) = (Faults::default(), Mutex::new(Chance::new(seed)));
        faults.add(Fault::silence(false).when(When { probability: 0.5, ..When::default() }));
        (0..64).map(|_| faults.strike("aa", FIRST, &chance).action.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(draw(4), draw(4));
    assert_ne!(draw(4), draw(5));
}

#[test]
fn delays_add_up_and_the_first_action_decides() {
    let (faults, chance) = (Faults::default(), Mutex::new(Chance::new(1)));
    let ms = Duration::from_millis;
    faults.add(Fault::latency(ms(10), ms(10)));
    faults.add(Fault::answer(503, "ServiceUnavailable"));
    let third = faults.add(Fault::answer(500, "InternalServerError").times(1));
    faults.add(Fault::latency(ms(5), ms(7)));
    let strike = faults.strike("aa", FIRST, &chance);
    assert!((ms(15)..=ms(17)).contains(&strike.latency), "{:?}", strike.latency);
    assert_eq!(strike.action, Fault::answer(503, "ServiceUnavailable").action);
    assert!(faults.remove(third));
    assert!(!faults.remove(third));
    faults.clear();
    assert_eq!(faults.strike("aa", FIRST, &chance), Strike::default());
}

#[test]
fn connections_are_struck_too() {
    let (faults, chance) = (Faults::default(), Mutex::new(Chance::new(1)));
    faults.add_connect(ConnectFault {
        when: When { skip: 1, count: Some(1), ..When::default() },
        action: ConnectAction::Refuse,
    });
    let struck: Vec<_> = (0..3).map(|_| faults.strike_connect(FIRST, &chance).is_some()).collect();
    assert_eq!(struck, [false, true, false]);
}
