//! Tests of the module above.

use std::time::Duration;

use super::super::Environment;
use super::super::faults::{Action, Answer, ConnectAction, GoAway, LastStream, Latency};
use super::super::peer::Address;
use super::*;

fn key() -> VerifyingKey {
    super::super::Identity::ephemeral().unwrap().verifying_key()
}

#[test]
fn the_example_is_right_and_shows_every_key() {
    let text = include_str!("../../../config/simulator.example.toml");
    let script = Script::parse_with(text, |_| Ok(key())).unwrap();
    assert_eq!((script.devices.len(), script.keys.len(), script.steps.len()), (7, 1, 12));
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
    assert_eq!(script.connect_faults.len(), 7);
    let keys = "token state since topic token_prefix connection skip every probability count each_token latency \
                do status reason timestamp body code serve_this twice then processed at key_id team_id environment \
                    bundle_ids from until address debug leave_out last_stream after stream_window streams";
    let words =
        "answer reset goaway silence freeze close refuse deaf slow_settings slow_window limit heal revoke";
    for word in words.split_whitespace() {
        assert!(text.contains(&format!("do = \"{word}\"")), "{word} is not shown");
    }
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
        ("x = 1", 1, "unknown field `x`, expected one of `device`, `key`, `fault`, `connect`, `order`"),
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
        ("[[fault]]\nlatency = \"1s\"\naddress = \"localhost\"", 3, "as \"127.0.0.1:2197\", or its number"),
        ("[[fault]]\nlatency = \"1s\"\naddress = 0", 3, "from 1"),
        ("[[fault]]\nlatency = \"1s\"\nfrom = \"2s\"\nuntil = \"2s\"", 1, "after `from`"),
        ("[[fault]]\ndo = \"silence\"\nleave_out = 1", 1, "`leave_out` goes with do = \"goaway\""),
        ("[[fault]]\ndo = \"goaway\"\nleave_out = 1\nlast_stream = 1", 1, "only one of"),
        ("[[fault]]\ndo = \"goaway\"\nreason = \"a\"\ndebug = \"b\"", 1, "leave out `reason`"),
        ("[[fault]]\ndo = \"goaway\"\nlast_stream = \"first\"", 3, "\"newest\", \"answered\""),
        ("[[connect]]\ndo = \"limit\"", 1, "`streams` go together"),
        ("[[connect]]\ndo = \"slow_window\"", 1, "`after` go together"),
        ("[[connect]]\ndo = \"deaf\"\nstream_window = 5", 1, "goes with do = \"slow_window\""),
        ("[[order]]\ndo = \"heal\"", 1, "missing field `at`"),
        ("[[order]]\nat = \"soon\"\ndo = \"heal\"", 2, "must be a time"),
        ("[[order]]\nat = \"1s\"\ndo = \"limit\"", 1, "`streams` is missing"),
        ("[[order]]\nat = \"1s\"\ndo = \"freeze\"\nstreams = 1", 1, "goes with do = \"limit\""),
        ("[[order]]\nat = \"1s\"\ndo = \"freeze\"\naddress = 1\nconnection = 1", 1, "only one of"),
        ("[[order]]\nat = \"1s\"\ndo = \"revoke\"", 1, "`key_id` is missing"),
        (
            "[[key]]\nkey_id = \"short\"\nteam_id = \"TEAM123456\"",
            1,
            "`key_id` must be ten letters or digits",
        ),
        ("[[key]]\nkey_id = \"KEY1234567\"\nteam_id = \"TEAM123456\"", 1, "nobody here knows"),
        ("[[fault]", 1, ""),
    ] {
        let error = Script::parse(text).unwrap_err();
        assert_eq!(error.line, line, "{text}: {error}");
        assert!(error.message.contains(says), "{text}: {error}");
    }
}

#[test]
fn an_incident_has_steps_in_order_of_time() {
    let script = Script::parse_with(
        "[[order]]\nat = \"20s\"\ndo = \"heal\"\naddress = 2\n\
         [[order]]\nat = \"10s\"\ndo = \"silence\"\naddress = \"127.0.0.2:2197\"\n\
         [[fault]]\nfrom = \"5s\"\nuntil = \"15s\"\nlatency = \"1s\"\naddress = 1\n\
         [[order]]\nat = \"1m\"\ndo = \"goaway\"\nconnection = 3\nleave_out = 2\n\
         [[connect]]\nuntil = \"2s\"\ndo = \"slow_settings\"\nafter = \"3s\"\n\
         [[key]]\nkey_id = \"KEY7654321\"\nteam_id = \"TEAM123456\"\nenvironment = \"sandbox\"\nuntil = \"3s\"\n\
         [[device]]\ntoken = \"aabb\"\nstate = \"throttled\"\nat = \"4s\"\n",
        |_| Ok(key()),
    )
    .unwrap();
    let second = Duration::from_secs(1);
    let slow = Latency { min: second * 3, max: second * 3 };
    let socket = Address::Socket("127.0.0.2:2197".parse().unwrap());
    let go_away = GoAway { last_stream: LastStream::LeaveOut(2), ..GoAway::default() };
    let settings =
        ConnectFault { when: When::default(), action: ConnectAction::SlowSettings { after: slow } };
    let number = usize::MAX / 2;
    assert_eq!(
        script.steps,
        [
            (Duration::ZERO, Step::Connect(number, settings)),
            (second * 2, Step::End(number)),
            (second * 3, Step::Revoke("KEY7654321".into())),
            (second * 4, Step::Device("aabb".into(), DeviceState::Throttled)),
            (second * 5, Step::Fault(0, Fault::latency(second, second).address(1))),
            (second * 10, Step::Order(Target::Address(socket), Order::Silence)),
            (second * 15, Step::End(0)),
            (second * 20, Step::Heal(Target::Address(Address::Number(2)))),
            (second * 60, Step::Order(Target::Connection(3), Order::GoAway(go_away))),
        ]
    );
    assert_eq!(script.keys[0].environment, Some(Environment::Sandbox));
    assert!(script.faults.is_empty() && script.connect_faults.is_empty());
}
