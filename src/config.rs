//! The whole configuration, composed of the modules' own: `weir.toml`, then `WEIR_…` variables, then flags.
//!
//! Everything is checked at boot; an error names the key, the value and what would be right. Unknown keys are refused:
//! a typo must not silently mean the default. A variable names its key with `__` between the levels:
//! `WEIR_WORKER__LISTEN=0.0.0.0:7401` is `listen` in `[worker]`.

mod examine;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use ::config::Config as Source;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::integration::keyed;
use crate::task::IntegrationName;
use crate::telemetry::logs;
use crate::{integration, overload, payload, registry, router, sandbox, settings, worker};

/// Looked for in the working directory when no file is named.
pub const DEFAULT_FILE: &str = "weir.toml";

/// The variable that names the file; the only one with the prefix that is not a key.
pub const FILE_VARIABLE: &str = "WEIR_CONFIG";

const PREFIX: &str = "WEIR_";

/// The section of which each table is read on its own.
const INTEGRATIONS: &str = "integrations";

/// Between the levels of a key in a variable's name.
const LEVELS: &str = "__";

/// All sections.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[log]`
    pub log: logs::Config,
    /// `[settings]`: start values, and the file of live ones.
    pub settings: settings::Config,
    /// `[registry]`
    pub registry: registry::Config,
    /// `[worker]`
    pub worker: worker::Config,
    /// `[router]`
    pub router: router::Config,
    /// `[payloads]`
    pub payloads: payload::Config,
    /// `[overload]`
    pub overload: overload::Config,
    /// `[integrations.NAME]`
    pub integrations: BTreeMap<IntegrationName, integration::Config>,
    /// `[sandbox]`
    pub sandbox: sandbox::Config,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or is not TOML.
    #[error("cannot read the configuration file {path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A key is unknown, or a value does not fit.
    #[error("configuration key {key}: {reason}")]
    Value {
        /// Where.
        key: String,
        /// Why, and what would be right.
        reason: String,
    },
}

/// Reads the configuration: `file`, or `weir.toml` where there is one, and then `variables`.
pub fn load(file: Option<&Path>, variables: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
    compose(read(file, variables)?)
}

/// As [`load`], and goes on after a mistake: what can be used, with defaults for what cannot, and all that is wrong. A broken
/// integration is left out. No configuration when nothing can be read at all.
pub fn examine(
    file: Option<&Path>,
    variables: impl Iterator<Item = (String, String)>,
) -> (Option<Config>, Vec<ConfigError>) {
    let (config, mut problems) = match read(file, variables).and_then(|source| Ok((tree(&source)?, source))) {
        Ok((tree, source)) => examine::examine(&source, tree),
        Err(error) => (None, vec![error]),
    };
    // The source has no order of its own.
    problems.sort_by_key(ToString::to_string);
    (config, problems)
}

fn read(file: Option<&Path>, variables: impl Iterator<Item = (String, String)>) -> Result<Source, ConfigError> {
    let named = file.map(Path::to_owned);
    let path = named.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()));
    let unreadable = |path: &Path, reason: String| ConfigError::File { path: path.to_owned(), reason };
    let mut builder = Source::builder();
    if let Some(path) = &path {
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, error.to_string()))?;
        // Read on its own first: an error of the whole would not say that this file is the cause.
        let alone = Source::builder().add_source(toml(&text)).build();
        alone.map_err(|error| unreadable(path, error.to_string()))?;
        builder = builder.add_source(toml(&text));
    }
    let variables = variables.filter(|(name, _)| name.starts_with(PREFIX) && name != FILE_VARIABLE);
    let (texts, others): (HashMap<_, _>, HashMap<_, _>) = variables.partition(|(name, value)| is_text(name, value));
    let source = |variables, parse| {
        let environment = ::config::Environment::with_prefix("WEIR").prefix_separator("_").separator(LEVELS);
        environment.try_parsing(parse).source(Some(variables))
    };
    let built = builder.add_source(source(texts, false)).add_source(source(others, true)).build();
    built.map_err(|error| ConfigError::Value { key: "(variables)".into(), reason: error.to_string() })
}

