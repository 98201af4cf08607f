//! The pools that a router sends to, and which of them a task goes to: pure, with the time passed in.
//!
//! Each pool has a view and a queue of its own: who waits, in which order, how fast they leave, and what tenants have used
//! is counted by pool, so that one that is slow, or stuck, holds up nobody of another, and no estimate mixes the two.
//!
//! A task's *home* follows from the split and the task alone, whenever it is asked for. So a change of weights holds for
//! all that has not been sent: who waits moves to the queue of the new home, in its old place by deadline and arrival, and
//! who is refused by a worker afterwards goes there too.
//!
//! Where the settings let a pool *overflow* into another, its tasks may be called there while their home lacks workers, or
//! lacks slots; what a cap or a breaker keeps out is no lack. A pool's own tasks come first: those of others get what is
//! left. They wait at home all the same, and are charged to their tenant there.

mod numbers;
mod pool;

use rand::Rng;
use tokio::time::{Duration, Instant};

use super::outlier;
use super::queue::{self, Call, Place, Queue, Ran, Room};
use super::split::{Origin, Split};
use super::view::{self, Held, Learned, Placement, Served, View, Wanted};
use crate::registry::{Change, Snapshot};
use crate::task::{IntegrationName, PoolName, Task, WorkerId};
use crate::wire::TaskError;
use crate::wire::metadata::LoadReport;
pub(super) use numbers::{Condition, MAX_EJECTED, PoolNumbers};
use pool::Pool;

/// How long tasks wait for a first worker before they are told that there is none: long enough for a restart.
pub(super) const NO_WORKERS_PATIENCE: Duration = Duration::from_secs(5);

/// What callers are told to wait while all workers spare an integration: they look again every few seconds.
const BROKEN_RETRY_AFTER: Duration = Duration::from_secs(2);

/// All pools, with a `T` for each task that waits.
pub(super) struct Pools<T> {
    split: Split,
    /// Of each queue.
    config: queue::Config,
    /// Of each view.
    outliers: outlier::Config,
    /// By name: each that the split names, those whose last calls are still out, and those that are followed.
    pools: Vec<Pool<T>>,
    tickets: u64,
}

/// Why a task is called at another pool than its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lack {
    /// Of the workers at home that run the integration, none has a slot for the task's class.
    Full,
    /// Home has no workers at all.
    NoWorkers,
}

impl Lack {
    pub(super) const ALL: [Lack; 2] = [Lack::Full, Lack::NoWorkers];

    /// The label in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Lack::Full => "full",
            Lack::NoWorkers => "no_workers",
        }
    }
}

/// A call that may be made.
#[derive(Debug)]
pub(super) struct Grant {
    /// The task's pool, in whose queue it counts.
    pub(super) home: PoolName,
    /// The worker's.
    pub(super) pool: PoolName,
    pub(super) placement: Placement,
    pub(super) call: Call,
    /// Why it is not at home, if it is not.
    pub(super) lack: Option<Lack>,
}

/// One who need not wait any longer.
pub(super) struct Ready<T> {
    pub(super) place: Place,
    pub(super) waiter: T,
    pub(super) grant: Grant,
}

/// What there may be room at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Touched<'a> {
    Worker(&'a PoolName, &'a WorkerId),
    Pool(&'a PoolName),
    All,
}

impl<'a> Touched<'a> {
    /// Whether a pool is meant, and which worker of it, where it is one.
    fn at(self, pool: &PoolName) -> Option<Option<&'a WorkerId>> {
        match self {
            Touched::Worker(touched, worker) => (touched == pool).then_some(Some(worker)),
            Touched::Pool(touched) => (touched == pool).then_some(None),
            Touched::All => Some(None),
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) learned: Learned,
    pub(super) load: Option<LoadReport>,
    pub(super) ran: Ran,
}

/// What a passing of time has brought.
pub(super) struct Passed<T> {
    /// Workers that are no more.
    pub(super) ended: Vec<Placement>,
    /// Those who wait in vain.
    pub(super) told: Vec<(T, TaskError)>,
    pub(super) news: Vec<News>,
    /// Who was ejected, and who is back, of which pool.
    pub(super) ejections: Vec<(PoolName, view::News)>,
}

/// What is to be logged.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// A pool with a weight has no workers.
    Missed(PoolName, Condition, Origin),
    /// It has some again.
    Back(PoolName),
}

impl<T> Pools<T> {
    pub(super) fn new(config: queue::Config, outliers: outlier::Config, split: Split, now: Instant) -> Self {
        let mut pools = Pools { split, config, outliers, pools: Vec::new(), tickets: 0 };
        pools.open_all(now);
        pools
    }

