//! A stored run, run again: on this machine, with what was recorded in place of the network.
//!
//! [`Replay`] reads a payload and runs the code of its integration with the task's input; whatever that asks through its
//! context, the recording answers (`replay/tape.rs`). [`Replayed`] says what came of it then and now: the outcome, the
//! requests, and the differences. `weir payload replay` does this for the configured integrations; a team's own test does
//! it for theirs, under a debugger if need be:
//!
//! ```no_run
//! # struct Spending;
//! # #[async_trait::async_trait]
//! # impl weir::integration::Integration for Spending {
//! #     async fn run(&self, _: &weir::integration::Context) -> Result<weir::task::Json, weir::integration::Error> {
//! #         Ok(weir::task::Json::null())
//! #     }
//! # }
//! # async fn test() -> Result<(), weir::replay::Error> {
//! let replay = weir::replay::Replay::from_file("tests/t1.json.zlib.b64")?;
//! let replayed = replay.run(Spending).await?;
//! assert!(replayed.is_same(), "{replayed}");
//! # Ok(())
//! # }
//! ```
//!
//! What was redacted is not known any more: the code is given the placeholders, such as `[card-1]`, and where it reads
//! something out of such a value the replay goes another way than the run did.

mod comparison;
mod json;
mod matching;
mod pattern;
mod report;
mod tape;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::integration::{Context, Environment, Integration, Invalid, environment};
use crate::lifecycle::Lifecycle;
use crate::payload::redact::{self, Redactor, placeholders};
use crate::payload::{self, DecodeError, Limits, Record, Recorded};
use crate::task::{FailureCode, Json, Outcome, RunId, Task, Timings};
use crate::telemetry::Telemetry;
use crate::worker::end::{End, guarded};
pub use comparison::{Change, Replayed, Request, Said};
pub use json::Difference;
use tape::Tape;

