//! Two scrapers that read a worker's metrics all the time, at the same time, and check the ledger in every snapshot.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use weir::lifecycle::Lifecycle;

use super::processes::{LONG, metric, try_get};

/// How often each of them reads.
const EVERY: Duration = Duration::from_millis(40);

/// The ledger as a scraper, or a reader of the log, sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Numbers {
    pub offered: usize,
    pub recovered: usize,
    pub stored: usize,
    pub spooled: usize,
    pub dropped: usize,
    pub pending: usize,
}

impl Numbers {
    pub fn of(metrics: &str) -> Self {
        let count = |name: &str| metric(metrics, &format!("weir_payloads_{name}"), "") as usize;
        Numbers {
            offered: count("offered_total"),
            recovered: count("recovered_total"),
            stored: count("stored_total"),
            spooled: count("spooled"),
            dropped: count("dropped_total"),
            pending: count("pending"),
        }
    }

    /// From what a worker says at its end.
    pub fn of_log(log: &str) -> Self {
        let line = log.lines().find(|line| line.contains("payloads: ")).expect("its ledger");
        let (_, text) = line.split_once("payloads: ").expect("found");
        let words: Vec<_> = text.split([' ', ',', '"', '(']).filter(|word| !word.is_empty()).collect();
        let count = |name: &str| {
            let number = words.windows(2).find(|pair| pair[1] == name).map(|pair| pair[0].parse());
            number.map_or(0, |number| number.expect("a number"))
        };
        Numbers {
            offered: count("offered"),
            recovered: count("recovered"),
            stored: count("stored"),
            spooled: count("spooled"),
            dropped: count("dropped"),
            pending: count("pending"),
        }
    }

    pub fn are_balanced(&self) -> bool {
        self.offered + self.recovered == self.stored + self.spooled + self.dropped + self.pending
    }
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub snapshots: usize,
    pub unbalanced: Vec<Numbers>,
    pub last: Numbers,
    pub max_pending: usize,
    pub max_pending_bytes: usize,
    pub max_spool_bytes: usize,
    pub max_resident_bytes: usize,
}

pub struct Watch {
    lifecycle: Lifecycle,
    seen: Arc<Mutex<Seen>>,
}

impl Watch {
    /// Reads until it is ended, or nobody answers any more.
    pub fn over(admin: SocketAddr) -> Self {
        let (lifecycle, seen) = (Lifecycle::new(), Arc::<Mutex<Seen>>::default());
        for _ in 0..2 {
            let seen = seen.clone();
            let read = move |token: tokio_util::sync::CancellationToken| {
                while !token.is_cancelled() {
                    let Some(metrics) = try_get(admin, "/metrics") else { return };
                    seen.lock().add(&metrics);
                    std::thread::sleep(EVERY);
                }
            };
            lifecycle.thread("scraper", read).expect("a thread");
        }
        Watch { lifecycle, seen }
    }

    /// What has been seen since the start, or since this was asked last.
    pub fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock())
    }

    pub fn end(self) -> Seen {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(self.lifecycle.stop(LONG)).expect("they end");
        self.take()
    }
}

impl Seen {
    fn add(&mut self, metrics: &str) {
        let numbers = Numbers::of(metrics);
        let most = |seen: &mut usize, name: &str| *seen = (*seen).max(metric(metrics, name, "") as usize);
        most(&mut self.max_pending, "weir_payloads_pending");
        most(&mut self.max_pending_bytes, "weir_payloads_pending_bytes");
        most(&mut self.max_spool_bytes, "weir_payload_spool_bytes");
        most(&mut self.max_resident_bytes, "process_resident_memory_bytes");
        self.snapshots += 1;
        // The two may be told in another order than they asked.
        if numbers.offered >= self.last.offered {
            self.last = numbers;
        }
        if !numbers.are_balanced() {
            self.unbalanced.push(numbers);
        }
    }
}
