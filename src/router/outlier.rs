//! Which workers are left alone because their calls fail while those of others do not: pure, with the time passed in.
//!
//! A worker that fails fast always has room, and so draws all tasks to itself. What is done about it is Envoy's outlier
//! detection (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>): who stands out is
//! ejected for `base_time` × the times that it was, at most for `max_time`, never more than a share of the pool, and comes
//! back by itself. What counts, and against what, is weir's own:
//!
//! - **A call that broke** after it was sent, without a word of weir's (`consecutive_errors` in a row). What comes while the
//!   worker is in doubt already has the same cause, such as one connection that broke with all calls on it, and is one error.
//! - **An outcome that is a failure**: of the integration, a panic, or its deadline. Not that a person must act, which is
//!   the bank's own answer, nor an output that is too large; a cancelled task says nothing.
//! - **A refusal says nothing**: full, draining, overloaded, a breaker, a wrong task are no failures of the worker. Nor is a
//!   connection that cannot be made, for which the worker is left alone anyway.
//!
//! When a bank is down, all workers fail. So a worker is only compared with the others, and for the same integrations: what
//! it would have failed at their rate is *expected* of it (indirect standardization), and no worker counts for more than
//! `min_tasks` in that, lest one that draws everything is itself what others are compared with. Two rules, looked at
//! every second:
//!
//! - **failing**: of at least `min_tasks` it failed the share `failing`, and no more than half of that was expected. Two
//!   workers are enough.
//! - **success rate**: among `success_rate_workers` with `success_rate_tasks` each, it fails more than is expected by more
//!   than `success_rate_stdev` standard deviations over the mean; and by a tenth of its tasks, and by more than chance makes
//!   likely, since in a healthy pool the deviation is next to nothing.
//!
//! Other than with Envoy, who comes back is on trial: it gets [`TRIAL_TASKS`] tasks and no more, until one went well or all
//! have failed.

mod config;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

pub use config::Config;

use crate::task::{IntegrationName, WorkerId};

/// How often the pool is looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// What a worker on trial gets.
pub(super) const TRIAL_TASKS: u32 = 5;

/// A worker is compared with the others for integrations of which they have ended at least so many.
const OTHERS_TASKS: f64 = 5.0;

/// Of what a worker failed, the most that may have been expected of it.
const EXPECTED_SHARE: f64 = 0.5;

/// By the success rate: how much more of its tasks than the mean an outlier fails, at least.
const LEAST_EXCESS: f64 = 0.1;

/// By the success rate: so many standard deviations of what chance alone would make of it. Thousands of workers are looked at
/// every second, and what chance does once in a million times would eject one each hour.
const BEYOND_CHANCE: f64 = 6.0;

/// What counts for less than this many tasks is forgotten.
const WORTHLESS: f64 = 0.01;

/// Why a worker was ejected: the label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    ConsecutiveErrors,
    Failing,
    SuccessRate,
}

impl Reason {
    pub(super) const ALL: [Reason; 3] = [Reason::ConsecutiveErrors, Reason::Failing, Reason::SuccessRate];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Reason::ConsecutiveErrors => "consecutive_errors",
            Reason::Failing => "failing",
            Reason::SuccessRate => "success_rate",
        }
    }
}

/// What a call says of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// Nothing: it was refused, cancelled or given up.
    Nothing,
    /// It answered as it should, with an error of the task's own.
    Answers,
    Well,
    Badly,
    /// The call broke after it was sent.
    Broke,
}

/// How one life of a worker has fared.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    tallies: HashMap<IntegrationName, Tally>,
    errors_in_a_row: u32,
    /// How often it was ejected, less what it has made good.
    times: u32,
    /// Since when it has been in good standing, or since it last made one good.
    good_since: Option<Instant>,
    standing: Standing,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Standing {
    #[default]
    In,
    Out(Ejection),
    /// `taken` are the calls that it got, those that said nothing apart; `failed` are those that failed.
    OnTrial {
        taken: u32,
        failed: u32,
    },
}

/// Why a worker is left alone, and until when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ejection {
    pub(super) saw: Saw,
    pub(super) until: Instant,
    /// Which time it is.
    pub(super) times: u32,
}

/// What made a worker stand out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Saw {
    pub(super) reason: Reason,
    /// Outcomes, or for [`Reason::ConsecutiveErrors`] errors.
    tasks: f64,
    /// The share of them that failed, and the one that was expected.
    failed: f64,
    expected: f64,
}

/// Outcomes of an integration at one worker, the newer of which count more.
#[derive(Debug, Clone, Copy)]
struct Tally {
    all: f64,
    failed: f64,
    at: Instant,
}

impl Tally {
    fn age(&mut self, window: Duration, now: Instant) {
        let age = now.saturating_duration_since(self.at).as_secs_f64() / window.as_secs_f64();
        let left = (-age).exp2();
        (self.all, self.failed, self.at) = (self.all * left, self.failed * left, now.max(self.at));
    }
}