/// How long a replay may take where nothing else is said: whoever looks around in a debugger takes their time.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How long what a run has started may take to end after it; a program has up to four seconds for that.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Why a run cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The payload's file.
    #[error("cannot read {path}: {error}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The payload.
    #[error(transparent)]
    Payload(#[from] DecodeError),
    /// Only metadata was kept.
    #[error("there is nothing to replay: {0}")]
    Withheld(String),
    /// What redacts the new run.
    #[error(transparent)]
    Redaction(#[from] payload::ConfigError),
    /// What integrations share.
    #[error("worker.environment.{0}")]
    Environment(#[from] Invalid),
    /// Metrics, without which no integration runs.
    #[error("metrics: {0}")]
    Metrics(String),
    /// It takes too long.
    #[error("the replay has not ended within {}: give it longer, or look where it waits", humantime::format_duration(*.0))]
    Overdue(Duration),
    /// The new run.
    #[error("what the run came to now cannot be told: {0}")]
    Now(String),
}

/// A stored run that is to be run again.
pub struct Replay {
    recorded: Arc<Recorded>,
    input: Option<Json>,
    environment: environment::Config,
    redaction: redact::Config,
    timeout: Duration,
    is_live: bool,
    takes_similar: bool,
}

impl Replay {
    /// Of a payload that was read.
    pub fn new(recorded: Recorded) -> Result<Self, Error> {
        if let Some(why) = recorded.withheld {
            return Err(Error::Withheld(why));
        }
        Ok(Replay {
            recorded: Arc::new(recorded),
            input: None,
            environment: environment::Config::default(),
            redaction: redact::Config::default(),
            timeout: DEFAULT_TIMEOUT,
            is_live: false,
            takes_similar: false,
        })
    }

    /// Of a payload in a file, in any of the stored forms.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let stored = std::fs::read(path).map_err(|error| Error::File { path: path.to_owned(), error })?;
        Replay::new(Recorded::read(&stored, Limits::default())?)
    }

    /// The recorded run.
    pub fn recorded(&self) -> &Recorded {
        &self.recorded
    }

    /// With another input, such as one with what was redacted.
    #[must_use]
    pub fn with_input(self, input: Json) -> Self {
        Replay { input: Some(input), ..self }
    }

    /// With a worker's configuration: what its runs share, and the redaction of payloads, which should be the one that the
    /// recorded worker had.
    #[must_use]
    pub fn configured(self, environment: environment::Config, redaction: redact::Config) -> Self {
        Replay { environment, redaction, ..self }
    }

    /// With this long to run instead of an hour. The recorded run's deadline is not kept.
    #[must_use]
    pub fn within(self, timeout: Duration) -> Self {
        Replay { timeout, ..self }
    }

    /// Over the network, instead of from the recording.
    #[must_use]
    pub fn live(self) -> Self {
        Replay { is_live: true, ..self }
    }

    /// A request that is not in the recording is answered by the first one that is left of the same method and path.
    #[must_use]
    pub fn taking_the_nearest(self) -> Self {
        Replay { takes_similar: true, ..self }
    }

    /// Whether an access token is there before the run asks for anything, as far as the recording tells: it does not
    /// begin with the request for one.
    pub fn has_token(&self) -> bool {
        let first = self.recorded.exchanges.first().map(|recorded| &recorded.exchange.request.body);
        !first.is_some_and(|body| String::from_utf8_lossy(body).split('&').any(|pair| pair.starts_with("grant_type=")))
    }

    /// Runs `integration` once, and compares.
    pub async fn run(&self, integration: impl Integration) -> Result<Replayed, Error> {
        self.run_shared(Arc::new(integration)).await
    }

    /// As [`Replay::run`], of an integration that is shared.
    pub async fn run_shared(&self, integration: Arc<dyn Integration>) -> Result<Replayed, Error> {
        let lifecycle = Lifecycle::new();
        let telemetry = Telemetry::new().map_err(|error| Error::Metrics(error.to_string()))?;
        let environment = Environment::new(&self.environment, "worker.environment", &lifecycle, &telemetry)?;
        let tape = Arc::new(Tape::new(self.recorded.clone(), Redactor::new(&self.redaction)?, self.takes_similar));
        integration.start(&lifecycle);
        let record = self.record(integration, &environment, tape.clone()).await;
        if let Err(stragglers) = lifecycle.stop(STOP_WITHIN).await {
            tracing::warn!("left behind: {stragglers}");
        }
        let (record, mut remarks) = record?;
        let redacted = Redactor::new(&self.redaction)?.redact_with(record, tape.placeholders());
        let now = Recorded::of(&redacted).map_err(|error| Error::Now(error.to_string()))?;
        match &now.withheld {
            Some(why) => Err(Error::Now(why.clone())),
            None => {
                remarks.splice(0..0, self.remarks(tape.has_gaps()));
                Ok(Replayed::new(self.recorded.clone(), now, self.is_live, self.takes_similar, remarks))
            }
        }
    }

    /// Runs the integration to its end.
    async fn record(
        &self,
        integration: Arc<dyn Integration>,
        environment: &Arc<Environment>,
        tape: Arc<Tape>,
    ) -> Result<(Record, Vec<String>), Error> {
        let (then, started, cancel) = (&self.recorded, Instant::now(), CancellationToken::new());
        let input = self.input.clone().unwrap_or_else(|| then.task.input.clone());
        let task = Task { input, deadline: started + self.timeout, ..then.task.clone() };
        let (recorder, run) = (environment.recorder(), self.run_id());
        let context =
            Context::new(task.clone(), run, cancel.clone(), recorder.clone(), environment.clone(), Arc::new(()));
        let context = if self.is_live { context } else { context.answered_by(tape.clone()) };
        let code = guarded(integration, context);
        let end = async {
            tokio::select! {
                returned = code => End::Returned(returned),
                () = tape.cut_off() => match &then.outcome.result {
                    Err(failure) if failure.code == FailureCode::Deadline => End::DeadlinePassed,
                    _ => End::Cancelled,
                },
            }
        };
        let end = timeout(self.timeout, end).await;
        let ran = started.elapsed();
        cancel.cancel();
        let outcome = Outcome {
            task: task.id.clone(),
            run,
            result: end.map_err(|_| Error::Overdue(self.timeout))?.result(&task.integration),
            worker: then.outcome.worker.clone(),
            attempt: then.outcome.attempt,
            timings: Timings { queued: Duration::ZERO, ran },
        };
        Ok((Record { task, outcome, transcript: recorder.take(), pool: then.pool.clone() }, tape.remarks()))
    }

    /// The recorded run's own, for it may be in its requests; another one where the bank is asked again.
    fn run_id(&self) -> RunId {
        if self.is_live { RunId::mint() } else { self.recorded.outcome.run }
    }

    /// What a person should know before they look at the result.
    fn remarks(&self, has_gaps: bool) -> Vec<String> {
        let mut remarks = Vec::new();
        let (then, left_out) = (&self.recorded, self.recorded.exchanges_left_out);
        if left_out > 0 && !self.is_live {
            remarks.push(format!("{left_out} exchanges of the run had no room in the recording"));
        }
        let hidden = placeholders(then.task.input.as_str()).count();
        if hidden > 0 && self.input.is_none() && (self.is_live || has_gaps) {
            let what = if self.is_live { "these were sent" } else { "requests may have been made of these" };
            remarks.push(format!(
                "the input has placeholders where {hidden} values were redacted, and {what}: give it with them (--input)"
            ));
        }
        remarks
    }
}
