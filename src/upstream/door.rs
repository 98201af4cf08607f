//! Which tasks have no chance to end in time. Pure: the time comes in from outside.
//!
//! A task is refused when less time remains to it than a low quantile of the integration's successful runs took: even a
//! fast one would not make it. What is known counts half as much after each `HALF_LIFE`, and one in `LET_THROUGH` of
//! those that would be refused starts all the same, so that a bank that has become fast is found out though all others
//! are refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::quantile::Durations;

/// Runs that are remembered: their counts are halved when they add up to this.
const WINDOW: u32 = 400;

/// Fewer runs than this say nothing.
const MIN_RUNS: f32 = 20.0;

const HALF_LIFE: Duration = Duration::from_secs(120);

/// After this many of them nothing is left of what was known.
const FORGOTTEN: u128 = 20;

/// One in so many hopeless tasks is started.
const LET_THROUGH: u32 = 20;

/// When a task has no chance.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Refused is what has less time than this share (0 to 0.5) of the runs needed. 0 refuses nothing.
    pub quantile: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config { quantile: 0.05 }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), String> {
        match (0.0..=0.5).contains(&self.quantile) {
            true => Ok(()),
            false => Err(format!("quantile: {} is not 0 to 0.5: more would refuse what often succeeds", self.quantile)),
        }
    }
}

/// How long the successful runs of one integration take.
#[derive(Debug)]
pub(super) struct Door {
    config: Config,
    runs: Durations,
    /// When they were halved for their age.
    halved_at: Instant,
    hopeless: u32,
    /// What follows for all tasks until another run has ended: most asks read only this.
    needs: Option<Needs>,
}

/// What a task needs at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Needs {
    pub at_least: Duration,
    /// The share of runs that needed less.
    pub quantile: f64,
    /// Of how many runs.
    pub runs: u32,
}

impl Door {
    pub(super) fn new(config: Config, now: Instant) -> Self {
        Door { config, runs: Durations::new(WINDOW), halved_at: now, hopeless: 0, needs: None }
    }

    /// Asks for a task to which so much time remains.
    pub(super) fn ask(&mut self, remaining: Duration, now: Instant) -> Result<(), Needs> {
        self.age(now);
        let Some(needs) = self.needs.filter(|needs| remaining < needs.at_least) else { return Ok(()) };
        self.hopeless = (self.hopeless + 1) % LET_THROUGH;
        if self.hopeless == 0 { Ok(()) } else { Err(needs) }
    }

    /// A run has succeeded.
    pub(super) fn learn(&mut self, took: Duration, now: Instant) {
        self.age(now);
        self.runs.add(took);
        self.needs = self.estimate();
    }

    /// Whether a run that met its deadline had had a fair time: as long as half of those that succeed need. Where too
    /// little is known any time is fair. Callers in too much of a hurry say nothing of the bank.
    pub(super) fn was_fair(&self, took: Duration) -> bool {
        self.runs.count() < MIN_RUNS || took >= self.runs.at_least(0.5)
    }

    /// What tasks need at least, as far as it is known.
    pub(super) fn needs(&self) -> Option<Needs> {
        self.needs
    }

    fn age(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.halved_at);
        if passed < HALF_LIFE {
            return;
        }
        match passed.as_nanos() / HALF_LIFE.as_nanos() {
            times if times < FORGOTTEN => (0..times).for_each(|_| self.runs.halve()),
            _ => self.runs.clear(),
        }
        self.halved_at = now;
        self.needs = self.estimate();
    }

    fn estimate(&self) -> Option<Needs> {
        let quantile = self.config.quantile;
        if quantile == 0.0 || self.runs.count() < MIN_RUNS {
            return None;
        }
        Some(Needs { at_least: self.runs.at_least(quantile), quantile, runs: self.runs.count() as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn door(now: Instant) -> Door {
        let mut door = Door::new(Config::default(), now);
        (0..200).for_each(|n| door.learn(SECOND + SECOND * n / 100, now));
        door
    }

    #[test]
    fn only_what_even_a_fast_run_would_not_finish_is_refused() {
        let now = Instant::now();
        let mut door = door(now);
        let needs = door.ask(SECOND * 9 / 10, now).expect_err("the fastest took a second");
        assert!(needs.at_least >= SECOND && needs.at_least <= SECOND * 11 / 10, "{needs:?}");
        assert_eq!((needs.quantile, needs.runs), (0.05, 200));
        door.ask(SECOND * 12 / 10, now).expect("one in ten makes it");
    }

    #[test]
    fn nothing_is_refused_before_something_is_known_or_when_that_is_off() {
        let now = Instant::now();
        for (config, runs) in [(Config::default(), 19), (Config { quantile: 0.0 }, 500)] {
            let mut door = Door::new(config, now);
            (0..runs).for_each(|_| door.learn(SECOND, now));
            door.ask(Duration::ZERO, now).expect("admitted");
        }
    }

    #[test]
    fn a_bank_that_has_become_fast_is_found_though_all_have_little_time() {
        let mut now = Instant::now();
        let mut door = door(now);
        let mut refused = 0;
        for _ in 0..2_000 {
            now += SECOND / 10;
            match door.ask(SECOND / 2, now) {
                Ok(()) => door.learn(SECOND / 10, now),
                Err(_) => refused += 1,
            }
        }
        assert!(refused < 300, "{refused}: one in twenty was let through, and a twentieth of the runs was fast then");
        assert!(refused > 100, "{refused}");
    }

    #[test]
    fn what_is_known_ages() {
        let now = Instant::now();
        let mut door = door(now);
        assert!(door.ask(SECOND / 2, now + HALF_LIFE).is_err());
        door.ask(SECOND / 2, now + HALF_LIFE * 5).expect("too few are left of 200");
        let mut silent = self::door(now);
        silent.ask(SECOND / 2, now + HALF_LIFE * 1_000_000).expect("forgotten");
    }

    #[test]
    fn a_deadline_speaks_against_the_bank_only_when_half_of_the_runs_would_have_made_it() {
        let now = Instant::now();
        let door = door(now);
        assert!(!door.was_fair(SECOND * 3 / 2) && door.was_fair(SECOND * 21 / 10));
        assert!(Door::new(Config::default(), now).was_fair(Duration::ZERO), "nothing is known");
    }
}
