//! What the process itself is and uses: its version, CPU, memory, descriptors, threads and runtime; with the feature
//! `jemalloc`, also what the allocator holds.

use metrics::{describe_gauge, gauge};
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
    let process = metrics_process::Collector::default();
    telemetry.register(|| process.describe());
    telemetry.before_scrape(move || process.collect());
    #[cfg(feature = "jemalloc")]
    super::allocator::register(telemetry);
}

/// Shows which role serves which pool, so that a dashboard finds a pool's processes.
pub fn register_pool(role: &'static str, pool: &PoolName, telemetry: &Telemetry) {
    telemetry.register(|| {
        describe_gauge!("weir_pool_info", "Always 1; the labels say which role the process has in which pool.");
        gauge!("weir_pool_info", "role" => role, "pool" => pool.to_string()).set(1.0);
    });
}
