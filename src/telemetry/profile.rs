//! What the process spends its processor time on: stacks, sampled while it runs, for pprof's readers or as a flame graph.
//!
//! A timer of the kernel counts the processor time of all threads together and interrupts one that runs, [`MAX_HZ`] times
//! a second at most. The handler walks that thread's stack by its unwind tables, all of which were read before, into
//! memory that is there already: it takes no lock, allocates nothing, and leaves out a sample rather than wait. Names
//! are looked up afterwards, on a thread for blocking work. An idle process is not interrupted at all.
//!
//! The timer and the signal are the process's, and so there is one profile at a time in it, whoever asks.

mod encode;
mod flame;
pub mod heap;

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use parking_lot::Mutex;
use pprof::{Frames, ProfilerGuard, ProfilerGuardBuilder, UnresolvedReport};

use super::{Counted, Telemetry};
use crate::lifecycle::Lifecycle;
use encode::Sample;
pub use encode::proto;

/// The media type of a profile in pprof's format.
pub const PPROF_TYPE: &str = "application/octet-stream";

/// The media type of a flame graph.
pub const SVG_TYPE: &str = "image/svg+xml";

/// Samples per second of processor time, at most, and where nothing else is said. Not 100, which would beat in time with
/// work that happens a hundred times a second.
pub const MAX_HZ: u32 = 99;

/// The longest profile that somebody may ask for.
pub const MAX_SECONDS: u64 = 300;

/// How long a profile takes where nothing else is said.
pub const DEFAULT_SECONDS: u64 = 30;

/// Different stacks that a profile keeps, some kilobytes each; samples of more are counted together.
const MAX_STACKS: usize = 20_000;

/// Where the samples of stacks beyond [`MAX_STACKS`] are.
const OTHER: &str = "(stacks beyond the limit)";

/// A profile that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    time: Duration,
    hz: u32,
}

impl Ask {
    /// For so many seconds, and so many samples a second. The error names what is out of its range.
    pub fn new(seconds: u64, hz: u32) -> Result<Self, OutOfRange> {
        let check = |parameter, value, range: RangeInclusive<u64>| match range.contains(&value) {
            true => Ok(()),
            false => Err(OutOfRange { parameter, value, least: *range.start(), most: *range.end() }),
        };
        check("seconds", seconds, 1..=MAX_SECONDS)?;
        check("hz", u64::from(hz), 1..=u64::from(MAX_HZ))?;
        Ok(Ask { time: Duration::from_secs(seconds), hz })
    }
}

/// A number that a profile cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{parameter} is {value}: use an integer from {least} to {most}")]
pub struct OutOfRange {
    parameter: &'static str,
    value: u64,
    least: u64,
    most: u64,
}

/// How a profile is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In pprof's format, compressed with gzip.
    Pprof,
    /// As a flame graph, an SVG document.
    FlameGraph,
}

/// Why there is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Another one is under way in this process.
    #[error("the process is being profiled already, {}; one profile at a time", until_text(.until))]
    Busy {
        /// When that one ends; not known of one that goes on until the worker does.
        until: Option<Timestamp>,
    },
    /// The process is about to end.
    #[error("the process is stopping")]
    Stopping,
    /// The system did not let it.
    #[error("cannot profile: {0}")]
    Failed(String),
}

fn until_text(until: &Option<Timestamp>) -> String {
    match until {
        Some(until) => format!("until {until:.0}"),
        None => "by the setting \"profiling\", until it ends".into(),
    }
}

/// Takes profiles of the process. Clones share one lifecycle and its metrics.
#[derive(Clone)]
pub struct Profiler {
    lifecycle: Lifecycle,
    metrics: Metrics,
}

#[derive(Clone)]
struct Metrics {
    sampling: Gauge,
    taken: Counter,
    busy: Counter,
    abandoned: Counter,
    failed: Counter,
}

impl Metrics {
    fn register(telemetry: &Telemetry) -> Self {
        const TOTAL: &str = "weir_profiles_total";
        telemetry.register(|| {
            describe_gauge!("weir_profile_sampling", "Profiles that this role is taking, those of the heap included.");
            describe_counter!(
                TOTAL,
                "Profiles that were asked for: taken, refused because one was under way (busy), given up (abandoned), failed."
            );
            let total = |outcome: &'static str| counter!(TOTAL, "outcome" => outcome);
            Metrics {
                sampling: gauge!("weir_profile_sampling"),
                taken: total("taken"),
                busy: total("busy"),
                abandoned: total("abandoned"),
                failed: total("failed"),
            }
        })
    }
}

impl Profiler {
    /// Works on the lifecycle's threads, and gives up what is under way when it stops.
    pub fn new(telemetry: &Telemetry, lifecycle: &Lifecycle) -> Self {
        Profiler { lifecycle: lifecycle.clone(), metrics: Metrics::register(telemetry) }
    }

