//! Who holds a place in the worker: the list of runs that `weir describe` shows, oldest first.
//!
//! An entry lives as long as its run holds its place, so what hangs is in the list. Each task costs two short locks.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::task::{RunId, Task};

/// All runs of a worker.
#[derive(Default)]
pub(super) struct Roster {
    runs: Mutex<BTreeMap<uuid::Uuid, Arc<Entry>>>,
}

/// One run.
pub(super) struct Entry {
    pub(super) run: RunId,
    pub(super) task: Task,
    pub(super) attempt: u32,
    pub(super) started: Instant,
    /// When it was answered for without having stopped.
    answered_for: OnceLock<Instant>,
}

impl Entry {
    /// A run that starts.
    pub(super) fn new(run: RunId, task: Task, attempt: u32, started: Instant) -> Self {
        Entry { run, task, attempt, started, answered_for: OnceLock::new() }
    }

    /// Since when it should have stopped: since it was answered for, or else since its deadline. A run that blocks its
    /// thread keeps from running what would answer for it, so only the clock can tell.
    pub(super) fn overdue_since(&self, now: Instant) -> Option<Instant> {
        self.answered_for.get().copied().or_else(|| (self.task.deadline < now).then_some(self.task.deadline))
    }
}

/// A run's entry; dropping it takes the run off the list.
pub(super) struct Listed {
    roster: Arc<Roster>,
    entry: Arc<Entry>,
}

impl Roster {
    /// Puts a run on the list.
    pub(super) fn enter(self: &Arc<Self>, entry: Entry) -> Listed {
        let entry = Arc::new(entry);
        self.runs.lock().insert(entry.run.0, entry.clone());
        Listed { roster: self.clone(), entry }
    }

    /// The oldest runs, at most so many. Run ids sort by their time.
    pub(super) fn oldest(&self, most: usize) -> Vec<Arc<Entry>> {
        self.runs.lock().values().take(most).cloned().collect()
    }
}

impl Listed {
    /// What runs.
    pub(super) fn task(&self) -> &Task {
        &self.entry.task
    }

    /// The run was answered for and has not stopped.
    pub(super) fn set_overdue(&self) {
        let _ = self.entry.answered_for.set(Instant::now());
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.roster.runs.lock().remove(&self.entry.run.0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::task::{Json, Priority, Tenant};

    fn entry(id: &str) -> Entry {
        let task = Task {
            id: id.parse().expect("an id"),
            integration: "bank".parse().expect("a name"),
            tenant: Tenant::default(),
            priority: Priority::Batch,
            input: Json::null(),
            deadline: Instant::now(),
        };
        Entry::new(RunId::mint(), task, 1, Instant::now())
    }

    #[test]
    fn runs_are_listed_oldest_first_until_they_end() {
        let roster = Arc::new(Roster::default());
        let mut listed: Vec<_> = ["a", "b", "c"].map(|id| roster.enter(entry(id))).into();
        let ids = |most| roster.oldest(most).iter().map(|entry| entry.task.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(2), ["a", "b"]);
        listed.remove(0);
        assert_eq!(ids(9), ["b", "c"]);
        drop(listed);
        assert!(ids(9).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_is_overdue_from_its_deadline_on_though_nobody_could_answer_for_it() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut blocks = entry("blocks");
        blocks.task.deadline = now + second;
        assert_eq!(blocks.overdue_since(now), None);
        assert_eq!(blocks.overdue_since(now + 3 * second), Some(now + second));
        let _ = blocks.answered_for.set(now);
        assert_eq!(blocks.overdue_since(now), Some(now), "it was cancelled before its deadline");
    }
}
