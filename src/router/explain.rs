//! Where each task is: those under way, and for a while those that were refused.
//!
//! Beside the dispatcher and with a lock of its own: what a task waits for is asked of the dispatcher only when somebody
//! wants to know.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::queue::Place;
use crate::task::{PoolName, TaskId, WorkerId};
use crate::wire::{Reason, TaskError};

/// Refused tasks that are remembered.
const MAX_REFUSED: usize = 1_000;

/// For how long.
const REFUSED_KEPT: Duration = Duration::from_secs(600);

/// All tasks of a router. Clones are the same book.
#[derive(Clone, Default)]
pub(super) struct Book {
    pages: Arc<Mutex<Pages>>,
}

#[derive(Default)]
struct Pages {
    /// By id: of several with the same, the one that came last is the last.
    under_way: HashMap<TaskId, Vec<Arc<Entry>>>,
    /// The last refusal of each id.
    refused: HashMap<TaskId, Refused>,
    /// When each was, the oldest first.
    refusals: VecDeque<(Instant, TaskId)>,
}

/// A task under way.
pub(super) struct Entry {
    pub(super) place: Place,
    pub(super) since: Instant,
    progress: Mutex<Progress>,
}

/// How far it has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub(super) stage: Stage,
    /// Calls to workers, the one that is out included.
    pub(super) attempts: u32,
    /// How the last one ended that did not start it.
    pub(super) last_refusal: Option<String>,
    /// Why another task with the same id was refused meanwhile.
    pub(super) other_refused: Option<String>,
    /// Another task with the same id has ended meanwhile with an outcome.
    other_ended: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) enum Stage {
    /// For a worker with room.
    #[default]
    Waiting,
    /// A worker of the pool has it.
    Calling { pool: PoolName, worker: WorkerId, since: Instant },
    /// Until its next attempt.
    Pausing,
}

/// A task that was answered with an error.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) task: TaskId,
    pub(super) place: Place,
    /// The pool that it waited for, or whose worker refused it.
    pub(super) pool: PoolName,
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) at: Instant,
}

/// What the book knows of a task.
pub(super) enum Found {
    UnderWay(Arc<Entry>),
    Refused(Refused),
    Nothing,
}

/// A task's entry; dropping it takes the task out of the book.
pub(super) struct Entered {
    book: Book,
    task: TaskId,
    entry: Arc<Entry>,
}

impl Book {
    pub(super) fn enter(&self, task: TaskId, place: Place, since: Instant) -> Entered {
        let entry = Arc::new(Entry { place, since, progress: Mutex::default() });
        self.pages.lock().under_way.entry(task.clone()).or_default().push(entry.clone());
        Entered { book: self.clone(), task, entry }
    }

    pub(super) fn find(&self, task: &TaskId) -> Found {
        let now = Instant::now();
        let mut pages = self.pages.lock();
        if let Some(entry) = pages.under_way.get(task).and_then(|entries| entries.last()) {
            return Found::UnderWay(entry.clone());
        }
        pages.forget(now);
        match pages.refused.get(task) {
            Some(refused) => Found::Refused(refused.clone()),
            None => Found::Nothing,
        }
    }
}

impl Pages {
    fn forget(&mut self, now: Instant) {
        let is_old = |(at, _): &(Instant, TaskId)| now.saturating_duration_since(*at) >= REFUSED_KEPT;
        while self.refusals.len() > MAX_REFUSED || self.refusals.front().is_some_and(is_old) {
            let Some((at, task)) = self.refusals.pop_front() else { return };
            if self.refused.get(&task).is_some_and(|refused| refused.at == at) {
                self.refused.remove(&task);
            }
        }
    }

    /// Those with the same id as an entry.
    fn others(&self, task: &TaskId, entry: &Arc<Entry>) -> impl Iterator<Item = &Arc<Entry>> {
        self.under_way.get(task).into_iter().flatten().filter(move |other| !Arc::ptr_eq(other, entry))
    }
}

impl Entry {
    pub(super) fn progress(&self) -> Progress {
        self.progress.lock().clone()
    }
}

impl Entered {
    pub(super) fn waits(&self) {
        self.entry.progress.lock().stage = Stage::Waiting;
    }

    pub(super) fn is_called(&self, pool: PoolName, worker: WorkerId) {
        let mut progress = self.entry.progress.lock();
        progress.attempts += 1;
        progress.stage = Stage::Calling { pool, worker, since: Instant::now() };
    }

    pub(super) fn pauses(&self, refusal: String) {
        let mut progress = self.entry.progress.lock();
        (progress.stage, progress.last_refusal) = (Stage::Pausing, Some(refusal));
    }

