//! Results as lines for people. They may have come from anywhere: nothing in them reaches the terminal but plain characters.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::Value;

use crate::domain::timestamp::Timestamp;

/// Characters of a device token that are shown.
const TOKEN_CHARS: usize = 8;
/// What a timeline's entry says beside when, what and of which device.
const TIMELINE_KEYS: [&str; 3] = ["at", "stage", "device"];

/// One line: when, what, of which app and call, and what there is to know at one look.
pub(super) fn line(result: &Value) -> String {
    match result["type"].as_str() {
        Some("ringcast.outcome.v1") => outcome(result),
        Some("ringcast.invalid-token.v1") => token_event(result),
        _ => format!("a result of another kind: {}", text(&result["type"])),
    }
}

/// The line, what became of each device, and when each thing happened, with line ends.
pub(super) fn story(result: &Value) -> String {
    let mut story = line(result) + "\n";
    let Some(devices) = result["devices"].as_array() else { return story };
    for device in devices {
        // Writing to a `String` cannot fail.
        let _ = writeln!(story, "  {:<12} {}", name(device), device_line(device));
    }
    match result["timeline"].as_array() {
        Some(timeline) => tell(&mut story, result, devices, timeline),
        None => story.push_str("  (no timeline: set worker.timeline = true)\n"),
    }
    story
}

fn outcome(result: &Value) -> String {
    let devices = result["devices"].as_array().map_or(0, Vec::len);
    let mut line = format!(
        "{} {:<13} {:<10} {}",
        time_of_day(&result["settled_at"]),
        text(&result["result"]),
        text(&result["app"]),
        text(&result["call_id"])
    );
    let _ = match devices {
        0 => Ok(()),
        1 => write!(line, "  1 device"),
        many => write!(line, "  {many} devices"),
    };
    if let Some(took) = ms_between(&result["received_at"], &result["settled_at"]) {
        let _ = write!(line, "  {took} ms");
    }
    if let Some(left) = ms_between(&result["settled_at"], &result["deadline"]) {
        let _ = write!(line, "  {left} ms left");
    }
    if result["redelivered"] == true {
        line.push_str("  redelivered");
    }
    if result["result"] != "accepted" {
        why(&mut line, result["devices"].as_array().map_or(&[], Vec::as_slice));
    }
    for (label, key) in [("", "error"), ("worker ", "worker")] {
        if result.get(key).is_some() {
            let _ = write!(line, "  {label}{}", text(&result[key]));
        }
    }
    line
}

/// What became of the devices, alike ones once with their number.
fn why(line: &mut String, devices: &[Value]) {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for said in devices.iter().map(verdict) {
        match counted.iter_mut().find(|(known, _)| *known == said) {
            Some((_, count)) => *count += 1,
            None => counted.push((said, 1)),
        }
    }
    for (said, count) in counted {
        let _ = match count {
            1 => write!(line, "  {said}"),
            many => write!(line, "  {many} × {said}"),
        };
    }
}

fn token_event(event: &Value) -> String {
    let mut line = format!(
        "{} {:<13} {:<10} {}  token {}",
        time_of_day(&event["observed_at"]),
        format!("token {}", text(&event["confidence"])),
        text(&event["app"]),
        text(&event["call_id"]),
        short(&event["token"])
    );
    for key in ["device_id", "environment", "status", "reason", "invalid_since"] {
        if event.get(key).is_some() {
            let _ = write!(line, "  {}", text(&event[key]));
        }
    }
    line
}

/// What became of a device, and whose turn it is.
fn verdict(device: &Value) -> String {
    let mut verdict = text(&device["result"]);
    for key in ["status", "reason", "stage"] {
        if device.get(key).is_some() {
            let _ = write!(verdict, " {}", text(&device[key]));
        }
    }
    if device.get("action").is_some_and(|action| action != "none") {
        let _ = write!(verdict, " → {}", text(&device["action"]));
    }
    verdict
}

fn device_line(device: &Value) -> String {
    let mut line = verdict(device);
    let _ = write!(line, "  attempts {}", text(&device["attempts"]));
    if device.get("latency_ms").is_some() {
        let _ = write!(line, ", {} ms", text(&device["latency_ms"]));
    }
    if device.get("error").is_some() {
        let _ = write!(line, "  {}", text(&device["error"]));
    }
    line
}

/// Each thing with its time since the worker took the invite.
fn tell(story: &mut String, result: &Value, devices: &[Value], timeline: &[Value]) {
    for entry in timeline {
        let after = ms_between(&result["received_at"], &entry["at"]);
        let after = after.map_or_else(|| "?".to_owned(), |after| format!("{after:+} ms"));
        let _ = write!(story, "  {after:>12}  {:<10}", text(&entry["stage"]));
        let device = entry["device"].as_u64().and_then(|index| devices.get(usize::try_from(index).ok()?));
        if let Some(device) = device {
            let _ = write!(story, " {:<12}", name(device));
        }
        let further = entry.as_object().into_iter().flatten();
        for (key, value) in further.filter(|(key, _)| !TIMELINE_KEYS.contains(&key.as_str())) {
            let _ = write!(story, " {} {}", plain(key), text(value));
        }
        while story.ends_with(' ') {
            story.pop();
        }
        story.push('\n');
    }
}

/// What a device is called: as its publisher does, else by its token.
fn name(device: &Value) -> String {
    if device.get("id").is_some() { text(&device["id"]) } else { short(&device["token"]) }
}

fn short(token: &Value) -> String {
    let token = text(token);
    match token.char_indices().nth(TOKEN_CHARS) {
        Some((end, _)) => format!("{}…", &token[..end]),
        None => token,
    }
}

/// A value in words; absent: a dash.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        other => plain(&other.to_string()),
    }
}

