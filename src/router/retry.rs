//! What may be tried again, when, and how often: pure.
//!
//! Only what has provably not started is ever sent again: a typed refusal with `started=no`, or a request that never
//! arrived. Everything else ends as "outcome unknown"; a second run by accident would be
//! worse than an error.

use std::time::Duration;

use tonic::Status;

use crate::wire::error::{describe, never_arrived};
use crate::wire::{Reason, Retry, Started, TaskError};

/// Attempts in quick succession; after them the task waits a moment in its old place.
const QUICK_ATTEMPTS: u32 = 3;

/// The moment: long enough that a view which sent three calls astray has been corrected.
const PAUSE: Duration = Duration::from_millis(50);

/// The same for a task whose tenant holds all that it may: only the end of another of its tasks will help, and the view
/// does not know of tenants. It waits outside the queue, so that it holds up nobody else's.
const TENANT_PAUSE: Duration = Duration::from_millis(250);

/// How a call to a worker failed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failed {
    /// No connection could be made, or the connection ended in order before the worker had looked at the request.
    Unsent(String),
    /// The worker refused: the task never ran, and another worker may take it.
    Refused(TaskError),
    /// An answer for the caller: nobody will take this task, or nobody knows what became of it.
    Final(TaskError),
}

impl Failed {
    /// Reads what a call returned. Only our own ErrorInfo counts as an answer of the worker's.
    pub(super) fn read(status: &Status) -> Self {
        match TaskError::from_status(status) {
            // A worker that lists an integration and does not know it will not know it next time either.
            Some(error) if error.reason == Reason::UnknownIntegration => Failed::Final(error),
            Some(error) if error.started == Started::No && error.retry == Retry::Elsewhere => Failed::Refused(error),
            Some(error) => Failed::Final(error),
            None if never_arrived(status) => Failed::Unsent(describe(status)),
            None => Failed::Final(TaskError::outcome_unknown(format!(
                "the call to the worker broke after the task was sent: {}",
                describe(status)
            ))),
        }
    }

    /// The label in metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Failed::Unsent(_) => "unsent",
            Failed::Refused(_) => "refused",
            Failed::Final(error) if error.reason == Reason::OutcomeUnknown => "unknown",
            Failed::Final(_) => "rejected",
        }
    }
}

/// How long a task waits before its next attempt, after `attempts` that did not start it, the last refused for `reason`.
pub(super) fn pause_after(attempts: u32, reason: Option<Reason>) -> Duration {
    match reason {
        Some(Reason::TenantFull) => TENANT_PAUSE,
        _ if attempts.is_multiple_of(QUICK_ATTEMPTS) => PAUSE,
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_started_is_tried_elsewhere() {
        let refusal = TaskError::worker_full("full");
        assert_eq!(Failed::read(&refusal.to_status()), Failed::Refused(refusal));
        let invalid = TaskError::invalid("bad");
        assert_eq!(Failed::read(&invalid.to_status()), Failed::Final(invalid));
    }

    #[test]
    fn a_bare_status_means_that_nobody_knows() {
        for status in [Status::resource_exhausted("h2"), Status::unavailable("gone"), Status::cancelled("timeout")] {
            let Failed::Final(error) = Failed::read(&status) else { panic!("{status:?} is final") };
            assert_eq!((error.reason, error.started), (Reason::OutcomeUnknown, Started::Unknown));
        }
    }

    #[test]
    fn a_connection_that_was_never_made_is_proof_that_nothing_was_sent() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(tonic::ConnectError(refused.into())));
        assert_eq!(Failed::read(&status).label(), "unsent");
    }

    #[test]
    fn every_third_attempt_is_followed_by_a_pause() {
        let pauses: Vec<_> = (1..=6).map(|attempts| pause_after(attempts, None) > Duration::ZERO).collect();
        assert_eq!(pauses, [false, false, true, false, false, true]);
    }
}