impl Conduct {
    /// Whether it may get a call.
    pub(super) fn admits(&self) -> bool {
        match self.standing {
            Standing::In => true,
            Standing::Out(_) => false,
            Standing::OnTrial { taken, .. } => taken < TRIAL_TASKS,
        }
    }

    pub(super) fn ejection(&self) -> Option<Ejection> {
        if let Standing::Out(ejection) = self.standing { Some(ejection) } else { None }
    }

    /// A call goes out.
    pub(super) fn take(&mut self) {
        if let Standing::OnTrial { taken, .. } = &mut self.standing {
            *taken += 1;
        }
    }

    /// A call has ended. Returns what made the worker stand out by it.
    pub(super) fn learn(
        &mut self,
        integration: &IntegrationName,
        says: Says,
        config: &Config,
        now: Instant,
    ) -> Option<Saw> {
        if let Standing::OnTrial { taken, failed } = &mut self.standing {
            match says {
                Says::Nothing | Says::Answers => *taken = taken.saturating_sub(1),
                Says::Badly | Says::Broke => *failed += 1,
                Says::Well => self.readmit(now),
            }
        }
        match says {
            Says::Nothing => {}
            Says::Broke => self.errors_in_a_row += 1,
            Says::Answers | Says::Well | Says::Badly => self.errors_in_a_row = 0,
        }
        if let Says::Well | Says::Badly = says
            && self.ejection().is_none()
        {
            let new = Tally { all: 0.0, failed: 0.0, at: now };
            let tally = match self.tallies.get_mut(integration) {
                Some(tally) => tally,
                None => self.tallies.entry(integration.clone()).or_insert(new),
            };
            tally.age(config.window, now);
            tally.all += 1.0;
            tally.failed += f64::from(u8::from(says == Says::Badly));
        }
        let errors = self.errors_in_a_row;
        let stands_out = errors >= config.consecutive_errors && self.ejection().is_none();
        stands_out.then(|| Saw { reason: Reason::ConsecutiveErrors, tasks: errors.into(), failed: 1.0, expected: 0.0 })
    }

    /// Leaves it alone for a while.
    pub(super) fn eject(&mut self, saw: Saw, config: &Config, now: Instant) -> Ejection {
        self.times = self.times.saturating_add(1);
        let until = now + config.base_time.saturating_mul(self.times).min(config.max_time);
        let ejection = Ejection { saw, until, times: self.times };
        self.standing = Standing::Out(ejection);
        self.tallies.clear();
        ejection
    }

    /// Its time is over.
    pub(super) fn try_again(&mut self) {
        (self.standing, self.errors_in_a_row) = (Standing::OnTrial { taken: 0, failed: 0 }, 0);
    }

    /// It is as good as any.
    pub(super) fn readmit(&mut self, now: Instant) {
        (self.standing, self.errors_in_a_row, self.good_since) = (Standing::In, 0, Some(now));
    }

    /// Whether a trial came to nothing that went well.
    fn has_failed_its_trial(&self) -> bool {
        matches!(self.standing, Standing::OnTrial { failed, .. } if failed >= TRIAL_TASKS)
    }

    /// What it has made good by itself.
    fn mend(&mut self, config: &Config, now: Instant) {
        let is_in = self.standing == Standing::In;
        if let Some(since) = self.good_since.filter(|since| is_in && now.duration_since(*since) >= config.base_time) {
            self.times = self.times.saturating_sub(1);
            self.good_since = (self.times > 0).then_some(since + config.base_time);
        }
    }
}

/// One worker beside what was expected of it.
struct Compared<'a> {
    worker: &'a WorkerId,
    tasks: f64,
    failed: f64,
    expected: f64,
    /// Whether its trial came to nothing that went well; none when it is not on trial.
    failed_trial: Option<bool>,
}

impl Compared<'_> {
    fn excess(&self) -> f64 {
        self.failed - self.expected
    }

    fn saw(&self, reason: Reason) -> Saw {
        Saw { reason, tasks: self.tasks, failed: self.failed, expected: self.expected }
    }
}

/// Looks at the pool once in a while.
#[derive(Debug, Default)]
pub(super) struct Watch {
    swept_at: Option<Instant>,
    /// When an outcome was last a failure: without any there is nothing to look for.
    failed_at: Option<Instant>,
}

impl Watch {
    /// A call has ended so.
    pub(super) fn saw(&mut self, says: Says, now: Instant) {
        if let Says::Badly | Says::Broke = says {
            self.failed_at = Some(now);
        }
    }

    /// Whether it is time to look at the pool.
    pub(super) fn is_due(&mut self, config: &Config, now: Instant) -> bool {
        let is_due = self.swept_at.is_none_or(|at| now.duration_since(at) >= SWEEP);
        // Who was ejected makes it good within that time, or has failed since.
        let kept = config.window * 10 + config.max_time * 2;
        let is_worth = config.enabled && self.failed_at.is_some_and(|at| now.duration_since(at) < kept);
        if is_due && is_worth {
            self.swept_at = Some(now);
        }
        is_due && is_worth
    }
}

