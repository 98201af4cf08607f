//! From what was measured to whether load is shed. Pure, with the time passed in.

use std::time::{Duration, Instant};

use super::config::Config;
use super::growth::Growth;
use super::hysteresis::Hysteresis;
use super::throttle::{Periods, Throttle};
use super::{Pressure, Readings, Signal, Usage, Whose};
use crate::task::IntegrationName;

/// Over what the lag is smoothed: a single late task is none.
const LAG_OVER: Duration = Duration::from_millis(500);

/// The most that one sample may count for: who was stopped as a whole, with its watchdog, was late only once.
const LONGEST_STEP: Duration = Duration::from_millis(100);

/// What was measured at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    pub(super) lag: Duration,
    pub(super) blocked_threads: u32,
    pub(super) blocked_by: Option<(IntegrationName, Duration)>,
    pub(super) memory: Option<(Usage, Whose)>,
    pub(super) periods: Option<Periods>,
    pub(super) descriptors: Option<Usage>,
}

/// What has become of it.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) readings: Readings,
    pub(super) pressure: Pressure,
    /// All that are high, causes before effects.
    pub(super) high: Vec<Signal>,
    /// Those that have become high just now.
    pub(super) risen: Vec<Signal>,
}

/// The signals' memory.
#[derive(Debug)]
pub(super) struct Judge {
    /// Those that shed load.
    signals: Vec<(Signal, Hysteresis)>,
    lag: Smooth,
    throttle: Throttle,
    growth: Growth,
    /// The share of memory from which on it is high, and what it grew towards since it is high only for its growth.
    memory_enter: f64,
    memory_grew_towards: Option<u64>,
    high: Vec<Signal>,
}

impl Judge {
    pub(super) fn new(config: &Config) -> Self {
        let Config { hold, lag, blocked_thread, memory, cpu_quota, descriptors } = config;
        let after = blocked_thread.after.as_secs_f64();
        let all = [
            (Signal::Memory, memory.enabled, memory.enter, memory.exit),
            (Signal::Descriptors, descriptors.enabled, descriptors.enter, descriptors.exit),
            (Signal::BlockedThread, blocked_thread.enabled, after, after),
            (Signal::CpuQuota, cpu_quota.enabled, cpu_quota.enter, cpu_quota.exit),
            (Signal::Lag, lag.enabled, lag.enter.as_secs_f64(), lag.exit.as_secs_f64()),
        ];
        let enabled = all.into_iter().filter(|(_, enabled, ..)| *enabled);
        let signals = enabled.map(|(signal, _, enter, exit)| (signal, Hysteresis::new(enter, exit, *hold))).collect();
        // A stop of all of it counts for twice the threshold at most, so that it is over soon.
        let lag = Smooth { most: lag.enter.as_secs_f64() * 2.0, value: 0.0, at: None };
        Judge {
            signals,
            lag,
            throttle: Throttle::default(),
            growth: Growth::default(),
            memory_enter: memory.enter,
            memory_grew_towards: None,
            high: Vec::new(),
        }
    }

    pub(super) fn feed(&mut self, sample: Sample, now: Instant) -> Verdict {
        let lag = self.lag.feed(sample.lag.as_secs_f64(), now);
        let throttled = sample.periods.map(|periods| self.throttle.feed(periods, now));
        let Sample { blocked_threads, blocked_by, memory, descriptors, .. } = sample;
        let memory_expected = memory.map(|(usage, _)| self.growth.feed(usage, now));
        let memory_share = memory.zip(memory_expected).map_or(0.0, |((usage, _), expected)| usage.of_limit(expected));
        let blocked = blocked_by.as_ref().map_or(0.0, |(_, time)| time.as_secs_f64());
        let mut high = Vec::new();
        for (signal, hysteresis) in &mut self.signals {
            let value = match signal {
                Signal::Memory => memory_share,
                Signal::Descriptors => descriptors.map_or(0.0, Usage::share),
                Signal::BlockedThread => blocked,
                Signal::CpuQuota => throttled.unwrap_or_default(),
                Signal::Lag => lag,
            };
            if hysteresis.feed(value, now) {
                high.push(*signal);
            }
        }
        let risen = high.iter().copied().filter(|signal| !self.high.contains(signal)).collect();
        self.high.clone_from(&high);
        let lag = Duration::from_secs_f64(lag);
        let memory_grew_towards = self.grew_towards(memory, memory_expected);
        let readings = Readings {
            lag,
            blocked_threads,
            blocked_by,
            memory,
            memory_expected,
            memory_grew_towards,
            throttled,
            descriptors,
        };
        let pressure = high.first().map_or(Pressure::Calm, |signal| Pressure::Shedding(*signal));
        Verdict { readings, pressure, high, risen }
    }

