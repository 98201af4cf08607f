//! Where the views and the queues meet: one short mutex, and the waiting around it.
//!
//! A task asks for a [`Reservation`]; it gets one at once when a worker has room and nobody is ahead of it, and else
//! waits in the queue of its pool. Whatever may have made room serves the queue: a reply does so at the worker that it is
//! from, a change in the registry or the passing of time at all of a pool. A reservation is a value: dropping it, on any
//! path, ends the router's count of the call.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::outlier::{self, Ejection};
pub(super) use super::pools::Ended;
use super::pools::{Condition, Grant, Lack, NO_WORKERS_PATIENCE, News, PoolNumbers, Pools, Ready, Touched};
use super::queue::{self, Full, Place, Ran, Run, Standing, TenantNumbers};
use super::split::{Origin, Split};
use super::view::{self, Held, Learned, Placement};
use crate::registry::{Change, Snapshot};
use crate::task::{PoolName, Priority, Task};
use crate::wire::TaskError;

/// The router's shared state. Clones are the same dispatcher.
#[derive(Clone)]
pub(super) struct Dispatcher {
    state: Arc<Mutex<State>>,
}

struct State {
    pools: Pools<Waiter>,
    random: SmallRng,
    /// Whether all pools that get tasks have been heard once. One that the settings add later does not take it back.
    was_heard: bool,
}

struct Waiter {
    since: Instant,
    answer: oneshot::Sender<Result<Reservation, TaskError>>,
}

/// Why a task gets no worker.
#[derive(Debug)]
pub(super) enum TurnedAway {
    /// The queue is full.
    Full(Full),
    /// It would wait in vain.
    Hopeless(TaskError),
    /// Its time is over: all of it, or so much that a run, which takes `needs`, would more likely than not end too late.
    OutOfTime { needs: Option<Duration> },
}

/// A call that a worker is expected to have room for.
pub(super) struct Reservation {
    dispatcher: Dispatcher,
    grant: Grant,
    place: Place,
    ended: Ended,
}

/// Where a task stands that has no worker yet.
pub(super) struct Stands {
    pub(super) pool: PoolName,
    /// None when it is not in the queue.
    pub(super) standing: Option<Standing>,
    pub(super) held: Held,
    /// The pool that may take it now, because its own cannot, and what keeps it from the workers there.
    pub(super) elsewhere: Option<(PoolName, Held)>,
    /// All of its class and pool that wait.
    pub(super) waiting: usize,
}

impl Dispatcher {
    /// Empty views and empty queues of the pools that a split names.
    pub(super) fn new(config: queue::Config, outliers: outlier::Config, split: Split, seed: u64) -> Self {
        let pools = Pools::new(config, outliers, split, Instant::now());
        let state = State { pools, random: SmallRng::seed_from_u64(seed), was_heard: false };
        Dispatcher { state: Arc::new(Mutex::new(state)) }
    }

    /// A place for a task.
    pub(super) fn place(&self, task: &Task) -> Place {
        self.state.lock().pools.place(task, Instant::now())
    }

    /// Other settings, from this moment on: also for those who wait.
    pub(super) fn tune(&self, split: Split, batch_share: f64) {
        self.change(Touched::All, |state, now| {
            // In a pool that was not followed yet, its first worker may take a moment to be heard of.
            state.pools.tune(split, batch_share, now, |waiter| waiter.since = now);
        });
    }

    /// Waits at a place for a worker with room. Dropping the wait leaves the queue. `again` is for a task that was
    /// refused: it has its place already and is never turned away because the queue is full.
    pub(super) async fn reserve(&self, place: &Place, again: bool) -> Result<Reservation, TurnedAway> {
        let (receiver, needs) = match self.reserve_now(place, again) {
            Ok(reservation) => return Ok(reservation),
            Err(Waits { answer, needs }) => (answer, needs),
            Err(No(turned_away)) => return Err(turned_away),
        };
        let _leave = Leave { dispatcher: self, place };
        match timeout_at(place.deadline - needs.unwrap_or_default(), receiver).await {
            Ok(Ok(answer)) => answer.map_err(TurnedAway::Hopeless),
            // The sender is dropped only with the whole dispatcher.
            Ok(Err(_)) => Err(TurnedAway::Hopeless(TaskError::draining("the router is ending"))),
            Err(_) => Err(TurnedAway::OutOfTime { needs }),
        }
    }

