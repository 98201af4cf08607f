//! The bounded queue between the tasks and the encoders, and the one lock over the ledger.
//!
//! `offer` never waits: what does not fit is dropped and counted. The bounds cover all that is *pending*: what waits,
//! what is being encoded, and what is being uploaded, so a slow store fills the queue and not the memory. A pending
//! payload is a [`Pending`] value; letting go of it on any path (an upload cancelled, an encoder gone) counts it as
//! lost, so the ledger balances without anyone's care. [`State`] holds every decision and is pure.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use super::ledger::{Ledger, Reason};

/// Refused items kept for an encoder to free, so that the caller does not spend its time on that; past it, it does.
const DISCARDED_ITEMS: usize = 64;

/// What may be pending at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub items: u64,
    pub bytes: u64,
    pub uploads: usize,
}

/// The queue's decisions, without locks or waiting.
struct State<T> {
    limits: Limits,
    ledger: Ledger,
    waiting: VecDeque<(T, u64)>,
    discarded: Vec<T>,
    uploading: usize,
    closed: bool,
}

impl<T> State<T> {
    fn new(limits: Limits) -> Self {
        let (ledger, waiting, discarded) = (Ledger::default(), VecDeque::new(), Vec::new());
        State { limits, ledger, waiting, discarded, uploading: 0, closed: false }
    }

    /// Takes the item in, or hands it back, counted as dropped.
    fn offer(&mut self, item: T, bytes: u64) -> Result<(), T> {
        self.ledger.offered += 1;
        let refused = if self.closed {
            Some(Reason::Shutdown)
        } else if self.ledger.pending >= self.limits.items {
            Some(Reason::QueueItems)
        } else if self.ledger.pending_bytes.saturating_add(bytes) > self.limits.bytes {
            Some(Reason::QueueBytes)
        } else {
            None
        };
        if let Some(reason) = refused {
            self.ledger.drop_for(reason, 1);
            return Err(item);
        }
        self.ledger.pending += 1;
        self.ledger.pending_bytes += bytes;
        self.waiting.push_back((item, bytes));
        Ok(())
    }

    /// Counts a payload's memory anew: an encoded one is smaller.
    fn resize(&mut self, from: u64, to: u64) {
        if !self.closed {
            self.ledger.pending_bytes = self.ledger.pending_bytes - from + to;
        }
    }

    /// One pending payload is stored, or dropped for a reason. In a closed queue nothing is pending: it was idle when
    /// it was closed, or all of it has been counted by `abandon`.
    fn settle(&mut self, bytes: u64, result: Result<(), Reason>) {
        if self.closed {
            return;
        }
        self.ledger.pending -= 1;
        self.ledger.pending_bytes -= bytes;
        match result {
            Ok(()) => self.ledger.stored += 1,
            Err(reason) => self.ledger.drop_for(reason, 1),
        }
    }

    /// Takes nothing more if nothing is pending.
    fn close_if_idle(&mut self) -> bool {
        self.closed |= self.ledger.pending == 0;
        self.closed
    }

    /// Takes nothing more and counts everything pending as lost; hands back what was waiting.
    fn abandon(&mut self) -> VecDeque<(T, u64)> {
        self.closed = true;
        self.ledger.drop_for(Reason::Shutdown, self.ledger.pending);
        self.ledger.pending = 0;
        self.ledger.pending_bytes = 0;
        std::mem::take(&mut self.waiting)
    }
}

/// The queue. Shared by the callers, the encoders and the uploads.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    work: Condvar,
    slots: Condvar,
    idle: Notify,
}

impl<T> Queue<T> {
    pub fn new(limits: Limits) -> Arc<Self> {
        let state = Mutex::new(State::new(limits));
        Arc::new(Queue { state, work: Condvar::new(), slots: Condvar::new(), idle: Notify::new() })
    }

    /// Takes the item in, or drops and counts it. Holds the lock for a few instructions; frees nothing big under it.
    pub fn offer(&self, item: T, bytes: u64) {
        let mut state = self.state.lock();
        let mut refused = state.offer(item, bytes).err();
        if !state.closed && state.discarded.len() < DISCARDED_ITEMS {
            state.discarded.extend(refused.take());
        }
        drop(state);
        self.work.notify_one();
    }

    /// Waits for an item; none once the queue is closed. For encoder threads.
    pub fn next(self: &Arc<Self>) -> Option<(T, Pending<T>)> {
        let mut state = self.state.lock();
        loop {
            if !state.discarded.is_empty() {
                let discarded = std::mem::take(&mut state.discarded);
                MutexGuard::unlocked(&mut state, || drop(discarded));
                continue;
            }
            if let Some((item, bytes)) = state.waiting.pop_front() {
                return Some((item, Pending { queue: self.clone(), bytes, uploading: false, settled: false }));
            }
            if state.closed {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    /// The account so far.
    pub fn ledger(&self) -> Ledger {
        self.state.lock().ledger
    }

    /// Waits until nothing is pending, and then takes nothing more.
    pub async fn close_when_idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            idle.as_mut().enable();
            if self.state.lock().close_if_idle() {
                break;
            }
            idle.await;
        }
        self.wake_all();
    }

    /// Takes nothing more and counts everything pending as lost.
    pub fn abandon(&self) {
        let waiting = self.state.lock().abandon();
        drop(waiting);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.work.notify_all();
        self.slots.notify_all();
        self.idle.notify_waiters();
    }
}

/// One payload that has left the queue and is not yet accounted for. Dropping it counts it as lost to the shutdown.
pub(super) struct Pending<T> {
    queue: Arc<Queue<T>>,
    bytes: u64,
    uploading: bool,
    settled: bool,
}

impl<T> Pending<T> {
    /// Counts its memory anew.
    pub fn resize(&mut self, bytes: u64) {
        self.queue.state.lock().resize(self.bytes, bytes);
        self.bytes = bytes;
    }

