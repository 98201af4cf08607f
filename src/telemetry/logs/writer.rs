//! Who writes the lines: a thread of its own, behind a bounded buffer.
//!
//! [`Buffer::offer`] copies a line into the buffer and returns. What does not fit is lost and counted, and so is what
//! cannot be written: nobody waits for whoever reads the log, or does not. The thread is woken by the first line only, and
//! lets others gather for a moment: many lines cost one wake-up and one call of the system, where each would cost both.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::lifecycle::Lifecycle;

/// Bytes that may wait for the thread. As many more may be on their way.
const MOST_BYTES: usize = 4 << 20;

/// Bytes of room that the thread keeps for the next lines.
const KEPT_BYTES: usize = 256 << 10;

/// How long lines gather.
const GATHER: Duration = Duration::from_millis(20);

/// How often the thread looks around when nothing is said.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// The pause before a pipe that is full is tried again, where the system does not wait by itself.
const FULL: Duration = Duration::from_millis(10);

/// Lines on their way to the thread.
#[derive(Default)]
pub(super) struct Buffer {
    state: Mutex<State>,
    changed: Condvar,
    /// Lines for which there was no room.
    pub(super) behind: AtomicU64,
    /// Lines that could not be written.
    pub(super) failed: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread has taken lines and not written them yet.
    is_writing: bool,
    /// Somebody waits for what is there to be written.
    is_awaited: bool,
    is_ending: bool,
}

impl Buffer {
    /// Takes a line, with its end, or counts it as lost.
    pub(super) fn offer(&self, line: &str) {
        let mut state = self.state.lock();
        if state.waiting.len() + line.len() > MOST_BYTES {
            drop(state);
            self.behind.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let is_first = state.waiting.is_empty();
        state.waiting.extend_from_slice(line.as_bytes());
        drop(state);
        if is_first {
            self.changed.notify_all();
        }
    }

    /// Waits until all is written, at most for so long; returns whether it is.
    pub(super) fn flush(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut state = self.state.lock();
        state.is_awaited = true;
        self.changed.notify_all();
        while !state.waiting.is_empty() || state.is_writing {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return false;
            }
        }
        true
    }

    /// The same, and ends the thread once all is written. What is offered afterwards stays where it is.
    pub(super) fn end(&self, within: Duration) {
        self.state.lock().is_ending = true;
        self.flush(within);
    }

    /// Starts the thread. It calls `look_around` about once a second, unless it is kept by who reads the log.
    pub(super) fn start(
        self: &Arc<Self>,
        to: impl Write + Send + 'static,
        look_around: impl Fn() + Send + 'static,
        lifecycle: &Lifecycle,
    ) -> io::Result<()> {
        let buffer = self.clone();
        lifecycle.thread("log writer", move |_| buffer.write_to(to, look_around))
    }

    fn write_to(&self, mut to: impl Write, look_around: impl Fn()) {
        let (mut lines, mut looked, mut is_torn) = (Vec::new(), Instant::now(), false);
        while self.take(&mut lines) {
            if !lines.is_empty() {
                // What follows a line that was cut off begins on one of its own.
                let begins = if is_torn { write(&mut to, b"\n") } else { Ok(()) };
                let left = begins.map_err(|_| lines.as_slice()).and_then(|()| write(&mut to, &lines));
                is_torn = match left {
                    Ok(()) => false,
                    // Cut off, unless it ended where a line does, or nothing of it was written.
                    Err(left) if left.len() < lines.len() => lines[lines.len() - left.len() - 1] != b'\n',
                    Err(_) => is_torn,
                };
                if let Err(left) = left {
                    self.failed.fetch_add(memchr::memchr_iter(b'\n', left).count() as u64, Ordering::Relaxed);
                }
                lines.clear();
                lines.shrink_to(KEPT_BYTES);
                self.state.lock().is_writing = false;
                self.changed.notify_all();
            }
            if looked.elapsed() >= LOOK_AROUND {
                looked = Instant::now();
                look_around();
            }
        }
    }

    /// Takes what has gathered, or nothing when nothing comes; false at the end of all.
    fn take(&self, lines: &mut Vec<u8>) -> bool {
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            if state.is_ending {
                return false;
            }
            self.changed.wait_for(&mut state, LOOK_AROUND);
        }
        if state.waiting.is_empty() {
            return true;
        }
        if !state.is_awaited {
            self.changed.wait_for(&mut state, GATHER);
        }
        state.is_awaited = false;
        state.is_writing = true;
        std::mem::swap(&mut state.waiting, lines);
        true
    }
}

