//! The way of the log's lines to stderr: through memory that has a limit, to a thread that writes them.
//!
//! Whoever reads stderr may stop reading, and a write to it then waits for as long. No call may wait for that: what finds no room
//! is left out and counted.
//!
//! `tracing-appender` has such a thread, too. It bounds lines, not bytes, and when its queue is full at the end, it says so by a
//! write of its own that may wait forever, to the stdout that `ringcast pipe` keeps for outcomes.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Bytes of lines that wait at most, some thousand lines; the thread may hold as many.
const WAITING_MAX: usize = 1 << 20;

/// How long the end of the process waits for lines that nobody takes.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// The queue of lines; clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines.
    waiting: Vec<u8>,
    /// How many were left out.
    dropped: u64,
    /// The thread holds some that may not be written yet.
    is_writing: bool,
}

impl Lines {
    /// Lines that nobody writes.
    pub(super) fn unwritten() -> Self {
        Self(Arc::default())
    }

    /// Lines that a thread writes to this output. When some were left out and others are written again, `tell` hears how many
    /// were left out so far.
    pub(super) fn written_to(
        output: impl Write + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let lines = Self::unwritten();
        let queue = Arc::clone(&lines.0);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || queue.write_to(output, tell))?;
        Ok(lines)
    }

    /// Those that wait.
    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.queue.lock().waiting).into_owned()
    }

    /// How many were left out.
    pub(super) fn dropped(&self) -> u64 {
        self.0.queue.lock().dropped
    }

    /// Returns when all are written, or nobody has taken them within the limit.
    pub(super) fn finish(&self) {
        let mut queue = self.0.queue.lock();
        let is_left = |queue: &mut Queue| queue.is_writing || !queue.waiting.is_empty();
        self.0.written.wait_while_for(&mut queue, is_left, FINISH_WITHIN);
    }
}

/// Takes one line at a time, as a whole.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.queue.lock();
        if queue.waiting.len() + line.len() > WAITING_MAX {
            queue.dropped += 1;
        } else {
            queue.waiting.extend_from_slice(line);
            self.0.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// Writes for as long as the process lives, line by line, so that none is torn by what others write to the same pipe.
    fn write_to(&self, mut output: impl Write, tell: impl Fn(u64)) {
        let (mut lines, mut told) = (Vec::new(), 0);
        loop {
            let dropped = {
                let mut queue = self.queue.lock();
                queue.is_writing = false;
                if queue.waiting.is_empty() {
                    self.written.notify_all();
                    self.filled.wait_while(&mut queue, |queue| queue.waiting.is_empty());
                }
                std::mem::swap(&mut queue.waiting, &mut lines);
                queue.is_writing = true;
                queue.dropped
            };
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                // There is nowhere to say that it cannot be written.
                let _ = output.write_all(line);
            }
            lines.clear();
            if dropped > told {
                tell(dropped);
                told = dropped;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::sync::mpsc;

    use super::*;

    fn piped() -> (BufReader<io::PipeReader>, Lines, mpsc::Receiver<u64>) {
        let (reader, writer) = io::pipe().expect("a pipe");
        let (tell, told) = mpsc::channel();
        let lines = Lines::written_to(writer, move |dropped| tell.send(dropped).expect("the test listens"));
        (BufReader::new(reader), lines.expect("a thread"), told)
    }

    #[test]
    fn lines_are_written_when_it_is_finished() {
        let (mut reader, mut lines, told) = piped();
        for number in 0..100 {
            writeln!(lines, "{number}").expect("it never fails");
        }
        lines.finish();
        let mut line = String::new();
        for number in 0..100 {
            line.clear();
            reader.read_line(&mut line).expect("a line");
            assert_eq!(line, format!("{number}\n"));
        }
        assert_eq!((lines.dropped(), told.try_recv().ok()), (0, None));
    }

    #[test]
    fn nobody_waits_for_a_reader_who_has_stopped_and_what_is_left_out_is_told() {
        let (mut reader, mut lines, told) = piped();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        // More than the pipe, the thread and the queue hold.
        let count = 4 * WAITING_MAX / line.len();
        for _ in 0..count {
            lines.write_all(&line).expect("it never fails");
        }
        let dropped = lines.dropped();
        assert!(dropped > 0);
        // It returns though nothing is read.
        lines.finish();
        assert!(lines.0.queue.lock().waiting.len() <= WAITING_MAX);
        let kept = count - usize::try_from(dropped).expect("not so many");
        let mut read = Vec::new();
        for _ in 0..kept {
            read.clear();
            reader.read_until(b'\n', &mut read).expect("a line");
            assert_eq!(read, line, "a line is whole, or left out");
        }
        // In two steps where the thread came to its first lines when some had been left out already.
        let mut said = told.recv().expect("it is told");
        if said < dropped {
            said = told.recv().expect("the rest is told");
        }
        assert_eq!(said, dropped);
        lines.write_all(b"again\n").expect("it never fails");
        lines.finish();
        read.clear();
        reader.read_until(b'\n', &mut read).expect("a line");
        assert_eq!((&read[..], lines.dropped()), (&b"again\n"[..], dropped));
    }
}
