//! What may be tried again, when, and how often: pure, with the time passed in.
//!
//! Only what has provably not started is ever sent again: a typed refusal with `started=no`, or a request that never
//! arrived. Everything else ends as "outcome unknown"; a second run by accident would be
//! worse than an error.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::Status;

use crate::wire::error::{describe, never_arrived};
use crate::wire::{Reason, Retry, Started, TaskError};

/// Attempts in quick succession; after them the task waits a moment in its old place.
const QUICK_ATTEMPTS: u32 = 3;

/// The moment: long enough that a view which sent three calls astray has been corrected.
const PAUSE: Duration = Duration::from_millis(50);

/// How many attempts may come at once after a time with few.
const BURST_SECONDS: f64 = 1.0;

/// `[router.retry]`: how many further attempts the router makes, of all tasks together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Further attempts per task, on average, 0 to 10.
    pub ratio: f64,
    /// Beside those, so many per second, 1 to 100000.
    pub per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config { ratio: 0.2, per_second: 100 }
    }
}

impl Config {
    /// What is wrong with it, by key.
    pub fn check(&self) -> Result<(), String> {
        let Config { ratio, per_second } = *self;
        match () {
            () if !(0.0..=10.0).contains(&ratio) => Err(format!("ratio: {ratio} is not 0.0 to 10.0")),
            () if !(1..=100_000).contains(&per_second) => Err(format!("per_second: {per_second} is not 1 to 100000")),
            () => Ok(()),
        }
    }
}

/// A token bucket: each task adds a part of a further attempt, and each second some. What exceeds it has to wait for its
/// turn, and so refusals never cost a fleet more calls than that, whatever goes wrong.
#[derive(Debug)]
pub(super) struct Budget {
    config: Config,
    /// Attempts that may be made now; below zero, those that wait for their turn.
    tokens: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(config: Config, now: Instant) -> Self {
        Budget { tokens: f64::from(config.per_second) * BURST_SECONDS, at: now, config }
    }

    /// A task has come.
    pub(super) fn task(&mut self) {
        self.add(self.config.ratio);
    }

    /// Takes a further attempt; returns how long it has to wait.
    pub(super) fn retry(&mut self, now: Instant) -> Duration {
        let per_second = f64::from(self.config.per_second);
        self.add(now.saturating_duration_since(self.at).as_secs_f64() * per_second);
        self.at = self.at.max(now);
        self.tokens -= 1.0;
        Duration::try_from_secs_f64(-self.tokens / per_second).unwrap_or_default()
    }

    fn add(&mut self, tokens: f64) {
        self.tokens = (self.tokens + tokens).min(f64::from(self.config.per_second) * BURST_SECONDS);
    }
}

/// How a call to a worker failed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failed {
    /// No connection could be made, or the connection ended in order before the worker had looked at the request.
    Unsent(String),
    /// The worker refused: the task never ran, and another worker may take it.
    Refused(TaskError),
    /// An answer for the caller: nobody will take this task, or nobody knows what became of it.
    Final(TaskError),
}

impl Failed {
    /// Reads what a call returned. Only our own ErrorInfo counts as an answer of the worker's.
    pub(super) fn read(status: &Status) -> Self {
        match TaskError::from_status(status) {
            // A worker that lists an integration and does not know it will not know it next time either.
            Some(error) if error.reason == Reason::UnknownIntegration => Failed::Final(error),
            Some(error) if error.started == Started::No && error.retry == Retry::Elsewhere => Failed::Refused(error),
            Some(error) => Failed::Final(error),
            None if never_arrived(status) => Failed::Unsent(describe(status)),
            None => Failed::Final(TaskError::outcome_unknown(format!(
                "the call to the worker broke after the task was sent: {}",
                describe(status)
            ))),
        }
    }

    /// The label in metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Failed::Unsent(_) => "unsent",
            Failed::Refused(_) => "refused",
            Failed::Final(error) if error.reason == Reason::OutcomeUnknown => "unknown",
            Failed::Final(_) => "rejected",
        }
    }
}

/// How long a task waits before its next attempt, after `attempts` that did not start it.
pub(super) fn pause_after(attempts: u32) -> Duration {
    if attempts.is_multiple_of(QUICK_ATTEMPTS) { PAUSE } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_started_is_tried_elsewhere() {
        let refusal = TaskError::worker_full("full");
        assert_eq!(Failed::read(&refusal.to_status()), Failed::Refused(refusal));
        let invalid = TaskError::invalid("bad");
        assert_eq!(Failed::read(&invalid.to_status()), Failed::Final(invalid));
    }

    #[test]
    fn a_bare_status_means_that_nobody_knows() {
        for status in [Status::resource_exhausted("h2"), Status::unavailable("gone"), Status::cancelled("timeout")] {
            let Failed::Final(error) = Failed::read(&status) else { panic!("{status:?} is final") };
            assert_eq!((error.reason, error.started), (Reason::OutcomeUnknown, Started::Unknown));
        }
    }

    #[test]
    fn a_connection_that_was_never_made_is_proof_that_nothing_was_sent() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(tonic::ConnectError(refused.into())));
        assert_eq!(Failed::read(&status).label(), "unsent");
    }

    #[test]
    fn every_third_attempt_is_followed_by_a_pause() {
        let pauses: Vec<_> = (1..=6).map(|attempts| pause_after(attempts) > Duration::ZERO).collect();
        assert_eq!(pauses, [false, false, true, false, false, true]);
    }

    #[test]
    fn a_storm_of_refusals_makes_no_more_attempts_than_the_budget_has() {
        let began = Instant::now();
        let mut budget = Budget::new(Config { ratio: 0.5, per_second: 100 }, began);
        let waits: Vec<_> = (0..1_000)
            .map(|_| {
                budget.task();
                budget.retry(began)
            })
            .collect();
        let within = |seconds| waits.iter().filter(|wait| **wait <= Duration::from_secs(seconds)).count();
        // A burst of 100, then half an attempt for each task and a hundred for each second.
        assert!((190..=210).contains(&within(0)), "{}", within(0));
        assert!((290..=410).contains(&within(1)), "{}", within(1));
        assert!(waits.iter().all(|wait| *wait < Duration::from_secs(5)));
        assert_eq!(budget.retry(began + Duration::from_secs(60)), Duration::ZERO);
    }
}
