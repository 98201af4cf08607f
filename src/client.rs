//! The client for programs in Rust: typed errors, one deadline, and retries of what never started.
//!
//! It speaks to a router or to a worker alike. A call is repeated only when the server said that the task never started
//! and may be taken later or elsewhere, or when no connection could be made; then with exponential backoff and jitter,
//! never sooner than the server asked, until the task's timeout is over. Everything else is the caller's to decide: a
//! second run by accident would be worse than an error.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use weir::client::{Client, Submission};
//! use weir::task::Json;
//!
//! let client = Client::new("http://127.0.0.1:7400")?;
//! let submission = Submission::new("refresh-17".parse()?, "bank".parse()?, Json::parse(r#"{"customer":"c1"}"#.into())?);
//! match client.submit(&submission).await {
//!     Ok(outcome) => println!("{:?} after {:?}", outcome.result, outcome.timings.ran),
//!     Err(error) => println!("no outcome: {error}"),
//! }
//! # Ok(()) }
//! ```

pub mod operations;

use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, timeout_at};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::task::{IntegrationName, Json, Outcome, Priority, Task, TaskId, Tenant};
use crate::wire::error::{describe, never_connected};
use crate::wire::proto::tasks_client::TasksClient;
use crate::wire::{self, MAX_INPUT_BYTES, MAX_MESSAGE_BYTES, Reason, Retry, Started, TaskError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// The pause after the first attempt that did not start; doubled with each.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long after a task's timeout its answer is still waited for: the server answers at the timeout.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// One task to submit.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Chosen by the caller; one that was used before is not refused.
    pub id: TaskId,
    /// What to run.
    pub integration: IntegrationName,
    /// On whose behalf.
    pub tenant: Tenant,
    /// Who waits.
    pub priority: Priority,
    /// The integration's input; at most [`wire::MAX_INPUT_BYTES`].
    pub input: Json,
    /// How long the task may take, all attempts and waiting included.
    pub timeout: Duration,
}

impl Submission {
    /// A batch task of the default tenant with a minute to run.
    pub fn new(id: TaskId, integration: IntegrationName, input: Json) -> Self {
        let (tenant, priority) = (Tenant::default(), Priority::Batch);
        Submission { id, integration, tenant, priority, input, timeout: Duration::from_secs(60) }
    }
}

/// Why there is no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The task never started: it may be submitted again safely.
    #[error("{0}")]
    NotStarted(TaskError),
    /// Nobody could be reached: the task never started.
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

    /// How long to wait before trying again; `None` when that must not be or would not help.
    fn retry_after(&self) -> Option<Duration> {
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
    address: String,
}

/// A client of one router or worker. Clones share its connection, which is made at the first call.
#[derive(Clone)]
pub struct Client {
    endpoint: String,
    tasks: TasksClient<Channel>,
}

impl Client {
    /// A client of the server at `address`, such as `http://127.0.0.1:7400`. Does not connect yet.
    pub fn new(address: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress { address: address.to_owned() };
        let url = url::Url::parse(address).map_err(|_| invalid())?;
        if url.scheme() != "http" || url.host().is_none() {
            return Err(invalid());
        }
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| invalid())?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_lazy();
        let tasks = TasksClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Client { endpoint: address.to_owned(), tasks })
    }

    /// Submits one task and waits for its outcome; tries again, within the task's timeout, what never started.
    pub async fn submit(&self, submission: &Submission) -> Result<Outcome, SubmitError> {
        check_size(&submission.input)?;
        let deadline = Instant::now() + submission.timeout;
        let mut backoff = BACKOFF_FIRST;
        loop {
            let error = match self.attempt(submission, deadline).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            };
            let Some(asked) = error.retry_after() else { return Err(error) };
            let pause = asked.max(backoff).mul_f64(rand::rng().random_range(0.8..1.2));
            backoff = (backoff * 2).min(BACKOFF_MAX);
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, submission: &Submission, deadline: Instant) -> Result<Outcome, SubmitError> {
        let Submission { id, integration, tenant, priority, input, .. } = submission.clone();
        let task = Task { id, integration, tenant, priority, input, deadline };
        let remaining = deadline.saturating_duration_since(Instant::now());
        let mut tasks = self.tasks.clone();
        let call = tasks.submit(Request::new(wire::task_out(&task, remaining)));
        let unknown = |message: String| SubmitError::OutcomeUnknown(TaskError::outcome_unknown(message));
        match timeout_at(deadline + ANSWER_MARGIN, call).await {
            Ok(Ok(response)) => wire::outcome_in(response.into_inner()).map_err(unknown),
            Ok(Err(status)) => Err(match TaskError::from_status(&status) {
                Some(error) if error.started == Started::No => SubmitError::NotStarted(error),
                Some(error) => SubmitError::OutcomeUnknown(error),
                None if never_connected(&status) => {
                    SubmitError::Unreachable { endpoint: self.endpoint.clone(), cause: describe(&status) }
                }
                None => unknown(format!("the call broke after the task was sent: {}", describe(&status))),
            }),
            Err(_) => Err(unknown(format!("{} did not answer within the task's timeout", self.endpoint))),
        }
    }
}

/// What no server takes is not sent: a message over the transport's limit breaks the call, and then nobody could tell
/// whether the task has started.
fn check_size(input: &Json) -> Result<(), SubmitError> {
    let bytes = input.as_str().len();
    if bytes <= MAX_INPUT_BYTES {
        return Ok(());
    }
    let message = format!("input is {bytes} bytes long: at most {MAX_INPUT_BYTES} are taken");
    Err(SubmitError::NotStarted(TaskError::invalid(message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_started_is_tried_again() {
        let later = SubmitError::NotStarted(TaskError::queue_full("full", Duration::from_secs(3)));
        assert_eq!(later.retry_after(), Some(Duration::from_secs(3)));
        assert_eq!(SubmitError::NotStarted(TaskError::invalid("bad")).retry_after(), None);
        assert_eq!(SubmitError::NotStarted(TaskError::unknown_integration("what?")).retry_after(), None);
        assert_eq!(SubmitError::OutcomeUnknown(TaskError::outcome_unknown("gone")).retry_after(), None);
    }

    #[tokio::test]
    async fn an_address_is_checked() {
        for bad in ["", "localhost:7400", "127.0.0.1:7400", "ftp://x", "http://"] {
            let error = Client::new(bad).err().expect(bad).to_string();
            assert!(error.contains("http://127.0.0.1:7400"), "{error}");
        }
        Client::new("http://[::1]:7400").expect("valid");
    }
}
