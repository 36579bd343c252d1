//! `ringcast watch`: results as they pass, live, and the story of one call.
//!
//! Workers with `amqp.live = true` copy each result to an exchange; who watches has a queue of its own there, so that nothing is
//! taken from those who live on results, and a slow terminal holds nobody up.

mod show;

use std::io::{self, Write};
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use crate::amqp::live::Onlooker;
use crate::amqp::{Error, Settings};
use crate::domain::id::CallId;
use crate::domain::outcome::InviteResult;
use crate::pause::{Jitter, Pause};

/// The pause before a lost broker is tried again; it doubles up to [`AGAIN_MAX`].
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// Which results are shown: those that every part lets through.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of these apps; empty: of all.
    pub apps: Vec<String>,
    /// Outcomes with these results, and no token events; empty: everything.
    pub results: Vec<InviteResult>,
    /// Of this call.
    pub call: Option<CallId>,
}

impl Filter {
    fn admits(&self, result: &Value) -> bool {
        let text = |key: &str| result[key].as_str().unwrap_or_default();
        let of_app = self.apps.is_empty() || self.apps.iter().any(|app| app == text("app"));
        let of_call = self.call.is_none_or(|call| CallId::parse(text("call_id")) == Some(call));
        let of_result = || self.results.iter().any(|word| word.as_str() == text("result"));
        of_app && of_call && (self.results.is_empty() || of_result())
    }
}

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it was published, one JSON object a line, device tokens whole.
    Json,
    /// A line for people, tokens shortened.
    Line,
    /// The line, a line for each device, and the timeline where the outcome has one.
    Story,
}

/// Shows results on `out` until it is dropped or `out` takes no more, and says on `told` what happens to the connection. Returns
/// why `out` takes no more. Errors: there is no connection to begin with; one that is lost later is made again.
pub async fn run(
    settings: &Settings,
    filter: &Filter,
    form: Form,
    out: &mut impl Write,
    told: &mut impl Write,
) -> Result<io::Error, Error> {
    let name = "ringcast watch";
    let mut pause = Pause::new(AGAIN, AGAIN_MAX, Jitter::random());
    let mut onlooker = Onlooker::begin(settings, name).await?;
    loop {
        // Nobody has to read what is said beside the results.
        let _ = writeln!(
            told,
            "watching {}; results come from workers with amqp.live = true, from now on",
            onlooker.endpoint()
        );
        let lost = loop {
            match onlooker.next().await {
                Ok(body) => {
                    if let Err(error) = write(&body, filter, form, out) {
                        onlooker.close().await;
                        return Ok(error);
                    }
                    pause.reset();
                }
                Err(lost) => break lost,
            }
        };
        let _ = writeln!(told, "{lost}; what passes meanwhile is not shown");
        onlooker = loop {
            sleep(pause.lengthen()).await;
            match Onlooker::begin(settings, name).await {
                Ok(onlooker) => break onlooker,
                Err(error) => {
                    let _ = writeln!(told, "{error}");
                }
            }
        };
    }
}

/// Writes one result, if it is to be shown.
fn write(body: &[u8], filter: &Filter, form: Form, out: &mut impl Write) -> io::Result<()> {
    let Ok(result) = serde_json::from_slice::<Value>(body) else {
        // Somebody else writes to the exchange: no result of ours is anything but JSON.
        return Ok(());
    };
    if !filter.admits(&result) {
        return Ok(());
    }
    match form {
        Form::Json => match std::str::from_utf8(body) {
            Ok(text) if !text.contains(['\n', '\r']) => writeln!(out, "{}", show::escaped(text))?,
            _ => writeln!(out, "{}", show::escaped(&result.to_string()))?,
        },
        Form::Line => writeln!(out, "{}", show::line(&result))?,
        Form::Story => write!(out, "{}", show::story(&result))?,
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CALL: &str = "6f1c0f3e-0000-4000-8000-00000000abcd";

    fn shown(filter: &Filter, result: &Value) -> bool {
        let mut out = Vec::new();
        write(result.to_string().as_bytes(), filter, Form::Json, &mut out).expect("memory takes everything");
        let expected = format!("{result}\n");
        assert!(out.is_empty() || out == expected.as_bytes(), "as it was published");
        !out.is_empty()
    }

    #[test]
    fn a_filter_lets_through_what_all_its_parts_do() {
        let outcome =
            json!({"type": "ringcast.outcome.v1", "app": "acme", "call_id": CALL, "result": "expired"});
        let event = json!({"type": "ringcast.invalid-token.v1", "app": "acme", "call_id": CALL});
        let nameless = json!({"type": "ringcast.outcome.v1", "result": "malformed"});
        let all = Filter::default();
        let of_app = |app: &str| Filter { apps: vec!["zeta".into(), app.into()], ..Filter::default() };
        let of_call = |call: &str| Filter { call: CallId::parse(call), ..Filter::default() };
        let of_result = |result| Filter { results: vec![result], ..Filter::default() };
        for (filter, expected) in [
            (all, [true, true, true]),
            (of_app("acme"), [true, true, false]),
            (of_app("other"), [false, false, false]),
            (of_call(&CALL.to_uppercase()), [true, true, false]),
            (of_call("6f1c0f3e-0000-4000-8000-00000000abce"), [false, false, false]),
            (of_result(InviteResult::Expired), [true, false, false]),
            (of_result(InviteResult::Malformed), [false, false, true]),
            (Filter { results: vec![InviteResult::Accepted], ..of_app("acme") }, [false, false, false]),
        ] {
            let got = [&outcome, &event, &nameless].map(|result| shown(&filter, result));
            assert_eq!(got, expected, "{filter:?}");
        }
    }

    #[test]
    fn json_stays_one_object_a_line() {
        let mut out = Vec::new();
        write(b"{\n \"app\":\r\n \"acme\"}", &Filter::default(), Form::Json, &mut out)
            .expect("memory takes everything");
        write(b"no JSON at all", &Filter::default(), Form::Json, &mut out).expect("memory takes everything");
        assert_eq!(out, b"{\"app\":\"acme\"}\n");
    }

    #[test]
    fn json_steers_no_terminal_and_says_the_same() {
        // JSON lets these stand as they are: DEL, and the one character that begins a sequence for a terminal, as ESC [ does.
        let odd = json!({"id": "a\u{9b}31m\u{7f}\u{202e}\u{61c}é"});
        for body in [odd.to_string(), format!("{odd:#}")] {
            let mut out = Vec::new();
            write(body.as_bytes(), &Filter::default(), Form::Json, &mut out)
                .expect("memory takes everything");
            assert_eq!(out, b"{\"id\":\"a\\u009b31m\\u007f\\u202e\\u061c\xc3\xa9\"}\n");
            assert_eq!(serde_json::from_slice::<Value>(&out).expect("it is JSON"), odd);
        }
    }
}
