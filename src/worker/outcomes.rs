//! What tasks came to, in the log: failures at the level `info`, outputs at `debug`, in the fields by which ECS asks for both.
//!
//! What a failure says is not in it. An integration may have put a secret there that has no form by which it could be told,
//! and only the payload's redaction knows which ones the run has named.

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
        Err(Failure { code, remedy, reason, .. }) => tracing::info!(
            event.outcome = "failure",
            event.duration = nanoseconds,
            "error.type" = code.as_str(),
            reason = reason.as_ref().map(|reason| tracing::field::display(Redacted(reason.as_str()))),
            remedy = remedy.as_str(),
            attempt,
            queued_seconds,
            "a task has failed"
        ),
    }
}

/// An integration's word without secrets, as far as their form tells them. It is searched only where it is written.
struct Redacted<'a>(&'a str);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::for_log(self.0))
    }
}
