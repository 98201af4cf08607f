//! Where the view and the queue meet: one short mutex, and the waiting around it.
//!
//! A task asks for a [`Reservation`]; it gets one at once when a worker has room and nobody is ahead of it, and else
//! waits in the queue. Whatever may have made room serves the queue: a reply does so at the worker that it is from, a
//! change in the registry or the passing of time at all. A reservation is a value: dropping it, on any path, ends the
//! router's count of the call.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::outlier::{self, Ejection};
use super::queue::{self, Call, ClassNumbers, Full, Place, Queue, Ran, Room, Standing, TenantNumbers};
use super::view::{Census, Held, Learned, News, Placement, Served, View, Wanted};
use crate::registry::{Change, Snapshot};
use crate::task::{IntegrationName, Priority, Task, WorkerId};
use crate::wire::TaskError;
use crate::wire::metadata::LoadReport;

/// How long tasks wait for a first worker before they are told that there is none: long enough for a restart.
const NO_WORKERS_PATIENCE: Duration = Duration::from_secs(5);

/// What callers are told to wait while all workers spare an integration: they look again every few seconds.
const BROKEN_RETRY_AFTER: Duration = Duration::from_secs(2);

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
    placement: Placement,
    place: Place,
    call: Call,
    ended: Ended,
}

/// How a call ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) learned: Learned,
    pub(super) load: Option<LoadReport>,
    pub(super) ran: Ran,
}

/// The dispatcher in numbers.
pub(super) struct Numbers {
    pub(super) census: Census,
    pub(super) stale: bool,
    pub(super) view_age: Option<Duration>,
    /// Since the start, by reason.
    pub(super) ejections: [u64; outlier::Reason::ALL.len()],
    pub(super) classes: [ClassNumbers; 2],
}

/// Where a task stands that has no worker yet.
pub(super) struct Stands {
    /// None when it is not in the queue.
    pub(super) standing: Option<Standing>,
    pub(super) held: Held,
    /// All of its class that wait.
    pub(super) waiting: usize,
}

impl Dispatcher {
    /// An empty view and an empty queue.
    pub(super) fn new(config: queue::Config, outliers: outlier::Config, seed: u64) -> Self {
        let state = State {
            view: View::new(outliers),
            queue: Queue::new(config, Instant::now()),
            random: SmallRng::seed_from_u64(seed),
            synced_at: None,
        };
        Dispatcher { state: Arc::new(Mutex::new(state)) }
    }

