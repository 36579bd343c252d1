//! An invite: somebody calls, these devices shall ring, until this deadline.
//!
//! Reading is strict and says everything that is wrong at once: the field, what was found, what would be right. A fault
//! of one device stays with that device; the others ring. Most invites have no fault: `plain.rs` reads those in one go.

mod plain;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::app::{App, Environment};
use super::id::{CallId, DeviceToken};
use super::json::{Key, Object, Writer, kind_of};
use super::timestamp::Timestamp;

/// Bytes of `caller.handle`, `caller.name` and `devices[].id` at most.
const TEXT_BYTES_MAX: usize = 256;

/// How far ahead `created_at` may lie before it is a sign of a skewed clock.
const SKEW_TOLERATED: Duration = Duration::from_secs(2);

/// The fields of an invite.
const FIELDS: [&str; 8] =
    ["call_id", "app", "deadline", "created_at", "caller", "has_video", "devices", "payload"];
/// Those of `caller`.
const CALLER_FIELDS: [&str; 2] = ["handle", "name"];
/// Those of a device.
const DEVICE_FIELDS: [&str; 4] = ["token", "environment", "id", "registered_at"];

/// What an invite is measured by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The configured apps, by their index.
    pub apps: Vec<Arc<App>>,
    /// Devices at most.
    pub devices_max: usize,
    /// Bytes of the body at most.
    pub invite_bytes_max: usize,
    /// How far ahead a deadline may lie.
    pub deadline_max: Duration,
}

/// One call to one callee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// CallKit's `callUUID`.
    pub call_id: CallId,
    /// The app it is for.
    pub app: Arc<App>,
    /// From here on ringing is pointless.
    pub deadline: Timestamp,
    /// When the caller pressed call.
    pub created_at: Option<Timestamp>,
    /// The caller's number or address.
    pub handle: Option<String>,
    /// The caller's name.
    pub name: Option<String>,
    /// Whether it is a video call.
    pub has_video: Option<bool>,
    /// The devices in the invite's order, at least one.
    pub devices: Vec<Device>,
    /// The members of `payload` as JSON, without braces, each value as it was written.
    pub payload: String,
    /// How many fields the contract does not name.
    pub unknown_fields: usize,
}

/// One device of the callee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The token as given, in lower case.
    pub token: DeviceToken,
    /// The physical device, where the publisher knows it; an empty one counts as absent.
    pub id: Option<Arc<str>>,
    /// The device's, else the app's.
    pub environment: Environment,
    /// When the token was registered.
    pub registered_at: Option<Timestamp>,
    /// The rule that it breaks, and what would be right. Such a device is not pushed.
    pub fault: Option<String>,
    /// Another entry of the invite rings the same physical device or token.
    pub duplicate: bool,
}

impl Device {
    /// Whether both are surely one phone. One that breaks a rule says nothing about others.
    fn is_same_phone(&self, other: &Self) -> bool {
        let physical = self.id.is_some() && self.id == other.id;
        self.fault.is_none() && other.fault.is_none() && (physical || self.token == other.token)
    }
}

/// A message that is no invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// What is wrong, where, and what would be right.
    pub error: String,
    /// The call id, where it could be read.
    pub call_id: Option<CallId>,
    /// The app's name, where it could be read; configured or not.
    pub app: Option<String>,
    /// The app, where it is configured.
    pub known_app: Option<Arc<App>>,
}

impl Malformed {
    /// A message of which nothing could be read.
    pub fn unread(error: impl Into<String>) -> Self {
        Self { error: error.into(), call_id: None, app: None, known_app: None }
    }
}

impl Invite {
    /// Reads an invite. `now` is the instant of its admission.
    pub fn parse(body: &[u8], rules: &Rules, now: Timestamp) -> Result<Self, Malformed> {
        if body.len() > rules.invite_bytes_max {
            return Err(Malformed::unread(format!(
                "the body has {} bytes; an invite has at most {} (worker.invite_bytes_max)",
                body.len(),
                rules.invite_bytes_max
            )));
        }
        let text = std::str::from_utf8(body).map_err(|error| {
            Malformed::unread(format!(
                "the body is not UTF-8 from byte {} on; JSON must be",
                error.valid_up_to()
            ))
        })?;
        match plain::read(text, rules, now) {
            Some(invite) => Ok(invite),
            None => Self::parse_any(text, rules, now),
        }
    }

