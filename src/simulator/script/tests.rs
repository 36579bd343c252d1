//! Tests of the module above.

use std::time::Duration;

use super::*;

#[test]
fn the_example_is_right_and_shows_every_key() {
    let text = include_str!("../../../config/simulator.example.toml");
    let script = Script::parse(text).unwrap();
    assert_eq!(script.devices.len(), 7);
    assert!(script.devices.iter().any(|(_, state)| matches!(state, DeviceState::Topic(_))));
    let acts = |wanted: fn(&Action) -> bool| {
        script.faults.iter().filter_map(|fault| fault.action.as_ref()).any(wanted)
    };
    assert!(acts(|action| matches!(action, Action::Answer(Answer { body: Some(_), .. }))));
    assert!(acts(|action| matches!(action, Action::Answer(Answer { timestamp_ms: Some(_), .. }))));
    assert!(acts(|action| matches!(action, Action::Reset { code: 7, .. })));
    assert!(acts(|action| matches!(action, Action::GoAway(_))));
    assert!(acts(|action| matches!(action, Action::Silence { .. })));
    assert!(acts(|action| matches!(action, Action::Freeze { .. })));
    assert!(acts(|action| matches!(action, Action::Close { processed: true })));
    assert_eq!(script.connect_faults.len(), 4);
    let keys = "token state since topic token_prefix connection skip every probability count each_token latency \
                do status reason timestamp body code serve_this twice then processed";
    for key in keys.split_whitespace() {
        assert!(text.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} is not shown");
    }
}

#[test]
fn a_script_says_what_it_says() {
    let script = Script::parse(
        "[[device]]\ntoken = \"AABB\"\nstate = \"unregistered\"\nsince = 1970-01-01T00:00:01.5Z\n\
         [[fault]]\ntoken_prefix = \"Cc\"\nprobability = 0.5\ncount = 3\nlatency = [\"50ms\", \"2s\"]\n\
         [[fault]]\ndo = \"answer\"\nstatus = 503\nreason = \"Service Unavailable\"\n",
    )
    .unwrap();
    assert_eq!(script.devices, [("aabb".into(), DeviceState::Unregistered { since_ms: 1500 })]);
    let slow = Fault::latency(Duration::from_millis(50), Duration::from_secs(2)).prefix("cc").when(When {
        probability: 0.5,
        count: Some(3),
        ..When::default()
    });
    assert_eq!(script.faults, [slow, Fault::answer(503, "Service Unavailable")]);
}

#[test]
fn mistakes_are_told_with_their_line_and_what_would_be_right() {
    for (text, line, says) in [
        ("x = 1", 1, "unknown field `x`, expected one of `device`, `fault`, `connect`"),
        ("[[fault]]\ndo = \"reset\"", 1, "`code` is missing"),
        ("\n[[fault]]\n", 2, "neither `do` nor `latency`"),
        ("[[fault]]\ndo = \"explode\"", 2, "expected one of `answer`, `reset`"),
        ("[[fault]]\ndo = \"silence\"\nstatus = 500", 1, "`status` goes with do = \"answer\""),
        ("[[fault]]\ndo = \"answer\"", 1, "`status` is missing"),
        ("[[fault]]\ndo = \"answer\"\nstatus = 99", 3, "from 200 to 599"),
        ("[[fault]]\ndo = \"answer\"\nstatus = 410\nreason = \"x\"\nbody = \"y\"", 1, "leave out `reason`"),
        ("[[fault]]\ndo = \"reset\"\ncode = \"BOOM\"", 3, "must be one of NO_ERROR"),
        (
            "[[fault]]\ndo = \"reset\"\ncode = \"REFUSED_STREAM\"\nprocessed = true",
            1,
            "nothing was processed",
        ),
        ("[[fault]]\nlatency = \"soon\"", 2, "must be a time as \"250ms\""),
        ("[[fault]]\nlatency = [\"2s\", \"1s\"]", 2, "the shorter time"),
        ("[[fault]]\nlatency = \"1s\"\nprobability = 1.5", 3, "from 0.0 to 1.0"),
        ("[[fault]]\nlatency = \"1s\"\nevery = 0", 1, "1 or more"),
        ("[[fault]]\nlatency = \"1s\"\ntoken = \"xyz\"", 3, "must be hex digits"),
        ("[[fault]]\nlatency = \"1s\"\ntoken = \"aa\"\nconnection = 1", 1, "only one of"),
        ("[[device]]\ntoken = \"aabb\"\nstate = \"expired\"", 1, "`since` is missing"),
        ("[[device]]\ntoken = \"aabb\"\nstate = \"expired\"\nsince = 2026-01-01", 4, "instant with a zone"),
        ("[[device]]\ntoken = \"aabb\"\nstate = \"topic\"", 1, "go together"),
        ("[[device]]\ntoken = \"aab\"\nstate = \"unknown\"", 1, "even number"),
        ("[[connect]]\ndo = \"goaway\"", 1, "go together"),
        ("[[fault]", 1, ""),
    ] {
        let error = Script::parse(text).unwrap_err();
        assert_eq!(error.line, line, "{text}: {error}");
        assert!(error.message.contains(says), "{text}: {error}");
    }
}
