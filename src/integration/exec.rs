//! The way in for existing code in any language: a command that is kept running in a bounded pool of processes.
//!
//! Each process takes one JSON task per line on stdin and answers with one JSON outcome per line on stdout, several at a
//! time when it says that it can; docs/exec.md is the protocol. What goes wrong in a process (it crashes, hangs, writes
//! garbage or too much, grows too large) fails the runs that are in it, and only those: isolation is per process. It is
//! started again after a pause that grows.
//!
//! A run is over for the worker when the program has answered for it or its process is gone, never before: a place that
//! was free while the program still worked would let more tasks in than the machine can take.

mod cause;
mod command;
mod config;
mod exchange;
mod group;
mod metrics;
mod pool;
mod process;
mod protocol;
mod supervise;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Context, Error, Integration, Invalid, OnCancel};
use crate::lifecycle::Lifecycle;
use crate::task::{IntegrationName, Json, RunId};
use crate::telemetry::Telemetry;
use cause::Cause;
use metrics::Metrics;
use pool::Pool;
use process::{Kept, Process};
use protocol::Reason;
use supervise::{Launch, Supervisor};

pub use config::Config;
pub use group::end_all;

/// What a program gets of the worker's environment without being asked for: where things are, and how to write them.
/// Everything else may be a secret.
const PASSED: [&str; 9] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"];

/// How often the processes' memory is looked at.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);

/// The integration.
pub struct Exec {
    pool: Arc<Pool>,
    launch: Arc<Launch>,
}

impl Exec {
    /// Checks the configuration of `[integrations.NAME]`; processes are started by [`Integration::start`].
    pub fn new(name: &IntegrationName, config: &Config, telemetry: &Telemetry) -> Result<Self, Invalid> {
        config.check()?;
        let variables = variables(config, |name| std::env::var(name).ok())?;
        let path = variables.iter().rev().find_map(|(name, value)| (name == "PATH").then_some(value.as_str()));
        command::check(&config.command[0], path, config.working_directory.as_deref())?;
        let metrics = telemetry.register(|| Metrics::new(name.as_str(), config.processes));
        let section = format!("integrations.{name}");
        let pool = Pool::new(section, config.processes, config.max_runs_per_process, metrics);
        let launch = Launch { integration: name.to_string(), config: config.clone(), variables };
        Ok(Exec { pool, launch: Arc::new(launch) })
    }

    /// Waits for a place and hands the run to its process.
    async fn begin(&self, context: &Context) -> Result<Begun, Error> {
        loop {
            let (place, process) = self.pool.place().await?;
            let run = context.run();
            let line = protocol::task(run, context.task(), context.remaining())
                .map_err(|error| Error::permanent(format!("the task cannot be written as JSON: {error}")))?;
            let kept = Kept { place, hold: context.hold() };
            match process.begin(run, line, context.recorder().clone(), kept) {
                Ok(answer) => return Ok(Begun { told: Told { process, run, is_over: false }, answer }),
                // Its process is about to end, and the run has not begun: it takes another.
                Err(kept) => kept.place.shun(),
            }
            tokio::task::yield_now().await;
        }
    }
}

struct Begun {
    told: Told,
    answer: tokio::sync::oneshot::Receiver<Result<Json, Error>>,
}

/// A run that a process has. A program hears of it when nobody waits for the answer any more.
struct Told {
    process: Arc<Process>,
    run: RunId,
    is_over: bool,
}

impl Drop for Told {
    fn drop(&mut self) {
        if !self.is_over {
            self.process.cancel(self.run, Reason::Cancelled);
        }
    }
}

#[async_trait]
impl Integration for Exec {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        let came = Instant::now();
        let Begun { mut told, mut answer } = tokio::select! {
            biased;
            () = context.cancelled() => {
                // Its caller knows of a deadline alone: the transcript says that no program is to blame for it.
                let (waited, why) = (came.elapsed().as_secs_f64(), self.pool.why_none());
                context.note(format!("waited {waited:.1} s for a place in a process, and had none: {why}"));
                return Err(Error::retryable("cancelled while waiting for a process"));
            }
            begun = self.begin(context) => begun?,
        };
        let answered = tokio::select! {
            biased;
            answered = &mut answer => answered,
            () = context.cancelled() => {
                let is_late = Instant::now() >= context.deadline();
                told.process.cancel(told.run, if is_late { Reason::Deadline } else { Reason::Cancelled });
                // The program answers, or its process is ended: either way there is an answer.
                answer.await
            }
        };
        told.is_over = true;
        answered.unwrap_or_else(|_| Err(Cause::Stopping.error(told.run)))
    }

    fn start(&self, background: &Lifecycle) {
        for slot in 0..self.launch.config.processes {
            let supervisor = Supervisor { slot, pool: self.pool.clone(), launch: self.launch.clone() };
            background.spawn("process", supervisor.run(background.token()));
        }
        let watch = watch_memory(self.pool.clone(), self.launch.clone(), background.clone(), background.token());
        background.spawn("memory of processes", watch);
    }

    /// A run ends by the program's answer, or with its process after `cancel_grace`: it is never dropped before.
    fn on_cancel(&self) -> OnCancel {
        OnCancel::Finish
    }
}

/// The whole environment of a process.
fn variables(config: &Config, read: impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>, Invalid> {
    let mut variables: Vec<_> = PASSED.iter().filter_map(|name| Some(((*name).to_owned(), read(name)?))).collect();
    for name in &config.pass_variables {
        let value = read(name).ok_or_else(|| {
            Invalid::new("pass_variables", format!("the variable {name} is not set: set it, or take it out"))
        })?;
        variables.push((name.clone(), value));
    }
    variables.extend(config.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
    Ok(variables)
}

/// Looks at the memory of all processes. It is a watch, not a wall: what grows faster than the interval is seen late.
async fn watch_memory(pool: Arc<Pool>, launch: Arc<Launch>, background: Lifecycle, stop: CancellationToken) {
    let limit = launch.config.max_resident_bytes;
    let mut ticks = tokio::time::interval(MEMORY_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let processes = pool.processes();
        let Ok(by_group) = background.blocking("look at memory", group::resident_by_group).await else { continue };
        let mut all = 0;
        for (slot, process) in processes {
            let resident = by_group.get(&process.id()).copied().unwrap_or_default();
            all += resident;
            if resident > limit.saturating_add(limit / 4) {
                process.condemn(Cause::Memory { resident, limit });
            } else if resident > limit && pool.replace(slot, process.id()) {
                let integration = &launch.integration;
                tracing::warn!(
                    integration,
                    resident,
                    "a process holds more than max_resident_bytes, which is {limit}: it is replaced after its tasks"
                );
            }
        }
        pool.metrics.resident_bytes.set(all as f64);
    }
}

#[cfg(test)]
mod tests;
