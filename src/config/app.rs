//! `[apps.NAME]`: how an app's pushes look.

use std::collections::BTreeMap;
use std::time::Duration;

use super::mistake::show;
use super::reader::Reader;
use super::section::Section;
use crate::domain::app::{App, Environment, PayloadKeys};

/// Longer names of keys waste a push that holds 5120 bytes.
const KEY_BYTES_MAX: usize = 64;

/// Every app that a file or the environment names, by name.
pub(super) fn read(reader: &mut Reader) -> Vec<App> {
    let names = reader.tables_below("apps");
    if names.is_empty() {
        reader
            .section(&["apps"])
            .refuse_table("no app is configured; add one as [apps.NAME], with bundle_id and auth");
    }
    names.iter().enumerate().map(|(index, name)| read_app(reader, index, name)).collect()
}

fn read_app(reader: &mut Reader, index: usize, name: &str) -> App {
    let mut app = reader.section(&["apps", name]);
    if let Err(what) = check_name(name) {
        app.refuse_table(&what);
    }
    let bundle_id =
        app.required("bundle_id", "the app's bundle id, as in \"com.acme.voice\"", check_bundle_id);
    let environment =
        app.word("environment", &Environment::ALL.map(|environment| (environment.as_str(), environment)));
    let expiration_max = app.duration(
        "expiration_max",
        Duration::ZERO..=Duration::from_mins(10),
        "no deadline lies further ahead",
    );
    let payload = read_payload(&mut reader.section(&["apps", name, "payload"]));
    let bundle_id = bundle_id.unwrap_or_default();
    App { index, name: name.to_owned(), bundle_id, environment, expiration_max, payload }
}

fn check_name(name: &str) -> Result<(), String> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(letter) {
        return Err("is not a name for an app; give 1 to 64 of a-z 0-9 _ -".to_owned());
    }
    if name == "malformed" {
        return Err("is the routing key of unreadable invites; give the app another name".to_owned());
    }
    Ok(())
}

/// Apple, *`CFBundleIdentifier`*: letters, digits, hyphens and periods.
fn check_bundle_id(text: &str) -> Result<String, String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let right = "give letters, digits, \"-\" and \".\" alone, as in \"com.acme.voice\"";
    if text.is_empty() || text.len() > 255 || !text.chars().all(letter) {
        return Err(format!("is not a bundle id; {right}"));
    }
    if text.to_ascii_lowercase().ends_with(".voip") {
        return Err("ends in \".voip\", which the worker appends itself; leave it off".to_owned());
    }
    Ok(text.to_owned())
}

fn read_payload(payload: &mut Section<'_>) -> PayloadKeys {
    let mut key = |name: &str| payload.text(name, check_key);
    let keys = PayloadKeys {
        call_id: key("call_id"),
        handle: key("handle"),
        name: key("name"),
        has_video: key("has_video"),
        deadline: key("deadline"),
        opaque: payload.boolean("opaque"),
    };
    let named = [
        ("call_id", &keys.call_id),
        ("handle", &keys.handle),
        ("name", &keys.name),
        ("has_video", &keys.has_video),
        ("deadline", &keys.deadline),
    ];
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for (field, key) in named.into_iter().filter(|(_, key)| !key.is_empty()) {
        if let Some(earlier) = first.insert(key, field) {
            // The place to point at is the one that somebody wrote.
            let (wrong, other) = if payload.is_set(field) { (field, earlier) } else { (earlier, field) };
            payload
                .refuse(wrong, &format!("{} is the name of {other} as well; give each its own", show(key)));
        }
    }
    keys
}

fn check_key(key: &str) -> Result<String, String> {
    if key == "aps" {
        return Err("belongs to Apple; give another name".to_owned());
    }
    if key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control) {
        return Err(format!(
            "is not a name for a key; give at most {KEY_BYTES_MAX} bytes, no control characters"
        ));
    }
    Ok(key.to_owned())
}
