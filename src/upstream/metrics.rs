//! What is counted and shown of each integration's upstream. A handful of series per integration.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use super::adaptive::Mode;
use super::{BreakerIs, Known};
use crate::task::IntegrationName;
use crate::telemetry::Telemetry;

pub(super) struct Metrics {
    pub opened: Counter,
    pub spared: Counter,
    pub too_short: Counter,
    state: Gauge,
    needs: Gauge,
    /// Of the limit and its baseline, where there is one.
    adaptive: Option<(Gauge, Gauge)>,
}

impl Metrics {
    pub(super) fn new(integration: &IntegrationName, mode: Mode, telemetry: &Telemetry) -> Self {
        telemetry.register(|| {
            describe_gauge!("weir_breaker_state", "An integration's breaker: 0 closed, 1 half open, 2 open.");
            describe_counter!("weir_breaker_opened_total", "How often an integration's breaker opened.");
            describe_counter!(
                "weir_upstream_refused_total",
                "Tasks refused for what is known of their integration: its breaker is open, or they could not end in time."
            );
            describe_gauge!(
                "weir_upstream_needs_at_least_seconds",
                "A task of the integration that has less time is refused. 0 while too little is known."
            );
            describe_gauge!("weir_adaptive_limit", "Tasks of the integration at once, by its latency.");
            describe_gauge!("weir_adaptive_baseline_seconds", "How long a run takes on a bank that is not pressed.");
            let name = || integration.to_string();
            let refused =
                |reason| counter!("weir_upstream_refused_total", "integration" => name(), "reason" => reason);
            let limit = || {
                let limit = gauge!("weir_adaptive_limit", "integration" => name(), "mode" => mode.as_str());
                (limit, gauge!("weir_adaptive_baseline_seconds", "integration" => name()))
            };
            Metrics {
                opened: counter!("weir_breaker_opened_total", "integration" => name()),
                spared: refused("breaker_open"),
                too_short: refused("deadline_too_short"),
                state: gauge!("weir_breaker_state", "integration" => name()),
                needs: gauge!("weir_upstream_needs_at_least_seconds", "integration" => name()),
                adaptive: (mode != Mode::Off).then(limit),
            }
        })
    }

    pub(super) fn publish(&self, known: &Known) {
        self.state.set(match known.breaker {
            None | Some(BreakerIs::Closed) => 0.0,
            Some(BreakerIs::HalfOpen) => 1.0,
            Some(BreakerIs::Open(_)) => 2.0,
        });
        self.needs.set(known.needs_at_least.unwrap_or_default().as_secs_f64());
        if let (Some((limit, baseline)), Some(known)) = (&self.adaptive, known.limit) {
            limit.set(known.tasks);
            baseline.set(known.baseline.unwrap_or_default().as_secs_f64());
        }
    }
}
