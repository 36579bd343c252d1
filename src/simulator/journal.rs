//! What Apple saw: one record for each request that was judged, or refused before judgement by a stream limit.
//!
//! The journal holds **whole device tokens and payloads**: it is made for test tokens and made-up calls, never for
//! real ones. Provider tokens are never in it, only what they say of themselves.
//!
//! A GOAWAY can take back what was judged and not answered yet: such a request's record is replaced, and in the file the
//! last line with a sequence number is the one that holds.
//!
//! Records are kept in memory up to a limit (the oldest go first), in a file as JSON lines, both, or neither.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::provider_token::Claims;

const FILE_BUFFER_BYTES: usize = 256 * 1024;

/// One request and what was done with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    /// When it was judged, in milliseconds since 1970-01-01 UTC by the simulator's clock.
    pub at_ms: u64,
    /// Counts requests over all connections, from 1.
    pub sequence: u64,
    /// Counts connections, from 1.
    pub connection: u64,
    /// The address that the connection came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// HTTP/2 stream id.
    pub stream: u32,
    /// `:path`
    pub path: String,
    /// Device token as far as the path had one, lower-case.
    pub token: String,
    /// `apns-id` as sent; where absent, the one Apple made up.
    pub apns_id: String,
    /// `apns-topic`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// `apns-expiration`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    /// `apns-priority`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// `apns-push-type`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_type: Option<String>,
    /// What the provider token said of itself, true or not.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_shared")]
    pub authorization: Option<Arc<Claims>>,
    /// The bundle id of the client's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The payload.
    pub body: Body,
    /// The status that was answered; `None` where there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The reason that was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// What was done instead of answering honestly: `answer`, `reset`, `goaway`, `silence`, `freeze`, `close`,
    /// or `stream limit`, `going away`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<&'static str>,
    /// How long the answer was held back, in milliseconds; absent for not at all.
    #[serde(skip_serializing_if = "is_zero")]
    pub delay_ms: u64,
    /// Whether the phone would have rung.
    pub processed: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::ref_option, reason = "serde hands it over so")]
fn serialize_shared<S: Serializer>(claims: &Option<Arc<Claims>>, serializer: S) -> Result<S::Ok, S::Error> {
    claims.as_deref().serialize(serializer)
}

/// A payload as it came. In the journal's file it is JSON where it was JSON, else text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Body(pub Bytes);

impl Body {
    /// The payload as JSON, if it is.
    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.0).ok()
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let one_line = !self.0.contains(&b'\n') && !self.0.contains(&b'\r');
        if one_line && let Ok(raw) = serde_json::from_slice::<&RawValue>(&self.0) {
            return raw.serialize(serializer);
        }
        match self.json() {
            Some(value) => value.serialize(serializer),
            None => String::from_utf8_lossy(&self.0).serialize(serializer),
        }
    }
}

/// The record book.
#[derive(Debug)]
pub struct Journal {
    entries_max: usize,
    kept: Mutex<Kept>,
    file: Option<Mutex<Lines>>,
    unflushed: AtomicBool,
    seen: AtomicU64,
    processed: AtomicU64,
    news: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    records: VecDeque<Record>,
    dropped: u64,
}

#[derive(Debug)]
struct Lines {
    writer: BufWriter<File>,
    failure: Option<io::Error>,
}

