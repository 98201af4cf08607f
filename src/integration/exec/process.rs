//! A process that is ready, as its runs see it: what is in it, what it is told, and what it says.
//!
//! A run leaves the process when the process has answered for it, or has ended. Until then it keeps its place here and
//! its hold on the worker's place, whatever became of the future that waits for the answer: a dropped future only sends
//! the program a `cancel`.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdin;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::cause::Cause;
use super::pool::Place;
use super::protocol::{self, Message, Reason};
use crate::integration::{Error, Recorder};
use crate::task::{Json, RunId};

/// Lines about one run: more than any transcript keeps is a flood.
const MAX_RUN_LINES: usize = 10_000;

/// Lines about no run that is in the process, since its last outcome. A late note is no harm; a stream of them is.
const MAX_STRAY_LINES: usize = 10_000;

/// A line of stderr is cut here.
const MAX_ERROR_LINE_BYTES: usize = 4 * 1024;

/// Lines of stderr per second that are kept; the rest is counted.
const MAX_ERROR_LINES: u32 = 100;
const ERROR_LINES_PER: Duration = Duration::from_secs(1);

/// The most that an outcome waits for what the program wrote to stderr before it: so many times so long. They are
/// counted, since a busy machine may take longer for each.
const ERRORS_LOOKS: usize = 20;
const ERRORS_LOOK: Duration = Duration::from_millis(1);

/// Limits of a process that its messages are held against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) line_bytes: usize,
    pub(super) run_bytes: usize,
    pub(super) cancel_grace: Duration,
    pub(super) shared_stderr: bool,
}

pub(super) struct Process {
    id: u32,
    limits: Limits,
    state: Mutex<State>,
    changed: Notify,
    emptied: Notify,
}

struct State {
    /// To its stdin; none when it is to end.
    lines: Option<mpsc::Sender<Vec<u8>>>,
    runs: HashMap<RunId, Running>,
    /// How often a run has begun or ended.
    changes: u64,
    stray_lines: usize,
    condemned: Option<Cause>,
    last_error_line: Option<String>,
}

/// A run that is in a process.
struct Running {
    answer: oneshot::Sender<Result<Json, Error>>,
    recorder: Recorder,
    /// Given back when the run has really stopped.
    kept: Kept,
    lines: usize,
    bytes: usize,
    /// Lines on stderr that may be of another run.
    doubtful_lines: u64,
    /// Set when it was told to stop.
    answer_by: Option<Instant>,
}

/// What a run gives back when it has really stopped: its place here, and its hold on the worker's place.
pub(super) struct Kept {
    pub(super) place: Place,
    pub(super) hold: Arc<dyn Any + Send + Sync>,
}

