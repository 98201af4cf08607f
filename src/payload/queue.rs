//! The bounded queue between the tasks and the encoders, and the one lock over the ledger.
//!
//! `offer` never waits: what does not fit displaces less wanted payloads, or is dropped itself, and either is counted.
//! The bounds cover all that is *pending*: what waits, what is being encoded, and what is being uploaded, so a slow
//! store fills the queue and not the memory. A pending payload is a [`Pending`] value; letting go of it on any path (an
//! upload cancelled, an encoder gone) counts it as lost, so the ledger balances without anyone's care.
//!
//! What is dropped is freed by an encoder, never on a task's path, and counts against a bound of its own until then (a
//! quarter of the queue's bytes); only past it, when the encoders are far behind, does whoever offers free.

mod slots;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

pub(super) use self::slots::Origin;
pub(super) use self::state::End;
use self::state::State;
use super::ledger::{Ledger, Reason};
use super::sample::Value;

/// How often an encoder that waits for an upload slot looks whether it should spool instead.
const LOOK: Duration = Duration::from_millis(50);

/// How often an encoder without work looks for some, for the first second and from then on.
const LOOK_FOR_WORK: Duration = Duration::from_millis(2);
const LOOK_NOW_AND_THEN: Duration = Duration::from_millis(20);
const LOOKS_IN_A_SECOND: u32 = 500;

/// What may be pending at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub items: u64,
    pub bytes: u64,
    pub uploads: usize,
}

/// Whose turn it is to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crew {
    /// Those that work beside the tasks, until others relieve them.
    Background,
    /// Those that relieve them when the tasks have ended.
    Flush,
}

/// What an encoded payload is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Be uploaded: it holds a slot.
    Upload,
    /// Be spooled: the uploads do not keep up.
    Spool,
    /// Nothing: the queue was closed, and it has been counted.
    Stop,
}

/// The queue. Shared by the callers, the encoders and the uploads.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    work: Condvar,
    slots: Condvar,
    idle: Notify,
    changed: Notify,
}

impl<T> Queue<T> {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Queue {
            state: Mutex::new(State::new(limits)),
            work: Condvar::new(),
            slots: Condvar::new(),
            idle: Notify::new(),
            changed: Notify::new(),
        })
    }

    /// Takes the item in, or drops and counts it. Holds the lock for a few instructions, frees nothing big under it, and
    /// wakes nobody: to wake a thread is a call of the system, several microseconds on the path of the task.
    pub fn offer(&self, item: T, bytes: u64, value: Value) {
        let refused = self.state.lock().offer(item, bytes, value);
        drop(refused);
    }

    /// Waits for an item; none once the queue is closed, or another crew has taken over. For encoder threads, which look
    /// for work by themselves: nobody wakes them for it.
    pub fn next(self: &Arc<Self>, crew: Crew) -> Option<(T, Pending<T>)> {
        let mut state = self.state.lock();
        let mut looks = 0;
        loop {
            free_discarded(&mut state);
            if state.relieved && crew == Crew::Background {
                return None;
            }
            if let Some((item, bytes)) = state.next() {
                return Some((item, Pending::new(self, bytes, Origin::Fresh)));
            }
            if state.closed {
                return None;
            }
            self.work.wait_for(&mut state, pause_before_look(looks));
            looks = looks.saturating_add(1);
        }
    }

    /// Does nothing for a while, except to free what others left to be freed. False when there is reason to hurry.
    pub fn nap(&self, nap: Duration) -> bool {
        let (mut state, until) = (self.state.lock(), Instant::now() + nap);
        loop {
            free_discarded(&mut state);
            if state.closed || state.draining {
                return false;
            }
            if self.slots.wait_until(&mut state, until).timed_out() {
                return true;
            }
        }
    }

    /// The account so far.
    pub fn ledger(&self) -> Ledger {
        self.state.lock().ledger
    }

    /// The upload slots in use, and those who wait for one.
    pub fn slots(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.slots.held(), state.slots.waiting())
    }

    /// Payloads were found in the spool at the start.
    pub fn recover(&self, count: u64) {
        self.state.lock().recover(count);
        self.changed.notify_waiters();
    }

    /// Spooled payloads are given up.
    pub fn forget_spooled(&self, count: u64, reason: Reason) {
        self.state.lock().forget_spooled(count, reason);
    }

    /// Waits for room and for a slot for one spooled payload, and takes it out of the spool's column. None once the
    /// process is about to end.
    pub async fn unspool(self: &Arc<Self>, bytes: u64) -> Option<Pending<T>> {
        let mut waits = None;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let has_room;
            {
                let mut state = self.state.lock();
                if state.closed || state.draining {
                    return None;
                }
                if state.unspool(bytes) {
                    let mut pending = Pending::new(self, bytes, Origin::Spooled);
                    pending.has_slot = true;
                    return Some(pending);
                }
                has_room = state.has_room_for_spooled(bytes);
            }
            // A slot that it could not take yet is left to others.
            if has_room {
                waits.get_or_insert_with(|| Waits::new(self));
            } else {
                waits = None;
            }
            changed.await;
        }
    }

    /// From now on nothing comes out of the spool, and encoders do not pause.
    pub fn drain(&self) {
        self.state.lock().draining = true;
        self.wake_all();
    }

    /// From now on only the flush's crew encodes.
    pub fn relieve(&self) {
        self.state.lock().relieved = true;
        self.wake_all();
    }

    /// From now on what is encoded goes to the spool and waits for no slot.
    pub fn hurry(&self) {
        self.state.lock().hurried = true;
        self.wake_all();
    }

    /// Whether the store is away from now on: then nothing waits for a slot that can go to the spool.
    pub fn store_is_away(&self, is_away: bool) {
        self.state.lock().is_store_away = is_away;
        self.slots.notify_all();
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
        self.changed.notify_waiters();
    }
}

