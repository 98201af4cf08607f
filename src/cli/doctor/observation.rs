//! What a worker showed over a window of time: all that a diagnosis is made from, in base units.
//!
//! Where a number is none, the worker does not show it: it was built without the allocator's, keeps no payloads, or serves no
//! integration of that kind.

use std::collections::BTreeMap;

use serde::Serialize;

/// One worker over one window.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Observation {
    /// What it is called in the report: HOST:PORT of its admin port.
    pub instance: String,
    pub pool: String,
    /// From the first reading to the last one.
    pub seconds: f64,
    pub readings: usize,
    /// Readings that were asked for and not answered in time.
    pub unanswered: usize,
    /// How often the process was started anew meanwhile. The numbers are of its longest life then.
    pub restarts: usize,
    /// How the life before the last one ended (`weir_last_exit`), where there were several.
    pub last_exit: Option<String>,
    /// How old the process was at the first reading, where that is known.
    pub age_seconds: Option<f64>,
    /// For how long, at the end, nobody was where its metrics are.
    pub gone_seconds: f64,
    /// For how long, at the end, a Prometheus asked for its metrics in vain.
    pub unread_seconds: f64,
    /// Profiles that were taken of it meanwhile.
    pub profiles: f64,
    pub gate: Gate,
    pub runtime: Runtime,
    pub memory: Memory,
    pub descriptors: Descriptors,
    /// The mean share, 0 to 1, of the last periods in which the CPU quota was used up; 0 without a quota.
    pub throttled_ratio: f64,
    pub payloads: Option<Payloads>,
    /// By name.
    pub integrations: BTreeMap<String, Integration>,
    /// Requests of all integrations that wanted a socket.
    pub socket_waits: Mean,
    /// Closures of integrations on blocking threads.
    pub blocking: Line,
    pub logs: Logs,
    /// The setting, where the worker was asked for it.
    pub log_level: Option<String>,
    /// Why it sheds load, in its own words, where it was asked and does.
    pub shedding: Option<String>,
    /// The integration that blocks an async thread at the end, where it was asked and one does.
    pub blocked_by: Option<String>,
}

/// Something that has a size at each moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Level {
    pub first: f64,
    pub last: f64,
    pub mean: f64,
    pub max: f64,
    /// The slope of the straight line through all of it (least squares), times the window.
    pub grown: f64,
}

/// A count, and what was summed up over it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Mean {
    pub count: f64,
    pub seconds: f64,
}

impl Mean {
    /// None where there was nothing.
    pub fn mean_seconds(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.seconds / self.count)
    }
}

/// Runs that ended, and those of them that did not end in ok.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Runs {
    pub count: f64,
    pub seconds: f64,
    pub failed: Mean,
}

impl Runs {
    /// All of them.
    pub fn all(&self) -> Mean {
        Mean { count: self.count, seconds: self.seconds }
    }

    /// Those that ended in ok.
    pub fn ok(&self) -> Mean {
        let Mean { count, seconds } = self.failed;
        Mean { count: (self.count - count).max(0.0), seconds: (self.seconds - seconds).max(0.0) }
    }
}

/// Lines of the log.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Logs {
    /// That were written or lost, by level.
    pub said: BTreeMap<String, f64>,
    /// Left out because their like was said too often.
    pub left_out: f64,
    /// Lost, by reason.
    pub lost: BTreeMap<String, f64>,
}

/// Something of which there are so many places, all taken or not, and those that wait for one: means over the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Line {
    pub busy: f64,
    pub waiting: f64,
    pub places: f64,
}

/// The slots, and the tasks that hold them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Gate {
    /// N, at the end, and the share, 0 to 1, of the readings in which it was 0.
    pub target: f64,
    pub closed: f64,
    /// Whether it drained at the end.
    pub drains: bool,
    /// Slots.
    pub held: Level,
    /// Tasks.
    pub in_flight: Level,
    /// The share, 0 to 1, of the readings in which this was the binding constraint.
    pub limited_by: BTreeMap<String, f64>,
    /// Refusals, by reason.
    pub refused: BTreeMap<String, f64>,
    /// Tasks that should have stopped and have not, on average, and for how long the oldest of them at the end.
    pub overdue: f64,
    pub overdue_oldest_seconds: f64,
}

