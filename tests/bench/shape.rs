//! Invites of a shape: so many devices each, to so many apps in turn; and their outcomes. Calls and tokens are those of `traffic.rs`.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use ringcast::domain::timestamp::Timestamp;
use serde::Deserialize;

use super::{Failure, traffic, worker};

/// Invites that share a look at the clock, and a write.
const INVITES_A_LOOK: u64 = 256;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub devices: u64,
    pub apps: u64,
}

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
    attempts: u64,
}

impl Shape {
    pub const ONE: Self = Self { devices: 1, apps: 1 };

    /// Writes invites `from..to` of a run, one JSON line each.
    pub fn write(&self, mut out: impl Write, run: u32, from: u64, to: u64) -> Result<(), Failure> {
        let mut lines = Vec::new();
        let mut instants = String::new();
        for number in from..to {
            if instants.is_empty() || number % INVITES_A_LOOK == 0 {
                out.write_all(&lines)?;
                lines.clear();
                let deadline = traffic::deadline();
                let made = Timestamp::from_unix_ms(ringcast::clock::Clock::system().unix_ms());
                instants = format!(r#""deadline":"{deadline}","created_at":"{made}""#);
            }
            write!(
                lines,
                r#"{{"call_id":"{}","app":"{}",{instants},"caller":{{"handle":"+15551234567","name":"Ada Lovelace"}},"has_video":false,"devices":["#,
                traffic::call_id(run, number),
                worker::app(number % self.apps),
            )?;
            for device in 0..self.devices {
                let comma = if device == 0 { "" } else { "," };
                write!(
                    lines,
                    r#"{comma}{{"token":"{}","environment":"production","id":"phone-{device}"}}"#,
                    traffic::token(run, number * self.devices + device),
                )?;
            }
            lines.extend_from_slice(b"],\"payload\":{\"room\":\"r-17\"}}\n");
        }
        out.write_all(&lines)?;
        out.flush()?;
        Ok(())
    }

    /// Reads so many outcomes of a run and checks that each is another one's, with all its devices accepted. `progress` counts along.
    pub fn read(
        &self,
        from: &mut impl BufRead,
        run: u32,
        seen: &mut [bool],
        count: u64,
        progress: &AtomicU64,
    ) -> Result<(), Failure> {
        let mut line = Vec::new();
        for _ in 0..count {
            line.clear();
            if from.read_until(b'\n', &mut line)? == 0 {
                return Err("the outcomes ended too early".into());
            }
            self.judge(&line, run, seen)
                .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&line)))?;
            progress.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn judge(&self, line: &[u8], run: u32, seen: &mut [bool]) -> Result<(), Failure> {
        let outcome: Outcome<'_> = serde_json::from_slice(line)?;
        let number = outcome.call_id.rsplit('-').next().unwrap_or_default();
        let number = u64::from_str_radix(number, 16)?;
        if outcome.kind != "ringcast.outcome.v1" || outcome.call_id != traffic::call_id(run, number) {
            return Err("not an outcome of this run".into());
        }
        let accepted = outcome.devices.iter().all(|device| device.result == "accepted");
        if outcome.result != "accepted" || !accepted || outcome.devices.len() as u64 != self.devices {
            return Err("not accepted on all devices".into());
        }
        let first = traffic::token(run, number * self.devices);
        if outcome.devices.first().is_none_or(|device| device.token != first || device.attempts == 0) {
            return Err("not its devices".into());
        }
        let seen = seen.get_mut(usize::try_from(number)?).ok_or("nobody sent that invite")?;
        if std::mem::replace(seen, true) {
            return Err("a second outcome for one invite".into());
        }
        Ok(())
    }
}
