//! What windows come to: one value per signal and window, kept apart by what is compared with what.

use std::collections::BTreeMap;
use std::fmt;

use super::Rules;
use super::statistics::{Interval, Share, contrast, rise, shift};

/// Fewer tasks of an integration in a window, in either group, are put together with the next window's.
const TASKS_PER_VALUE: u64 = 20;

/// Values that a mean is judged by, at least.
const VALUES: usize = 4;

/// An integration with a smaller share of the tasks may stop a raise, but no raise waits for it.
const MAJOR: f64 = 0.05;

/// What a group of workers did in one window.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// How many of them were observed.
    pub workers: usize,
    /// Slots held by each, on average over the window and the workers.
    pub slots: f64,
    /// What ended, by integration.
    pub tasks: BTreeMap<String, Tasks>,
    /// Physical memory of each, on average; none where it is not known.
    pub memory_bytes: Option<f64>,
    /// How late the runtime was, on average; none where it is not known.
    pub lag_seconds: Option<f64>,
}

/// The tasks of an integration that ended.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tasks {
    /// How many; what was cancelled is not counted.
    pub ended: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How many runs were timed, and how long they took together.
    pub timed: u64,
    /// See `timed`.
    pub seconds: f64,
}

impl Tasks {
    /// The mean time of a run.
    pub fn mean_seconds(&self) -> f64 {
        self.seconds / (self.timed.max(1) as f64)
    }

    /// The share that failed.
    pub fn failing(&self) -> f64 {
        self.share().ratio()
    }

    /// Takes in others.
    pub fn add(&mut self, other: &Tasks) {
        self.ended += other.ended;
        self.failed += other.failed;
        self.timed += other.timed;
        self.seconds += other.seconds;
    }

    fn share(&self) -> Share {
        Share { part: self.failed as f64, of: self.ended as f64 }
    }
}

/// What is judged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// The mean time of an integration's runs: a natural logarithm of a ratio.
    Time(String),
    /// The share of an integration's tasks that fail: a difference of shares.
    Failures(String),
    /// How late the runtime is: a difference in seconds.
    Lag,
    /// Physical memory: a natural logarithm of a ratio.
    Memory,
    /// How far memory grows in a third of the windows while N stays: a natural logarithm.
    Leak,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Signal::Time(integration) => write!(f, "time of {integration}"),
            Signal::Failures(integration) => write!(f, "failures of {integration}"),
            Signal::Lag => write!(f, "runtime lag"),
            Signal::Memory => write!(f, "memory"),
            Signal::Leak => write!(f, "growth of memory"),
        }
    }
}

/// What a signal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// It is proven to be within its bound.
    Good,
    /// It is proven to be beyond it.
    Bad,
    /// Neither.
    Open,
}

/// How a signal has changed, and what it may.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What is judged.
    pub signal: Signal,
    /// By how much it has changed; none where too little is known.
    pub change: Option<Interval>,
    /// By how much it may.
    pub bound: f64,
    /// Whether a step waits until it is good.
    pub required: bool,
    /// Whether it is of as many tasks as it must be of to be good.
    pub enough: bool,
}

impl Verdict {
    /// What the interval and the bound come to.
    pub fn says(&self) -> Says {
        match self.change {
            Some(change) if change.low > self.bound => Says::Bad,
            Some(change) if change.high <= self.bound && self.enough => Says::Good,
            _ => Says::Open,
        }
    }
}

/// The windows of one phase.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    pub(super) windows: usize,
    /// The canaries against the controls, and the controls alone.
    between: Lane,
    controls: Lane,
    /// Of the canaries and of the controls, by integration.
    pub(super) totals: BTreeMap<String, [Tasks; 2]>,
    slots: f64,
}

/// The values of one comparison.
#[derive(Debug, Clone, Default)]
struct Lane {
    times: BTreeMap<String, Times>,
    lag: Vec<f64>,
    memory: Vec<f64>,
}

#[derive(Debug, Clone, Default)]
struct Times {
    values: Vec<f64>,
    /// What does not make a value yet.
    pending: [Tasks; 2],
}