/// Writes all of it, also where the descriptor is one that does not wait; or returns what could not be written.
fn write<'a>(to: &mut impl Write, mut bytes: &'a [u8]) -> Result<(), &'a [u8]> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(written) if written > 0 => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL),
            _ => return Err(bytes),
        }
    }
    Ok(())
}

/// Stderr by a descriptor of its own: a thread that is kept in a write must not hold the lock that all others take.
pub(super) fn stderr() -> io::Result<File> {
    io::stderr().as_fd().try_clone_to_owned().map(File::from)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    /// Takes what is written, as `takes` says.
    struct To<T>(T);

    impl<T: FnMut(&[u8]) -> io::Result<usize>> Write for To<T> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            (self.0)(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A buffer whose thread writes to `takes`, and what that has taken.
    fn writing(
        mut takes: impl FnMut(&[u8]) -> io::Result<usize> + Send + 'static,
    ) -> (Arc<Buffer>, Arc<Mutex<Vec<u8>>>) {
        let (buffer, taken) = (Arc::new(Buffer::default()), Arc::new(Mutex::new(Vec::new())));
        let kept = taken.clone();
        let to = To(move |bytes: &[u8]| {
            let count = takes(bytes)?;
            kept.lock().extend_from_slice(&bytes[..count]);
            Ok(count)
        });
        buffer.start(to, || (), &Lifecycle::new()).expect("a thread");
        (buffer, taken)
    }

    #[test]
    fn lines_are_written_in_order_and_the_end_waits_for_them() {
        let (buffer, taken) = writing(|bytes| Ok(bytes.len().min(3)));
        let lines: Vec<_> = (0..1000).map(|number| format!("line {number}\n")).collect();
        lines.iter().for_each(|line| buffer.offer(line));
        buffer.end(SOON);
        assert_eq!(String::from_utf8(taken.lock().clone()).expect("text"), lines.concat());
        assert_eq!((buffer.behind.load(Ordering::Relaxed), buffer.failed.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_reader_that_has_stopped_keeps_nobody_and_what_is_lost_is_counted() {
        let (release, released) = mpsc::channel::<()>();
        let (buffer, taken) = writing(move |bytes| {
            let _ = released.recv();
            Ok(bytes.len())
        });
        let line = format!("{}\n", "x".repeat(1023));
        let offered = 3 * MOST_BYTES / line.len();
        let began = Instant::now();
        (0..offered).for_each(|_| buffer.offer(&line));
        buffer.flush(Duration::from_millis(10));
        assert!(began.elapsed() < SOON);
        let behind = buffer.behind.load(Ordering::Relaxed);
        // One buffer may wait, and another one is perhaps on its way.
        assert!(behind >= (offered - 2 * MOST_BYTES / line.len()) as u64, "{behind}");

        drop(release);
        buffer.end(SOON);
        let written = taken.lock().len() / line.len();
        assert_eq!(written as u64 + behind, offered as u64, "each line is written or counted");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_the_next_line_begins_anew() {
        let mut calls = 0;
        let (buffer, taken) = writing(move |bytes| {
            calls += 1;
            match calls {
                1 => Ok("one\ntw".len()),
                2 => Err(ErrorKind::StorageFull.into()),
                3 => Err(ErrorKind::WouldBlock.into()),
                4 => Err(ErrorKind::Interrupted.into()),
                _ => Ok(bytes.len()),
            }
        });
        buffer.offer("one\ntwo\nthree\n");
        buffer.flush(SOON);
        assert_eq!(buffer.failed.load(Ordering::Relaxed), 2, "one has been written");
        buffer.offer("four\n");
        buffer.end(SOON);
        assert_eq!(String::from_utf8(taken.lock().clone()).expect("text"), "one\ntw\nfour\n");
        assert_eq!(buffer.failed.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_reader_that_is_gone_costs_its_lines_and_nothing_else() {
        let (read, write) = io::pipe().expect("a pipe");
        drop(read);
        let buffer = Arc::new(Buffer::default());
        buffer.start(File::from(std::os::fd::OwnedFd::from(write)), || (), &Lifecycle::new()).expect("a thread");
        for _ in 0..3 {
            buffer.offer("nobody reads this\n");
            buffer.flush(SOON);
        }
        buffer.end(SOON);
        assert_eq!(buffer.failed.load(Ordering::Relaxed), 3);
    }
}
