//! From what was measured to whether load is shed. Pure, with the time passed in.

use std::time::{Duration, Instant};

use super::config::Config;
use super::growth::Growth;
use super::hysteresis::Hysteresis;
use super::throttle::{Periods, Throttle};
use super::why::Why;
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
    /// Why it is more than calm.
    pub(super) why: Option<Why>,
    /// All that are high, causes before effects.
    pub(super) high: Vec<Signal>,
    /// Those that have become high just now.
    pub(super) risen: Vec<Signal>,
}

/// One signal that sheds load.
#[derive(Debug)]
struct Watched {
    signal: Signal,
    hysteresis: Hysteresis,
    /// What was read when its value reached the threshold last.
    judged: Readings,
}

/// The signals' memory.
#[derive(Debug)]
pub(super) struct Judge {
    /// Those that shed load, causes before effects.
    signals: Vec<Watched>,
    lag: Smooth,
    throttle: Throttle,
    growth: Growth,
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
        let watched = |(signal, _, enter, exit)| Watched {
            signal,
            hysteresis: Hysteresis::new(enter, exit, *hold),
            judged: Readings::default(),
        };
        let signals = enabled.map(watched).collect();
        // A stop of all of it counts for twice the threshold at most, so that it is over soon.
        let lag = Smooth { most: lag.enter.as_secs_f64() * 2.0, value: 0.0, at: None };
        Judge { signals, lag, throttle: Throttle::default(), growth: Growth::default(), high: Vec::new() }
    }

    pub(super) fn feed(&mut self, sample: Sample, now: Instant) -> Verdict {
        let lag = self.lag.feed(sample.lag.as_secs_f64(), now);
        let throttled = sample.periods.map(|periods| self.throttle.feed(periods, now));
        let Sample { blocked_threads, blocked_by, memory, descriptors, .. } = sample;
        let memory_expected = memory.map(|(usage, _)| self.growth.feed(usage, now));
        let memory_share = memory.zip(memory_expected).map_or(0.0, |((usage, _), expected)| usage.of_limit(expected));
        let seconds = Duration::from_secs_f64(lag);
        let readings =
            Readings { lag: seconds, blocked_threads, blocked_by, memory, memory_expected, throttled, descriptors };
        let (mut high, mut why) = (Vec::new(), None);
        for Watched { signal, hysteresis, judged } in &mut self.signals {
            let value = match signal {
                Signal::Memory => memory_share,
                Signal::Descriptors => descriptors.map_or(0.0, Usage::share),
                Signal::BlockedThread => readings.blocked_by.as_ref().map_or(0.0, |(_, time)| time.as_secs_f64()),
                Signal::CpuQuota => throttled.unwrap_or_default(),
                Signal::Lag => lag,
            };
            let is_now = hysteresis.reaches(value);
            if is_now {
                judged.clone_from(&readings);
            }
            if hysteresis.feed(value, now) {
                high.push(*signal);
                why.get_or_insert_with(|| Why { signal: *signal, judged: judged.clone(), is_now });
            }
        }
        let risen = high.iter().copied().filter(|signal| !self.high.contains(signal)).collect();
        self.high.clone_from(&high);
        let pressure = why.as_ref().map_or(Pressure::Calm, |why| Pressure::Shedding(why.signal));
        Verdict { readings, pressure, why, high, risen }
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

    fn said(verdict: &Verdict) -> String {
        verdict.why.as_ref().expect("load is shed").to_string()
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
    fn the_number_that_is_said_is_the_one_that_was_judged() {
        let mut bench = Bench::new(&Config::default());
        bench.until(&lagging(2_000), Pressure::Shedding(Signal::Lag));
        let late = |verdict: &Verdict| -> u128 {
            let said = said(verdict);
            let words: Vec<_> = said.split(' ').collect();
            words.iter().find_map(|word| word.parse().ok()).expect("a number")
        };
        let verdict = bench.tick(&lagging(2_000));
        assert_eq!(said(&verdict), format!("its tasks wake up {} ms late", verdict.readings.lag.as_millis()));
        let mut is_past = 0;
        loop {
            let verdict = bench.tick(&lagging(0));
            if verdict.pressure == Pressure::Calm {
                break;
            }
            assert!(late(&verdict) >= 200, "{}", said(&verdict));
            if verdict.readings.lag < Duration::from_millis(200) {
                assert!(said(&verdict).ends_with(" ms late just now"), "{}", said(&verdict));
                is_past += 1;
            }
        }
        assert!(is_past > 50, "{is_past}");
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
        assert_eq!(said(&verdict), "integration slow has blocked an async thread for 0.2 s");
        assert!(bench.tick(&blocked(220)).risen.is_empty());
        let verdict = bench.tick(&Sample::default());
        assert_eq!(said(&verdict), "integration slow has blocked an async thread for 0.2 s, until just now");
        let left = bench.until(&Sample::default(), Pressure::Calm);
        assert_eq!(left, Duration::from_secs(1));
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
        assert_eq!(said(&verdict), "950 MiB of 1.0 GiB of memory are used (the cgroup's limit)");
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
        used += 20;
        let grew = format!(
            "{used} MiB of 1.0 GiB of memory are used (overload.memory.limit_bytes), and it is about to grow to 9"
        );
        let says = said(&bench.tick(&memory(used)));
        assert!(says.starts_with(&grew), "{says}");
        let was = said(&bench.tick(&memory(used)));
        assert!(was.contains(" just now (") && was.contains("and it was about to grow to 9"), "{was}");
        let left = bench.until(&memory(used), Pressure::Calm);
        assert!((Duration::from_secs(1)..Duration::from_secs(2)).contains(&left), "{left:?}");
        // What is used says it itself.
        bench.tick(&memory(950));
        bench.until(&memory(950), Pressure::Shedding(Signal::Memory));
        (0..20).for_each(|_| drop(bench.tick(&memory(950))));
        let steady = said(&bench.tick(&memory(950)));
        assert_eq!(steady, "950 MiB of 1.0 GiB of memory are used (overload.memory.limit_bytes)");
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
