//! JSON objects in the making, straight into the bytes that are sent.

use uuid::Uuid;

use crate::domain::timestamp::Timestamp;

/// A JSON object in the making, or its members alone.
#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty one with room for so many bytes; it grows where there are more.
    pub fn new(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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
    pub fn list<T>(&mut self, key: &str, elements: &[T], mut write: impl FnMut(&mut Self, &T)) {
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
    pub fn raw(&mut self, key: &str, json: &str) {
        self.key(key);
        self.0.extend_from_slice(json.as_bytes());
    }

    /// A text.
    pub fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        self.quoted(text);
    }

    /// A text, if there is one.
    pub fn optional(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    /// An instant, if there is one.
    pub fn instant(&mut self, key: &str, instant: Option<Timestamp>) {
        let Some(instant) = instant else { return };
        match &instant.encode() {
            Some(text) => self.plain(key, text),
            None => self.text(key, &instant.to_string()),
        }
    }

    /// A text of digits, letters and hyphens, as bytes.
    fn plain(&mut self, key: &str, text: &[u8]) {
        self.key(key);
        self.0.push(b'"');
        self.0.extend_from_slice(text);
        self.0.push(b'"');
    }

    /// A UUID in lower case.
    pub fn uuid(&mut self, key: &str, uuid: Uuid) {
        self.plain(key, uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
    }

    /// A boolean.
    pub fn boolean(&mut self, key: &str, value: bool) {
        self.raw(key, if value { "true" } else { "false" });
    }

    /// A whole number that may be below 0.
    pub fn signed(&mut self, key: &str, number: i64) {
        match u64::try_from(number) {
            Ok(number) => self.number(key, number),
            Err(_) => self.raw(key, &number.to_string()),
        }
    }

    /// A whole number.
    pub fn number(&mut self, key: &str, number: u64) {
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

    fn key(&mut self, key: &str) {
        self.separate();
        self.quoted(key);
        self.0.push(b':');
    }

    /// No value ends in an opening bracket, so that the last byte tells whether something stands before.
    fn separate(&mut self) {
        if !matches!(self.0.last(), None | Some(b'{' | b'[')) {
            self.0.push(b',');
        }
    }

    fn quoted(&mut self, text: &str) {
        if has_special(text.as_bytes()) {
            serde_json::to_writer(&mut self.0, text).expect("a text and a vector: neither can fail");
        } else {
            self.0.reserve(text.len() + 2);
            self.0.push(b'"');
            self.0.extend_from_slice(text.as_bytes());
            self.0.push(b'"');
        }
    }
}

/// Whether a text must be escaped: it holds a control character, a quote or a backslash. Eight bytes at once, by the tests for
/// a byte that is 0 or below a bound (Sean Eron Anderson, *Bit Twiddling Hacks*).
fn has_special(text: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = u64::from_ne_bytes([0x80; 8]);
    const BLANKS: u64 = u64::from_ne_bytes([b' '; 8]);
    let special = |word: u64| {
        let quotes = word ^ (ONES * u64::from(b'"'));
        let slashes = word ^ (ONES * u64::from(b'\\'));
        (word.wrapping_sub(BLANKS) & !word)
            | (quotes.wrapping_sub(ONES) & !quotes)
            | (slashes.wrapping_sub(ONES) & !slashes)
    };
    let (words, rest) = text.as_chunks::<8>();
    let found = words.iter().fold(0, |found, word| found | special(u64::from_ne_bytes(*word)));
    let rest = rest.iter().fold(BLANKS, |word, byte| word << 8 | u64::from(*byte));
    (found | special(rest)) & TOPS != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Writer)) -> String {
        let mut json = Writer::new(0);
        write(&mut json);
        String::from_utf8(json.into_bytes()).unwrap()
    }

    #[test]
    fn members_and_elements_are_separated() {
        let json = written(|json| {
            json.begin();
            json.boolean("a", true);
            json.list("b", &[1, 20], |json, number| json.number("c", *number));
            json.list("d", &[0], |_, _| {});
            json.list::<u64>("e", &[], |_, _| {});
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

    #[test]
    fn every_byte_that_must_be_escaped_is_found_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            for (length, at) in (1..20).flat_map(|length| (0..length).map(move |at| (length, at))) {
                let mut text = vec![b'\x7f'; length];
                text[at] = byte;
                let escaped = byte < b' ' || matches!(byte, b'"' | b'\\');
                assert_eq!(has_special(&text), escaped, "{byte} at {at} of {length}");
            }
        }
        assert!(!has_special(b""));
    }

    proptest! {
        #[test]
        fn texts_and_numbers_are_as_serde_json_writes_them(
            key in any::<String>(), text in any::<String>(), number in any::<u64>(), signed in any::<i64>(),
        ) {
            let json = written(|json| {
                json.text(&key, &text);
                json.number("n", number);
                json.signed("s", signed);
            });
            let (key, text) = (serde_json::to_string(&key).unwrap(), serde_json::to_string(&text).unwrap());
            prop_assert_eq!(json, format!(r#"{key}:{text},"n":{number},"s":{signed}"#));
        }
    }
}