/// Without the characters that steer a terminal or turn its text around.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if steers(letter) { '\u{fffd}' } else { letter }).collect()
}

/// JSON on one line without them: they stand in strings alone, where JSON has another way to write them.
pub(super) fn escaped(json: &str) -> Cow<'_, str> {
    if !json.contains(steers) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len() + 6);
    for letter in json.chars() {
        // Between strings a tab may stand, and nothing else that steers.
        if letter == '\t' {
            text.push(' ');
        } else if steers(letter) {
            // Writing to a `String` cannot fail. None is beyond the 16 bits of such an escape.
            let _ = write!(text, "\\u{:04x}", u32::from(letter));
        } else {
            text.push(letter);
        }
    }
    Cow::Owned(text)
}

/// Whether a character steers a terminal or turns its text around.
fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `20:14:03.512Z` of an instant.
fn time_of_day(at: &Value) -> String {
    let at = text(at);
    at.split_once('T').map_or(at.clone(), |(_, time)| time.to_owned())
}

fn ms_between(from: &Value, to: &Value) -> Option<i64> {
    let unix_ms = |value: &Value| Some(Timestamp::parse(value.as_str()?)?.unix_ms());
    Some(unix_ms(to)? - unix_ms(from)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TOKEN: &str = "1b4f9a2c00000000000000000000000000000000000000000000000000000000";

    fn accepted() -> Value {
        json!({
            "type": "ringcast.outcome.v1", "call_id": "6f1c", "app": "acme", "result": "accepted", "worker": "ringcast-7c9f",
            "deadline": "2026-11-21T20:14:33.500Z", "received_at": "2026-11-21T20:14:03.500Z",
            "settled_at": "2026-11-21T20:14:03.589Z", "redelivered": false,
            "devices": [
                {"token": TOKEN, "id": "phone-1", "environment": "production", "result": "accepted", "action": "none",
                 "status": 200, "attempts": 1, "latency_ms": 84},
                {"token": TOKEN, "environment": "production", "result": "invalid_token", "action": "drop_token",
                 "status": 410, "reason": "Unregistered", "attempts": 1, "latency_ms": 61},
            ],
        })
    }

    #[test]
    fn an_outcome_is_one_line() {
        assert_eq!(
            line(&accepted()),
            "20:14:03.589Z accepted      acme       6f1c  2 devices  89 ms  29911 ms left  worker ringcast-7c9f"
        );
        let mut dead = accepted();
        dead["result"] = "undeliverable".into();
        dead["devices"][0] = dead["devices"][1].clone();
        assert_eq!(
            line(&dead),
            "20:14:03.589Z undeliverable acme       6f1c  2 devices  89 ms  29911 ms left  \
             2 × invalid_token 410 Unregistered → drop_token  worker ringcast-7c9f"
        );
        let malformed = json!({"type": "ringcast.outcome.v1", "result": "malformed", "worker": "w",
            "received_at": "2026-11-21T20:14:03.500Z", "settled_at": "2026-11-21T20:14:03.500Z", "redelivered": true,
            "error": "call_id: is missing"});
        assert_eq!(
            line(&malformed),
            "20:14:03.500Z malformed     -          -  0 ms  redelivered  call_id: is missing  worker w"
        );
    }

    #[test]
    fn a_token_event_shows_a_part_of_the_token() {
        let event = json!({"type": "ringcast.invalid-token.v1", "token": TOKEN, "device_id": "phone-2", "app": "acme",
            "environment": "sandbox", "confidence": "dead", "status": 410, "reason": "Unregistered",
            "observed_at": "2026-11-21T20:14:03.561Z", "call_id": "6f1c"});
        assert_eq!(
            line(&event),
            "20:14:03.561Z token dead    acme       6f1c  token 1b4f9a2c…  phone-2  sandbox  410  Unregistered"
        );
    }

    #[test]
    fn a_story_has_devices_and_times() {
        let mut outcome = accepted();
        let story_of =
            |outcome: &Value| story(outcome).lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        let devices = [
            "  phone-1      accepted 200  attempts 1, 84 ms",
            "  1b4f9a2c…    invalid_token 410 Unregistered → drop_token  attempts 1, 61 ms",
        ];
        assert_eq!(story_of(&outcome)[..2], devices);
        assert_eq!(story_of(&outcome)[2], "  (no timeline: set worker.timeline = true)");
        outcome["timeline"] = json!([
            {"at": "2026-11-21T20:14:03.480Z", "stage": "created"},
            {"at": "2026-11-21T20:14:03.500Z", "stage": "received"},
            {"at": "2026-11-21T20:14:03.584Z", "stage": "answered", "device": 0, "attempt": 1, "status": 200},
        ]);
        assert_eq!(
            story_of(&outcome)[2..],
            [
                "        -20 ms  created",
                "         +0 ms  received",
                "        +84 ms  answered   phone-1      attempt 1 status 200",
            ]
        );
    }

    #[test]
    fn nothing_in_a_result_steers_the_terminal() {
        let evil = json!({"type": "ringcast.outcome.v1", "result": "\u{1b}[2J", "app": "a\u{202e}b", "call_id": "x\ny",
            "error": "\u{9b}31m", "devices": [{"id": "\u{7}", "token": "\r", "reason": "\u{1b}]0;t\u{7}"}],
            "timeline": [{"stage": "\u{1b}c", "\u{1b}": 1}]});
        let shown = story(&evil);
        let odd: Vec<char> = shown.chars().filter(|letter| letter.is_control() && *letter != '\n').collect();
        assert!(odd.is_empty() && !shown.contains('\u{202e}'), "{shown:?}");
        assert_eq!(shown.lines().count(), 3, "{shown:?}");
    }
}
