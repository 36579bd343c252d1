//! Where the events about suspect tokens go, answer by answer.

use ringcast::simulator::faults::Fault;
use ringcast::worker::mailbox::Route;
use serde_json::Value;

use crate::broker::Happening;
use crate::history::History;
use crate::plan::{Event, Plan, token};
use crate::tell;
use crate::world::STARTED_AT;

/// What Apple says of a token, from the start.
fn said(plan: Plan, status: u16, reason: &'static str, number: u64) -> Plan {
    plan.event(0, Event::Apple(Fault::answer(status, reason).token(&token(number))))
}

/// A call every 100 ms from `at` on, one for each device.
fn calls(plan: Plan, at: u64, devices: impl IntoIterator<Item = u64>) -> Plan {
    devices.into_iter().enumerate().fold(plan, |plan, (place, device)| {
        let number = at + place as u64;
        plan.call(number, &format!("call-{number}"), at + 100 * place as u64, 20_000, &[device], STARTED_AT)
    })
}

/// The first words of the keys that events went by, in the order in which the broker got them.
fn keys(history: &History) -> Vec<&str> {
    let keys = history.happenings.iter().filter_map(|happening| match happening {
        Happening::Stored { publication, .. } if publication.kind == "ringcast.invalid-token.v1" => {
            let Route::Results(key) = &publication.route else { return None };
            Some(key.strip_suffix(".acme").expect("the one app"))
        }
        _ => None,
    });
    keys.collect()
}

const KEPT: &str = "quarantined_token";
const TOLD: &str = "invalid_token";

#[test]
fn a_worker_to_which_every_token_looks_bad_condemns_none_until_it_is_mended() {
    let bad = Fault::answer(400, "BadDeviceToken");
    let plan = Plan::quiet()
        .event(0, Event::Apple(bad.clone()))
        .event(9_000, Event::AppleHeals)
        .event(20_000, Event::Apple(bad.token(&token(500))));
    let plan = calls(plan, 1_000, 0..60);
    let plan = calls(plan, 10_000, 100..160);
    let history = tell(calls(plan, 21_000, [500]));
    assert_eq!(keys(&history), [vec![KEPT; 60], vec![TOLD]].concat());
}

#[test]
fn a_wave_in_a_worker_that_rang_before_condemns_ten_and_spares_the_rest() {
    let plan =
        (100..130).fold(Plan::quiet(), |plan, number| said(plan, 400, "DeviceTokenNotForTopic", number));
    let plan = said(plan, 410, "Unregistered", 200);
    let history = tell(calls(plan, 1_000, (0..60).chain(100..130).chain([200])));
    assert_eq!(keys(&history), [vec![TOLD; 10], vec![KEPT; 20], vec![TOLD]].concat());
    let dead = |happening: &&Happening| match happening {
        Happening::Stored { publication, .. } => {
            serde_json::from_slice::<Value>(&publication.body).expect("JSON")["confidence"] == "dead"
        }
        _ => false,
    };
    assert_eq!(history.happenings.iter().filter(dead).count(), 1, "the last one");
}

#[test]
fn a_phone_that_rang_beside_it_speaks_for_the_settings() {
    let plan = said(Plan::quiet(), 400, "BadDeviceToken", 1);
    // The suspect one is answered first.
    let history = tell(plan.call(1, "both", 1_000, 20_000, &[1, 2], STARTED_AT));
    assert_eq!(keys(&history), [TOLD]);
}