/// Whether a variable is to be taken as the text that it is, although it may look like a number: `WEIR_WORKER__ID=0` is
/// none. A key whose default is a text is one; of a key that has no default, whether it takes the number is tried out.
fn is_text(variable: &str, value: &str) -> bool {
    let path = variable.trim_start_matches(PREFIX).to_lowercase();
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    match path.split(LEVELS).try_fold(&defaults, |value, key| value.get(key)) {
        Some(Value::String(_)) => true,
        Some(Value::Null) => {
            let Ok(parsed @ (Value::Number(_) | Value::Bool(_))) = serde_json::from_str(value) else { return true };
            let tree = path.rsplit(LEVELS).fold(parsed, |value, key| json!({ key: value }));
            serde_json::from_value::<Config>(tree).is_err()
        }
        _ => false,
    }
}

/// Reads a configuration from a TOML text alone.
pub fn from_text(text: &str) -> Result<Config, ConfigError> {
    let built = Source::builder().add_source(toml(text)).build();
    compose(built.map_err(|error| ConfigError::Value { key: "(all)".into(), reason: error.to_string() })?)
}

fn toml(text: &str) -> ::config::File<::config::FileSourceString, ::config::FileFormat> {
    ::config::File::from_str(text, ::config::FileFormat::Toml)
}

fn compose(source: Source) -> Result<Config, ConfigError> {
    let config = deserialize(&source, &tree(&source)?)?;
    match config.problems().into_iter().next() {
        None => Ok(config),
        Some(problem) => Err(problem),
    }
}

/// The source as JSON, whose types are strict: the source itself would take 1.5 for 2, and true for 1.
fn tree(source: &Source) -> Result<Value, ConfigError> {
    let failed = |error: ::config::ConfigError| ConfigError::Value { key: "(all)".into(), reason: error.to_string() };
    source.clone().try_deserialize().map_err(failed)
}

fn deserialize(source: &Source, tree: &Value) -> Result<Config, ConfigError> {
    let mut config: Config = serde_path_to_error::deserialize(tree).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        // Integrations say the rest of their key themselves.
        match ConfigError::of(&path, &message) {
            ConfigError::Value { key, reason } => {
                let reason = explain(source, &key, &reason);
                ConfigError::Value { key, reason }
            }
            file => file,
        }
    })?;
    config.settings.log_level.clone_from(&config.log.level);
    config.settings.batch_share = config.router.queue.batch_share;
    config.settings.payload_slow_quantile = settings::Shares::of_all(config.payloads.slow_quantile);
    config.settings.redis.clone_from(&config.registry);
    Ok(config)
}

/// What is wrong with a value, with the value itself and a form that would be right where the message lacks them. The
/// values of integrations are not shown beyond what their messages say: what is at a wrong place may be a secret.
fn explain(source: &Source, key: &str, message: &str) -> String {
    let message = message.split(" for key `").next().unwrap_or(message);
    let found = source.get_string(key).ok().filter(|found| !message.contains(found.as_str()));
    let found = found.filter(|_| !key.starts_with(INTEGRATIONS));
    let found = found.map(|found| format!("{found:?}: ")).unwrap_or_default();
    let table = format!("a table, [{key}] in the file: a variable holds one value and no table");
    let form = [
        ("socket address", "a form such as \"127.0.0.1:7401\""),
        ("duration", "a form such as \"30s\" or \"5m\""),
        ("expected a map", &table),
        ("expected struct", &table),
        ("expected a sequence", "a list, in the file: a variable holds one value and no list"),
    ];
    let form = form.into_iter().find(|(kind, _)| message.contains(kind)).map(|(_, form)| form.to_owned());
    let range = || key.strip_prefix("settings.").and_then(settings::spec).map(settings::Spec::expected);
    let form = form.or_else(range).filter(|form| !message.contains(form.as_str()));
    let form = form.map(|form| format!("; use {form}")).unwrap_or_default();
    format!("{found}{message}{form}")
}

