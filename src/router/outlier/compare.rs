//! Each worker beside the others.

use std::collections::HashMap;

use tokio::time::Instant;

use super::alibi::Alibis;
use super::{Conduct, Config, Reason, Saw, Tally};
use crate::task::{IntegrationName, WorkerId};

/// A worker is compared with the others for integrations of which they have ended at least so many.
const OTHERS_TASKS: f64 = 5.0;

/// Of what a worker failed, the most that may have been expected of it.
const EXPECTED_SHARE: f64 = 0.5;

/// By the success rate: how much more of its tasks than the mean an outlier fails, at least.
const LEAST_EXCESS: f64 = 0.1;

/// By the success rate: so many standard deviations of what chance alone would make of it. Thousands of workers are looked at
/// every second, and what chance does once in a million times would eject one each hour.
const BEYOND_CHANCE: f64 = 6.0;

/// One worker beside what was expected of it, in tasks.
struct Compared<'a> {
    worker: &'a WorkerId,
    conduct: &'a Conduct,
    ended: f64,
    out: f64,
    failed: f64,
    expected: f64,
}

/// What all workers together ended of each integration, and failed.
type Totals<'a> = HashMap<&'a IntegrationName, (f64, f64)>;

/// What comes of comparing them.
pub(super) struct Found {
    /// Those that stand out, the worst first.
    pub(super) outliers: Vec<(WorkerId, Saw)>,
    /// Those whose trial came to nothing, as it does with the others.
    pub(super) like_others: Vec<WorkerId>,
}

/// Compares all with one another.
pub(super) fn compare<'a>(
    pool: &'a [(&'a WorkerId, &'a mut Conduct)],
    alibis: &Alibis,
    config: &Config,
    now: Instant,
) -> Found {
    let mut totals = Totals::new();
    for (integration, tally) in pool.iter().flat_map(|(_, conduct)| &conduct.tallies) {
        let (ended, failed) = counted(tally, config);
        let total = totals.entry(integration).or_default();
        *total = (total.0 + ended, total.1 + failed);
    }
    let compared: Vec<_> = pool
        .iter()
        .filter_map(|(worker, conduct)| Compared::new(worker, conduct, &totals, config, |_, _| 0.0))
        .collect();
    let proven = |it: &Compared<'a>| {
        let excused = |integration: &IntegrationName, tally: &Tally| {
            (tally.failed - alibis.held_against(it.worker, integration, config.window, now)).max(0.0)
        };
        Compared::new(it.worker, it.conduct, &totals, config, excused)
    };

    let failing = compared.iter().filter(|it| it.fails(config));
    let failing = failing.filter_map(proven).filter(|it| it.fails(config));
    let mut found: Vec<_> = failing.map(|it| (it, Reason::Failing)).collect();

    let rated: Vec<_> = compared.iter().filter(|it| it.is_rated(config)).collect();
    if rated.len() >= config.success_rate_workers as usize {
        let workers = rated.len() as f64;
        let mean = rated.iter().map(|it| it.excess()).sum::<f64>() / workers;
        let variance = rated.iter().map(|it| (it.excess() - mean).powi(2)).sum::<f64>() / workers;
        // What is out makes all look better than is expected of them; none is worse only because it has less out.
        let beyond = mean.max(0.0) + (config.success_rate_stdev * variance.sqrt()).max(LEAST_EXCESS);
        let is_known = |it: &Compared<'_>| found.iter().any(|(known, _)| known.worker == it.worker);
        let more = rated.into_iter().filter(|it| it.is_beyond(beyond) && !is_known(it));
        let more = more.filter_map(proven).filter(|it| it.is_rated(config) && it.is_beyond(beyond));
        let more: Vec<_> = more.map(|it| (it, Reason::SuccessRate)).collect();
        found.extend(more);
    }
    found.sort_by(|(one, _), (other, _)| other.excess().total_cmp(&one.excess()));
    let like_others = compared.iter().filter(|it| it.conduct.has_failed_its_trial() && it.is_like_others());
    Found {
        outliers: found.into_iter().map(|(it, reason)| (it.worker.clone(), it.saw(reason))).collect(),
        like_others: like_others.map(|it| it.worker.clone()).collect(),
    }
}

/// What a worker counts for where others are compared with it.
fn counted(tally: &Tally, config: &Config) -> (f64, f64) {
    let share = (f64::from(config.min_tasks) / tally.all).min(1.0);
    (tally.all * share, tally.failed * share)
}

impl<'a> Compared<'a> {
    /// None where not enough is known. `excused` are the failures of an integration that are left out.
    fn new(
        worker: &'a WorkerId,
        conduct: &'a Conduct,
        totals: &Totals<'_>,
        config: &Config,
        excused: impl Fn(&IntegrationName, &Tally) -> f64,
    ) -> Option<Self> {
        let mut compared = Compared { worker, conduct, ended: 0.0, out: 0.0, failed: 0.0, expected: 0.0 };
        for (integration, tally) in &conduct.tallies {
            let (total, own) = (totals.get(integration).copied().unwrap_or_default(), counted(tally, config));
            let (others, others_failed) = (total.0 - own.0, (total.1 - own.1).max(0.0));
            // What others have hardly done says nothing of how it should go.
            if others >= OTHERS_TASKS {
                let excused = excused(integration, tally);
                compared.ended += tally.all - excused;
                compared.out += f64::from(tally.out);
                compared.failed += tally.failed - excused;
                compared.expected += (tally.all - excused) * others_failed / others;
            }
        }
        (compared.ended > 0.0).then_some(compared)
    }

    fn failed(&self) -> f64 {
        self.failed / (self.ended + self.out)
    }

    fn expected(&self) -> f64 {
        self.expected / self.ended
    }

    fn excess(&self) -> f64 {
        self.failed() - self.expected()
    }

    /// By the rule `failing`. A trial has few tasks.
    fn fails(&self, config: &Config) -> bool {
        let is_good = self.conduct.is_good();
        let is_known =
            if is_good { self.ended >= f64::from(config.min_tasks) } else { self.conduct.has_failed_its_trial() };
        is_known && self.failed() >= config.failing && !self.is_like_others()
    }

    fn is_like_others(&self) -> bool {
        self.expected() > self.failed() * EXPECTED_SHARE
    }

    /// Whether it has a success rate.
    fn is_rated(&self, config: &Config) -> bool {
        self.conduct.is_good() && self.ended >= f64::from(config.success_rate_tasks)
    }

    fn is_beyond(&self, excess: f64) -> bool {
        let by_chance = BEYOND_CHANCE * self.expected.max(1.0).sqrt();
        self.excess() > excess && self.excess() * self.ended > by_chance
    }

    fn saw(&self, reason: Reason) -> Saw {
        Saw { reason, tasks: self.ended, failed: self.failed(), expected: self.expected() }
    }
}
