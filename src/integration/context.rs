//! What an integration sees of the task that it runs, and what it may use meanwhile.
//!
//! The worker hands a context an opaque `hold`. It lives as long as anything of the run lives: the context has it, and
//! each blocking closure has a clone. A run whose future was dropped, but whose closure still computes, so keeps its
//! place in the worker until it has really stopped.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::Error;
use super::environment::Environment;
use super::owner::Owner;
use super::recorder::Recorder;
use super::transport::{Client, Line, StandIn, Transport};
use crate::lifecycle::Lifecycle;
use crate::task::{RunId, Task};
use crate::telemetry::Counted;

/// One run of one task, as its integration sees it.
pub struct Context {
    task: Task,
    run: RunId,
    owner: Arc<Owner>,
    cancel: CancellationToken,
    line: Line,
    environment: Arc<Environment>,
    hold: Arc<dyn Any + Send + Sync>,
}

impl Context {
    /// For the run `run` of `task`, told to stop through `cancel`. `hold` lives as long as anything of the run.
    pub fn new(
        task: Task,
        run: RunId,
        cancel: CancellationToken,
        recorder: Recorder,
        environment: Arc<Environment>,
        hold: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let owner = Owner::new(&task, run);
        Context { task, run, owner, cancel, line: Line { recorder, stand_in: None }, environment, hold }
    }

    /// The same run with `stand_in` to answer its requests, in place of the network.
    #[must_use]
    pub fn answered_by(mut self, stand_in: Arc<dyn StandIn>) -> Self {
        self.line.stand_in = Some(stand_in);
        self
    }

    /// The task.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// This admission of the task.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Whose the run's code is, for whoever runs it.
    pub(crate) fn owner(&self) -> Arc<Owner> {
        self.owner.clone()
    }

    /// The task's input as a type. What does not fit is a permanent error that says what was expected.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.task.input.read().map_err(|error| Error::permanent(format!("the input does not fit: {error}")))
    }

    /// When the caller stops waiting.
    pub fn deadline(&self) -> Instant {
        self.task.deadline
    }

    /// Until the deadline; zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.task.deadline.saturating_duration_since(Instant::now())
    }

    /// Ends when the run is to stop: its caller went away, its deadline passed, or the worker is being stopped.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.cancel.cancelled()
    }

    /// Whether the run is to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// The token behind [`Context::cancelled`], for work that cannot borrow the context.
    pub fn token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// An HTTP client that records what is said, and gives up at the task's deadline.
    pub fn http(&self) -> Client<'_> {
        self.client(&self.environment.transport)
    }

    /// As [`Context::http`], over an integration's own transport.
    pub fn client<'a>(&'a self, transport: &'a Transport) -> Client<'a> {
        self.line.client(transport, self.task.deadline)
    }

    /// Adds a remark to the transcript.
    pub fn note(&self, text: impl Into<String>) {
        self.line.recorder.note(text);
    }

    /// Adds a file to the transcript: a page, a screenshot, a log. It is redacted as a body is; for what the recorder's
    /// limits and the redaction leave of it see [`Recorder::attach`] and the configuration's `[payloads.redaction]`.
    pub fn attach(&self, name: &str, content_type: &str, body: impl Into<Bytes>) {
        self.line.recorder.attach(name, content_type, body);
    }

    /// Has `value` (a token, a password) removed wherever the transcript, the input or the output hold it when they are
    /// stored.
    pub fn secret(&self, value: impl Into<String>) {
        self.line.recorder.secret(value);
    }

    /// Keeps the run's place in the worker while it lives: for what goes on without the run's future.
    pub(super) fn hold(&self) -> Arc<dyn Any + Send + Sync> {
        self.hold.clone()
    }

    /// The transcript in the making. An integration that does not speak HTTP through [`Context::http`] adds its exchanges
    /// with [`Recorder::record`].
    pub fn recorder(&self) -> &Recorder {
        &self.line.recorder
    }

    /// The run's line to the outside, for what goes on without the run's future.
    pub(super) fn line(&self) -> Line {
        self.line.clone()
    }

    /// Waits before a request is sent again. What stands in for the network needs no such pause.
    pub(super) async fn pause(&self, pause: Duration) {
        if self.line.stand_in.is_none() {
            tokio::time::sleep(pause).await;
        }
    }

    /// Owns what a run starts and others may need after it.
    pub(super) fn lifecycle(&self) -> &Lifecycle {
        &self.environment.lifecycle
    }

    /// Runs `work` on a blocking thread, for what computes for more than about a millisecond or calls what blocks.
    ///
    /// Waits for one of a limited number of places; a cancellation ends the waiting. Once it runs `work` cannot be
    /// interrupted: let long work look at [`Context::token`]. A panic inside is a panic of the run.
    pub async fn blocking<F, T>(&self, work: F) -> Result<T, Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let environment = &self.environment;
        let waiting = (Counted::new(&environment.metrics.waiting), environment.waiting.clone());
        let place = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(Error::retryable("cancelled while waiting for a thread")),
            place = environment.blocking.clone().acquire_owned() => place,
        };
        drop(waiting);
        let place = place.map_err(|_| stopping())?;
        let (kept, owner) = ((self.hold.clone(), Counted::new(&environment.metrics.running), place), self.owner());
        let handle = environment.lifecycle.blocking("integration's blocking work", move || {
            let _kept = kept;
            owner.call(work)
        });
        match handle.await {
            Ok(value) => Ok(value),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(stopping()),
            },
        }
    }
}

