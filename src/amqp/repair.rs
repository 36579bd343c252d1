//! Texts from the broker that are no UTF-8 are made ASCII before the client library sees them.
//!
//! AMQP's short strings are bytes, and RabbitMQ passes them on as they are. The client library takes one that is no UTF-8
//! (a UUID of 16 raw bytes as `message_id`, say) for a broken connection and closes it. The message would be delivered
//! again, to the next worker, and take the connection and everything prefetched with it down each time, until the
//! delivery limit; its innocent neighbours would run into the same limit. So the frames that carry a publisher's texts,
//! `basic.deliver` and the content header, are read here on their way, and in such a text every byte from 0x80 on loses its
//! highest bit. Lengths stay, so nothing moves; two ids stay two, unless they differ in those bits alone.
//!
//! AMQP 0-9-1, 2.3 (frames), 4.2.5 (fields), 4.2.6 (content header); RabbitMQ docs, *AMQP 0-9-1 Errata*, for field types.

use super::uri::FRAME_MAX;

/// Octets of a frame before its payload: type, channel, size.
const PREFIX: usize = 7;
/// Frame types.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Class and method ids of `basic.deliver`.
const DELIVER: [u8; 4] = [0, 60, 0, 60];
/// Tables in tables, at most; deeper ones are left as they are.
const DEPTH_MAX: usize = 32;

/// Follows the frames of one connection.
#[derive(Debug, Default)]
pub(super) struct Repair {
    /// Octets of the present frame that pass unread.
    passing: usize,
    /// What comes is not as expected: the client library shall judge it.
    off: bool,
}

impl Repair {
    /// Repairs every whole frame in `bytes`, which follow those of the last call, and returns how many of them may be handed
    /// on. The rest belongs to a frame that must be whole first: hand it in again, with more behind it.
    pub(super) fn pass(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while !self.off && at < bytes.len() {
            if self.passing > 0 {
                let passed = self.passing.min(bytes.len() - at);
                self.passing -= passed;
                at += passed;
                continue;
            }
            let Some(prefix) = bytes[at..].first_chunk::<PREFIX>() else {
                // What begins like no frame (a protocol header) is not waited for.
                self.off = !matches!(bytes[at], METHOD | HEADER | BODY | HEARTBEAT);
                if self.off {
                    break;
                }
                return at;
            };
            let kind = prefix[0];
            let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
            let Some(size) = usize::try_from(size).ok().filter(|_| size <= FRAME_MAX) else {
                self.off = true;
                break;
            };
            match kind {
                // With the octet that ends a frame.
                BODY | HEARTBEAT => self.passing = PREFIX + size + 1,
                METHOD | HEADER => {
                    let Some(payload) = bytes.get_mut(at + PREFIX..at + PREFIX + size) else { return at };
                    // `None`: it is not as it should be, and the rest of it stays as it is.
                    let _ = if kind == METHOD { repair_deliver(payload) } else { repair_header(payload) };
                    self.passing = PREFIX + size + 1;
                }
                _ => self.off = true,
            }
        }
        bytes.len()
    }
}

/// `basic.deliver`: consumer tag, delivery tag, redelivered, exchange, routing key.
fn repair_deliver(payload: &mut [u8]) -> Option<()> {
    let mut fields = Fields { bytes: payload, at: 0 };
    if fields.take(4)? != DELIVER {
        return None;
    }
    fields.short_string()?;
    fields.take(8 + 1)?;
    fields.short_string()?;
    fields.short_string()
}

/// A content header of class `basic`: class, weight, body size, flags, and the properties that the flags announce.
fn repair_header(payload: &mut [u8]) -> Option<()> {
    let mut fields = Fields { bytes: payload, at: 0 };
    fields.take(2 + 2 + 8)?;
    let flags = u16::from_be_bytes(fields.take(2)?.try_into().ok()?);
    for property in 0..14 {
        if flags & (0x8000 >> property) == 0 {
            continue;
        }
        match property {
            2 => fields.table(0)?,
            // delivery-mode, priority, timestamp; all others are short strings.
            3 | 4 => drop(fields.take(1)?),
            9 => drop(fields.take(8)?),
            _ => fields.short_string()?,
        }
    }
    Some(())
}