    pub(super) fn progress(&self) -> Progress {
        self.entry.progress()
    }

    /// It was answered with an outcome, which is the last word on its id.
    pub(super) fn ended(&self) {
        let mut pages = self.book.pages.lock();
        pages.refused.remove(&self.task);
        pages.others(&self.task, &self.entry).for_each(|other| other.progress.lock().other_ended = true);
    }

    /// It was answered with an error, which is kept, while its pool was `home`. What is under way or has ended meanwhile
    /// under the same id has the first word.
    pub(super) fn refused(&self, error: &TaskError, home: PoolName) {
        let progress = self.progress();
        let pool = if let Stage::Calling { pool, .. } = progress.stage { pool } else { home };
        let (task, place, now) = (self.task.clone(), self.entry.place.clone(), Instant::now());
        let mut pages = self.book.pages.lock();
        let mut is_alone = true;
        for other in pages.others(&self.task, &self.entry) {
            is_alone = false;
            other.progress.lock().other_refused = Some(format!("{}: {}", error.reason.as_str(), error.message));
        }
        if is_alone && !progress.other_ended {
            pages.refusals.push_back((now, task.clone()));
            let (reason, message) = (error.reason, error.message.clone());
            pages.refused.insert(task.clone(), Refused { task, place, pool, reason, message, at: now });
        }
        pages.forget(now);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut pages = self.book.pages.lock();
        let Some(entries) = pages.under_way.get_mut(&self.task) else { return };
        entries.retain(|entry| !Arc::ptr_eq(entry, &self.entry));
        if entries.is_empty() {
            pages.under_way.remove(&self.task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::testing::task;

    fn enter(book: &Book, id: &str) -> Entered {
        let task = task(id);
        let place = Place::new(&task, 1, Instant::now());
        book.enter(task.id, place, Instant::now())
    }

    fn find(book: &Book, id: &str) -> Found {
        book.find(&id.parse().expect("an id"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_found_while_it_is_under_way_and_for_a_while_after_it_was_refused() {
        let book = Book::default();
        let entered = enter(&book, "t1");
        assert!(matches!(find(&book, "t1"), Found::UnderWay(_)));
        entered.refused(&TaskError::invalid("because"), PoolName::default());
        drop(entered);
        assert!(matches!(find(&book, "t1"), Found::Refused(refused) if refused.message == "because"));
        tokio::time::advance(REFUSED_KEPT).await;
        assert!(matches!(find(&book, "t1"), Found::Nothing));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_or_has_ended_has_the_first_word_before_a_refusal_of_the_same_id() {
        let (book, refusal) = (Book::default(), TaskError::invalid("no room"));
        let refuse = |entered: Entered| entered.refused(&refusal, PoolName::default());
        let first = enter(&book, "t1");
        refuse(enter(&book, "t1"));
        let Found::UnderWay(entry) = find(&book, "t1") else { panic!("the first waits") };
        assert!(entry.progress().other_refused.is_some_and(|why| why.ends_with("no room")));
        let third = enter(&book, "t1");
        first.ended();
        drop(first);
        assert!(matches!(find(&book, "t1"), Found::UnderWay(_)));
        refuse(third);
        assert!(matches!(find(&book, "t1"), Found::Nothing), "it has ended");

        refuse(enter(&book, "t1"));
        assert!(matches!(find(&book, "t1"), Found::Refused(_)), "later, and alone");
        enter(&book, "t1").ended();
        assert!(matches!(find(&book, "t1"), Found::Nothing), "it has ended at the second try");

        let (first, second) = (enter(&book, "t2"), enter(&book, "t2"));
        refuse(second);
        refuse(first);
        assert!(matches!(find(&book, "t2"), Found::Refused(_)), "both were");
    }

    #[tokio::test(start_paused = true)]
    async fn refused_tasks_are_bounded_and_of_two_with_one_id_the_later_is_meant() {
        let book = Book::default();
        for number in 0..MAX_REFUSED + 10 {
            enter(&book, &format!("t{number}")).refused(&TaskError::invalid("no"), PoolName::default());
        }
        assert!(matches!(find(&book, "t9"), Found::Nothing));
        assert!(matches!(find(&book, "t10"), Found::Refused(_)));
        let (first, second) = (enter(&book, "same"), enter(&book, "same"));
        drop(first);
        assert!(matches!(find(&book, "same"), Found::UnderWay(_)));
        drop(second);
        assert!(book.pages.lock().under_way.is_empty());
    }
}
