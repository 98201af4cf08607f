//! What the process itself uses: CPU, memory, descriptors, threads, and what the allocator holds.

use super::Telemetry;

/// Adds the process' and the allocator's metrics to a role, read at each scrape.
pub fn register(telemetry: &Telemetry) {
    let process = metrics_process::Collector::default();
    telemetry.register(|| {
        process.describe();
        for (name, help) in ALLOCATOR {
            metrics::describe_gauge!(name, metrics::Unit::Bytes, help);
        }
    });
    telemetry.before_scrape(move || {
        process.collect();
        collect_allocator();
    });
}

const ALLOCATOR: [(&str, &str); 4] = [
    ("weir_allocator_allocated_bytes", "Bytes that the program has allocated and not freed."),
    ("weir_allocator_active_bytes", "Bytes in pages that hold at least one allocation."),
    ("weir_allocator_resident_bytes", "Bytes of physical memory that the allocator holds."),
    ("weir_allocator_retained_bytes", "Bytes of address space kept for later without physical memory."),
];

/// Absent when the program runs on another allocator.
fn collect_allocator() {
    use tikv_jemalloc_ctl::{epoch, stats};
    if epoch::advance().is_err() {
        return;
    }
    let readings = [stats::allocated::read(), stats::active::read(), stats::resident::read(), stats::retained::read()];
    for ((name, _), reading) in ALLOCATOR.into_iter().zip(readings) {
        if let Ok(bytes) = reading {
            metrics::gauge!(name).set(bytes as f64);
        }
    }
}