impl Config {
    /// What is wrong that the types cannot tell; each module names its own keys.
    fn problems(&self) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        let mut check = |section: &str, result: Result<(), String>| {
            problems.extend(result.err().map(|text| ConfigError::of(section, &text)));
        };
        check("log", self.log.check());
        check("router.queue", self.router.queue.check());
        // What it has from other sections is checked there.
        let settings = settings::Config {
            payload_slow_quantile: settings::Config::default().payload_slow_quantile,
            log_level: logs::Config::default().level,
            ..self.settings.clone()
        };
        check("settings", settings.check().map_err(|error| error.to_string()));
        check("registry", self.registry.check().map_err(|error| error.to_string()));
        check("payloads", self.payloads.check().map_err(|error| error.to_string()));
        check("worker.environment", self.worker.environment.check().map_err(|error| error.to_string()));
        check("overload", self.overload.check().map_err(|error| error.to_string()));
        check("worker.upstream", self.worker.upstream.check());
        check("sandbox", self.sandbox.check().map_err(|error| error.to_string()));
        for (section, default, max) in [
            ("worker", self.worker.default_timeout, self.worker.max_timeout),
            ("router", self.router.default_timeout, self.router.max_timeout),
        ] {
            if default.is_zero() || default > max {
                let (default, max) = (humantime::format_duration(default), humantime::format_duration(max));
                let reason = format!("{default} must be more than 0s and at most max_timeout, which is {max}");
                check(&format!("{section}.default_timeout"), Err(reason));
            }
        }
        check("router.retry", self.router.retry.check());
        check("router.channels", self.router.channels.check());
        check("router.outlier", self.router.outlier.check());
        problems
    }
}

impl ConfigError {
    /// Whether it is about a section, or something in it.
    pub fn is_of(&self, section: &str) -> bool {
        let inside = |rest: &str| rest.is_empty() || rest.starts_with('.');
        matches!(self, ConfigError::Value { key, .. } if key.strip_prefix(section).is_some_and(inside))
    }

