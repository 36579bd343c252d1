//! One level of a JSON object: its keys, each with its value as it was written.
//!
//! Reading level by level gives every mistake a name, counts what nobody knows, and copies a payload to the push byte for
//! byte, numbers of any size included.

mod write;

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

pub use write::{Key, Writer};

/// The members of one JSON object in their order. Values are not looked into.
#[derive(Debug, Default)]
pub struct Object<'a>(Vec<(Text<'a>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// Reads one object, in which no key stands twice. `Err` is a sentence without a subject: "must be an object, but is a text".
    pub fn parse(json: &'a str) -> Result<Self, String> {
        read(json)
    }

    /// Reads one object, in which keys may stand twice: [`Object::twice`] tells. `Err` as above.
    pub fn parse_loose(json: &'a str) -> Result<Self, String> {
        read::<Loose<'a>>(json).map(|loose| loose.0)
    }

    /// What is wrong where one of these keys stands twice.
    pub fn twice(&self, keys: &[&str]) -> Option<String> {
        let times = |key: &str| self.0.iter().filter(|(name, _)| name.as_str() == key).count();
        let key = keys.iter().find(|key| times(key) > 1)?;
        Some(format!("the key `{key}` stands twice; it must stand once"))
    }

    /// The members in their order.
    pub fn members(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), *value))
    }

    /// The value of a key, of the first where it stands twice; `None` when it is absent or null.
    pub fn value(&self, key: &str) -> Option<&'a RawValue> {
        let value = self.0.iter().find(|(name, _)| name.as_str() == key).map(|(_, value)| *value)?;
        (value.get() != "null").then_some(value)
    }

    /// How many keys are not in `known`.
    pub fn unknown(&self, known: &[&str]) -> usize {
        self.0.iter().filter(|(key, _)| !known.contains(&key.as_str())).count()
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    let kind = kind_of(json);
    if kind != "an object" && serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok() {
        return Err(format!("must be an object, but is {kind}"));
    }
    serde_json::from_str(json).map_err(|error| format!("must be a JSON object: {error}"))
}

/// What a JSON value is, with its article, from its first character.
pub fn kind_of(json: &str) -> &'static str {
    match json.trim_start().bytes().next() {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "a text",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        Some(b'-' | b'0'..=b'9') => "a number",
        _ => "no JSON",
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Loose::deserialize(deserializer)?.0;
        match twice(&object.0) {
            Some(key) => Err(serde::de::Error::custom(format_args!("the key `{key}` stands twice"))),
            None => Ok(object),
        }
    }
}

/// One in which keys may stand twice.
struct Loose<'a>(Object<'a>);

impl<'de> Deserialize<'de> for Loose<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor).map(Self)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<(Text<'de>, &'de RawValue)> = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Object(members))
    }
}

/// A key that stands twice. Many are sorted first, so that they cost no more than they must.
fn twice<'a>(members: &'a [(Text<'_>, &RawValue)]) -> Option<&'a str> {
    if members.len() <= 1 {
        return None;
    }
    let mut keys: Vec<&str> = members.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// A text, borrowed where it holds no escapes.
#[derive(Debug)]
pub struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_values_as_written() {
        let object = Object::parse(r#"{"a": 1e400, "b":null,"c\u0061":{"d": [1, 2]}}"#).unwrap();
        assert_eq!(object.value("a").unwrap().get(), "1e400");
        assert!(object.value("b").is_none());
        assert_eq!(object.value("ca").unwrap().get(), r#"{"d": [1, 2]}"#);
        assert_eq!(object.unknown(&["a", "b"]), 1);
    }

    #[test]
    fn a_key_may_stand_twice_where_that_is_no_matter() {
        let object = Object::parse_loose(r#"{"a":1,"b":2,"\u0061":3,"b":4}"#).unwrap();
        assert_eq!(object.twice(&["c"]), None);
        assert!(object.twice(&["c", "a"]).unwrap().starts_with("the key `a` stands twice; "));
        assert_eq!((object.unknown(&["a"]), object.value("b").unwrap().get()), (2, "2"));
    }

    #[test]
    fn says_what_it_found_instead() {
        for (json, word) in [
            ("[]", "but is a list"),
            ("null", "but is null"),
            ("12", "but is a number"),
            ("", "JSON object"),
            ("{\"a\":1,\"a\":2}", "`a` stands twice"),
            ("{\"a\":}", "JSON object"),
            ("{} x", "JSON object"),
        ] {
            let error = Object::parse(json).unwrap_err();
            assert!(error.contains(word), "{json}: {error}");
        }
    }

    #[test]
    fn depth_does_not_exhaust_the_stack() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000));
        assert!(Object::parse(&deep).is_ok());
    }
}
