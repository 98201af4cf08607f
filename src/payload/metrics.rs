//! The payload path's metrics: names and help texts in one place. What the ledger has is published together, from one
//! snapshot per scrape.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics::{describe_counter, describe_gauge, describe_histogram};

use super::encode::Encoded;
use super::ledger::Reason;
use super::queue::Limits;
use super::spool::Load;
use super::store::Store;
use super::upload::{PayloadQueue, Uploader};
use crate::telemetry::Telemetry;

/// What is recorded as it happens.
pub(super) struct Metrics {
    encode_duration: Histogram,
    pub pause_duration: Histogram,
    pub upload_duration: Histogram,
    json_bytes: Histogram,
    stored_bytes: Histogram,
}

impl Metrics {
    pub fn register(telemetry: &Telemetry) -> Self {
        telemetry.register(|| {
            use metrics::Unit::{Bytes, Seconds};
            describe_histogram!("weir_payload_encode_duration_seconds", Seconds, "Redacting and encoding one payload.");
            describe_histogram!(
                "weir_payload_encode_pause_duration_seconds",
                Seconds,
                "Pauses of encoders, because the runtime lagged."
            );
            describe_histogram!(
                "weir_payload_upload_duration_seconds",
                Seconds,
                "Storing one payload, retries included."
            );
            describe_histogram!("weir_payload_json_bytes", Bytes, "A payload's JSON text.");
            describe_histogram!("weir_payload_stored_bytes", Bytes, "A payload as it is stored.");
            Metrics {
                encode_duration: histogram!("weir_payload_encode_duration_seconds"),
                pause_duration: histogram!("weir_payload_encode_pause_duration_seconds"),
                upload_duration: histogram!("weir_payload_upload_duration_seconds"),
                json_bytes: histogram!("weir_payload_json_bytes"),
                stored_bytes: histogram!("weir_payload_stored_bytes"),
            }
        })
    }

    pub fn encoded(&self, encoded: &Encoded, took: Duration) {
        self.encode_duration.record(took);
        self.json_bytes.record(encoded.json_bytes as f64);
        self.stored_bytes.record(encoded.body.len() as f64);
    }
}

/// Publishes the state of all parts at each scrape.
pub(super) fn publish(
    telemetry: &Telemetry,
    limits: Limits,
    spool_limit: Option<u64>,
    queue: &Arc<PayloadQueue>,
    uploader: &Arc<Uploader>,
) {
    let ledger = telemetry.register(|| LedgerMetrics::new(limits));
    let store = telemetry.register(|| StoreMetrics::new(limits));
    let spool = spool_limit.map(|limit| telemetry.register(|| SpoolMetrics::new(limit)));
    let (queue, uploader) = (queue.clone(), uploader.clone());
    telemetry.before_scrape(move || {
        ledger.publish(&queue);
        store.publish(&queue, uploader.store(), uploader.health.is_away());
        if let (Some(spool), Some(load)) = (&spool, uploader.spool_load()) {
            spool.publish(load);
        }
    });
}

struct LedgerMetrics {
    offered: Counter,
    recovered: Counter,
    stored: Counter,
    spooled: Gauge,
    dropped: [Counter; Reason::ALL.len()],
    pending: Gauge,
    pending_bytes: Gauge,
}

