//! What is said about lost payloads: at most one line per reason in so many seconds, each with how many were lost since
//! the one before. Pure: ledger and time come in from outside.
//!
//! The numbers are the ledger's, so that none is missing, whoever lost it; what only the place of the loss knows, why, is
//! left here by it.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::ledger::{Ledger, Reason};

/// At most one line about each reason in this time.
const INTERVAL: Duration = Duration::from_secs(10);

/// How much of a growing number has been told, and when.
#[derive(Debug)]
pub(super) struct Tally {
    interval: Duration,
    last_line: Option<Instant>,
    told: u64,
}

impl Tally {
    /// At most one line in each `interval`.
    pub fn every(interval: Duration) -> Self {
        Tally { interval, last_line: None, told: 0 }
    }

    /// What there is to be told now of a number that is `total` in all: what has come since the last line, if that is long
    /// enough ago or no other will follow.
    pub fn due(&mut self, total: u64, now: Instant, is_last: bool) -> Option<u64> {
        let is_early = self.last_line.is_some_and(|last| now.saturating_duration_since(last) < self.interval);
        if total == self.told || is_early && !is_last {
            return None;
        }
        self.last_line = Some(now);
        Some(total - std::mem::replace(&mut self.told, total))
    }
}

/// What one line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub lost: u64,
    pub reason: Reason,
    pub why: String,
    /// Some were lost since the last look: otherwise it may be over, and the line is late.
    pub goes_on: bool,
}

/// What has been told of each reason.
#[derive(Debug)]
pub(super) struct Losses(Mutex<[Of; Reason::ALL.len()]>);

#[derive(Debug)]
struct Of {
    tally: Tally,
    /// The number at the last look.
    seen: u64,
    why: Option<String>,
}

impl Losses {
    pub fn new() -> Self {
        Losses(Mutex::new(Reason::ALL.map(|_| Of { tally: Tally::every(INTERVAL), seen: 0, why: None })))
    }

    /// Why the last payload was lost for this reason.
    pub fn because(&self, reason: Reason, why: &str) {
        self.0.lock()[reason as usize].why = Some(why.to_owned());
    }

    /// The lines that are due, at a look.
    pub fn due(&self, ledger: &Ledger, now: Instant, is_last: bool) -> Vec<Loss> {
        let line = |(of, reason): (&mut Of, Reason)| {
            let total = ledger.dropped(reason);
            let has_grown = std::mem::replace(&mut of.seen, total) != total;
            let lost = of.tally.due(total, now, is_last)?;
            let why = of.why.take().unwrap_or_else(|| usual(reason).to_owned());
            Some(Loss { lost, reason, why, goes_on: has_grown && !is_last })
        };
        self.0.lock().iter_mut().zip(Reason::ALL).filter_map(line).collect()
    }
}

/// Why, where the place of the loss says nothing.
fn usual(reason: Reason) -> &'static str {
    match reason {
        Reason::QueueItems => "as many are pending as payloads.queue_items allows; encoders or store do not keep up",
        Reason::QueueBytes => "what is pending holds payloads.queue_bytes; encoders or store do not keep up",
        Reason::Encode => "they could not be encoded",
        Reason::Store => "the store did not take them",
        Reason::Shutdown => "the worker stopped before they were stored",
        Reason::SpoolFull => "the spool holds payloads.spool.max_bytes, or 100,000 payloads, and the oldest give way",
        Reason::SpoolAge => "they lay in the spool for longer than payloads.spool.max_age",
        Reason::SpoolDisk => "the disk did not take them",
        Reason::SpoolCorrupt => "they were damaged in the spool",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_reason_has_a_line_now_and_then_and_none_is_left_untold() {
        let (losses, start, mut ledger) = (Losses::new(), Instant::now(), Ledger::default());
        let told = |ledger: &Ledger, seconds: u32, is_last| {
            let due = losses.due(ledger, start + SECOND * seconds, is_last);
            due.into_iter().map(|loss| (loss.reason, loss.lost)).collect::<Vec<_>>()
        };
        assert_eq!(told(&ledger, 0, false), []);
        ledger.drop_for(Reason::Store, 1);
        assert_eq!(told(&ledger, 1, false), [(Reason::Store, 1)]);
        ledger.drop_for(Reason::Store, 6);
        ledger.drop_for(Reason::QueueItems, 3);
        assert_eq!(told(&ledger, 2, false), [(Reason::QueueItems, 3)], "one reason does not hide another");
        assert_eq!(told(&ledger, 10, false), []);
        assert_eq!(told(&ledger, 11, false), [(Reason::Store, 6)], "though none was lost since");
        ledger.drop_for(Reason::Store, 2);
        assert_eq!(told(&ledger, 12, true), [(Reason::Store, 2)]);
        assert_eq!(told(&ledger, 60, true), []);
    }

    #[test]
    fn a_line_that_comes_when_it_is_over_says_so() {
        let (losses, start, mut ledger) = (Losses::new(), Instant::now(), Ledger::default());
        let told = |ledger: &Ledger, seconds: u32, is_last| {
            let due = losses.due(ledger, start + SECOND * seconds, is_last);
            due.into_iter().map(|loss| (loss.lost, loss.goes_on)).collect::<Vec<_>>()
        };
        ledger.drop_for(Reason::Store, 1);
        assert_eq!(told(&ledger, 0, false), [(1, true)]);
        ledger.drop_for(Reason::Store, 2);
        assert_eq!(told(&ledger, 9, false), []);
        assert_eq!(told(&ledger, 10, false), [(2, false)], "none was lost since the last look");
        ledger.drop_for(Reason::Store, 4);
        assert_eq!(told(&ledger, 20, false), [(4, true)]);
        ledger.drop_for(Reason::Store, 8);
        assert_eq!(told(&ledger, 21, true), [(8, false)]);
    }

    #[test]
    fn a_line_says_why() {
        let (losses, now, mut ledger) = (Losses::new(), Instant::now(), Ledger::default());
        for reason in Reason::ALL {
            ledger.drop_for(reason, 1);
        }
        losses.because(Reason::Store, "the bucket is gone");
        let lines = losses.due(&ledger, now, false);
        assert_eq!(lines.len(), Reason::ALL.len());
        let why = |reason| &lines.iter().find(|loss| loss.reason == reason).expect("a line").why;
        assert_eq!(why(Reason::Store), "the bucket is gone");
        assert!(why(Reason::QueueItems).contains("payloads.queue_items"));
    }
}
