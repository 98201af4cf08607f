//! The client for programs in Rust: typed errors, one deadline, and retries of what never started.
//!
//! It speaks to a router or to a worker alike. A task is sent again only when the server said that it never started and
//! may be taken later or elsewhere, or when it provably never left; then with exponential backoff and jitter, never
//! sooner than the server asked, until the task's timeout is over. Everything else is the caller's to decide: a second
//! run by accident would be worse than an error.
//!
//! One task, and what may come of it:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use weir::client::{Client, Submission};
//! use weir::task::Json;
//!
//! let client = Client::new("http://127.0.0.1:7400")?;
//! let submission = Submission::new("refresh-17".parse()?, "bank".parse()?, Json::parse(r#"{"customer":"c1"}"#.into())?);
//! match client.submit(&submission).await {
//!     Ok(outcome) => match outcome.result {
//!         Ok(output) => println!("{} after {:?}", output.as_str(), outcome.timings.ran),
//!         Err(failure) => println!("{failure}; what may help: {:?}", failure.remedy),
//!     },
//!     Err(error) => println!("no outcome: {error}"),
//! }
//! # Ok(()) }
//! ```
//!
//! Many, as a stream; nothing runs that is not polled, and dropping the answers cancels what still runs:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use futures_util::stream::{self, StreamExt};
//! use weir::client::{Client, Options, Submission};
//! use weir::task::Json;
//!
//! let mut submissions = Vec::new();
//! for n in 0..1000 {
//!     let input = Json::of(&serde_json::json!({"customer": format!("c{n}")}))?;
//!     submissions.push(Submission::new(format!("refresh-{n}").parse()?, "bank".parse()?, input));
//! }
//! let client = Client::with_options("http://127.0.0.1:7400", Options { max_in_flight: 100, ..Options::default() })?;
//! let mut answers = client.submit_many(stream::iter(submissions));
//! while let Some((id, answer)) = answers.next().await {
//!     println!("{id}: {}", answer.map_or_else(|error| error.to_string(), |outcome| outcome.label().to_owned()));
//! }
//! # Ok(()) }
//! ```

mod backoff;
mod call;
mod error;
mod many;
pub mod operations;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::Stream;
use tokio::time::{Instant, timeout_at};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::task::{IntegrationName, Json, Outcome, Priority, Task, TaskId, Tenant};
use crate::wire::proto::tasks_client::TasksClient;
use crate::wire::{self, MAX_INPUT_BYTES, MAX_MESSAGE_BYTES};
pub use backoff::Backoff;
pub use error::{InvalidAddress, SubmitError};
pub use many::Answer;

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// How long after a task's timeout its answer is still waited for: the server answers at the timeout.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// The longest timeout that is kept as it is; no server gives as much, and the clock cannot count forever.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

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

    /// When its time is over, if it begins now.
    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.min(MAX_TIMEOUT)
    }

    /// What no server takes is not sent: a message over the transport's limit breaks the call, and then nobody could
    /// tell whether the task has started; without time, no answer could be waited for.
    fn check(&self) -> Result<(), SubmitError> {
        let bytes = self.input.as_str().len();
        if bytes > MAX_INPUT_BYTES {
            return Err(SubmitError::invalid(format!(
                "input is {bytes} bytes long: at most {MAX_INPUT_BYTES} are taken"
            )));
        }
        if self.timeout.is_zero() {
            return Err(SubmitError::too_late("the task's timeout is zero: give it time to run".into()));
        }
        Ok(())
    }

    fn into_task(self, deadline: Instant) -> Task {
        let Submission { id, integration, tenant, priority, input, timeout: _ } = self;
        Task { id, integration, tenant, priority, input, deadline }
    }
}

/// How a client behaves, where the usual is not right: `Options { backoff: None, ..Options::default() }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long a connection may take to be made. Default: 2 s.
    pub connect_timeout: Duration,
    /// The pauses between attempts to start a task; `None` makes one attempt only, and leaves retries to the caller:
    /// see [`SubmitError::retry_after`]. Default: 100 ms, doubled up to 5 s.
    pub backoff: Option<Backoff>,
    /// How many tasks of one [`Client::submit_many`] are under way at a time, pauses before another attempt included;
    /// 0 counts as 1. More than the server takes from one stream (a router 1,024, or its queue if that is shorter; a
    /// worker its N) brings refusals or waiting, not speed. Default: 256.
    pub max_in_flight: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { connect_timeout: Duration::from_secs(2), backoff: Some(Backoff::default()), max_in_flight: 256 }
    }
}

