//! What the process itself is and uses: its version, CPU, memory, descriptors, threads and runtime; with the feature
//! `jemalloc`, also what the allocator holds.

use metrics::{describe_gauge, gauge};
use metrics_process::{Collector, collector};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;

use super::{Telemetry, runtime};
use crate::task::PoolName;

/// Adds the process' metrics to a role, read at each scrape; those of the runtime where it is called on one.
pub fn register(telemetry: &Telemetry) {
    telemetry.register(|| {
        describe_gauge!("weir_build_info", "Always 1; the label says which version of weir runs.");
        gauge!("weir_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    });
    if let Ok(handle) = Handle::try_current() {
        runtime::register(&handle, telemetry);
    }
    telemetry.register(|| Collector::default().describe());
    telemetry.before_scrape(publish);
    telemetry.fraction(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        processor_seconds,
    );
    #[cfg(feature = "jemalloc")]
    super::allocator::register(telemetry);
}

/// What the collector of the crate shows, but for the processor time: its counter has whole seconds.
fn publish() {
    let process = collector::collect();
    let gauges = [
        ("process_open_fds", process.open_fds),
        ("process_max_fds", process.max_fds),
        ("process_virtual_memory_bytes", process.virtual_memory_bytes),
        ("process_virtual_memory_max_bytes", process.virtual_memory_max_bytes),
        ("process_resident_memory_bytes", process.resident_memory_bytes),
        ("process_start_time_seconds", process.start_time_seconds),
        ("process_threads", process.threads),
    ];
    for (name, value) in gauges {
        value.into_iter().for_each(|value| gauge!(name).set(value as f64));
    }
}

/// Of all threads of the process, those that have ended included.
fn processor_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// Shows which role serves which pool, so that a dashboard finds a pool's processes.
pub fn register_pool(role: &'static str, pool: &PoolName, telemetry: &Telemetry) {
    telemetry.register(|| {
        describe_gauge!("weir_pool_info", "Always 1; the labels say which role the process has in which pool.");
        gauge!("weir_pool_info", "role" => role, "pool" => pool.to_string()).set(1.0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_time_has_a_fraction_and_the_rest_is_there() {
        let telemetry = Telemetry::new().expect("a recorder");
        register(&telemetry);
        let read = || {
            let text = telemetry.render();
            let line = text.lines().find_map(|line| line.strip_prefix("process_cpu_seconds_total "));
            (line.expect("shown").parse::<f64>().expect("a number"), text)
        };
        let (first, text) = read();
        for name in ["open_fds", "resident_memory_bytes", "start_time_seconds", "threads"] {
            assert!(text.contains(&format!("# HELP process_{name} ")), "{name}: {text}");
        }
        // Well below a second of work is seen.
        while processor_seconds() < first + 0.02 {
            std::hint::black_box(text.len());
        }
        let (then, _) = read();
        assert!(then >= first + 0.02 && then < first + 10.0, "{first}, then {then}");
    }
}