impl Lane {
    /// One window: of a group against another, or of one alone.
    fn add(&mut self, of: &Group, against: Option<&Group>) {
        let nothing = Tasks::default();
        for (integration, tasks) in &of.tasks {
            let others = against.map(|group| group.tasks.get(integration).unwrap_or(&nothing));
            let times = self.times.entry(integration.clone()).or_default();
            times.pending[0].add(tasks);
            times.pending[1].add(others.unwrap_or(&nothing));
            let [own, theirs] = times.pending;
            if own.timed < TASKS_PER_VALUE || against.is_some() && theirs.timed < TASKS_PER_VALUE {
                continue;
            }
            let base = if against.is_some() { theirs.mean_seconds() } else { 1.0 };
            // What takes no time at all has no logarithm.
            times.values.push((own.mean_seconds().max(1e-6) / base.max(1e-6)).ln());
            times.pending = [nothing; 2];
        }
        let pair = |read: fn(&Group) -> Option<f64>, none: f64| Some((read(of)?, against.map_or(Some(none), read)?));
        self.lag.extend(pair(|group| group.lag_seconds, 0.0).map(|(own, theirs)| own - theirs));
        self.memory.extend(pair(|group| group.memory_bytes, 1.0).map(|(own, theirs)| (own / theirs.max(1.0)).ln()));
    }

    fn time(&self, integration: &str) -> &[f64] {
        self.times.get(integration).map(|times| times.values.as_slice()).unwrap_or_default()
    }

    /// How far memory rises in a third of the windows, by the last two thirds: at first it fills what a new N needs.
    fn growth(&self, tail: f64) -> Option<Interval> {
        let third = self.memory.len() / 3;
        if third < VALUES {
            return None;
        }
        let Interval { low, estimate, high } = rise(&self.memory[self.memory.len() - 2 * third..], tail)?;
        let over_a_third = |slope: f64| slope * third as f64;
        Some(Interval { low: over_a_third(low), estimate: over_a_third(estimate), high: over_a_third(high) })
    }

    fn absorb(&mut self, other: &Lane) {
        for (integration, times) in &other.times {
            self.times.entry(integration.clone()).or_default().values.extend(&times.values);
        }
        self.lag.extend(&other.lag);
        self.memory.extend(&other.memory);
    }
}

/// What a comparison may come to, beside the rules.
pub(super) struct Bounds<'a> {
    pub(super) rules: &'a Rules,
    /// The natural logarithm of how many times N has become.
    pub(super) raised_by: f64,
    /// What earlier steps have used of a bound.
    pub(super) used: &'a BTreeMap<Signal, f64>,
    /// How often this phase is looked at.
    pub(super) looks: usize,
}

impl Series {
    pub(super) fn add(&mut self, canaries: &Group, controls: &Group) {
        self.windows += 1;
        self.between.add(canaries, Some(controls));
        self.controls.add(controls, None);
        for (index, group) in [canaries, controls].into_iter().enumerate() {
            for (integration, tasks) in &group.tasks {
                self.totals.entry(integration.clone()).or_default()[index].add(tasks);
            }
        }
        let workers = (canaries.workers + controls.workers).max(1) as f64;
        let held = canaries.slots * canaries.workers as f64 + controls.slots * controls.workers as f64;
        self.slots += held / workers;
    }

    /// Takes in the comparisons of another series, as if its windows were of this one.
    pub(super) fn absorb(&mut self, other: &Series) {
        self.windows += other.windows;
        self.between.absorb(&other.between);
        for (integration, [canaries, controls]) in &other.totals {
            let totals = self.totals.entry(integration.clone()).or_default();
            totals[0].add(canaries);
            totals[1].add(controls);
        }
    }

    /// The slots held by each worker, on average.
    pub(super) fn mean_slots(&self) -> f64 {
        self.slots / self.windows.max(1) as f64
    }

