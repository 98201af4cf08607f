//! The router's gRPC edge: the same `Tasks` service as a worker's, with the wait for a worker in between.
//!
//! A call runs in its handler: when the caller goes away, the wait leaves the queue and a call to a worker is reset,
//! which cancels the task there.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::channels::Channels;
use super::dispatch::{Dispatcher, Ended, Reservation, TurnedAway};
use super::explain::{Book, Entered, Progress};
use super::metrics::{DEADLINE, Metrics, TOO_LATE};
use super::queue::{Place, Ran, Run};
use super::retry::{Budget, Failed, pause_after};
use super::view::Learned;
use crate::task::{PoolName, Task};
use crate::wire::metadata::{Call, LoadReport, grpc_timeout};
use crate::wire::trace::TraceParent;
use crate::wire::{self, Reason, TaskError, Timeouts, proto};

/// Tasks of one `SubmitMany` stream that are waiting or running at once; the stream is read no further. Never more than
/// the queue holds of one tenant, so that one stream alone is held back and not turned away.
const TASKS_PER_STREAM: usize = 1024;

/// How long after a task's deadline the worker's answer is still waited for. A worker ends a task before its deadline,
/// so what is late is the answer: a machine that is busy makes it so, and "deadline" is a better answer than "nobody
/// knows". Less than the second that weir's client waits.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);

/// Submits tasks to workers.
#[derive(Clone)]
pub(super) struct RouterService {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) dispatcher: Dispatcher,
    pub(super) channels: Arc<Channels>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) timeouts: Timeouts,
    pub(super) intake: super::Intake,
    pub(super) budget: Mutex<Budget>,
    pub(super) book: Book,
    /// The tasks of one class that one tenant may have waiting.
    pub(super) tenant_tasks: usize,
}

/// What a call says beside its task.
#[derive(Clone, Copy)]
struct Asked {
    timeout: Option<Duration>,
    trace: Option<TraceParent>,
}

impl Asked {
    fn read(metadata: &MetadataMap) -> Self {
        Asked { timeout: grpc_timeout(metadata), trace: TraceParent::read(metadata) }
    }
}

impl Inner {
    async fn submit(&self, task: proto::Task, asked: Asked) -> Result<proto::Outcome, TaskError> {
        let arrival = Instant::now();
        let Some(_counted) = self.intake.enter() else {
            return Err(TaskError::draining("the router is draining; submit to another one"));
        };
        let task = wire::task_in(task, self.timeouts, arrival, asked.timeout)?;
        self.budget.lock().task();
        let place = self.dispatcher.place(&task);
        let entered = self.book.enter(task.id.clone(), place.clone(), arrival);
        let routed = self.route(&task, &place, &entered, arrival, asked.trace).await;
        let (pool, outcome) = routed.inspect_err(|error| entered.refused(error, self.dispatcher.home(&place)))?;
        entered.ended();
        let queued = outcome.timings.and_then(|timings| timings.queued?.try_into().ok()).unwrap_or_default();
        self.metrics.outcome(&pool, task.priority, queued);
        Ok(outcome)
    }

