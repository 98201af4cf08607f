//! What `[integrations.NAME]` with `kind = "exec"` holds.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::integration::Invalid;

/// Without a configured number there are as many processes as cores, but never more than this.
const MOST_BY_DEFAULT: usize = 16;

const PROCESSES: RangeInclusive<usize> = 1..=256;
const CONCURRENCY: RangeInclusive<usize> = 1..=10_000;
const START_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
const CANCEL_GRACE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
/// A worker's stop has 5 s for what goes on between tasks: this, and the second after SIGTERM, must fit.
const STOP_GRACE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3);
const LINE_BYTES: RangeInclusive<usize> = 1_024..=64 * 1024 * 1024;
const RUN_BYTES: RangeInclusive<usize> = 1_024..=1024 * 1024 * 1024;
const RESIDENT_BYTES: RangeInclusive<u64> = 1024 * 1024..=1 << 40;

/// A command that is kept running and speaks the protocol of docs/exec.md.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The program and its arguments; no shell is between.
    pub command: Vec<String>,
    /// Where it runs; the worker's own directory where it is left out.
    pub working_directory: Option<PathBuf>,
    /// Variables of its environment.
    pub variables: BTreeMap<String, String>,
    /// Variables that it gets from the worker's own environment, read at boot.
    pub pass_variables: Vec<String>,
    /// How many processes run it.
    pub processes: usize,
    /// The most tasks that one process has at a time, whatever it announces.
    pub max_concurrency_per_process: usize,
    /// From the start to its `ready`.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    /// From a `cancel` to its answer; then the process is stopped.
    #[serde(with = "humantime_serde")]
    pub cancel_grace: Duration,
    /// From the end of its stdin to SIGTERM.
    #[serde(with = "humantime_serde")]
    pub stop_grace: Duration,
    /// The longest line on its stdout.
    pub max_line_bytes: usize,
    /// All lines about one run, together.
    pub max_run_bytes: usize,
    /// Resident memory of a process and its children, above which it is replaced.
    pub max_resident_bytes: u64,
    /// Whether a line on stderr is a note of every run that is in the process, also where there are several.
    pub shared_stderr: bool,
    /// A process is replaced after so many runs, where there is such a number.
    pub max_runs_per_process: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Config {
            command: Vec::new(),
            working_directory: None,
            variables: BTreeMap::new(),
            pass_variables: Vec::new(),
            processes: cores.min(MOST_BY_DEFAULT),
            max_concurrency_per_process: 64,
            start_timeout: Duration::from_secs(10),
            cancel_grace: Duration::from_secs(2),
            stop_grace: Duration::from_secs(2),
            max_line_bytes: 8 * 1024 * 1024,
            max_run_bytes: 64 * 1024 * 1024,
            max_resident_bytes: 1024 * 1024 * 1024,
            shared_stderr: false,
            max_runs_per_process: None,
        }
    }
}

impl Config {
    /// Checks the values.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(Invalid::new("command", "it is empty: name a program, such as [\"node\", \"pull.mjs\"]"));
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return Err(Invalid::new("command", "no word of it may hold a zero byte"));
        }
        if let Some(directory) = self.working_directory.as_ref().filter(|directory| !directory.is_dir()) {
            let problem = format!("{} is no directory: name one that exists", directory.display());
            return Err(Invalid::new("working_directory", problem));
        }
        for (key, names) in [
            ("variables", self.variables.keys().collect::<Vec<_>>()),
            ("pass_variables", self.pass_variables.iter().collect()),
        ] {
            if let Some(name) = names.into_iter().find(|name| !is_variable(name)) {
                return Err(Invalid::new(key, format!("{name:?} is no variable's name: use one such as \"BANK_URL\"")));
            }
        }
        if self.variables.values().any(|value| value.contains('\0')) {
            return Err(Invalid::new("variables", "no value may hold a zero byte"));
        }
        within("processes", self.processes, &PROCESSES)?;
        within("max_concurrency_per_process", self.max_concurrency_per_process, &CONCURRENCY)?;
        lasts("start_timeout", self.start_timeout, &START_TIMEOUT)?;
        lasts("cancel_grace", self.cancel_grace, &CANCEL_GRACE)?;
        lasts("stop_grace", self.stop_grace, &STOP_GRACE)?;
        within("max_line_bytes", self.max_line_bytes, &LINE_BYTES)?;
        within("max_run_bytes", self.max_run_bytes, &RUN_BYTES)?;
        within("max_resident_bytes", self.max_resident_bytes, &RESIDENT_BYTES)?;
        if self.max_line_bytes > self.max_run_bytes {
            let (line, run) = (self.max_line_bytes, self.max_run_bytes);
            let problem = format!("{line} is more than max_run_bytes, which is {run}: one line must fit");
            return Err(Invalid::new("max_line_bytes", problem));
        }
        match self.max_runs_per_process {
            Some(0) => {
                Err(Invalid::new("max_runs_per_process", "0 would run nothing: use at least 1, or leave it out"))
            }
            _ => Ok(()),
        }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn within<T: PartialOrd + std::fmt::Display>(key: &str, value: T, range: &RangeInclusive<T>) -> Result<(), Invalid> {
    match range.contains(&value) {
        true => Ok(()),
        false => {
            let problem = format!("{value} is out of range: use {} to {}", range.start(), range.end());
            Err(Invalid::new(key, problem))
        }
    }
}

fn lasts(key: &str, value: Duration, range: &RangeInclusive<Duration>) -> Result<(), Invalid> {
    match range.contains(&value) {
        true => Ok(()),
        false => {
            let [value, first, last] = [value, *range.start(), *range.end()].map(humantime::format_duration);
            Err(Invalid::new(key, format!("{value} is out of range: use {first} to {last}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_refused_with_their_key_and_what_would_be_right() {
        let good = || Config { command: vec!["true".into()], ..Config::default() };
        good().check().expect("the defaults are valid");
        for (config, says) in [
            (Config::default(), "command: it is empty"),
            (Config { command: vec!["a\0".into()], ..good() }, "command: no word"),
            (Config { working_directory: Some("/nowhere".into()), ..good() }, "working_directory: /nowhere"),
            (Config { pass_variables: vec!["A=B".into()], ..good() }, "pass_variables: \"A=B\""),
            (Config { processes: 0, ..good() }, "processes: 0 is out of range: use 1 to 256"),
            (Config { stop_grace: Duration::from_secs(4), ..good() }, "stop_grace: 4s is out of range: use 10ms to 3s"),
            (Config { max_line_bytes: 2_000, max_run_bytes: 1_999, ..good() }, "max_line_bytes: 2000 is more"),
            (Config { max_runs_per_process: Some(0), ..good() }, "max_runs_per_process: 0"),
        ] {
            let error = config.check().expect_err(says).to_string();
            assert!(error.starts_with(says), "{error}");
        }
    }
}