    /// Reads it level by level, for all that is wrong with it, or odd.
    fn parse_any(text: &str, rules: &Rules, now: Timestamp) -> Result<Self, Malformed> {
        let object =
            Object::parse_loose(text).map_err(|error| Malformed::unread(format!("the body {error}")))?;
        if let Some(twice) = object.twice(&FIELDS) {
            return Err(Malformed::unread(format!("in the body {twice}")));
        }
        Reader { rules, now, mistakes: Vec::new(), unknown_fields: 0 }.read(&object)
    }

    /// How far `created_at` lies in the future, where that is a sign of a skewed clock.
    pub fn skew(&self, now: Timestamp) -> Option<Duration> {
        let ahead = self.created_at?.since(now);
        (ahead > SKEW_TOLERATED).then_some(ahead)
    }
}

/// Reads one invite and collects what is wrong with it.
struct Reader<'r> {
    rules: &'r Rules,
    now: Timestamp,
    mistakes: Vec<String>,
    unknown_fields: usize,
}

impl Reader<'_> {
    fn read(mut self, object: &Object<'_>) -> Result<Invite, Malformed> {
        self.unknown_fields += object.unknown(&FIELDS);

        let call_id = self.call_id(object.value("call_id"));
        let app_name = self.required("app", object.value("app"), "a configured app's name");
        let app = app_name.as_deref().and_then(|name| self.app(name));
        let deadline = self.deadline(object.value("deadline"));
        let created_at = self.instant("created_at", object.value("created_at"));
        let (handle, name) = self.caller(object.value("caller"));
        let has_video = self.boolean("has_video", object.value("has_video"));
        let environment = app.as_ref().map_or(Environment::Production, |app| app.environment);
        let devices = self.devices(object.value("devices"), environment);
        let payload = self.payload(object.value("payload"), app.as_deref());

        match (call_id, app, deadline) {
            (Some(call_id), Some(app), Some(deadline)) if self.mistakes.is_empty() => Ok(Invite {
                call_id,
                app,
                deadline,
                created_at,
                handle,
                name,
                has_video,
                devices,
                payload,
                unknown_fields: self.unknown_fields,
            }),
            (call_id, known_app, _) => Err(Malformed {
                error: self.mistakes.join("; "),
                call_id,
                app: app_name.filter(|name| name.len() <= TEXT_BYTES_MAX),
                known_app,
            }),
        }
    }

    fn call_id(&mut self, value: Option<&RawValue>) -> Option<CallId> {
        let text = self.required("call_id", value, "a UUID")?;
        let call_id = CallId::parse(&text);
        if call_id.is_none() {
            self.wrong(format!("call_id is {}; it must be a UUID, 8-4-4-4-12 hex digits", shown(&text)));
        }
        call_id
    }

    fn app(&mut self, name: &str) -> Option<Arc<App>> {
        let app = self.rules.apps.iter().find(|app| app.name == name).cloned();
        if app.is_none() {
            let names: Vec<_> = self.rules.apps.iter().map(|app| app.name.as_str()).take(10).collect();
            self.wrong(format!(
                "app is {}; it must be one of the configured: {}",
                shown(name),
                names.join(", ")
            ));
        }
        app
    }

    fn deadline(&mut self, value: Option<&RawValue>) -> Option<Timestamp> {
        let Some(value) = value else {
            self.wrong("deadline is missing; it must be an RFC 3339 instant with a zone".to_owned());
            return None;
        };
        let deadline = self.instant("deadline", Some(value))?;
        let ahead = deadline.since(self.now);
        if ahead > self.rules.deadline_max {
            self.wrong(format!(
                "deadline is {} s ahead; it must be at most {} s ahead (worker.deadline_max)",
                ahead.as_secs(),
                self.rules.deadline_max.as_secs()
            ));
            return None;
        }
        Some(deadline)
    }

    fn caller(&mut self, value: Option<&RawValue>) -> (Option<String>, Option<String>) {
        let Some(value) = value else { return (None, None) };
        match Object::parse_loose(value.get()) {
            Ok(caller) => {
                self.unknown_fields += caller.unknown(&CALLER_FIELDS);
                if let Some(twice) = caller.twice(&CALLER_FIELDS) {
                    self.wrong(format!("in caller {twice}"));
                }
                let handle = self.short_text("caller.handle", caller.value("handle"));
                (handle, self.short_text("caller.name", caller.value("name")))
            }
            Err(error) => {
                self.wrong(format!("caller {error}"));
                (None, None)
            }
        }
    }

    fn devices(&mut self, value: Option<&RawValue>, environment: Environment) -> Vec<Device> {
        let most = self.rules.devices_max;
        let Some(value) = value else {
            self.wrong(format!("devices is missing; it must be a list of 1 to {most} objects"));
            return Vec::new();
        };
        let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(value.get()) else {
            let kind = kind_of(value.get());
            self.wrong(format!("devices must be a list of 1 to {most} objects, but is {kind}"));
            return Vec::new();
        };
        if elements.is_empty() || elements.len() > most {
            let count = elements.len();
            self.wrong(format!(
                "devices has {count} elements; it must have 1 to {most} (worker.devices_max)"
            ));
            return Vec::new();
        }
        let mut devices: Vec<Device> = Vec::with_capacity(elements.len());
        for (place, element) in elements.into_iter().enumerate() {
            if let Some(device) = self.device(place, element, environment) {
                devices.push(device);
            }
        }
        mark_duplicates(&mut devices);
        devices
    }

    fn device(&mut self, place: usize, element: &RawValue, environment: Environment) -> Option<Device> {
        let object = match Object::parse_loose(element.get()) {
            Ok(object) => object,
            Err(error) => {
                self.wrong(format!("devices[{place}] {error}"));
                return None;
            }
        };
        self.unknown_fields += object.unknown(&DEVICE_FIELDS);
        let token =
            self.required(&format!("devices[{place}].token"), object.value("token"), "a text of hex digits")?;
        let token = DeviceToken::new(&token);

        // From here on a mistake is this device's own.
        let mut own = Reader { rules: self.rules, now: self.now, mistakes: Vec::new(), unknown_fields: 0 };
        own.mistakes.extend(object.twice(&DEVICE_FIELDS).into_iter().chain(token.fault()));
        let environment = own.environment(object.value("environment")).unwrap_or(environment);
        let id = own.short_text("id", object.value("id")).filter(|id| !id.is_empty());
        let registered_at = own.instant("registered_at", object.value("registered_at"));
        let fault = (!own.mistakes.is_empty()).then(|| own.mistakes.join("; "));
        let id = id.map(Into::into);
        Some(Device { token, id, environment, registered_at, fault, duplicate: false })
    }

    fn environment(&mut self, value: Option<&RawValue>) -> Option<Environment> {
        let name = self.text("environment", value)?;
        let environment = Environment::parse(&name);
        if environment.is_none() {
            self.wrong(format!("environment is {}; it must be \"production\" or \"sandbox\"", shown(&name)));
        }
        environment
    }

    fn payload(&mut self, value: Option<&RawValue>, app: Option<&App>) -> String {
        let Some(value) = value else { return String::new() };
        let object = match Object::parse(value.get()) {
            Ok(object) => object,
            Err(error) => {
                self.wrong(format!("payload {error}"));
                return String::new();
            }
        };
        for (key, _) in object.members() {
            if key == "aps" || app.is_some_and(|app| app.payload.is_set_by_worker(key)) {
                self.wrong(format!(
                    "payload holds the key {}, which the worker sets; use another name",
                    shown(key)
                ));
            }
        }
        payload_members(&object)
    }

    fn required(&mut self, field: &str, value: Option<&RawValue>, wanted: &str) -> Option<String> {
        if value.is_none() {
            self.wrong(format!("{field} is missing; it must be {wanted}"));
        }
        self.text(field, value)
    }

    fn text(&mut self, field: &str, value: Option<&RawValue>) -> Option<String> {
        self.typed(field, value, "a text")
    }

    fn short_text(&mut self, field: &str, value: Option<&RawValue>) -> Option<String> {
        let text = self.text(field, value)?;
        if text.len() > TEXT_BYTES_MAX {
            self.wrong(format!("{field} has {} bytes; it must have at most {TEXT_BYTES_MAX}", text.len()));
            return None;
        }
        Some(text)
    }

    fn boolean(&mut self, field: &str, value: Option<&RawValue>) -> Option<bool> {
        self.typed(field, value, "a boolean")
    }

    fn instant(&mut self, field: &str, value: Option<&RawValue>) -> Option<Timestamp> {
        let text = self.text(field, value)?;
        let instant = Timestamp::parse(&text);
        if instant.is_none() {
            self.wrong(format!(
                "{field} is {}; it must be an RFC 3339 instant with a zone, like \"2026-11-21T09:30:30.000Z\"",
                shown(&text)
            ));
        }
        instant
    }

    fn typed<T: for<'de> Deserialize<'de>>(
        &mut self,
        field: &str,
        value: Option<&RawValue>,
        wanted: &str,
    ) -> Option<T> {
        let json = value?.get();
        match serde_json::from_str(json) {
            Ok(value) => Some(value),
            Err(error) if kind_of(json) == wanted => {
                self.wrong(format!("{field} cannot be read: {error}; it must be {wanted}"));
                None
            }
            Err(_) => {
                self.wrong(format!("{field} must be {wanted}, but is {}", kind_of(json)));
                None
            }
        }
    }

    fn wrong(&mut self, mistake: String) {
        const MISTAKES_MAX: usize = 10;
        if self.mistakes.len() < MISTAKES_MAX {
            self.mistakes.push(mistake);
        }
    }
}

