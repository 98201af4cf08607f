//! The values that change while a worker runs, as one immutable, validated snapshot on a watch channel.
//!
//! [`TABLE`] is the one list of them: validation, messages and the documentation come from it. A bad value never takes
//! a worker down and never takes effect: that key keeps its last good value, the others apply, and the log and a
//! counter say so. The version names the source document, so that one can see which workers run with it.

pub mod file;
pub mod flagd;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::limits::{ByName, Cap, Limits, Weight};
use crate::task::{IntegrationName, Tenant};

pub use file::watch;
pub use table::{Spec, TABLE, spec};

/// The version of settings that no document has changed yet.
pub const START_VERSION: &str = "start";

/// One whole state of the settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The gate's target: how many slots it admits. 0 finishes what runs and takes nothing.
    pub max_parallelism: u32,
    /// The share of N that batch tasks may not hold.
    pub interactive_reserve: f64,
    /// The slots that the tasks of one integration may hold.
    pub integration_caps: ByName<IntegrationName, Cap>,
    /// The slots that the tasks of one tenant may hold.
    pub tenant_caps: ByName<Tenant, Cap>,
    /// The slots that a task of an integration holds.
    pub integration_weights: ByName<IntegrationName, Weight>,
    /// The share of tasks whose payload is kept. Those of failures and the slowest are always kept, unless it is 0.
    pub payload_sampling: f64,
    /// A log level or filter.
    pub log_level: String,
    /// Names the document that these values are from: [`START_VERSION`], or the first 12 hex digits of its SHA-256.
    pub version: String,
}

impl Settings {
    /// The part of them that the gate holds.
    pub fn limits(&self) -> Limits {
        Limits {
            target: self.max_parallelism,
            interactive_reserve: self.interactive_reserve,
            integration_caps: self.integration_caps.clone(),
            tenant_caps: self.tenant_caps.clone(),
            weights: self.integration_weights.clone(),
        }
    }
}

/// What the settings are until a document says otherwise, and where that document is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The start value of the setting of this name.
    pub max_parallelism: u32,
    /// The start value of the setting of this name.
    pub interactive_reserve: f64,
    /// The start value of the setting of this name.
    pub integration_caps: ByName<IntegrationName, Cap>,
    /// The start value of the setting of this name.
    pub tenant_caps: ByName<Tenant, Cap>,
    /// The start value of the setting of this name.
    pub integration_weights: ByName<IntegrationName, Weight>,
    /// The start value of the setting of this name.
    pub payload_sampling: f64,
    /// The start value of the setting of this name: the level in `[log]`, which the configuration's root fills in.
    #[serde(skip)]
    pub log_level: String,
    /// A file of flag definitions to watch. Without one, the start values stay.
    pub file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_parallelism: 30,
            interactive_reserve: 0.0,
            integration_caps: ByName::default(),
            tenant_caps: ByName::default(),
            integration_weights: ByName::default(),
            payload_sampling: 1.0,
            log_level: "info".into(),
            file: None,
        }
    }
}

impl Config {
    /// The start values.
    pub fn start(&self) -> Settings {
        Settings {
            max_parallelism: self.max_parallelism,
            interactive_reserve: self.interactive_reserve,
            integration_caps: self.integration_caps.clone(),
            tenant_caps: self.tenant_caps.clone(),
            integration_weights: self.integration_weights.clone(),
            payload_sampling: self.payload_sampling,
            log_level: self.log_level.clone(),
            version: START_VERSION.into(),
        }
    }

    /// Whether the start values are in range. Does not look at the file, which may come later.
    pub fn check(&self) -> Result<(), SettingsError> {
        let mut start = self.start();
        for spec in TABLE {
            let value = spec.read(&mut start);
            spec.write(&mut start.clone(), &value).map_err(|reason| SettingsError::Start {
                key: spec.key,
                value,
                reason,
            })?;
        }
        Ok(())
    }
}

/// Why the settings cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A start value is out of range.
    #[error("settings.{key} = {value} is not valid: {reason}")]
    Start {
        /// Which.
        key: &'static str,
        /// What was given.
        value: Value,
        /// What would be right.
        reason: String,
    },
}

/// Something in a document that did not take effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The key as the document has it.
    pub key: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

