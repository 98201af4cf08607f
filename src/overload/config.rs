//! The thresholds of each signal, and whether it makes the worker shed load.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bytes_text;

/// Less would flap with every task, and each change is announced.
const HOLD: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// The watchdog looks every 20 ms.
const SHORTEST: Duration = Duration::from_millis(20);

/// A worker without tasks has some 20 MiB of resident memory, and 40 in a debug build.
const LEAST_MEMORY_BYTES: u64 = 64 << 20;

/// When the worker takes no tasks although it has room. Attribution and metrics go on where a signal is not `enabled`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a signal must stay low before the worker takes tasks again.
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
    /// The runtime's lag.
    pub lag: Lag,
    /// Async threads that integrations block.
    pub blocked_thread: BlockedThread,
    /// Memory.
    pub memory: Memory,
    /// The cgroup's CPU quota.
    pub cpu_quota: CpuQuota,
    /// Descriptors.
    pub descriptors: Descriptors,
}

/// `[overload.lag]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lag {
    /// Whether it sheds load.
    pub enabled: bool,
    /// Sheds from this lag on.
    #[serde(with = "humantime_serde")]
    pub enter: Duration,
    /// Until it is less than this.
    #[serde(with = "humantime_serde")]
    pub exit: Duration,
}

/// `[overload.blocked_thread]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockedThread {
    /// Whether it sheds load.
    pub enabled: bool,
    /// A thread counts as blocked from then on.
    #[serde(with = "humantime_serde")]
    pub after: Duration,
}

/// `[overload.memory]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Whether it sheds load.
    pub enabled: bool,
    /// A limit on the resident memory of this process, beside the cgroup's; at least 64 MiB.
    pub limit_bytes: Option<u64>,
    /// Sheds from this share of the limit on.
    pub enter: f64,
    /// Until it is less than this.
    pub exit: f64,
}

/// `[overload.cpu_quota]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuQuota {
    /// Whether it sheds load.
    pub enabled: bool,
    /// Sheds from this share of throttled periods on.
    pub enter: f64,
    /// Until it is less than this.
    pub exit: f64,
}

/// `[overload.descriptors]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Descriptors {
    /// Whether it sheds load.
    pub enabled: bool,
    /// Sheds from this share of the limit on.
    pub enter: f64,
    /// Until it is less than this.
    pub exit: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hold: Duration::from_secs(1),
            lag: Lag::default(),
            blocked_thread: BlockedThread::default(),
            memory: Memory::default(),
            cpu_quota: CpuQuota::default(),
            descriptors: Descriptors::default(),
        }
    }
}

impl Default for Lag {
    fn default() -> Self {
        Lag { enabled: true, enter: Duration::from_millis(200), exit: Duration::from_millis(50) }
    }
}

impl Default for BlockedThread {
    fn default() -> Self {
        BlockedThread { enabled: true, after: Duration::from_millis(200) }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory { enabled: true, limit_bytes: None, enter: 0.9, exit: 0.8 }
    }
}

impl Default for CpuQuota {
    fn default() -> Self {
        CpuQuota { enabled: true, enter: 0.5, exit: 0.2 }
    }
}

impl Default for Descriptors {
    fn default() -> Self {
        Descriptors { enabled: true, enter: 0.9, exit: 0.8 }
    }
}

/// A threshold that cannot be right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    key: String,
    problem: String,
}

impl Config {
    /// Nothing sheds load: what is measured is only shown.
    pub fn watch_only() -> Self {
        let mut config = Config::default();
        config.lag.enabled = false;
        config.blocked_thread.enabled = false;
        config.memory.enabled = false;
        config.cpu_quota.enabled = false;
        config.descriptors.enabled = false;
        config
    }

    /// Whether the values can be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Config { hold, lag, blocked_thread, memory, cpu_quota, descriptors } = self;
        if !HOLD.contains(hold) {
            return Err(wrong("hold", format!("{} is out of range: use 100ms to 1m", text(*hold))));
        }
        if blocked_thread.after < SHORTEST {
            let after = text(blocked_thread.after);
            return Err(wrong("blocked_thread.after", format!("{after} is too short to be seen: use at least 20ms")));
        }
        if lag.exit.is_zero() || lag.exit > lag.enter {
            let (exit, enter) = (text(lag.exit), text(lag.enter));
            let problem = format!("{exit} must be more than 0s and at most lag.enter, which is {enter}");
            return Err(wrong("lag.exit", problem));
        }
        if let Some(limit) = memory.limit_bytes.filter(|limit| *limit < LEAST_MEMORY_BYTES) {
            let problem = format!(
                "{limit} leaves no room beside what a worker itself takes, so that it would refuse every task: use at least \
                 {LEAST_MEMORY_BYTES} ({})",
                bytes_text(LEAST_MEMORY_BYTES)
            );
            return Err(wrong("memory.limit_bytes", problem));
        }
        for (section, enter, exit) in [
            ("memory", memory.enter, memory.exit),
            ("cpu_quota", cpu_quota.enter, cpu_quota.exit),
            ("descriptors", descriptors.enter, descriptors.exit),
        ] {
            if !(enter > 0.0 && enter <= 1.0) {
                let problem = format!("{enter} is not a share: use more than 0.0, at most 1.0");
                return Err(wrong(&format!("{section}.enter"), problem));
            }
            if !(exit > 0.0 && exit <= enter) {
                let problem = format!("{exit} must be more than 0.0 and at most {section}.enter, which is {enter}");
                return Err(wrong(&format!("{section}.exit"), problem));
            }
        }
        Ok(())
    }
}

fn wrong(key: &str, problem: String) -> ConfigError {
    ConfigError { key: key.to_owned(), problem }
}

fn text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_threshold_is_named_with_what_would_be_right() {
        let problem = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().expect_err("it is wrong").to_string()
        };
        assert_eq!(Config::default().check(), Ok(()));
        assert_eq!(Config::watch_only().check(), Ok(()));
        for (error, says) in [
            (problem(|config| config.hold = Duration::ZERO), "hold: 0s is out of range: use 100ms to 1m"),
            (problem(|config| config.blocked_thread.after = Duration::from_millis(1)), "use at least 20ms"),
            (problem(|config| config.lag.exit = Duration::from_secs(1)), "lag.exit: 1s must be more than 0s"),
            (problem(|config| config.memory.limit_bytes = Some(1_000)), "memory.limit_bytes: 1000 leaves no room"),
            (problem(|config| config.memory.limit_bytes = Some((64 << 20) - 1)), "use at least 67108864 (64 MiB)"),
            (problem(|config| config.memory.enter = 90.0), "memory.enter: 90 is not a share"),
            (problem(|config| config.cpu_quota.enter = f64::NAN), "cpu_quota.enter: NaN is not a share"),
            (problem(|config| config.descriptors.exit = 0.95), "at most descriptors.enter, which is 0.9"),
        ] {
            assert!(error.contains(says), "{error}");
        }
    }
}
