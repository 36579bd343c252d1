//! Typed getters over one table of settings. They record what is wrong and go on, so that every mistake is found at once,
//! and they tell the [`Reader`] which keys exist, so that what nobody asked for is a mistake too.
//!
//! A getter of a key with a default always returns a value: after a mistake it is the default, and the whole is refused
//! in the end anyway.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::mistake::show;
use super::reader::Reader;
use super::source::{Entry, Origin, Path, Value};
use super::unit::{format_duration, parse_duration};

/// One table of settings while it is read.
pub(super) struct Section<'a> {
    reader: &'a mut Reader,
    path: Path,
    absent: bool,
}

/// What a getter makes of a value: nothing where the type is wrong, else the result, or what is wrong with it.
type Converted<T> = Option<Result<T, String>>;

impl<'a> Section<'a> {
    /// `absent`: nobody began this table, so no key is missing in it.
    pub(super) fn new(reader: &'a mut Reader, path: Path, absent: bool) -> Self {
        Self { reader, path, absent }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A text that `parse` accepts; its errors say `what is wrong; what would be right` and follow the shown value.
    pub(super) fn text<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        self.read(key, TEXT, &|value| Some(parse_shown(as_text(value)?, &parse)))
    }

    /// Like [`Section::text`], but the value is a secret and never shown. `None`: a mistake was recorded.
    pub(super) fn secret<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.try_read(key, SECRET, &|value| Some(parse(as_text(value)?)))
    }

    /// Like [`Section::text`], for a key without a default: `None` where a mistake was recorded, or where the whole table
    /// was left out. `meaning` says what to give.
    pub(super) fn required<T>(
        &mut self,
        key: &str,
        meaning: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let path = self.path.child(key);
        if self.reader.lookup(&path).is_none() {
            self.reader.know(&path);
            if !self.absent {
                let origin = self.reader.origin(&self.path);
                self.reader.refuse_at(&path, &origin, &format!("is missing; give {meaning}"));
            }
            return None;
        }
        self.try_read(key, TEXT, &|value| Some(parse_shown(as_text(value)?, &parse)))
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        self.text(key, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            let all = || words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
            found
                .map(|(_, meaning)| *meaning)
                .ok_or_else(|| format!("is none of its words; give one of {}", all()))
        })
    }

    /// A duration; `why` gives the reason of its bounds.
    pub(super) fn duration(&mut self, key: &str, range: RangeInclusive<Duration>, why: &str) -> Duration {
        self.text(key, |text| {
            let duration = parse_duration(text)?;
            let (least, most) = (format_duration(*range.start()), format_duration(*range.end()));
            let wrong = || format!("is out of range; from \"{least}\" to \"{most}\" ({why})");
            range.contains(&duration).then_some(duration).ok_or_else(wrong)
        })
    }

    /// A whole number; `why` gives the reason of its bounds.
    pub(super) fn number<T>(&mut self, key: &str, range: RangeInclusive<T>, why: &str) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        self.read(key, "a whole number", &|value| {
            let Value::Integer(number) = value else { return None };
            let found =
                number.and_then(|number| T::try_from(number).ok()).filter(|found| range.contains(found));
            Some(found.ok_or_else(|| {
                let number = number.map_or("a number beyond 64 bits".to_owned(), |number| number.to_string());
                format!("{number} is out of range; from {} to {} ({why})", range.start(), range.end())
            }))
        })
    }

    /// A share from 0.0 to 1.0.
    pub(super) fn share(&mut self, key: &str) -> f64 {
        self.read(key, "a number from 0.0 to 1.0", &|value| {
            let number = match *value {
                Value::Float(number) => number,
                Value::Integer(Some(0)) => 0.0,
                Value::Integer(Some(1)) => 1.0,
                Value::Integer(_) => f64::NAN,
                _ => return None,
            };
            let wrong = || "is out of range; from 0.0 to 1.0 (of all, so many)".to_owned();
            Some((0.0..=1.0).contains(&number).then_some(number).ok_or_else(wrong))
        })
    }

    /// True or false.
    pub(super) fn boolean(&mut self, key: &str) -> bool {
        self.read(key, "true or false", &|value| match value {
            Value::Boolean(boolean) => Some(Ok(*boolean)),
            _ => None,
        })
    }

    /// A list of texts that `check` accepts as a whole.
    pub(super) fn list(&mut self, key: &str, check: impl Fn(&[String]) -> Result<(), String>) -> Vec<String> {
        self.read(key, "a list of texts", &|value| {
            let Value::List(values) = value else { return None };
            let texts: Option<Vec<String>> =
                values.iter().map(|value| as_text(value).map(str::to_owned)).collect();
            let texts = texts?;
            Some(check(&texts).map(|()| texts))
        })
    }

    /// Says that a key exists, without reading it. True where it has a value.
    pub(super) fn know(&mut self, key: &str) -> bool {
        let path = self.path.child(key);
        self.reader.know(&path);
        self.reader.lookup(&path).is_some()
    }

    /// Whether a file or the environment set a key.
    pub(super) fn is_set(&self, key: &str) -> bool {
        !matches!(self.origin(key), Origin::Default | Origin::Nowhere)
    }

    /// Where the value of a key comes from.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.reader.origin(&self.path.child(key))
    }

    /// Records a mistake about one of the keys, at the place that set it.
    pub(super) fn refuse(&mut self, key: &str, what: &str) {
        let path = self.path.child(key);
        self.reader.refuse(&path, what);
    }

    /// Records a mistake about the table itself.
    pub(super) fn refuse_table(&mut self, what: &str) {
        let path = self.path.clone();
        self.reader.refuse(&path, what);
    }

    fn read<T>(&mut self, key: &str, wanted: &str, convert: &dyn Fn(&Value) -> Converted<T>) -> T {
        if let Some(read) = self.try_read(key, wanted, convert) {
            return read;
        }
        let default = self.reader.default_entry(&self.path.child(key)).map(|entry| convert(&entry.value));
        let right = default.flatten().and_then(Result::ok);
        right.expect("config/default.toml holds a right value, as the tests show")
    }

    fn try_read<T>(
        &mut self,
        key: &str,
        wanted: &str,
        convert: &dyn Fn(&Value) -> Converted<T>,
    ) -> Option<T> {
        let path = self.path.child(key);
        self.reader.know(&path);
        let Entry { value, origin } = self.reader.lookup(&path)?.clone();
        if value == Value::Refused {
            return None;
        }
        let typed = match &value {
            Value::Raw(raw) if wanted != TEXT && wanted != SECRET => Value::parse(raw),
            value => Some(value.clone()),
        };
        let what = match typed.as_ref().and_then(convert) {
            Some(Ok(read)) => return Some(read),
            Some(Err(what)) => what,
            None => {
                let found = match &value {
                    Value::Raw(raw) => show(raw),
                    Value::Text(text) => format!("the text {}", show(text)),
                    Value::Integer(Some(number)) if wanted != SECRET => format!("the number {number}"),
                    Value::Boolean(boolean) => boolean.to_string(),
                    value => value.kind().to_owned(),
                };
                let example = self.example(&path, &origin);
                format!("is {found}, but {wanted} is wanted{example}")
            }
        };
        self.reader.refuse_at(&path, &origin, &what);
        None
    }

    /// `, as in KEY = DEFAULT`, where there is a default.
    fn example(&self, path: &Path, origin: &Origin) -> String {
        let Some(default) = self.reader.default_entry(path) else { return String::new() };
        match origin {
            Origin::Environment { variable } => format!("; as in {variable}='{}'", default.value.literal()),
            _ => {
                format!("; as in {} = {}", path.0.last().map_or("", String::as_str), default.value.literal())
            }
        }
    }
}

const TEXT: &str = "a text";

/// A text that is never shown, and neither is anything that stands in its place.
const SECRET: &str = "a text (a secret, not shown)";

fn as_text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) | Value::Raw(text) => Some(text),
        _ => None,
    }
}

/// Parses a text; an error begins with the text as it may be shown.
fn parse_shown<T>(text: &str, parse: &impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
    parse(text).map_err(|what| format!("{} {what}", show(text)))
}