/// The settings after a document: its good values, the last good ones where a value is bad, and the start values where
/// it says nothing.
pub fn apply(
    flags: &BTreeMap<String, flagd::Evaluated>,
    start: &Settings,
    last: &Settings,
    version: String,
) -> (Settings, Vec<Rejection>) {
    let mut next = Settings { version, ..start.clone() };
    let mut rejections = Vec::new();
    for spec in TABLE {
        let written = match flags.get(spec.key) {
            None | Some(Ok(None)) => Ok(()),
            Some(Ok(Some(value))) => {
                spec.write(&mut next, value).map_err(|reason| format!("{} is not valid, {reason}", brief(value)))
            }
            Some(Err(reason)) => Err(reason.clone()),
        };
        if let Err(reason) = written {
            let kept = spec.read(&mut last.clone());
            // A value that was good once is good still.
            let _ = spec.write(&mut next, &kept);
            rejections.push(Rejection { key: spec.key.into(), reason: format!("{reason}; keeping {kept}") });
        }
    }
    for key in flags.keys().filter(|key| spec(key).is_none()) {
        let known: Vec<_> = TABLE.iter().map(|spec| spec.key).collect();
        let reason = format!("there is no such setting; the settings are {}", known.join(", "));
        rejections.push(Rejection { key: brief(&Value::String(key.clone())), reason });
    }
    (next, rejections)
}

/// A value as JSON, cut where it would make an endless message.
fn brief(value: &Value) -> String {
    const MAX_CHARS: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings_after(document: &[(&str, Value)], last: &Settings) -> (Settings, Vec<String>) {
        let flags = flagd::evaluate(flagd::document(document).as_bytes()).expect("a document");
        let (settings, rejections) = apply(&flags, &Config::default().start(), last, "v1".into());
        (settings, rejections.iter().map(Rejection::to_string).collect())
    }

    #[test]
    fn good_values_apply_and_absent_ones_go_back_to_the_start() {
        let last = Settings { payload_sampling: 0.5, ..Config::default().start() };
        let document = [("max_parallelism", json!(300.0)), ("log_level", json!("warn,weir=debug"))];
        let (settings, rejections) = settings_after(&document, &last);
        let expected = Settings {
            max_parallelism: 300,
            payload_sampling: 1.0,
            log_level: "warn,weir=debug".into(),
            version: "v1".into(),
            ..Config::default().start()
        };
        assert_eq!((settings, rejections), (expected, vec![]));
    }

    #[test]
    fn a_bad_value_keeps_the_last_good_one_of_its_key_alone() {
        let last = Settings { max_parallelism: 7, ..Config::default().start() };
        for bad in [json!(-1), json!(1.5), json!("30"), json!(100_001), json!(true), json!(1e300)] {
            let document = [("max_parallelism", bad.clone()), ("payload_sampling", json!(0.25))];
            let (settings, rejections) = settings_after(&document, &last);
            assert_eq!((settings.max_parallelism, settings.payload_sampling), (7, 0.25));
            let expected = format!("max_parallelism: {bad} is not valid, use an integer from 0 to 100000; keeping 7");
            assert_eq!(rejections, [expected]);
        }
        let (settings, rejections) = settings_after(&[("log_level", json!("loud"))], &last);
        assert_eq!(settings.log_level, "info");
        assert!(rejections[0].contains("use a level such as"), "{rejections:?}");
    }

    #[test]
    fn a_typo_is_reported() {
        let (_, rejections) = settings_after(&[("max_paralelism", json!(1))], &Config::default().start());
        assert!(rejections[0].contains("the settings are max_parallelism, interactive_reserve"), "{rejections:?}");
    }

    #[test]
    fn start_values_are_checked_and_those_by_default_are_good() {
        Config::default().check().expect("good");
        let config = Config { payload_sampling: f64::NAN, ..Config::default() };
        let error = config.check().expect_err("not a number").to_string();
        assert_eq!(error, "settings.payload_sampling = null is not valid: use a number from 0 to 1");
        let config = Config { max_parallelism: 200_000, ..Config::default() };
        assert!(config.check().is_err());
    }

    #[test]
    fn each_setting_says_what_it_is() {
        for spec in TABLE {
            assert!(!spec.affects.is_empty() && !spec.expected().is_empty() && !spec.default().is_null());
        }
    }
}
