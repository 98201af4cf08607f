//! What a task pays for its payload: the time of `Payloads::offer`, with 200 KB each.
//!
//! ```text
//! cargo bench --bench offer
//! ```
//!
//! Idle: one task after the other, the encoder without work between them. Busy: payloads come as fast as the encoder takes them. Overload: four
//! threads at once offer more than the queue holds, so that each offer displaces a payload. Target: p99 of 2 µs or less.

#[path = "support/har.rs"]
mod har;
#[path = "support/spread.rs"]
mod spread;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use spread::Spread;
use weir::lifecycle::Lifecycle;
use weir::payload::{Config, Object, Page, Payloads, Record, Store, StoreError, Stored, Value};
use weir::telemetry::Telemetry;

const PAYLOAD_BYTES: usize = 200_000;
const OFFERS: usize = 1_000;

/// Takes everything and keeps nothing.
struct Nowhere;

#[async_trait]
impl Store for Nowhere {
    async fn put(&self, _object: &Object) -> Result<(), StoreError> {
        Ok(())
    }
    async fn get(&self, key: &str, _limit_bytes: u64) -> Result<Stored, StoreError> {
        Err(StoreError::NotFound { location: key.into() })
    }
    async fn list(&self, _prefix: &str, _start_after: &str, _limit: usize) -> Result<Page, StoreError> {
        Ok(Page::default())
    }
    fn location(&self, key: &str) -> String {
        key.into()
    }
}

#[tokio::main]
async fn main() {
    println!(
        "{:<22}{:>10}{:>10}{:>10}{:>10}{:>12}{:>12}",
        "offers of 200 KB, µs", "p50", "p90", "p99", "p99.9", "dropped", "stored"
    );
    measure("idle", 1, Duration::from_millis(4), 10_000).await;
    measure("busy", 1, Duration::ZERO, 10_000).await;
    measure("overload, 1 thread", 1, Duration::ZERO, 64).await;
    measure("overload, 4 threads", 4, Duration::ZERO, 64).await;
    println!("\n(target: p99 of 2 µs or less)");
}

async fn measure(name: &str, threads: usize, pause: Duration, queue_items: u64) {
    let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
    let config = Config { queue_items, queue_bytes: 1 << 30, ..Config::default() };
    let lag: weir::payload::Lag = Arc::new(|| Duration::ZERO);
    let payloads = Payloads::start(&config, Arc::new(Nowhere), lag, &telemetry, &lifecycle).expect("it starts");
    let offer = |records: Vec<Record>| {
        let payloads = payloads.clone();
        move || {
            let mut spread = Vec::with_capacity(records.len());
            for record in records {
                // At work meanwhile, as a runtime's thread is: one that slept would find its caches cold.
                let pausing = Instant::now();
                while pausing.elapsed() < pause {
                    std::hint::spin_loop();
                }
                let started = Instant::now();
                payloads.offer(record, Value::Ordinary);
                spread.push(started.elapsed());
            }
            spread
        }
    };
    let records =
        |thread: usize| (0..OFFERS / threads).map(|n| har::record(&format!("t-{thread}-{n}"), PAYLOAD_BYTES)).collect();
    let batches: Vec<Vec<Record>> = (0..threads).map(records).collect();
    let callers: Vec<_> = batches.into_iter().map(|batch| lifecycle.blocking("caller", offer(batch))).collect();
    let mut spread = Spread::default();
    for caller in callers {
        caller.await.expect("offers end").into_iter().for_each(|took| spread.add(took));
    }
    let ledger = payloads.flush(Duration::from_secs(60)).await;
    lifecycle.stop(Duration::from_secs(10)).await.expect("all of it ends");
    let us = |spread: &mut Spread, share| spread.quantile(share).as_secs_f64() * 1e6;
    let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|share| us(&mut spread, share));
    let (dropped, stored) = (ledger.dropped_in_all(), ledger.stored);
    println!("{name:<22}{p50:>10.2}{p90:>10.2}{p99:>10.2}{p999:>10.2}{dropped:>12}{stored:>12}");
}
