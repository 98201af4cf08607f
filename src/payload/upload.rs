//! Where an encoded payload goes: to the store, or, when that is down or slow, to the spool.
//!
//! Each upload holds one of the slots, which bound the connections. What the store did not take goes to the spool, unless
//! the failure was the payload's own: then it is lost and counted. While the breaker is open, payloads go to the spool
//! without asking the store; so do those that are left at a stop, as soon as the store is seen not to keep up
//! ([`Uploader::falls_behind`]).
//!
//! Where there is no spool, a payload keeps its slot and is tried again: an outage fills the slots, then the queue, and
//! only what has no room there is lost. A probe of weir's own finds out whether the store is back ([`Uploader::probe`]), for
//! the payloads that have slots may be those that the store never takes. At a stop a store that is away is asked once more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::{Health, Leave};
use super::ledger::Reason;
use super::losses::Losses;
use super::metrics::Metrics;
use super::progress::keeps_up;
use super::queue::{End, Pending, Queue};
use super::record::Record;
use super::refusals::Refusals;
use super::sample::Value;
use super::spool::{Spool, SpoolError};
use super::store::{Object, Store, StoreError, UPLOAD_DEADLINE};
use crate::lifecycle::Lifecycle;
use crate::telemetry::notice::Notice;

/// At most one line about uploads that wait for a slot in this time.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// A store that answers none of the uploads under way for so long does not keep up with a stop.
const SILENCE: Duration = Duration::from_secs(1);

/// Without a spool, how often the store refuses a payload while it takes others, before that is given up.
const REFUSALS: u32 = 5;

/// Without a spool, the pause between two looks of a payload whether it may be tried.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a payload is not uploaded while the breaker is open.
pub(super) const AWAY: &str = "the store is away, and is asked again now and then";

/// How often a stop looks whether the store keeps up.
const LOOK: Duration = Duration::from_millis(50);

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
    pub losses: Losses,
    pub health: Arc<Health>,
    hurry: CancellationToken,
    interrupt: CancellationToken,
    failed_probes: AtomicU64,
    /// What is put as a probe.
    probe: Object,
    lifecycle: Lifecycle,
    detours: Mutex<Detours>,
    waits: Notice,
    limits: Limits,
}

/// How much a store may be given, and how long it may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The most uploads at once.
    pub uploads: usize,
    /// Where there is a spool, a store that takes nothing for so long, while uploads are under way, counts as away.
    pub stalled_after: Duration,
}

/// How many payloads went to the spool, and why the last of them did.
#[derive(Debug, Default)]
struct Detours {
    count: u64,
    why: String,
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

impl Uploader {
    pub fn new(
        store: Arc<dyn Store>,
        spool: Option<Spool>,
        queue: &Arc<PayloadQueue>,
        metrics: Metrics,
        lifecycle: &Lifecycle,
        limits: Limits,
        probe: Object,
    ) -> Self {
        let health = Arc::new(Health::new(queue, spool.is_some()));
        Uploader {
            store,
            spool,
            spooled: Notify::new(),
            queue: queue.clone(),
            metrics,
            losses: Losses::new(),
            health,
            hurry: CancellationToken::new(),
            interrupt: CancellationToken::new(),
            failed_probes: AtomicU64::new(0),
            probe,
            lifecycle: lifecycle.clone(),
            detours: Mutex::default(),
            waits: Notice::every(NOTICE_INTERVAL),
            limits,
        }
    }

    pub fn store(&self) -> &dyn Store {
        &*self.store
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
            self.losses.because(Reason::SpoolFull, "an earlier life had left more than the spool may hold");
            self.queue.forget_spooled(given_up, Reason::SpoolFull);
        }
        self.spooled.notify_one();
    }

    /// Leaves the spool to the next life of the process.
    pub fn close_spool(&self) {
        self.spool.iter().for_each(Spool::close);
    }

    /// What is not being uploaded yet goes to the spool, or, where there is none, waits for no store that is away.
    pub fn hurry(&self) {
        self.hurry.cancel();
        self.queue.hurry();
    }

    /// What is being uploaded goes to the spool, too.
    pub fn interrupt(&self) {
        self.hurry();
        self.interrupt.cancel();
    }