/// The async threads and the processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Runtime {
    pub threads: f64,
    /// How many of them were busy, on average.
    pub busy_threads: f64,
    /// How many of them integrations blocked when they were looked at, on average.
    pub blocked_threads: f64,
    /// How late its tasks woke up.
    pub lag_seconds: Level,
    /// How often the worker began to shed load because they do, and the share, 0 to 1, of the readings in which it did.
    pub lag_sheds: f64,
    pub lag_shedding: f64,
    /// Processors used by the whole process, on average.
    pub processors: f64,
}

impl Runtime {
    /// Processors that there are: an async thread for each, unless configured otherwise. Who uses clearly more has more.
    pub fn places(&self) -> f64 {
        if self.processors > 1.1 * self.threads { self.processors.ceil() } else { self.threads }
    }

    /// The share, 0 to 1, of them that was not used.
    pub fn idle(&self) -> f64 {
        if self.threads > 0.0 { (1.0 - self.processors / self.places()).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Memory {
    /// Of the process.
    pub resident: Level,
    /// As it counts against the limit, and the limit; 0 where they are not known.
    pub used: Level,
    pub limit: f64,
    /// Whose limit it is, where the worker was asked: `configuration`, `cgroup` or `machine`.
    pub limit_of: Option<String>,
    /// What the program holds, and what the allocator takes for it. None where the worker was built without its numbers.
    pub allocator: Option<Allocator>,
}

/// The allocator's own numbers, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Allocator {
    pub allocated: Level,
    pub resident: Level,
    pub retained: Level,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Descriptors {
    pub open: Level,
    /// 0 where there is none.
    pub limit: f64,
}

/// What becomes of payloads.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Payloads {
    pub offered: f64,
    pub stored: f64,
    /// By reason.
    pub dropped: BTreeMap<String, f64>,
    pub pending: Level,
    pub pending_limit: f64,
    pub pending_bytes: Level,
    pub pending_bytes_limit: f64,
    /// Redacting and encoding, and the pauses in it.
    pub encoding: Mean,
    pub pauses: Mean,
    pub uploading: Mean,
    pub uploads: Line,
    /// The share, 0 to 1, of the readings in which the store was away.
    pub store_away: f64,
}

/// One integration.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Integration {
    /// Tasks that ended, by outcome.
    pub outcomes: BTreeMap<String, f64>,
    /// How long its runs took: in the window, before it, and in the window on the other worker of which as many are slower as
    /// are faster.
    pub took: Runs,
    pub before: Runs,
    pub peers: Runs,
    /// What is known of how the times before were spread.
    pub spread: Option<Spread>,
    /// For how long those that run at the end have run so far, where the worker was asked.
    pub running: Mean,
    /// Slots.
    pub held: f64,
    /// How long, and how often, it blocked async threads.
    pub blocked_seconds: f64,
    pub blocked_times: f64,
    /// Its sockets: busy, waited for, and so many may be for each host.
    pub sockets: Option<Line>,
    /// The places in the processes of an `exec` integration.
    pub processes: Option<Line>,
    /// HTTP exchanges by result.
    pub exchanges: BTreeMap<String, f64>,
    /// The share, 0 to 1, of the readings in which its breaker was open.
    pub breaker_open: f64,
}

/// How the times of runs were spread, by the bounds of a histogram's buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub(super) struct Spread {
    /// Half of those before that ended in ok, or more, took no longer than this.
    pub half_within: f64,
    /// And 95% of them, or more, no longer than this.
    pub most_within: f64,
    /// The share, 0 to 1, of those in the window that took longer than `half_within`.
    pub above_half: f64,
}

impl Integration {
    /// Tasks that ended by themselves: not those whose caller went away.
    pub fn ended(&self) -> f64 {
        let counts = self.outcomes.iter().filter(|(outcome, _)| *outcome != "cancelled").map(|(_, count)| count);
        counts.fold(0.0, |sum, count| sum + count)
    }

    /// Of them, those that failed.
    pub fn failed(&self) -> f64 {
        self.ended() - self.outcomes.get("ok").copied().unwrap_or_default()
    }
}

impl Observation {
    /// Whether it went away, or was read no more.
    pub fn is_absent(&self) -> bool {
        self.gone_seconds > 0.0 || self.unread_seconds > 0.0
    }

    /// Tasks that ended by themselves.
    pub fn ended(&self) -> f64 {
        self.integrations.values().map(Integration::ended).fold(0.0, |sum, ended| sum + ended)
    }

    /// Tasks that were not taken.
    pub fn refused(&self) -> f64 {
        self.gate.refused.values().sum()
    }

    /// So many per second of the window.
    pub fn per_second(&self, count: f64) -> f64 {
        if self.seconds > 0.0 { count / self.seconds } else { 0.0 }
    }
}
