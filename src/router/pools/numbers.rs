//! The pools in numbers, for metrics and descriptions.

use std::time::Duration;

use tokio::time::Instant;

use super::Pools;
use crate::router::outlier::{self, Ejection};
use crate::router::queue::{ClassNumbers, TenantNumbers};
use crate::router::view::Census;
use crate::task::{PoolName, Priority, WorkerId};

/// The most ejected workers that are named, of a pool and of all together.
pub(in crate::router) const MAX_EJECTED: usize = 20;

/// How a pool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::router) enum Condition {
    /// It has workers.
    Serving,
    /// It has none any more.
    NoWorkers,
    /// It has none, and this router never knew one there: is its name right?
    NeverSeen,
    /// Its registry has not been heard yet.
    Unheard,
}

impl Condition {
    pub(in crate::router) const ALL: [Condition; 4] =
        [Condition::Serving, Condition::NoWorkers, Condition::NeverSeen, Condition::Unheard];

    /// The label in metrics.
    pub(in crate::router) fn as_str(self) -> &'static str {
        match self {
            Condition::Serving => "serving",
            Condition::NoWorkers => "no_workers",
            Condition::NeverSeen => "never_seen",
            Condition::Unheard => "unheard",
        }
    }
}

/// One pool.
#[derive(Debug, Clone)]
pub(in crate::router) struct PoolNumbers {
    pub(in crate::router) name: PoolName,
    pub(in crate::router) weight: u32,
    /// Its part of the tasks, 0 to 1.
    pub(in crate::router) share: f64,
    pub(in crate::router) overflows_into: Option<PoolName>,
    pub(in crate::router) condition: Condition,
    pub(in crate::router) census: Census,
    pub(in crate::router) stale: bool,
    pub(in crate::router) view_age: Option<Duration>,
    /// Since the start, by reason.
    pub(in crate::router) ejections: [u64; outlier::Reason::ALL.len()],
    /// Who is ejected: those first that have been for longest, and not all.
    pub(in crate::router) ejected: Vec<(WorkerId, Ejection)>,
    pub(in crate::router) classes: [ClassNumbers; 2],
}

impl<T> Pools<T> {
    /// Each pool in numbers, by name.
    pub(in crate::router) fn numbers(&self, now: Instant) -> Vec<PoolNumbers> {
        let numbers = self.pools.iter().map(|pool| PoolNumbers {
            name: pool.name.clone(),
            weight: self.split.weight(&pool.name),
            share: self.split.share(&pool.name),
            overflows_into: self.split.overflow_of(&pool.name).cloned(),
            condition: pool.condition(),
            census: pool.view.census(now),
            stale: pool.view.is_stale(),
            view_age: pool.heard_at.map(|at| now.duration_since(at)),
            ejections: pool.view.ejections(),
            ejected: pool.view.ejected().take(MAX_EJECTED).map(|(worker, it)| (worker.clone(), it)).collect(),
            classes: pool.queue.numbers(now),
        });
        numbers.collect()
    }

    /// The tenants of a class that have the most waiting in each pool, up to a number of all together.
    pub(in crate::router) fn top_tenants(&self, of: Priority, at_most: usize) -> Vec<(PoolName, TenantNumbers)> {
        let of_pool = |pool: &super::Pool<T>| {
            let name = pool.name.clone();
            pool.queue.top_tenants(of, at_most).into_iter().map(move |numbers| (name.clone(), numbers))
        };
        let mut all: Vec<_> = self.pools.iter().flat_map(of_pool).collect();
        // Those of each pool are in this order already.
        all.sort_by_key(|(_, numbers)| std::cmp::Reverse((numbers.waiting, numbers.running)));
        all.truncate(at_most);
        all
    }
}
