//! stdin and stdout of `ringcast pipe`: as pipes on the core's thread, as anything else by way of another one.
//!
//! A pipe can say when there is something to read, and does not block then. A terminal or a file is read on a thread of its own, because
//! such a read cannot be called off, and written on tokio's. A pipe that is not to block says so to everybody who has the same end of
//! it; so it is given back as it was, and one that the log goes to as well is left as it is.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// Bytes read at once at most: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks that a thread reads ahead.
const CHUNKS_AHEAD: usize = 2;

/// The lines of stdin, without the blanks around them, and without blank ones. Of a line that is too long only so much is kept as
/// shows that it is.
pub(super) enum Lines {
    /// Read here.
    Pipe(LinesOfPipe),
    /// Read on a thread.
    Thread(mpsc::Receiver<Vec<Bytes>>),
}

pub(super) struct LinesOfPipe {
    /// `None`: it has ended.
    end: Option<Blocking<pipe::Receiver>>,
    buffer: Vec<u8>,
    line: Line,
}

impl Lines {
    /// Those of this process.
    pub(super) fn of_stdin(bytes_max: usize) -> io::Result<Self> {
        let line = Line { bytes_max, bytes: Vec::new(), too_long: false };
        // An error: it is no pipe.
        if let Ok(end) = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?) {
            let end = Some(Blocking(Some(end)));
            return Ok(Self::Pipe(LinesOfPipe { end, buffer: vec![0; CHUNK_BYTES], line }));
        }
        let (lines, read) = mpsc::channel(CHUNKS_AHEAD);
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || read_lines(io::stdin().lock(), line, &lines))?;
        Ok(Self::Thread(read))
    }

    /// Those of the next read; `None` when there are no more. Dropped before, it has taken nothing.
    pub(super) async fn next(&mut self) -> Option<Vec<Bytes>> {
        match self {
            Self::Pipe(pipe) => pipe.next().await,
            Self::Thread(read) => read.recv().await,
        }
    }

    /// Reads no more.
    pub(super) fn close(&mut self) {
        match self {
            Self::Pipe(pipe) => pipe.end = None,
            Self::Thread(read) => read.close(),
        }
    }
}

impl LinesOfPipe {
    async fn next(&mut self) -> Option<Vec<Bytes>> {
        loop {
            let read = self.end.as_mut()?.get().read(&mut self.buffer).await;
            let lines = match read {
                Ok(0) => {
                    self.end = None;
                    vec![self.line.end()]
                }
                Ok(read) => self.line.split(&Bytes::copy_from_slice(&self.buffer[..read])),
                Err(error) => {
                    unreadable(&error);
                    self.end = None;
                    return None;
                }
            };
            let lines = not_blank(lines);
            if !lines.is_empty() {
                return Some(lines);
            }
        }
    }
}

/// An end of a pipe that blocks again when this is dropped.
pub(super) struct Blocking<T: BlocksAgain>(Option<T>);

impl<T: BlocksAgain> Blocking<T> {
    fn get(&mut self) -> &mut T {
        self.0.as_mut().expect("it is taken by the drop alone")
    }
}

impl<T: BlocksAgain> Drop for Blocking<T> {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            // Nobody is left who could be told.
            let _ = end.block_again();
        }
    }
}

pub(super) trait BlocksAgain {
    fn block_again(self) -> io::Result<()>;
}

impl BlocksAgain for pipe::Receiver {
    fn block_again(self) -> io::Result<()> {
        self.into_blocking_fd().map(drop)
    }
}

impl BlocksAgain for pipe::Sender {
    fn block_again(self) -> io::Result<()> {
        self.into_blocking_fd().map(drop)
    }
}

/// stdout.
pub(super) enum Stdout {
    /// Written here.
    Pipe(Blocking<pipe::Sender>),
    /// Written on one of tokio's threads.
    Thread(tokio::io::Stdout),
}

