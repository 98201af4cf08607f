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
use crate::task::{Priority, Tenant};
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
    async fn submit(
        &self,
        task: proto::Task,
        call: Call,
        call_timeout: Option<Duration>,
    ) -> Result<proto::Outcome, TaskError> {
        let arrival = Instant::now();
        if call.incarnation.is_some_and(|expected| expected != self.incarnation.0) {
            return Err(TaskError::stale_incarnation("this worker was restarted since the caller learned of it"));
        }
        let task = wire::task_in(task, self.timeouts, arrival, call_timeout)?;
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

    fn unknown(&self, integration: &crate::task::IntegrationName) -> TaskError {
        let known: Vec<_> = self.integrations.names().map(|name| name.as_str()).collect();
        let known = known.join(", ");
        TaskError::unknown_integration(format!("this worker has no integration {integration:?}; it has: {known}"))
    }

    fn load(&self, about: &About) -> LoadReport {
        let load = self.gate.load();
        let keeps_out = self.gate.stands().keeps_out(&about.integration);
        let shares = about.shares(&self.gate);
        LoadReport { in_flight: load.held(), target: load.target, reserved: load.reserved(), keeps_out, shares }
    }
}

/// What a reply's load report is about, as the caller wrote it.
struct About {
    integration: String,
    tenant: String,
    priority: Priority,
}

impl About {
    fn of(task: &proto::Task) -> Self {
        let priority = match task.priority() {
            proto::Priority::Interactive => Priority::Interactive,
            proto::Priority::Batch | proto::Priority::Unspecified => Priority::Batch,
        };
        About { integration: task.integration.clone(), tenant: task.tenant.clone(), priority }
    }

    /// None where a name is not valid.
    fn shares(&self, gate: &Gate) -> Option<Shares> {
        let integration = self.integration.parse().ok()?;
        let tenant = if self.tenant.is_empty() { Tenant::default() } else { self.tenant.parse().ok()? };
        let gate::Shares { weight, integration, tenant } =
            gate.shares(&Want { integration: &integration, tenant: &tenant, priority: self.priority });
        let share = |share: gate::Share| Share { held: share.held, most: share.most };
        Some(Shares { weight, integration: share(integration), tenant: share(tenant) })
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
        let task = request.into_inner();
        let about = About::of(&task);
        match self.inner.submit(task, call, timeout).await {
            Ok(outcome) => {
                let mut response = Response::new(outcome);
                self.inner.load(&about).write(response.metadata_mut());
                Ok(response)
            }
            Err(error) => {
                self.inner.errors.count(&error);
                let mut status = error.to_status();
                self.inner.load(&about).write(status.metadata_mut());
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
                let result = service.submit(task, call, timeout).await;
                result.inspect_err(|error| service.errors.count(error))
            }
        };
        Ok(Response::new(wire::stream::reply_to_each(request.into_inner(), TASKS_PER_STREAM, submit).boxed()))
    }
}
