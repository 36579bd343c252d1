//! What outcomes say of times: in order, and no other story than their entries tell.

use std::collections::BTreeMap;

use ringcast::domain::timestamp::Timestamp;
use serde_json::Value;

use super::Story;

/// The timeline of each outcome that has one.
pub fn timelines_agree_with_the_entries(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for told in story.outcomes.values().flatten() {
        let outcome = &told.outcome;
        let (Some(steps), Some(devices)) = (outcome["timeline"].as_array(), outcome["devices"].as_array())
        else {
            continue;
        };
        let mut wrong = |what: &str| report(format!("{what}: {outcome}"));
        check_order(outcome, steps, &mut wrong);
        if steps.iter().any(|step| step["stage"] == "omitted") {
            continue;
        }
        for (number, entry) in devices.iter().enumerate() {
            let own: Vec<&Value> = steps.iter().filter(|step| step["device"] == number).collect();
            check_device(entry, &own, &mut wrong);
        }
    }
}

fn check_order(outcome: &Value, steps: &[Value], wrong: &mut impl FnMut(&str)) {
    let at = |step: &Value| step["at"].as_str().and_then(Timestamp::parse).expect("every step says when");
    if !steps.is_sorted_by_key(at) {
        wrong("its steps are not in order of time");
    }
    let stages = |stage: &str| steps.iter().filter(|step| step["stage"] == stage).collect::<Vec<_>>();
    for (stage, field) in [("received", "received_at"), ("settled", "settled_at")] {
        match stages(stage)[..] {
            [only] if only["at"] == outcome[field] => {}
            _ => wrong(&format!("it is not {stage} once, and then")),
        }
    }
    if steps.first().map(|step| &step["stage"]) != Some(&Value::from("received")) {
        wrong("nobody says here when calls are created, and it does not begin when it was received");
    }
    if steps.last().map(|step| &step["stage"]) != Some(&Value::from("settled")) {
        wrong("something happened after it was settled");
    }
}

/// Every attempt ends once, unless its answer comes late, and was written once at most, before that; a retry comes before every further one.
fn check_device(entry: &Value, steps: &[&Value], wrong: &mut impl FnMut(&str)) {
    let mut of_attempt: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for step in steps {
        let stage = step["stage"].as_str().unwrap_or_default();
        if let Some(attempt) = step["attempt"].as_u64() {
            of_attempt.entry(attempt).or_default().push(stage);
        } else if stage != "unsent" {
            wrong("a step without its attempt");
        }
    }
    let attempts = entry["attempts"].as_u64().unwrap_or_default();
    // A retry that was not attempted any more is told, too.
    let made = of_attempt.iter().filter(|(_, stages)| stages[..] != ["retry"]).count();
    if made as u64 != attempts {
        wrong("another number of attempts");
    }
    for (attempt, stages) in &of_attempt {
        let rest = if *attempt > 1 { stages.strip_prefix(&["retry"]) } else { Some(&stages[..]) };
        let is_right = match rest {
            Some([]) => *attempt == attempts + 1,
            // Answered after it was unanswered: late, and what decided.
            Some(
                ["written", "answered" | "unanswered" | "unprocessed"]
                | ["written", "unanswered", "answered"]
                | ["unprocessed"],
            ) => true,
            _ => false,
        };
        if !is_right {
            wrong(&format!("attempt {attempt} went {stages:?}"));
        }
    }
    let answered = steps.iter().rfind(|step| step["stage"] == "answered");
    if answered.map(|step| (&step["status"], &step["reason"]))
        != entry["status"].is_u64().then_some((&entry["status"], &entry["reason"]))
    {
        wrong("another last answer");
    }
}