impl Stdout {
    /// That of this process.
    pub(super) fn open() -> io::Result<Self> {
        // What this process has written by the library so far goes first.
        io::stdout().flush()?;
        let (stdout, stderr) = (io::stdout(), io::stderr());
        if is_same(stdout.as_fd(), stderr.as_fd())? {
            return Ok(Self::Thread(tokio::io::stdout()));
        }
        Ok(match pipe::Sender::from_owned_fd(stdout.as_fd().try_clone_to_owned()?) {
            Ok(end) => Self::Pipe(Blocking(Some(end))),
            // It is no pipe.
            Err(_) => Self::Thread(tokio::io::stdout()),
        })
    }

    /// Writes all of it.
    pub(super) async fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(end) => end.get().write_all(text).await,
            Self::Thread(stdout) => {
                stdout.write_all(text).await?;
                stdout.flush().await
            }
        }
    }
}

/// Whether both lead to the same place.
fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let place = |fd: BorrowedFd<'_>| {
        let metadata = File::from(fd.try_clone_to_owned()?).metadata()?;
        Ok::<_, io::Error>((metadata.dev(), metadata.ino()))
    };
    Ok(place(one)? == place(other)?)
}

fn unreadable(error: &io::Error) {
    tracing::error!(%error, "stdin cannot be read; it counts as ended");
}

fn not_blank(lines: Vec<Bytes>) -> Vec<Bytes> {
    lines.into_iter().filter(|line| !line.is_empty()).collect()
}

/// Reads lines and sends them on, those of one read together.
fn read_lines(mut input: impl Read, mut line: Line, lines: &mpsc::Sender<Vec<Bytes>>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let (ready, ended) = match input.read(&mut buffer) {
            Ok(0) => (vec![line.end()], true),
            Ok(read) => (line.split(&Bytes::copy_from_slice(&buffer[..read])), false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return unreadable(&error),
        };
        let ready = not_blank(ready);
        if !ready.is_empty() && lines.blocking_send(ready).is_err() || ended {
            return;
        }
    }
}

/// A line of which the end was not read yet: without blanks before it, and cut off one byte over the limit.
pub(super) struct Line {
    bytes_max: usize,
    bytes: Vec<u8>,
    too_long: bool,
}

