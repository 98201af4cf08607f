//! When a worker that the registry no longer has is gone for whoever follows the pool.
//!
//! A registry that comes back may have lost its memory, and its workers may hear later than their followers that it is
//! back. So nobody who may live is forgotten at once: the next heartbeat of each worker that lives brings it back, and one
//! more [`TTL`] is the time for that.

use tokio::time::Instant;

use super::{Presence, State, TTL};

/// When the registry was last away, as far as that still matters.
#[derive(Debug, Default)]
pub struct Absence {
    back_since: Option<Instant>,
}

impl Absence {
    /// It answers again after it had been away. Whoever was missing before could not be heard of, and is missing only since
    /// now.
    pub fn ends(&mut self, now: Instant) {
        self.back_since = Some(now);
    }

    /// Whether a worker that is said to be gone may be one that has not heard yet that the registry is back. One that was
    /// draining has left.
    pub fn excuses(&self, worker: &Presence, now: Instant) -> bool {
        let is_back = self.back_since.is_some_and(|since| now.saturating_duration_since(since) < TTL);
        is_back && worker.state != State::Draining
    }
}

/// Whether a worker that is missing since then is gone.
pub fn is_gone(missing_since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(missing_since) >= TTL
}