    fn reserve_now(&self, place: &Place, again: bool) -> Result<Reservation, NotNow> {
        let now = Instant::now();
        if now >= place.deadline {
            return Err(No(TurnedAway::OutOfTime { needs: None }));
        }
        let mut state = self.state.lock();
        let State { pools, random, .. } = &mut *state;
        let room = match pools.reserve(place, random, now) {
            Ok(grant) => return Ok(self.reservation(grant, place.clone())),
            Err(room) => room,
        };
        if let Some(error) = pools.hopeless(place) {
            return Err(No(TurnedAway::Hopeless(error)));
        }
        let (home, are_several) = (pools.home(place).clone(), pools.are_several());
        let queue = pools.queue(place);
        let needs = queue.needs(&place.integration, now);
        if needs.is_some_and(|needs| now + needs > place.deadline) {
            return Err(No(TurnedAway::OutOfTime { needs }));
        }
        let (answer, receiver) = oneshot::channel();
        let waiter = Waiter { since: now, answer };
        // Who was refused comes before those who came later, and may go to another worker at once.
        let serves = again || queue.has_passed_over();
        if again {
            queue.resume(place.clone(), waiter, now);
        } else {
            queue.push(place.clone(), waiter, now).map_err(|mut full| {
                if are_several {
                    full.message = format!("in pool {:?}, {}", home.as_str(), full.message);
                }
                No(TurnedAway::Full(full))
            })?;
        }
        if let Some(room) = room {
            queue.found(place, room, now);
        }
        drop(state);
        if serves {
            self.change(Touched::Pool(&home), |_, _| ());
        }
        Err(Waits { answer: receiver, needs })
    }

    /// The registry's whole word of a pool.
    pub(super) fn replace(&self, pool: &PoolName, snapshot: Snapshot) {
        self.change(Touched::Pool(pool), |state, now| state.pools.replace(pool, snapshot, now));
    }

    /// What the registry says has changed in a pool; returns the workers that are no more.
    pub(super) fn apply(&self, pool: &PoolName, changes: Vec<Change>) -> Vec<Placement> {
        self.change(Touched::Pool(pool), |state, now| state.pools.apply(pool, changes, now))
    }

    /// A pool's registry cannot be reached.
    pub(super) fn set_stale(&self, pool: &PoolName) {
        self.change(Touched::Pool(pool), |state, _| state.pools.set_stale(pool));
    }

    /// A pool's registry is listened to.
    pub(super) fn follows(&self, pool: &PoolName) {
        self.state.lock().pools.follows(pool);
    }

    /// Whether a pool that no setting names need not be followed any longer.
    pub(super) fn let_go(&self, pool: &PoolName) -> bool {
        self.state.lock().pools.let_go(pool)
    }

    /// Time has passed: what only time can end is ended. Returns the workers that are no more.
    pub(super) fn tick(&self) -> Vec<Placement> {
        let passed = self.change(Touched::All, |state, now| {
            let impatient = |waiter: &Waiter| now.duration_since(waiter.since) >= NO_WORKERS_PATIENCE;
            state.pools.pass(impatient, now)
        });
        for (waiter, error) in passed.told {
            // Fails when the waiter has just left, and then nobody needs to be told.
            let _ = waiter.answer.send(Err(error));
        }
        passed.news.iter().for_each(log);
        passed.ejections.iter().for_each(|(pool, news)| report(pool, news));
        passed.ended
    }

    /// Where a task stands.
    pub(super) fn stands(&self, place: &Place) -> Stands {
        let now = Instant::now();
        let mut state = self.state.lock();
        let (held, elsewhere) = state.pools.held(place, now);
        let pool = state.pools.home(place).clone();
        let queue = state.pools.queue(place);
        let [interactive, batch] = queue.numbers(now).map(|class| class.waiting);
        let waiting = if place.priority == Priority::Batch { batch } else { interactive };
        let mut standing = queue.standing(place, now);
        if let Some(standing) = standing.as_mut().filter(|_| !held.may_end()) {
            // Others leave, and it does not.
            standing.estimated_wait = None;
        }
        Stands { pool, standing, held, elsewhere, waiting }
    }

    /// What keeps a task from the workers of its pool that run its integration.
    pub(super) fn held(&self, place: &Place) -> Held {
        self.state.lock().pools.held(place, Instant::now()).0
    }

    /// The pool that a task goes to now.
    pub(super) fn home(&self, place: &Place) -> PoolName {
        self.state.lock().pools.home(place).clone()
    }

    /// What a task is told for which there are no workers, as far as this router knows.
    pub(super) fn no_workers(&self, place: &Place) -> Option<TaskError> {
        self.state.lock().pools.no_workers(place)
    }

