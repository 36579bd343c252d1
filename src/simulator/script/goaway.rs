//! The keys of a GOAWAY, which faults and orders share.

use serde::Deserialize;

use super::super::faults::{Ending, GoAway, LastStream};
use super::value::Code;

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawEnding {
    Drain,
    Close,
    Silence,
}

/// A stream's id, or a word.
#[derive(Deserialize)]
#[serde(try_from = "IdOrWord")]
pub(super) struct RawLastStream(LastStream);

#[derive(Deserialize)]
#[serde(untagged)]
enum IdOrWord {
    Id(u32),
    Word(String),
}

impl TryFrom<IdOrWord> for RawLastStream {
    type Error = &'static str;

    fn try_from(raw: IdOrWord) -> Result<Self, Self::Error> {
        Ok(Self(match raw {
            IdOrWord::Id(id) if id < 1 << 31 => LastStream::Id(id),
            IdOrWord::Word(word) if word == "newest" => LastStream::Newest,
            IdOrWord::Word(word) if word == "answered" => LastStream::Answered,
            _ => return Err("must be \"newest\", \"answered\" or a stream's id below 2147483648"),
        }))
    }
}

/// All of it, as it stands in its table.
pub(super) struct RawGoAway<'a> {
    pub(super) code: Option<&'a Code>,
    pub(super) reason: Option<&'a String>,
    pub(super) debug: Option<&'a String>,
    pub(super) last_stream: Option<&'a RawLastStream>,
    pub(super) leave_out: Option<usize>,
    pub(super) twice: Option<bool>,
    pub(super) then: Option<RawEnding>,
}

impl RawGoAway<'_> {
    pub(super) fn read(self) -> Result<GoAway, String> {
        if self.reason.is_some() && self.debug.is_some() {
            return Err("`debug` is sent as it stands: leave out `reason`".into());
        }
        let last_stream = match (self.last_stream, self.leave_out) {
            (None, None) => LastStream::Newest,
            (Some(RawLastStream(last)), None) => *last,
            (None, Some(count)) => LastStream::LeaveOut(count),
            (Some(_), Some(_)) => return Err("only one of `last_stream` and `leave_out`".into()),
        };
        Ok(GoAway {
            code: self.code.map_or(0, |code| code.0),
            reason: self.reason.cloned(),
            debug: self.debug.map(|debug| debug.clone().into()),
            last_stream,
            twice: self.twice.unwrap_or(false),
            then: match self.then {
                None | Some(RawEnding::Drain) => Ending::Drain,
                Some(RawEnding::Close) => Ending::Close,
                Some(RawEnding::Silence) => Ending::Silence,
            },
            ..GoAway::default()
        })
    }
}