/// How long an encoder without work waits after so many looks in vain.
fn pause_before_look(looks: u32) -> Duration {
    if looks < LOOKS_IN_A_SECOND { LOOK_FOR_WORK } else { LOOK_NOW_AND_THEN }
}

/// Frees what is left to be freed, without the lock.
fn free_discarded<T>(state: &mut MutexGuard<'_, State<T>>) {
    loop {
        let discarded = state.take_discarded();
        if discarded.is_empty() {
            return;
        }
        MutexGuard::unlocked(state, || drop(discarded));
    }
}

/// Keeps a slot's turn for the spool while it waits.
struct Waits<'q, T>(&'q Queue<T>);

impl<'q, T> Waits<'q, T> {
    fn new(queue: &'q Queue<T>) -> Self {
        queue.state.lock().slots.wait(Origin::Spooled);
        Waits(queue)
    }
}

impl<T> Drop for Waits<'_, T> {
    fn drop(&mut self) {
        self.0.state.lock().slots.waited(Origin::Spooled);
        self.0.slots.notify_all();
    }
}

/// One payload that has left the queue, or the spool, and is not yet accounted for. Dropping it counts it as lost to the
/// shutdown, or as still in the spool.
pub(super) struct Pending<T> {
    queue: Arc<Queue<T>>,
    bytes: u64,
    origin: Origin,
    has_slot: bool,
    is_settled: bool,
}

impl<T> Pending<T> {
    fn new(queue: &Arc<Queue<T>>, bytes: u64, origin: Origin) -> Self {
        Pending { queue: queue.clone(), bytes, origin, has_slot: false, is_settled: false }
    }

    /// Counts its memory anew. False when there is no room for it: it must come to its end.
    pub fn resize(&mut self, bytes: u64, value: Value) -> bool {
        let mut refused = Vec::new();
        let fits = self.queue.state.lock().resize(self.bytes, bytes, value, &mut refused);
        if fits {
            self.bytes = bytes;
        }
        fits
    }

    /// Waits for one of the upload slots and holds it from then on. Where there is a spool, waits only as long as the
    /// queue is not pressed and the store is there.
    pub fn wait_for_slot(&mut self, has_spool: bool) -> Next {
        let mut state = self.queue.state.lock();
        state.slots.wait(self.origin);
        let next = loop {
            free_discarded(&mut state);
            if state.closed {
                break Next::Stop;
            }
            if has_spool && state.hurried {
                break Next::Spool;
            }
            if state.slots.take(self.origin) {
                self.has_slot = true;
                break Next::Upload;
            }
            if has_spool && (state.is_store_away || state.is_pressed()) {
                break Next::Spool;
            }
            self.queue.slots.wait_for(&mut state, LOOK);
        };
        state.slots.waited(self.origin);
        next
    }

    /// It has come to its end.
    pub fn end(mut self, end: End) {
        self.settle(end);
    }

    fn settle(&mut self, end: End) {
        self.is_settled = true;
        let mut state = self.queue.state.lock();
        state.settle(self.bytes, self.origin, end);
        if self.has_slot {
            state.slots.give_back(self.origin);
        }
        let is_idle = state.ledger.pending == 0;
        drop(state);
        if self.has_slot {
            self.queue.slots.notify_all();
        }
        if is_idle {
            self.queue.idle.notify_waiters();
        }
        self.queue.changed.notify_waiters();
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.settle(match self.origin {
                Origin::Fresh => End::Dropped(Reason::Shutdown),
                Origin::Spooled => End::Spooled,
            });
        }
    }
}

#[cfg(test)]
mod tests;