    /// A place for a task, not yet taken.
    pub(super) fn place(&mut self, task: &Task, now: Instant) -> Place {
        self.tickets += 1;
        Place::new(task, self.tickets, now)
    }

    /// The pool that a task goes to now.
    pub(super) fn home(&self, place: &Place) -> &PoolName {
        self.split.home(&place.keys)
    }

    /// Whether there is more than one.
    pub(super) fn are_several(&self) -> bool {
        self.pools.len() > 1
    }

    /// Other settings: those who wait move to their new homes. `moves` is told of each.
    pub(super) fn tune(&mut self, split: Split, batch_share: f64, now: Instant, mut moves: impl FnMut(&mut T)) {
        self.config.batch_share = batch_share;
        self.pools.iter_mut().for_each(|pool| pool.queue.set_batch_share(batch_share));
        if self.split == split {
            return;
        }
        self.split = split;
        self.open_all(now);
        let Pools { split, pools, .. } = self;
        let leave = |pool: &mut Pool<T>| pool.queue.take_out(|place| *split.home(&place.keys) != pool.name, now);
        let moving: Vec<_> = pools.iter_mut().flat_map(leave).collect();
        for (place, mut waiter) in moving {
            moves(&mut waiter);
            // They were let in before: no bound turns them away now.
            self.home_mut(&place).queue.resume(place, waiter, now);
        }
    }

    fn open_all(&mut self, now: Instant) {
        for name in self.split.pools() {
            if !self.pools.iter().any(|pool| pool.name == *name) {
                let (view, queue) = (View::new(self.outliers.clone()), Queue::new(self.config.clone(), now));
                self.pools.push(Pool::new(name.clone(), view, queue));
            }
        }
        self.pools.sort_by(|one, other| one.name.cmp(&other.name));
    }

    // ── room

    /// A call for a task that nobody is before; or for whom there is no room at its home, where that was looked at.
    pub(super) fn reserve(
        &mut self,
        place: &Place,
        random: &mut impl Rng,
        now: Instant,
    ) -> Result<Grant, Option<Room<Placement>>> {
        let (home, wanted) = (self.home_index(place), Wanted::from(place));
        let Pool { name, view, queue, .. } = &mut self.pools[home];
        // Where others are before it, there was no room for them.
        if !queue.is_first(place) {
            return Err(None);
        }
        let room = view.reserve(&wanted, random, now);
        if let Room::Found(placement) = room {
            let call = queue.start(place, now);
            return Ok(Grant { home: name.clone(), pool: name.clone(), placement, call, lack: None });
        }
        let Some((into, lack)) = self.lacks(home, &wanted, now) else { return Err(Some(room)) };
        let Pool { name: pool, view, queue, .. } = &mut self.pools[into];
        if !queue.is_first(place) {
            return Err(Some(room));
        }
        let Room::Found(placement) = view.reserve(&wanted, random, now) else { return Err(Some(room)) };
        let pool = pool.clone();
        let Pool { name, queue, .. } = &mut self.pools[home];
        Ok(Grant { home: name.clone(), pool, placement, call: queue.start(place, now), lack: Some(lack) })
    }

    /// Takes out those for whom there is room, in the order of service: at first those who are at home there.
    pub(super) fn serve(&mut self, touched: Touched<'_>, random: &mut impl Rng, now: Instant) -> Vec<Ready<T>> {
        let mut ready = Vec::new();
        for pool in &mut self.pools {
            if let Some(at) = touched.at(&pool.name) {
                pool.serve(at, random, now, &mut ready);
            }
        }
        for from in 0..self.pools.len() {
            let Some(into) = self.overflow_index(from).filter(|_| !self.pools[from].queue.is_empty()) else { continue };
            // At home a reply makes no lack; what time or the registry has made one is served with all of the pool.
            let at = match (touched.at(&self.pools[into].name), touched.at(&self.pools[from].name)) {
                (Some(at), _) => at,
                (None, Some(None)) => None,
                _ => continue,
            };
            if let Ok([home, other]) = self.pools.get_disjoint_mut([from, into]) {
                home.serve_elsewhere(other, at, random, now, &mut ready);
            }
        }
        ready
    }

    /// The call that tries a worker has a connection: others may follow.
    pub(super) fn connected(&mut self, pool: &PoolName, placement: &Placement) {
        if let Some(pool) = self.pool_mut(pool) {
            pool.view.connected(placement);
        }
    }

    /// A call has ended. `chance`, anything from 0 to 1, is how much of the longest pause a worker is left alone for that
    /// could not be reached.
    pub(super) fn end(&mut self, grant: &Grant, place: &Place, ended: Ended, chance: f64, now: Instant) {
        let Ended { learned, load, ran } = ended;
        let took = self.pool_mut(&grant.home).and_then(|home| home.queue.end(grant.call, ran, now));
        let Some(pool) = self.pool_mut(&grant.pool) else { return };
        pool.view.release(&grant.placement, &Wanted::from(place), learned, load, chance, now);
        if let Some(took) = took {
            pool.queue.learn(&place.integration, took, ran, now);
            if grant.lack.is_none() {
                pool.queue.departed(place, took, ran);
            }
        }
    }

