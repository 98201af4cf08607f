//! What weir knows of its store: whether it may be asked, and whether it gets on with what it was given.
//!
//! Who uploads asks for [`Leave`] and says what came of it. The queue hears when the store goes away and when it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::breaker::{Breaker, Verdict};
use super::progress::Progress;
use super::upload::{PayloadQueue, UploadError};

/// The health of one store.
pub(super) struct Health {
    queue: Arc<PayloadQueue>,
    breaker: Mutex<Breaker>,
    progress: Mutex<Progress>,
    taken: AtomicU64,
}

/// The breaker's leave for one upload. Dropping it without a result lets another have it.
pub(super) struct Leave {
    health: Arc<Health>,
    is_probe: bool,
    is_used: bool,
}

/// Counts one upload as under way while it lives.
pub(super) struct UnderWay<'h> {
    health: &'h Health,
    was_answered: bool,
}

impl Health {
    pub fn new(queue: &Arc<PayloadQueue>) -> Self {
        Health { queue: queue.clone(), breaker: Mutex::default(), progress: Mutex::default(), taken: AtomicU64::new(0) }
    }

    /// Asks for the breaker's leave.
    pub fn ask(self: &Arc<Self>) -> Option<Leave> {
        let is_probe = match self.breaker.lock().ask(Instant::now()) {
            Verdict::Pass => false,
            Verdict::Probe => true,
            Verdict::Wait { .. } => return None,
        };
        Some(Leave { health: self.clone(), is_probe, is_used: false })
    }

    /// When the store may be asked again; none when it may be now.
    pub fn waits_until(&self) -> Option<Instant> {
        self.breaker.lock().waits_until(Instant::now())
    }

    /// If the store is away, it may be asked at once.
    pub fn hasten(&self) {
        self.breaker.lock().hasten(Instant::now());
    }

    pub fn is_away(&self) -> bool {
        self.breaker.lock().is_open()
    }

    /// Since when the store is away, if it is.
    pub fn away_since(&self) -> Option<Instant> {
        self.breaker.lock().open_since()
    }

    /// What the store has taken so far.
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

    /// An upload begins.
    pub fn begins(&self) -> UnderWay<'_> {
        self.progress.lock().begins(Instant::now());
        UnderWay { health: self, was_answered: false }
    }
}

impl Leave {
    /// What came of the upload.
    pub fn learn(mut self, result: &Result<(), UploadError>) {
        self.is_used = true;
        let mut breaker = self.health.breaker.lock();
        match result {
            // A store that refuses one payload for what it is works.
            Err(error) if !error.is_its_own() => {
                let has_opened = breaker.failed(Instant::now(), self.is_probe);
                if has_opened && !self.is_probe {
                    self.health.queue.store_is_away(true);
                    drop(breaker);
                    tracing::warn!("uploads are held back, because the store fails: {error}");
                }
            }
            _ => {
                self.health.taken.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                if let Some(away_since) = breaker.succeeded() {
                    self.health.queue.store_is_away(false);
                    drop(breaker);
                    let away_seconds = away_since.elapsed().as_secs_f64();
                    tracing::info!(away_seconds, "the store is back: uploads are no longer held back");
                }
            }
        }
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if self.is_probe && !self.is_used {
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
