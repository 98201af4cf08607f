//! The values that change while a worker or a router runs, as one immutable, validated snapshot on a watch channel.
//!
//! [`TABLE`] is the one list of them: validation, messages and the documentation come from it. A bad value never takes
//! a process down and never takes effect: that key keeps its last good value, the others apply, and the log and a
//! counter say so. The version names the source document, so that one can see which workers run with it, and the
//! [`Arrival`] says what of it they do not. Workers and routers read the same document, and each has the values that are
//! for the other, too.
//!
//! A document (`flagd.rs`, `targeting.rs`) is in a [`Store`]: a file, a key of Redis, or LaunchDarkly's flags. `follow.rs`
//! turns what is there into settings, and `kept.rs` keeps the last good ones for the next start. `raise.rs` finds how far N
//! can go up.

mod arrival;
mod by_integration;
mod contact;
pub mod edit;
pub mod file;
pub mod flagd;
mod follow;
pub mod jump;
pub mod kept;
pub mod launchdarkly;
pub mod mark;
mod names;
pub mod pools;
mod profiling;
pub mod raise;
pub mod redis;
mod shares;
pub mod store;
mod strict_json;
mod table;
mod targeting;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::flagd::Flag;
use crate::limits::{ByName, Cap, Limits, Weight};
use crate::task::{IntegrationName, Tenant};

pub use arrival::{Arrival, Rejected, Rejection, TOLD, WHOLE_DOCUMENT};
pub use contact::{Contact, SourceStatus};
pub use follow::{Followed, watch};
pub use names::named_in;
pub use pools::{Overflow, Sticky, Weights};
pub use profiling::Profiling;
pub use shares::Shares;
pub use store::Store;
pub use table::{Spec, TABLE, spec};
pub use targeting::{Context, Role};

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
    /// The share of an integration's tasks whose payload is kept. Those of failures and the slowest are always kept, unless
    /// it is 0.
    pub payload_sampling: Shares,
    /// The quantile of an integration's run times beyond which a run is one of the slowest.
    pub payload_slow_quantile: Shares,
    /// The share of the slot-seconds started that batch has while it waits in a router behind interactive tasks.
    pub batch_share: f64,
    /// To which pools a router sends.
    pub pools: Weights,
    /// Whether a tenant or a task has one pool.
    pub pool_sticky: Sticky,
    /// Which pool takes another one's tasks when that has no room.
    pub pool_overflow: Overflow,
    /// A log level or filter.
    pub log_level: String,
    /// Whether the workers of the pool profile themselves, one at a time.
    pub profiling: Profiling,
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
    pub payload_sampling: Shares,
    /// The start value of the setting of this name: `payloads.slow_quantile`, which the configuration's root fills in.
    #[serde(skip)]
    pub payload_slow_quantile: Shares,
    /// The start value of the setting of this name: that of `[router.queue]`, which the configuration's root fills in.
    #[serde(skip)]
    pub batch_share: f64,
    /// The start value of the setting of this name.
    pub pools: Weights,
    /// The start value of the setting of this name.
    pub pool_sticky: Sticky,
    /// The start value of the setting of this name.
    pub pool_overflow: Overflow,
    /// The start value of the setting of this name: the level in `[log]`, which the configuration's root fills in.
    #[serde(skip)]
    pub log_level: String,
    /// The start value of the setting of this name.
    pub profiling: Profiling,
    /// Where the document of flag definitions is.
    pub source: Source,
    /// The file to watch, with [`Source::File`]. Without one, the start values stay.
    pub file: Option<PathBuf>,
    /// The key that holds the document, with [`Source::Redis`].
    pub redis_key: String,
    /// Where the flags are, with [`Source::LaunchDarkly`].
    pub launchdarkly: launchdarkly::Config,
    /// How many times the value before, or the start value where that is larger, `max_parallelism` may become at once.
    pub max_jump: f64,
    /// The Redis of [`Source::Redis`]: the registry's, which the configuration's root fills in.
    #[serde(skip)]
    pub redis: crate::redis::Config,
}

