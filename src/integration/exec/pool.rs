//! The places of all processes of one integration, and who waits for one.
//!
//! A process has as many places as it announced. A place is a value: dropping it gives it to who has waited longest. The
//! least loaded process is taken first. Waiting needs no limit of its own: only tasks that the worker has admitted wait.
//! They wait while a process is being started, and fail at once when the last start of each process has failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::cause;
use super::metrics::Metrics;
use super::process::Process;
use crate::integration::Error;
use crate::telemetry::Counted;
use crate::telemetry::notice::Notice;

/// Waiting for a place is warned of at most this often.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Pool {
    /// The section that configures it, for messages that name a key.
    section: String,
    max_runs: Option<u64>,
    state: Mutex<State>,
    waits: Notice,
    pub(super) metrics: Metrics,
}

struct State {
    slots: Vec<Slot>,
    /// In the order in which they came.
    waiting: BTreeMap<u64, oneshot::Sender<Given>>,
    next: u64,
}

/// What a waiter is given: a place and its process, or why there will be none.
type Given = Result<(Place, Arc<Process>), Error>;

enum Slot {
    /// A process is being started, or will be in a moment.
    Starting,
    Ready(Ready),
    /// The last start has failed; the next is to come.
    Failed(Arc<str>),
}

struct Ready {
    process: Arc<Process>,
    places: usize,
    taken: usize,
    begun: u64,
    /// It takes no more, and is let go when it is empty.
    is_leaving: bool,
}

impl Ready {
    fn has_room(&self) -> bool {
        !self.is_leaving && self.taken < self.places
    }
}

/// A place in a process; dropping it gives it back.
pub(super) struct Place {
    pool: Arc<Pool>,
    slot: usize,
    process: u32,
}

impl Place {
    /// Has nobody else given a place in this process, which is about to end.
    pub(super) fn shun(&self) {
        if let Some(ready) = self.pool.state.lock().ready(self.slot, self.process) {
            ready.is_leaving = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.release(self.slot, self.process);
    }
}

/// A wait; dropping it leaves the queue.
struct Waiting<'a> {
    pool: &'a Pool,
    number: u64,
    _counted: Counted,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().waiting.remove(&self.number);
    }
}

impl Pool {
    pub(super) fn new(section: String, slots: usize, max_runs: Option<u64>, metrics: Metrics) -> Arc<Self> {
        let slots = (0..slots).map(|_| Slot::Starting).collect();
        let state = State { slots, waiting: BTreeMap::new(), next: 0 };
        let (state, waits) = (Mutex::new(state), Notice::every(WARN_INTERVAL));
        Arc::new(Pool { section, max_runs, state, waits, metrics })
    }

    /// A place, as soon as one is free: first come, first served.
    pub(super) async fn place(self: &Arc<Self>) -> Given {
        let (sender, mut receiver) = oneshot::channel();
        let waiting = {
            let mut state = self.state.lock();
            let number = state.next;
            state.next += 1;
            state.waiting.insert(number, sender);
            Waiting { pool: self, number, _counted: Counted::new(&self.metrics.waiting) }
        };
        self.serve();
        let given = match receiver.try_recv() {
            Err(TryRecvError::Empty) => {
                self.warn();
                receiver.await.ok()
            }
            given => given.ok(),
        };
        drop(waiting);
        given.unwrap_or_else(|| Err(no_process("it is being stopped")))
    }

    /// Gives free places to those who wait.
    fn serve(self: &Arc<Self>) {
        // What nobody took is dropped after the lock: that gives it back, which needs the lock.
        let mut untaken = Vec::new();
        let mut state = self.state.lock();
        if let Some(why) = state.all_failed() {
            for (_, waiter) in std::mem::take(&mut state.waiting) {
                untaken.extend(waiter.send(Err(no_process(&why))).err());
            }
        }
        while let Some(slot) = state.least_loaded() {
            let Some((_, waiter)) = state.waiting.pop_first() else { break };
            let Slot::Ready(ready) = &mut state.slots[slot] else { break };
            ready.taken += 1;
            ready.begun += 1;
            ready.is_leaving |= self.max_runs.is_some_and(|most| ready.begun >= most);
            let process = ready.process.clone();
            let place = Place { pool: self.clone(), slot, process: process.id() };
            untaken.extend(waiter.send(Ok((place, process))).err());
        }
        self.show(&state);
        drop(state);
        drop(untaken);
    }

