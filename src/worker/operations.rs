//! The worker's side of the `Operations` service: what it is and does now, as a message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::announce::Identity;
use super::constraint::Look;
use super::roster::Entry;
use super::run::Runner;
use crate::gate::{Gate, IntegrationLoad, Load, State, TenantLoad};
use crate::overload::{Overload, Pressure, Readings};
use crate::payload::{Payloads, Reason};
use crate::settings::{self, Arrival, Contact, Settings, SourceStatus};
use crate::task::TaskId;
use crate::upstream::{BreakerIs, Known, Limit, Upstreams};
use crate::wire::Start;
use crate::wire::operations::{Operated, Remaining};
use crate::wire::proto::{Description, Explanation, description};

/// The most tenants at their cap in a description.
const MAX_TENANTS: usize = 20;

/// Describes a worker.
pub(super) struct WorkerOperations {
    pub(super) identity: Identity,
    pub(super) start: Start,
    pub(super) stops_within: Duration,
    pub(super) gate: Gate,
    pub(super) overload: Overload,
    pub(super) upstreams: Upstreams,
    pub(super) look: Arc<Look>,
    pub(super) arrival: watch::Receiver<Arc<Arrival>>,
    pub(super) source: Option<Contact>,
    pub(super) runner: Arc<Runner>,
}

#[async_trait]
impl Operated for WorkerOperations {
    fn describe(&self, max_tasks: usize) -> Description {
        let now = Instant::now();
        let Runner { roster, settings, payloads, .. } = &*self.runner;
        let settings = settings.borrow().clone();
        let arrival = self.arrival.borrow().clone();
        let mut known: BTreeMap<_, _> =
            self.upstreams.known().into_iter().map(|known| (known.integration.clone(), known)).collect();
        let integration = |of: IntegrationLoad| {
            let known = known.remove(&of.integration);
            integration_out(of, known)
        };
        let (overdue, oldest) = roster.overdue(now, 1);
        let overdue_since = oldest.first().and_then(|entry| entry.overdue_since(now));
        let worker = description::Worker {
            id: self.identity.worker.to_string(),
            incarnation: self.identity.incarnation.to_string(),
            address: self.identity.address.clone(),
            gate: Some(gate_out(&self.gate)),
            settings: Some(self.settings_out(&settings, &arrival, now)),
            integrations: self.gate.by_integration().into_iter().map(integration).collect(),
            running: roster.oldest(max_tasks).iter().map(|entry| run_out(entry, now)).collect(),
            payloads: payloads.as_ref().map(payloads_out),
            overload: Some(overload_out(&self.overload)),
            limited_by: self.look.now().to_string(),
            overdue: overdue as u32,
            oldest_overdue_seconds: overdue_since.map(|since| now.saturating_duration_since(since).as_secs_f64()),
        };
        let role = Some(description::Role::Worker(worker));
        Description { role, ..self.start.describe(self.identity.pool.as_str(), self.remaining()) }
    }

    fn explain(&self, task: &TaskId) -> Explanation {
        let now = Instant::now();
        let Some(entry) = self.runner.roster.newest_of(task) else {
            let why = "it does not run here, and a worker keeps nothing of tasks that have ended or that it refused";
            let (task_id, state, why) = (task.to_string(), "unknown".into(), why.into());
            return Explanation { task_id, state, why, ..Explanation::default() };
        };
        let run = run_out(&entry, now);
        let why = match run.overdue_seconds {
            None => format!("it runs here, as run {}", run.run_id),
            Some(late) => format!("it should have stopped {late:.1} s ago, and has not: {}", entry.why()),
        };
        Explanation {
            task_id: run.task_id,
            state: "running".into(),
            why,
            integration: run.integration,
            tenant: run.tenant,
            priority: run.priority,
            age_seconds: Some(run.age_seconds),
            remaining_seconds: Some(run.remaining_seconds),
            attempts: Some(run.attempt),
            worker: Some(self.identity.worker.to_string()),
            ..Explanation::default()
        }
    }

    fn remaining(&self) -> Remaining {
        let Load { in_flight, state, .. } = self.gate.load();
        Remaining { in_flight, at_most: self.stops_within, is_draining: state == State::Draining }
    }

    async fn draining(&self) {
        // The gate lives as long as this.
        self.gate.standing().until(State::Draining).await;
    }
}

impl WorkerOperations {
    fn settings_out(&self, settings: &Settings, arrival: &Arrival, now: Instant) -> description::Settings {
        let value = |spec: &settings::Spec| (spec.key.to_owned(), spec.value(settings).to_string());
        let own = settings::TABLE.iter().filter(|spec| !spec.is_of_routers());
        let unserved = settings.named_integrations().into_iter();
        let unserved = unserved.filter(|(_, name)| !self.identity.integrations.contains(name));
        description::Settings {
            version: settings.version.clone(),
            values: own.map(value).collect(),
            rejected: arrival.rejected.as_ref().map(rejected_out),
            source: self.source.as_ref().map(|source| source_out(source.now(), now)),
            unserved: unserved.map(|(key, name)| format!("{key}: {name}")).collect(),
        }
    }
}

