//! The bytes of one connection, seen frame by frame (RFC 9113 section 4.1).
//!
//! The `h2` crate serves HTTP/2, but a server built on it can neither change `MAX_CONCURRENT_STREAMS` after the
//! handshake nor put debug data into a GOAWAY. Apple does both: one stream until a valid provider token was answered,
//! one stream after a rejection, and a JSON reason in the GOAWAY. So [`Wire`] stands between `h2` and the transport:
//! it slips frames of its own in between two frames of `h2`, and keeps the acknowledgements of its own SETTINGS from
//! `h2`, which would take them for a protocol error. It can also stop the connection dead, swallow PINGs, and end it
//! politely.
//!
//! A [`Control`] is the handle to all that. It wakes nobody: whoever uses it polls the connection afterwards, which
//! is natural, because both live in the connection's one task.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Length of the client's connection preface (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
/// Length of every frame's header.
const HEADER_BYTES: usize = 9;
/// Bytes read ahead from the transport; also how much a frozen connection takes before it stops reading.
const BUFFER_BYTES: usize = 16 * 1024;

const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const ACK: u8 = 0x1;
const MAX_CONCURRENT_STREAMS: u16 = 0x3;

/// What the connection may do to its own [`Wire`].
#[derive(Debug)]
pub(super) struct Control {
    queue: Mutex<Queue>,
    queued: AtomicBool,
    limit: AtomicU32,
    frozen: AtomicBool,
    deaf: AtomicBool,
    ended: AtomicBool,
    flushed: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    frames: BytesMut,
    announced: VecDeque<u32>,
}

impl Control {
    /// `limit` is the stream limit that `h2` itself announces.
    pub(super) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::default(),
            queued: AtomicBool::new(false),
            limit: AtomicU32::new(limit),
            frozen: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            flushed: AtomicBool::new(false),
        })
    }

    /// Announces another stream limit; it is in force once the client has acknowledged it.
    pub(super) fn announce_limit(&self, streams: u32) {
        let mut queue = self.queue.lock();
        put_header(&mut queue.frames, 6, SETTINGS);
        queue.frames.put_u16(MAX_CONCURRENT_STREAMS);
        queue.frames.put_u32(streams);
        queue.announced.push_back(streams);
        self.queued.store(true, Relaxed);
    }

    /// Sends GOAWAY with `debug` as its data (RFC 9113 section 6.8).
    pub(super) fn send_go_away(&self, last_stream_id: u32, code: u32, debug: &[u8]) {
        let mut queue = self.queue.lock();
        put_header(&mut queue.frames, 8 + debug.len(), GOAWAY);
        queue.frames.put_u32(last_stream_id);
        queue.frames.put_u32(code);
        queue.frames.put_slice(debug);
        self.queued.store(true, Relaxed);
    }

    /// The stream limit that the client has acknowledged.
    pub(super) fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// Stops (or resumes) the connection: nothing is read or written any more, the transport stays open.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Relaxed);
    }

    /// Lets PINGs from now on go unanswered (or answers them again).
    pub(super) fn deafen(&self, deaf: bool) {
        self.deaf.store(deaf, Relaxed);
    }

    /// Ends the connection politely: `h2` reads an end of file, flushes what it has and closes the transport.
    pub(super) fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    /// True when everything written so far, frames of ours included, has reached the transport.
    pub(super) fn is_flushed(&self) -> bool {
        self.flushed.load(Relaxed) && !self.queued.load(Relaxed)
    }

    fn take_frames(&self) -> BytesMut {
        self.queued.store(false, Relaxed);
        self.queue.lock().frames.split()
    }

    fn acknowledge(&self) {
        if let Some(limit) = self.queue.lock().announced.pop_front() {
            self.limit.store(limit, Relaxed);
        }
    }
}

fn put_header(frames: &mut BytesMut, payload_bytes: usize, kind: u8) {
    frames.put_uint(payload_bytes as u64, 3);
    frames.put_u8(kind);
    frames.put_u8(0);
    frames.put_u32(0);
}

/// A transport with a [`Control`].
pub(super) struct Wire<T> {
    io: T,
    control: Arc<Control>,
    incoming: Incoming,
    outgoing: Outgoing,
    /// Frames of ours that are being written.
    slipped_in: BytesMut,
}

impl<T> Wire<T> {
    pub(super) fn new(io: T, control: Arc<Control>) -> Self {
        Self {
            io,
            control,
            incoming: Incoming::new(),
            outgoing: Outgoing::default(),
            slipped_in: BytesMut::new(),
        }
    }
}

impl<T> Wire<T> {
    /// Frozen, and the client is still there. Once it has left, nothing may keep `h2` from ending.
    fn is_stuck(&self) -> bool {
        self.control.frozen.load(Relaxed) && !self.incoming.at_end
    }
}