impl Journal {
    /// Keeps at most `entries_max` records in memory (0: none) and appends all to `file`.
    pub(super) fn open(entries_max: usize, file: Option<&Path>) -> io::Result<Self> {
        let file = match file {
            None => None,
            Some(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path)?;
                Some(Mutex::new(Lines {
                    writer: BufWriter::with_capacity(FILE_BUFFER_BYTES, file),
                    failure: None,
                }))
            }
        };
        Ok(Self {
            entries_max,
            kept: Mutex::default(),
            file,
            unflushed: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            processed: AtomicU64::new(0),
            news: Notify::new(),
        })
    }

    /// The records in memory, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.kept.lock().records.iter().cloned().collect()
    }

    /// How many requests were seen in all.
    pub fn count(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    /// How many of them would have made a phone ring.
    pub fn count_processed(&self) -> u64 {
        self.processed.load(Ordering::Acquire)
    }

    /// How many records memory had no room for.
    pub fn count_dropped(&self) -> u64 {
        self.kept.lock().dropped
    }

    /// Waits until `count` requests were seen in all.
    pub async fn wait_for(&self, count: u64) {
        loop {
            let mut news = pin!(self.news.notified());
            news.as_mut().enable();
            if self.count() >= count {
                return;
            }
            news.await;
        }
    }

    /// Forgets the records in memory; the counts stay.
    pub fn clear(&self) {
        self.kept.lock().records.clear();
    }

    /// Writes out what the file's buffer holds. Done whenever a connection has nothing to do; a program calls it once
    /// more at its end, to learn whether the file is whole: an error is the first one there was.
    pub fn flush(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut lines = file.lock();
        self.unflushed.store(false, Ordering::Relaxed);
        let flushed = lines.writer.flush();
        lines.keep(flushed);
        match &lines.failure {
            None => Ok(()),
            Some(failure) => Err(io::Error::new(failure.kind(), failure.to_string())),
        }
    }

    /// What a connection calls when it has nothing to do. An error waits for the last [`Journal::flush`].
    pub(super) fn flush_if_needed(&self) {
        if self.unflushed.load(Ordering::Relaxed) {
            let _ = self.flush();
        }
    }

    /// Whether records go anywhere, or are only counted.
    pub(super) fn is_kept(&self) -> bool {
        self.entries_max > 0 || self.file.is_some()
    }

    /// Counts a request and keeps the record that `record` makes of its sequence number, which comes back.
    pub(super) fn note(&self, processed: bool, record: impl FnOnce(u64) -> Record) -> u64 {
        self.processed.fetch_add(u64::from(processed), Ordering::Release);
        let sequence = if self.is_kept() {
            let mut kept = self.kept.lock(); // held for the count, too: the sequence is the order
            let sequence = self.count() + 1;
            let record = record(sequence);
            self.write(&record);
            if self.entries_max > 0 {
                if kept.records.len() >= self.entries_max {
                    kept.records.pop_front();
                    kept.dropped += 1;
                }
                kept.records.push_back(record);
            }
            self.seen.fetch_add(1, Ordering::Release);
            sequence
        } else {
            self.seen.fetch_add(1, Ordering::Release) + 1
        };
        self.news.notify_waiters();
        sequence
    }

    /// A request was not processed after all. Its record in memory is replaced; the file gets one more line with the
    /// same sequence number.
    pub(super) fn amend(&self, was_processed: bool, record: Option<Record>) {
        self.processed.fetch_sub(u64::from(was_processed), Ordering::Release);
        let Some(record) = record else { return };
        let mut kept = self.kept.lock();
        self.write(&record);
        if let Ok(at) = kept.records.binary_search_by_key(&record.sequence, |kept| kept.sequence) {
            kept.records[at] = record;
        }
    }

    fn write(&self, record: &Record) {
        if let Some(file) = &self.file {
            file.lock().write(record);
            self.unflushed.store(true, Ordering::Relaxed);
        }
    }
}

impl Lines {
    fn write(&mut self, record: &Record) {
        if self.failure.is_some() {
            return;
        }
        let written = serde_json::to_writer(&mut self.writer, record)
            .map_err(io::Error::from)
            .and_then(|()| self.writer.write_all(b"\n"));
        self.keep(written);
    }

    fn keep(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && self.failure.is_none()
        {
            tracing::error!(%error, "the journal's file cannot be written; it ends here");
            self.failure = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64) -> Record {
        Record {
            at_ms: 1,
            sequence,
            connection: 1,
            address: None,
            stream: 1,
            path: "/3/device/aabb".into(),
            token: "aabb".into(),
            apns_id: String::new(),
            topic: None,
            expiration: Some("0".into()),
            priority: None,
            push_type: None,
            authorization: None,
            certificate: None,
            body: Body(Bytes::from_static(b"{\"a\":\n1}")),
            status: Some(200),
            reason: None,
            fault: None,
            delay_ms: 0,
            processed: true,
        }
    }

    #[test]
    fn memory_is_bounded_and_says_what_it_dropped() {
        let journal = Journal::open(3, None).unwrap();
        for _ in 0..5 {
            journal.note(true, record);
        }
        let kept: Vec<_> = journal.records().iter().map(|record| record.sequence).collect();
        assert_eq!(kept, [3, 4, 5]);
        assert_eq!((journal.count(), journal.count_processed(), journal.count_dropped()), (5, 5, 2));
    }

    #[test]
    fn switched_off_it_still_counts() {
        let journal = Journal::open(0, None).unwrap();
        journal.note(false, |_| unreachable!("no record is made"));
        assert_eq!((journal.count(), journal.count_processed()), (1, 0));
    }

    #[test]
    fn the_file_has_a_line_for_each_record() {
        let path = std::env::temp_dir().join(format!("ringcast-journal-{}.jsonl", std::process::id()));
        let journal = Journal::open(0, Some(&path)).unwrap();
        journal.note(true, record);
        journal
            .note(true, |sequence| Record { body: Body(Bytes::from_static(b"no JSON")), ..record(sequence) });
        journal.flush().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["body"], serde_json::json!({"a": 1}));
        assert_eq!(lines[1]["body"], "no JSON");
        assert_eq!(lines[1]["sequence"], 2);
        assert_eq!(lines[0]["processed"], true);
        assert_eq!(lines[0].get("reason"), None);
        assert_eq!(journal.records(), []);
    }

    #[test]
    fn a_full_disk_is_told_at_the_end() {
        let journal = Journal::open(0, Some(Path::new("/dev/full"))).unwrap();
        journal.note(true, record);
        assert!(journal.flush().is_err());
        assert!(journal.flush().is_err(), "and again");
    }

    #[tokio::test]
    async fn waiting_ends_with_the_right_request() {
        let journal = Journal::open(10, None).unwrap();
        journal.note(true, record);
        journal.wait_for(1).await;
        let note = async {
            tokio::task::yield_now().await;
            journal.note(true, record);
        };
        tokio::join!(journal.wait_for(2), note);
        assert_eq!(journal.count(), 2);
    }
}