    /// The pool that may take a task now, and why its home does not.
    fn lacks(&self, home: usize, wanted: &Wanted<'_>, now: Instant) -> Option<(usize, Lack)> {
        let into = self.overflow_index(home)?;
        Some((into, self.pools[home].lack(wanted, now)?))
    }

    fn overflow_index(&self, pool: usize) -> Option<usize> {
        let into = self.split.overflow_of(&self.pools[pool].name)?;
        self.pools.iter().position(|pool| pool.name == *into)
    }

    // ── who waits

    /// The queue of a task's home.
    pub(super) fn queue(&mut self, place: &Place) -> &mut Queue<T> {
        &mut self.home_mut(place).queue
    }

    /// Why it is in vain for a task to wait, as far as that is known at once.
    pub(super) fn hopeless(&self, place: &Place) -> Option<TaskError> {
        let Pool { name, view, .. } = &self.pools[self.home_index(place)];
        match view.serves(&place.integration) {
            Served::ByNobody if !view.is_stale() => Some(unknown_integration(&place.integration, name)),
            Served::Broken => Some(broken(&place.integration)),
            _ => None,
        }
    }

    /// The error for a task for which no workers are known; none where there are, be it in a pool that it overflows into.
    pub(super) fn no_workers(&self, place: &Place) -> Option<TaskError> {
        let home = self.home_index(place);
        let Pool { name, view, .. } = &self.pools[home];
        match view.serves(&place.integration) {
            _ if self.has_no_workers(home) => Some(self.no_workers_of(home)),
            Served::ByNobody if view.is_stale() => Some(nobody_known(&place.integration, name)),
            _ => None,
        }
    }

    fn has_no_workers(&self, pool: usize) -> bool {
        let is_empty = |pool: usize| self.pools[pool].view.len() == 0;
        is_empty(pool) && self.overflow_index(pool).is_none_or(is_empty)
    }

    fn no_workers_of(&self, pool: usize) -> TaskError {
        let Pool { name, .. } = &self.pools[pool];
        let unreachable =
            if self.pools[pool].view.is_stale() { ", and cannot reach the registry to hear of one" } else { "" };
        let known = match self.pools[pool].condition() {
            Condition::Unheard => format!("the router has not heard yet who is in pool {:?}", name.as_str()),
            Condition::NeverSeen => {
                format!(
                    "the router knows no worker that is alive in pool {:?}, and never knew one there",
                    name.as_str()
                )
            }
            _ => format!("the router knows no worker that is alive in pool {:?}", name.as_str()),
        };
        let origin = match self.split.origin() {
            Origin::Setting => "the setting pools",
            Origin::Configuration => "router.pool",
        };
        let overflow = match self.split.overflow_of(name) {
            Some(into) => {
                format!("nor in pool {:?}, which takes over from it (the setting pool_overflow)", into.as_str())
            }
            None => "and none takes over from it (the setting pool_overflow)".into(),
        };
        TaskError::no_workers(format!("{known}, to which {origin} sends this task{unreachable}; {overflow}"))
    }

    /// What keeps a task from the workers of its home; and if it may be called elsewhere, from those there.
    pub(super) fn held(&self, place: &Place, now: Instant) -> (Held, Option<(PoolName, Held)>) {
        let (home, wanted) = (self.home_index(place), Wanted::from(place));
        let elsewhere = self.lacks(home, &wanted, now).map(|(into, _)| &self.pools[into]);
        let elsewhere = elsewhere.map(|pool| (pool.name.clone(), pool.view.held(&wanted, now)));
        (self.pools[home].view.held(&wanted, now), elsewhere)
    }

    // ── what happens

    /// The registry's whole word of a pool.
    pub(super) fn replace(&mut self, pool: &PoolName, snapshot: Snapshot, now: Instant) {
        let Some(pool) = self.pool_mut(pool) else { return };
        pool.view.replace(snapshot.workers, now);
        pool.queue.unpark_all();
        pool.heard(now);
    }

    /// What the registry says has changed in a pool; returns the workers that are no more.
    pub(super) fn apply(&mut self, pool: &PoolName, changes: Vec<Change>, now: Instant) -> Vec<Placement> {
        let Some(pool) = self.pool_mut(pool) else { return Vec::new() };
        pool.view.set_fresh(now);
        let gone = changes.into_iter().filter_map(|change| pool.view.apply(change, now)).collect();
        if pool.view.has_other_limits() {
            pool.queue.unpark_all();
        }
        pool.heard(now);
        gone
    }

