//! `[payloads.redaction]`: what is kept, what is looked for, and for how long. Checked at boot.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::detect::{Detector, Detectors};
use super::names::{is_kept_header, is_kept_query_key, is_sensitive};
use super::path::Path;
use crate::payload::ConfigError;
use crate::task::{IntegrationName, UnknownIntegration};

/// The most names in a list, and the most paths of an integration.
const MAX_NAMES: usize = 200;

/// The most time that one payload may take.
const MAX_TIME_LIMIT: Duration = Duration::from_secs(60);

/// Stands for every integration, and for every key of a query.
const ANY: &str = "*";

/// How payloads are redacted. Credentials are always looked for by their names; this says what else is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Headers whose values are kept, beside those that are known to be harmless.
    pub keep_headers: Vec<String>,
    /// Keys of a URL's query whose values are kept, beside those that are known to be harmless; `*` for all that are no
    /// credentials.
    pub keep_query: Vec<String>,
    /// Media types, `type/subtype` or `type/*`, of binary bodies that are kept though nothing can be looked for in them.
    /// Archives and documents labelled as one of `image/*`, `audio/*` or `video/*` are not.
    pub keep_binary: Vec<String>,
    /// By the integration's name, or `*` for all: JSON paths to what is taken out of bodies, inputs and outputs.
    pub paths: BTreeMap<String, Vec<String>>,
    /// What is looked for by its form.
    pub detect: Vec<Detector>,
    /// The processor time that one payload may take.
    #[serde(with = "humantime_serde")]
    pub time_limit: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            keep_headers: Vec::new(),
            keep_query: Vec::new(),
            keep_binary: vec!["image/*".into()],
            paths: BTreeMap::new(),
            detect: Detector::DEFAULT.to_vec(),
            time_limit: Duration::from_secs(1),
        }
    }
}

impl Config {
    /// The integrations that have paths of their own and are not among those that there are.
    pub fn unknown(&self, known: &[&IntegrationName]) -> Vec<UnknownIntegration> {
        let names: Vec<_> = self.paths.keys().filter_map(|name| name.parse().ok()).collect();
        UnknownIntegration::among(&names, known)
    }

    /// Whether the values can be right.
    pub(in super::super) fn check(&self) -> Result<(), ConfigError> {
        Rules::new(self).map(drop)
    }
}

/// A checked configuration, ready for use.
#[derive(Debug)]
pub(super) struct Rules {
    keep_headers: Vec<String>,
    keep_query: Vec<String>,
    keep_binary: Vec<String>,
    paths: BTreeMap<String, Vec<Path>>,
    pub detectors: Detectors,
    pub time_limit: Duration,
}

impl Rules {
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let lower = |list: &[String]| list.iter().map(|it| it.to_ascii_lowercase()).collect();
        check_names("redaction.keep_headers", &config.keep_headers, header_problem)?;
        check_names("redaction.keep_query", &config.keep_query, query_problem)?;
        check_names("redaction.keep_binary", &config.keep_binary, media_type_problem)?;
        if config.time_limit.is_zero() || config.time_limit > MAX_TIME_LIMIT {
            let value = humantime::format_duration(config.time_limit);
            return Err(ConfigError::new("redaction.time_limit", value, "use more than 0s, at most 60s"));
        }
        Ok(Rules {
            keep_headers: lower(&config.keep_headers),
            keep_query: lower(&config.keep_query),
            keep_binary: lower(&config.keep_binary),
            paths: compile(&config.paths)?,
            detectors: Detectors::new(&config.detect),
            time_limit: config.time_limit,
        })
    }

    /// Whether a header's value is kept.
    pub fn keeps_header(&self, name: &str) -> bool {
        is_kept_header(name) || self.keep_headers.iter().any(|kept| name.eq_ignore_ascii_case(kept))
    }

    /// Whether the value of a query's key is kept, if it is no credential.
    pub fn keeps_query_key(&self, name: &str) -> bool {
        is_kept_query_key(name) || self.keep_query.iter().any(|kept| kept == ANY || name.eq_ignore_ascii_case(kept))
    }

    /// Whether a binary body of a media type, in lowercase, is kept without a look into it.
    pub fn keeps_binary(&self, media_type: &str) -> bool {
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        self.keep_binary.iter().any(|kept| match kept.strip_suffix('*') {
            Some(start) => media_type.starts_with(start),
            None => media_type == kept,
        })
    }

    /// Whether a media type, in lowercase, is named by itself among those, not as one of `type/*`.
    pub fn names_binary(&self, media_type: &str) -> bool {
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        self.keep_binary.iter().any(|kept| media_type == kept)
    }

    /// The paths for an integration.
    pub fn paths(&self, integration: &IntegrationName) -> Vec<&Path> {
        [ANY, integration.as_str()].into_iter().filter_map(|name| self.paths.get(name)).flatten().collect()
    }
}