impl<T: AsyncWrite + Unpin> Wire<T> {
    /// Writes our own frames, if any wait and `h2` is between two of its.
    fn poll_slip_in(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.slipped_in.is_empty() {
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.slipped_in))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.slipped_in.advance(written);
            }
            if !self.control.queued.load(Relaxed) || !self.outgoing.is_between_frames() {
                return Poll::Ready(Ok(()));
            }
            self.slipped_in = self.control.take_frames();
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let filled_before = buf.filled().len();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let frozen = this.control.frozen.load(Relaxed);
            if !frozen {
                this.incoming.hand_out(buf, &this.control);
                if buf.filled().len() > filled_before || this.control.ended.load(Relaxed) {
                    return Poll::Ready(Ok(()));
                }
            }
            if this.incoming.at_end {
                return Poll::Ready(Ok(()));
            }
            let Some(space) = this.incoming.space() else {
                return Poll::Pending; // frozen and full
            };
            let mut chunk = ReadBuf::new(space);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut chunk))?;
            let read = chunk.filled().len();
            this.incoming.end += read;
            this.incoming.at_end = read == 0;
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.control.flushed.store(false, Relaxed);
        if this.is_stuck() {
            return Poll::Pending;
        }
        ready!(this.poll_slip_in(cx))?;
        let take = if this.control.queued.load(Relaxed) { this.outgoing.to_boundary(buf) } else { buf.len() };
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, &buf[..take]))?;
        this.outgoing.track(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_stuck() {
            return Poll::Pending;
        }
        ready!(self.poll_slip_in(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.control.flushed.store(true, Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_stuck() {
            return Poll::Pending;
        }
        ready!(self.poll_slip_in(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Where the outgoing bytes of `h2` stand within a frame.
#[derive(Default)]
struct Outgoing {
    header: [u8; HEADER_BYTES],
    header_have: usize,
    payload_left: usize,
    /// The first frame must be the server's SETTINGS (RFC 9113 section 3.4).
    first_is_out: bool,
}

impl Outgoing {
    fn is_between_frames(&self) -> bool {
        self.first_is_out && self.header_have == 0 && self.payload_left == 0
    }

    /// How much of `buf` may go out before the next chance to look.
    fn to_boundary(&self, buf: &[u8]) -> usize {
        let wanted = if self.payload_left > 0 { self.payload_left } else { HEADER_BYTES - self.header_have };
        wanted.min(buf.len())
    }

    fn track(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let part = self.payload_left.min(bytes.len());
                self.payload_left -= part;
                bytes = &bytes[part..];
            } else {
                let part = (HEADER_BYTES - self.header_have).min(bytes.len());
                self.header[self.header_have..self.header_have + part].copy_from_slice(&bytes[..part]);
                self.header_have += part;
                bytes = &bytes[part..];
                if self.header_have < HEADER_BYTES {
                    continue;
                }
                self.header_have = 0;
                self.payload_left = payload_bytes(&self.header);
            }
            self.first_is_out |= self.payload_left == 0;
        }
    }
}

/// Bytes from the client that were read and not yet handed to `h2`.
struct Incoming {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes that go to `h2` without another look: the preface, or the rest of a frame.
    pass: usize,
    /// Bytes that do not reach `h2`.
    skip: usize,
    first_ack_seen: bool,
    at_end: bool,
}

impl Incoming {
    fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            pass: PREFACE_BYTES,
            skip: 0,
            first_ack_seen: false,
            at_end: false,
        }
    }

    fn hand_out(&mut self, buf: &mut ReadBuf<'_>, control: &Control) {
        while buf.remaining() > 0 && self.start < self.end {
            let have = self.end - self.start;
            if self.skip > 0 {
                let part = self.skip.min(have);
                self.skip -= part;
                self.start += part;
            } else if self.pass > 0 {
                let part = self.pass.min(have).min(buf.remaining());
                buf.put_slice(&self.buffer[self.start..self.start + part]);
                self.pass -= part;
                self.start += part;
            } else if have < HEADER_BYTES {
                if !self.at_end {
                    return;
                }
                self.pass = have; // a torn frame: let h2 judge it
            } else {
                self.look_at_header(control);
            }
        }
    }

    fn look_at_header(&mut self, control: &Control) {
        let header = &self.buffer[self.start..self.start + HEADER_BYTES];
        let frame_bytes = HEADER_BYTES + payload_bytes(header);
        let (kind, acknowledges) = (header[3], header[4] & ACK != 0);
        if kind == SETTINGS && acknowledges && self.first_ack_seen {
            control.acknowledge();
            self.skip = frame_bytes;
        } else if kind == PING && !acknowledges && control.deaf.load(Relaxed) {
            self.skip = frame_bytes;
        } else {
            self.first_ack_seen |= kind == SETTINGS && acknowledges;
            self.pass = frame_bytes;
        }
    }

    /// Room to read into; `None` when the buffer is full.
    fn space(&mut self) -> Option<&mut [u8]> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        (self.end < self.buffer.len()).then(|| &mut self.buffer[self.end..])
    }
}

fn payload_bytes(header: &[u8]) -> usize {
    usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2])
}

#[cfg(test)]
mod tests;
