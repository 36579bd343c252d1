//! The layers that settings come from, and where in them each value stands.
//!
//! A layer is flat: one entry per key and one per table, under its whole path. What type a text from the environment
//! has is decided by whoever reads it, because only the reader knows what the key wants.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, show};

/// Every variable that begins so is ours.
const PREFIX: &str = "RINGCAST__";

/// What a mistyped one begins with; so do those that Kubernetes sets for a service of our name.
pub(super) const NAME: &str = "RINGCAST_";

/// A whole configuration is a few kilobytes; more is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A key or a table by the names on the way to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Path(pub(super) Vec<String>);

impl Path {
    pub(super) fn child(&self, name: &str) -> Self {
        Self(self.0.iter().cloned().chain([name.to_owned()]).collect())
    }

    pub(super) fn is_below(&self, ancestor: &Self) -> bool {
        self.0.len() > ancestor.0.len() && self.0.starts_with(&ancestor.0)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let dot = if index == 0 { "" } else { "." };
            let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if !name.is_empty() && name.len() <= 80 && name.chars().all(bare) {
                write!(formatter, "{dot}{name}")?;
            } else {
                write!(formatter, "{dot}{}", show(name))?;
            }
        }
        Ok(())
    }
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// `config/default.toml`.
    Default,
    /// The file of `--config`: its name, the line, counted from 1, and the byte.
    File { name: Arc<str>, line: usize, offset: usize },
    /// A variable of the environment.
    Environment { variable: String },
    /// It was not set at all.
    Nowhere,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(formatter, "default"),
            Self::File { name, line, .. } => write!(formatter, "{name}:{line}"),
            Self::Environment { variable } => write!(formatter, "{variable}"),
            Self::Nowhere => write!(formatter, "not set"),
        }
    }
}

/// A value as its layer holds it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    /// `None`: beyond 64 bits.
    Integer(Option<i64>),
    /// A number with a fraction.
    Float(f64),
    Boolean(bool),
    List(Vec<Value>),
    Table,
    /// A TOML type that no setting has, by its name with an article.
    Other(&'static str),
    /// A text from the environment, its type not judged yet.
    Raw(String),
    /// What no setting can be, and was refused as such.
    Refused,
}

impl Value {
    /// Judges a text from the environment as TOML.
    pub(super) fn parse(text: &str) -> Option<Self> {
        DeValue::parse(text).ok().map(|value| Self::from_toml(value.get_ref()))
    }

    /// The type with an article, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Raw(_) => "a text",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number with a fraction",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table => "a table",
            Self::Other(kind) => kind,
            Self::Refused => "nothing",
        }
    }

    /// A default as TOML writes it, for examples.
    pub(super) fn literal(&self) -> String {
        match self {
            Self::Text(text) | Self::Raw(text) => format!("\"{text}\""),
            Self::Integer(number) => number.unwrap_or_default().to_string(),
            Self::Float(number) => format!("{number:?}"),
            Self::Boolean(boolean) => boolean.to_string(),
            // Nothing would not show how one is written.
            Self::List(values) if values.is_empty() => "[\"one\", \"another\"]".to_owned(),
            Self::List(values) => {
                format!("[{}]", values.iter().map(Self::literal).collect::<Vec<_>>().join(", "))
            }
            Self::Table | Self::Other(_) | Self::Refused => String::new(),
        }
    }

    fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => {
                Self::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
            }
            DeValue::Boolean(boolean) => Self::Boolean(*boolean),
            DeValue::Array(values) => {
                Self::List(values.iter().map(|value| Self::from_toml(value.get_ref())).collect())
            }
            DeValue::Table(_) => Self::Table,
            // TOML's own reader has found it a number.
            DeValue::Float(number) => Self::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Datetime(_) => Self::Other("a date"),
        }
    }
}

/// One value and where it was set.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// One source of settings.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer(pub(super) BTreeMap<Path, Entry>);

impl Layer {
    /// The embedded reference.
    pub(super) fn default_values() -> Self {
        let table =
            DeTable::parse(super::DEFAULT_TOML).expect("config/default.toml is TOML, as the tests show");
        let mut layer = Self::default();
        layer.insert(&Path::default(), table.get_ref(), &|_| Origin::Default);
        layer
    }