impl LedgerMetrics {
    fn new(limits: Limits) -> Self {
        use metrics::Unit::Bytes;
        describe_counter!("weir_payloads_offered_total", "Payloads that came in.");
        describe_counter!("weir_payloads_recovered_total", "Payloads that an earlier life had left in the spool.");
        describe_counter!("weir_payloads_stored_total", "Payloads that the store has confirmed.");
        describe_counter!("weir_payloads_dropped_total", "Payloads lost, by reason.");
        describe_gauge!("weir_payloads_spooled", "Payloads that lie in the spool.");
        describe_gauge!("weir_payloads_pending", "Payloads waiting, being encoded, or being uploaded.");
        describe_gauge!("weir_payloads_pending_bytes", Bytes, "Memory that pending payloads hold.");
        describe_gauge!("weir_payloads_pending_limit", "The most payloads that may be pending.");
        describe_gauge!("weir_payloads_pending_limit_bytes", Bytes, "The most memory that pending payloads may hold.");
        gauge!("weir_payloads_pending_limit").set(limits.items as f64);
        gauge!("weir_payloads_pending_limit_bytes").set(limits.bytes as f64);
        LedgerMetrics {
            offered: counter!("weir_payloads_offered_total"),
            recovered: counter!("weir_payloads_recovered_total"),
            stored: counter!("weir_payloads_stored_total"),
            spooled: gauge!("weir_payloads_spooled"),
            dropped: Reason::ALL.map(|reason| counter!("weir_payloads_dropped_total", "reason" => reason.as_str())),
            pending: gauge!("weir_payloads_pending"),
            pending_bytes: gauge!("weir_payloads_pending_bytes"),
        }
    }

    fn publish(&self, queue: &PayloadQueue) {
        let ledger = queue.ledger();
        self.offered.absolute(ledger.offered);
        self.recovered.absolute(ledger.recovered);
        self.stored.absolute(ledger.stored);
        self.spooled.set(ledger.spooled as f64);
        for (counter, reason) in self.dropped.iter().zip(Reason::ALL) {
            counter.absolute(ledger.dropped(reason));
        }
        self.pending.set(ledger.pending as f64);
        self.pending_bytes.set(ledger.pending_bytes as f64);
    }
}

struct StoreMetrics {
    busy: Gauge,
    idle: Gauge,
    waiting: Gauge,
    away: Gauge,
}

impl StoreMetrics {
    fn new(limits: Limits) -> Self {
        describe_gauge!("weir_payload_store_sockets_busy", "Uploads to the store, which is busy sockets.");
        describe_gauge!("weir_payload_store_sockets_idle", "Open sockets to the store that carry nothing.");
        describe_gauge!("weir_payload_store_sockets_waiting", "Payloads that wait for one of the uploads' sockets.");
        describe_gauge!("weir_payload_store_sockets_limit", "The most uploads, and so sockets, at once.");
        describe_gauge!(
            "weir_payload_store_away",
            "1 while uploads are held back because the store fails, apart from a probe now and then."
        );
        gauge!("weir_payload_store_sockets_limit").set(limits.uploads as f64);
        StoreMetrics {
            busy: gauge!("weir_payload_store_sockets_busy"),
            idle: gauge!("weir_payload_store_sockets_idle"),
            waiting: gauge!("weir_payload_store_sockets_waiting"),
            away: gauge!("weir_payload_store_away"),
        }
    }

    fn publish(&self, queue: &PayloadQueue, store: &dyn Store, is_away: bool) {
        let (busy, waiting) = queue.slots();
        self.busy.set(busy as f64);
        self.idle.set(store.open_sockets().saturating_sub(busy) as f64);
        self.waiting.set(waiting as f64);
        self.away.set(f64::from(u8::from(is_away)));
    }
}

struct SpoolMetrics {
    bytes: Gauge,
    writable: Gauge,
}

impl SpoolMetrics {
    fn new(limit: u64) -> Self {
        use metrics::Unit::Bytes;
        describe_gauge!("weir_payload_spool_bytes", Bytes, "What the spooled payloads take on disk.");
        describe_gauge!("weir_payload_spool_limit_bytes", Bytes, "The most that spooled payloads may take on disk.");
        describe_gauge!(
            "weir_payload_spool_writable",
            "0 when the disk did not take the last payload: full, read-only, broken."
        );
        gauge!("weir_payload_spool_limit_bytes").set(limit as f64);
        SpoolMetrics { bytes: gauge!("weir_payload_spool_bytes"), writable: gauge!("weir_payload_spool_writable") }
    }

    fn publish(&self, load: Load) {
        self.bytes.set(load.bytes as f64);
        self.writable.set(f64::from(u8::from(load.is_writable)));
    }
}
