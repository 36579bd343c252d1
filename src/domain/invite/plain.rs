//! Reads an invite in one go, as long as nothing about it is odd.
//!
//! It says nothing about what it does not take: a mistake, a fault of one device, a field that is not known. All that is for
//! the reading level by level, which names it. Where this one takes an invite, both come to the same, as a property shows.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;

use super::{Device, Invite, Rules, TEXT_BYTES_MAX, mark_duplicates, payload_members};
use crate::domain::app::Environment;
use crate::domain::id::{CallId, DeviceToken};
use crate::domain::json::{Object, Text};
use crate::domain::timestamp::Timestamp;

/// The most that `worker.devices_max` can be.
const DEVICES_MAX: usize = 1000;

/// The invite; `None` where anything is odd.
pub(super) fn read(text: &str, rules: &Rules, now: Timestamp) -> Option<Invite> {
    let fields: Fields<'_> = serde_json::from_str::<Members<_>>(text).ok()?.0;
    let call_id = CallId::parse(given(fields.call_id)?.as_str())?;
    let name = given(fields.app)?;
    let app = rules.apps.iter().find(|app| app.name == name.as_str())?;
    let deadline = Timestamp::parse(given(fields.deadline)?.as_str())?;
    if deadline.since(now) > rules.deadline_max {
        return None;
    }
    let created_at = instant(given(fields.created_at))?;
    let caller = given(fields.caller).map(|caller| caller.0).unwrap_or_default();
    let (handle, name) = (short_text(given(caller.handle))?, short_text(given(caller.name))?);
    let given_devices = given(fields.devices)?.0;
    if given_devices.is_empty() || given_devices.len() > rules.devices_max {
        return None;
    }
    let mut devices = Vec::with_capacity(given_devices.len());
    for fields in given_devices {
        devices.push(device(fields.0, app.environment)?);
    }
    mark_duplicates(&mut devices);
    let payload = match given(fields.payload) {
        Some(payload) => {
            let taken = |key: &str| key == "aps" || app.payload.is_set_by_worker(key);
            if payload.members().any(|(key, _)| taken(key)) {
                return None;
            }
            payload_members(&payload)
        }
        None => String::new(),
    };
    Some(Invite {
        call_id,
        app: app.clone(),
        deadline,
        created_at,
        handle,
        name,
        has_video: given(fields.has_video),
        devices,
        payload,
        unknown_fields: 0,
    })
}

fn device(fields: DeviceFields<'_>, environment: Environment) -> Option<Device> {
    let token = DeviceToken::new(given(fields.token)?.as_str());
    if !token.is_well_formed() {
        return None;
    }
    let environment = match given(fields.environment) {
        Some(name) => Environment::parse(name.as_str())?,
        None => environment,
    };
    let id = short_text(given(fields.id))?.filter(|id: &Arc<str>| !id.is_empty());
    let registered_at = instant(given(fields.registered_at))?;
    Some(Device { token, id, environment, registered_at, fault: None, duplicate: false })
}

/// An instant, if there is one; the outer `None` for an odd one.
#[expect(clippy::option_option, reason = "absent is not odd")]
fn instant(text: Option<Text<'_>>) -> Option<Option<Timestamp>> {
    match text {
        Some(text) => Timestamp::parse(text.as_str()).map(Some),
        None => Some(None),
    }
}

/// A text, if there is one; the outer `None` for one that is too long.
#[expect(clippy::option_option, reason = "absent is not odd")]
fn short_text<T: for<'a> From<&'a str>>(text: Option<Text<'_>>) -> Option<Option<T>> {
    match text {
        Some(text) => (text.as_str().len() <= TEXT_BYTES_MAX).then(|| Some(text.as_str().into())),
        None => Some(None),
    }
}

/// A field as it was read: `None` before its key came, `Some(None)` for null, which counts as absent.
type Field<T> = Option<Option<T>>;

fn given<T>(field: Field<T>) -> Option<T> {
    field.flatten()
}

#[derive(Default)]
struct Fields<'a> {
    call_id: Field<Text<'a>>,
    app: Field<Text<'a>>,
    deadline: Field<Text<'a>>,
    created_at: Field<Text<'a>>,
    caller: Field<Members<CallerFields<'a>>>,
    has_video: Field<bool>,
    devices: Field<Devices<'a>>,
    payload: Field<Object<'a>>,
}

#[derive(Default)]
struct CallerFields<'a> {
    handle: Field<Text<'a>>,
    name: Field<Text<'a>>,
}

#[derive(Default)]
struct DeviceFields<'a> {
    token: Field<Text<'a>>,
    environment: Field<Text<'a>>,
    id: Field<Text<'a>>,
    registered_at: Field<Text<'a>>,
}

/// What is read of an object, member by member.
trait Take<'de>: Default {
    /// Takes the value of a key. An error for a key that is not known or stands twice, and for a value that is odd.
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

impl<'de> Take<'de> for Fields<'de> {
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "call_id" => once(&mut self.call_id, map),
            "app" => once(&mut self.app, map),
            "deadline" => once(&mut self.deadline, map),
            "created_at" => once(&mut self.created_at, map),
            "caller" => once(&mut self.caller, map),
            "has_video" => once(&mut self.has_video, map),
            "devices" => once(&mut self.devices, map),
            "payload" => once(&mut self.payload, map),
            _ => Err(odd()),
        }
    }
}

impl<'de> Take<'de> for CallerFields<'de> {
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "handle" => once(&mut self.handle, map),
            "name" => once(&mut self.name, map),
            _ => Err(odd()),
        }
    }
}

impl<'de> Take<'de> for DeviceFields<'de> {
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "token" => once(&mut self.token, map),
            "environment" => once(&mut self.environment, map),
            "id" => once(&mut self.id, map),
            "registered_at" => once(&mut self.registered_at, map),
            _ => Err(odd()),
        }
    }
}

fn once<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    field: &mut Field<T>,
    map: &mut A,
) -> Result<(), A::Error> {
    match field.replace(map.next_value()?) {
        None => Ok(()),
        Some(_) => Err(odd()),
    }
}

fn odd<E: Error>() -> E {
    E::custom("odd")
}

/// An object, and nothing but an object: serde's own readers would take a list, too.
struct Members<T>(T);

impl<'de, T: Take<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

struct MembersVisitor<T>(PhantomData<T>);

/// Devices, and not more of them than any setting allows: those of a huge invite are not even held.
struct Devices<'a>(SmallVec<[Members<DeviceFields<'a>>; 1]>);

impl<'de> Deserialize<'de> for Devices<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(DevicesVisitor)
    }
}

struct DevicesVisitor;

impl<'de> Visitor<'de> for DevicesVisitor {
    type Value = Devices<'de>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("devices")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut devices = SmallVec::new();
        while let Some(device) = list.next_element()? {
            if devices.len() == DEVICES_MAX {
                return Err(odd());
            }
            devices.push(device);
        }
        Ok(Devices(devices))
    }
}

impl<'de, T: Take<'de>> Visitor<'de> for MembersVisitor<T> {
    type Value = Members<T>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = T::default();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            members.take(key.as_str(), &mut map)?;
        }
        Ok(Members(members))
    }
}