    /// From a module's own words about a section, which may begin with the key: `response_bytes: …`,
    /// `payloads.uploads is …`, `settings.max_parallelism = …`.
    fn of(section: &str, text: &str) -> Self {
        let (key, reason) = match text.split_once([' ', ':']) {
            Some((key, _)) if key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')) => {
                let reason = text[key.len()..].trim_start_matches(':').trim_start();
                let verb = ["= ", "is "].into_iter().find_map(|verb| reason.strip_prefix(verb));
                (key.to_owned(), verb.unwrap_or(reason))
            }
            Some((key, reason)) if keyed::is_key(key) && text[key.len()..].starts_with(':') => {
                (format!("{section}.{key}"), reason.trim_start())
            }
            _ => (section.to_owned(), text),
        };
        ConfigError::Value { key, reason: reason.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("weir.toml");
        std::fs::write(&path, text).expect("written");
        load(Some(&path), variables.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    #[test]
    fn variables_come_after_the_file() {
        let text = "[worker]\nlisten = \"127.0.0.1:1\"\npool = \"parallel\"\n[settings]\nmax_parallelism = 5";
        let variables = [
            ("WEIR_WORKER__LISTEN", "127.0.0.1:2"),
            ("WEIR_SETTINGS__MAX_PARALLELISM", "7"),
            ("WEIR_WORKER__ID", "0"),
            ("WEIR_CONFIG", "ignored"),
            ("HOME", "/"),
        ];
        let config = load_text(text, &variables).expect("valid");
        assert_eq!(config.worker.listen.port(), 2);
        assert_eq!(config.worker.pool.as_str(), "parallel");
        assert_eq!(config.settings.max_parallelism, 7);
        assert_eq!(config.worker.id.expect("set").as_str(), "0");
    }

    #[test]
    fn each_mistake_is_named_with_its_key() {
        let cases = [
            ("[worker]\nlisten = \"nowhere\"", "worker.listen: \"nowhere\": invalid socket address"),
            ("[worker]\nlisten = \"nowhere\"", "use a form such as \"127.0.0.1:7401\""),
            ("[worker]\nlissten = \"127.0.0.1:1\"", "lissten"),
            ("[wroker]\nlisten = \"127.0.0.1:1\"", "wroker"),
            ("[settings]\nmax_parallelism = -1", "settings.max_parallelism"),
            ("[settings]\nmax_parallelism = 1.5", "settings.max_parallelism"),
            ("[settings]\nmax_parallelism = true", "settings.max_parallelism"),
            ("[settings]\nmax_parallelism = \"7\"", "settings.max_parallelism"),
            ("[router.queue]\ntasks = 0", "router.queue.tasks"),
            ("[router]\ndefault_timeout = \"2h\"", "at most max_timeout"),
            ("[router]\ndefault_timeout = \"soon\"", "use a form such as \"30s\""),
            ("[log]\nlevel = \"loud\"", "log.level"),
            ("[log]\nlevel = \"info,weir::rooter=debug\"", "did you mean \"weir::router\"?"),
            ("[log]\nrepeats = -1", "log.repeats"),
            ("[log]\nservice = \"\"", "log.service: it is empty"),
            (
                "[integrations.bank]\nkind = \"smtp\"",
                "integrations.bank.kind: there is no \"smtp\": use one of \"http\"",
            ),
            ("[integrations.bank]\nretries = 1", "integrations.bank.kind: it is missing"),
            (
                "[integrations.bank]\nkind = \"http\"\nretries.attempts = \"2\"",
                "key integrations.bank.retries.attempts: invalid type: string \"2\", expected u32",
            ),
            (
                "[integrations.bank]\nkind = \"exec\"\ncommand = \"node x\"",
                "key integrations.bank.command: invalid type: string \"node x\"",
            ),
            (
                "[integrations.bank]\nkind = \"http\"\n[[integrations.bank.steps]]\nname = 7",
                "key integrations.bank.steps[0].name: invalid type",
            ),
            ("[worker", "cannot read the configuration file"),
        ];
        for (text, expected) in cases {
            let error = load_text(text, &[]).expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let error = load_text("", &[("WEIR_SETTINGS__MAX_PARALLELISM", "1.5")]).expect_err("no integer").to_string();
        assert!(error.contains("settings.max_parallelism") && error.contains("1.5"), "{error}");
        let error = load_text("[settings]\npayload_sampling = 7", &[]).expect_err("more than all").to_string();
        let right = r#"use a number from 0 to 1, or an object of them by integration, such as {"*": 0.1, "bank": 1}"#;
        assert!(error.ends_with(&format!("settings.payload_sampling: \"7\": {right}")), "{error}");
        for (variable, value, expected) in [
            (
                "WEIR_PAYLOADS__REDACTION__PATHS",
                r#"{"bank": ["$.a"]}"#,
                "; use a table, [payloads.redaction.paths] in the file: a variable holds one value and no table",
            ),
            (
                "WEIR_PAYLOADS__REDACTION__PATHS__BANK",
                "$.a",
                "expected a sequence; use a list, in the file: a variable holds one value and no list",
            ),
            ("WEIR_WORKER", "x", "; use a table, [worker] in the file: a variable holds one value and no table"),
        ] {
            let error = load_text("", &[(variable, value)]).expect_err(variable).to_string();
            assert!(error.ends_with(expected), "{error}");
        }
        let error = load_text("", &[("WEIR_WORKER__LISSTEN", "x")]).expect_err("unknown").to_string();
        assert!(error.contains("lissten"), "{error}");
    }

    #[test]
    fn a_secret_in_the_configuration_is_not_shown() {
        let http = "[integrations.bank]\nkind = \"http\"\n";
        let expected = "a secret does not belong in the configuration: use { env = \"NAME\" } or { file = \"PATH\" }";
        for secret in ["token = \"abc-S3CRET\"", "auth = { kind = \"basic\", username = \"u\", password = \"S3CRET\" }"]
        {
            let text = format!("{http}{secret}");
            let error = load_text(&text, &[]).expect_err("a secret").to_string();
            assert!(error.ends_with(expected) && !error.contains("S3CRET"), "{error}");
            assert!(error.contains("integrations.bank.token: ") || error.contains("bank.auth.password: "), "{error}");
        }
        let number = load_text(&format!("{http}token = 12345"), &[]).expect_err("a secret").to_string();
        assert!(!number.contains("12345"), "{number}");
    }

    #[test]
    fn a_number_in_a_variable_is_one_where_its_key_takes_one() {
        let variables = [
            ("WEIR_SANDBOX__BEHAVIOUR__HANGS", "0.5"),
            ("WEIR_SANDBOX__SCRIPT", "7"),
            ("WEIR_WORKER__ADVERTISE", "8"),
            ("WEIR_WORKER__ID", "007"),
        ];
        let config = load_text("", &variables).expect("valid");
        assert_eq!(config.worker.id.expect("set").as_str(), "007");
        assert_eq!(config.sandbox.behaviour.hangs, Some(0.5));
        assert_eq!(config.sandbox.script.as_deref(), Some(Path::new("7")));
        assert_eq!(config.worker.advertise.as_deref(), Some("8"));
        assert!(is_text("WEIR_REGISTRY__URL", "9"));
        let error = load_text("", &[("WEIR_SETTINGS__MAX_PARALLELISM", "-1")]).expect_err("out of range").to_string();
        assert!(error.ends_with("expected u32; use an integer from 0 to 100000"), "{error}");
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = load(Some(Path::new("/nowhere/weir.toml")), std::iter::empty()).expect_err("missing").to_string();
        assert!(error.contains("/nowhere/weir.toml"), "{error}");
    }
}
