//! Errors of weir on the wire: a gRPC status that carries `google.rpc.ErrorInfo` with the domain `weir`.
//!
//! A status code alone proves nothing, for the transport makes up codes of its own: a connection that dies can surface
//! as RESOURCE_EXHAUSTED. So **a refusal is only what carries our ErrorInfo with `started=no`**; everything else means
//! that the task may have run.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::causes::and_causes;

/// The domain in ErrorInfo.
pub const DOMAIN: &str = "weir";

/// Tells gRPC clients that retry by themselves how many milliseconds to wait (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Why a task has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({reason}, started={started})")]
pub struct TaskError {
    /// One of a closed set.
    pub reason: Reason,
    /// Whether the task may have run.
    pub started: Started,
    /// What to do about it.
    pub retry: Retry,
    /// How long to wait before another attempt, where waiting helps.
    pub retry_after: Option<Duration>,
    /// For people.
    pub message: String,
}

macro_rules! closed_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }

            fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

closed_set! {
    /// Why a task has no outcome: ErrorInfo's `reason`.
    Reason {
        /// All places of the worker are taken.
        WorkerFull = "WORKER_FULL",
        /// The worker or router is ending.
        Draining = "DRAINING",
        /// As many tasks of the integration run as the worker may run of it.
        IntegrationFull = "INTEGRATION_FULL",
        /// As many tasks of the tenant run as the worker may run for it.
        TenantFull = "TENANT_FULL",
        /// The worker has room but must not take more.
        Overloaded = "OVERLOADED",
        /// The integration fails so often, or so slowly, that the worker spares it for a while.
        BreakerOpen = "BREAKER_OPEN",
        /// The worker was restarted since the caller learned of it.
        StaleIncarnation = "STALE_INCARNATION",
        /// The router's queue is full.
        QueueFull = "QUEUE_FULL",
        /// The router knows no worker.
        NoWorkers = "NO_WORKERS",
        /// No worker has an integration of that name.
        UnknownIntegration = "UNKNOWN_INTEGRATION",
        /// A field of the task is wrong.
        InvalidTask = "INVALID_TASK",
        /// No time is left to run the task.
        DeadlineTooShort = "DEADLINE_TOO_SHORT",
        /// The call to the worker broke after the task was sent.
        OutcomeUnknown = "OUTCOME_UNKNOWN",
    }
}

closed_set! {
    /// Whether the task may have run: metadata `started`.
    Started {
        /// It never ran and may be submitted again safely.
        No = "no",
        /// It may have run.
        Unknown = "unknown",
    }
}

closed_set! {
    /// What to do about an error: metadata `retry`.
    Retry {
        /// Another worker may take the task now.
        Elsewhere = "elsewhere",
        /// The same server may take it later.
        Later = "later",
        /// The same task will not be taken.
        Never = "never",
    }
}

impl TaskError {
    /// All of a worker's places are taken.
    pub fn worker_full(message: impl fmt::Display) -> Self {
        Self::new(Reason::WorkerFull, Started::No, Retry::Elsewhere, message).after(Duration::from_millis(500))
    }

    /// As many tasks of the integration run as may.
    pub fn integration_full(message: impl fmt::Display) -> Self {
        Self::new(Reason::IntegrationFull, Started::No, Retry::Elsewhere, message).after(Duration::from_millis(500))
    }

    /// As many tasks of the tenant run as may.
    pub fn tenant_full(message: impl fmt::Display) -> Self {
        Self::new(Reason::TenantFull, Started::No, Retry::Elsewhere, message).after(Duration::from_millis(500))
    }

    /// The worker must not take more, though it has room.
    pub fn overloaded(message: impl fmt::Display) -> Self {
        Self::new(Reason::Overloaded, Started::No, Retry::Elsewhere, message).after(Duration::from_secs(1))
    }

    /// The integration is spared until then. Not "elsewhere": what fails is behind all workers.
    pub fn breaker_open(message: impl fmt::Display, after: Duration) -> Self {
        Self::new(Reason::BreakerOpen, Started::No, Retry::Later, message).after(after)
    }

    /// The server is ending.
    pub fn draining(message: impl fmt::Display) -> Self {
        Self::new(Reason::Draining, Started::No, Retry::Elsewhere, message).after(Duration::from_secs(1))
    }

    /// The call was meant for an earlier life of this worker.
    pub fn stale_incarnation(message: impl fmt::Display) -> Self {
        Self::new(Reason::StaleIncarnation, Started::No, Retry::Elsewhere, message)
    }

    /// The router's queue is full.
    pub fn queue_full(message: impl fmt::Display, after: Duration) -> Self {
        Self::new(Reason::QueueFull, Started::No, Retry::Later, message).after(after)
    }

    /// The router knows no worker.
    pub fn no_workers(message: impl fmt::Display) -> Self {
        Self::new(Reason::NoWorkers, Started::No, Retry::Later, message).after(Duration::from_secs(2))
    }

