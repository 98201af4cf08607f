//! What jemalloc holds. Between what the program has allocated and what it costs in physical memory lie fragmentation
//! and pages that the allocator has not given back yet; these four numbers tell them apart.

use metrics::{Unit, describe_gauge, gauge};
use tikv_jemalloc_ctl::{epoch, stats};

use super::Telemetry;

const METRICS: [(&str, &str); 4] = [
    ("weir_allocator_allocated_bytes", "Bytes that the program has allocated and not freed."),
    ("weir_allocator_active_bytes", "Bytes in pages that hold at least one allocation."),
    ("weir_allocator_resident_bytes", "Bytes of physical memory that the allocator holds."),
    ("weir_allocator_retained_bytes", "Bytes of address space kept for later without physical memory."),
];

/// Adds the allocator's metrics to a role, read at each scrape.
pub(super) fn register(telemetry: &Telemetry) {
    telemetry.register(|| METRICS.into_iter().for_each(|(name, help)| describe_gauge!(name, Unit::Bytes, help)));
    telemetry.before_scrape(|| {
        // The numbers are as of the last epoch.
        if epoch::advance().is_err() {
            return;
        }
        let read = [stats::allocated::read(), stats::active::read(), stats::resident::read(), stats::retained::read()];
        for ((name, _), bytes) in METRICS.into_iter().zip(read) {
            if let Ok(bytes) = bytes {
                gauge!(name).set(bytes as f64);
            }
        }
    });
}
