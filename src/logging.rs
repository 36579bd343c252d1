//! What the log lets through, and how its lines look. It goes to stderr: for people on a terminal, else one JSON object a line.
//!
//! The level can be changed while the process runs, by who holds its [`Level`]: at three in the morning a restart would take
//! the trouble away together with its cause.

use std::fmt;
use std::io::IsTerminal;

use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `log.format`: how lines look.
    pub format: Format,
    /// `log.level`: what [`check`] found readable.
    pub level: String,
    /// Whether lines name the thread that they come from: where there are several shards.
    pub shows_threads: bool,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// [`Format::Human`] where stderr is a terminal, else [`Format::Json`].
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Human,
}

/// Words for levels, in any case.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Whether a text can be a level: one of the words, and levels of modules after commas, as in `info,h2=warn`. Errors: a
/// sentence that begins with "is".
pub fn check(level: &str) -> Result<(), String> {
    read(level).map(drop)
}

fn read(level: &str) -> Result<EnvFilter, String> {
    // Without `=`, a word is a level; the library would take any other for the name of a module, and log nothing else.
    let is_level =
        |part: &str| part.contains('=') || LEVELS.contains(&part.trim().to_ascii_lowercase().as_str());
    // The library panics at some letters beyond ASCII, and no module's name has one.
    // Nor is a value of a field a regular expression: a short one may ask for all the memory that there is.
    let parser = EnvFilter::builder().with_regex(false);
    let filter = level.is_ascii().then(|| parser.parse(level).ok()).flatten();
    filter.filter(|_| level.split(',').all(is_level)).ok_or_else(|| {
        "is not a log filter; give a level (off, error, warn, info, debug, trace) and exceptions, as in \"info,h2=warn\"".to_owned()
    })
}

/// The level of a log, for as long as that is there. Clones are the same.
#[derive(Clone)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// What is let through now, as a filter that [`check`] would take.
    pub fn now(&self) -> String {
        self.0.with_current(EnvFilter::to_string).unwrap_or_else(|_| "off".to_owned())
    }

    /// Lets something else through, until the process ends. Errors: as of [`check`].
    pub fn set(&self, level: &str) -> Result<(), String> {
        let filter = read(level)?;
        self.0.reload(filter).map_err(|_| "cannot be set: there is no log".to_owned())
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Level").field(&self.now()).finish()
    }
}

/// Makes the log of this process. Errors: as of [`check`], or that there is one already.
pub fn start(settings: &Settings) -> Result<Level, String> {
    let (log, level) = make(settings)?;
    tracing::dispatcher::set_global_default(log).map_err(|error| error.to_string())?;
    Ok(level)
}

/// A log that nobody writes to yet, and its level.
pub(crate) fn make(settings: &Settings) -> Result<(Dispatch, Level), String> {
    let (filter, handle) = reload::Layer::new(read(&settings.level)?);
    let on_terminal = std::io::stderr().is_terminal();
    let human = match settings.format {
        Format::Human => true,
        Format::Json => false,
        Format::Auto => on_terminal,
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(on_terminal)
        .with_thread_names(settings.shows_threads);
    let log = tracing_subscriber::registry().with(filter);
    let log = if human {
        Dispatch::new(log.with(lines))
    } else {
        Dispatch::new(log.with(lines.json().flatten_event(true)))
    };
    Ok((log, Level(handle)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word_with_exceptions() {
        for good in ["info", "WARN", "info,h2=warn,lapin=off", "off", "ringcast::apns=debug, info"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "loud", "info,h2", "info,h2=loud", "ringcast", "info;debug", "ärger=info", "=,="] {
            let mistake = check(bad).expect_err(bad);
            assert!(mistake.starts_with("is not a log filter; give a level"), "{mistake}");
        }
    }

    #[test]
    fn no_level_asks_for_all_the_memory() {
        assert_eq!(
            check("[{stream=.*a.......................}]=debug"),
            Ok(()),
            "it is a text like any other"
        );
    }

    #[test]
    fn it_is_changed_while_the_log_runs() {
        let settings =
            Settings { format: Format::Json, level: "error,h2=off".to_owned(), shows_threads: false };
        let (log, level) = make(&settings).expect("a filter");
        tracing::dispatcher::with_default(&log, || {
            assert_eq!(level.now(), "h2=off,error");
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
            assert!(level.set("nonsense").is_err());
            assert_eq!(level.now(), "h2=off,error", "what cannot be read changes nothing");
            level.set("ringcast=debug,error").expect("a filter");
            assert_eq!(level.now(), "ringcast=debug,error");
            assert!(tracing::enabled!(tracing::Level::DEBUG));
        });
    }
}