    /// At a stop: waits until the store is seen not to take in time what is pending. It is away; or it has answered nothing
    /// for a second; or it is so slow that it would not be through by `until`; or it is then. Without a spool, waits until it
    /// is away and a probe has failed since the stop began, or it is `until`.
    pub async fn falls_behind(&self, until: Instant) {
        let Some(spool) = &self.spool else { return self.is_away_still(until).await };
        let (started, at_first) = (Instant::now(), self.queue.ledger().pending);
        loop {
            let now = Instant::now();
            let (left, (_, waiting)) = (self.queue.ledger().pending, self.queue.slots());
            let ended = at_first.saturating_sub(left);
            let is_in_time = waiting == 0 || keeps_up(ended, now - started, left, until.saturating_duration_since(now));
            let is_behind = self.health.is_away() || self.health.silent_for(now) >= SILENCE || !is_in_time;
            if now >= until || is_behind && spool.load().takes_more() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn is_away_still(&self, until: Instant) {
        let failed_probes = || self.failed_probes.load(Ordering::Relaxed);
        let at_first = failed_probes();
        self.health.hasten();
        while Instant::now() < until && !(self.health.is_away() && failed_probes() > at_first) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// At a stop: waits until uploads that are under way are worth no more waiting. The store is away, or it is `until`.
    pub async fn is_hopeless(&self, until: Instant) {
        while Instant::now() < until && !self.health.is_away() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Where there is a spool, a store that hangs counts as away before the time-outs of its uploads are over.
    pub fn look_for_a_stall(&self, now: Instant) {
        let silent_for = self.health.silent_for(now);
        let is_stalled = silent_for >= self.limits.stalled_after;
        if is_stalled && self.spool_load().is_some_and(|load| load.takes_more()) {
            self.health.stalled(now, silent_for);
        }
    }

    /// Asks a store that is away whether it is back, if it is time for that.
    pub fn probe(self: &Arc<Self>) {
        let Some(leave) = self.health.probe() else { return };
        let (uploader, stop) = (self.clone(), self.lifecycle.token());
        self.lifecycle.spawn("payload probe", async move {
            let put = stop.run_until_cancelled(uploader.put(&uploader.probe, leave)).await;
            if put.is_none_or(|put| put.is_err()) {
                uploader.failed_probes.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Starts the upload of a payload that holds a slot; without the breaker's leave it waits for that.
    pub fn start(self: &Arc<Self>, object: Object, value: Value, pending: PendingPayload, leave: Option<Leave>) {
        let (uploader, stop) = (self.clone(), self.lifecycle.token());
        self.lifecycle.spawn("payload upload", async move {
            // Letting go of `pending` at a stop counts it as lost.
            stop.run_until_cancelled(uploader.upload(object, value, pending, leave)).await;
        });
    }

    async fn upload(self: Arc<Self>, object: Object, value: Value, pending: PendingPayload, mut leave: Option<Leave>) {
        let mut refusals = Refusals::default();
        let error = loop {
            let Some(granted) = leave.take().or_else(|| self.health.leave(Refusals::default())) else {
                if self.hurry.is_cancelled() {
                    return self.lost(pending, Reason::Store, AWAY);
                }
                self.pause().await;
                continue;
            };
            let Err(error) = self.put(&object, granted).await else { return pending.end(End::Stored) };
            refusals.add(self.health.taken());
            let is_tried_again = !error.is_its_own() && refusals.count() < REFUSALS && !self.hurry.is_cancelled();
            if !is_tried_again || self.spool.is_some() {
                break error;
            }
            self.pause().await;
        };
        if error.is_its_own() || self.spool.is_none() {
            return self.lost(pending, Reason::Store, &error.to_string());
        }
        let uploader = self.clone();
        let detour = move || uploader.detour(object, value, pending, &error.to_string());
        // The closure accounts for the payload, also when nobody waits for it any more.
        let _ = self.lifecycle.blocking("payload spool", detour).await;
    }

    async fn pause(&self) {
        self.hurry.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }

    /// One upload, and what the breaker learns from it.
    pub async fn put(&self, object: &Object, leave: Leave) -> Result<(), UploadError> {
        let started = Instant::now();
        let under_way = self.health.begins(&leave);
        let put = tokio::time::timeout(UPLOAD_DEADLINE, self.store.put(object));
        let result = tokio::select! {
            biased;
            result = put => result,
            () = self.interrupt.cancelled() => return Err(UploadError::Hurried),
        };
        self.metrics.upload_duration.record(started.elapsed());
        let result = match result {
            Ok(result) => result.map_err(UploadError::from),
            Err(_) => Err(UploadError::Silent { location: self.store.location(&object.key) }),
        };
        if let Some(under_way) = under_way {
            under_way.ends(result.as_ref().err().is_none_or(UploadError::is_its_own));
        }
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
                let mut detours = self.detours.lock();
                detours.count += 1;
                if detours.why != why {
                    detours.why = why.to_owned();
                }
            }
            Err(error) => {
                let reason = if matches!(error, SpoolError::Full) { Reason::SpoolFull } else { Reason::SpoolDisk };
                self.lost(pending, reason, &format!("{error} ({why})"));
            }
        }
    }

    /// How many payloads went to the spool so far, and why the last of them did.
    pub fn detoured(&self) -> (u64, String) {
        let detours = self.detours.lock();
        (detours.count, detours.why.clone())
    }

    /// Counts the loss; the watch tells of it.
    pub fn lost(&self, pending: PendingPayload, reason: Reason, why: &str) {
        self.losses.because(reason, why);
        pending.end(End::Dropped(reason));
    }

    /// Says, once a minute, that payloads wait for a slot.
    pub fn log_wait(&self) {
        if !self.hurry.is_cancelled() && self.waits.due().is_some() {
            let uploads = self.limits.uploads;
            tracing::warn!(
                uploads,
                "payloads wait to be uploaded: all {uploads} sockets to the store are busy; raise payloads.uploads if \
                 the store can take more"
            );
        }
    }
}