/// Where the document is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// In a file of this machine.
    #[default]
    File,
    /// In a key of Redis, for the whole fleet.
    Redis,
    /// LaunchDarkly's flags of the settings' keys.
    LaunchDarkly,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_parallelism: 30,
            interactive_reserve: 0.0,
            integration_caps: ByName::default(),
            tenant_caps: ByName::default(),
            integration_weights: ByName::default(),
            payload_sampling: Shares::of_all(1.0),
            payload_slow_quantile: Shares::of_all(0.99),
            batch_share: 0.1,
            pools: Weights::default(),
            pool_sticky: Sticky::default(),
            pool_overflow: Overflow::default(),
            log_level: "info".into(),
            profiling: Profiling::Off,
            source: Source::File,
            file: None,
            redis_key: "weir:{settings}".into(),
            launchdarkly: launchdarkly::Config::default(),
            max_jump: 10.0,
            redis: crate::redis::Config::default(),
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
            payload_sampling: self.payload_sampling.clone(),
            payload_slow_quantile: self.payload_slow_quantile.clone(),
            batch_share: self.batch_share,
            pools: self.pools.clone(),
            pool_sticky: self.pool_sticky,
            pool_overflow: self.pool_overflow.clone(),
            log_level: self.log_level.clone(),
            profiling: self.profiling,
            version: START_VERSION.into(),
        }
    }

    /// Whether the start values are in range, and the source can be one. Does not look at the document, which may come
    /// later.
    pub fn check(&self) -> Result<(), SettingsError> {
        let wrong = |key, value: Value, reason: &str| Err(SettingsError::Start { key, value, reason: reason.into() });
        if !(self.max_jump >= 1.0 && self.max_jump.is_finite()) {
            return wrong("max_jump", self.max_jump.into(), "use a number from 1");
        }
        if self.source == Source::Redis && self.redis.url.is_none() {
            return wrong("source", "redis".into(), "set registry.url, the Redis that the document is in");
        }
        if self.source == Source::LaunchDarkly {
            self.launchdarkly.check()?;
        }
        let tag = self.redis_key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        let is_key = tag.is_some_and(|(tag, _)| !tag.is_empty()) && self.redis_key.len() <= 200;
        if !is_key || self.redis_key.contains(|c: char| c.is_whitespace() || c.is_control()) {
            let reason = "use at most 200 characters without spaces, and with a part in braces that keeps the document and \
                          its history together, such as \"weir:{settings}\"";
            return wrong("redis_key", self.redis_key.clone().into(), reason);
        }
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
    /// The Redis that the document is in.
    #[error("settings.source: {reason}")]
    Redis {
        /// What is wrong with it.
        reason: String,
    },
    /// LaunchDarkly.
    #[error("settings.{key}: {reason}")]
    LaunchDarkly {
        /// Which key of the configuration.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The settings after a document: its good values, the last good ones where a value is bad, and the start values where
/// it says nothing. A value that is more than `max_jump` times what it was counts as bad, unless the document allows it.
pub fn apply(
    flags: &BTreeMap<String, flagd::Evaluated>,
    start: &Settings,
    last: &Settings,
    version: String,
    max_jump: f64,
) -> (Settings, Vec<Rejection>) {
    let mut next = Settings { version, ..start.clone() };
    let mut rejections = Vec::new();
    for spec in TABLE {
        let written = match flags.get(spec.key) {
            None | Some(Ok(None)) => Ok(()),
            Some(Ok(Some(Flag { value, allow_jump }))) => {
                let written = spec.write(&mut next, value);
                let written = written.map_err(|reason| format!("{} is not valid, {reason}", brief(value)));
                let check = |()| spec.check_jump(start, last, &next, max_jump).map_err(|jump| jump.in_a_document());
                if *allow_jump { written } else { written.and_then(check) }
            }
            Some(Err(reason)) => Err(reason.clone()),
        };
        if let Err(reason) = written {
            let kept = spec.read(&mut last.clone());
            // A value that was good once is good still.
            let _ = spec.write(&mut next, &kept);
            rejections.push(Rejection { keeping: Some(kept), ..Rejection::new(spec.key, reason) });
        }
    }
    for key in flags.keys().filter(|key| spec(key).is_none()) {
        let known: Vec<_> = TABLE.iter().map(|spec| spec.key).collect();
        let reason = format!("there is no such setting; the settings are {}", known.join(", "));
        rejections.push(Rejection::new(brief(&Value::String(key.clone())), reason));
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

/// A document alone: the settings after it, and what of it would not take effect; what holds in its place is not known.
pub fn examine(document: &flagd::Document, start: &Settings, context: &Context) -> (Settings, Vec<Rejection>) {
    let version = document.version().to_owned();
    let (settings, rejections) = apply(&document.evaluate(context), start, start, version, f64::INFINITY);
    (settings, rejections.into_iter().map(|it| Rejection { keeping: None, ..it }).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings_after(document: &[(&str, Value)], last: &Settings) -> (Settings, Vec<String>) {
        let flags = flagd::evaluate(flagd::document(document).as_bytes(), &Context::default()).expect("a document");
        let (settings, rejections) = apply(&flags, &Config::default().start(), last, "v1".into(), 10.0);
        (settings, rejections.iter().map(Rejection::to_string).collect())
    }

    #[test]
    fn good_values_apply_and_absent_ones_go_back_to_the_start() {
        let last = Settings { payload_sampling: Shares::of_all(0.5), ..Config::default().start() };
        let document = [("max_parallelism", json!(300.0)), ("log_level", json!("warn,weir=debug"))];
        let (settings, rejections) = settings_after(&document, &last);
        let expected = Settings {
            max_parallelism: 300,
            payload_sampling: Shares::of_all(1.0),
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
            assert_eq!((settings.max_parallelism, settings.payload_sampling.others()), (7, 0.25));
            let expected = format!("max_parallelism: {bad} is not valid, use an integer from 0 to 100000; keeping 7");
            assert_eq!(rejections, [expected]);
        }
        let (settings, rejections) = settings_after(&[("log_level", json!("loud"))], &last);
        assert_eq!(settings.log_level, "info");
        assert!(rejections[0].contains("use a level such as"), "{rejections:?}");
    }

    #[test]
    fn limits_by_name_apply_whole_or_not_at_all() {
        let last = Config::default().start();
        let good = [
            ("interactive_reserve", json!(0.2)),
            ("integration_caps", json!({"*": "50%", "bank": 10})),
            ("tenant_caps", json!({"*": 5, "Acme": "40%"})),
            ("integration_weights", json!({"scraper": 5})),
        ];
        let (settings, rejections) = settings_after(&good, &last);
        assert!(rejections.is_empty(), "{rejections:?}");
        for (key, value) in good {
            assert_eq!(spec(key).expect("known").value(&settings), value);
        }
        let limits = settings.limits();
        assert_eq!((limits.target, limits.reserve()), (30, 6));

        let bad = json!({"bank": 10, "broker": "many"});
        let (kept, rejections) = settings_after(&[("integration_caps", bad)], &settings);
        assert_eq!(kept.integration_caps, settings.integration_caps);
        assert_eq!(
            rejections,
            [
                "integration_caps: {\"bank\":10,\"broker\":\"many\"} is not valid, its entry \"broker\" is \"many\": use an \
              integer from 0 to 100000 or a share of N such as \"50%\"; keeping {\"*\":\"50%\",\"bank\":10}"
            ]
        );
        let (_, rejections) = settings_after(&[("tenant_caps", json!("50%"))], &settings);
        assert!(rejections[0].contains("\"50%\" is not valid, use an object of integers"), "{rejections:?}");
    }

    #[test]
    fn a_jump_is_refused_unless_the_document_allows_it() {
        let last = Settings { max_parallelism: 50, version: "v0".into(), ..Config::default().start() };
        let to = |value: u32, last: &Settings| settings_after(&[("max_parallelism", json!(value))], last);
        assert_eq!(to(500, &last).0.max_parallelism, 500);
        let (kept, rejections) = to(501, &last);
        assert_eq!(kept.max_parallelism, 50);
        let expected = "max_parallelism: 501 is more than 10 times 50; raise it in steps, or set \"metadata\": \
                        {\"allow_jump\": true} in the flag (in LaunchDarkly, a flag allow_jump that is true); keeping 50";
        assert_eq!(rejections, [expected]);
        // Down is never a jump, and up again to where it started is none either.
        let low = Settings { max_parallelism: 1, ..last.clone() };
        assert_eq!((to(0, &last).0.max_parallelism, to(300, &low).0.max_parallelism), (0, 300));
        assert_eq!(to(5_000, &Config::default().start()).0.max_parallelism, 5_000, "the first document is no jump");
        let document = json!({"flags": {"max_parallelism": {"state": "ENABLED", "variants": {"a": 9_000},
            "defaultVariant": "a", "metadata": {"allow_jump": true}}}});
        let flags = flagd::evaluate(document.to_string().as_bytes(), &Context::default()).expect("a document");
        let (settings, _) = apply(&flags, &Config::default().start(), &last, "v1".into(), 10.0);
        assert_eq!(settings.max_parallelism, 9_000);
    }

    #[test]
    fn a_source_that_cannot_be_is_named() {
        let with = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().expect_err("not valid").to_string()
        };
        for (error, why) in [
            (
                with(|config| config.source = Source::Redis),
                "settings.source = \"redis\" is not valid: set registry.url",
            ),
            (
                with(|config| config.redis_key = "weir".into()),
                "settings.redis_key = \"weir\" is not valid: use at most",
            ),
            (with(|config| config.max_jump = 0.5), "settings.max_jump = 0.5 is not valid: use a number from 1"),
            (with(|config| config.max_jump = f64::INFINITY), "settings.max_jump"),
        ] {
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn a_typo_is_reported() {
        let (_, rejections) = settings_after(&[("max_paralelism", json!(1))], &Config::default().start());
        assert!(rejections[0].contains("the settings are max_parallelism, interactive_reserve"), "{rejections:?}");
    }

    #[test]
    fn start_values_are_checked_and_those_by_default_are_good() {
        Config::default().check().expect("good");
        let config = Config { payload_sampling: Shares::of_all(f64::NAN), ..Config::default() };
        let error = config.check().expect_err("not a number").to_string();
        let right = r#"use a number from 0 to 1, or an object of them by integration, such as {"*": 0.1, "bank": 1}"#;
        assert_eq!(error, format!("settings.payload_sampling = null is not valid: {right}"));
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