/// A walk through the fields of a payload. `None`: a field reaches beyond its end.
struct Fields<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Fields<'_> {
    fn take(&mut self, count: usize) -> Option<&mut [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get_mut(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn long(&mut self) -> Option<usize> {
        usize::try_from(u32::from_be_bytes(self.take(4)?.try_into().ok()?)).ok()
    }

    fn short_string(&mut self) -> Option<()> {
        let length = self.take(1)?[0];
        let text = self.take(usize::from(length))?;
        if std::str::from_utf8(text).is_err() {
            for byte in text {
                *byte &= 0x7f;
            }
        }
        Some(())
    }

    fn table(&mut self, depth: usize) -> Option<()> {
        let length = self.long()?;
        let end = self.at.checked_add(length).filter(|_| depth < DEPTH_MAX)?;
        while self.at < end {
            self.short_string()?;
            self.value(depth)?;
        }
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        let length = match self.take(1)?[0] {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' => self.long()?,
            b'F' => return self.table(depth + 1),
            b'A' => {
                let length = self.long()?;
                let end = self.at.checked_add(length).filter(|_| depth < DEPTH_MAX)?;
                while self.at < end {
                    self.value(depth + 1)?;
                }
                return Some(());
            }
            _ => return None,
        };
        self.take(length).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1], &size[..], payload, &[0xce]].concat()
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn deliver(key: &[u8]) -> Vec<u8> {
        frame(METHOD, &[&DELIVER[..], &short(b"tag"), &[0; 9], &short(b"exchange"), &short(key)].concat())
    }

    /// Headers with a key, a nested key and one of every type; delivery mode, message id and timestamp.
    fn header(key: &[u8], id: &[u8]) -> Vec<u8> {
        let nested = long(&[short(key), b"V".to_vec()].concat());
        let array = long(&[b"t\x01F".to_vec(), nested.clone(), b"S".to_vec(), long(b"\xff")].concat());
        let mut table = Vec::new();
        for value in [
            b"t\x01".to_vec(),
            b"b\x01".to_vec(),
            b"B\x01".to_vec(),
            b"s\xff\xff".to_vec(),
            b"u\xff\xff".to_vec(),
            b"I\0\0\0\xff".to_vec(),
            b"i\0\0\0\xff".to_vec(),
            b"f\0\0\0\xff".to_vec(),
            b"D\x01\0\0\0\xff".to_vec(),
            [b"l".to_vec(), vec![0xff; 8]].concat(),
            [b"d".to_vec(), vec![0xff; 8]].concat(),
            [b"T".to_vec(), vec![0xff; 8]].concat(),
            [b"S".to_vec(), long(b"\xff\xfe")].concat(),
            [b"x".to_vec(), long(b"\xff")].concat(),
            [b"F".to_vec(), nested].concat(),
            [b"A".to_vec(), array].concat(),
            b"V".to_vec(),
        ] {
            table.extend([short(key), value].concat());
        }
        let flags = 0x2000_u16 | 0x1000 | 0x0080 | 0x0040;
        let payload =
            [&[0, 60, 0, 0][..], &[0; 8], &flags.to_be_bytes(), &long(&table), &[2], &short(id), &[0xff; 8]]
                .concat();
        frame(HEADER, &payload)
    }

    fn passed(stream: &[u8], chunks: &[usize]) -> Vec<u8> {
        let (mut repair, mut held, mut out, mut at) = (Repair::default(), Vec::new(), Vec::new(), 0);
        let mut chunks = chunks.iter().cycle();
        while at < stream.len() {
            let end = stream.len().min(at + chunks.next().unwrap());
            held.extend_from_slice(&stream[at..end]);
            at = end;
            let count = repair.pass(&mut held);
            out.extend(held.drain(..count));
        }
        assert!(held.is_empty(), "a whole stream passes whole");
        out
    }

    #[test]
    fn odd_texts_become_ascii_and_nothing_else_changes() {
        let stream = |key: &[u8], id: &[u8]| {
            [deliver(key), header(key, id), frame(BODY, b"\xff\xfe"), frame(HEARTBEAT, b"")].concat()
        };
        assert_eq!(passed(&stream(b"k\xff", b"\x9fid\x80"), &[4096]), stream(b"k\x7f", b"\x1fid\0"));
        let right = stream("clé".as_bytes(), "é".as_bytes());
        assert_eq!(passed(&right, &[4096]), right, "UTF-8 passes as it is");
    }

    #[test]
    fn what_is_no_frame_is_left_to_the_client_library() {
        for odd in [
            &b"AMQP\x00\x00\x09\x01"[..],
            b"HTTP/1.1 400 Bad Request\r\n",
            b"\x01\0\0\xff\xff\xff\xff\xff",
            b"A",
        ] {
            assert_eq!(passed(odd, &[3]), odd);
        }
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(
            texts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..40)), 1..6),
            chunks in prop::collection::vec(1_usize..200, 1..20),
        ) {
            let stream: Vec<_> = texts
                .iter()
                .flat_map(|(key, id)| [deliver(key), header(key, id), frame(BODY, id)].concat())
                .collect();
            let whole = passed(&stream, &[stream.len()]);
            prop_assert_eq!(whole.len(), stream.len());
            prop_assert_eq!(passed(&stream, &chunks), whole);
        }

        /// Whatever stands in a frame: no panic, nothing lost, nothing added.
        #[test]
        fn any_payload_passes(payload in prop::collection::vec(any::<u8>(), 0..300), kind in 1_u8..4) {
            let deliver = [&DELIVER[..], &payload].concat();
            let header = [&[0, 60, 0, 0][..], &[0; 8], &payload].concat();
            for payload in [payload, deliver, header] {
                let stream = frame(kind, &payload);
                prop_assert_eq!(passed(&stream, &[7]).len(), stream.len());
            }
        }
    }
}
