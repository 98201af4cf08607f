//! Whether an integration's tasks are worth starting. Pure: time and chance come in from outside.
//!
//! Closed, all tasks start. Over a sliding window it counts those that spoke of the bank's health; when enough did, and
//! the share of them that failed, or that took long, reaches its threshold, the breaker opens: none starts for a while,
//! longer each time, with jitter, so that a fleet's workers do not come back as one. Then, half open, a few start as
//! probes; when what they came to can no longer change the answer, it closes or opens again. The terms and the rules are
//! those of resilience4j's CircuitBreaker with its time-based window; other than there, a result belongs to the period
//! in which its task started: what hangs since before the breaker opened does not open it again after it has closed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::config::{duration, share};

/// The parts of the sliding window; it moves by one of them.
const PARTS: u32 = 10;

/// How much an opening is made longer or shorter by chance.
const JITTER: f64 = 0.2;

/// How long a task is told to wait while all probes are under way.
const WHILE_PROBING: Duration = Duration::from_secs(1);

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether there is one.
    pub enabled: bool,
    /// How far back it looks.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// The fewest tasks in the window that say anything.
    pub min_tasks: u32,
    /// The share of them whose failure opens it, more than 0 and up to 1.
    pub failing: f64,
    /// A task that took longer is slow. Zero: none is.
    #[serde(with = "humantime_serde")]
    pub slow_after: Duration,
    /// The share of slow ones that opens it. That is a latency quantile: with 0.5, that the median is above `slow_after`.
    pub slow: f64,
    /// The tasks that try it while it is half open.
    pub probes: u32,
    /// How long it is open at first.
    #[serde(with = "humantime_serde")]
    pub open_for: Duration,
    /// It is open twice as long each time that it opens again, but not longer than this.
    #[serde(with = "humantime_serde")]
    pub max_open_for: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            enabled: true,
            window: Duration::from_secs(30),
            min_tasks: 20,
            failing: 0.8,
            slow_after: Duration::ZERO,
            slow: 0.8,
            probes: 3,
            open_for: Duration::from_secs(5),
            max_open_for: Duration::from_secs(60),
        }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), String> {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        duration("window", self.window, second / 10, hour)?;
        duration("slow_after", self.slow_after, Duration::ZERO, hour)?;
        duration("open_for", self.open_for, second / 100, hour)?;
        duration("max_open_for", self.max_open_for, second / 100, hour)?;
        if self.open_for > self.max_open_for {
            let [open_for, most] = [self.open_for, self.max_open_for].map(humantime::format_duration);
            return Err(format!("open_for: {open_for} is more than max_open_for, which is {most}"));
        }
        share("failing", self.failing)?;
        share("slow", self.slow)?;
        match (self.min_tasks, self.probes) {
            (1..=100_000, 1..=100) => Ok(()),
            (1..=100_000, probes) => Err(format!("probes: {probes} is not 1 to 100")),
            (tasks, _) => Err(format!("min_tasks: {tasks} is not 1 to 100000")),
        }
    }
}

/// What a task's end says of the bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// It answered.
    Well,
    /// It is unwell.
    Failing,
}

/// What a breaker has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub all: u32,
    pub failing: u32,
    pub slow: u32,
}

/// Why a breaker has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saw {
    /// These tasks within the window.
    Window(Counts),
    /// These probes.
    Probes(Counts),
}

/// The breaker of one integration.
#[derive(Debug)]
pub(super) struct Breaker {
    config: Config,
    state: State,
    /// Counts the changes of state: what started in another period decides nothing in this one.
    period: u32,
    window: Window,
    /// How often it has opened without a whole window of good health between.
    times: u32,
    closed_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant, saw: Saw },
    HalfOpen { under_way: u32, ended: Counts, saw: Saw },
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Closed,
    /// What it saw when it opened.
    HalfOpen(Saw),
    Open {
        until: Instant,
        saw: Saw,
    },
}

/// A task that may start; to be given back by [`Breaker::ended`] or [`Breaker::released`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pass {
    period: u32,
}

/// Not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spared {
    pub after: Duration,
    pub saw: Saw,
    /// Whether it is tried just now, with as many tasks as may try it.
    pub is_tried: bool,
}

/// What a result changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Opened { open_for: Duration, saw: Saw },
    Closed,
}

impl Breaker {
    pub(super) fn new(config: Config, now: Instant) -> Self {
        let window = Window::new(config.window / PARTS, now);
        Breaker { config, state: State::Closed, period: 0, window, times: 0, closed_at: None }
    }

    /// Asks for one task.
    pub(super) fn ask(&mut self, now: Instant) -> Result<Pass, Spared> {
        match &mut self.state {
            _ if !self.config.enabled => {}
            State::Closed => {}
            State::Open { until, saw } if now < *until => {
                return Err(Spared { after: *until - now, saw: *saw, is_tried: false });
            }
            State::Open { saw, .. } => {
                let saw = *saw;
                self.enter(State::HalfOpen { under_way: 1, ended: Counts::default(), saw });
            }
            State::HalfOpen { under_way, ended, saw } if *under_way + ended.all >= self.config.probes => {
                return Err(Spared { after: WHILE_PROBING, saw: *saw, is_tried: true });
            }
            State::HalfOpen { under_way, .. } => *under_way += 1,
        }
        Ok(Pass { period: self.period })
    }