fn gate_out(gate: &Gate) -> description::Gate {
    let load = gate.load();
    let state = match load.state {
        State::Open => "open",
        State::Full => "full",
        State::Overloaded => "overloaded",
        State::Draining => "draining",
    };
    let tenant =
        |of: TenantLoad| description::Tenant { name: of.tenant.to_string(), slots_held: of.held, slots_limit: of.most };
    description::Gate {
        state: state.into(),
        in_flight: load.in_flight,
        slots_target: load.target,
        slots_held_by_interactive: load.held_by_interactive,
        slots_held_by_batch: load.held_by_batch,
        slots_reserved: load.reserve,
        full_tenants: gate.full_tenants(MAX_TENANTS).into_iter().map(tenant).collect(),
    }
}

/// What the gate holds of an integration, and what is learned of it.
fn integration_out(of: IntegrationLoad, known: Option<Known>) -> description::Integration {
    let held = description::Integration {
        name: of.integration.to_string(),
        in_flight: of.in_flight,
        slots_held: of.held,
        slots_limit: of.most,
        slots_cap: of.cap,
        slots_adaptive: of.limit,
        slots_per_task: of.weight,
        ..description::Integration::default()
    };
    let Some(known) = known else { return held };
    let (breaker, open) = match known.breaker {
        None => ("off", None),
        Some(BreakerIs::Closed) => ("closed", None),
        Some(BreakerIs::HalfOpen) => ("half-open", None),
        Some(BreakerIs::Open(remaining)) => ("open", Some(remaining.as_secs_f64())),
    };
    let limit = |limit: Limit| description::AdaptiveLimit {
        tasks: limit.tasks,
        mode: limit.mode.as_str().into(),
        baseline_seconds: limit.baseline.map(|baseline| baseline.as_secs_f64()),
    };
    description::Integration {
        breaker: breaker.into(),
        breaker_saw: known.saw.unwrap_or_default(),
        breaker_open_for_seconds: open,
        needs_at_least_seconds: known.needs_at_least.map(|needs| needs.as_secs_f64()),
        adaptive_limit: known.limit.map(limit),
        ..held
    }
}

fn overload_out(overload: &Overload) -> description::Overload {
    let pressure = *overload.pressure().borrow();
    let shedding = match pressure {
        Pressure::Calm => None,
        Pressure::Shedding(signal) => Some(signal.as_str().to_owned()),
    };
    let Readings { lag, blocked_threads, blocked_by, memory, throttled, descriptors, .. } = overload.readings();
    description::Overload {
        why: shedding.is_some().then(|| overload.why()).flatten(),
        shedding,
        lag_seconds: lag.as_secs_f64(),
        blocked_threads,
        memory_bytes: memory.map(|(usage, _)| usage.used),
        memory_limit_bytes: memory.map(|(usage, _)| usage.limit),
        memory_limit_of: memory.map(|(_, whose)| whose.as_str().to_owned()),
        throttled_ratio: throttled,
        descriptors: descriptors.map(|usage| usage.used),
        descriptors_limit: descriptors.map(|usage| usage.limit),
        blocked_by: blocked_by.map(|(integration, _)| integration.to_string()),
    }
}

fn source_out(source: SourceStatus, now: Instant) -> description::SettingsSource {
    let since = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
    description::SettingsSource {
        name: source.name,
        reachable: source.is_reachable,
        since_seconds: since(source.since),
        last_read_seconds: source.last_read.map(since),
        why: source.why,
    }
}

fn rejected_out(rejected: &settings::Rejected) -> description::Rejected {
    let settings::Rejected { version, values, more } = rejected.clone();
    let values = values
        .into_iter()
        .map(|it| description::RejectedValue { reason: it.reason_and_value(), key: it.key })
        .collect();
    description::Rejected { version, values, more: more as u32 }
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

fn payloads_out(payloads: &Payloads) -> description::Payloads {
    let ledger = payloads.ledger();
    let dropped = |reason: Reason| (reason.as_str().to_owned(), ledger.dropped(reason));
    description::Payloads {
        offered: ledger.offered,
        recovered: ledger.recovered,
        stored: ledger.stored,
        spooled: ledger.spooled,
        pending: ledger.pending,
        pending_bytes: ledger.pending_bytes,
        dropped: Reason::ALL.into_iter().map(dropped).filter(|(_, count)| *count > 0).collect(),
        degraded: payloads.degraded(),
    }
}