    /// Waits for one of the upload slots and holds it from then on. False when the queue was closed meanwhile.
    pub fn wait_for_upload(&mut self) -> bool {
        let mut state = self.queue.state.lock();
        while !state.closed && state.uploading >= state.limits.uploads {
            self.queue.slots.wait(&mut state);
        }
        if !state.closed {
            state.uploading += 1;
            self.uploading = true;
        }
        self.uploading
    }

    /// It is in the store.
    pub fn stored(mut self) {
        self.settle(Ok(()));
    }

    /// It is lost.
    pub fn dropped(mut self, reason: Reason) {
        self.settle(Err(reason));
    }

    fn settle(&mut self, result: Result<(), Reason>) {
        self.settled = true;
        let mut state = self.queue.state.lock();
        state.settle(self.bytes, result);
        let idle = state.ledger.pending == 0;
        if self.uploading {
            state.uploading -= 1;
            self.queue.slots.notify_one();
        }
        drop(state);
        if idle {
            self.queue.idle.notify_waiters();
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(Err(Reason::Shutdown));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { items: 4, bytes: 100, uploads: 2 };

    #[test]
    fn what_does_not_fit_is_dropped_for_its_reason() {
        let queue = Queue::new(LIMITS);
        queue.offer("too big", 101);
        for _ in 0..5 {
            queue.offer("small", 1);
        }
        let ledger = queue.ledger();
        assert_eq!((ledger.offered, ledger.pending, ledger.pending_bytes), (6, 4, 4));
        assert_eq!((ledger.dropped(Reason::QueueBytes), ledger.dropped(Reason::QueueItems)), (1, 1));
    }

    #[test]
    fn what_is_taken_out_counts_until_it_is_settled() {
        let queue = Queue::new(LIMITS);
        queue.offer("first", 90);
        let (_, mut pending) = queue.next().expect("one waits");
        queue.offer("second", 20);
        assert_eq!(queue.ledger().dropped(Reason::QueueBytes), 1);
        pending.resize(10);
        queue.offer("third", 20);
        assert_eq!((queue.ledger().pending, queue.ledger().pending_bytes), (2, 30));
        pending.stored();
        assert_eq!((queue.ledger().stored, queue.ledger().pending_bytes), (1, 20));
    }

    #[test]
    fn an_item_let_go_of_is_counted_as_lost() {
        let queue = Queue::new(LIMITS);
        queue.offer("it", 1);
        drop(queue.next());
        assert_eq!(queue.ledger().dropped(Reason::Shutdown), 1);
        assert!(queue.ledger().balanced());
    }

    #[test]
    fn abandoning_counts_all_that_is_pending_once() {
        let queue = Queue::new(LIMITS);
        for _ in 0..3 {
            queue.offer("it", 1);
        }
        let (_, pending) = queue.next().expect("one waits");
        queue.abandon();
        pending.stored();
        queue.offer("late", 1);
        let ledger = queue.ledger();
        assert_eq!((ledger.stored, ledger.pending, ledger.dropped(Reason::Shutdown)), (0, 0, 4));
        assert!(queue.next().is_none());
    }

    proptest! {
        #[test]
        fn the_ledger_balances_after_every_step(steps in proptest::collection::vec((0u8..8, 0u64..60), 1..200)) {
            let queue = Queue::new(LIMITS);
            let mut out = Vec::new();
            for (step, bytes) in steps {
                match step {
                    0..=2 => queue.offer((), bytes),
                    3 if !queue.state.lock().waiting.is_empty() => out.extend(queue.next().map(|(_, pending)| pending)),
                    4 => out.pop().into_iter().for_each(Pending::stored),
                    5 => out.pop().into_iter().for_each(|pending| pending.dropped(Reason::Store)),
                    6 => out.iter_mut().for_each(|pending| pending.resize(bytes.min(pending.bytes))),
                    7 if bytes == 0 => queue.abandon(),
                    7 => drop(out.pop()),
                    _ => {}
                }
                let ledger = queue.ledger();
                prop_assert!(ledger.balanced(), "{ledger:?}");
                prop_assert!(ledger.pending <= LIMITS.items && ledger.pending_bytes <= LIMITS.bytes, "{ledger:?}");
            }
            drop(out);
            queue.abandon();
            prop_assert_eq!(queue.ledger().pending, 0);
            prop_assert!(queue.ledger().balanced());
        }
    }
}