fn compile(paths: &BTreeMap<String, Vec<String>>) -> Result<BTreeMap<String, Vec<Path>>, ConfigError> {
    const KEY: &str = "redaction.paths";
    let mut compiled = BTreeMap::new();
    for (integration, texts) in paths {
        if integration != ANY && integration.parse::<IntegrationName>().is_err() {
            let right = "use an integration's name, or \"*\" for all, and a list of paths for each";
            return Err(ConfigError::new(KEY, format!("{integration:?}"), right));
        }
        if texts.len() > MAX_NAMES {
            return Err(ConfigError::new(
                KEY,
                format!("of {} paths for {integration}", texts.len()),
                "use at most 200",
            ));
        }
        let path = |text: &String| {
            text.parse::<Path>()
                .map_err(|error| ConfigError::new(KEY, format!("{text:?} for {integration}"), error.to_string()))
        };
        compiled.insert(integration.clone(), texts.iter().map(path).collect::<Result<_, _>>()?);
    }
    Ok(compiled)
}

fn check_names(
    key: &'static str,
    names: &[String],
    problem: fn(&str) -> Option<&'static str>,
) -> Result<(), ConfigError> {
    if names.len() > MAX_NAMES {
        return Err(ConfigError::new(key, format!("a list of {}", names.len()), "use at most 200"));
    }
    match names.iter().find_map(|name| problem(name).map(|problem| (name, problem))) {
        Some((name, problem)) => Err(ConfigError::new(key, format!("{name:?}"), problem)),
        None => Ok(()),
    }
}

fn header_problem(name: &str) -> Option<&'static str> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_name) {
        return Some("use names of headers, such as \"x-bank-branch\"");
    }
    is_sensitive(name).then_some("such a header holds a credential: leave it out")
}

fn query_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("use keys of a query, such as \"account_type\", or \"*\" for all");
    }
    is_sensitive(name).then_some("such a key holds a credential: leave it out")
}

fn media_type_problem(name: &str) -> Option<&'static str> {
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_alphanumeric() || b"-.+".contains(&it));
    let is_right =
        name.split_once('/').is_some_and(|(kind, subtype)| is_part(kind) && (subtype == ANY || is_part(subtype)));
    (!is_right).then_some("use media types, such as \"application/pdf\" or \"image/*\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_right_are_named() {
        let wrong = |json: &str| {
            let config: Config = serde_json::from_str(json).expect("the types fit");
            config.check().expect_err(json).to_string()
        };
        for (json, error) in [
            (
                r#"{"keep_headers": ["x-branch", "Authorization"]}"#,
                r#"payloads.redaction.keep_headers is "Authorization"; such a header holds a credential: leave it out"#,
            ),
            (r#"{"keep_headers": ["*"]}"#, r#""*"; use names of headers, such as "x-bank-branch""#),
            (r#"{"keep_query": ["access_token"]}"#, r#"keep_query is "access_token"; such a key holds"#),
            (r#"{"keep_binary": ["pdf"]}"#, r#""pdf"; use media types, such as "application/pdf""#),
            (r#"{"paths": {"Bank!": ["$.a"]}}"#, r#"paths is "Bank!"; use an integration's name, or "*" for all"#),
            (
                r#"{"paths": {"bank": ["$.a", "$.b[?(@.c)]"]}}"#,
                r#"paths is "$.b[?(@.c)]" for bank; this is no name, index or * at character 5: use names, [*] and indices"#,
            ),
            (r#"{"time_limit": "0s"}"#, "time_limit is 0s; use more than 0s, at most 60s"),
        ] {
            assert!(wrong(json).contains(error), "{}", wrong(json));
        }
        let unknown = serde_json::from_str::<Config>(r#"{"detect": ["cards"]}"#).expect_err("unknown").to_string();
        assert!(unknown.contains("unknown variant `cards`, expected one of `card`, `iban`"), "{unknown}");
    }

    #[test]
    fn lists_add_to_what_is_known_to_be_harmless() {
        let config = r#"{"keep_headers": ["X-Branch"], "keep_query": ["AccountType"], "keep_binary": ["application/pdf"],
            "paths": {"*": ["$..a"], "bank": ["$.b"]}}"#;
        let rules = Rules::new(&serde_json::from_str(config).expect("it fits")).expect("right");
        assert!(rules.keeps_header("x-branch") && rules.keeps_header("Date") && !rules.keeps_header("x-other"));
        assert!(
            rules.keeps_query_key("accounttype") && rules.keeps_query_key("dateFrom") && !rules.keeps_query_key("q")
        );
        assert!(rules.keeps_binary("application/pdf; x=y") && !rules.keeps_binary("image/png"));
        assert!(rules.names_binary("application/pdf; x=y") && !rules.names_binary("image/png"));
        let defaults = Rules::new(&Config::default()).expect("right");
        assert!(defaults.keeps_binary("image/png") && !defaults.names_binary("image/png"));
        let names = ["bank", "other"].map(|name| rules.paths(&name.parse().expect("a name")).len());
        assert_eq!(names, [2, 1]);
        let all = Config { keep_query: vec!["*".into()], ..Config::default() };
        assert!(Rules::new(&all).expect("right").keeps_query_key("q"));
    }
}