    /// A task that had passed came to an end that says something of the bank. `random` is from 0 to 1.
    pub(super) fn ended(
        &mut self,
        pass: Pass,
        health: Health,
        took: Duration,
        now: Instant,
        random: impl FnOnce() -> f64,
    ) -> Option<Change> {
        if !self.config.enabled || pass.period != self.period {
            return None;
        }
        let is_slow = !self.config.slow_after.is_zero() && took > self.config.slow_after;
        let one = Counts { all: 1, failing: u32::from(health == Health::Failing), slow: u32::from(is_slow) };
        match &mut self.state {
            State::Closed => {
                self.window.add(one, now);
                let saw = self.window.sum(now);
                // Only what speaks against the bank can open it.
                let may_open = saw.all >= self.config.min_tasks && (one.failing > 0 || is_slow);
                (may_open && self.config.is_unwell(saw, saw.all)).then(|| self.open(Saw::Window(saw), now, random()))
            }
            State::HalfOpen { under_way, ended, .. } => {
                *under_way = under_way.saturating_sub(1);
                ended.add(one);
                let (ended, probes) = (*ended, self.config.probes);
                let well = Counts { all: probes, ..ended };
                let left = probes - ended.all;
                let unwell = Counts { all: probes, failing: ended.failing + left, slow: ended.slow + left };
                if self.config.is_unwell(well, probes) {
                    // Whatever the others come to.
                    Some(self.open(Saw::Probes(ended), now, random()))
                } else if !self.config.is_unwell(unwell, probes) {
                    self.close(now);
                    Some(Change::Closed)
                } else {
                    None
                }
            }
            State::Open { .. } => None,
        }
    }

    /// A task that had passed ended without saying anything of the bank, or never started.
    pub(super) fn released(&mut self, pass: Pass) {
        if let State::HalfOpen { under_way, .. } = &mut self.state
            && pass.period == self.period
        {
            *under_way = under_way.saturating_sub(1);
        }
    }

    /// Where it stands. After its time, an open one is half open, though nobody has asked yet.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        match self.state {
            State::Closed => Standing::Closed,
            State::Open { until, saw } if now < until => Standing::Open { until, saw },
            State::Open { saw, .. } | State::HalfOpen { saw, .. } => Standing::HalfOpen(saw),
        }
    }

    fn open(&mut self, saw: Saw, now: Instant, random: f64) -> Change {
        let was_well = self.closed_at.is_some_and(|closed| now.duration_since(closed) > self.config.window);
        self.times = if was_well { 0 } else { self.times };
        let longer = 2u32.saturating_pow(self.times.min(30));
        let open_for = self.config.open_for.saturating_mul(longer).min(self.config.max_open_for);
        let open_for = open_for.mul_f64(1.0 + JITTER * (2.0 * random - 1.0));
        (self.times, self.closed_at) = (self.times + 1, None);
        self.enter(State::Open { until: now + open_for, saw });
        Change::Opened { open_for, saw }
    }

    fn close(&mut self, now: Instant) {
        self.closed_at = Some(now);
        self.window = Window::new(self.config.window / PARTS, now);
        self.enter(State::Closed);
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.period = self.period.wrapping_add(1);
    }
}

impl Config {
    /// Whether so many of `all` are too many.
    fn is_unwell(&self, saw: Counts, all: u32) -> bool {
        let reaches = |count: u32, share: f64| f64::from(count) >= share * f64::from(all);
        reaches(saw.failing, self.failing) || (!self.slow_after.is_zero() && reaches(saw.slow, self.slow))
    }
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.all += other.all;
        self.failing += other.failing;
        self.slow += other.slow;
    }
}

/// Counts over the last ten parts of time.
#[derive(Debug)]
struct Window {
    parts: [Counts; PARTS as usize],
    part: Duration,
    /// The part that counts now, and when it began.
    at: usize,
    since: Instant,
}

impl Window {
    fn new(part: Duration, now: Instant) -> Self {
        Window { parts: Default::default(), part, at: 0, since: now }
    }

    fn add(&mut self, one: Counts, now: Instant) {
        self.advance(now);
        self.parts[self.at].add(one);
    }

    fn sum(&mut self, now: Instant) -> Counts {
        self.advance(now);
        self.parts.iter().fold(Counts::default(), |mut sum, part| {
            sum.add(*part);
            sum
        })
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed < self.part {
            return;
        }
        let parts = passed.as_nanos() / self.part.as_nanos().max(1);
        for _ in 0..parts.min(u128::from(PARTS)) {
            self.at = (self.at + 1) % self.parts.len();
            self.parts[self.at] = Counts::default();
        }
        // After a long silence its whole content is gone, and where a part begins is free.
        let steps = u32::try_from(parts).ok().and_then(|parts| self.part.checked_mul(parts));
        self.since = steps.map_or(now, |steps| self.since + steps);
    }
}

#[cfg(test)]
mod tests;
