//! How the runtime of a process does, by its own numbers: how busy its threads are, and what waits for them.
//!
//! `weir_runtime_busy_seconds` only grows, and is a gauge all the same: the counters of the crate `metrics` are whole numbers
//! (`CounterFn` takes `u64`), its Prometheus exporter writes them as they are, and has no option by which one is divided or
//! a gauge is called a counter. Whole seconds would be too coarse for a ratio over a scrape's interval, and microseconds
//! are no base unit. `rate()` works on a gauge that only grows, and falls to 0 with the process as a counter does.
//!
//! Its pool of blocking threads has no stable numbers; what weir itself runs there is bounded and counted apart
//! (`weir_blocking_running` and `weir_blocking_waiting` of a worker).

use std::time::Duration;

use metrics::{Unit, describe_gauge, gauge};
use tokio::runtime::Handle;

use super::Telemetry;

/// Adds the numbers of the runtime that this is called on to a role, read at each scrape.
pub(super) fn register(runtime: &Handle, telemetry: &Telemetry) {
    let runtime = runtime.metrics();
    let threads = runtime.num_workers();
    let [busy, tasks, queued] = telemetry.register(|| {
        describe_gauge!("weir_runtime_threads", "Threads that the async runtime runs tasks on.");
        describe_gauge!(
            "weir_runtime_busy_seconds",
            Unit::Seconds,
            "How long those threads have been busy, since the start and all together."
        );
        describe_gauge!(
            "weir_runtime_tasks",
            "Tasks of the async runtime that have not ended: also those that only wait."
        );
        describe_gauge!("weir_runtime_queue_depth", "Tasks of the async runtime that no thread has taken yet.");
        gauge!("weir_runtime_threads").set(threads as f64);
        [gauge!("weir_runtime_busy_seconds"), gauge!("weir_runtime_tasks"), gauge!("weir_runtime_queue_depth")]
    });
    telemetry.before_scrape(move || {
        let spent: Duration = (0..threads).map(|thread| runtime.worker_total_busy_duration(thread)).sum();
        busy.set(spent.as_secs_f64());
        tasks.set(runtime.num_alive_tasks() as f64);
        queued.set(runtime.global_queue_depth() as f64);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_threads_and_what_waits_for_them_are_shown() {
        let telemetry = Telemetry::new().expect("a recorder");
        register(&Handle::current(), &telemetry);
        let text = telemetry.render();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is missing: {text}")).parse::<f64>().expect("a number")
        };
        assert_eq!(value("weir_runtime_threads"), 2.0);
        assert!(value("weir_runtime_busy_seconds") >= 0.0);
        assert!(value("weir_runtime_tasks") >= 0.0 && value("weir_runtime_queue_depth") >= 0.0);
    }
}
