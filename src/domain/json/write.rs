//! JSON objects in the making, straight into the bytes that are sent.

use std::cell::Cell;

use uuid::Uuid;

use crate::domain::timestamp::Timestamp;

/// A JSON object in the making, or its members alone.
#[derive(Debug)]
pub struct Writer(Vec<u8>);

/// The name of a member.
#[derive(Clone, Copy, Debug)]
pub enum Key<'a> {
    /// A word of our own, which needs no escapes.
    Ours(&'static str),
    /// Somebody else's, whatever it holds.
    Theirs(&'a str),
}

impl From<&'static str> for Key<'_> {
    fn from(key: &'static str) -> Self {
        Self::Ours(key)
    }
}

/// Bytes of a buffer that is kept for the next object at most.
const KEPT_BYTES: usize = 64 * 1024;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Writer {
    /// What is written, in one piece of just that size. It is written into a buffer of the thread's that is used again and again.
    pub fn written<T: for<'a> From<&'a [u8]>>(write: impl FnOnce(&mut Self)) -> T {
        let mut json = Self(BUFFER.take());
        write(&mut json);
        let written = T::from(json.0.as_slice());
        json.0.clear();
        if json.0.capacity() <= KEPT_BYTES {
            BUFFER.set(json.0);
        }
        written
    }

    /// An object begins, as an element of a list or as the whole.
    pub fn begin(&mut self) {
        self.separate();
        self.0.push(b'{');
    }

    /// The object ends.
    pub fn end(&mut self) {
        self.0.push(b'}');
    }

    /// A list of objects.
    pub fn list<'k, T>(
        &mut self,
        key: impl Into<Key<'k>>,
        elements: &[T],
        mut write: impl FnMut(&mut Self, &T),
    ) {
        self.key(key);
        self.0.push(b'[');
        for element in elements {
            self.begin();
            write(self, element);
            self.end();
        }
        self.0.push(b']');
    }

    /// A member whose value is JSON already.
    pub fn raw<'k>(&mut self, key: impl Into<Key<'k>>, json: &str) {
        self.key(key);
        self.0.extend_from_slice(json.as_bytes());
    }

    /// A text.
    pub fn text<'k>(&mut self, key: impl Into<Key<'k>>, text: &str) {
        self.key(key);
        self.quoted(text);
    }

    /// One of our own words, which need no escapes.
    pub fn word<'k>(&mut self, key: impl Into<Key<'k>>, word: &'static str) {
        self.key(key);
        self.plain(word.as_bytes());
    }

    /// A text, if there is one.
    pub fn optional<'k>(&mut self, key: impl Into<Key<'k>>, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    /// An instant, if there is one.
    pub fn instant<'k>(&mut self, key: impl Into<Key<'k>>, instant: Option<Timestamp>) {
        let Some(instant) = instant else { return };
        match &instant.encode() {
            Some(text) => {
                self.key(key);
                self.plain(text);
            }
            None => self.text(key, &instant.to_string()),
        }
    }

    /// A UUID in lower case.
    pub fn uuid<'k>(&mut self, key: impl Into<Key<'k>>, uuid: Uuid) {
        self.key(key);
        self.plain(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
    }

    /// A boolean.
    pub fn boolean<'k>(&mut self, key: impl Into<Key<'k>>, value: bool) {
        self.raw(key, if value { "true" } else { "false" });
    }

    /// A whole number that may be below 0.
    pub fn signed<'k>(&mut self, key: impl Into<Key<'k>>, number: i64) {
        match u64::try_from(number) {
            Ok(number) => self.number(key, number),
            Err(_) => self.raw(key, &number.to_string()),
        }
    }

    /// A whole number.
    pub fn number<'k>(&mut self, key: impl Into<Key<'k>>, number: u64) {
        const DIGITS_MAX: usize = 20;
        self.key(key);
        let mut digits = [0; DIGITS_MAX];
        let mut start = DIGITS_MAX;
        let mut rest = number;
        loop {
            start -= 1;
            digits[start] = b"0123456789"[usize::try_from(rest % 10).unwrap_or(0)];
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.0.extend_from_slice(&digits[start..]);
    }

    /// Members that were written before, without their braces.
    pub fn members(&mut self, members: &str) {
        if !members.is_empty() {
            self.separate();
            self.0.extend_from_slice(members.as_bytes());
        }
    }

    fn key<'k>(&mut self, key: impl Into<Key<'k>>) {
        self.separate();
        match key.into() {
            Key::Ours(key) => self.plain(key.as_bytes()),
            Key::Theirs(key) => self.quoted(key),
        }
        self.0.push(b':');
    }

    /// No value ends in an opening bracket, so that the last byte tells whether something stands before.
    fn separate(&mut self) {
        if !matches!(self.0.last(), None | Some(b'{' | b'[')) {
            self.0.push(b',');
        }
    }

    /// A text that needs no escapes.
    fn plain(&mut self, text: &[u8]) {
        self.0.reserve(text.len() + 2);
        self.0.push(b'"');
        self.0.extend_from_slice(text);
        self.0.push(b'"');
    }

    fn quoted(&mut self, text: &str) {
        // Without an early end, so that it is done for many bytes at once.
        let special = |byte| u8::from(byte < b' ') | u8::from(byte == b'"') | u8::from(byte == b'\\');
        if text.bytes().fold(0, |found, byte| found | special(byte)) != 0 {
            serde_json::to_writer(&mut self.0, text).expect("a text and a vector: neither can fail");
        } else {
            self.plain(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Writer)) -> String {
        String::from_utf8(Writer::written(write)).unwrap()
    }

    #[test]
    fn members_and_elements_are_separated() {
        let json = written(|json| {
            json.begin();
            json.boolean("a", true);
            json.list("b", &[1, 20], |json, number| json.number("c", *number));
            json.list("d", &[0], |_, _| {});
            json.list("e", &[0; 0], |_, _| {});
            json.optional("f", None);
            json.members("");
            json.members(r#""g":"{","h":[]"#);
            json.raw("i", "{}");
            json.end();
        });
        assert_eq!(json, r#"{"a":true,"b":[{"c":1},{"c":20}],"d":[{}],"e":[],"g":"{","h":[],"i":{}}"#);
    }

    #[test]
    fn the_first_member_alone_has_no_comma() {
        assert_eq!(written(|json| json.text("a", "{")), r#""a":"{""#);
    }

    proptest! {
        #[test]
        fn texts_and_numbers_are_as_serde_json_writes_them(
            key in any::<String>(), text in any::<String>(), number in any::<u64>(), signed in any::<i64>(),
        ) {
            let json = written(|json| {
                json.text(Key::Theirs(&key), &text);
                json.number("n", number);
                json.signed("s", signed);
            });
            let (key, text) = (serde_json::to_string(&key).unwrap(), serde_json::to_string(&text).unwrap());
            prop_assert_eq!(json, format!(r#"{key}:{text},"n":{number},"s":{signed}"#));
        }
    }
}
