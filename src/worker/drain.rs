//! The ordered shutdown of a worker.
//!
//! 1. Shut the gate: new tasks are refused as `DRAINING`, and health checks hear of it.
//! 2. The announcer carries that to the registry, so that routers stop sending. Wait at least [`ROUTERS_HEAR_WITHIN`]:
//!    a call that a router has just sent must find a server that refuses it, not a closed port.
//! 3. Wait for the tasks in flight, at most for `drain_within`; then cancel the rest and give them [`CANCELLED_WITHIN`]
//!    to stop. Each is answered.
//! 4. Stop what integrations have going on between tasks: nobody needs it any more.
//! 5. Withdraw from the registry. The presence stood until here, as draining, because the worker still lived.
//! 6. Stop the gRPC server, hard after [`SERVER_WITHIN`]: clients with open streams may never leave by themselves.
//! 7. Flush the payloads, at most for `payloads.flush_within`; the rest is counted as dropped. At the same time, store the
//!    profile of a worker that profiles itself until it ends.
//! 8. Stop the loops and threads that are left, and the admin port with them: the drain could be watched to its end.

use std::time::Duration;

use tokio::time::Instant;

use super::service::WorkerService;
use super::{Config, Worker, profiling};
use crate::lifecycle::Lifecycle;
use crate::payload::Ledger;

/// Routers hear of a change within 100 ms when all is well; this is five times that.
const ROUTERS_HEAR_WITHIN: Duration = Duration::from_millis(500);
const CANCELLED_WITHIN: Duration = Duration::from_secs(5);
const BACKGROUND_WITHIN: Duration = Duration::from_secs(5);
const WITHDRAWN_WITHIN: Duration = Duration::from_secs(3);
const SERVER_WITHIN: Duration = Duration::from_secs(5);
const LOOPS_WITHIN: Duration = Duration::from_secs(5);

/// What was left when a worker had stopped; all of it 0 when all went well.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Places in the gate that are still taken: by work that could not be stopped.
    pub in_flight: u32,
    /// Tasks and threads that had not ended.
    pub left_behind: usize,
    /// What became of the payloads, where they are kept.
    pub payloads: Option<Ledger>,
}

impl Config {
    /// The longest that a drain takes, when every step runs into its deadline: what ends the process for good, such as
    /// systemd's TimeoutStopSec, must wait longer.
    pub fn stops_within(&self, flush_within: Duration) -> Duration {
        let tasks = ROUTERS_HEAR_WITHIN + self.drain_within + CANCELLED_WITHIN;
        let stored = flush_within.max(profiling::STOPS_WITHIN);
        tasks + BACKGROUND_WITHIN + WITHDRAWN_WITHIN + SERVER_WITHIN + stored + LOOPS_WITHIN
    }
}

impl Worker {
    /// Stops in order; returns when nothing of the worker runs any more, or all that could be waited for is over.
    pub async fn drain(self) -> Ended {
        let started = Instant::now();
        let at_most_seconds = self.config.stops_within(self.flush_within).as_secs_f64();
        tracing::info!(in_flight = self.gate.load().in_flight, at_most_seconds, "draining");

        self.gate.drain();
        self.server.set_not_serving::<WorkerService>().await;

        tokio::time::sleep(ROUTERS_HEAR_WITHIN).await;

        if self.runs.wait(self.config.drain_within).await.is_err() {
            tracing::warn!(in_flight = self.gate.load().in_flight, "the time to drain is over: cancelling what runs");
            stop(&self.runs, CANCELLED_WITHIN).await;
        }

        stop(&self.background, BACKGROUND_WITHIN).await;

        stop(&self.announcing, WITHDRAWN_WITHIN).await;

        stop(&self.serving, SERVER_WITHIN).await;

        let flushed = async {
            match &self.payloads {
                Some(payloads) => Some(payloads.flush(self.flush_within).await),
                None => None,
            }
        };
        let (payloads, ()) = tokio::join!(flushed, stop(&self.profiling, profiling::STOPS_WITHIN));
        if let Some(ledger) = &payloads {
            tracing::info!("payloads: {ledger}");
        }

        stop(&self.loops, LOOPS_WITHIN).await;
        tracing::info!(seconds = started.elapsed().as_secs_f64(), "the worker has stopped");
        let left_behind = self.lifecycles().iter().map(|lifecycle| lifecycle.running()).sum();
        Ended { in_flight: self.gate.load().in_flight, left_behind, payloads }
    }
}

async fn stop(lifecycle: &Lifecycle, within: Duration) {
    if let Err(stragglers) = lifecycle.stop(within).await {
        tracing::warn!("left behind: {stragglers}");
    }
}
