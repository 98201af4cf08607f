//! Why there is no outcome, as a closed set of cases, and what may be done about each.

use std::time::Duration;

use tonic::Status;

use crate::wire::error::{describe, never_arrived};
use crate::wire::{Reason, Retry, Started, TaskError};

/// Why there is no outcome.
///
/// The variants answer the one question that matters to a caller: may the task have run? A failure of a task that did
/// run is no error but an [`Outcome`](crate::task::Outcome).
///
/// ```
/// use weir::client::SubmitError;
/// use weir::wire::Reason;
///
/// fn what_to_do(error: &SubmitError) -> &'static str {
///     match error {
///         SubmitError::NotStarted(refused) if refused.reason == Reason::InvalidTask => "mend the task",
///         SubmitError::NotStarted(_) | SubmitError::Unreachable { .. } => "submit it again: it never ran",
///         SubmitError::OutcomeUnknown(_) => "find out whether it ran, before it is submitted again",
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The server said, or this client saw to it, that the task never started: it may be submitted again safely.
    #[error("{0}")]
    NotStarted(TaskError),
    /// Nobody could be reached, or the connection ended before the task arrived: it never started.
    #[error("cannot reach {endpoint}: {cause}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// What the system says.
        cause: String,
    },
    /// The task may have run.
    #[error("{0}")]
    OutcomeUnknown(TaskError),
}

impl SubmitError {
    /// What a broken or refused call says about its task. A code alone is never read as a refusal.
    pub(super) fn read(status: &Status, endpoint: &str) -> Self {
        match TaskError::from_status(status) {
            Some(error) if error.started == Started::No => SubmitError::NotStarted(error),
            Some(error) => SubmitError::OutcomeUnknown(error),
            None if never_arrived(status) => SubmitError::unreachable(endpoint, describe(status)),
            None => SubmitError::unknown(format!("the call broke after the task was sent: {}", describe(status))),
        }
    }

    pub(super) fn unreachable(endpoint: &str, cause: String) -> Self {
        SubmitError::Unreachable { endpoint: endpoint.to_owned(), cause }
    }

    pub(super) fn unknown(message: String) -> Self {
        SubmitError::OutcomeUnknown(TaskError::outcome_unknown(message))
    }

    pub(super) fn invalid(message: String) -> Self {
        SubmitError::NotStarted(TaskError::invalid(message))
    }

    pub(super) fn too_late(message: String) -> Self {
        SubmitError::NotStarted(TaskError::deadline_too_short(message))
    }

    /// The reason on the wire, or `UNREACHABLE`.
    pub fn reason(&self) -> &'static str {
        match self {
            SubmitError::NotStarted(error) | SubmitError::OutcomeUnknown(error) => error.reason.as_str(),
            SubmitError::Unreachable { .. } => "UNREACHABLE",
        }
    }

    /// For people; without the reason.
    pub fn message(&self) -> String {
        match self {
            SubmitError::NotStarted(error) | SubmitError::OutcomeUnknown(error) => error.message.clone(),
            SubmitError::Unreachable { .. } => self.to_string(),
        }
    }

    /// Whether the task may have run.
    pub fn started(&self) -> Started {
        match self {
            SubmitError::OutcomeUnknown(_) => Started::Unknown,
            SubmitError::NotStarted(_) | SubmitError::Unreachable { .. } => Started::No,
        }
    }

    /// How long to wait, at least, before submitting the task to the same server again; `None` when that must not be,
    /// for the task may have run, or would not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            // Elsewhere may know it; this server will not learn it while the task waits.
            SubmitError::NotStarted(error) if error.reason == Reason::UnknownIntegration => None,
            SubmitError::NotStarted(error) if error.retry != Retry::Never => {
                Some(error.retry_after.unwrap_or_default())
            }
            SubmitError::Unreachable { .. } => Some(Duration::ZERO),
            SubmitError::NotStarted(_) | SubmitError::OutcomeUnknown(_) => None,
        }
    }
}

/// A server's address is no URI.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is not a server's address: use a form such as \"http://127.0.0.1:7400\"")]
pub struct InvalidAddress {
    pub(super) address: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_started_may_be_tried_again() {
        let later = SubmitError::NotStarted(TaskError::queue_full("full", Duration::from_secs(3)));
        assert_eq!(later.retry_after(), Some(Duration::from_secs(3)));
        assert_eq!(SubmitError::invalid("bad".into()).retry_after(), None);
        assert_eq!(SubmitError::NotStarted(TaskError::unknown_integration("what?")).retry_after(), None);
        assert_eq!(SubmitError::unknown("gone".into()).retry_after(), None);
        assert_eq!(SubmitError::unreachable("there", "gone".into()).retry_after(), Some(Duration::ZERO));
    }

    #[test]
    fn a_bare_status_means_that_nobody_knows() {
        for status in [Status::resource_exhausted("h2"), Status::unavailable("gone"), Status::cancelled("timeout")] {
            let error = SubmitError::read(&status, "there");
            assert_eq!((error.started(), error.reason()), (Started::Unknown, "OUTCOME_UNKNOWN"));
        }
    }
}
