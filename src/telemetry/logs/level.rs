//! What is logged: a level, for all or by target, that can change while the program runs.

use tracing::Metadata;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Layer, Registry};

use super::{LogsError, reload};

/// The modules of weir that a filter can name, by `weir::` and the name.
const PARTS: [&str; 24] = [
    "admin",
    "causes",
    "cli",
    "client",
    "config",
    "gate",
    "integration",
    "lifecycle",
    "limits",
    "overload",
    "payload",
    "pem",
    "quantile",
    "redis",
    "registry",
    "replay",
    "router",
    "sandbox",
    "settings",
    "task",
    "telemetry",
    "upstream",
    "wire",
    "worker",
];

/// How near a name must be to one of [`PARTS`] to be taken for a slip.
const NEAR: f64 = 0.7;

/// Changes the level of the running logger.
#[derive(Clone)]
pub struct Level {
    handle: Option<reload::Handle>,
}

impl Level {
    /// For a program that set up its own logger: checks levels and changes nothing.
    pub fn fixed() -> Self {
        Level { handle: None }
    }

    pub(super) fn of(handle: reload::Handle) -> Self {
        Level { handle: Some(handle) }
    }

    /// Applies a level or a filter from now on. One that is not right changes nothing.
    pub fn set(&self, level: &str) -> Result<(), LogsError> {
        let levels = Levels::read(level)?;
        if let Some(handle) = &self.handle {
            handle.reload(levels);
        }
        Ok(())
    }
}

/// Whether `level` is a level or a filter.
pub fn check(level: &str) -> Result<(), LogsError> {
    parse(level).map(drop)
}

/// Lets through what is to be logged.
///
/// The spans of weir's own pass whatever their level, unless nothing is logged at all: they are no lines, but what the
/// lines of others are told apart by.
pub(super) struct Levels(Targets);

impl Levels {
    pub(super) fn read(level: &str) -> Result<Self, LogsError> {
        parse(level).map(Levels)
    }

    pub(super) fn lets_through(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && is_weirs(metadata.target()) || self.0.would_enable(metadata.target(), metadata.level())
    }

    /// The lowest level that any line may have.
    pub(super) fn most_detailed(&self) -> Option<LevelFilter> {
        // Spans of weir's own are errors, the highest level: any that is not off has them.
        Layer::<Registry>::max_level_hint(&self.0)
    }
}

/// Whether a target is of weir's own code.
pub(super) fn is_weirs(target: &str) -> bool {
    target.strip_prefix("weir").is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn parse(level: &str) -> Result<Targets, LogsError> {
    let invalid = |reason: String| LogsError::Level { level: level.to_owned(), reason };
    if level.trim().is_empty() {
        return Err(invalid("it is empty".into()));
    }
    for directive in level.split(',').map(str::trim) {
        match directive.split_once('=') {
            Some((_, "")) => return Err(invalid(format!("{directive:?} has no level"))),
            Some((target, _)) => check_target(target.trim()).map_err(invalid)?,
            // A bare word would be read as a target of that name, which logs nothing at all; and nothing, as `error`.
            None if directive.is_empty() || directive.parse::<LevelFilter>().is_err() => {
                return Err(invalid(format!("{directive:?} is no level")));
            }
            None => {}
        }
    }
    level.parse().map_err(|error: tracing_subscriber::filter::ParseError| invalid(error.to_string()))
}

/// A part of weir that there is not would silently be a filter of nothing.
fn check_target(target: &str) -> Result<(), String> {
    let Some(path) = target.strip_prefix("weir::") else { return Ok(()) };
    let part = path.split("::").next().unwrap_or_default();
    if PARTS.contains(&part) {
        return Ok(());
    }
    let near = PARTS.into_iter().map(|known| (strsim::jaro_winkler(part, known), known));
    let near = near.max_by(|one, other| one.0.total_cmp(&other.0)).filter(|(likeness, _)| *likeness >= NEAR);
    let meant = near.map(|(_, known)| format!(", did you mean \"weir::{known}\"?")).unwrap_or_default();
    Err(format!("weir has no part {target:?}{meant}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_checked() {
        for good in
            ["info", "off", "warn,weir::router=debug", "weir=trace", "info,h2=off", "info, weir::worker::run=debug"]
        {
            check(good).expect(good);
        }
        for (bad, says) in [
            ("", "it is empty"),
            ("loud", "\"loud\" is no level"),
            ("info,verbose", "\"verbose\" is no level"),
            ("info,", "\"\" is no level"),
            ("info,h2=", "\"h2=\" has no level"),
            ("weir=loud", "expected one of"),
            ("weir[span]", "is no level"),
            ("info,weir::rooter=debug", "weir has no part \"weir::rooter\", did you mean \"weir::router\"?"),
            ("info,weir::=debug", "weir has no part"),
        ] {
            let error = check(bad).expect_err(bad).to_string();
            assert!(error.contains("use a level such as") && error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_parts_that_a_filter_can_name_are_the_modules() {
        let library = include_str!("../../lib.rs");
        let listed = library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
        let mut modules: Vec<_> = listed.collect();
        modules.sort_unstable();
        assert_eq!(modules, PARTS);
    }
}