    /// A place for a task.
    pub(super) fn place(&self, task: &Task) -> Place {
        self.state.lock().queue.place(task, Instant::now())
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
        let State { view, queue, random, .. } = &mut *state;
        // Where others are before it, there was no room for them.
        let room = queue.is_first(place).then(|| view.reserve(&place.into(), random, now));
        if let Some(Room::Found(placement)) = room {
            let call = queue.start(place, now);
            return Ok(self.reservation(placement, place.clone(), call));
        }
        match view.serves(&place.integration) {
            Served::ByNobody if !view.is_stale() => {
                return Err(No(TurnedAway::Hopeless(unknown_integration(&place.integration))));
            }
            Served::Broken => return Err(No(TurnedAway::Hopeless(broken(&place.integration)))),
            _ => {}
        }
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
            queue.push(place.clone(), waiter, now).map_err(|full| No(TurnedAway::Full(full)))?;
        }
        if let Some(room) = room {
            queue.found(place, room, now);
        }
        drop(state);
        if serves {
            self.change(None, |_, _| ());
        }
        Err(Waits { answer: receiver, needs })
    }

    /// The registry's whole word.
    pub(super) fn replace(&self, snapshot: Snapshot) {
        self.change(None, |state, now| {
            state.view.replace(snapshot.workers, now);
            state.queue.unpark_all();
            state.synced_at = Some(now);
        });
    }

    /// What the registry says has changed; returns the workers that are no more.
    pub(super) fn apply(&self, changes: Vec<Change>) -> Vec<Placement> {
        self.change(None, |state, now| {
            state.synced_at = Some(now);
            state.view.set_fresh();
            let gone = changes.into_iter().filter_map(|change| state.view.apply(change, now)).collect();
            if state.view.has_other_limits() {
                state.queue.unpark_all();
            }
            gone
        })
    }

    /// The registry cannot be reached.
    pub(super) fn set_stale(&self) {
        self.change(None, |state, _| state.view.set_stale());
    }

    /// Time has passed: what only time can end is ended. Returns the workers that are no more.
    pub(super) fn tick(&self) -> Vec<Placement> {
        let (expired, told, news) = self.change(None, |state, now| {
            let expired = state.view.expire_missing(now);
            state.view.forget(now);
            let news = state.view.judge(now);
            let State { view, queue, synced_at, .. } = state;
            queue.pass(now);
            let hopeless = |integration: &IntegrationName| match view.serves(integration) {
                Served::Yes => None,
                Served::ByNobody if view.is_stale() => Some(nobody_known(integration)),
                Served::ByNobody => Some(unknown_integration(integration)),
                Served::NoWorkers => Some(no_workers(view.is_stale(), *synced_at)),
                Served::Broken => Some(broken(integration)),
            };
            let impatient = |waiter: &Waiter| now.duration_since(waiter.since) >= NO_WORKERS_PATIENCE;
            (expired, queue.give_up(hopeless, impatient, now), news)
        });
        news.iter().for_each(report);
        for (waiter, error) in told {
            // Fails when the waiter has just left, and then nobody needs to be told.
            let _ = waiter.answer.send(Err(error));
        }
        expired
    }

    /// Where a task stands.
    pub(super) fn stands(&self, place: &Place) -> Stands {
        let now = Instant::now();
        let state = self.state.lock();
        let [interactive, batch] = state.queue.numbers(now).map(|class| class.waiting);
        Stands {
            standing: state.queue.standing(place, now),
            held: state.view.held(&place.into(), now),
            waiting: if place.priority == Priority::Batch { batch } else { interactive },
        }
    }

    /// What keeps a task from the workers that run its integration.
    pub(super) fn held(&self, place: &Place) -> Held {
        self.state.lock().view.held(&place.into(), Instant::now())
    }

    /// What callers are told while the pool is empty, as far as this router knows.
    pub(super) fn no_workers(&self) -> Option<TaskError> {
        let state = self.state.lock();
        (state.view.len() == 0).then(|| no_workers(state.view.is_stale(), state.synced_at))
    }

    /// Who is ejected, at most so many, those first that have been for longest.
    pub(super) fn ejected(&self, at_most: usize) -> Vec<(WorkerId, Ejection)> {
        let state = self.state.lock();
        state.view.ejected().take(at_most).map(|(worker, ejection)| (worker.clone(), ejection)).collect()
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
            ejections: state.view.ejections(),
            classes: state.queue.numbers(now),
        }
    }

    /// The tenants that have the most waiting, of each class.
    pub(super) fn top_tenants(&self, at_most: usize) -> [(Priority, Vec<TenantNumbers>); 2] {
        let state = self.state.lock();
        Priority::ALL.map(|priority| (priority, state.queue.top_tenants(priority, at_most)))
    }

    /// Changes the state, and then serves those who wait: any change may have made room, at one worker or at all.
    fn change<T>(&self, at: Option<&WorkerId>, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let (result, served) = {
            let mut state = self.state.lock();
            let result = change(&mut state, now);
            let State { view, queue, random, .. } = &mut *state;
            queue.set_slots(view.slots(), now);
            let served = match queue.is_empty() {
                true => Vec::new(),
                false => queue.serve(now, |place| match at {
                    Some(worker) => view.reserve_at(worker, &place.into(), now),
                    None => view.reserve(&place.into(), random, now),
                }),
            };
            (result, served)
        };
        for queue::Served { place, waiter, found, call } in served {
            // A waiter that has just left drops its reservation here, outside the lock, which serves the next.
            let _ = waiter.answer.send(Ok(self.reservation(found, place, call)));
        }
        result
    }

    fn reservation(&self, placement: Placement, place: Place, call: Call) -> Reservation {
        let ended = Ended { learned: Learned::Nothing, load: None, ran: Ran::default() };
        Reservation { dispatcher: self.clone(), placement, place, call, ended }
    }
}

impl Reservation {
    /// Where the call goes.
    pub(super) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The call goes out, over a connection that stands: from now on it may hold slots, whatever becomes of it.
    pub(super) fn goes_out(&mut self) {
        self.ended.ran.ran = true;
        if self.placement.tries {
            let placement = &self.placement;
            self.dispatcher.change(Some(&placement.worker), |state, _| state.view.connected(placement));
        }
    }

    /// Ends the call and keeps what it taught.
    pub(super) fn end(mut self, ended: Ended) {
        self.ended = ended;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Reservation { placement, place, call, ended, .. } = &*self;
        self.dispatcher.change(Some(&placement.worker), |state, now| {
            let chance = state.random.random();
            state.view.release(placement, &Wanted::from(place), ended.learned, ended.load, chance, now);
            state.queue.end(*call, &place.integration, ended.ran, now);
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
        self.dispatcher.state.lock().queue.remove(self.place, Instant::now());
    }
}

/// Empty, stale and empty, or not heard yet: three things that another person has to look into.
fn no_workers(is_stale: bool, synced_at: Option<Instant>) -> TaskError {
    TaskError::no_workers(match (is_stale, synced_at) {
        (false, Some(_)) => "the router knows no worker that is alive: the registry has none",
        (true, Some(_)) => "the router knows no worker that is alive, and cannot reach the registry to hear of one",
        (_, None) => "the router knows no worker yet: it has not heard the registry since it started",
    })
}

/// Nobody may be known only because the registry cannot be reached.
fn nobody_known(integration: &IntegrationName) -> TaskError {
    let name = integration.as_str();
    TaskError::no_workers(format!(
        "the router knows no worker that runs an integration {name:?}, and cannot reach the registry to hear of one"
    ))
}

fn report(news: &News) {
    match news {
        News::Ejected(worker, Ejection { saw, until, times }) => {
            let seconds = until.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
            tracing::warn!(%worker, reason = saw.reason.as_str(), seconds, times, "ejected worker {worker}: {saw}");
        }
        News::OnTrial(worker) => tracing::info!(%worker, "worker {worker} was ejected and is tried again"),
        News::Needed(worker) => {
            tracing::warn!(%worker, "worker {worker} is ejected no longer: too few others are left");
        }
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