/// Looks at all workers: forgets what is old, and finds those that stand out, the worst first. Those whose trial came to
/// nothing, though they do not stand out, are readmitted: others fail, too.
pub(super) fn sweep<'a>(
    pool: impl IntoIterator<Item = (&'a WorkerId, &'a mut Conduct)>,
    config: &Config,
    now: Instant,
) -> Vec<(WorkerId, Saw)> {
    let mut pool: Vec<_> = pool.into_iter().collect();
    for (_, conduct) in &mut pool {
        conduct.tallies.values_mut().for_each(|tally| tally.age(config.window, now));
        conduct.tallies.retain(|_, tally| tally.all >= WORTHLESS);
        conduct.mend(config, now);
    }
    let found = stand_out(&compare(&pool, config), config);
    for (worker, conduct) in &mut pool {
        if conduct.has_failed_its_trial() && !found.iter().any(|(found, _)| found == *worker) {
            conduct.readmit(now);
        }
    }
    found
}

/// Each worker of which enough is known, beside the others.
fn compare<'a>(pool: &[(&'a WorkerId, &mut Conduct)], config: &Config) -> Vec<Compared<'a>> {
    let most = f64::from(config.min_tasks);
    let counted = |tally: &Tally| {
        let share = (most / tally.all).min(1.0);
        (tally.all * share, tally.failed * share)
    };
    let mut totals: HashMap<&IntegrationName, (f64, f64)> = HashMap::new();
    for (integration, tally) in pool.iter().flat_map(|(_, conduct)| &conduct.tallies) {
        let (all, failed) = counted(tally);
        let total = totals.entry(integration).or_default();
        *total = (total.0 + all, total.1 + failed);
    }
    let compared = |(worker, conduct): &(&'a WorkerId, &mut Conduct)| {
        let (mut tasks, mut failed, mut expected) = (0.0, 0.0, 0.0);
        for (integration, tally) in &conduct.tallies {
            let (total, own) = (totals.get(integration).copied().unwrap_or_default(), counted(tally));
            let (others, others_failed) = (total.0 - own.0, (total.1 - own.1).max(0.0));
            // What others have hardly done says nothing of how it should go.
            if others >= OTHERS_TASKS {
                tasks += tally.all;
                failed += tally.failed;
                expected += tally.all * others_failed / others;
            }
        }
        let failed_trial = (conduct.standing != Standing::In).then(|| conduct.has_failed_its_trial());
        let shares = (failed / tasks, expected / tasks);
        (tasks > 0.0).then_some(Compared { worker, tasks, failed: shares.0, expected: shares.1, failed_trial })
    };
    pool.iter().filter_map(compared).collect()
}

/// Those that stand out, the worst first.
fn stand_out(compared: &[Compared<'_>], config: &Config) -> Vec<(WorkerId, Saw)> {
    let has = |it: &Compared<'_>, tasks: u32| it.tasks >= f64::from(tasks);
    let fails = |it: &&Compared<'_>| {
        let is_known = it.failed_trial.unwrap_or_else(|| has(it, config.min_tasks));
        is_known && it.failed >= config.failing && it.expected <= it.failed * EXPECTED_SHARE
    };
    let mut found: Vec<(&Compared<'_>, Reason)> =
        compared.iter().filter(fails).map(|it| (it, Reason::Failing)).collect();

    let rated: Vec<_> =
        compared.iter().filter(|it| it.failed_trial.is_none() && has(it, config.success_rate_tasks)).collect();
    if rated.len() >= config.success_rate_workers as usize {
        let workers = rated.len() as f64;
        let mean = rated.iter().map(|it| it.excess()).sum::<f64>() / workers;
        let variance = rated.iter().map(|it| (it.excess() - mean).powi(2)).sum::<f64>() / workers;
        let beyond = mean + (config.success_rate_stdev * variance.sqrt()).max(LEAST_EXCESS);
        let by_chance = |it: &Compared<'_>| BEYOND_CHANCE * (it.expected * it.tasks).max(1.0).sqrt();
        let is_outlier = |it: &Compared<'_>| it.excess() > beyond && it.excess() * it.tasks > by_chance(it);
        let known = |it: &Compared<'_>| found.iter().any(|(known, _)| known.worker == it.worker);
        let more: Vec<_> = rated.into_iter().filter(|it| is_outlier(it) && !known(it)).collect();
        found.extend(more.into_iter().map(|it| (it, Reason::SuccessRate)));
    }
    found.sort_by(|(one, _), (other, _)| other.excess().total_cmp(&one.excess()));
    found.into_iter().map(|(it, reason)| (it.worker.clone(), it.saw(reason))).collect()
}

impl fmt::Display for Saw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Saw { reason, tasks, failed, expected } = self;
        match reason {
            Reason::ConsecutiveErrors => write!(f, "{tasks:.0} calls in a row broke after they were sent"),
            Reason::Failing | Reason::SuccessRate => {
                let [failed, expected] = [failed, expected].map(|share| share * 100.0);
                write!(f, "{failed:.0}% of its last tasks failed, and {expected:.0}% of the same at other workers")
            }
        }
    }
}

#[cfg(test)]
mod tests;
