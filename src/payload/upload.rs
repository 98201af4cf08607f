//! From the queue to the store: an encoder thread's loop, and the upload that each payload ends in.
//!
//! Encoders run at a low priority, so that they get the processor when the tasks leave some. An encoded payload waits
//! for its upload slot *in the encoder*, which therefore takes no further one out of the queue: what a slow store
//! cannot take stays in the queue's bounds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::encode::{ENCODING, Encoded, encode};
use super::key::key;
use super::ledger::Reason;
use super::queue::{Limits, Pending, Queue};
use super::record::{Record, SCHEMA};
use super::redact::Redactor;
use super::store::{Object, Store, UPLOAD_DEADLINE};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Telemetry;

/// At most one line about lost payloads in this time.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How much an encoder thread steps back behind the tasks' threads (0 not at all, 19 most).
const NICENESS: i32 = 10;

/// One encoder thread's work.
pub(super) struct Encoder {
    queue: Arc<Queue<Record>>,
    uploader: Arc<Uploader>,
    redactor: Arc<Redactor>,
    prefix: String,
    level: u32,
    lifecycle: Lifecycle,
    runtime: Handle,
}

/// What all encoders and uploads share.
pub(super) struct Uploader {
    store: Arc<dyn Store>,
    metrics: Metrics,
    failures: Mutex<Failures>,
}

impl Encoder {
    pub fn new(
        config: &super::Config,
        queue: &Arc<Queue<Record>>,
        uploader: &Arc<Uploader>,
        redactor: &Arc<Redactor>,
        lifecycle: &Lifecycle,
        runtime: Handle,
    ) -> Self {
        Encoder {
            queue: queue.clone(),
            uploader: uploader.clone(),
            redactor: redactor.clone(),
            prefix: config.prefix.clone(),
            level: config.zlib_level,
            lifecycle: lifecycle.clone(),
            runtime,
        }
    }

    /// Until the queue is closed.
    pub fn run(self) {
        lower_priority();
        let _uploads_go_here = self.runtime.enter();
        while let Some((record, pending)) = self.queue.next() {
            self.encode(record, pending);
        }
    }

    fn encode(&self, record: Record, mut pending: Pending<Record>) {
        let key = key(&self.prefix, &record.task.integration, &record.outcome);
        let started = Instant::now();
        // One strange payload must not take the worker down.
        let encoded = catch_unwind(AssertUnwindSafe(|| encode(&self.redactor.redact(record), self.level)));
        let encoded = match encoded {
            Ok(Ok(encoded)) => encoded,
            Ok(Err(error)) => return self.uploader.lost(pending, Reason::Encode, &format!("encoding {key}: {error}")),
            // The panic's message may quote the payload.
            Err(_) => return self.uploader.lost(pending, Reason::Encode, &format!("encoding {key} panicked")),
        };
        self.uploader.metrics.encoded(&encoded, started.elapsed());
        pending.resize(encoded.body.len() as u64);
        if !pending.wait_for_upload() {
            return;
        }
        let (uploader, stop) = (self.uploader.clone(), self.lifecycle.token());
        self.lifecycle.spawn("payload upload", async move {
            // Letting go of `pending` at a stop counts it as lost.
            stop.run_until_cancelled(uploader.upload(object(key, encoded), pending)).await;
        });
    }
}

impl Uploader {
    pub fn new(store: Arc<dyn Store>, metrics: Metrics) -> Self {
        Uploader { store, metrics, failures: Mutex::default() }
    }

    async fn upload(&self, object: Object, pending: Pending<Record>) {
        let (key, started) = (object.key.clone(), Instant::now());
        let result = tokio::time::timeout(UPLOAD_DEADLINE, self.store.put(object)).await;
        self.metrics.upload_duration.record(started.elapsed());
        let reason = match result {
            Ok(Ok(())) => return pending.stored(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("{} did not answer within {UPLOAD_DEADLINE:?}", self.store.location(&key)),
        };
        self.lost(pending, Reason::Store, &reason);
    }

    /// Counts the loss, and logs it if none was logged for a while.
    fn lost(&self, pending: Pending<Record>, reason: Reason, what: &str) {
        pending.dropped(reason);
        let count = self.failures.lock().count(Instant::now());
        if let Some(lost) = count {
            tracing::warn!(lost, reason = reason.as_str(), "payloads are being lost: {what}");
        }
    }
}

fn object(key: String, encoded: Encoded) -> Object {
    let metadata = vec![
        ("encoding", ENCODING.to_owned()),
        ("schema", SCHEMA.to_owned()),
        ("json-bytes", encoded.json_bytes.to_string()),
        ("stored-bytes", encoded.body.len().to_string()),
        ("sha256", encoded.sha256),
    ];
    Object { key, body: encoded.body, metadata }
}

/// Best effort, and on Linux only, where a thread has a priority of its own.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
        tracing::debug!("an encoder thread keeps its normal priority: {error}");
    }
}