    /// Tries workers until one answers for good; returns its pool, too.
    async fn route(
        &self,
        task: &Task,
        place: &Place,
        entered: &Entered,
        arrival: Instant,
        trace: Option<TraceParent>,
    ) -> Result<(PoolName, proto::Outcome), TaskError> {
        let mut attempts = 0;
        loop {
            let reserved = self.dispatcher.reserve(place, attempts > 0).await;
            let reservation = reserved.map_err(|away| self.turned_away(away, place, entered, arrival))?;
            attempts += 1;
            let pool = reservation.pool().clone();
            entered.is_called(pool.clone(), reservation.placement().worker.clone());
            let call = Call { attempt: attempts, incarnation: None, queued: arrival.elapsed(), trace };
            let refusal = match self.call(task, reservation, call).await {
                Ok(outcome) => return Ok((pool, outcome)),
                Err(Failed::Final(error)) if error.reason == Reason::DeadlineTooShort => {
                    let waited = call.queued.as_secs_f64();
                    let message = format!("{}; before, it had waited {waited:.1} s in the router", error.message);
                    return Err(TaskError { message, ..error });
                }
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Refused(error)) => error.message,
                Err(Failed::Unsent(reason)) => reason,
            };
            entered.pauses(refusal);
            let for_budget = self.budget.lock().retry(Instant::now());
            if !for_budget.is_zero() {
                self.metrics.retry_delayed();
            }
            let pause = pause_after(attempts).max(for_budget);
            tokio::time::sleep_until((Instant::now() + pause).min(task.deadline)).await;
            entered.waits();
        }
    }

    /// The error for a task that gets no worker.
    fn turned_away(&self, away: TurnedAway, place: &Place, entered: &Entered, arrival: Instant) -> TaskError {
        match away {
            TurnedAway::Hopeless(error) => error,
            TurnedAway::Full(full) => {
                self.metrics.dropped(&self.dispatcher.home(place), place.priority, full.bound.as_str());
                TaskError::queue_full(&full, full.retry_after)
            }
            TurnedAway::OutOfTime { needs } => self.dispatcher.no_workers(place).unwrap_or_else(|| {
                let reason = if needs.is_some() { TOO_LATE } else { DEADLINE };
                self.metrics.dropped(&self.dispatcher.home(place), place.priority, reason);
                self.waited_in_vain(needs, place, entered, arrival)
            }),
        }
    }

    /// Says what held it.
    fn waited_in_vain(&self, needs: Option<Duration>, place: &Place, entered: &Entered, arrival: Instant) -> TaskError {
        let held = self.dispatcher.held(place);
        let Progress { attempts, last_refusal, .. } = entered.progress();
        let within = match needs {
            None => "within the task's deadline".to_owned(),
            Some(needs) => {
                format!("in time for a run, which takes {:.1} s or more as often as not", needs.as_secs_f64())
            }
        };
        let waited = arrival.elapsed().as_secs_f64();
        let last = last_refusal.map(|reason| format!("; the last attempt ended with: {reason}")).unwrap_or_default();
        TaskError::deadline_too_short(format!(
            "no worker had room {within}: waited {waited:.1} s, tried {attempts} times; {held}{last}"
        ))
    }

    /// One call to one worker.
    async fn call(&self, task: &Task, mut reservation: Reservation, call: Call) -> Result<proto::Outcome, Failed> {
        let pool = reservation.pool().clone();
        if let Some((home, lack)) = reservation.overflow() {
            self.metrics.overflowed(home, lack);
        }
        let given_up = GivenUp { metrics: &self.metrics, pool: &pool, armed: true };
        let called = self.send(task, &mut reservation, call).await;
        given_up.disarm();
        let Called { mut result, learned, load } = called;
        if let Err(Failed::Final(error)) = &mut result
            && error.reason == Reason::OutcomeUnknown
        {
            let worker = &reservation.placement().worker;
            error.message = format!("{} (worker {worker} of pool {pool})", error.message);
        }
        self.metrics.attempt(&pool, result.as_ref().map_or_else(Failed::label, |_| "answered"));
        if let Err(failed @ (Failed::Unsent(_) | Failed::Final(_))) = &result {
            let worker = &reservation.placement().worker;
            tracing::debug!(task = %task.id, %worker, attempt = call.attempt, "a call to a worker failed: {failed:?}");
        }
        let ran = Ran {
            run: match &result {
                Ok(outcome) => how_far(outcome),
                Err(Failed::Final(_)) => Run::Aborted,
                Err(Failed::Refused(_) | Failed::Unsent(_)) => Run::NotBegun,
            },
            slots: load.and_then(|load| load.shares).map(|shares| shares.weight),
            succeeded_in: result.as_ref().ok().and_then(ran_successfully_for),
        };
        reservation.end(Ended { learned, load, ran });
        result
    }

    async fn send(&self, task: &Task, reservation: &mut Reservation, call: Call) -> Called {
        let connected = timeout_at(task.deadline, self.channels.lease(reservation.placement())).await;
        let mut lease = match connected {
            Ok(Ok(lease)) => lease,
            Ok(Err(no_channel)) => return Called::not(Failed::Unsent(no_channel.to_string()), Learned::Unreachable),
            Err(_) => {
                let reason = "no connection within the task's deadline".to_owned();
                return Called::not(Failed::Unsent(reason), Learned::Nothing);
            }
        };
        let remaining = task.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            let reason = "the task's deadline had come before it could be sent".to_owned();
            return Called::not(Failed::Unsent(reason), Learned::Nothing);
        }
        let mut request = Request::new(wire::task_out(task, wire::less_margin(remaining)));
        let incarnation = Some(reservation.placement().incarnation.0);
        Call { incarnation, ..call }.write(request.metadata_mut());

        reservation.goes_out();
        match timeout_at(task.deadline + ANSWER_MARGIN, lease.client.submit(request)).await {
            Ok(Ok(response)) => {
                let load = LoadReport::read(response.metadata());
                let outcome = response.into_inner();
                Called { learned: fared(&outcome), result: Ok(outcome), load }
            }
            Ok(Err(status)) => {
                if is_of_the_connection(&status) {
                    lease.broke();
                }
                let failed = Failed::read(&status);
                let learned = match &failed {
                    Failed::Refused(error) => Learned::Refused(error.reason),
                    Failed::Unsent(_) => Learned::Unreachable,
                    Failed::Final(error) if error.reason == Reason::OutcomeUnknown => Learned::Broke,
                    Failed::Final(_) => Learned::Answered,
                };
                Called { result: Err(failed), learned, load: LoadReport::read(status.metadata()) }
            }
            Err(_) => {
                let error = TaskError::outcome_unknown("the worker did not answer within the task's deadline");
                Called::not(Failed::Final(error), Learned::Silent)
            }
        }
    }
}

