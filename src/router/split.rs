//! Which pool a task goes to: pure.
//!
//! Weighted rendezvous hashing. From a key (a tenant or a task's id) and a pool's name follows a number u in (0, 1), the
//! same in each router and after each start; the pool with the smallest −ln(u) ÷ weight has the key. That is the first of
//! exponentially distributed times, whose rates are the weights, so each pool has its weight ÷ the sum of all keys. A key
//! moves only to a pool whose weight grew by a larger factor than that of its own. Where one weight changes, or there are
//! two pools, that is as little as can be: from 95:5 to 94:6, one key in a hundred moves.
//!
//! D. Thaler and C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates" (1998), for rendezvous hashing; C.
//! Schindelhauer and G. Schomaker, "Weighted Distributed Hash Tables" (SPAA 2005), for the weights (their logarithmic
//! method). The hash is XXH3, 64 bits, whose results are fixed.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::settings::{Settings, Sticky};
use crate::task::{PoolName, Task};

/// To which pools a router sends.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Split {
    /// Those with a weight, by name. At least one is above 0.
    weighted: Vec<Weighted>,
    sticky: Sticky,
    overflow: BTreeMap<PoolName, PoolName>,
    origin: Origin,
}

#[derive(Debug, Clone, PartialEq)]
struct Weighted {
    pool: PoolName,
    seed: u64,
    weight: u32,
}

/// Who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The setting `pools`.
    Setting,
    /// `router.pool`, because the setting is empty.
    Configuration,
}

/// What a task is told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keys {
    tenant: u64,
    task: u64,
}

impl Keys {
    pub(super) fn of(task: &Task) -> Self {
        Keys { tenant: xxh3_64(task.tenant.as_str().as_bytes()), task: xxh3_64(task.id.as_str().as_bytes()) }
    }
}

impl Split {
    /// What the settings say; `own` is the pool of the configuration.
    pub(super) fn new(settings: &Settings, own: &PoolName) -> Self {
        let weighted = |(pool, weight): (&PoolName, u32)| Weighted {
            seed: xxh3_64(pool.as_str().as_bytes()),
            pool: pool.clone(),
            weight,
        };
        let named: Vec<_> = settings.pools.iter().map(weighted).collect();
        let (weighted, origin) = match named.is_empty() {
            true => (vec![weighted((own, 1))], Origin::Configuration),
            false => (named, Origin::Setting),
        };
        let overflow = settings.pool_overflow.iter().map(|(pool, into)| (pool.clone(), into.clone())).collect();
        Split { weighted, sticky: settings.pool_sticky, overflow, origin }
    }

    /// The pool that a task goes to.
    pub(super) fn home(&self, keys: &Keys) -> &PoolName {
        let mut candidates = self.weighted.iter().filter(|weighted| weighted.weight > 0);
        let key = match self.sticky {
            Sticky::Tenant => keys.tenant,
            Sticky::Task => keys.task,
        };
        let first = candidates.next().expect("a split has a weight above 0");
        let mut best = (f64::INFINITY, first);
        // Mostly there is one, and then nothing is to be worked out.
        if let Some(second) = candidates.next() {
            for candidate in [first, second].into_iter().chain(candidates) {
                let at = candidate.time_of(key);
                if at < best.0 {
                    best = (at, candidate);
                }
            }
        }
        &best.1.pool
    }

    /// The pool that takes what another one has no room for.
    pub(super) fn overflow_of(&self, pool: &PoolName) -> Option<&PoolName> {
        self.overflow.get(pool)
    }

    /// The pools that have to be followed: those with a weight, 0 included, so that raising it takes effect at once; and
    /// those that they overflow into.
    pub(super) fn pools(&self) -> impl Iterator<Item = &PoolName> {
        let weighted = self.weighted.iter().map(|weighted| &weighted.pool);
        let takes_over = self.weighted.iter().filter_map(|weighted| self.overflow.get(&weighted.pool));
        let mut pools: Vec<_> = weighted.chain(takes_over).collect();
        pools.sort_unstable();
        pools.dedup();
        pools.into_iter()
    }

    /// The part of all keys that a pool has, from 0 to 1.
    pub(super) fn share(&self, pool: &PoolName) -> f64 {
        let all: f64 = self.weighted.iter().map(|weighted| f64::from(weighted.weight)).sum();
        f64::from(self.weight(pool)) / all
    }

    /// A pool's weight; 0 where it has none.
    pub(super) fn weight(&self, pool: &PoolName) -> u32 {
        self.weighted.iter().find(|weighted| weighted.pool == *pool).map_or(0, |weighted| weighted.weight)
    }

    /// Who says to which pools tasks go.
    pub(super) fn origin(&self) -> Origin {
        self.origin
    }
}

impl Weighted {
    /// −ln(u) ÷ weight.
    fn time_of(&self, key: u64) -> f64 {
        const WHOLE: f64 = (1u64 << 53) as f64;
        let hash = xxh3_64_with_seed(&key.to_le_bytes(), self.seed);
        let uniform = ((hash >> 11) as f64 + 0.5) / WHOLE;
        -uniform.ln() / f64::from(self.weight)
    }
}

#[cfg(test)]
mod tests;