/// Counts lost payloads between two log lines.
#[derive(Default)]
struct Failures {
    last_line: Option<Instant>,
    lost: u64,
}

impl Failures {
    /// How many were lost since the last line, when it is time for another.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.lost += 1;
        if self.last_line.is_some_and(|last| now.duration_since(last) < FAILURE_LOG_INTERVAL) {
            return None;
        }
        self.last_line = Some(now);
        Some(std::mem::take(&mut self.lost))
    }
}

/// The payload path's metrics. The ledger's are published together, from one snapshot per scrape.
pub(super) struct Metrics {
    encode_duration: Histogram,
    upload_duration: Histogram,
    json_bytes: Histogram,
    stored_bytes: Histogram,
}

struct LedgerMetrics {
    offered: Counter,
    stored: Counter,
    dropped: [Counter; Reason::ALL.len()],
    pending: Gauge,
    pending_bytes: Gauge,
}

impl Metrics {
    pub fn register(telemetry: &Telemetry, queue: &Arc<Queue<Record>>, limits: Limits) -> Self {
        let ledger = telemetry.register(|| LedgerMetrics::new(limits));
        let queue = queue.clone();
        telemetry.before_scrape(move || ledger.publish(&queue));
        telemetry.register(Metrics::new)
    }

    fn new() -> Self {
        use metrics::{Unit::Bytes, Unit::Seconds, describe_histogram, histogram};
        describe_histogram!("weir_payload_encode_duration_seconds", Seconds, "Redacting and encoding one payload.");
        describe_histogram!("weir_payload_upload_duration_seconds", Seconds, "Storing one payload, retries included.");
        describe_histogram!("weir_payload_json_bytes", Bytes, "A payload's JSON text.");
        describe_histogram!("weir_payload_stored_bytes", Bytes, "A payload as it is stored.");
        Metrics {
            encode_duration: histogram!("weir_payload_encode_duration_seconds"),
            upload_duration: histogram!("weir_payload_upload_duration_seconds"),
            json_bytes: histogram!("weir_payload_json_bytes"),
            stored_bytes: histogram!("weir_payload_stored_bytes"),
        }
    }

    fn encoded(&self, encoded: &Encoded, took: Duration) {
        self.encode_duration.record(took);
        self.json_bytes.record(encoded.json_bytes as f64);
        self.stored_bytes.record(encoded.body.len() as f64);
    }
}

impl LedgerMetrics {
    fn new(limits: Limits) -> Self {
        use metrics::{Unit::Bytes, counter, describe_counter, describe_gauge, gauge};
        describe_counter!("weir_payloads_offered_total", "Payloads that came in.");
        describe_counter!("weir_payloads_stored_total", "Payloads that the store has confirmed.");
        describe_counter!("weir_payloads_dropped_total", "Payloads lost, by reason.");
        describe_gauge!("weir_payloads_pending", "Payloads waiting, being encoded, or being uploaded.");
        describe_gauge!("weir_payloads_pending_bytes", Bytes, "Memory that pending payloads hold.");
        describe_gauge!("weir_payloads_pending_limit", "The most payloads that may be pending.");
        describe_gauge!("weir_payloads_pending_limit_bytes", Bytes, "The most memory that pending payloads may hold.");
        gauge!("weir_payloads_pending_limit").set(limits.items as f64);
        gauge!("weir_payloads_pending_limit_bytes").set(limits.bytes as f64);
        LedgerMetrics {
            offered: counter!("weir_payloads_offered_total"),
            stored: counter!("weir_payloads_stored_total"),
            dropped: Reason::ALL.map(|reason| counter!("weir_payloads_dropped_total", "reason" => reason.as_str())),
            pending: gauge!("weir_payloads_pending"),
            pending_bytes: gauge!("weir_payloads_pending_bytes"),
        }
    }

    fn publish(&self, queue: &Queue<Record>) {
        let ledger = queue.ledger();
        self.offered.absolute(ledger.offered);
        self.stored.absolute(ledger.stored);
        for (counter, reason) in self.dropped.iter().zip(Reason::ALL) {
            counter.absolute(ledger.dropped(reason));
        }
        self.pending.set(ledger.pending as f64);
        self.pending_bytes.set(ledger.pending_bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_logged_once_in_a_while_with_their_count() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        assert_eq!(failures.count(now), Some(1));
        assert_eq!(failures.count(now + Duration::from_secs(1)), None);
        assert_eq!(failures.count(now + Duration::from_secs(9)), None);
        assert_eq!(failures.count(now + FAILURE_LOG_INTERVAL), Some(3));
    }
}
