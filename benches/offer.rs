//! What a task pays for its payload: the time of `Payloads::offer`, with 200 KB each.
//!
//! ```text
//! cargo bench --bench offer
//! ```
//!
//! Idle: one task after the other, the encoder without work between them. Busy: payloads come as fast as they can.
//! Overload: they displace each other, for the queue holds 64; from one thread, and from four at once. Each thread has
//! offered as many before, so that its heap has grown already: a page that the system has to give it for the first time
//! costs more than the offer. `nothing` measures no offer, in the same way: the clock, the caches that others have
//! emptied meanwhile, interrupts. Target: p99 of 2 µs or less.
//!
//! `off` are offers during which the thread was not on the processor for 3 µs or more, of which `blocked` at most were
//! waiting for the queue's lock; the others had the processor taken away, as any code may have. The last columns are
//! without those that were off.

#[path = "support/har.rs"]
mod har;
#[path = "support/spread.rs"]
mod spread;

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustix::time::{ClockId, clock_gettime};
use spread::Spread;
use weir::lifecycle::Lifecycle;
use weir::payload::{Config, Object, Page, Payloads, Record, Store, StoreError, Stored, Value};
use weir::telemetry::Telemetry;

const PAYLOAD_BYTES: usize = 200_000;
const OFFERS: usize = 1_000;

/// A thread that was away for so long was off the processor; less is the imprecision of two clocks.
const OFF: Duration = Duration::from_micros(3);

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

/// How a row's offers come.
struct Load {
    name: &'static str,
    threads: usize,
    /// Between two offers of a thread.
    pause: Duration,
    queue_items: u64,
    /// Whether there is an offer at all.
    offers: bool,
}

/// What one thread has measured.
#[derive(Default)]
struct Measured {
    all: Vec<Duration>,
    /// Of those, the ones that were on the processor throughout.
    on: Vec<Duration>,
    blocked: u64,
}

#[tokio::main]
async fn main() {
    println!(
        "{:<22}{:>9}{:>9}{:>9}{:>9}{:>7}{:>9}{:>10}{:>10}{:>10}{:>9}",
        "offers of 200 KB, µs",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "off",
        "blocked",
        "p99 on",
        "p99.9 on",
        "dropped",
        "stored"
    );
    let (idle, none, usual) = (Duration::from_millis(4), Duration::ZERO, 10_000);
    for (name, threads, pause, queue_items, offers) in [
        ("nothing, idle", 1, idle, usual, false),
        ("idle", 1, idle, usual, true),
        ("nothing, busy", 1, none, usual, false),
        ("busy", 1, none, usual, true),
        ("overload, 1 thread", 1, none, 64, true),
        ("overload, 4 threads", 4, none, 64, true),
    ] {
        measure(Load { name, threads, pause, queue_items, offers }).await;
    }
    println!("\n(target: p99 of 2 µs or less)");
}

async fn measure(load: Load) {
    let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
    let config = Config { queue_items: load.queue_items, queue_bytes: 1 << 30, ..Config::default() };
    let lag: weir::payload::Lag = Arc::new(|| Duration::ZERO);
    let payloads = Payloads::start(&config, Arc::new(Nowhere), lag, &telemetry, &lifecycle).expect("it starts");
    let count = OFFERS / load.threads;
    let records =
        |thread: usize| (0..count).map(|n| har::record(&format!("t-{thread}-{n}"), PAYLOAD_BYTES)).collect::<Vec<_>>();
    let batches: Vec<_> = (0..load.threads).map(|thread| (records(thread), records(thread + load.threads))).collect();
    let caller = |(before, records): (Vec<Record>, Vec<Record>)| {
        let (payloads, pause, offers) = (payloads.clone(), load.pause, load.offers);
        lifecycle.blocking("caller", move || {
            if offers {
                before.into_iter().for_each(|record| payloads.offer(record, Value::Ordinary));
                while payloads.ledger().pending > 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            call(&payloads, records, pause, offers)
        })
    };
    let callers: Vec<_> = batches.into_iter().map(caller).collect();
    let (mut all, mut on, mut blocked, mut off) = (Spread::default(), Spread::default(), 0, 0);
    for caller in callers {
        let measured = caller.await.expect("offers end");
        off += measured.all.len() - measured.on.len();
        blocked += measured.blocked;
        measured.all.into_iter().for_each(|took| all.add(took));
        measured.on.into_iter().for_each(|took| on.add(took));
    }
    let ledger = payloads.flush(Duration::from_secs(60)).await;
    lifecycle.stop(Duration::from_secs(10)).await.expect("all of it ends");
    let us = |spread: &mut Spread, share| spread.quantile(share).as_secs_f64() * 1e6;
    let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|share| us(&mut all, share));
    let [p99_on, p999_on] = [0.99, 0.999].map(|share| us(&mut on, share));
    let (name, dropped, stored) = (load.name, ledger.dropped_in_all(), ledger.stored);
    println!(
        "{name:<22}{p50:>9.2}{p90:>9.2}{p99:>9.2}{p999:>9.2}{off:>7}{blocked:>9}{p99_on:>10.2}{p999_on:>10.2}\
         {dropped:>10}{stored:>9}"
    );
}

/// One thread's offers.
fn call(payloads: &Payloads, records: Vec<Record>, pause: Duration, offers: bool) -> Measured {
    let (mut measured, mut kept, waited) = (Measured::default(), Vec::with_capacity(records.len()), waits());
    for record in records {
        // At work meanwhile, as a runtime's thread is: one that slept would find its caches cold.
        let pausing = Instant::now();
        while pausing.elapsed() < pause {
            spin_loop();
        }
        // As after a run, the record has just been made.
        let record = black_box(record);
        let (wall, processor) = (Instant::now(), processor_time());
        let started = Instant::now();
        let left = if offers {
            payloads.offer(record, Value::Ordinary);
            None
        } else {
            Some(black_box(record))
        };
        let took = started.elapsed();
        let (processor, wall) = (processor_time() - processor, wall.elapsed());
        kept.extend(left);
        measured.all.push(took);
        if wall.saturating_sub(processor) < OFF {
            measured.on.push(took);
        }
    }
    Measured { blocked: waits() - waited, ..measured }
}

/// The processor time of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How often this thread has waited for something, such as a lock, so far.
fn waits() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}
