//! How much processor time the redaction of one payload may take, and why a redaction is given up.
//!
//! Processor time of the thread and not time on the clock: an encoder thread steps back behind the tasks, and a payload
//! must not lose its transcript because the machine was busy.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The clock is read once in so many bytes. A pass makes at least 20 MB a second, so that is every few milliseconds.
const BYTES_BETWEEN_CHECKS: usize = 64 * 1024;

/// What a search counts for that may go on to the text's end: after a few of them the clock is read, however long the text.
const BYTES_OF_A_SEARCH: usize = 16 * 1024;

/// What each text counts for, however short.
const BYTES_OF_A_TEXT: usize = 128;

/// A build for debugging is that much slower, and must not lose transcripts for it.
const DEBUG_FACTOR: u32 = if cfg!(debug_assertions) { 30 } else { 1 };

/// Why only the metadata of a payload is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It took longer than it may.
    Overdue,
    /// The run named more secrets than can be looked for.
    TooManySecrets,
    /// The redaction has a bug.
    Panicked,
}

impl Stop {
    pub const ALL: [Stop; 3] = [Stop::Overdue, Stop::TooManySecrets, Stop::Panicked];

    /// The name used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Stop::Overdue => "overdue",
            Stop::TooManySecrets => "too_many_secrets",
            Stop::Panicked => "panicked",
        }
    }

    /// For the reader of the payload.
    pub fn explanation(self) -> &'static str {
        match self {
            Stop::Overdue => {
                "only metadata was kept: redacting the rest took longer than payloads.redaction.time_limit"
            }
            Stop::TooManySecrets => "only metadata was kept: the run named more secrets than can be looked for",
            Stop::Panicked => "only metadata was kept: redacting the rest failed, which is a bug of weir",
        }
    }
}

/// What one payload may still spend.
pub(super) struct Budget {
    ends: Duration,
    unchecked_bytes: usize,
}

impl Budget {
    pub fn new(limit: Duration) -> Self {
        Budget { ends: thread_time().saturating_add(limit.saturating_mul(DEBUG_FACTOR)), unchecked_bytes: 0 }
    }

    /// Before or while `bytes` are looked at: fails when the time is over.
    pub fn spend(&mut self, bytes: usize) -> Result<(), Stop> {
        self.unchecked_bytes += bytes;
        if self.unchecked_bytes < BYTES_BETWEEN_CHECKS {
            return Ok(());
        }
        self.unchecked_bytes = 0;
        self.check()
    }

    /// Before a text is looked at, of `bytes`.
    pub fn spend_text(&mut self, bytes: usize) -> Result<(), Stop> {
        self.spend(bytes + BYTES_OF_A_TEXT)
    }

    /// Before or after `searches` that may each have gone on to the text's end, and found little there.
    pub fn spend_searches(&mut self, searches: usize) -> Result<(), Stop> {
        self.spend(searches.saturating_mul(BYTES_OF_A_SEARCH))
    }

    /// Fails when the time is over.
    pub fn check(&self) -> Result<(), Stop> {
        if thread_time() >= self.ends { Err(Stop::Overdue) } else { Ok(()) }
    }
}

/// The processor time that this thread has had.
pub(super) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_when_its_time_is_over() {
        let mut none = Budget::new(Duration::ZERO);
        assert_eq!(none.spend(10), Ok(()), "the clock is not read for a few bytes");
        assert_eq!(none.spend(BYTES_BETWEEN_CHECKS), Err(Stop::Overdue));
        assert_eq!(none.spend_searches(1), Ok(()));
        assert_eq!(none.spend_searches(3), Err(Stop::Overdue), "after few of them it is");
        let mut enough = Budget::new(Duration::from_secs(3600));
        assert_eq!(enough.spend(BYTES_BETWEEN_CHECKS), Ok(()));
    }
}
