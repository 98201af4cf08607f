//! Which workers are left alone because their calls fail while those of others do not: pure, with the time passed in.
//!
//! A worker that fails fast always has room, and so draws all tasks to itself. What is done about it is Envoy's outlier
//! detection (<https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>): who stands out is
//! ejected for `base_time` × the times that it was, at most for `max_time`, never more than a share of the pool, and comes
//! back by itself. What counts, and against what, is weir's own:
//!
//! - **A call that broke** after it was sent, without a word of weir's (`consecutive_errors` in a row). What comes while the
//!   worker is in doubt already has the same cause, such as one connection that broke with all calls on it, and is one error.
//! - **An outcome that is a failure**: of the integration, a panic, its deadline, or no answer by then. Not that a person must
//!   act, which is the bank's own answer, nor an output that is too large; a cancelled task says nothing.
//! - **A refusal says nothing**: full, draining, overloaded, a breaker, a wrong task are no failures of the worker. Nor is a
//!   connection that cannot be made, for which the worker is left alone anyway.
//!
//! When a bank is down, all workers fail. So a worker is only compared with the others, and for the same integrations: what
//! it would have failed at their rate is *expected* of it (indirect standardization), and no worker counts for more than
//! `min_tasks` in that, lest one that draws everything is itself what others are compared with. What it has still out counts
//! as not failed: of slow tasks the quick failures end first, and a worker that has just come has nothing else. Two rules,
//! looked at every second:
//!
//! - **failing**: of at least `min_tasks` it failed the share `failing`, and no more than half of that was expected. Two
//!   workers are enough.
//! - **success rate**: among `success_rate_workers` with `success_rate_tasks` each, it fails more than is expected by more
//!   than `success_rate_stdev` standard deviations over the mean; and by a tenth of its tasks, and by more than chance makes
//!   likely, since in a healthy pool the deviation is next to nothing.
//!
//! Both must hold as well without the failures that prove nothing against it (`alibi`).
//!
//! Other than with Envoy, who comes back is on trial: it gets `TRIAL_TASKS` tasks and no more, until one went well or all
//! have failed. Calls that were sent before an ejection say nothing any more.

mod alibi;
mod compare;
mod config;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

pub use config::Config;

use crate::task::{IntegrationName, Tenant, WorkerId};
use alibi::Alibis;
use compare::Found;

/// How often the pool is looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// What a worker on trial gets.
pub(super) const TRIAL_TASKS: u32 = 5;

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
    /// What was sent before says nothing.
    ejected_at: Option<Instant>,
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
        failed_at: Instant,
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

/// A call that was sent, or at least was to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent<'a> {
    pub(super) integration: &'a IntegrationName,
    pub(super) tenant: &'a Tenant,
    pub(super) at: Instant,
}

/// Outcomes of an integration at one worker, the newer of which count more.
#[derive(Debug, Clone, Copy)]
struct Tally {
    all: f64,
    failed: f64,
    at: Instant,
    /// Calls that have not ended.
    out: u32,
}

impl Tally {
    fn new(now: Instant) -> Self {
        Tally { all: 0.0, failed: 0.0, at: now, out: 0 }
    }

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

    /// Whether it is as good as any: neither ejected nor on trial.
    pub(super) fn is_good(&self) -> bool {
        self.standing == Standing::In
    }

    pub(super) fn is_on_trial(&self) -> bool {
        matches!(self.standing, Standing::OnTrial { .. })
    }

    /// Whether its last call broke.
    pub(super) fn errs(&self) -> bool {
        self.errors_in_a_row > 0
    }

    /// Whether a call that was sent then says how it is now.
    pub(super) fn counts(&self, sent_at: Instant) -> bool {
        self.ejected_at.is_none_or(|at| sent_at >= at)
    }

    /// A call goes out.
    pub(super) fn take(&mut self, integration: &IntegrationName, now: Instant) {
        if let Standing::OnTrial { taken, .. } = &mut self.standing {
            *taken += 1;
        }
        let tally = self.tally(integration, now);
        tally.out = tally.out.saturating_add(1);
    }

    /// A call has ended. Returns what made the worker stand out by it.
    pub(super) fn learn(&mut self, sent: &Sent<'_>, says: Says, config: &Config, now: Instant) -> Option<Saw> {
        if !self.counts(sent.at) {
            return None;
        }
        if let Standing::OnTrial { taken, failed, failed_at } = &mut self.standing {
            match says {
                Says::Nothing | Says::Answers => *taken = taken.saturating_sub(1),
                Says::Badly | Says::Broke => (*failed, *failed_at) = (*failed + 1, now),
                Says::Well => self.readmit(now),
            }
        }
        match says {
            Says::Nothing => {}
            Says::Broke => self.errors_in_a_row += 1,
            Says::Answers | Says::Well | Says::Badly => self.errors_in_a_row = 0,
        }
        let tally = self.tally(sent.integration, now);
        tally.out = tally.out.saturating_sub(1);
        if let Says::Well | Says::Badly = says {
            tally.age(config.window, now);
            tally.all += 1.0;
            tally.failed += f64::from(u8::from(says == Says::Badly));
        }
        let errors = self.errors_in_a_row;
        let stands_out = errors >= config.consecutive_errors && self.ejection().is_none();
        stands_out.then(|| Saw { reason: Reason::ConsecutiveErrors, tasks: errors.into(), failed: 1.0, expected: 0.0 })
    }

