//! Where an encoded payload goes: to the store, or, when that is down or slow, to the spool.
//!
//! Each upload holds one of the slots, which bound the connections. What the store did not take goes to the spool if
//! there is one and the failure was not the payload's own; otherwise it is lost and counted. While the breaker is open,
//! payloads go to the spool without asking the store.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::breaker::{Breaker, Verdict};
use super::ledger::Reason;
use super::metrics::Metrics;
use super::queue::{End, Pending, Queue};
use super::record::Record;
use super::sample::Value;
use super::spool::{Spool, SpoolError};
use super::store::{Object, Store, StoreError, UPLOAD_DEADLINE};
use crate::lifecycle::Lifecycle;
use crate::telemetry::notice::Notice;

/// At most one line about lost payloads in this time.
const LOSS_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// At most one line about spooled payloads, or about uploads that wait for a slot, in this time.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// What waits in the queue.
pub(super) struct Offered {
    pub record: Record,
    pub value: Value,
}

/// A payload on its way, boxed so that it is small to move.
pub(super) type PendingPayload = Pending<Box<Offered>>;

/// The queue of payloads.
pub(super) type PayloadQueue = Queue<Box<Offered>>;

/// What all encoders and uploads share.
pub(super) struct Uploader {
    store: Arc<dyn Store>,
    pub spool: Option<Spool>,
    /// Told when something was spooled.
    pub spooled: Notify,
    pub queue: Arc<PayloadQueue>,
    pub metrics: Metrics,
    breaker: Mutex<Breaker>,
    hurry: CancellationToken,
    lifecycle: Lifecycle,
    losses: Notice,
    detours: Notice,
    waits: Notice,
    uploads: usize,
}

/// Why a payload is not in the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// The store said so.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It said nothing.
    #[error("{location} did not answer within {UPLOAD_DEADLINE:?}")]
    Silent {
        /// Where the payload was to be.
        location: String,
    },
    /// The process is about to end.
    #[error("the process is about to end")]
    Hurried,
}

impl UploadError {
    /// Whether the payload itself is what the store does not take.
    pub fn is_its_own(&self) -> bool {
        matches!(self, UploadError::Store(error) if error.is_permanent())
    }
}

/// The breaker's leave for one upload. Dropping it without a result lets another have it.
pub(super) struct Leave {
    uploader: Arc<Uploader>,
    is_probe: bool,
    is_used: bool,
}

impl Uploader {
    pub fn new(
        store: Arc<dyn Store>,
        spool: Option<Spool>,
        queue: &Arc<PayloadQueue>,
        metrics: Metrics,
        lifecycle: &Lifecycle,
        uploads: usize,
    ) -> Self {
        Uploader {
            store,
            spool,
            spooled: Notify::new(),
            queue: queue.clone(),
            metrics,
            breaker: Mutex::default(),
            hurry: CancellationToken::new(),
            lifecycle: lifecycle.clone(),
            losses: Notice::every(LOSS_LOG_INTERVAL),
            detours: Notice::every(NOTICE_INTERVAL),
            waits: Notice::every(NOTICE_INTERVAL),
            uploads,
        }
    }

    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// When the store may be asked again; none when it may be now.
    pub fn waits_until(&self) -> Option<Instant> {
        self.breaker.lock().waits_until(Instant::now())
    }

    pub fn is_store_away(&self) -> bool {
        self.breaker.lock().is_open()
    }

    pub fn spool_load(&self) -> Option<super::spool::Load> {
        self.spool.as_ref().map(Spool::load)
    }

    /// Opens the spool, if there is one and it is not open. What an earlier life has left is counted before anyone can
    /// take it out.
    pub fn open_spool(&self) {
        let Some(spool) = &self.spool else { return };
        let left = spool.open();
        if left.count() == 0 {
            return;
        }
        self.queue.recover(left.count());
        let given_up = spool.admit(left);
        if given_up > 0 {
            self.queue.forget_spooled(given_up, Reason::SpoolFull);
            self.log_loss(Reason::SpoolFull, "an earlier life had left more than payloads.spool.max_bytes");
        }
        self.spooled.notify_one();
    }

    /// Leaves the spool to the next life of the process.
    pub fn close_spool(&self) {
        self.spool.iter().for_each(Spool::close);
    }

    /// What is being uploaded, and all that follows, goes to the spool.
    pub fn hurry(&self) {
        self.queue.hurry();
        self.hurry.cancel();
    }