/// The members of a payload as they go into a push.
fn payload_members(payload: &Object<'_>) -> String {
    let members = Writer::written(|members| {
        for (key, value) in payload.members() {
            members.raw(Key::Theirs(key), value.get());
        }
    });
    String::from_utf8(members).expect("made of texts")
}

/// Marks all but one entry of each phone. Entries are of one phone where they share a token or an id, or where others link
/// them so. The one that stays is the first; where that says when it was registered, the latest of those that do, because a
/// reinstalled app leaves its old token behind.
fn mark_duplicates(devices: &mut [Device]) {
    if devices.len() < 2 {
        return;
    }
    // For each entry, its phone's first.
    let mut firsts: SmallVec<[usize; 16]> = (0..devices.len()).collect();
    for (later, device) in devices.iter().enumerate() {
        for (earlier, other) in devices[..later].iter().enumerate() {
            let (one, two) = (firsts[earlier], firsts[later]);
            if one != two && other.is_same_phone(device) {
                let (first, linked) = (one.min(two), one.max(two));
                firsts.iter_mut().filter(|entry| **entry == linked).for_each(|entry| *entry = first);
            }
        }
    }
    // For each phone, by its first entry, the one that rings.
    let mut ringing: SmallVec<[usize; 16]> = (0..devices.len()).collect();
    for (device, (place, first)) in devices.iter().zip(firsts.iter().enumerate()) {
        let held = devices[ringing[*first]].registered_at;
        if held.is_some() && device.registered_at > held {
            ringing[*first] = place;
        }
    }
    for (device, (place, first)) in devices.iter_mut().zip(firsts.iter().enumerate()) {
        device.duplicate = ringing[*first] != place;
    }
}

/// A text from outside in an error: quoted, escaped, and cut where it is long.
fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    match text.char_indices().nth(CHARS_MAX) {
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
#[path = "invite_tests.rs"]
pub(crate) mod tests;
