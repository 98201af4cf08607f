//! Logs: JSON lines or text for people, written by a thread of their own.
//!
//! The program never waits for its log: lines go into a bounded buffer, and what does not fit is dropped and counted
//! ([`Logs::dropped_lines`]). The level can be changed while the program runs.

use std::io;

use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// Lines that may wait for the writer.
const BUFFERED_LINES: usize = 16_384;

/// How and how much to log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `json` (one object per line) or `human`.
    pub format: Format,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as `info,weir::router=debug`, until the
    /// settings say otherwise.
    pub level: String,
}

impl Default for Config {
    fn default() -> Self {
        Config { format: Format::Human, level: "info".into() }
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
    dropped: ErrorCounter,
    _writer: WorkerGuard,
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
}

/// Changes the level of the running logger.
#[derive(Clone)]
pub struct Level {
    handle: Option<reload::Handle<Targets, Registry>>,
}

impl Logs {
    /// Starts the process' one logger, on stderr: stdout belongs to results.
    pub fn start(config: &Config) -> Result<Self, LogsError> {
        let (filter, handle) = reload::Layer::new(parse(&config.level)?);
        let (writer, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(BUFFERED_LINES)
            .lossy(true)
            .thread_name("log writer")
            .finish(io::stderr());
        let dropped = writer.error_counter();
        let lines = fmt::layer().with_writer(writer);
        let lines = match config.format {
            Format::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
            Format::Human => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).boxed(),
        };
        tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| LogsError::Installed)?;
        Ok(Logs { level: Level { handle: Some(handle) }, dropped, _writer: guard })
    }

    /// The handle that changes the level.
    pub fn level(&self) -> Level {
        self.level.clone()
    }

    /// Adds the count of dropped lines to a role's metrics.
    pub fn register(&self, telemetry: &super::Telemetry) {
        const NAME: &str = "weir_log_lines_dropped_total";
        telemetry.register(|| metrics::describe_counter!(NAME, "Log lines dropped because the writer was behind."));
        let dropped = self.dropped.clone();
        telemetry.before_scrape(move || metrics::counter!(NAME).absolute(dropped.dropped_lines() as u64));
    }

    /// Lines dropped so far because the writer was behind.
    pub fn dropped_lines(&self) -> usize {
        self.dropped.dropped_lines()
    }
}

impl Level {
    /// For a program that set up its own logger: checks levels and changes nothing.
    pub fn fixed() -> Self {
        Level { handle: None }
    }

    /// Applies a level or a filter from now on.
    pub fn set(&self, level: &str) -> Result<(), LogsError> {
        let filter = parse(level)?;
        if let Some(handle) = &self.handle {
            handle.reload(filter).map_err(|_| LogsError::Installed)?;
        }
        Ok(())
    }
}

/// Whether `level` is a level or a filter.
pub fn check(level: &str) -> Result<(), LogsError> {
    parse(level).map(drop)
}

fn parse(level: &str) -> Result<Targets, LogsError> {
    let invalid = |reason: String| LogsError::Level { level: level.to_owned(), reason };
    if level.trim().is_empty() {
        return Err(invalid("it is empty".into()));
    }
    // A bare word would be read as a target of that name, which logs nothing at all.
    for directive in level.split(',').map(str::trim).filter(|directive| !directive.contains('=')) {
        directive.parse::<LevelFilter>().map_err(|_| invalid(format!("{directive:?} is no level")))?;
    }
    level.parse().map_err(|error: tracing_subscriber::filter::ParseError| invalid(error.to_string()))
}

/// For tests of what is logged.
#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use serde_json::Value;
    use tracing::subscriber::DefaultGuard;

    use super::{fmt, io};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_checked() {
        for good in ["info", "off", "warn,weir::router=debug", "weir=trace"] {
            check(good).expect(good);
        }
        for bad in ["", "loud", "info,verbose", "weir=loud", "weir[span]"] {
            let error = check(bad).expect_err(bad).to_string();
            assert!(error.contains("use a level such as"), "{error}");
        }
    }
}
