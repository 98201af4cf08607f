//! Who holds a place in the worker: the list of runs that `weir describe` shows, oldest first.
//!
//! An entry lives as long as its run holds its place, so what hangs is in the list. Each task costs two short locks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::task::{RunId, Task, TaskId};

/// All runs of a worker.
#[derive(Default)]
pub(super) struct Roster {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    runs: BTreeMap<uuid::Uuid, Arc<Entry>>,
    /// When each run should have stopped: finding those that have not never walks the others.
    due: BTreeSet<(Instant, uuid::Uuid)>,
}

/// One run.
pub(super) struct Entry {
    pub(super) run: RunId,
    pub(super) task: Task,
    pub(super) attempt: u32,
    pub(super) started: Instant,
    /// When it was answered for without having stopped.
    answered_for: OnceLock<Instant>,
    /// Why it has not stopped, as far as that is known, and when that was last logged.
    why: Mutex<&'static str>,
    named: Mutex<Option<Instant>>,
}

impl Entry {
    /// A run that starts.
    pub(super) fn new(run: RunId, task: Task, attempt: u32, started: Instant) -> Self {
        let why = Mutex::new("its code has not returned");
        Entry { run, task, attempt, started, answered_for: OnceLock::new(), why, named: Mutex::default() }
    }

    /// Since when it should have stopped: since it was answered for, or else since its deadline. A run that blocks its
    /// thread keeps from running what would answer for it, so only the clock can tell.
    pub(super) fn overdue_since(&self, now: Instant) -> Option<Instant> {
        self.answered_for.get().copied().or_else(|| (self.task.deadline < now).then_some(self.task.deadline))
    }

    /// Why it has not stopped.
    pub(super) fn why(&self) -> &'static str {
        *self.why.lock()
    }

    /// Whether it was not named in the log for so long; it counts as named then.
    pub(super) fn is_to_be_named(&self, now: Instant, again_after: Duration) -> bool {
        let mut named = self.named.lock();
        let is_due = named.is_none_or(|named| now.saturating_duration_since(named) >= again_after);
        if is_due {
            *named = Some(now);
        }
        is_due
    }

    fn due(&self) -> (Instant, uuid::Uuid) {
        (self.answered_for.get().copied().unwrap_or(self.task.deadline), self.run.0)
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
        let mut state = self.state.lock();
        state.runs.insert(entry.run.0, entry.clone());
        state.due.insert(entry.due());
        drop(state);
        Listed { roster: self.clone(), entry }
    }

    /// The newest run of a task, where one holds a place. Looks at each.
    pub(super) fn newest_of(&self, task: &TaskId) -> Option<Arc<Entry>> {
        self.state.lock().runs.values().rev().find(|entry| entry.task.id == *task).cloned()
    }

    /// The oldest runs, at most so many. Run ids sort by their time.
    pub(super) fn oldest(&self, most: usize) -> Vec<Arc<Entry>> {
        self.state.lock().runs.values().take(most).cloned().collect()
    }

    /// How many runs should have stopped before then, and the first of them, at most so many.
    pub(super) fn overdue(&self, before: Instant, most: usize) -> (usize, Vec<Arc<Entry>>) {
        let state = self.state.lock();
        let due = || state.due.range(..(before, uuid::Uuid::nil()));
        let first = due().take(most).filter_map(|(_, run)| state.runs.get(run).cloned());
        (due().count(), first.collect())
    }
}

impl Listed {
    /// What runs.
    pub(super) fn task(&self) -> &Task {
        &self.entry.task
    }

    /// The run was answered for and has not stopped.
    pub(super) fn set_overdue(&self) {
        let mut state = self.roster.state.lock();
        state.due.remove(&self.entry.due());
        let _ = self.entry.answered_for.set(Instant::now());
        state.due.insert(self.entry.due());
    }

    /// Says why it has not stopped.
    pub(super) fn set_why(&self, why: &'static str) {
        *self.entry.why.lock() = why;
    }

    /// Whether it was named in the log as one that has not stopped.
    pub(super) fn was_named(&self) -> bool {
        self.entry.named.lock().is_some()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut state = self.roster.state.lock();
        state.runs.remove(&self.entry.run.0);
        state.due.remove(&self.entry.due());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::testing::task;

    fn entry(id: &str) -> Entry {
        Entry::new(RunId::mint(), task(id), 1, Instant::now())
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
        assert_eq!(roster.overdue(Instant::now() + Duration::from_secs(99), 9).0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_should_have_stopped_are_found_first_due_first() {
        let (roster, now, second) = (Arc::new(Roster::default()), Instant::now(), Duration::from_secs(1));
        let due = |id, seconds| {
            let mut entry = entry(id);
            entry.task.deadline = now + second * seconds;
            roster.enter(entry)
        };
        let (late, later, cancelled) = (due("late", 1), due("later", 2), due("cancelled", 600));
        cancelled.set_overdue();
        let found = |seconds, most| {
            let (count, first) = roster.overdue(now + second * seconds, most);
            (count, first.iter().map(|entry| entry.task.id.to_string()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(found(0, 9), (0, String::new()));
        assert_eq!(found(3, 2), (3, "cancelled late".into()));
        drop((late, cancelled));
        assert_eq!(found(3, 9), (1, "later".into()));
        assert!(later.entry.is_to_be_named(now, second) && !later.entry.is_to_be_named(now, second));
        assert!(later.was_named() && later.entry.is_to_be_named(now + second, second));
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