    /// Those that a step waits for.
    pub(super) fn major(&self) -> impl Iterator<Item = &str> {
        let all: u64 = self.totals.values().flatten().map(|tasks| tasks.ended).sum();
        let is_major = move |of: &[Tasks; 2]| {
            let ended = of[0].ended + of[1].ended;
            ended > 0 && ended as f64 >= MAJOR * all as f64
        };
        self.totals.iter().filter(move |(_, of)| is_major(of)).map(|(integration, _)| integration.as_str())
    }

    /// Those of them that too little is known of to compare anything with it.
    pub(super) fn unknown(&self) -> Vec<&str> {
        self.major().filter(|integration| self.between.time(integration).len() < VALUES).collect()
    }

    /// The mean time of the slowest of them.
    pub(super) fn slowest_seconds(&self) -> f64 {
        let mean = |integration: &str| self.totals[integration].iter().map(Tasks::mean_seconds).fold(0.0, f64::max);
        self.major().map(mean).fold(0.0, f64::max)
    }

    /// How canaries differ from controls now, against how they differed while all had the same N.
    pub(super) fn against_controls(&self, level: &Series, bounds: &Bounds<'_>) -> Vec<Verdict> {
        let failures = |integration: &str, tail| {
            let [canaries, controls] = self.shares(integration);
            let [canaries_then, controls_then] = level.shares(integration);
            contrast(&[canaries, controls_then], &[controls, canaries_then], tail)
        };
        let enough =
            |integration: &str| self.totals[integration].iter().all(|tasks| tasks.ended >= bounds.rules.min_tasks);
        self.judge([&level.between, &self.between], bounds, failures, enough)
    }

    /// What has become of the controls since they have the new N, too.
    pub(super) fn against_before(&self, trial: &Series, bounds: &Bounds<'_>) -> Vec<Verdict> {
        let failures =
            |integration: &str, tail| contrast(&[self.shares(integration)[1]], &[trial.shares(integration)[1]], tail);
        self.judge([&trial.controls, &self.controls], bounds, failures, |_| true)
    }

    fn judge(
        &self,
        [before, now]: [&Lane; 2],
        bounds: &Bounds<'_>,
        failures: impl Fn(&str, f64) -> Option<Interval>,
        enough: impl Fn(&str) -> bool,
    ) -> Vec<Verdict> {
        let Bounds { rules, raised_by, used, looks } = bounds;
        // Two for each integration; and lag, memory, growth.
        let tail = rules.false_alarms / (*looks * (2 * self.totals.len() + 3)) as f64;
        let judged = |before: &[f64], now: &[f64]| {
            if before.len().min(now.len()) >= VALUES { shift(before, now, tail) } else { None }
        };
        let used = |signal: &Signal| used.get(signal).copied().unwrap_or_default();
        let major: Vec<_> = self.major().collect();
        let mut verdicts = Vec::new();
        for integration in self.totals.keys() {
            let (required, enough) = (major.contains(&integration.as_str()), enough(integration));
            let signal = Signal::Time(integration.clone());
            let bound = (1.0 + rules.max_slower).ln() - used(&signal);
            let change = judged(before.time(integration), now.time(integration));
            verdicts.push(Verdict { signal, change, bound, required, enough });
            let signal = Signal::Failures(integration.clone());
            let (bound, change) = (rules.max_failures - used(&signal), failures(integration, tail));
            verdicts.push(Verdict { signal, change, bound, required, enough });
        }
        let mut of_workers = |signal, change, bound, required| {
            verdicts.push(Verdict { signal, change, bound, required, enough: true });
        };
        of_workers(Signal::Lag, judged(&before.lag, &now.lag), rules.max_lag_seconds, !now.lag.is_empty());
        let bound = raised_by + (1.0 + rules.max_memory).ln();
        of_workers(Signal::Memory, judged(&before.memory, &now.memory), bound, !now.memory.is_empty());
        of_workers(Signal::Leak, now.growth(tail), (1.0 + rules.max_growth).ln(), false);
        verdicts
    }

    fn shares(&self, integration: &str) -> [Share; 2] {
        self.totals.get(integration).map_or([Share::default(); 2], |of| [of[0].share(), of[1].share()])
    }
}