    /// The same, on another lifecycle.
    pub fn on(&self, lifecycle: &Lifecycle) -> Self {
        Profiler { lifecycle: lifecycle.clone(), metrics: self.metrics.clone() }
    }

    /// Samples for the time that was asked for. Dropping the call ends it.
    pub async fn take(&self, ask: Ask) -> Result<CpuProfile, ProfileError> {
        let sampling = self.start(ask.hz, Some(ask.time)).await?;
        match self.lifecycle.token().run_until_cancelled(tokio::time::sleep(ask.time)).await {
            Some(()) => sampling.finish().await,
            None => Err(ProfileError::Stopping),
        }
    }

    /// The same, written in that form. `of` names the process, for people.
    pub async fn take_as(&self, form: Form, of: &str, ask: Ask) -> Result<Vec<u8>, ProfileError> {
        let profile = self.take(ask).await?;
        self.write(profile, form, of.to_owned()).await
    }

    /// Writes a profile, on a thread for blocking work.
    pub async fn write(&self, profile: CpuProfile, form: Form, of: String) -> Result<Vec<u8>, ProfileError> {
        let written = self.lifecycle.blocking("profile encoder", move || match form {
            Form::Pprof => Ok(profile.to_pprof()),
            Form::FlameGraph => profile.to_flame_graph(&of),
        });
        written.await.map_err(|error| self.failed(error.to_string()))?
    }

    /// Begins to sample, until the result is finished or dropped. `time` is how long that is to take, for those who ask
    /// meanwhile.
    pub async fn start(&self, hz: u32, time: Option<Duration>) -> Result<Sampling, ProfileError> {
        let slot = Slot::take(time).inspect_err(|_| self.metrics.busy.increment(1))?;
        let counted = Counted::new(&self.metrics.sampling);
        // The first time reads the program's unwind tables.
        let starting = self.lifecycle.blocking("profile start", move || {
            let built = ProfilerGuardBuilder::default().frequency(hz as i32).build();
            built.map(|guard| Running { guard, _slot: slot, _counted: counted })
        });
        let running = self.came_to(starting.await)?;
        Ok(Sampling { running: Some(running), hz, profiler: self.clone() })
    }

    /// What work on a thread for blocking work came to; the outer error is that thread's.
    fn came_to<T>(&self, done: Result<Result<T, impl Display>, impl Display>) -> Result<T, ProfileError> {
        match done {
            Ok(done) => done.map_err(|error| self.failed(error.to_string())),
            Err(error) => Err(self.failed(error.to_string())),
        }
    }

    fn failed(&self, reason: String) -> ProfileError {
        self.metrics.failed.increment(1);
        ProfileError::Failed(reason)
    }
}

/// When the profile that is under way in this process ends.
static UNDER_WAY: Mutex<Option<Option<Timestamp>>> = Mutex::new(None);

/// The right to sample. Dropping it gives it back.
struct Slot;

impl Slot {
    fn take(time: Option<Duration>) -> Result<Self, ProfileError> {
        let mut under_way = UNDER_WAY.lock();
        if let Some(until) = *under_way {
            return Err(ProfileError::Busy { until });
        }
        *under_way = Some(time.map(|time| Timestamp::now() + time));
        Ok(Slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *UNDER_WAY.lock() = None;
    }
}

/// Fields are dropped in this order: the timer is off before another profile may begin, which may when the gauge says so.
struct Running {
    guard: ProfilerGuard<'static>,
    _slot: Slot,
    _counted: Counted,
}

/// Samples being taken. Dropping it ends that, without a profile.
pub struct Sampling {
    running: Option<Running>,
    hz: u32,
    profiler: Profiler,
}

impl Sampling {
    /// Ends it, and looks up the names of what was seen.
    pub async fn finish(mut self) -> Result<CpuProfile, ProfileError> {
        let Some(running) = self.running.take() else { return Err(ProfileError::Stopping) };
        let (hz, profiler) = (self.hz, self.profiler.clone());
        let finishing = profiler.lifecycle.blocking("profile end", move || {
            let report = running.guard.report().build_unresolved();
            drop(running);
            report.map(|report| CpuProfile::of(report, hz))
        });
        let profile = profiler.came_to(finishing.await)?;
        profiler.metrics.taken.increment(1);
        Ok(profile)
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            self.profiler.metrics.abandoned.increment(1);
            // The end frees and makes tables of some megabytes.
            self.profiler.lifecycle.blocking("profile end", move || drop(running));
        }
    }
}

/// One function of a stack. Where others were inlined into it, they are functions of their own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Function {
    pub name: String,
    /// As the linker knows it.
    pub symbol: String,
    /// Empty where the program has no debug information.
    pub file: String,
    pub line: u32,
}

/// A stack, innermost frame first; in a frame, the innermost of the inlined functions first.
type Stack = Vec<Vec<Function>>;

