//! Logs: JSON lines that Elasticsearch takes as they are, or text for people, written by a thread of their own.
//!
//! The program never waits for its log. Lines go into a bounded buffer (`writer`); what does not fit or cannot be written is
//! counted. What one place in the code says too often is left out and counted (`repeats`). Lines of a run have the run's
//! names, from the span that they are in (`line`). The level can be changed while the program runs (`level`).
//!
//! tracing-subscriber's own formatter writes a name twice that a line and its span both have, which Elasticsearch refuses,
//! and cannot speak for lines that were left out; the usual non-blocking writer wakes its thread for each line, and does
//! not count what it cannot write.

mod ecs;
mod human;
mod level;
mod line;
mod lines;
mod reload;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use ecs::FIELDS;
pub use level::{Level, check};

use crate::lifecycle::Lifecycle;
use ecs::Ecs;
use human::Human;
use level::Levels;
use line::Style;
use lines::{LEVELS, Lines, Shared};

/// How long the last lines may take to be written.
const END_WITHIN: Duration = Duration::from_secs(1);

/// How and how much to log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `json` (one object per line, in the names of the Elastic Common Schema) or `human`.
    pub format: Format,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as `info,weir::router=debug`, until the
    /// settings say otherwise.
    pub level: String,
    /// Lines that one place in the code writes in ten seconds, of each integration; 0 is no limit. What is left out is
    /// counted.
    pub repeats: u32,
    /// `service.name` in JSON lines. Without one: `weir-worker`, `weir-router`, `weir-sandbox`.
    pub service: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config { format: Format::Human, level: "info".into(), repeats: 100, service: None }
    }
}

impl Config {
    /// Checks the values.
    pub fn check(&self) -> Result<(), String> {
        check(&self.level).map_err(|error| format!("level: {error}"))?;
        match self.service.as_deref().map(str::trim) {
            Some("") => Err("service: it is empty; use a name such as \"bank-pulls\"".into()),
            _ => Ok(()),
        }
    }
}

/// What a log line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Human,
}

/// The running logger; dropping it writes out what is buffered.
pub struct Logs {
    level: Level,
    shared: Arc<Shared>,
}

/// Why the logger did not start.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The filter does not parse.
    #[error(
        "log level {level:?} is not valid: {reason}; use a level such as \"info\" or a filter such as \"info,weir::router=debug\""
    )]
    Level {
        /// What was given.
        level: String,
        /// What the parser says.
        reason: String,
    },
    /// There is a logger already.
    #[error("the process has a logger already")]
    Installed,
    /// The thread that writes did not start, or there is no stderr.
    #[error("cannot log to stderr: {0}")]
    Writer(#[from] io::Error),
}

impl Logs {
    /// Starts the process' one logger, on stderr: stdout belongs to results. `role` is what the process is, such as
    /// `worker`.
    pub fn start(config: &Config, role: &str) -> Result<Self, LogsError> {
        let (filter, handle) = reload::Layer::new(Levels::read(&config.level)?);
        let style: Box<dyn Style> = match config.format {
            Format::Json => {
                let service = config.service.clone().unwrap_or_else(|| format!("weir-{role}"));
                Box::new(Ecs::new(&service))
            }
            Format::Human => Box::new(Human { has_colours: io::IsTerminal::is_terminal(&io::stderr()) }),
        };
        let lines = Lines::new(style, config.repeats);
        let shared = lines.shared().clone();
        let stderr = writer::stderr()?;
        // As one layer: each one takes part whenever a span is left.
        tracing_subscriber::registry().with(filter.and_then(lines)).try_init().map_err(|_| LogsError::Installed)?;
        let looks = shared.clone();
        shared.buffer.start(stderr, move || looks.tell_left_out(), &Lifecycle::new())?;
        Ok(Logs { level: Level::of(handle), shared })
    }

    /// The handle that changes the level.
    pub fn level(&self) -> Level {
        self.level.clone()
    }

    /// Gives the process its `service.node.name` in JSON lines, where it has none yet: a worker may have its name only
    /// once it runs.
    pub fn set_node(&self, name: impl Into<String>) {
        let _ = self.shared.node.set(name.into());
    }

    /// Adds the counts of lines to a role's metrics.
    pub fn register(&self, telemetry: &super::Telemetry) {
        use metrics::{counter, describe_counter};
        const LINES: &str = "weir_log_lines_total";
        const LEFT_OUT: &str = "weir_log_lines_left_out_total";
        const DROPPED: &str = "weir_log_lines_dropped_total";
        telemetry.register(|| {
            describe_counter!(LINES, "Log lines, by level.");
            describe_counter!(LEFT_OUT, "Log lines left out because their like was said too often, by level.");
            describe_counter!(
                DROPPED,
                "Log lines lost, by reason: behind, for the writer's buffer was full; failed, for they could not be written."
            );
        });
        let shared = self.shared.clone();
        telemetry.before_scrape(move || {
            let counts = &shared.counts;
            for ((_, level), (said, left_out)) in LEVELS.iter().zip(counts.said.iter().zip(&counts.left_out)) {
                counter!(LINES, "level" => *level).absolute(said.load(Ordering::Relaxed));
                counter!(LEFT_OUT, "level" => *level).absolute(left_out.load(Ordering::Relaxed));
            }
            for (reason, lost) in [("behind", &shared.buffer.behind), ("failed", &shared.buffer.failed)] {
                counter!(DROPPED, "reason" => reason).absolute(lost.load(Ordering::Relaxed));
            }
        });
    }

    /// Lines lost so far: the writer was behind, or could not write them.
    pub fn dropped_lines(&self) -> u64 {
        let buffer = &self.shared.buffer;
        buffer.behind.load(Ordering::Relaxed) + buffer.failed.load(Ordering::Relaxed)
    }

    /// Waits until what was said is written, at most for a second: before the process ends without an ordered stop. Returns
    /// whether it is: otherwise nobody reads.
    pub fn flush(&self) -> bool {
        self.shared.tell_rest();
        self.shared.buffer.flush(END_WITHIN)
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.shared.tell_rest();
        self.shared.buffer.end(END_WITHIN);
    }
}

/// For tests of what is logged.
#[cfg(test)]
pub(crate) mod testing {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use serde_json::Value;
    use tracing::subscriber::DefaultGuard;
    use tracing_subscriber::fmt;

    /// What this thread has logged since it began to be heard.
    pub(crate) struct Heard {
        log: Log,
        _logged: DefaultGuard,
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Heard {
        pub(crate) fn listen() -> Self {
            let log = Log::default();
            let writer = log.clone();
            let subscriber = fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
            Heard { log, _logged: tracing::subscriber::set_default(subscriber) }
        }

        /// The lines with this in their message, each with its fields.
        pub(crate) fn lines(&self, message: &str) -> Vec<Value> {
            let text = String::from_utf8(self.log.0.lock().clone()).expect("text");
            let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
            lines.filter(|line: &Value| line["message"].as_str().is_some_and(|said| said.contains(message))).collect()
        }
    }
}
