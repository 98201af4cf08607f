//! What a pool of processes shows of itself: names and help texts in one place.

use metrics::{Counter, Gauge};

use super::cause::Cause;

pub(super) struct Metrics {
    pub(super) processes: Gauge,
    pub(super) places: Gauge,
    pub(super) busy: Gauge,
    pub(super) waiting: Gauge,
    pub(super) resident_bytes: Gauge,
    restarts: [Counter; Cause::LABELS.len()],
}

impl Metrics {
    pub(super) fn new(integration: &str, processes: usize) -> Self {
        use metrics::{counter, describe_counter, describe_gauge, gauge};
        describe_gauge!("weir_exec_processes", "Processes of exec integrations that take or run tasks.");
        describe_gauge!("weir_exec_processes_limit", "Processes that an exec integration is configured to have.");
        describe_gauge!("weir_exec_places", "Tasks that the processes of exec integrations can have at a time.");
        describe_gauge!("weir_exec_busy", "Tasks that are in a process of an exec integration.");
        describe_gauge!("weir_exec_waiting", "Tasks that wait for a place in a process of an exec integration.");
        describe_gauge!("weir_exec_resident_bytes", "Memory of the processes of exec integrations, children included.");
        describe_counter!("weir_exec_restarts_total", "Processes of exec integrations that ended, by cause.");
        let label = || integration.to_owned();
        gauge!("weir_exec_processes_limit", "integration" => label()).set(processes as f64);
        Metrics {
            processes: gauge!("weir_exec_processes", "integration" => label()),
            places: gauge!("weir_exec_places", "integration" => label()),
            busy: gauge!("weir_exec_busy", "integration" => label()),
            waiting: gauge!("weir_exec_waiting", "integration" => label()),
            resident_bytes: gauge!("weir_exec_resident_bytes", "integration" => label()),
            restarts: Cause::LABELS
                .map(|cause| counter!("weir_exec_restarts_total", "integration" => label(), "cause" => cause)),
        }
    }

    pub(super) fn ended(&self, cause: &Cause) {
        if let Some(position) = Cause::LABELS.iter().position(|label| Some(*label) == cause.label()) {
            self.restarts[position].increment(1);
        }
    }
}