impl Process {
    /// For a process with this id. A run sends at most two lines, so `lines` with twice its places never is full.
    pub(super) fn new(id: u32, limits: Limits, lines: mpsc::Sender<Vec<u8>>) -> Arc<Self> {
        let state = State {
            lines: Some(lines),
            runs: HashMap::new(),
            changes: 0,
            stray_lines: 0,
            condemned: None,
            last_error_line: None,
        };
        let (changed, emptied) = (Notify::new(), Notify::new());
        Arc::new(Process { id, limits, state: Mutex::new(state), changed, emptied })
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    // ── what its runs do

    /// Hands it a run. What was kept comes back when the process is about to end: the run has not begun.
    pub(super) fn begin(
        &self,
        run: RunId,
        line: Vec<u8>,
        recorder: Recorder,
        kept: Kept,
    ) -> Result<oneshot::Receiver<Result<Json, Error>>, Kept> {
        let mut state = self.state.lock();
        let Some(lines) = &state.lines else { return Err(kept) };
        if lines.try_send(line).is_err() {
            return Err(kept);
        }
        let (answer, answered) = oneshot::channel();
        state
            .runs
            .insert(run, Running { answer, recorder, kept, lines: 0, bytes: 0, doubtful_lines: 0, answer_by: None });
        Ok(answered)
    }

    /// Tells a run to stop, once; it has `cancel_grace` to answer.
    pub(super) fn cancel(&self, run: RunId, reason: Reason) {
        let mut state = self.state.lock();
        let State { lines, runs, .. } = &mut *state;
        let Some(running) = runs.get_mut(&run).filter(|running| running.answer_by.is_none()) else { return };
        running.answer_by = Some(Instant::now() + self.limits.cancel_grace);
        if let (Some(lines), Ok(line)) = (lines, protocol::cancel(run, reason)) {
            // Where it does not reach the program, the run ends with the process.
            let _ = lines.try_send(line);
        }
        drop(state);
        self.changed.notify_one();
    }

    // ── what its supervisor does

    /// It is to end for this cause, whatever is in it.
    pub(super) fn condemn(&self, cause: Cause) {
        self.state.lock().condemned.get_or_insert(cause);
        self.changed.notify_one();
    }

    /// It takes no more and is empty.
    pub(super) fn let_go(&self) {
        self.emptied.notify_one();
    }

    /// Waits until it is let go.
    pub(super) async fn emptied(&self) {
        self.emptied.notified().await;
    }

    /// Waits until it must end: it was condemned, or a run did not answer in time after it was told to stop.
    pub(super) async fn doomed(&self) -> Cause {
        loop {
            let (condemned, first) = {
                let state = self.state.lock();
                let told = state.runs.iter().filter_map(|(run, running)| Some((running.answer_by?, *run)));
                (state.condemned.clone(), told.min_by_key(|(by, _)| *by))
            };
            if let Some(cause) = condemned {
                return cause;
            }
            match first {
                Some((by, run)) if by <= Instant::now() => return Cause::Hung(run),
                Some((by, _)) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(by) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// It is to end: no more lines to it, and the end of its stdin after those that it was sent.
    pub(super) fn close(&self) {
        self.state.lock().lines = None;
    }

    /// It has ended: so have all of its runs.
    pub(super) fn end(&self, cause: &Cause) {
        let runs = std::mem::take(&mut self.state.lock().runs);
        for (run, running) in runs {
            running.finish(Err(cause.error(run)));
        }
    }

    /// The last line that it wrote to stderr.
    pub(super) fn last_error_line(&self) -> Option<String> {
        self.state.lock().last_error_line.clone()
    }

    // ── what it says

    /// Reads its stdout until there is a cause to end it; the end of its stdout is most likely its own.
    ///
    /// `unread` is how many bytes its stderr holds: what it wrote there before an outcome is a note of that run, too.
    pub(super) async fn read_output(&self, mut output: impl AsyncBufRead + Unpin, unread: impl Fn() -> u64) -> Cause {
        let mut line = Vec::new();
        loop {
            match read_line(&mut output, &mut line, self.limits.line_bytes).await {
                Ok(true) => {}
                Ok(false) => return Cause::Crashed(None),
                Err(cause) => return cause,
            }
            let heard = protocol::parse(&line).map_err(Cause::BadOutput);
            if matches!(heard, Ok(Message::Outcome { .. })) {
                until_read(&unread).await;
            }
            if let Err(cause) = heard.and_then(|message| self.hear(message, line.len())) {
                return cause;
            }
        }
    }

    fn hear(&self, message: Message, bytes: usize) -> Result<(), Cause> {
        let run = match message {
            Message::Ready { .. } => return Err(Cause::BadOutput("it said a second time that it is ready".into())),
            Message::Outcome { run, result } => return self.finish(run, result),
            Message::Unknown => return self.stray(),
            Message::Note { run, .. }
            | Message::Secret { run, .. }
            | Message::Exchange { run, .. }
            | Message::Unfit { run, .. } => run,
        };
        let Some(recorder) = self.account(run, bytes)? else { return self.stray() };
        match message {
            Message::Note { text, .. } => recorder.note(text),
            Message::Secret { value, .. } => recorder.secret(value),
            Message::Exchange { exchange, .. } => recorder.record(*exchange),
            Message::Unfit { problem, .. } => recorder.note(format!("left out of what the program said: {problem}")),
            _ => {}
        }
        Ok(())
    }

    fn finish(&self, run: RunId, result: Result<Json, Error>) -> Result<(), Cause> {
        let running = {
            let mut state = self.state.lock();
            state.stray_lines = 0;
            state.changes += 1;
            state.runs.remove(&run)
        };
        match running {
            Some(running) => {
                running.finish(result);
                Ok(())
            }
            None => Err(Cause::BadOutput("it answered for a run that it does not have".into())),
        }
    }

    /// Counts a line about a run, and returns that run's recorder.
    fn account(&self, run: RunId, bytes: usize) -> Result<Option<Recorder>, Cause> {
        let mut state = self.state.lock();
        let Some(running) = state.runs.get_mut(&run) else { return Ok(None) };
        running.lines += 1;
        running.bytes = running.bytes.saturating_add(bytes);
        if running.lines > MAX_RUN_LINES {
            return Err(Cause::Flood(format!("more than {MAX_RUN_LINES} lines about one run")));
        }
        if running.bytes > self.limits.run_bytes {
            let most = self.limits.run_bytes;
            return Err(Cause::Flood(format!("more than {most} bytes about one run, which is max_run_bytes")));
        }
        Ok(Some(running.recorder.clone()))
    }

    fn stray(&self) -> Result<(), Cause> {
        let mut state = self.state.lock();
        state.stray_lines += 1;
        match state.stray_lines > MAX_STRAY_LINES {
            true => Err(Cause::Flood(format!("more than {MAX_STRAY_LINES} lines about no run that it has"))),
            false => Ok(()),
        }
    }

    /// Reads its stderr to the end: each line is a note of the run that is in it from the line's beginning to its end. It is
    /// not logged: what a program writes about a task may be as personal as the task.
    pub(super) async fn read_errors(&self, mut errors: impl AsyncBufRead + Unpin) {
        let (mut line, mut since, mut kept, mut left_out) = (Vec::new(), Instant::now(), 0, 0_u64);
        let mut is_rest = false;
        loop {
            line.clear();
            let most = MAX_ERROR_LINE_BYTES as u64;
            if !matches!(errors.fill_buf().await, Ok([_, ..])) {
                return;
            }
            let changes_before = self.state.lock().changes;
            if !matches!((&mut errors).take(most).read_until(b'\n', &mut line).await, Ok(1..)) {
                return;
            }
            // What is beyond the limit of a line comes as lines of its own, which are passed over.
            let passed_over = std::mem::replace(&mut is_rest, !line.ends_with(b"\n"));
            if since.elapsed() >= ERROR_LINES_PER {
                if left_out > 0 {
                    self.note(left_out, format!("stderr: {left_out} more lines were left out"), false, None);
                }
                (since, kept, left_out) = (Instant::now(), 0, 0);
            }
            if passed_over || kept >= MAX_ERROR_LINES {
                left_out += u64::from(!passed_over);
                continue;
            }
            kept += 1;
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.note(1, format!("stderr: {text}"), is_rest, Some(changes_before));
            self.state.lock().last_error_line = Some(text);
        }
    }

    /// Tells the run that is in it, and was when the line began. Of several, only the one that wrote it may have it in its
    /// transcript: another's secrets are not known there.
    fn note(&self, lines: u64, text: String, is_cut: bool, changes_before: Option<u64>) {
        let mut state = self.state.lock();
        let is_doubtful = state.runs.len() > 1 || changes_before.is_some_and(|changes| changes != state.changes);
        if is_doubtful && !self.limits.shared_stderr {
            state.runs.values_mut().for_each(|running| running.doubtful_lines += lines);
            return;
        }
        let recorders: Vec<_> = state.runs.values().map(|running| running.recorder.clone()).collect();
        drop(state);
        for recorder in recorders {
            if is_cut { recorder.note_cut(text.as_str()) } else { recorder.note(text.as_str()) }
        }
    }
}

impl Running {
    /// Its places are free before its answer is told, as the worker has it too.
    fn finish(self, result: Result<Json, Error>) {
        if self.doubtful_lines > 0 {
            self.recorder.note(format!(
                "stderr: lines left out: {} (several runs were in the process, and which of them wrote these is not known; \
                 shared_stderr keeps them)",
                self.doubtful_lines
            ));
        }
        let Kept { place, hold } = self.kept;
        drop((place, hold));
        let _ = self.answer.send(result);
    }
}

/// Gives the reader of stderr, which goes on meanwhile, a moment to read what is there. It reads all of it at once, and
/// makes notes of the lines before it lets go: when nothing is left in the pipe, nothing is on the way either.
async fn until_read(unread: &impl Fn() -> u64) {
    for _ in 0..ERRORS_LOOKS {
        if unread() == 0 {
            return;
        }
        tokio::time::sleep(ERRORS_LOOK).await;
    }
}

/// Reads a line of at most `max_bytes`, without its end, into `line`; false at the end of the stream.
pub(super) async fn read_line(
    from: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    max_bytes: usize,
) -> Result<bool, Cause> {
    line.clear();
    // A buffer that one large line has made is not kept for all the small ones.
    line.shrink_to(64 * 1024);
    let read = from.take(max_bytes as u64 + 1).read_until(b'\n', line).await;
    let read = read.map_err(|error| Cause::BadOutput(format!("it cannot be read: {error}")))?;
    match line.pop() {
        Some(b'\n') => Ok(true),
        Some(_) if read > max_bytes => {
            Err(Cause::Flood(format!("a line is longer than {max_bytes} bytes, which is max_line_bytes")))
        }
        // What has no end was being written when its writer ended.
        _ => Ok(false),
    }
}

/// Writes what comes until there is no more, then closes the pipe. A program that does not read holds up only itself:
/// its tasks' deadlines end it.
pub(super) async fn write_lines(mut stdin: ChildStdin, mut lines: mpsc::Receiver<Vec<u8>>) -> std::io::Result<()> {
    while let Some(line) = lines.recv().await {
        stdin.write_all(&line).await?;
    }
    Ok(())
}
