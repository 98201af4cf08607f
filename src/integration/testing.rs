//! Contexts for this organ's tests.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Context, Environment, environment};
use crate::lifecycle::Lifecycle;
use crate::task::{Json, Priority, RunId, Task, testing};
use crate::telemetry::Telemetry;

/// A task with this input and a minute's time.
pub fn task(input: &str) -> Task {
    let input = Json::parse(input.to_owned()).expect("JSON");
    Task { priority: Priority::Interactive, input, ..testing::task("task-1") }
}

/// A run of [`task`].
pub fn context(input: &str) -> Context {
    context_on(&Lifecycle::new(), input, 2, Arc::new(()), CancellationToken::new())
}

/// A run of [`task`] with this much time.
pub fn context_within(input: &str, timeout: Duration) -> Context {
    let task = Task { deadline: Instant::now() + timeout, ..task(input) };
    context_of(task, &Lifecycle::new(), 2, Arc::new(()), CancellationToken::new())
}

/// A run of [`task`] with all that a worker gives it.
pub fn context_on(
    lifecycle: &Lifecycle,
    input: &str,
    blocking_threads: usize,
    hold: Arc<dyn Any + Send + Sync>,
    cancel: CancellationToken,
) -> Context {
    context_of(task(input), lifecycle, blocking_threads, hold, cancel)
}

fn context_of(
    task: Task,
    lifecycle: &Lifecycle,
    blocking_threads: usize,
    hold: Arc<dyn Any + Send + Sync>,
    cancel: CancellationToken,
) -> Context {
    let config = environment::Config { blocking_threads, ..Default::default() };
    let telemetry = Telemetry::new().expect("a recorder");
    let environment = Environment::new(&config, "run", lifecycle, &telemetry).expect("valid");
    let recorder = environment.recorder();
    Context::new(task, RunId::mint(), cancel, recorder, environment, hold)
}
