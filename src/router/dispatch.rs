//! Where the view and the queue meet: one short mutex, and the waiting around it.
//!
//! A task asks for a [`Reservation`]; it gets one at once when a worker has room and nobody is ahead of it, and else
//! waits in the queue. Whatever may have made room (a reply, a change in the registry, the passing of time) serves the
//! queue. A reservation is a value: dropping it, on any path, ends the router's count of the call.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::queue::{Full, Place, Queue};
use super::view::{Census, Learned, Placement, Served, View};
use crate::registry::{Change, Snapshot};
use crate::task::{IntegrationName, Priority};
use crate::wire::TaskError;
use crate::wire::metadata::LoadReport;

/// How long tasks wait for a first worker before they are told that there is none: long enough for a restart.
const NO_WORKERS_PATIENCE: Duration = Duration::from_secs(5);

/// What callers are told when there is no worker.
pub(super) const NO_WORKERS: &str = "the router knows no worker that is alive";

/// What callers are told to wait while all workers spare an integration: they look again every few seconds.
const BROKEN_RETRY_AFTER: Duration = Duration::from_secs(2);

/// What callers are told to wait when the queue is full.
const QUEUE_FULL_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The router's shared state. Clones are the same dispatcher.
#[derive(Clone)]
pub(super) struct Dispatcher {
    state: Arc<Mutex<State>>,
}

struct State {
    view: View,
    queue: Queue<Waiter>,
    random: SmallRng,
    synced_at: Option<Instant>,
}

struct Waiter {
    since: Instant,
    answer: oneshot::Sender<Answer>,
}

type Answer = Result<Reservation, TaskError>;

/// A call that a worker is expected to have room for.
pub(super) struct Reservation {
    dispatcher: Dispatcher,
    placement: Placement,
    integration: IntegrationName,
    learned: Learned,
    load: Option<LoadReport>,
}

/// The dispatcher in numbers.
pub(super) struct Numbers {
    pub(super) census: Census,
    pub(super) stale: bool,
    pub(super) view_age: Option<Duration>,
    pub(super) waiting: [(Priority, usize); 2],
}

impl Dispatcher {
    /// An empty view, and a queue for `capacity` tasks per class.
    pub(super) fn new(capacity: usize, seed: u64) -> Self {
        let state = State {
            view: View::default(),
            queue: Queue::new(capacity),
            random: SmallRng::seed_from_u64(seed),
            synced_at: None,
        };
        Dispatcher { state: Arc::new(Mutex::new(state)) }
    }

    /// A place behind all others of its class.
    pub(super) fn place(&self, priority: Priority, integration: IntegrationName) -> Place {
        self.state.lock().queue.place(priority, integration)
    }

    /// Waits at a place for a worker with room. Dropping the wait leaves the queue. `again` is for a task that was
    /// refused: it has its place already and is never turned away.
    pub(super) async fn reserve(&self, place: &Place, again: bool) -> Answer {
        let receiver = match self.reserve_now(place, again) {
            Ok(reservation) => return Ok(reservation),
            Err(Waits(receiver)) => receiver,
            Err(TurnedAway(error)) => return Err(error),
        };
        let _leave = Leave { dispatcher: self, place };
        // The sender is dropped only with the whole dispatcher.
        receiver.await.unwrap_or_else(|_| Err(TaskError::draining("the router is ending")))
    }

