//! What the process itself uses: CPU, memory, descriptors and threads; with the feature `jemalloc`, also what the
//! allocator holds.

use super::Telemetry;

/// Adds the process' metrics to a role, read at each scrape.
pub fn register(telemetry: &Telemetry) {
    let process = metrics_process::Collector::default();
    telemetry.register(|| process.describe());
    telemetry.before_scrape(move || process.collect());
    #[cfg(feature = "jemalloc")]
    super::allocator::register(telemetry);
}
