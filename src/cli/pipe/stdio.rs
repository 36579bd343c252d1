//! stdin and stdout of `ringcast pipe`: as pipes on the core's thread, as anything else by way of another one.
//!
//! A pipe can say when there is something to read, and need not block. A terminal or a file is read and written on a thread for each: such a
//! read cannot be called off, and such a write may take its time. Whether an end of a pipe blocks is the same for all who were given it
//! (a shell, the log, a second process); so it is not changed, but opened once more.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// Where Linux has what this process was given; opened, a pipe is the same pipe.
const STDIN: &str = "/proc/self/fd/0";
const STDOUT: &str = "/proc/self/fd/1";

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
    end: Option<pipe::Receiver>,
    buffer: Vec<u8>,
    line: Line,
}

impl Lines {
    /// Those of this process.
    pub(super) fn of_stdin(bytes_max: usize) -> io::Result<Self> {
        let line = Line::new(bytes_max);
        if let Some(end) = opened(STDIN, |options| options.open_receiver(STDIN)) {
            return Ok(Self::Pipe(LinesOfPipe { end: Some(end), buffer: vec![0; CHUNK_BYTES], line }));
        }
        let (lines, read) = mpsc::channel(CHUNKS_AHEAD);
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || read_lines(io::stdin().lock(), line, &lines))?;
        Ok(Self::Thread(read))
    }

    /// Those of the next read; `None` when there are no more. Dropped before, it has lost nothing.
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
            let read = self.end.as_mut()?.read(&mut self.buffer).await;
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

/// stdout.
pub(super) enum Stdout {
    /// Written here.
    Pipe(pipe::Sender),
    /// Written on a thread.
    Thread(Writing),
}

/// A thread that writes, one text at a time.
pub(super) struct Writing {
    texts: mpsc::Sender<Vec<u8>>,
    written: mpsc::Receiver<io::Result<Vec<u8>>>,
}

impl Stdout {
    /// That of this process.
    pub(super) fn open() -> io::Result<Self> {
        // What this process has written by the library so far goes first.
        io::stdout().flush()?;
        Self::of(STDOUT)
    }

    fn of(path: &str) -> io::Result<Self> {
        match opened(path, |options| options.open_sender(path)) {
            Some(end) => Ok(Self::Pipe(end)),
            // Not by the library's, which takes a descriptor that cannot be written (EBADF) for one that was.
            None => Writing::start(File::from(io::stdout().as_fd().try_clone_to_owned()?)).map(Self::Thread),
        }
    }

    /// Writes all of the text, and gives it back. After an error, or let go of before its end, it must not be called again.
    pub(super) async fn write(&mut self, text: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Pipe(end) => end.write_all(text).await,
            Self::Thread(writing) => writing.write(text).await,
        }
    }
}

impl Writing {
    fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let ((texts, given), (done, written)) = (mpsc::channel(1), mpsc::channel(1));
        std::thread::Builder::new()
            .name("stdout".to_owned())
            .spawn(move || write_texts(output, given, &done))?;
        Ok(Self { texts, written })
    }

    async fn write(&mut self, text: &mut Vec<u8>) -> io::Result<()> {
        let gone = || io::Error::other("the thread that writes is gone");
        self.texts.send(std::mem::take(text)).await.map_err(|_| gone())?;
        *text = self.written.recv().await.ok_or_else(gone)??;
        Ok(())
    }
}

/// Writes texts until there are no more, and gives each back when it is written.
fn write_texts(
    mut output: impl Write,
    mut texts: mpsc::Receiver<Vec<u8>>,
    written: &mpsc::Sender<io::Result<Vec<u8>>>,
) {
    while let Some(text) = texts.blocking_recv() {
        let done = output.write_all(&text).and_then(|()| output.flush());
        if written.blocking_send(done.map(|()| text)).is_err() {
            return;
        }
    }
}

/// An end of a pipe that does not block, if the path leads to a pipe that may be opened: it may be somebody else's.
fn opened<T>(path: &str, open: impl FnOnce(&pipe::OpenOptions) -> io::Result<T>) -> Option<T> {
    let is_pipe = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    if is_pipe { open(&pipe::OpenOptions::new()).ok() } else { None }
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
    fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: Vec::new(), too_long: false }
    }

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
    use std::os::fd::AsRawFd;

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
        let line = Line::new(bytes_max);
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

    fn lines_of(end: pipe::Receiver, at_once: usize) -> Lines {
        Lines::Pipe(LinesOfPipe { end: Some(end), buffer: vec![0; at_once], line: Line::new(100) })
    }

    #[tokio::test]
    async fn a_pipe_gives_the_same_lines_as_a_thread() {
        let (mut writer, end) = pipe::pipe().expect("a pipe");
        let mut lines = lines_of(end, 4);
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
        let mut lines = lines_of(end, 64);
        writer.write_all(b"{a}\n{b").await.expect("there is room");
        assert_eq!(lines.next().await.expect("a line"), ["{a}"]);
        lines.close();
        assert_eq!(lines.next().await, None);
    }

    #[tokio::test]
    async fn an_end_that_is_opened_once_more_is_the_same_pipe_and_blocks_nobody_else() {
        let (given, mut writer) = io::pipe().expect("a pipe");
        let path = format!("/proc/self/fd/{}", given.as_raw_fd());
        let end = opened(&path, |options| options.open_receiver(&path)).expect("it is a pipe");
        let mut lines = lines_of(end, 64);
        writer.write_all(b"{a}\n").expect("there is room");
        assert_eq!(lines.next().await.expect("a line"), ["{a}"]);
        // Whoever has the end that was given still waits in a read.
        let mut reading = tokio::task::spawn_blocking(|| Read::read(&mut { given }, &mut [0]));
        let early = tokio::time::timeout(std::time::Duration::from_millis(100), &mut reading).await;
        assert!(early.is_err(), "{early:?}");
        drop(writer);
        assert_eq!(reading.await.expect("it lives").expect("it blocks"), 0);
        assert_eq!(lines.next().await, None);
    }

    #[tokio::test]
    async fn a_thread_writes_and_tells_when_it_cannot() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut writing = Writing::start(writer).expect("a thread");
        for text in ["{a}\n", "{b}\n"] {
            let mut given = text.as_bytes().to_vec();
            writing.write(&mut given).await.expect("it is taken");
            assert_eq!(given, text.as_bytes());
        }
        let mut read = [0; 8];
        reader.read_exact(&mut read).expect("it was written");
        assert_eq!(&read, b"{a}\n{b}\n");
        // More than the pipe holds: it is not written before somebody reads.
        let mut long = vec![b'x'; 1 << 20];
        {
            let mut write = std::pin::pin!(writing.write(&mut long));
            let early = tokio::time::timeout(std::time::Duration::from_millis(100), &mut write).await;
            assert!(early.is_err(), "{early:?}");
            let reading = tokio::task::spawn_blocking(move || {
                let mut read = vec![0; 1 << 20];
                reader.read_exact(&mut read)
            });
            write.await.expect("somebody reads");
            reading.await.expect("it lives").expect("it was written");
        }
        let error = writing.write(&mut b"{c}\n".to_vec()).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_is_no_pipe_is_left_to_a_thread() {
        let file = "/proc/self/exe";
        assert!(opened(file, |options| options.open_receiver(file)).is_none());
        assert!(matches!(Stdout::of(file), Ok(Stdout::Thread(_))));
        let (_reader, writer) = io::pipe().expect("a pipe");
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        assert!(matches!(Stdout::of(&path), Ok(Stdout::Pipe(_))));
    }
}
