//! What a gate counts and shows: names and help texts in one place.

use metrics::{Counter, counter, describe_counter, describe_gauge, gauge};

use super::slots::Peak;
use super::{IntegrationLoad, Load, Refused, State};
use crate::task::Priority;
use crate::telemetry::Telemetry;

const REFUSED: &str = "weir_gate_refused_total";

pub(super) struct Metrics {
    admitted: Counter,
    full: Counter,
    reserve: Counter,
    integration_full: Counter,
    tenant_full: Counter,
    overloaded: Counter,
    draining: Counter,
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        telemetry.register(|| {
            describe_counter!("weir_gate_admitted_total", "Tasks admitted.");
            describe_counter!(REFUSED, "Tasks refused at the gate, by reason.");
            describe_gauge!("weir_gate_target", "N: how many slots may be held.");
            describe_gauge!("weir_gate_slots_held", "Slots held, by the priority of the tasks that hold them.");
            describe_gauge!("weir_gate_slots_held_peak", "The most slots that were ever held at once.");
            describe_gauge!("weir_gate_reserve", "Slots of N that batch tasks may not hold.");
            describe_gauge!("weir_gate_in_flight", "Tasks that hold a permit.");
            describe_gauge!("weir_gate_in_flight_peak", "The most tasks that ever held a permit at once.");
            describe_gauge!("weir_gate_task_seconds", "Integral of the tasks in flight over time.");
            describe_gauge!("weir_gate_open", "1 while the gate takes tasks, otherwise 0.");
            describe_gauge!("weir_gate_overloaded", "1 while the gate takes nothing because it must not, otherwise 0.");
            describe_gauge!("weir_gate_integration_slots_held", "Slots that the tasks of an integration hold.");
            describe_gauge!(
                "weir_gate_integration_slots_cap",
                "Slots that the tasks of an integration may hold: its cap, the limit from outside or N, the smallest."
            );
            let refused = |reason| counter!(REFUSED, "reason" => reason);
            Metrics {
                admitted: counter!("weir_gate_admitted_total"),
                full: refused("full"),
                reserve: refused("reserve"),
                integration_full: refused("integration_full"),
                tenant_full: refused("tenant_full"),
                overloaded: refused("overloaded"),
                draining: refused("draining"),
            }
        })
    }

    pub(super) fn admit(&self) {
        self.admitted.increment(1);
    }

    pub(super) fn refuse(&self, refused: &Refused) {
        let counter = match refused {
            Refused::Full { .. } => &self.full,
            Refused::Reserve { .. } => &self.reserve,
            Refused::IntegrationFull { .. } => &self.integration_full,
            Refused::TenantFull { .. } => &self.tenant_full,
            Refused::Overloaded => &self.overloaded,
            Refused::Draining => &self.draining,
        };
        counter.increment(1);
    }
}

/// Sets the gauges, with a role's recorder at hand.
pub(super) fn publish(load: Load, peak: Peak, task_seconds: f64, integrations: &[IntegrationLoad]) {
    let is = |state| if load.state == state { 1.0 } else { 0.0 };
    gauge!("weir_gate_target").set(load.target);
    for (priority, held) in [(Priority::Interactive, load.held_by_interactive), (Priority::Batch, load.held_by_batch)] {
        gauge!("weir_gate_slots_held", "priority" => priority.as_str()).set(held);
    }
    gauge!("weir_gate_slots_held_peak").set(peak.held);
    gauge!("weir_gate_reserve").set(load.reserve);
    gauge!("weir_gate_in_flight").set(load.in_flight);
    gauge!("weir_gate_in_flight_peak").set(peak.in_flight);
    gauge!("weir_gate_task_seconds").set(task_seconds);
    gauge!("weir_gate_open").set(is(State::Open));
    gauge!("weir_gate_overloaded").set(is(State::Overloaded));
    for of in integrations {
        let name = || of.integration.to_string();
        gauge!("weir_gate_integration_slots_held", "integration" => name()).set(of.held);
        gauge!("weir_gate_integration_slots_cap", "integration" => name()).set(of.most);
    }
}
