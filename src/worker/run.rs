//! One admitted task, from its permit to its payload.
//!
//! A run is a task of its own, not part of the gRPC handler: when the caller goes away the handler's future is dropped,
//! and the run must still stop in an orderly way, keep its place until it has, and leave its payload. The caller gets
//! its answer at the deadline whatever the integration does; the place is given back only when everything of the run
//! has really stopped, a closure on a blocking thread included.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Span;

use super::end::{End, Returned, guarded};
use super::metrics::{Metrics, Overdue};
use super::roster::{Entry, Listed, Roster};
use crate::gate::Permit;
use crate::integration::{Context, Environment, Integration, OnCancel};
use crate::lifecycle::{Lifecycle, panic_message};
use crate::overload::Polls;
use crate::payload::{Payloads, Record, redact};
use crate::settings::Settings;
use crate::task::{Outcome, PoolName, RunId, Task, Timings, Transcript, WorkerId};
use crate::upstream::Asked;

/// What all runs of a worker share.
pub(super) struct Runner {
    pub(super) worker: WorkerId,
    pub(super) pool: PoolName,
    pub(super) environment: Arc<Environment>,
    pub(super) payloads: Option<Payloads>,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) metrics: Metrics,
    pub(super) roster: Arc<Roster>,
    /// Watches the integrations' code while it is polled.
    pub(super) polls: Arc<Polls>,
    pub(super) runs: Lifecycle,
}

/// A task with a place in the gate.
pub(super) struct Admitted {
    pub(super) task: Task,
    pub(super) integration: Arc<dyn Integration>,
    pub(super) permit: Permit,
    pub(super) asked: Asked,
    pub(super) attempt: u32,
    /// How long the router had it wait.
    pub(super) queued: Duration,
}

/// A run that is under way. Dropping it cancels the run.
pub(super) struct Run {
    outcome: oneshot::Receiver<Outcome>,
    _cancel: DropGuard,
}

impl Run {
    /// Waits for the outcome; `None` only when weir itself failed.
    pub(super) async fn outcome(self) -> Option<Outcome> {
        self.outcome.await.ok()
    }
}

/// What a run holds of the gate. The integration's blocking closures hold it too.
struct Hold {
    permit: Permit,
    listed: Listed,
    overdue: OnceLock<Overdue>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(overdue) = self.overdue.get().filter(|_| self.listed.was_named()) {
            let (late, task) = (overdue.lasted().as_secs_f64(), self.listed.task());
            tracing::info!(task = %task.id, integration = %task.integration, late, "an overdue task has stopped");
        }
    }
}

impl Runner {
    /// Starts the run of an admitted task.
    pub(super) fn start(self: &Arc<Self>, admitted: Admitted) -> Run {
        let (answer, outcome) = oneshot::channel();
        // A child: stopping all runs cancels this one, and cancelling this one leaves the others.
        let cancel = self.runs.token().child_token();
        let run = Run { outcome, _cancel: cancel.clone().drop_guard() };
        let id = RunId::mint();
        let span = span(&admitted.task, id);
        self.runs.spawn_in(span, "run", self.clone().drive(id, admitted, answer, cancel));
        run
    }

    async fn drive(
        self: Arc<Self>,
        run: RunId,
        admitted: Admitted,
        answer: oneshot::Sender<Outcome>,
        cancel: CancellationToken,
    ) {
        let Admitted { task, integration, permit, asked, attempt, queued } = admitted;
        let started = Instant::now();
        let recorder = self.environment.recorder();
        let listed = self.roster.enter(Entry::new(run, task.clone(), attempt, started));
        let hold = Arc::new(Hold { permit, listed, overdue: OnceLock::new() });
        let environment = self.environment.clone();
        let context = Context::new(task.clone(), run, cancel.clone(), recorder.clone(), environment, hold.clone());
        let on_cancel = integration.on_cancel();
        let mut code = self.polls.watch(guarded(integration, context), &task.integration, &task.id);

        let end = tokio::select! {
            biased;
            () = cancel.cancelled() => End::Cancelled,
            () = sleep_until(task.deadline) => End::DeadlinePassed,
            returned = &mut code => End::Returned(returned),
        };
        let (has_stopped, is_late) = (matches!(end, End::Returned(_)), Instant::now() > task.deadline);
        let outcome = Outcome {
            task: task.id.clone(),
            run,
            result: end.or_cancelled(cancel.is_cancelled()).or_late(is_late).result(&task.integration),
            worker: self.worker.clone(),
            attempt,
            timings: Timings { queued, ran: started.elapsed() },
        };
        self.metrics.ended(&task.integration, &outcome, hold.permit.mean_in_flight());
        asked.ended(&outcome);

        // The place is free before the caller has its answer: whoever sends the next task because of that answer finds
        // room. A run that has not stopped is answered for first, and keeps its place.
        if has_stopped {
            drop_guarded(code);
            drop(hold);
            let _ = answer.send(outcome.clone());
        } else {
            let _ = answer.send(outcome.clone());
            cancel.cancel();
            // A guard can be set only once, and this is the only place that sets it.
            let _ = hold.overdue.set(self.metrics.overdue());
            hold.listed.set_overdue();
            stop(code, on_cancel, &hold).await;
        }
        self.keep(task, outcome, recorder.take());
    }

    /// Hands the run's payload on, after the answer has been given.
    fn keep(&self, task: Task, outcome: Outcome, transcript: Transcript) {
        let Some(payloads) = &self.payloads else { return };
        let settings = self.settings.borrow().clone();
        let (share, slow) = (&settings.payload_sampling, &settings.payload_slow_quantile);
        let value = payloads.value(&task.integration, &outcome, slow.of(&task.integration));
        if value.is_kept(share.of(&task.integration), rand::random()) {
            payloads.offer(Record { task, outcome, transcript, pool: self.pool.clone() }, value);
        }
    }
}

/// The span of a run: each line of its log says whose it is. An error's level is no more than what a log that has anything
/// at all lets through. All names at once: what is recorded later costs as much again.
fn span(task: &Task, run: RunId) -> Span {
    let Task { id, integration, tenant, .. } = task;
    let (task, integration, tenant) = (id.as_str(), integration.as_str(), tenant.as_str());
    tracing::error_span!("run", task, run = %run, integration, tenant)
}

/// Waits until a run that was told to stop has done so, and drops it where its integration allows that.
async fn stop(mut code: impl Future<Output = Returned> + Unpin, on_cancel: OnCancel, hold: &Arc<Hold>) {
    match on_cancel {
        OnCancel::Stop { grace } => _ = timeout(grace, &mut code).await,
        OnCancel::Finish => {
            hold.listed.set_why("it may not be dropped");
            let _ = (&mut code).await;
        }
    }
    drop_guarded(code);
    // This function's caller and nobody else: otherwise a closure on a blocking thread still runs, and is named.
    if Arc::strong_count(hold) > 1 {
        hold.listed.set_why("a closure of it still runs on a blocking thread");
    }
}

/// Drops the integration's future; a panic in one of its destructors is not the worker's end either.
fn drop_guarded(code: impl Future) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(code))) {
        let message = redact::for_log(panic_message(&*panic));
        tracing::warn!("an integration panicked while it was dropped: {message}");
    }
}
