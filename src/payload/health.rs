//! What weir knows of its store: whether it may be asked, and whether it gets on with what it was given.
//!
//! Who uploads asks for [`Leave`] and says what came of it. The queue hears when the store goes away and when it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::breaker::Breaker;
use super::progress::Progress;
use super::refusals::Refusals;
use super::store::StoreError;
use super::upload::{PayloadQueue, UploadError};

/// The health of one store.
pub(super) struct Health {
    queue: Arc<PayloadQueue>,
    /// Without a spool the payloads that hold all slots may be those that the store never takes, and only a probe can tell.
    has_spool: bool,
    breaker: Mutex<Breaker>,
    progress: Mutex<Progress>,
    taken: AtomicU64,
    back: Notify,
}

/// The breaker's leave for one upload. Dropping a probe's without a result lets another be the probe.
pub(super) struct Leave {
    health: Arc<Health>,
    of: Of,
    is_used: bool,
}

/// What is uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Payload,
    /// A payload whose failure would say nothing of the store.
    Suspect,
    Probe,
}

/// Counts one upload as under way while it lives.
pub(super) struct UnderWay<'h> {
    health: &'h Health,
    was_answered: bool,
}

impl Health {
    pub fn new(queue: &Arc<PayloadQueue>, has_spool: bool) -> Self {
        Health {
            queue: queue.clone(),
            has_spool,
            breaker: Mutex::default(),
            progress: Mutex::default(),
            taken: AtomicU64::new(0),
            back: Notify::new(),
        }
    }

    /// Leave to upload a payload; none while the store is away.
    pub fn leave(self: &Arc<Self>, refusals: Refusals) -> Option<Leave> {
        let of = if refusals.is_suspect() { Of::Suspect } else { Of::Payload };
        self.breaker.lock().is_closed().then(|| Leave::new(self, of))
    }

    /// Leave to look whether a store that is away is back, if it is time for that.
    pub fn probe(self: &Arc<Self>) -> Option<Leave> {
        self.breaker.lock().probe(Instant::now()).then(|| Leave::new(self, Of::Probe))
    }

    /// Waits until a store that was away is back.
    pub async fn back(&self) {
        self.back.notified().await;
    }

    /// If the store is away, it may be probed at once.
    pub fn hasten(&self) {
        self.breaker.lock().hasten(Instant::now());
    }

    pub fn is_away(&self) -> bool {
        !self.breaker.lock().is_closed()
    }

    /// Since when the store is away, if it is.
    pub fn away_since(&self) -> Option<Instant> {
        self.breaker.lock().open_since()
    }

    /// What the store has taken so far, probes apart where there is a spool.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// For how long the store has answered none of the uploads under way; nothing where none is.
    pub fn silent_for(&self, now: Instant) -> Duration {
        self.progress.lock().silent_for(now)
    }

    /// A store that has been silent for so long counts as away.
    pub fn stalled(&self, now: Instant, silent_for: Duration) {
        let mut breaker = self.breaker.lock();
        if breaker.stalled(now) {
            self.queue.store_is_away(true);
            drop(breaker);
            tracing::warn!("uploads are held back, because the store has answered none for {silent_for:.0?}");
        }
    }

    /// An upload begins. None where its end would say nothing of the store.
    pub fn begins(&self, leave: &Leave) -> Option<UnderWay<'_>> {
        if leave.of == Of::Suspect {
            return None;
        }
        self.progress.lock().begins(Instant::now());
        Some(UnderWay { health: self, was_answered: false })
    }
}

impl Leave {
    fn new(health: &Arc<Health>, of: Of) -> Self {
        Leave { health: health.clone(), of, is_used: false }
    }

    /// What came of the upload.
    pub fn learn(mut self, result: &Result<(), UploadError>) {
        let error = match result {
            // Nobody has asked the store.
            Err(UploadError::Store(StoreError::InvalidKey { .. })) => return,
            // A store that refuses one payload for what it is works.
            Err(error) if error.is_its_own() => None,
            Err(_) if self.of == Of::Suspect => return,
            Err(error) => Some(error),
            Ok(()) => None,
        };
        self.is_used = true;
        let health = &*self.health;
        let mut breaker = health.breaker.lock();
        if let Some(error) = error {
            if breaker.failed(Instant::now(), self.of == Of::Probe) {
                health.queue.store_is_away(true);
                drop(breaker);
                tracing::warn!("uploads are held back, because the store fails: {error}");
            }
            return;
        }
        let says_nothing_of_payloads = self.of == Of::Probe && health.has_spool;
        health.taken.fetch_add(u64::from(result.is_ok() && !says_nothing_of_payloads), Ordering::Relaxed);
        if let Some(away_since) = breaker.succeeded(says_nothing_of_payloads) {
            health.queue.store_is_away(false);
            drop(breaker);
            health.back.notify_one();
            let away_seconds = away_since.elapsed().as_secs_f64();
            tracing::info!(away_seconds, "the store is back: uploads are no longer held back");
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if self.of == Of::Probe && !self.is_used {
            self.health.breaker.lock().released(Instant::now());
        }
    }
}

impl UnderWay<'_> {
    /// It is over: the store answered, or it did not.
    pub fn ends(mut self, was_answered: bool) {
        self.was_answered = was_answered;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.health.progress.lock().ends(Instant::now(), self.was_answered);
    }
}
