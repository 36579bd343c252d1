//! What the log lets through, and how its lines look. It goes to stderr: for people on a terminal, else one JSON object a line.
//!
//! The level can be changed while the process runs, by who holds its [`Level`]: at three in the morning a restart would take
//! the trouble away together with its cause.

mod lines;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use lines::Lines;
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

/// The lines of this process.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Makes the log of this process, in which a panic is a line like any other. Errors: as of [`check`], that there is one already,
/// or that the system gives no thread.
pub fn start(settings: &Settings) -> Result<Level, String> {
    let lines = Lines::written_to(std::io::stderr(), tell_dropped)
        .map_err(|error| format!("cannot be used: {error}"))?;
    let (log, level) = make_with(settings, lines.clone())?;
    tracing::dispatcher::set_global_default(log).map_err(|error| error.to_string())?;
    // There was none before, or there would have been a log.
    let _ = LINES.set(lines);
    std::panic::set_hook(Box::new(tell_panic));
    Ok(level)
}

/// How many lines were left out, because nobody took those before them from stderr.
pub fn dropped() -> u64 {
    LINES.get().map_or(0, Lines::dropped)
}

/// Waits for the last lines, but not for long: before the process ends.
pub fn finish() {
    if let Some(lines) = LINES.get() {
        lines.finish();
    }
}

/// Dropped at the end of the process, it waits for the last lines as [`finish`] does.
#[derive(Debug)]
pub struct LastLines;

impl Drop for LastLines {
    fn drop(&mut self) {
        finish();
    }
}

fn tell_dropped(lines: u64) {
    tracing::warn!(
        lines,
        "the log lacks lines: nobody took them from stderr; so many were left out since the start"
    );
}

/// What was made up when it happened may hold what an invite or a file said; what stands in the source does not.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let error = panic.payload().downcast_ref::<&str>().copied();
    let thread = std::thread::current();
    // Where RUST_BACKTRACE asks for one.
    let backtrace = Backtrace::capture();
    tracing::error!(
        error,
        at = panic.location().map(tracing::field::display),
        thread = thread.name(),
        backtrace =
            (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace)),
        "a panic: a bug to report"
    );
}

/// A log that nobody writes to yet, and its level.
#[cfg(test)]
pub(crate) fn make(settings: &Settings) -> Result<(Dispatch, Level), String> {
    make_with(settings, Lines::unwritten())
}

fn make_with(settings: &Settings, to: Lines) -> Result<(Dispatch, Level), String> {
    let (filter, handle) = reload::Layer::new(read(&settings.level)?);
    let on_terminal = std::io::stderr().is_terminal();
    let human = match settings.format {
        Format::Human => true,
        Format::Json => false,
        Format::Auto => on_terminal,
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || to.clone())
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

    #[test]
    fn a_panic_is_a_line_that_says_where_and_not_what_was_made_up() {
        let settings = Settings { format: Format::Json, level: "info".to_owned(), shows_threads: false };
        let lines = Lines::unwritten();
        let (log, _level) = make_with(&settings, lines.clone()).expect("a filter");
        // Tests on other threads have theirs.
        let (ours, others) = (std::thread::current().id(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().id() == ours { tell_panic(panic) } else { others(panic) }
        }));
        tracing::dispatcher::with_default(&log, || {
            for token in [None, Some("ab01")] {
                let died = std::panic::catch_unwind(|| match token {
                    None => panic!("on purpose"),
                    Some(token) => panic!("on purpose, with {token}"),
                });
                assert!(died.is_err());
            }
        });
        let text = lines.text();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let [plain, made_up] = &lines[..] else { panic!("{text}") };
        assert_eq!((&plain["level"], &plain["error"]), (&"ERROR".into(), &"on purpose".into()));
        assert!(plain["at"].as_str().is_some_and(|at| at.starts_with("src/logging.rs:")), "{plain}");
        assert!(made_up["error"].is_null() && !text.contains("ab01"), "{made_up}");
    }
}
