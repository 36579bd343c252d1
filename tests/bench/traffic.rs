//! Invites that are made as they are sent, and outcomes that are judged as they come.
//!
//! Push `n` of run `r` has a call id and a device token of its own, both computed from the two numbers, so that nothing is
//! kept to check an outcome but one bit.

use std::io::{BufRead, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringcast::clock::Clock;
use ringcast::domain::timestamp::Timestamp;
use serde::Deserialize;

use super::Failure;

/// From an invite to its deadline: less than `worker.deadline_max`, and far more than any run needs.
const RING_TIME: Duration = Duration::from_mins(4);

/// Invites that share a look at the clock, and a write.
const INVITES_A_LOOK: u64 = 256;

/// The call id of a push.
pub fn call_id(run: u32, number: u64) -> String {
    String::from_utf8_lossy(&call_id_bytes(run, number)).into_owned()
}

/// The same without a formatter and an allocation, for who is measured himself.
pub fn call_id_bytes(run: u32, number: u64) -> [u8; 36] {
    let mut text = *b"........-0000-4000-8000-............";
    write_hex(&run.to_be_bytes(), &mut text[..8]);
    write_hex(&number.to_be_bytes()[2..], &mut text[24..]);
    text
}

/// The device token of a push: 32 bytes in hex that look like nothing else, as Apple's do (`SplitMix64`).
pub fn token(run: u32, number: u64) -> String {
    String::from_utf8_lossy(&token_bytes(run, number)).into_owned()
}

/// The same without a formatter and an allocation.
pub fn token_bytes(run: u32, number: u64) -> [u8; 64] {
    let mut text = [0; 64];
    let mut state = (u64::from(run) << 40) ^ number;
    for digits in text.chunks_exact_mut(16) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        write_hex(&word.to_be_bytes(), digits);
    }
    text
}

fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(digits.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// The push body that the worker makes of such an invite, for the reference to send the same.
pub fn push_body(call_id: &str, deadline: Timestamp) -> String {
    format!(
        r#"{{"aps":{{}},"callUUID":"{call_id}","handle":"+15551234567","callerName":"Ada Lovelace","hasVideo":false,"expiresAt":{},"room":"r-17"}}"#,
        deadline.unix_seconds()
    )
}

/// The deadline of an invite that is made now.
pub fn deadline() -> Timestamp {
    now().plus(RING_TIME)
}

fn now() -> Timestamp {
    Timestamp::from_unix_ms(Clock::system().unix_ms())
}

/// The name of an app; the first one is the one that invites have by themselves.
pub fn app(number: u64) -> String {
    if number == 0 { "acme".to_owned() } else { format!("acme-{number}") }
}

/// What invites are like: so many devices each, to so many apps in turn.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub devices: u64,
    pub apps: u64,
}

impl Shape {
    pub const ONE: Self = Self { devices: 1, apps: 1 };

    /// Writes these invites of a run, one JSON line each, as fast as they are taken.
    pub fn write(&self, mut to: impl Write, run: u32, invites: Range<u64>) -> Result<(), Failure> {
        let mut lines = Vec::new();
        let mut instants = String::new();
        for number in invites {
            if instants.is_empty() || number % INVITES_A_LOOK == 0 {
                to.write_all(&lines)?;
                lines.clear();
                instants = format!(r#""deadline":"{}","created_at":"{}""#, deadline(), now());
            }
            write!(
                lines,
                r#"{{"call_id":"{}","app":"{}",{instants},"caller":{{"handle":"+15551234567","name":"Ada Lovelace"}},"has_video":false,"devices":["#,
                call_id(run, number),
                app(number % self.apps),
            )?;
            for device in 0..self.devices {
                write!(
                    lines,
                    r#"{}{{"token":"{}","environment":"production","id":"phone-{}"}}"#,
                    if device == 0 { "" } else { "," },
                    token(run, number * self.devices + device),
                    device + 1,
                )?;
            }
            lines.extend_from_slice(b"],\"payload\":{\"room\":\"r-17\"}}\n");
        }
        to.write_all(&lines)?;
        to.flush()?;
        Ok(())
    }

    /// Reads so many outcomes of a run, and checks that each is another invite's, with all its devices accepted. `seen` has a place for
    /// each invite of the run, `progress` counts along. How many attempts it took comes back.
    pub fn read(
        &self,
        from: &mut impl BufRead,
        run: u32,
        seen: &mut [bool],
        count: u64,
        progress: &AtomicU64,
    ) -> Result<u64, Failure> {
        let mut attempts = 0;
        let mut line = Vec::new();
        for read in 0..count {
            line.clear();
            if from.read_until(b'\n', &mut line)? == 0 {
                return Err(format!("the outcomes ended after {read} of {count}").into());
            }
            attempts += self
                .judge(&line, run, seen)
                .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&line)))?;
            progress.fetch_add(1, Ordering::Relaxed);
        }
        Ok(attempts)
    }

    /// The same for all outcomes of a run with so many invites.
    pub fn read_all(
        &self,
        from: &mut impl BufRead,
        run: u32,
        count: u64,
        progress: &AtomicU64,
    ) -> Result<u64, Failure> {
        self.read(from, run, &mut vec![false; usize::try_from(count)?], count, progress)
    }

    fn judge(&self, line: &[u8], run: u32, seen: &mut [bool]) -> Result<u64, Failure> {
        let outcome: Outcome<'_> = serde_json::from_slice(line)?;
        let number = outcome.call_id.rsplit('-').next().unwrap_or_default();
        let number = u64::from_str_radix(number, 16)?;
        if outcome.kind != "ringcast.outcome.v1" || outcome.call_id != call_id(run, number) {
            return Err("not an outcome of this run".into());
        }
        let accepted = |device: &Device<'_>| device.result == "accepted" && device.status == 200;
        if outcome.result != "accepted" || !outcome.devices.iter().all(accepted) {
            return Err("not accepted".into());
        }
        let first = outcome.devices.first().map(|device| device.token);
        if outcome.devices.len() as u64 != self.devices
            || first != Some(token(run, number * self.devices).as_str())
        {
            return Err("not its devices".into());
        }
        let seen = seen.get_mut(usize::try_from(number)?).ok_or("nobody sent that invite")?;
        if std::mem::replace(seen, true) {
            return Err("a second outcome for one invite".into());
        }
        Ok(outcome.devices.iter().map(|device| device.attempts).sum())
    }
}

/// What the benchmark reads of an outcome.
#[derive(Deserialize)]
struct Outcome<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    call_id: &'a str,
    result: &'a str,
    devices: Vec<Device<'a>>,
}

#[derive(Deserialize)]
struct Device<'a> {
    token: &'a str,
    result: &'a str,
    status: u16,
    attempts: u64,
}

/// The number of the push that an outcome is about, and nothing else of it.
pub fn number_of(line: &[u8]) -> Result<u64, Failure> {
    const NAME: &str = r#""call_id":""#;
    let line = std::str::from_utf8(line)?;
    let start = line.find(NAME).ok_or("an outcome without a call id")? + NAME.len();
    let call_id = line.get(start..start + 36).ok_or("an outcome with a short call id")?;
    Ok(u64::from_str_radix(call_id.rsplit('-').next().unwrap_or_default(), 16)?)
}