    /// Asks for the breaker's leave.
    pub fn leave(self: &Arc<Self>) -> Option<Leave> {
        let is_probe = match self.breaker.lock().ask(Instant::now()) {
            Verdict::Pass => false,
            Verdict::Probe => true,
            Verdict::Wait { .. } => return None,
        };
        Some(Leave { uploader: self.clone(), is_probe, is_used: false })
    }

    /// Starts the upload of a payload that holds a slot.
    pub fn start(self: &Arc<Self>, object: Object, value: Value, pending: PendingPayload, leave: Leave) {
        let (uploader, stop) = (self.clone(), self.lifecycle.token());
        self.lifecycle.spawn("payload upload", async move {
            // Letting go of `pending` at a stop counts it as lost.
            stop.run_until_cancelled(uploader.upload(object, value, pending, leave)).await;
        });
    }

    async fn upload(self: Arc<Self>, object: Object, value: Value, pending: PendingPayload, leave: Leave) {
        match self.put(&object, leave).await {
            Ok(()) => pending.end(End::Stored),
            Err(error) if error.is_its_own() || self.spool.is_none() => {
                self.lost(pending, Reason::Store, &error.to_string());
            }
            Err(error) => {
                let uploader = self.clone();
                let detour = move || uploader.detour(object, value, pending, &error.to_string());
                // The closure accounts for the payload, also when nobody waits for it any more.
                let _ = self.lifecycle.blocking("payload spool", detour).await;
            }
        }
    }

    /// One upload, and what the breaker learns from it.
    pub async fn put(&self, object: &Object, leave: Leave) -> Result<(), UploadError> {
        let started = Instant::now();
        let put = tokio::time::timeout(UPLOAD_DEADLINE, self.store.put(object));
        let result = tokio::select! {
            biased;
            result = put => result,
            () = self.hurry.cancelled() => return Err(UploadError::Hurried),
        };
        self.metrics.upload_duration.record(started.elapsed());
        let result = match result {
            Ok(result) => result.map_err(UploadError::from),
            Err(_) => Err(UploadError::Silent { location: self.store.location(&object.key) }),
        };
        leave.learn(&result);
        result
    }

    /// To the spool, because of `why`, or lost where there is none. Blocks on the disk.
    pub fn detour(&self, object: Object, value: Value, pending: PendingPayload, why: &str) {
        let Some(spool) = &self.spool else { return self.lost(pending, Reason::Store, why) };
        self.open_spool();
        let written = spool.write(&object, value);
        self.queue.forget_spooled(written.evicted, Reason::SpoolFull);
        match written.entry {
            Ok(entry) => {
                // Counted first: what can be taken out of the spool is in its column.
                pending.end(End::Spooled);
                spool.publish(entry);
                self.spooled.notify_one();
                if let Some(spooled) = self.detours.due() {
                    tracing::warn!(spooled, spool = spool.location(), "payloads go to the spool for now: {why}");
                }
            }
            Err(error) => {
                let reason = if matches!(error, SpoolError::Full) { Reason::SpoolFull } else { Reason::SpoolDisk };
                self.lost(pending, reason, &format!("{error} ({why})"));
            }
        }
    }

    /// Counts the loss, and logs it if none was logged for a while.
    pub fn lost(&self, pending: PendingPayload, reason: Reason, what: &str) {
        pending.end(End::Dropped(reason));
        self.log_loss(reason, what);
    }

    pub fn log_loss(&self, reason: Reason, what: &str) {
        if let Some(lost) = self.losses.due() {
            tracing::warn!(lost, reason = reason.as_str(), "payloads are being lost: {what}");
        }
    }

    /// Says, once a minute, that payloads wait for a slot.
    pub fn log_wait(&self) {
        if !self.hurry.is_cancelled() && self.waits.due().is_some() {
            let uploads = self.uploads;
            tracing::warn!(
                uploads,
                "payloads wait to be uploaded: all {uploads} sockets to the store are busy; raise payloads.uploads if \
                 the store can take more"
            );
        }
    }
}

impl Leave {
    fn learn(mut self, result: &Result<(), UploadError>) {
        self.is_used = true;
        let mut breaker = self.uploader.breaker.lock();
        match result {
            // A store that refuses one payload for what it is works.
            Ok(()) => breaker.succeeded(),
            Err(error) if error.is_its_own() => breaker.succeeded(),
            Err(error) => {
                let has_opened = breaker.failed(Instant::now(), self.is_probe);
                drop(breaker);
                if has_opened && !self.is_probe {
                    tracing::warn!("uploads are held back, because the store fails: {error}");
                }
            }
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if self.is_probe && !self.is_used {
            self.uploader.breaker.lock().released(Instant::now());
        }
    }
}