    fn release(self: &Arc<Self>, slot: usize, process: u32) {
        {
            let mut state = self.state.lock();
            // The place of a process that is gone is gone with it.
            let Some(ready) = state.ready(slot, process) else { return };
            ready.taken -= 1;
            if ready.is_leaving && ready.taken == 0 {
                ready.process.let_go();
            }
        }
        self.serve();
    }

    /// A process is ready to take `places` tasks.
    pub(super) fn enter(self: &Arc<Self>, slot: usize, process: Arc<Process>, places: usize) {
        let ready = Ready { process, places, taken: 0, begun: 0, is_leaving: false };
        self.state.lock().slots[slot] = Slot::Ready(ready);
        self.serve();
    }

    /// A process takes no more, and is let go when it is empty. Returns whether that is new.
    pub(super) fn replace(&self, slot: usize, process: u32) -> bool {
        let mut state = self.state.lock();
        let Some(ready) = state.ready(slot, process) else { return false };
        let was_leaving = std::mem::replace(&mut ready.is_leaving, true);
        if ready.taken == 0 {
            ready.process.let_go();
        }
        self.show(&state);
        !was_leaving
    }

    /// A slot has no process any more; `failed` says why when it could not be started.
    pub(super) fn leave(self: &Arc<Self>, slot: usize, failed: Option<String>) {
        let without = failed.map_or(Slot::Starting, |why| Slot::Failed(why.into()));
        let before = std::mem::replace(&mut self.state.lock().slots[slot], without);
        drop(before);
        self.serve();
    }

    /// All processes that take or run tasks, with their slots.
    pub(super) fn processes(&self) -> Vec<(usize, Arc<Process>)> {
        let state = self.state.lock();
        let ready = state.slots.iter().enumerate().filter_map(|(slot, state)| match state {
            Slot::Ready(ready) => Some((slot, ready.process.clone())),
            _ => None,
        });
        ready.collect()
    }

    /// Why a task has no place now, for its transcript.
    pub(super) fn why_none(&self) -> String {
        let state = self.state.lock();
        if state.least_loaded().is_some() {
            return "it was over before it was given one".into();
        }
        let (mut taken, mut failed) = (0, None);
        for slot in &state.slots {
            match slot {
                Slot::Ready(ready) => taken += ready.taken,
                Slot::Failed(why) => failed = Some(why.clone()),
                Slot::Starting => {}
            }
        }
        match (taken, failed) {
            (0, Some(why)) => format!("no process was ready; {why}"),
            (0, None) => "no process was ready".into(),
            (taken, _) => format!("all {taken} places were taken"),
        }
    }

    fn show(&self, state: &State) {
        let (mut processes, mut places, mut busy) = (0, 0, 0);
        for slot in &state.slots {
            if let Slot::Ready(ready) = slot {
                processes += 1;
                busy += ready.taken;
                places += if ready.is_leaving { ready.taken } else { ready.places };
            }
        }
        self.metrics.processes.set(f64::from(processes));
        self.metrics.places.set(places as f64);
        self.metrics.busy.set(busy as f64);
    }

    fn warn(&self) {
        let state = self.state.lock();
        // While a process is being started, waiting is no sign that there are too few.
        let is_starting = state.slots.iter().any(|slot| matches!(slot, Slot::Starting));
        let places: usize = state.slots.iter().map(|slot| if let Slot::Ready(r) = slot { r.places } else { 0 }).sum();
        if !is_starting && places > 0 && self.waits.due().is_some() {
            let (section, processes) = (&self.section, state.slots.len());
            tracing::warn!(
                processes,
                places,
                "tasks wait for a place in a process: all {places} are taken; raise {section}.processes, or the \
                 concurrency that the program announces, if the machine can take more"
            );
        }
    }
}

impl State {
    fn ready(&mut self, slot: usize, process: u32) -> Option<&mut Ready> {
        match &mut self.slots[slot] {
            Slot::Ready(ready) if ready.process.id() == process => Some(ready),
            _ => None,
        }
    }

