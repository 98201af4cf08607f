//! What weir moves: a task, the outcome it ends in, and the transcript of what it said to the outside on the way.
//!
//! Ground floor: these types know neither the wire, nor Redis, nor S3. They are cheap to clone where they are shared
//! (names and JSON texts are reference-counted).

mod name;
#[cfg(test)]
pub(crate) mod testing;
pub mod transcript;
mod unknown;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;

pub use name::{FailureReason, IntegrationName, InvalidName, PoolName, TaskId, Tenant, WorkerId};
pub use transcript::Transcript;
pub use unknown::UnknownIntegration;

/// One unit of work.
#[derive(Debug, Clone)]
pub struct Task {
    /// Chosen by the caller; also names the stored payload.
    pub id: TaskId,
    /// The code to run.
    pub integration: IntegrationName,
    /// On whose behalf.
    pub tenant: Tenant,
    /// Who waits.
    pub priority: Priority,
    /// The integration's input.
    pub input: Json,
    /// When the caller stops waiting. Carried as a remaining time on the wire, so that clocks need not agree.
    pub deadline: Instant,
}

/// Who waits for the outcome. The order is the order of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// A person.
    Interactive,
    /// A periodic refresh.
    Batch,
}

impl Priority {
    /// Both, in the order of service.
    pub const ALL: [Priority; 2] = [Priority::Interactive, Priority::Batch];

    /// The name used in metrics and payloads.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Interactive => "interactive",
            Priority::Batch => "batch",
        }
    }
}

/// What a task ended in, exactly once.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The task that ended.
    pub task: TaskId,
    /// The admission that ended it.
    pub run: RunId,
    /// The integration's output, or why there is none.
    pub result: Result<Json, Failure>,
    /// The worker that ran it.
    pub worker: WorkerId,
    /// Which call to a worker this was; 1 for the first.
    pub attempt: u32,
    /// Where the time went.
    pub timings: Timings,
}

impl Outcome {
    /// `ok`, or the failure's code: the label in metrics and in payload keys.
    pub fn label(&self) -> &'static str {
        match &self.result {
            Ok(_) => "ok",
            Err(failure) => failure.code.as_str(),
        }
    }
}

/// Where a task's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// In the router's queue, over all attempts.
    pub queued: Duration,
    /// In the integration.
    pub ran: Duration,
}

/// Why a started task has no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", .code.as_str())]
pub struct Failure {
    /// One of a closed set.
    pub code: FailureCode,
    /// For people; holds no secrets.
    pub message: String,
    /// What may help, as far as the integration knows.
    pub remedy: Remedy,
    /// The integration's own word for it, where it has one.
    pub reason: Option<FailureReason>,
}

impl Failure {
    /// One that only weir's own code names: without a reason of the integration's.
    pub fn new(code: FailureCode, message: impl Into<String>, remedy: Remedy) -> Self {
        Failure { code, message: message.into(), remedy, reason: None }
    }
}

/// What may help against a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Nothing: the same task would fail again.
    None,
    /// Running the task again, later.
    Retry,
    /// The person that the task is about must act first: log in again, renew a consent.
    UserAction,
}

impl Remedy {
    /// Each of them.
    pub const ALL: [Remedy; 3] = [Remedy::None, Remedy::Retry, Remedy::UserAction];

    /// The name used in payloads and the CLI's output.
    pub fn as_str(self) -> &'static str {
        match self {
            Remedy::None => "none",
            Remedy::Retry => "retry",
            Remedy::UserAction => "user_action",
        }
    }
}

/// The closed set of ways in which a started task fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureCode {
    /// The integration returned an error.
    Integration,
    /// The integration panicked.
    Panic,
    /// The task ran into its deadline.
    Deadline,
    /// The caller went away, or the worker was stopped.
    Cancelled,
    /// The output exceeds the worker's limit.
    OutputTooLarge,
}

impl FailureCode {
    /// Every code.
    pub const ALL: [FailureCode; 5] = [
        FailureCode::Integration,
        FailureCode::Panic,
        FailureCode::Deadline,
        FailureCode::Cancelled,
        FailureCode::OutputTooLarge,
    ];

    /// The name used in metrics, payload keys and the CLI's output.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureCode::Integration => "integration_error",
            FailureCode::Panic => "panic",
            FailureCode::Deadline => "deadline",
            FailureCode::Cancelled => "cancelled",
            FailureCode::OutputTooLarge => "output_too_large",
        }
    }
}

/// One admission of a task. Time-ordered (UUID version 7), so that the runs of one task sort by their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RunId(pub Uuid);

impl RunId {
    /// A new one, for now.
    pub fn mint() -> Self {
        RunId(Uuid::now_v7())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A JSON text, checked to be well formed and kept as text: the router forwards it and the payload stores it without
/// ever building a tree.
#[derive(Clone)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// Checks `text`; an empty one means `null`.
    pub fn parse(text: String) -> Result<Self, serde_json::Error> {
        let text = if text.is_empty() { "null".to_owned() } else { text };
        RawValue::from_string(text).map(|raw| Json(raw.into()))
    }

    /// The JSON text of `value`. Fails only where serde does: a map with keys that are not strings.
    pub fn of(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(|raw| Json(raw.into()))
    }

    /// `null`.
    pub fn null() -> Self {
        Json(RawValue::NULL.to_owned().into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Reads the text into a type. The error names line, column and what was expected.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.as_str())
    }
}

impl fmt::Debug for Json {
    /// Only the size: inputs and outputs hold personal data and must not reach a log by accident.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.as_str().len())
    }
}

impl Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_text_and_an_empty_one_is_null() {
        let json = Json::parse(r#"{"b": 1, "a": 12345678901234567890.5}"#.into()).expect("well formed");
        assert_eq!(json.as_str(), r#"{"b": 1, "a": 12345678901234567890.5}"#);
        assert_eq!(Json::parse(String::new()).expect("null").as_str(), "null");
    }

    #[test]
    fn malformed_json_is_refused_with_its_place() {
        let error = Json::parse("{\"a\": }".into()).expect_err("malformed");
        assert!(error.to_string().contains("line 1 column 7"), "{error}");
    }

    #[test]
    fn debug_output_holds_no_content() {
        let json = Json::parse(r#""secret""#.into()).expect("well formed");
        assert_eq!(format!("{json:?}"), "Json(8 bytes)");
    }
}
