//! What all tasks of a submission came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::line::{Answer, Numbered};

/// What a task may take beyond its wait in the queue and its run before the summary says so.
const BEYOND: Duration = Duration::from_millis(100);

/// Counts and times.
pub(super) struct Summary {
    started: Instant,
    ok: u64,
    failures: BTreeMap<&'static str, u64>,
    errors: BTreeMap<&'static str, u64>,
    took: Vec<Duration>,
    /// The most that a task took beyond its wait in the queue and its run.
    beyond: Duration,
}

impl Summary {
    /// Nothing yet; the time runs.
    pub(super) fn start() -> Self {
        let (failures, errors) = (BTreeMap::new(), BTreeMap::new());
        Summary { started: Instant::now(), ok: 0, failures, errors, took: Vec::new(), beyond: Duration::ZERO }
    }

    pub(super) fn count(&mut self, answer: &Numbered) {
        match &answer.answer {
            Answer::Outcome { outcome, took } => {
                self.took.push(*took);
                let (queued, ran) = (outcome.timings.queued, outcome.timings.ran);
                self.beyond = self.beyond.max(took.saturating_sub(queued + ran));
                match &outcome.result {
                    Ok(_) => self.ok += 1,
                    Err(failure) => *self.failures.entry(failure.code.as_str()).or_default() += 1,
                }
            }
            Answer::Error { error, .. } => *self.errors.entry(error.reason()).or_default() += 1,
            Answer::Unreadable { .. } => *self.errors.entry("unreadable line").or_default() += 1,
        }
    }

    /// Whether each task has an output.
    pub(super) fn all_ok(&self) -> bool {
        self.failures.is_empty() && self.errors.is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, lost): (u64, u64) = (self.failures.values().sum(), self.errors.values().sum());
        let (total, seconds) = (self.ok + failed + lost, self.started.elapsed().as_secs_f64());
        let per_second = total as f64 / seconds.max(0.001);
        let tasks = if total == 1 { "task" } else { "tasks" };
        write!(f, "{total} {tasks} in {seconds:.1} s ({per_second:.0}/s): {} ok", self.ok)?;
        write!(f, ", {failed} failed{}, {lost} without outcome{}", Listed(&self.failures), Listed(&self.errors))?;
        let mut took = self.took.clone();
        took.sort_unstable();
        if let (Some(p50), Some(p99)) = (quantile(&took, 0.5), quantile(&took, 0.99)) {
            write!(f, "; p50 {:.3} s, p99 {:.3} s", p50.as_secs_f64(), p99.as_secs_f64())?;
        }
        if self.beyond >= BEYOND {
            let beyond = self.beyond.as_secs_f64();
            write!(
                f,
                "; up to {beyond:.1} s of it neither queued nor running: turned away and sent again, or on the way"
            )?;
        }
        Ok(())
    }
}

struct Listed<'a>(&'a BTreeMap<&'static str, u64>);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed: Vec<_> = self.0.iter().map(|(what, count)| format!("{what} {count}")).collect();
        if listed.is_empty() { Ok(()) } else { write!(f, " ({})", listed.join(", ")) }
    }
}

/// The smallest value that a share of all is not above (the nearest-rank method); the values are sorted.
pub(in crate::cli) fn quantile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let sorted: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&sorted, 0.5), Some(Duration::from_millis(50)));
        assert_eq!(quantile(&sorted, 0.99), Some(Duration::from_millis(99)));
        assert_eq!(quantile(&sorted[..1], 0.99), Some(Duration::from_millis(1)));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