    fn least_loaded(&self) -> Option<usize> {
        let free = self.slots.iter().enumerate().filter_map(|(index, slot)| match slot {
            Slot::Ready(ready) if ready.has_room() => Some((ready.taken, index)),
            _ => None,
        });
        free.min().map(|(_, index)| index)
    }

    /// Why there is no process, when each slot's last start has failed.
    fn all_failed(&self) -> Option<Arc<str>> {
        let mut last = None;
        for slot in &self.slots {
            match slot {
                Slot::Failed(why) => last = Some(why.clone()),
                _ => return None,
            }
        }
        last
    }
}

fn no_process(why: &str) -> Error {
    Error::retryable(format!("no process takes tasks: {why}")).because(cause::reason("no_process"))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::process::Limits;
    use super::*;
    use crate::telemetry::Telemetry;

    fn pool(slots: usize, max_runs: Option<u64>) -> Arc<Pool> {
        let telemetry = Telemetry::new().expect("a recorder");
        let metrics = telemetry.register(|| Metrics::new("bank", slots));
        Pool::new("integrations.bank".into(), slots, max_runs, metrics)
    }

    fn process(id: u32) -> Arc<Process> {
        let limits = Limits { line_bytes: 1_000, run_bytes: 1_000, cancel_grace: WARN_INTERVAL, shared_stderr: false };
        Process::new(id, limits, tokio::sync::mpsc::channel(1).0)
    }

    fn id(given: &Given) -> u32 {
        given.as_ref().expect("a place").1.id()
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_loaded_process_is_first_and_waiters_are_served_in_their_order() {
        let pool = pool(2, None);
        let mut first = Box::pin(pool.place());
        assert!(first.as_mut().now_or_never().is_none(), "a process is being started");
        assert_eq!(pool.why_none(), "no process was ready");
        pool.enter(0, process(10), 2);
        pool.enter(1, process(11), 1);
        let (first, second, third) = (first.await, pool.place().await, pool.place().await);
        assert_eq!([id(&first), id(&second), id(&third)], [10, 11, 10]);

        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(pool.place())).collect();
        assert!(waiting.iter_mut().all(|place| place.as_mut().now_or_never().is_none()), "all places are taken");
        assert_eq!(pool.why_none(), "all 3 places were taken");
        drop(waiting.remove(0));
        drop(second);
        let given = waiting.remove(0).await;
        assert_eq!(id(&given), 11, "who went away is passed over");
        assert!(waiting[0].as_mut().now_or_never().is_none());
        drop(given);
        waiting.remove(0).await.expect("the next in line");
        assert!(pool.state.lock().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn places_of_a_process_that_is_gone_are_gone_and_without_any_start_tasks_fail_at_once() {
        let pool = pool(2, None);
        pool.enter(0, process(10), 1);
        let old = pool.place().await;
        pool.leave(0, None);
        pool.enter(0, process(12), 1);
        let new = pool.place().await;
        assert_eq!(id(&new), 12);
        drop(old);
        let mut waiting = Box::pin(pool.place());
        assert!(waiting.as_mut().now_or_never().is_none(), "the old place is no place in the new process");
        pool.leave(1, Some("\"x\" exited".into()));
        assert!(waiting.as_mut().now_or_never().is_none(), "one process is still there");
        pool.leave(0, None);
        assert_eq!(pool.why_none(), "no process was ready; \"x\" exited");
        pool.leave(0, Some("\"x\" exited".into()));
        let error = waiting.await.err().expect("none");
        assert_eq!(error.message, "no process takes tasks: \"x\" exited");
        assert!(pool.place().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_has_had_its_runs_is_let_go_when_it_is_empty() {
        let pool = pool(1, Some(2));
        let only = process(10);
        pool.enter(0, only.clone(), 4);
        let both = (pool.place().await, pool.place().await);
        assert!(pool.place().now_or_never().is_none(), "it takes no more");
        drop(both.0);
        assert!(only.emptied().now_or_never().is_none());
        drop(both.1);
        only.emptied().await;
    }
}