    /// What memory grew towards, for as long as that is why it is high.
    fn grew_towards(&mut self, memory: Option<(Usage, Whose)>, expected: Option<u64>) -> Option<u64> {
        let (Some((usage, _)), Some(expected)) = (memory, expected) else { return None };
        let is_high = |bytes| usage.of_limit(bytes) >= self.memory_enter;
        self.memory_grew_towards = match self.memory_grew_towards {
            _ if !self.high.contains(&Signal::Memory) || is_high(usage.used) => None,
            most if is_high(expected) => most.max(Some(expected)),
            most => most,
        };
        self.memory_grew_towards
    }
}

/// An exponentially weighted mean of samples at uneven times.
#[derive(Debug)]
struct Smooth {
    most: f64,
    value: f64,
    at: Option<Instant>,
}

impl Smooth {
    fn feed(&mut self, sample: f64, now: Instant) -> f64 {
        let step = now.saturating_duration_since(self.at.replace(now).unwrap_or(now)).min(LONGEST_STEP);
        let weight = 1.0 - (-step.as_secs_f64() / LAG_OVER.as_secs_f64()).exp();
        self.value += weight * (sample.min(self.most) - self.value);
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(20);

    /// A judge and its clock.
    struct Bench {
        judge: Judge,
        now: Instant,
    }

    impl Bench {
        fn new(config: &Config) -> Self {
            Bench { judge: Judge::new(config), now: Instant::now() }
        }

        fn tick(&mut self, sample: &Sample) -> Verdict {
            self.now += TICK;
            self.judge.feed(sample.clone(), self.now)
        }

        /// Feeds the same sample until the pressure is this; returns how long that took.
        fn until(&mut self, sample: &Sample, pressure: Pressure) -> Duration {
            let started = self.now;
            while self.tick(sample).pressure != pressure {
                assert!(self.now - started < Duration::from_secs(60), "it never comes: {pressure:?}");
            }
            self.now - started
        }
    }

    fn lagging(milliseconds: u64) -> Sample {
        Sample { lag: Duration::from_millis(milliseconds), ..Sample::default() }
    }

    fn blocked(milliseconds: u64) -> Sample {
        let by = ("slow".parse().expect("a name"), Duration::from_millis(milliseconds));
        Sample { blocked_threads: 1, blocked_by: Some(by), ..Sample::default() }
    }

    #[test]
    fn a_lag_that_lasts_sheds_and_one_late_task_does_not() {
        let mut bench = Bench::new(&Config::default());
        assert_eq!(bench.tick(&lagging(60_000)).pressure, Pressure::Calm);
        for _ in 0..100 {
            assert_eq!(bench.tick(&lagging(100)).pressure, Pressure::Calm);
        }
        let entered = bench.until(&lagging(2_000), Pressure::Shedding(Signal::Lag));
        assert!(entered < Duration::from_millis(600), "{entered:?}");
        bench.until(&lagging(2_000), Pressure::Shedding(Signal::Lag));
        let left = bench.until(&lagging(0), Pressure::Calm);
        assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&left), "{left:?}");
    }

    #[test]
    fn a_process_that_was_stopped_as_a_whole_does_not_shed_for_it() {
        let mut bench = Bench::new(&Config::default());
        bench.tick(&lagging(0));
        bench.now += Duration::from_secs(100);
        assert_eq!(bench.tick(&lagging(100_000)).pressure, Pressure::Calm);
    }

    #[test]
    fn a_blocked_thread_sheds_while_it_lasts_and_names_who_blocks() {
        let mut bench = Bench::new(&Config::default());
        assert_eq!(bench.tick(&blocked(199)).pressure, Pressure::Calm);
        let verdict = bench.tick(&blocked(200));
        assert_eq!(
            (verdict.pressure, verdict.risen.as_slice()),
            (Pressure::Shedding(Signal::BlockedThread), &verdict.high[..])
        );
        let said = verdict.readings.say(Signal::BlockedThread);
        assert_eq!(said, "integration slow has blocked an async thread for 0.2 s");
        assert!(bench.tick(&blocked(220)).risen.is_empty());
        let left = bench.until(&Sample::default(), Pressure::Calm);
        assert_eq!(left, Duration::from_secs(1) + TICK);
    }

    #[test]
    fn of_several_signals_the_cause_is_named_and_the_effect_may_stay() {
        let mut bench = Bench::new(&Config::default());
        let usage = Usage { used: 950 << 20, limit: 1 << 30 };
        let both = Sample { memory: Some((usage, Whose::Cgroup)), ..lagging(1_000) };
        bench.until(&lagging(1_000), Pressure::Shedding(Signal::Lag));
        let verdict = bench.tick(&both);
        assert_eq!(verdict.high, [Signal::Memory, Signal::Lag]);
        assert_eq!(verdict.risen, [Signal::Memory]);
        assert_eq!(verdict.pressure, Pressure::Shedding(Signal::Memory));
        assert_eq!(verdict.readings.say(Signal::Memory), "memory: 950 MiB of 1.0 GiB (the cgroup's limit)");
        bench.until(&lagging(1_000), Pressure::Shedding(Signal::Lag));
    }

    #[test]
    fn memory_that_grows_fast_sheds_long_before_it_is_there_and_says_so_until_it_is_over() {
        let mut bench = Bench::new(&Config::default());
        let memory = |mebibytes: u64| {
            let usage = Usage { used: mebibytes << 20, limit: 1 << 30 };
            Sample { memory: Some((usage, Whose::Configuration)), ..Sample::default() }
        };
        // 1 GiB/s.
        let mut used = 100;
        while bench.tick(&memory(used)).pressure == Pressure::Calm {
            used += 20;
        }
        assert!((700..760).contains(&used), "{used} MiB");
        let verdict = bench.tick(&memory(used));
        let said = verdict.readings.say(Signal::Memory);
        assert!(
            said.starts_with(&format!(
                "memory: {used} MiB of 1.0 GiB (overload.memory.limit_bytes), and it was about to grow to 9"
            )),
            "{said}"
        );
        let left = bench.until(&memory(used), Pressure::Calm);
        assert!((Duration::from_secs(1)..Duration::from_secs(2)).contains(&left), "{left:?}");
        assert_eq!(bench.tick(&memory(used)).readings.memory_grew_towards, None);
        // What is used says it itself.
        let verdict = bench.tick(&memory(950));
        assert_eq!(verdict.readings.say(Signal::Memory), "memory: 950 MiB of 1.0 GiB (overload.memory.limit_bytes)");
    }

    #[test]
    fn what_is_not_enabled_is_measured_and_sheds_nothing() {
        let mut bench = Bench::new(&Config::watch_only());
        let full = Usage { used: 1, limit: 1 };
        let sample = Sample {
            memory: Some((full, Whose::Machine)),
            descriptors: Some(full),
            periods: Some(Periods { all: 100, throttled: 100 }),
            lag: Duration::from_secs(10),
            ..blocked(10_000)
        };
        for _ in 0..1_000 {
            let verdict = bench.tick(&sample);
            assert_eq!((verdict.pressure, verdict.readings.descriptors), (Pressure::Calm, Some(full)));
        }
    }
}