    /// A pool's registry cannot be reached.
    pub(super) fn set_stale(&mut self, pool: &PoolName) {
        if let Some(pool) = self.pool_mut(pool) {
            pool.view.set_stale();
        }
    }

    /// A pool's registry is listened to, until [`let_go`](Self::let_go).
    pub(super) fn follows(&mut self, pool: &PoolName) {
        if let Some(pool) = self.pool_mut(pool) {
            pool.is_followed = true;
        }
    }

    /// A pool is followed no more, if that may be: while its registry is away, what is known of its workers is all that there
    /// is, should a setting name it again.
    pub(super) fn let_go(&mut self, pool: &PoolName) -> bool {
        let Some(pool) = self.pool_mut(pool) else { return true };
        pool.is_followed = pool.view.is_stale();
        !pool.is_followed
    }

    /// Time has passed: what only time can end is ended. Who is `impatient` waits for a first worker no longer.
    pub(super) fn pass(&mut self, impatient: impl Fn(&T) -> bool, now: Instant) -> Passed<T> {
        let (ended, ejections) = (self.close_unnamed(now), Vec::new());
        let mut passed = Passed { ended, told: Vec::new(), news: Vec::new(), ejections };
        for index in 0..self.pools.len() {
            let no_workers = self.has_no_workers(index).then(|| self.no_workers_of(index));
            let (has_weight, origin) = (self.split.weight(&self.pools[index].name) > 0, self.split.origin());
            let pool = &mut self.pools[index];
            passed.ended.extend(pool.view.expire_missing(now));
            passed.news.extend(pool.look(has_weight, origin, now));
            let Pool { name, view, queue, .. } = pool;
            view.forget(now);
            passed.ejections.extend(view.judge(now).into_iter().map(|news| (name.clone(), news)));
            queue.pass(now);
            let hopeless = |integration: &IntegrationName| match view.serves(integration) {
                Served::Yes => None,
                Served::ByNobody if view.is_stale() => Some(nobody_known(integration, name)),
                Served::ByNobody => Some(unknown_integration(integration, name)),
                Served::NoWorkers => no_workers.clone(),
                Served::Broken => Some(broken(integration)),
            };
            passed.told.extend(queue.give_up(hopeless, &impatient, now));
        }
        passed
    }

    /// Forgets pools that no setting names and that are not followed, once their last calls have ended; returns the workers that
    /// they had.
    fn close_unnamed(&mut self, now: Instant) -> Vec<Placement> {
        let named: Vec<_> = self.split.pools().collect();
        if named.len() == self.pools.len() {
            return Vec::new();
        }
        let is_over = |pool: &Pool<T>| !named.contains(&&pool.name) && !pool.is_followed && pool.queue.is_idle();
        let over: Vec<_> = self.pools.extract_if(.., |pool| is_over(pool)).collect();
        over.iter().flat_map(|pool| pool.view.placements(now)).collect()
    }

    /// Whether the registry of each pool that gets tasks has been heard.
    pub(super) fn are_heard(&self) -> bool {
        let mut getting = self.pools.iter().filter(|pool| self.split.weight(&pool.name) > 0);
        getting.all(|pool| pool.heard_at.is_some())
    }

    fn home_index(&self, place: &Place) -> usize {
        let home = self.home(place);
        self.pools.iter().position(|pool| pool.name == *home).expect("each pool of the split was opened with it")
    }

    fn home_mut(&mut self, place: &Place) -> &mut Pool<T> {
        let home = self.home_index(place);
        &mut self.pools[home]
    }

    fn pool_mut(&mut self, name: &PoolName) -> Option<&mut Pool<T>> {
        self.pools.iter_mut().find(|pool| pool.name == *name)
    }
}

fn broken(integration: &IntegrationName) -> TaskError {
    let message = format!("every worker spares the integration {:?} for now, because it fails", integration.as_str());
    TaskError::breaker_open(message, BROKEN_RETRY_AFTER)
}

/// Nobody may be known only because the registry cannot be reached.
fn nobody_known(integration: &IntegrationName, pool: &PoolName) -> TaskError {
    let (integration, pool) = (integration.as_str(), pool.as_str());
    TaskError::no_workers(format!(
        "the router knows no worker of pool {pool:?} that runs an integration {integration:?}, and cannot reach the registry to \
         hear of one"
    ))
}

fn unknown_integration(integration: &IntegrationName, pool: &PoolName) -> TaskError {
    let (integration, pool) = (integration.as_str(), pool.as_str());
    TaskError::unknown_integration(format!("no worker of pool {pool:?} runs an integration {integration:?}"))
}

#[cfg(test)]
mod tests;
