//! Why a process has ended, as its runs, the log and the metrics are told.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::integration::Error;
use crate::task::{FailureReason, RunId};

/// Why a process has ended, or never was.
#[derive(Debug, Clone)]
pub(super) enum Cause {
    /// The worker stops.
    Stopping,
    /// It had grown too large, or had all the runs that it may have: it was let go without a run in it.
    Replaced,
    /// It ended by itself, or somebody else ended it.
    Crashed(Option<ExitStatus>),
    /// This run did not answer after it was told to stop.
    Hung(RunId),
    /// It wrote what is no message.
    BadOutput(String),
    /// It wrote too much.
    Flood(String),
    /// It took too much memory.
    Memory {
        /// How much.
        resident: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// It never was ready.
    NotReady(NotReady),
}

/// Why a process never was ready.
#[derive(Debug, Clone)]
pub(super) enum NotReady {
    /// The system could not start it.
    Spawn(String),
    /// It ended first.
    Exited(Option<ExitStatus>),
    /// It said nothing.
    Timeout(Duration),
    /// It said something else.
    Said(String),
}

impl Cause {
    /// Each value of [`Cause::label`].
    pub(super) const LABELS: [&str; 6] = ["replaced", "crashed", "hung", "bad_output", "memory", "not_ready"];

    /// The label in the metric of restarts; none when there is no restart.
    pub(super) fn label(&self) -> Option<&'static str> {
        match self {
            Cause::Stopping => None,
            Cause::Replaced => Some("replaced"),
            Cause::Crashed(_) => Some("crashed"),
            Cause::Hung(_) => Some("hung"),
            Cause::BadOutput(_) | Cause::Flood(_) => Some("bad_output"),
            Cause::Memory { .. } => Some("memory"),
            Cause::NotReady(_) => Some("not_ready"),
        }
    }

    /// What happened to the process, for the log and for messages: "the process …".
    pub(super) fn says(&self) -> String {
        match self {
            Cause::Stopping => "was stopped, because the worker stops".into(),
            Cause::Replaced => "was replaced".into(),
            Cause::Crashed(status) => ended(*status),
            Cause::Hung(_) => "was stopped, because a task in it did not end when it was told to".into(),
            Cause::BadOutput(problem) => format!("was stopped, because of what it wrote to stdout: {problem}"),
            Cause::Flood(problem) => format!("was stopped, because it wrote too much to stdout: {problem}"),
            Cause::Memory { resident, limit } => format!(
                "was stopped, because it held {resident} bytes of memory; max_resident_bytes is {limit}, and a quarter more \
                 is the end"
            ),
            Cause::NotReady(NotReady::Spawn(problem)) => format!("could not be started: {problem}"),
            Cause::NotReady(NotReady::Exited(status)) => format!("{} before it was ready", ended(*status)),
            Cause::NotReady(NotReady::Timeout(within)) => {
                format!("was not ready within {}", humantime::format_duration(*within))
            }
            Cause::NotReady(NotReady::Said(problem)) => format!("did not say that it is ready: {problem}"),
        }
    }

    /// What a run that was in the process fails with. All can be run again: which of them was at fault is not known.
    pub(super) fn error(&self, run: RunId) -> Error {
        let (word, message) = match self {
            Cause::Hung(hung) if *hung == run => {
                ("process_hung", "the task did not end when it was told to, and its process was stopped".to_owned())
            }
            Cause::Hung(_) => ("process_stopped", "the process was stopped because another task hung in it".to_owned()),
            Cause::Stopping | Cause::Replaced => ("process_stopped", format!("the process {}", self.says())),
            Cause::Crashed(_) => ("process_crashed", format!("the process {}", self.says())),
            Cause::BadOutput(_) => ("bad_output", format!("the process {}", self.says())),
            Cause::Flood(_) => ("output_flood", format!("the process {}", self.says())),
            Cause::Memory { .. } => ("process_memory", format!("the process {}", self.says())),
            Cause::NotReady(_) => ("no_process", format!("the process {}", self.says())),
        };
        Error::retryable(message).because(reason(word))
    }
}

/// A word of this module as a reason.
pub(super) fn reason(word: &'static str) -> FailureReason {
    word.parse().expect("the words of this module are reasons")
}

fn ended(status: Option<ExitStatus>) -> String {
    let Some(status) = status else { return "ended".into() };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