    /// The file of `--config`. Errors: it cannot be read, or every place where it is not TOML.
    pub(super) fn file(file: &std::path::Path) -> Result<Self, Vec<Mistake>> {
        let name = file.display().to_string();
        let text = read_file(file, FILE_BYTES_MAX)
            .map_err(|what| vec![Mistake::in_file(&format!("--config {name}"), 0, &what)])?;
        Self::toml(&name, &text)
    }

    /// The text of a configuration file.
    pub(super) fn toml(name: &str, text: &str) -> Result<Self, Vec<Mistake>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // The message alone: the error's whole display would quote the line, which may hold a password.
            return Err(errors
                .iter()
                .map(|error| {
                    let offset = error.span().map_or(text.len(), |span| span.start);
                    let (line, column) = locate(text, offset);
                    let what = match error.message() {
                        "duplicate key" => {
                            let key = error.span().and_then(|span| text.get(span)).unwrap_or_default();
                            &format!(
                                "duplicate key {}; keep one of the two",
                                show(key.trim_matches(['"', '\'']))
                            )
                        }
                        what => what,
                    };
                    Mistake::in_file(&format!("{name}:{line}:{column}"), offset, what)
                })
                .collect());
        }
        let mut layer = Self::default();
        let name: Arc<str> = Arc::from(name);
        let newlines: Vec<usize> = text.match_indices('\n').map(|(offset, _)| offset).collect();
        layer.insert(&Path::default(), table.get_ref(), &|offset| Origin::File {
            name: name.clone(),
            line: newlines.partition_point(|newline| *newline < offset) + 1,
            offset,
        });
        Ok(layer)
    }

    /// `RINGCAST__SECTION__KEY`; other variables are not ours. With mistakes: two names for one key, of which the first counts,
    /// a value that is not UTF-8.
    pub(super) fn environment(variables: &[(OsString, OsString)]) -> (Self, Vec<Mistake>) {
        let mut layer = Self::default();
        let mut mistakes = Vec::new();
        let mut ours: Vec<(String, &OsString)> = variables
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value)))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect();
        ours.sort();
        for (variable, value) in ours {
            let lower = variable[PREFIX.len()..].to_lowercase();
            let path = Path(lower.split("__").map(str::to_owned).collect());
            let origin = Origin::Environment { variable };
            if let Some(earlier) = layer.0.get(&path) {
                let what = format!("is set by {} as well; keep one of the two", earlier.origin);
                mistakes.push(Mistake::at(&path, &origin, &what));
                continue;
            }
            let value = value.to_str().map_or(Value::Refused, |text| Value::Raw(text.to_owned()));
            if value == Value::Refused {
                mistakes.push(Mistake::at(&path, &origin, "is not UTF-8; write it in UTF-8"));
            }
            layer.0.insert(path, Entry { value, origin });
        }
        (layer, mistakes)
    }

    fn insert(&mut self, path: &Path, table: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let path = path.child(key.get_ref());
            let entry = Entry { value: Value::from_toml(value.get_ref()), origin: origin(offset_of(key)) };
            self.0.insert(path.clone(), entry);
            if let DeValue::Table(table) = value.get_ref() {
                self.insert(&path, table, origin);
            }
        }
    }
}

/// Variables that are named after us and are no settings.
pub(super) fn strays(variables: &[(OsString, OsString)]) -> Vec<String> {
    let names = variables.iter().filter_map(|(name, _)| name.to_str());
    names.filter(|name| name.starts_with(NAME) && !name.starts_with(PREFIX)).map(str::to_owned).collect()
}

fn offset_of<T>(spanned: &Spanned<T>) -> usize {
    spanned.span().start
}

/// Line and column, both counted from 1, the column in characters.
fn locate(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Reads a text file of at most `bytes_max` bytes. Errors say what is wrong and what would be right, never the content.
pub(super) fn read_file(file: &std::path::Path, bytes_max: u64) -> Result<String, String> {
    let cannot = |error: &std::io::Error| {
        format!("cannot be read: {error}; give the path of a file that this user may read")
    };
    let opened = std::fs::File::open(file).map_err(|error| cannot(&error))?;
    let mut bytes = Vec::new();
    opened.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| cannot(&error))?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("is longer than {bytes_max} bytes; it must be another file that is meant"));
    }
    String::from_utf8(bytes)
        .map_err(|_| "is not UTF-8 text; it must be another file that is meant".to_owned())
}