fn stopping() -> Error {
    Error::retryable("the worker is stopping: blocking work is no longer started")
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;
    use crate::integration::environment::BlockingFull;
    use crate::integration::testing;
    use crate::task::Remedy;

    #[tokio::test]
    async fn blocking_work_returns_its_value() {
        let context = testing::context("{}");
        assert_eq!(context.blocking(|| 6 * 7).await, Ok(42));
    }

    #[tokio::test]
    async fn a_panic_in_blocking_work_is_a_panic_of_the_run() {
        let context = testing::context("{}");
        let run = AssertUnwindSafe(context.blocking(|| -> () { panic!("on purpose") }));
        let panic = run.catch_unwind().await.expect_err("it panics");
        assert_eq!(crate::lifecycle::panic_message(&*panic), "on purpose");
    }

    #[tokio::test]
    async fn a_dropped_run_keeps_its_hold_until_its_closure_has_ended() {
        let (hold, lifecycle) = (Arc::new(()), Lifecycle::new());
        let context = testing::context_on(&lifecycle, "{}", 1, hold.clone(), CancellationToken::new());
        let (started, has_started) = mpsc::channel::<()>();
        let (release, released) = mpsc::channel::<()>();
        {
            let run = context.blocking(move || {
                started.send(()).expect("the test listens");
                let _ = released.recv();
            });
            tokio::pin!(run);
            assert!(run.as_mut().now_or_never().is_none());
            has_started.recv().expect("it starts");
        }
        drop(context);
        assert_eq!(Arc::strong_count(&hold), 2, "the closure holds it");
        drop(release);
        lifecycle.wait(Duration::from_secs(5)).await.expect("the closure ends");
        assert_eq!(Arc::strong_count(&hold), 1);
    }

    #[tokio::test]
    async fn waiting_for_a_blocking_thread_ends_with_the_cancellation() {
        let (lifecycle, cancel) = (Lifecycle::new(), CancellationToken::new());
        let context = testing::context_on(&lifecycle, "{}", 1, Arc::new(()), cancel.clone());
        let (release, released) = mpsc::channel::<()>();
        let first = context.blocking(move || released.recv().is_err());
        let second = async {
            let waiting = context.blocking(|| ());
            tokio::pin!(waiting);
            assert!(waiting.as_mut().now_or_never().is_none(), "the only place is taken");
            assert_eq!(context.environment.blocking_full(), Some(BlockingFull { running: 1, waiting: 1 }));
            cancel.cancel();
            let error = waiting.await.expect_err("cancelled");
            drop(release);
            error
        };
        let (first, error) = tokio::join!(first, second);
        assert_eq!(first, Ok(true));
        assert!(error.remedy == Remedy::Retry && error.message.contains("cancelled"), "{error}");
        assert_eq!(context.environment.blocking_full(), None);
    }
}