    fn tally(&mut self, integration: &IntegrationName, now: Instant) -> &mut Tally {
        if !self.tallies.contains_key(integration) {
            self.tallies.insert(integration.clone(), Tally::new(now));
        }
        self.tallies.get_mut(integration).expect("it was there, or was just put there")
    }

    /// Leaves it alone for a while.
    pub(super) fn eject(&mut self, saw: Saw, config: &Config, now: Instant) -> Ejection {
        self.times = self.times.saturating_add(1);
        let until = now + config.base_time.saturating_mul(self.times).min(config.max_time);
        let ejection = Ejection { saw, until, times: self.times };
        (self.standing, self.ejected_at) = (Standing::Out(ejection), Some(now));
        self.tallies.clear();
        ejection
    }

    /// Its time is over.
    pub(super) fn try_again(&mut self, now: Instant) {
        (self.standing, self.errors_in_a_row) = (Standing::OnTrial { taken: 0, failed: 0, failed_at: now }, 0);
    }

    /// It is as good as any.
    pub(super) fn readmit(&mut self, now: Instant) {
        (self.standing, self.errors_in_a_row, self.good_since) = (Standing::In, 0, Some(now));
    }

    /// Whether a trial came to nothing that went well.
    fn has_failed_its_trial(&self) -> bool {
        matches!(self.standing, Standing::OnTrial { failed, .. } if failed >= TRIAL_TASKS)
    }

    /// Whether that was so long ago that nothing will be known any more of how others do.
    fn is_tried_in_vain(&self, config: &Config, now: Instant) -> bool {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= config.base_time;
        self.has_failed_its_trial() && matches!(self.standing, Standing::OnTrial { failed_at, .. } if is_old(failed_at))
    }

    /// What it has made good by itself.
    fn mend(&mut self, config: &Config, now: Instant) {
        let is_good = self.is_good();
        if let Some(since) = self.good_since.filter(|since| is_good && now.duration_since(*since) >= config.base_time) {
            self.times = self.times.saturating_sub(1);
            self.good_since = (self.times > 0).then_some(since + config.base_time);
        }
    }
}

/// Looks at the pool once in a while.
#[derive(Debug, Default)]
pub(super) struct Watch {
    swept_at: Option<Instant>,
    /// When an outcome was last a failure: without any there is nothing to look for.
    failed_at: Option<Instant>,
    alibis: Alibis,
}

impl Watch {
    /// A call goes out.
    pub(super) fn sent(&mut self, worker: &WorkerId, sent: &Sent<'_>) {
        self.alibis.sent(worker, sent);
    }

    /// A call has ended that says something, or nothing.
    pub(super) fn ended(&mut self, worker: &WorkerId, sent: &Sent<'_>) {
        self.alibis.ended(worker, sent);
    }

    /// What an ended call says.
    pub(super) fn saw(&mut self, worker: &WorkerId, sent: &Sent<'_>, says: Says, config: &Config, now: Instant) {
        if let Says::Badly | Says::Broke = says {
            self.failed_at = Some(now);
        }
        match says {
            Says::Well => self.alibis.did_well(worker, sent),
            Says::Badly => self.alibis.failed(worker, sent, config.window, now),
            Says::Nothing | Says::Answers | Says::Broke => {}
        }
    }

    /// A worker was ejected, or is no more.
    pub(super) fn forget(&mut self, worker: &WorkerId) {
        self.alibis.forget(worker);
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

    /// Looks at all workers: forgets what is old, and finds those that stand out, the worst first. Those whose trial came
    /// to nothing are readmitted where others fail, too, or where nothing is known of others for long.
    pub(super) fn sweep<'a>(
        &mut self,
        pool: impl IntoIterator<Item = (&'a WorkerId, &'a mut Conduct)>,
        config: &Config,
        now: Instant,
    ) -> Vec<(WorkerId, Saw)> {
        let mut pool: Vec<_> = pool.into_iter().collect();
        self.alibis.age(config.window, now);
        for (_, conduct) in &mut pool {
            conduct.tallies.values_mut().for_each(|tally| tally.age(config.window, now));
            conduct.tallies.retain(|_, tally| tally.all >= WORTHLESS || tally.out > 0);
            conduct.mend(config, now);
        }
        let Found { outliers, like_others } = compare::compare(&pool, &self.alibis, config, now);
        for (worker, conduct) in &mut pool {
            if like_others.contains(worker) || conduct.is_tried_in_vain(config, now) {
                conduct.readmit(now);
            }
        }
        outliers
    }
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
