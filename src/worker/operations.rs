//! The worker's side of the `Operations` service: what it is and does now, as a message.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::announce::Identity;
use super::roster::Entry;
use super::run::Runner;
use crate::gate::{Gate, Load, State};
use crate::payload::{Ledger, Reason};
use crate::settings::{self, Settings};
use crate::task::IntegrationName;
use crate::wire::Start;
use crate::wire::operations::{Operated, Remaining};
use crate::wire::proto::{Description, description};

/// Describes a worker.
pub(super) struct WorkerOperations {
    pub(super) identity: Identity,
    pub(super) start: Start,
    pub(super) stops_within: Duration,
    pub(super) gate: Gate,
    pub(super) runner: Arc<Runner>,
}

#[async_trait]
impl Operated for WorkerOperations {
    fn describe(&self, max_tasks: usize) -> Description {
        let now = Instant::now();
        let Runner { roster, settings, payloads, .. } = &*self.runner;
        let integration =
            |(name, in_flight): (IntegrationName, u32)| description::Integration { name: name.to_string(), in_flight };
        let worker = description::Worker {
            id: self.identity.worker.to_string(),
            incarnation: self.identity.incarnation.to_string(),
            address: self.identity.address.clone(),
            gate: Some(gate_out(self.gate.load())),
            settings: Some(settings_out(&settings.borrow())),
            integrations: roster.by_integration().into_iter().map(integration).collect(),
            running: roster.oldest(max_tasks).iter().map(|entry| run_out(entry, now)).collect(),
            payloads: payloads.as_ref().map(|payloads| payloads_out(&payloads.ledger())),
        };
        let role = Some(description::Role::Worker(worker));
        Description { role, ..self.start.describe(&self.identity.pool, self.remaining()) }
    }

    fn remaining(&self) -> Remaining {
        let Load { in_flight, state, .. } = self.gate.load();
        Remaining { in_flight, at_most: self.stops_within, is_draining: state == State::Draining }
    }

    async fn draining(&self) {
        // The gate lives as long as this.
        let _ = self.gate.standing().wait_for(|standing| standing.state == State::Draining).await;
    }
}

fn gate_out(load: Load) -> description::Gate {
    let state = match load.state {
        State::Open => "open",
        State::Full => "full",
        State::Overloaded => "overloaded",
        State::Draining => "draining",
    };
    description::Gate { state: state.into(), in_flight: load.in_flight, target: load.target }
}

fn settings_out(settings: &Settings) -> description::Settings {
    let value = |spec: &settings::Spec| (spec.key.to_owned(), spec.value(settings).to_string());
    description::Settings { version: settings.version.clone(), values: settings::TABLE.iter().map(value).collect() }
}

fn run_out(entry: &Entry, now: Instant) -> description::Run {
    let since = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
    let Entry { run, task, attempt, started, .. } = entry;
    description::Run {
        task_id: task.id.to_string(),
        run_id: run.to_string(),
        integration: task.integration.to_string(),
        tenant: task.tenant.to_string(),
        priority: task.priority.as_str().into(),
        attempt: *attempt,
        age_seconds: since(*started),
        remaining_seconds: task.deadline.saturating_duration_since(now).as_secs_f64(),
        overdue_seconds: entry.overdue_since(now).map(since),
    }
}

fn payloads_out(ledger: &Ledger) -> description::Payloads {
    let dropped = |reason: Reason| (reason.as_str().to_owned(), ledger.dropped(reason));
    description::Payloads {
        offered: ledger.offered,
        recovered: ledger.recovered,
        stored: ledger.stored,
        spooled: ledger.spooled,
        pending: ledger.pending,
        pending_bytes: ledger.pending_bytes,
        dropped: Reason::ALL.into_iter().map(dropped).filter(|(_, count)| *count > 0).collect(),
    }
}