impl Line {
    /// The lines that end in a chunk; what is left of it begins the next one. A line that lies in the chunk as a whole is not
    /// copied.
    fn split(&mut self, chunk: &Bytes) -> Vec<Bytes> {
        let mut lines = Vec::new();
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let from = rest;
            // Reading from memory cannot fail.
            let length = rest.skip_until(b'\n').unwrap_or(from.len());
            match from[..length].strip_suffix(b"\n") {
                Some(whole) if self.bytes.is_empty() => {
                    let line = whole.trim_ascii();
                    lines.push(chunk.slice_ref(&line[..line.len().min(self.bytes_max + 1)]));
                }
                Some(last) => {
                    self.extend(last);
                    lines.push(self.end());
                }
                None => self.extend(from),
            }
        }
        lines
    }

    fn extend(&mut self, part: &[u8]) {
        let part = if self.bytes.is_empty() { part.trim_ascii_start() } else { part };
        let (kept, over) =
            part.split_at(part.len().min((self.bytes_max + 1).saturating_sub(self.bytes.len())));
        self.bytes.extend_from_slice(kept);
        self.too_long |= !over.trim_ascii().is_empty();
    }

    /// The line, without blanks behind it; the next one begins.
    fn end(&mut self) -> Bytes {
        let mut line = std::mem::take(&mut self.bytes);
        if !std::mem::take(&mut self.too_long) {
            line.truncate(line.trim_ascii_end().len());
        }
        line.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An input that gives so many bytes at once.
    struct Slow<'a> {
        input: &'a [u8],
        at_once: usize,
    }

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = buffer.len().min(self.at_once);
            Read::read(&mut self.input, &mut buffer[..most])
        }
    }

    fn lines(input: &str, bytes_max: usize, at_once: usize) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(100);
        let line = Line { bytes_max, bytes: Vec::new(), too_long: false };
        read_lines(Slow { input: input.as_bytes(), at_once }, line, &sender);
        drop(sender);
        let mut lines = Vec::new();
        while let Ok(more) = receiver.try_recv() {
            lines.extend(more.into_iter().map(|line| String::from_utf8(line.to_vec()).unwrap()));
        }
        lines
    }

    #[test]
    fn lines_are_trimmed_blank_ones_left_out_and_long_ones_cut() {
        for at_once in [1, 2, 3, 4, 5, 8, 100] {
            let lines = |input, bytes_max| lines(input, bytes_max, at_once);
            assert_eq!(lines("{a}\n\n  \r\n{b}\r\n{c}", 100), ["{a}", "{b}", "{c}"]);
            assert_eq!(lines("0123456789\nab\n", 4), ["01234", "ab"]);
            assert_eq!(lines("ab          \n          cd\n", 4), ["ab", "cd"]);
            assert_eq!(lines("ab          x\n   1234   \n", 4), ["ab   ", "1234"]);
            assert_eq!(lines("a b\n12345\n1234 \n", 4), ["a b", "12345", "1234"]);
            assert_eq!(lines("", 4), Vec::<String>::new());
        }
    }

    #[tokio::test]
    async fn a_pipe_gives_the_same_lines_as_a_thread() {
        let (mut writer, end) = pipe::pipe().expect("a pipe");
        let line = Line { bytes_max: 100, bytes: Vec::new(), too_long: false };
        let mut lines = Lines::Pipe(LinesOfPipe { end: Some(Blocking(Some(end))), buffer: vec![0; 4], line });
        let writing = async {
            for part in ["{a}\n\n", "  \r\n{", "b}", "\r\n{c}"] {
                writer.write_all(part.as_bytes()).await.expect("it is read");
            }
            drop(writer);
        };
        let reading = async {
            let mut all = Vec::new();
            while let Some(some) = lines.next().await {
                all.extend(some);
            }
            all
        };
        let ((), read) = tokio::join!(writing, reading);
        assert_eq!(read, ["{a}", "{b}", "{c}"]);
    }

    #[tokio::test]
    async fn what_is_closed_gives_no_more() {
        let (mut writer, end) = pipe::pipe().expect("a pipe");
        let line = Line { bytes_max: 100, bytes: Vec::new(), too_long: false };
        let mut lines =
            Lines::Pipe(LinesOfPipe { end: Some(Blocking(Some(end))), buffer: vec![0; 64], line });
        writer.write_all(b"{a}\n{b").await.expect("there is room");
        assert_eq!(lines.next().await.expect("a line"), ["{a}"]);
        lines.close();
        assert_eq!(lines.next().await, None);
    }

    #[tokio::test]
    async fn a_pipe_blocks_again_when_it_is_given_back() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let mut whose = reader.try_clone().expect("a second handle");
        let end = pipe::Receiver::from_owned_fd(reader.into()).expect("it is a pipe");
        let blocking = Blocking(Some(end));
        let early = Read::read(&mut whose, &mut [0]).map_err(|error| error.kind());
        assert_eq!(early, Err(io::ErrorKind::WouldBlock));
        drop(blocking);
        // Now it waits, until the other end is gone.
        let reading = std::thread::spawn(move || Read::read(&mut whose, &mut [0]));
        drop(writer);
        assert_eq!(reading.join().expect("it lives").expect("it blocks"), 0);
    }

    #[test]
    fn the_same_pipe_is_known_as_such() {
        let ((reader, writer), other) = (io::pipe().expect("a pipe"), io::pipe().expect("a pipe"));
        let again = writer.try_clone().expect("a second handle");
        assert!(is_same(writer.as_fd(), again.as_fd()).expect("both are there"));
        assert!(is_same(writer.as_fd(), reader.as_fd()).expect("both are there"));
        assert!(!is_same(writer.as_fd(), other.1.as_fd()).expect("both are there"));
    }
}