/// A client of one router or worker. Clones share its connection, which is made at the first call and made again by
/// itself when it was lost.
#[derive(Clone)]
pub struct Client {
    endpoint: Arc<str>,
    tasks: TasksClient<Channel>,
    options: Options,
}

impl Client {
    /// A client of the server at `address`, such as `http://127.0.0.1:7400`. Does not connect yet; needs to be called
    /// inside of a tokio runtime.
    pub fn new(address: &str) -> Result<Self, InvalidAddress> {
        Client::with_options(address, Options::default())
    }

    /// The same, with options.
    pub fn with_options(address: &str, options: Options) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress { address: address.to_owned() };
        let url = url::Url::parse(address).map_err(|_| invalid())?;
        if url.scheme() != "http" || url.host().is_none() {
            return Err(invalid());
        }
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| invalid())?;
        let channel = endpoint
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_lazy();
        let tasks = TasksClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Client { endpoint: address.into(), tasks, options })
    }

    /// Submits one task and waits for its outcome; tries again, within the task's timeout, what never started.
    ///
    /// Dropping the future cancels the task, also when it runs already.
    pub async fn submit(&self, submission: &Submission) -> Result<Outcome, SubmitError> {
        submission.check()?;
        let deadline = submission.deadline();
        let task = submission.clone().into_task(deadline);
        backoff::until_started(self.options.backoff, deadline, || self.attempt(&task)).await
    }

    /// Submits many tasks over one stream. Answers come in the order in which tasks end: one for each submission,
    /// exactly, whatever breaks meanwhile.
    ///
    /// - It reads no further than [`Options::max_in_flight`] submissions ahead, so a source of any length will do.
    /// - A task's timeout begins when its submission is read, and all that [`Client::submit`] says about retries holds.
    /// - When the connection breaks, what may have been sent is [`SubmitError::OutcomeUnknown`]; what was not yet sent
    ///   is tried again.
    /// - A submission with the id of another that is under way in the same stream is refused as `INVALID_TASK`, for a
    ///   reply names its task by nothing else. Once the other is answered, the id may be used again.
    /// - Only polling drives it, and dropping it cancels the tasks that are under way. Whoever stops polling for long
    ///   stops the clock of nobody: a task's reply that has come in time is read late, but is no time-out.
    ///
    /// Tasks of one stream go to one router, over one connection; each is still routed by itself.
    pub fn submit_many<S>(&self, submissions: S) -> impl Stream<Item = Answer> + Unpin + use<S>
    where
        S: Stream<Item = Submission>,
    {
        many::submit(self.clone(), submissions)
    }

    async fn attempt(&self, task: &Task) -> Result<Outcome, SubmitError> {
        let remaining = task.deadline.saturating_duration_since(Instant::now());
        let mut tasks = self.tasks.clone();
        let call = tasks.submit(Request::new(wire::task_out(task, remaining)));
        match timeout_at(task.deadline + ANSWER_MARGIN, call).await {
            Ok(Ok(response)) => wire::outcome_in(response.into_inner()).map_err(SubmitError::unknown),
            Ok(Err(status)) => Err(SubmitError::read(&status, &self.endpoint)),
            Err(_) => Err(SubmitError::unknown(self.no_answer())),
        }
    }

    fn no_answer(&self) -> String {
        format!("{} did not answer within the task's timeout", self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_checked() {
        for bad in ["", "localhost:7400", "127.0.0.1:7400", "ftp://x", "http://"] {
            let error = Client::new(bad).err().expect(bad).to_string();
            assert!(error.contains("http://127.0.0.1:7400"), "{error}");
        }
        Client::new("http://[::1]:7400").expect("valid");
    }

    #[tokio::test]
    async fn an_endless_timeout_is_no_overflow() {
        let mut submission =
            Submission::new("t-1".parse().expect("an id"), "bank".parse().expect("a name"), Json::null());
        submission.timeout = Duration::MAX;
        let options = Options { backoff: None, ..Options::default() };
        let client = Client::with_options("http://127.0.0.1:9", options).expect("an address");
        let error = client.submit(&submission).await.expect_err("nobody is there");
        assert_eq!(error.reason(), "UNREACHABLE");
    }
}