    /// No worker has the integration.
    pub fn unknown_integration(message: impl fmt::Display) -> Self {
        Self::new(Reason::UnknownIntegration, Started::No, Retry::Elsewhere, message)
    }

    /// A field of the task is wrong.
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::new(Reason::InvalidTask, Started::No, Retry::Never, message)
    }

    /// No time is left to run the task.
    pub fn deadline_too_short(message: impl fmt::Display) -> Self {
        Self::new(Reason::DeadlineTooShort, Started::No, Retry::Never, message)
    }

    /// The call broke after the task was sent.
    pub fn outcome_unknown(message: impl fmt::Display) -> Self {
        Self::new(Reason::OutcomeUnknown, Started::Unknown, Retry::Never, message)
    }

    fn new(reason: Reason, started: Started, retry: Retry, message: impl fmt::Display) -> Self {
        TaskError { reason, started, retry, retry_after: None, message: message.to_string() }
    }

    fn after(self, wait: Duration) -> Self {
        TaskError { retry_after: Some(wait), ..self }
    }

    /// The status to answer with.
    pub fn to_status(&self) -> Status {
        let code = match self.reason {
            Reason::WorkerFull
            | Reason::IntegrationFull
            | Reason::TenantFull
            | Reason::Overloaded
            | Reason::QueueFull => Code::ResourceExhausted,
            Reason::Draining | Reason::StaleIncarnation | Reason::NoWorkers | Reason::BreakerOpen => Code::Unavailable,
            Reason::UnknownIntegration => Code::NotFound,
            Reason::InvalidTask => Code::InvalidArgument,
            Reason::DeadlineTooShort => Code::DeadlineExceeded,
            Reason::OutcomeUnknown => Code::Unknown,
        };
        let metadata = HashMap::from([
            ("started".to_owned(), self.started.to_string()),
            ("retry".to_owned(), self.retry.to_string()),
        ]);
        let mut details = ErrorDetails::new();
        details.set_error_info(self.reason.as_str(), DOMAIN, metadata);
        if let Some(wait) = self.retry_after {
            details.set_retry_info(Some(wait));
        }
        let mut status = Status::with_error_details(code, &self.message, details);
        if let Some(wait) = self.retry_after {
            let milliseconds = tonic::metadata::MetadataValue::from(wait.as_millis() as u64);
            status.metadata_mut().insert(PUSHBACK, milliseconds);
        }
        status
    }

    /// Reads a status; `None` when it carries no ErrorInfo of weir, and so says nothing about the task.
    pub fn from_status(status: &Status) -> Option<Self> {
        let info = status.get_details_error_info()?;
        if info.domain != DOMAIN {
            return None;
        }
        let word = |key: &str| info.metadata.get(key).map(String::as_str).unwrap_or_default();
        Some(TaskError {
            reason: Reason::parse(&info.reason)?,
            started: Started::parse(word("started")).unwrap_or(Started::Unknown),
            retry: Retry::parse(word("retry")).unwrap_or(Retry::Never),
            retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
            message: status.message().to_owned(),
        })
    }
}

/// Whether it is proven that a call never reached the server's program, so that its task never started: no connection
/// could be made, or the server said in HTTP/2's own words that it has not looked at the request. It says so when a
/// connection ends in order, for requests that crossed its farewell (RFC 9113, sections 6.8 and 8.7).
pub fn never_arrived(status: &Status) -> bool {
    std::iter::successors(std::error::Error::source(status), |error| error.source()).any(|error| {
        let unprocessed = |error: &h2::Error| {
            let farewell = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            // h2 gives a farewell as the error of those requests only that are later than the last one looked at.
            error.is_remote() && (farewell || refused)
        };
        error.is::<tonic::ConnectError>() || error.downcast_ref().is_some_and(unprocessed)
    })
}

/// A status with the whole chain of its causes: tonic's own message is often only "transport error".
pub fn describe(status: &Status) -> String {
    and_causes(status.message().to_owned(), status)
}

impl From<TaskError> for Status {
    fn from(error: TaskError) -> Status {
        error.to_status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_wire() {
        let errors = [
            TaskError::worker_full("full"),
            TaskError::queue_full("full", Duration::from_secs(3)),
            TaskError::outcome_unknown("gone"),
            TaskError::invalid("bad"),
        ];
        for error in errors {
            assert_eq!(TaskError::from_status(&error.to_status()).as_ref(), Some(&error));
        }
    }

    #[test]
    fn a_bare_status_is_no_refusal() {
        assert_eq!(TaskError::from_status(&Status::resource_exhausted("connection died")), None);
        let mut details = ErrorDetails::new();
        details.set_error_info("WORKER_FULL", "elsewhere.example", HashMap::new());
        assert_eq!(TaskError::from_status(&Status::with_error_details(Code::Unavailable, "x", details)), None);
    }

    #[test]
    fn clients_that_retry_by_themselves_are_told_how_long_to_wait() {
        let status = TaskError::worker_full("full").to_status();
        assert_eq!(status.metadata().get(PUSHBACK).map(|value| value.as_bytes()), Some(&b"500"[..]));
    }
}
