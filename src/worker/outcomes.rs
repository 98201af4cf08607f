//! What tasks came to, in the log: failures at the level `info`, outputs at `debug`, in the fields by which ECS asks for both.

use std::fmt;

use crate::payload::redact;
use crate::task::{Failure, Outcome, Timings};

/// Logs an outcome, in the span of its run.
pub(super) fn log(outcome: &Outcome) {
    let Outcome { result, attempt, timings: Timings { queued, ran }, .. } = outcome;
    let (queued_seconds, nanoseconds) = (queued.as_secs_f64(), u64::try_from(ran.as_nanos()).unwrap_or(u64::MAX));
    match result {
        Ok(_) => tracing::debug!(
            event.outcome = "success",
            event.duration = nanoseconds,
            attempt,
            queued_seconds,
            "a task has an output"
        ),
        Err(Failure { code, message, remedy, reason }) => tracing::info!(
            event.outcome = "failure",
            event.duration = nanoseconds,
            "error.type" = code.as_str(),
            "error.message" = %Redacted(message),
            reason = reason.as_ref().map(tracing::field::display),
            remedy = remedy.as_str(),
            attempt,
            queued_seconds,
            "a task has failed"
        ),
    }
}

/// A message without secrets, as far as their form tells them. It is searched only where it is written.
struct Redacted<'a>(&'a str);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::for_log(self.0))
    }
}