    /// Whether the registry of each pool has been heard at least once.
    pub(super) fn has_view(&self) -> bool {
        let mut state = self.state.lock();
        state.was_heard |= state.pools.are_heard();
        state.was_heard
    }

    /// Each pool in numbers.
    pub(super) fn numbers(&self) -> Vec<PoolNumbers> {
        self.state.lock().pools.numbers(Instant::now())
    }

    /// The tenants that have the most waiting, of each class.
    pub(super) fn top_tenants(&self, at_most: usize) -> [(Priority, Vec<(PoolName, TenantNumbers)>); 2] {
        let state = self.state.lock();
        Priority::ALL.map(|priority| (priority, state.pools.top_tenants(priority, at_most)))
    }

    /// Changes the state, and then serves those who wait: any change may have made room, at one worker or at more.
    fn change<T>(&self, touched: Touched<'_>, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let (result, ready) = {
            let mut state = self.state.lock();
            let result = change(&mut state, now);
            let State { pools, random, .. } = &mut *state;
            (result, pools.serve(touched, random, now))
        };
        for Ready { place, waiter, grant } in ready {
            // A waiter that has just left drops its reservation here, outside the lock, which serves the next.
            let _ = waiter.answer.send(Ok(self.reservation(grant, place)));
        }
        result
    }

    fn reservation(&self, grant: Grant, place: Place) -> Reservation {
        let ended = Ended { learned: Learned::Nothing, load: None, ran: Ran::default() };
        Reservation { dispatcher: self.clone(), grant, place, ended }
    }
}

impl Reservation {
    /// Where the call goes.
    pub(super) fn placement(&self) -> &Placement {
        &self.grant.placement
    }

    /// In which pool that is.
    pub(super) fn pool(&self) -> &PoolName {
        &self.grant.pool
    }

    /// The pool whose task it is, and why that does not have it, where that is another one.
    pub(super) fn overflow(&self) -> Option<(&PoolName, Lack)> {
        self.grant.lack.map(|lack| (&self.grant.home, lack))
    }

    /// The call goes out, over a connection that stands: from now on it may hold slots, whatever becomes of it.
    pub(super) fn goes_out(&mut self) {
        self.ended.ran.run = Run::Aborted;
        let Grant { pool, placement, .. } = &self.grant;
        if placement.tries {
            let touched = Touched::Worker(pool, &placement.worker);
            self.dispatcher.change(touched, |state, _| state.pools.connected(pool, placement));
        }
    }

    /// Ends the call and keeps what it taught.
    pub(super) fn end(mut self, ended: Ended) {
        self.ended = ended;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Reservation { grant, place, ended, .. } = &*self;
        self.dispatcher.change(Touched::Worker(&grant.pool, &grant.placement.worker), |state, now| {
            let chance = state.random.random();
            state.pools.end(grant, place, *ended, chance, now);
        });
    }
}

enum NotNow {
    /// For as long as it has more time than it needs.
    Waits {
        answer: oneshot::Receiver<Result<Reservation, TaskError>>,
        needs: Option<Duration>,
    },
    No(TurnedAway),
}
use NotNow::{No, Waits};

/// Takes a waiter that stopped waiting out of the queue.
struct Leave<'a> {
    dispatcher: &'a Dispatcher,
    place: &'a Place,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.dispatcher.state.lock().pools.queue(self.place).remove(self.place, Instant::now());
    }
}

fn log(news: &News) {
    match news {
        News::Back(pool) => tracing::info!(%pool, "the pool has workers again"),
        News::Missed(pool, condition, origin) => {
            let origin = match origin {
                Origin::Setting => "the setting pools",
                Origin::Configuration => "router.pool",
            };
            let known = match condition {
                Condition::NeverSeen => "and none has ever been known here: is its name right?",
                _ => "any more",
            };
            tracing::warn!(%pool, "tasks are sent to a pool by {origin} that has no worker, {known}");
        }
    }
}

fn report(pool: &PoolName, news: &view::News) {
    match news {
        view::News::Ejected(worker, Ejection { saw, until, times }) => {
            let seconds = until.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
            tracing::warn!(%pool, %worker, reason = saw.reason.as_str(), seconds, times, "ejected worker {worker}: {saw}");
        }
        view::News::OnTrial(worker) => tracing::info!(%pool, %worker, "worker {worker} was ejected and is tried again"),
        view::News::Needed(worker) => {
            tracing::warn!(%pool, %worker, "worker {worker} is ejected no longer: too few others are left");
        }
    }
}

#[cfg(test)]
mod tests;