    fn reserve_now(&self, place: &Place, again: bool) -> Result<Reservation, NotNow> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let State { view, queue, random, .. } = &mut *state;
        if queue.is_first(place)
            && let Some(placement) = view.reserve(&place.integration, place.priority, random, now)
        {
            return Ok(self.reservation(placement, place.integration.clone()));
        }
        match view.serves(&place.integration) {
            Served::ByNobody if !view.is_stale() => return Err(TurnedAway(unknown_integration(&place.integration))),
            Served::Broken => return Err(TurnedAway(broken(&place.integration))),
            _ => {}
        }
        let (answer, receiver) = oneshot::channel();
        let waiter = Waiter { since: now, answer };
        if again {
            queue.resume(place.clone(), waiter);
        } else {
            queue.push(place.clone(), waiter).map_err(|Full { capacity }| {
                let class = place.priority.as_str();
                let message = format!("{capacity} {class} tasks are waiting already, as many as may");
                TurnedAway(TaskError::queue_full(message, QUEUE_FULL_RETRY_AFTER))
            })?;
        }
        Err(Waits(receiver))
    }

    /// The registry's whole word.
    pub(super) fn replace(&self, snapshot: Snapshot) {
        self.change(|state, now| {
            state.view.replace(snapshot.workers, now);
            state.synced_at = Some(now);
        });
    }

    /// What the registry says has changed; returns the workers that are no more.
    pub(super) fn apply(&self, changes: Vec<Change>) -> Vec<Placement> {
        self.change(|state, now| {
            state.synced_at = Some(now);
            state.view.set_fresh();
            changes.into_iter().filter_map(|change| state.view.apply(change, now)).collect()
        })
    }

    /// The registry cannot be reached.
    pub(super) fn set_stale(&self) {
        self.change(|state, _| state.view.set_stale());
    }

    /// Time has passed: what only time can end is ended. Returns the workers that are no more.
    pub(super) fn tick(&self) -> Vec<Placement> {
        let (expired, told) = self.change(|state, now| {
            let expired = state.view.expire_missing(now);
            let State { view, queue, .. } = state;
            let hopeless = |integration: &IntegrationName| match view.serves(integration) {
                Served::Yes => None,
                Served::ByNobody => Some(unknown_integration(integration)),
                Served::NoWorkers => Some(TaskError::no_workers(NO_WORKERS)),
                Served::Broken => Some(broken(integration)),
            };
            let impatient = |waiter: &Waiter| now.duration_since(waiter.since) >= NO_WORKERS_PATIENCE;
            (expired, queue.give_up(hopeless, impatient))
        });
        for (waiter, error) in told {
            // Fails when the waiter has just left, and then nobody needs to be told.
            let _ = waiter.answer.send(Err(error));
        }
        expired
    }

    /// Whether the pool is empty, as far as this router knows.
    pub(super) fn has_no_workers(&self) -> bool {
        self.state.lock().view.is_empty()
    }

    /// Whether the registry has been heard at least once.
    pub(super) fn has_view(&self) -> bool {
        self.state.lock().synced_at.is_some()
    }

    /// The numbers now.
    pub(super) fn numbers(&self) -> Numbers {
        let now = Instant::now();
        let state = self.state.lock();
        Numbers {
            census: state.view.census(now),
            stale: state.view.is_stale(),
            view_age: state.synced_at.map(|at| now.duration_since(at)),
            waiting: Priority::ALL.map(|priority| (priority, state.queue.waiting(priority))),
        }
    }

    /// Changes the state, and then serves those who wait: any change may have made room.
    fn change<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let (result, served) = {
            let mut state = self.state.lock();
            let result = change(&mut state, now);
            let State { view, queue, random, .. } = &mut *state;
            let served = match queue.is_empty() {
                true => Vec::new(),
                false => queue.serve(|integration, priority| {
                    let placement = view.reserve(integration, priority, random, now)?;
                    Some((placement, integration.clone()))
                }),
            };
            (result, served)
        };
        for (waiter, (placement, integration)) in served {
            // A waiter that has just left drops its reservation here, outside the lock, which serves the next.
            let _ = waiter.answer.send(Ok(self.reservation(placement, integration)));
        }
        result
    }

    fn reservation(&self, placement: Placement, integration: IntegrationName) -> Reservation {
        Reservation { dispatcher: self.clone(), placement, integration, learned: Learned::Nothing, load: None }
    }
}

impl Reservation {
    /// Where the call goes.
    pub(super) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Ends the call and keeps what it taught.
    pub(super) fn end(mut self, learned: Learned, load: Option<LoadReport>) {
        (self.learned, self.load) = (learned, load);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Reservation { placement, integration, learned, load, .. } = &*self;
        self.dispatcher.change(|state, now| state.view.release(placement, integration, *learned, *load, now));
    }
}

enum NotNow {
    Waits(oneshot::Receiver<Answer>),
    TurnedAway(TaskError),
}
use NotNow::{TurnedAway, Waits};

/// Takes a waiter that stopped waiting out of the queue.
struct Leave<'a> {
    dispatcher: &'a Dispatcher,
    place: &'a Place,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.dispatcher.state.lock().queue.remove(self.place);
    }
}

fn broken(integration: &IntegrationName) -> TaskError {
    let message = format!("every worker spares the integration {:?} for now, because it fails", integration.as_str());
    TaskError::breaker_open(message, BROKEN_RETRY_AFTER)
}

fn unknown_integration(integration: &IntegrationName) -> TaskError {
    TaskError::unknown_integration(format!("no worker of this pool runs an integration {:?}", integration.as_str()))
}

#[cfg(test)]
mod tests;