/// What came of a call.
struct Called {
    result: Result<proto::Outcome, Failed>,
    learned: Learned,
    load: Option<LoadReport>,
}

impl Called {
    /// It was not answered.
    fn not(failed: Failed, learned: Learned) -> Self {
        Called { result: Err(failed), learned, load: None }
    }
}

/// What an outcome says of its worker. That a person must act is the bank's own answer, and the worker brought it.
fn fared(outcome: &proto::Outcome) -> Learned {
    use proto::FailureCode::{Cancelled, Integration, OutputTooLarge, Unspecified};
    match &outcome.result {
        Some(proto::outcome::Result::Output(_)) => Learned::Succeeded,
        Some(proto::outcome::Result::Failure(failure)) => match (failure.code(), failure.remedy()) {
            (Cancelled | Unspecified, _) => Learned::Answered,
            (Integration, proto::Remedy::UserAction) | (OutputTooLarge, _) => Learned::Succeeded,
            _ => Learned::Failed,
        },
        None => Learned::Answered,
    }
}

fn how_far(outcome: &proto::Outcome) -> Run {
    match &outcome.result {
        Some(proto::outcome::Result::Failure(failure)) if failure.code() == proto::FailureCode::Cancelled => {
            Run::Aborted
        }
        _ => Run::Ended,
    }
}

/// Whether a status was made here, of a connection's error, and not there.
fn is_of_the_connection(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// How long the integration took that has an output.
fn ran_successfully_for(outcome: &proto::Outcome) -> Option<Duration> {
    let is_output = matches!(outcome.result, Some(proto::outcome::Result::Output(_)));
    let ran = outcome.timings.filter(|_| is_output)?.ran?;
    ran.try_into().ok()
}

/// Counts a call whose caller went away.
struct GivenUp<'a> {
    metrics: &'a Metrics,
    pool: &'a PoolName,
    armed: bool,
}

impl GivenUp<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.metrics.attempt(self.pool, "given_up");
        }
    }
}

#[tonic::async_trait]
impl proto::tasks_server::Tasks for RouterService {
    async fn submit(&self, request: Request<proto::Task>) -> Result<Response<proto::Outcome>, Status> {
        let asked = Asked::read(request.metadata());
        let result = self.inner.submit(request.into_inner(), asked).await;
        result.map(Response::new).map_err(|error| {
            self.inner.metrics.error(&error);
            error.to_status()
        })
    }

    type SubmitManyStream = BoxStream<'static, Result<proto::Reply, Status>>;

    async fn submit_many(
        &self,
        request: Request<Streaming<proto::Task>>,
    ) -> Result<Response<Self::SubmitManyStream>, Status> {
        let asked = Asked::read(request.metadata());
        let service = self.inner.clone();
        let submit = move |task: proto::Task| {
            let service = service.clone();
            async move {
                let result = service.submit(task, asked).await;
                result.inspect_err(|error| service.metrics.error(error))
            }
        };
        let at_once = TASKS_PER_STREAM.min(self.inner.tenant_tasks);
        Ok(Response::new(wire::stream::reply_to_each(request.into_inner(), at_once, submit).boxed()))
    }
}
