//! Answers that fail, and answers that nobody has seen before.

use ringcast::simulator::When;
use ringcast::simulator::faults::{Action, Answer, Fault};

use super::stage::Setting;

/// The first so many pushes to each device are answered so.
fn first_to_each(prefix: &str, count: u64, status: u16, reason: &str) -> Fault {
    let when = When { count: Some(count), each_token: true, ..When::default() };
    Fault::answer(status, reason).prefix(prefix).when(when)
}

/// Answered failures go again after a short wait, on another connection where there is one, `attempts_max` times in all.
#[tokio::test]
async fn bursts_of_500_and_503() {
    let mut stage = Setting::new("bursts", 2).open().await;
    let faults = stage.apple.faults();
    faults.add(first_to_each("50", 1, 500, "InternalServerError"));
    faults.add(first_to_each("53", 2, 503, "ServiceUnavailable"));
    faults.add(first_to_each("5f", 3, 503, "ServiceUnavailable"));
    for _ in 0..20 {
        for prefix in ["50", "53", "5f", "aa"] {
            stage.call(prefix, 1).await;
        }
    }
    let sums = stage.end().await;
    for (prefix, result, attempts) in
        [("aa", "accepted", 1), ("50", "accepted", 2), ("53", "accepted", 3), ("5f", "failed", 3)]
    {
        sums.expect(prefix, 20, result);
        for device in sums.devices(prefix) {
            assert_eq!(device["attempts"], attempts, "{device}");
        }
        assert_eq!(sums.pushes(prefix).len(), 20 * attempts, "as many as the outcomes say");
    }
    sums.expect_none_twice();
    assert!(sums.devices("5f").iter().all(|device| device["reason"] == "ServiceUnavailable"));
}

/// Words that are new, no word at all, and no JSON: the status decides, and nothing turns a token bad but a 410.
#[tokio::test]
async fn answers_that_nobody_knows() {
    let mut stage = Setting::new("strange", 2).open().await;
    let faults = stage.apple.faults();
    let body = |status: u16, body: &'static str| {
        let body = Some(body.into());
        Fault::new(Action::Answer(Answer { body, ..Answer::new(status, "") }))
    };
    faults.add(Fault::answer(400, "TokenFromTheFuture").prefix("a1"));
    faults.add(body(400, "").prefix("a2"));
    faults.add(body(403, "<html>Forbidden</html>").prefix("a3"));
    faults.add(body(418, "{\"reason\":").prefix("a4"));
    faults.add(body(410, "").prefix("a5"));
    faults.add(body(429, "null").prefix("a6"));
    for prefix in ["a1", "a2", "a3", "a4", "a5", "a6", "aa"] {
        stage.call(prefix, 5).await;
    }
    let sums = stage.end().await;
    sums.expect("aa", 5, "accepted");
    for (prefix, result, action, status) in [
        ("a1", "rejected", "report", 400),
        ("a2", "rejected", "report", 400),
        ("a3", "rejected", "report", 403),
        ("a4", "rejected", "report", 418),
        ("a5", "invalid_token", "drop_token", 410),
        ("a6", "throttled", "none", 429),
    ] {
        sums.expect(prefix, 5, result);
        for device in sums.devices(prefix) {
            assert_eq!((&device["action"], &device["status"]), (&action.into(), &status.into()), "{device}");
            assert_eq!(device["attempts"], 1, "it is final: {device}");
            let reason = if prefix == "a1" { "TokenFromTheFuture".into() } else { serde_json::Value::Null };
            assert_eq!(device["reason"], reason, "Apple's word as it is, or none: {device}");
        }
    }
    assert_eq!(sums.events().len(), 5, "for the 410s");
}
