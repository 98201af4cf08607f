//! The `Operations` service, the same for both roles: describe the process, say where a task is, profile it, or have it
//! drain.
//!
//! A drain ends a process and a profile slows it: who may ask for them is a choice of the configuration ([`Callers`]). A drain
//! is only asked for here; the program that owns the role follows the request and does exactly what it does on SIGTERM.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::callers::Callers;
use super::profiles::{Parts, Profiles};
use super::proto;
use crate::task::{InvalidName, TaskId};

/// Running tasks in a description that was asked for without a number.
const DEFAULT_TASKS: usize = 20;

/// The most running tasks in a description: some 300 KB.
const MAX_TASKS: usize = 1_000;

/// How long a drain may take to begin; it takes milliseconds.
const DRAIN_BEGINS_WITHIN: Duration = Duration::from_secs(5);

/// A request to drain, from the service to the program that owns the role. Clones are the same request.
#[derive(Clone, Default)]
pub struct DrainRequest {
    asked: CancellationToken,
}

impl DrainRequest {
    /// Waits until somebody asks.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }
}

/// What a role answers with.
#[tonic::async_trait]
pub trait Operated: Send + Sync + 'static {
    /// What it is and does now, with the oldest running tasks up to a number.
    fn describe(&self, max_tasks: usize) -> proto::Description;

    /// Where a task is.
    fn explain(&self, task: &TaskId) -> proto::Explanation;

    /// What is to be finished, and whether it is draining.
    fn remaining(&self) -> Remaining;

    /// Waits until it drains.
    async fn draining(&self);
}

/// When a process started, and where it listens.
#[derive(Debug, Clone)]
pub struct Start {
    listen: SocketAddr,
    admin: SocketAddr,
    at: jiff::Timestamp,
    since: Instant,
}

impl Start {
    /// This moment.
    pub fn now(listen: SocketAddr, admin: SocketAddr) -> Self {
        Start { listen, admin, at: jiff::Timestamp::now(), since: Instant::now() }
    }

    /// The part of a description that does not depend on the role.
    pub fn describe(&self, pool: &str, remaining: Remaining) -> proto::Description {
        proto::Description {
            version: env!("CARGO_PKG_VERSION").into(),
            pool: pool.to_owned(),
            listen: self.listen.to_string(),
            admin: self.admin.to_string(),
            started_at: format!("{:.0}", self.at),
            uptime_seconds: self.since.elapsed().as_secs_f64(),
            draining: remaining.is_draining,
            in_flight: remaining.in_flight,
            role: None,
        }
    }
}

/// What a drain has before it.
#[derive(Debug, Clone, Copy)]
pub struct Remaining {
    /// Tasks.
    pub in_flight: u32,
    /// The longest that the whole drain takes.
    pub at_most: Duration,
    /// Whether it has begun.
    pub is_draining: bool,
}

/// The service of a role.
pub struct Operations<O> {
    operated: O,
    drain_from: Callers,
    drain_key: &'static str,
    drain: DrainRequest,
    profiles: Profiles,
}

impl<O: Operated> Operations<O> {
    /// Answers with `operated` and passes drains on to `drain`. `drain_key` is the configuration's key that says who may
    /// ask for one.
    pub fn new(
        operated: O,
        drain_from: Callers,
        drain_key: &'static str,
        drain: DrainRequest,
        profiles: Profiles,
    ) -> Self {
        Operations { operated, drain_from, drain_key, drain, profiles }
    }
}

#[tonic::async_trait]
impl<O: Operated> proto::operations_server::Operations for Operations<O> {
    async fn describe(&self, request: Request<proto::DescribeRequest>) -> Result<Response<proto::Description>, Status> {
        let tasks = match request.into_inner().max_tasks as usize {
            0 => DEFAULT_TASKS,
            asked => asked.min(MAX_TASKS),
        };
        Ok(Response::new(self.operated.describe(tasks)))
    }

    async fn explain(&self, request: Request<proto::ExplainRequest>) -> Result<Response<proto::Explanation>, Status> {
        let task: TaskId = request.into_inner().task_id.parse().map_err(invalid)?;
        Ok(Response::new(self.operated.explain(&task)))
    }

    async fn drain(&self, request: Request<proto::DrainRequest>) -> Result<Response<proto::DrainReply>, Status> {
        let caller = request.remote_addr();
        let here = request.local_addr();
        self.drain_from.check(caller, here, "drain", "send it SIGTERM, or ", self.drain_key).map_err(|refusal| {
            tracing::warn!(caller = caller.map(tracing::field::display), "a caller was not allowed to drain");
            Status::permission_denied(refusal)
        })?;
        let before = self.operated.remaining();
        if !before.is_draining {
            tracing::info!(caller = caller.map(tracing::field::display), "asked to drain");
        }
        self.drain.asked.cancel();
        if tokio::time::timeout(DRAIN_BEGINS_WITHIN, self.operated.draining()).await.is_err() {
            return Err(Status::failed_precondition(
                "the drain was asked for and has not begun: see the log, or send SIGTERM",
            ));
        }
        Ok(Response::new(proto::DrainReply {
            in_flight: self.operated.remaining().in_flight,
            at_most_seconds: before.at_most.as_secs_f64(),
            was_draining: before.is_draining,
        }))
    }

    type ProfileStream = Parts;

    async fn profile(&self, request: Request<proto::ProfileRequest>) -> Result<Response<Parts>, Status> {
        let (caller, here) = (request.remote_addr(), request.local_addr());
        self.profiles.check(caller, here).map_err(|refusal| {
            tracing::warn!(caller = caller.map(tracing::field::display), "a caller was not allowed to profile");
            Status::permission_denied(refusal)
        })?;
        self.profiles.answer(request.into_inner()).map(Response::new)
    }
}

fn invalid(error: InvalidName) -> Status {
    Status::invalid_argument(error.to_string())
}
