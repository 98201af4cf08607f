//! The dispatcher without its edges, for benches: what it costs to find a worker.

use futures_util::FutureExt;

use super::dispatch::{Dispatcher, Reservation};
use super::split::Split;
use super::{outlier, queue};
use crate::registry::{Change, Presence};
use crate::settings;
use crate::task::{PoolName, Task};

/// View and queue of a router.
pub struct Dispatch(Dispatcher);

/// A worker that was found; dropping it ends the call.
pub struct Found(#[expect(dead_code, reason = "held")] Reservation);

impl Dispatch {
    /// That knows these workers.
    pub fn new(workers: Vec<Presence>) -> Self {
        let pool = PoolName::default();
        let split = Split::new(&settings::Config::default().start(), &pool);
        let dispatcher = Dispatcher::new(queue::Config::default(), outlier::Config::default(), split, 1);
        dispatcher.apply(&pool, workers.into_iter().map(Change::Present).collect());
        Dispatch(dispatcher)
    }

    /// A worker with room, if there is one: lock, queue, pick and all.
    pub fn find(&self, task: &Task) -> Option<Found> {
        let place = self.0.place(task);
        self.0.reserve(&place, false).now_or_never()?.ok().map(Found)
    }
}
