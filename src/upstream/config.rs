//! What is configured of all integrations, and of single ones where that differs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{adaptive, breaker, door};
use crate::task::{IntegrationName, UnknownIntegration};

/// `[worker.upstream]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// When an integration is spared because it fails.
    pub breaker: breaker::Config,
    /// Which tasks have no chance to end in time.
    pub deadline: door::Config,
    /// How many tasks at once an integration bears.
    pub adaptive: adaptive::Config,
    /// For one integration, by its name: the keys above that differ for it, such as `{"adaptive": {"mode": "on"}}`.
    pub integrations: BTreeMap<IntegrationName, Map<String, Value>>,
}

/// What holds for one integration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// When it is spared because it fails.
    pub breaker: breaker::Config,
    /// Which of its tasks have no chance to end in time.
    pub deadline: door::Config,
    /// How many of its tasks at once it bears.
    pub adaptive: adaptive::Config,
}

impl Config {
    /// What holds for one integration, or what is wrong with that.
    pub fn rules(&self, integration: &IntegrationName) -> Result<Rules, String> {
        let Config { breaker, deadline, adaptive, integrations } = self.clone();
        let rules = Rules { breaker, deadline, adaptive };
        let Some(own) = integrations.get(integration) else {
            rules.check()?;
            return Ok(rules);
        };
        let section = |problem: String| format!("integrations.{integration}.{problem}");
        let mut value = serde_json::to_value(&rules).map_err(|error| section(error.to_string()))?;
        lay_over(&mut value, &Value::Object(own.clone()));
        let rules: Rules = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            section(format!("{path}: {}", error.into_inner()))
        })?;
        rules.check().map_err(section)?;
        Ok(rules)
    }

    /// The integrations that have rules of their own and are not among those that there are.
    pub fn unknown(&self, known: &[&IntegrationName]) -> Vec<UnknownIntegration> {
        UnknownIntegration::among(self.integrations.keys(), known)
    }

    /// Whether all values are ones that can be meant.
    pub fn check(&self) -> Result<(), String> {
        let Config { breaker, deadline, adaptive, .. } = self.clone();
        Rules { breaker, deadline, adaptive }.check()?;
        self.integrations.keys().try_for_each(|name| self.rules(name).map(drop))
    }
}

impl Rules {
    fn check(&self) -> Result<(), String> {
        self.breaker.check().map_err(|problem| format!("breaker.{problem}"))?;
        self.deadline.check().map_err(|problem| format!("deadline.{problem}"))?;
        self.adaptive.check().map_err(|problem| format!("adaptive.{problem}"))
    }
}

fn lay_over(value: &mut Value, over: &Value) {
    match (value, over) {
        (Value::Object(value), Value::Object(over)) => {
            over.iter().for_each(|(key, over)| lay_over(value.entry(key.clone()).or_insert(Value::Null), over));
        }
        (value, over) => *value = over.clone(),
    }
}

/// Checks a key that is a duration.
pub(super) fn duration(key: &str, value: Duration, least: Duration, most: Duration) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let text = humantime::format_duration;
    Err(format!("{key}: {} is not {} to {}", text(value), text(least), text(most)))
}

/// Checks a key that is a share of something.
pub(super) fn share(key: &str, value: f64) -> Result<(), String> {
    match value > 0.0 && value <= 1.0 {
        true => Ok(()),
        false => Err(format!("{key}: {value} is no share: use more than 0 and at most 1")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: Value) -> Config {
        serde_json::from_value(value).expect("a configuration")
    }

    #[test]
    fn an_integration_has_its_own_where_it_says_so() {
        let config = config(json!({
            "breaker": {"failing": 0.5},
            "integrations": {"bank": {"breaker": {"window": "10s"}, "adaptive": {"mode": "shadow"}}},
        }));
        config.check().expect("valid");
        let own = config.rules(&"bank".parse().expect("a name")).expect("valid");
        assert_eq!((own.breaker.window, own.breaker.failing), (Duration::from_secs(10), 0.5));
        assert_eq!(own.adaptive.mode, adaptive::Mode::Shadow);
        let other = config.rules(&"other".parse().expect("a name")).expect("valid");
        assert_eq!((other.breaker.window, other.adaptive.mode), (Duration::from_secs(30), adaptive::Mode::Off));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key() {
        let cases = [
            (json!({"breaker": {"failing": 0.0}}), "breaker.failing: 0 is no share"),
            (json!({"breaker": {"window": "0s"}}), "breaker.window: 0s is not 100ms to 1h"),
            (json!({"breaker": {"probes": 0}}), "breaker.probes: 0 is not 1 to 100"),
            (json!({"deadline": {"quantile": 0.9}}), "deadline.quantile: "),
            (json!({"adaptive": {"min": 9, "max": 3}}), "adaptive.max: 3 is not 9 to "),
            (
                json!({"integrations": {"bank": {"breaker": {"windw": "1s"}}}}),
                "integrations.bank.breaker.windw: unknown",
            ),
            (json!({"integrations": {"bank": {"breaker": {"failing": 2}}}}), "integrations.bank.breaker.failing: 2 is"),
            (json!({"integrations": {"bank": {"braker": {}}}}), "integrations.bank.braker: unknown field"),
            (json!({"breaker": {"open_for": "2m"}}), "breaker.open_for: 2m is more than max_open_for, which is 1m"),
        ];
        for (value, expected) in cases {
            let error = config(value).check().expect_err(expected);
            assert!(error.starts_with(expected), "{error} is not {expected}");
        }
    }
    #[test]
    fn an_integration_that_there_is_not_is_named_with_the_one_that_may_be_meant() {
        let config = config(json!({"integrations": {"bnak": {}, "bank": {}, "fund": {}}}));
        let names = ["bank", "broker"].map(|name| name.parse().expect("a name"));
        let unknown =
            |known: &[&IntegrationName]| -> Vec<_> { config.unknown(known).iter().map(ToString::to_string).collect() };
        assert_eq!(
            unknown(&names.each_ref()),
            [
                "there is no integration of this name; \"bank\" is near",
                "there is no integration of this name; there are bank, broker",
            ]
        );
        assert_eq!(unknown(&[])[2], "there is no integration of this name");
    }
}
