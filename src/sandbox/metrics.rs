//! What the bank counted, for Prometheus: beside a worker's own numbers they say whether the bank is slow, or the worker.
//!
//! All clients together: their ids are no closed set.

use std::sync::Arc;

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::clients::{Clients, Counts};
use crate::telemetry::Telemetry;

/// A recorder of the bank's own: in one process with a worker, their numbers do not mix.
pub(super) fn telemetry() -> Telemetry {
    Telemetry::new().expect("the buckets are constants that the telemetry's tests use")
}

/// Shows what was counted, at each scrape.
pub(super) fn follow(clients: &Arc<Clients>, telemetry: &Telemetry) {
    telemetry.register(|| {
        describe_gauge!("weir_sandbox_in_flight", "Requests that the bank works on, or that wait in its line.");
        describe_gauge!("weir_sandbox_in_flight_peak", "The most that ever were at once.");
        describe_counter!("weir_sandbox_requests_total", "Requests about accounts that bore a valid credential.");
        describe_counter!(
            "weir_sandbox_faults_total",
            "Of them, and of those without: what the bank did to them, as told."
        );
        describe_counter!("weir_sandbox_token_requests_total", "Requests for tokens, by what became of them.");
    });
    let clients = clients.clone();
    telemetry.before_scrape(move || publish(&clients.since_start()));
}

fn publish(counts: &Counts) {
    gauge!("weir_sandbox_in_flight").set(counts.in_flight as f64);
    gauge!("weir_sandbox_in_flight_peak").set(counts.max_in_flight as f64);
    counter!("weir_sandbox_requests_total").absolute(counts.total);
    for (fault, count) in [
        ("rate_limited", counts.rate_limited),
        ("refused", counts.refused),
        ("hung", counts.hung),
        ("reset", counts.reset),
        ("error", counts.errors),
        ("truncated", counts.truncated),
        ("oversized", counts.oversized),
        ("unauthorized", counts.unauthorized),
    ] {
        counter!("weir_sandbox_faults_total", "fault" => fault).absolute(count);
    }
    let tokens = counts.tokens;
    for (result, count) in [
        ("client_credentials", tokens.client_credentials),
        ("refresh_token", tokens.refresh_token),
        ("refused", tokens.refused),
        ("error", tokens.errors),
    ] {
        counter!("weir_sandbox_token_requests_total", "result" => result).absolute(count);
    }
}
