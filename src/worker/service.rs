//! The worker's gRPC edge: check, admit, run, answer.
//!
//! A worker never queues. A task that finds no place is refused at once, with the worker's load beside the refusal.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use metrics::{Counter, counter, describe_counter};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::run::{Admitted, Runner};
use super::shed;
use crate::gate::{self, Gate, Refused, Want};
use crate::integration::Integrations;
use crate::overload::Overload;
use crate::registry::Incarnation;
use crate::task::{IntegrationName, Priority, Task, Tenant};
use crate::telemetry::Telemetry;
use crate::upstream::{self, Upstreams};
use crate::wire::metadata::{Call, LoadReport, Share, Shares, grpc_timeout};
use crate::wire::{self, Reason, TaskError, Timeouts, proto};

/// Tasks of one `SubmitMany` stream that run at once; the stream is read no further.
const TASKS_PER_STREAM: usize = 10_000;

/// Runs tasks.
#[derive(Clone)]
pub(super) struct WorkerService {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) gate: Gate,
    pub(super) overload: Overload,
    pub(super) upstreams: Upstreams,
    pub(super) integrations: Integrations,
    pub(super) incarnation: Incarnation,
    pub(super) timeouts: Timeouts,
    pub(super) runner: Arc<Runner>,
    pub(super) errors: Errors,
}

impl Inner {
    /// What is asked for, where it can be meant for this worker.
    fn check(&self, task: proto::Task, call: Call, call_timeout: Option<Duration>) -> Result<Task, TaskError> {
        let arrival = Instant::now();
        if call.incarnation.is_some_and(|expected| expected != self.incarnation.0) {
            return Err(TaskError::stale_incarnation("this worker was restarted since the caller learned of it"));
        }
        wire::task_in(task, self.timeouts, arrival, call_timeout)
    }

    async fn submit(&self, task: Task, call: Call) -> Result<proto::Outcome, TaskError> {
        let integration = self.integrations.get(&task.integration).ok_or_else(|| self.unknown(&task.integration))?;
        let remaining = task.deadline.saturating_duration_since(Instant::now());
        let asked = self.upstreams.ask(&task.integration, remaining).map_err(spared)?;
        let permit = self.gate.admit(&Want::from(&task)).map_err(|refused| refusal(refused, &self.overload))?;
        let run = self.runner.start(Admitted {
            task,
            integration,
            permit,
            asked,
            attempt: call.attempt,
            queued: call.queued,
        });
        let outcome = run.outcome().await;
        outcome.as_ref().map(wire::outcome_out).ok_or_else(|| TaskError::outcome_unknown("the run was lost"))
    }

    fn unknown(&self, integration: &IntegrationName) -> TaskError {
        let known: Vec<_> = self.integrations.names().map(|name| name.as_str()).collect();
        let known = known.join(", ");
        TaskError::unknown_integration(format!("this worker has no integration {integration:?}; it has: {known}"))
    }

    fn load(&self, about: Option<&About>) -> LoadReport {
        let load = self.gate.load();
        let keeps_out = about.is_some_and(|about| self.gate.stands().keeps_out(about.integration.as_str()));
        let shares = about.map(|about| about.shares(&self.gate));
        LoadReport { in_flight: load.held(), target: load.target, reserved: load.reserved(), keeps_out, shares }
    }
}

/// What a reply's load report is about.
struct About {
    integration: IntegrationName,
    tenant: Tenant,
    priority: Priority,
}

impl About {
    fn of(task: &Task) -> Self {
        let Task { integration, tenant, priority, .. } = task;
        About { integration: integration.clone(), tenant: tenant.clone(), priority: *priority }
    }

    fn shares(&self, gate: &Gate) -> Shares {
        let About { integration, tenant, priority } = self;
        let gate::Shares { weight, integration, tenant } =
            gate.shares(&Want { integration, tenant, priority: *priority });
        let share = |share: gate::Share| Share { held: share.held, most: share.most };
        Shares { weight, integration: share(integration), tenant: share(tenant) }
    }
}

fn spared(refused: upstream::Refused) -> TaskError {
    match refused {
        upstream::Refused::BreakerOpen { after, .. } => TaskError::breaker_open(refused, after),
        upstream::Refused::DeadlineTooShort { .. } => TaskError::deadline_too_short(refused),
    }
}

fn refusal(refused: Refused, overload: &Overload) -> TaskError {
    match refused {
        Refused::Full { .. } | Refused::Reserve { .. } => {
            TaskError::worker_full(format!("the worker is full: {refused}"))
        }
        Refused::IntegrationFull { .. } => TaskError::integration_full(refused),
        Refused::TenantFull { .. } => TaskError::tenant_full(refused),
        Refused::Overloaded => shed::refusal(overload),
        Refused::Draining => TaskError::draining(refused),
    }
}

/// Counts tasks that were answered with an error instead of an outcome.
pub(super) struct Errors {
    by_reason: Vec<(Reason, Counter)>,
}

impl Errors {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        const NAME: &str = "weir_worker_errors_total";
        telemetry.register(|| {
            describe_counter!(NAME, "Tasks answered with an error instead of an outcome, by reason.");
            let count = |reason: &Reason| (*reason, counter!(NAME, "reason" => reason.as_str()));
            Errors { by_reason: Reason::ALL.iter().map(count).collect() }
        })
    }

    fn count(&self, error: &TaskError) {
        if let Some((_, counter)) = self.by_reason.iter().find(|(reason, _)| *reason == error.reason) {
            counter.increment(1);
        }
    }
}

#[tonic::async_trait]
impl proto::tasks_server::Tasks for WorkerService {
    async fn submit(&self, request: Request<proto::Task>) -> Result<Response<proto::Outcome>, Status> {
        let (call, timeout) = (Call::read(request.metadata()), grpc_timeout(request.metadata()));
        let task = self.inner.check(request.into_inner(), call, timeout);
        let about = task.as_ref().ok().map(About::of);
        let result = match task {
            Ok(task) => self.inner.submit(task, call).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(outcome) => {
                let mut response = Response::new(outcome);
                self.inner.load(about.as_ref()).write(response.metadata_mut());
                Ok(response)
            }
            Err(error) => {
                self.inner.errors.count(&error);
                let mut status = error.to_status();
                self.inner.load(about.as_ref()).write(status.metadata_mut());
                Err(status)
            }
        }
    }

    type SubmitManyStream = BoxStream<'static, Result<proto::Reply, Status>>;

    async fn submit_many(
        &self,
        request: Request<Streaming<proto::Task>>,
    ) -> Result<Response<Self::SubmitManyStream>, Status> {
        let (call, timeout) = (Call::read(request.metadata()), grpc_timeout(request.metadata()));
        let service = self.inner.clone();
        let submit = move |task: proto::Task| {
            let service = service.clone();
            async move {
                let result = match service.check(task, call, timeout) {
                    Ok(task) => service.submit(task, call).await,
                    Err(error) => Err(error),
                };
                result.inspect_err(|error| service.errors.count(error))
            }
        };
        Ok(Response::new(wire::stream::reply_to_each(request.into_inner(), TASKS_PER_STREAM, submit).boxed()))
    }
}