/// What a process spent its processor time on.
#[derive(Debug, Clone)]
pub struct CpuProfile {
    started: SystemTime,
    took: Duration,
    hz: u32,
    /// By the thread's name and its stack.
    samples: HashMap<(String, Stack), u64>,
}

impl CpuProfile {
    fn of(report: UnresolvedReport, hz: u32) -> Self {
        let timing = report.timing.clone();
        let mut profile = CpuProfile { started: timing.start_time, took: timing.duration, hz, samples: HashMap::new() };
        for (frames, count) in report.data {
            let frames = Frames::from(frames);
            let thread = frames.thread_name_or_id();
            let stack = frames.frames.iter().map(|frame| frame.iter().map(function).collect()).collect();
            profile.add(thread, stack, count.unsigned_abs() as u64);
        }
        profile
    }

    fn add(&mut self, thread: String, stack: Stack, count: u64) {
        let key = (thread, stack);
        let key = match self.samples.len() < MAX_STACKS || self.samples.contains_key(&key) {
            true => key,
            false => (key.0, vec![vec![other()]]),
        };
        *self.samples.entry(key).or_default() += count;
    }

    /// Takes in what came right after it.
    pub fn append(&mut self, next: CpuProfile) {
        self.took += next.took;
        for ((thread, stack), count) in next.samples {
            self.add(thread, stack, count);
        }
    }

    /// How many samples it has.
    pub fn samples(&self) -> u64 {
        self.samples.values().sum()
    }

    /// How long it took.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// In pprof's format: a protocol buffer, compressed with gzip. Samples and processor time, labelled by thread.
    pub fn to_pprof(&self) -> Vec<u8> {
        const NANOS_PER_SECOND: u64 = 1_000_000_000;
        let period = NANOS_PER_SECOND / u64::from(self.hz);
        let samples = self.samples.iter().map(|((thread, stack), count)| Sample {
            stack,
            thread: Some(thread),
            values: [*count, count * period],
        });
        let head = encode::Head {
            kinds: [("samples", "count"), ("cpu", "nanoseconds")],
            period: ("cpu", "nanoseconds", period),
            started: self.started,
            took: self.took,
        };
        encode::pprof(&head, samples)
    }

    /// As a flame graph: an SVG document that a browser lets one search and zoom into. `of` names the process.
    pub fn to_flame_graph(&self, of: &str) -> Result<Vec<u8>, ProfileError> {
        flame::svg(self, of).map_err(|error| ProfileError::Failed(format!("the flame graph cannot be drawn: {error}")))
    }
}

fn function(symbol: &pprof::Symbol) -> Function {
    Function {
        name: symbol.name(),
        symbol: symbol.sys_name().into_owned(),
        file: symbol.filename.as_ref().map(|file| file.display().to_string()).unwrap_or_default(),
        line: symbol.lineno(),
    }
}

fn other() -> Function {
    Function { name: OTHER.into(), symbol: OTHER.into(), file: String::new(), line: 0 }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn named(name: &str) -> Vec<Function> {
        vec![Function { name: name.into(), symbol: name.into(), file: String::new(), line: 7 }]
    }

    pub(crate) fn profile(samples: &[(&[&str], u64)]) -> CpuProfile {
        let mut profile = CpuProfile {
            started: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            took: Duration::from_secs(2),
            hz: 50,
            samples: HashMap::new(),
        };
        for (names, count) in samples {
            profile.add("weir".into(), names.iter().map(|name| named(name)).collect(), *count);
        }
        profile
    }

    #[test]
    fn what_is_out_of_range_is_named_with_its_range() {
        Ask::new(1, 1).expect("the least");
        Ask::new(300, 99).expect("the most");
        for (seconds, hz, says) in [
            (0, 99, "seconds is 0: use an integer from 1 to 300"),
            (301, 99, "seconds is 301: use an integer from 1 to 300"),
            (30, 0, "hz is 0: use an integer from 1 to 99"),
            (30, 100, "hz is 100: use an integer from 1 to 99"),
        ] {
            assert_eq!(Ask::new(seconds, hz).expect_err(says).to_string(), says);
        }
    }

    #[test]
    fn profiles_one_after_the_other_make_one() {
        let mut first = profile(&[(&["hot", "run"], 3), (&["run"], 1)]);
        first.append(profile(&[(&["hot", "run"], 2), (&["cold"], 1)]));
        assert_eq!((first.samples(), first.took()), (7, Duration::from_secs(4)));
        assert_eq!(first.samples[&("weir".to_owned(), vec![named("hot"), named("run")])], 5);
    }

    #[test]
    fn samples_of_stacks_beyond_the_limit_are_counted_together() {
        let mut many = profile(&[]);
        for at in 0..MAX_STACKS + 10 {
            many.add("weir".into(), vec![named(&at.to_string())], 1);
        }
        assert_eq!(many.samples(), MAX_STACKS as u64 + 10);
        assert_eq!(many.samples[&("weir".to_owned(), vec![vec![other()]])], 10);
    }
}
