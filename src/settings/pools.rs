//! To which pools a router sends, as documents and the configuration say it: the settings `pools`, `pool_sticky` and
//! `pool_overflow`. What follows from them is the router's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::limits::integer;
use crate::task::{InvalidName, PoolName};

/// The most pools with a weight: each is followed in the registry, and is a label in metrics.
pub const MAX_POOLS: usize = 16;

/// The largest weight.
pub const MAX_WEIGHT: u32 = 10_000;

/// The weight of each pool; its share of the tasks is its weight ÷ the sum of all. In JSON, an object:
/// `{"single": 95, "parallel": 5}`. Empty where a router has one pool, that of its configuration; otherwise at least one
/// weight is above 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Weights(BTreeMap<PoolName, u32>);

/// Into which pool another one overflows. In JSON, an object: `{"parallel": "single"}`. Empty: none does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Overflow(BTreeMap<PoolName, PoolName>);

/// What has one pool for all of its tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Sticky {
    /// A tenant.
    Tenant,
    /// A task: those of a tenant are spread, and one that is submitted again goes where it went before.
    #[default]
    Task,
}

impl Weights {
    /// Each pool and its weight, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&PoolName, u32)> {
        self.0.iter().map(|(pool, weight)| (pool, *weight))
    }

    /// What it may be, in words.
    pub(super) fn expected() -> String {
        format!("an object of integers from 0 to {MAX_WEIGHT}, such as {{\"single\": 95, \"parallel\": 5}}")
    }
}

impl Overflow {
    /// Each pool that overflows, and into which one.
    pub fn iter(&self) -> impl Iterator<Item = (&PoolName, &PoolName)> {
        self.0.iter()
    }

    /// What it may be, in words.
    pub(super) fn expected() -> String {
        "an object of pools, such as {\"parallel\": \"single\"}".into()
    }
}

impl Sticky {
    /// What it may be, in words.
    pub(super) const EXPECTED: &'static str = "\"tenant\" or \"task\"";
}

impl TryFrom<Value> for Weights {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        let weight = |value: &Value| integer(value).filter(|weight| *weight <= MAX_WEIGHT);
        let expected = format!("use an integer from 0 to {MAX_WEIGHT}");
        let weights = by_pool(&value, Self::expected, |_, value| weight(value).ok_or_else(|| expected.clone()))?;
        if weights.values().all(|weight| *weight == 0) && !weights.is_empty() {
            return Err("no pool would get a task: give at least one a weight above 0".into());
        }
        Ok(Weights(weights))
    }
}

impl TryFrom<Value> for Overflow {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        let into = |pool: &PoolName, into: &Value| match into.as_str().map(str::parse::<PoolName>) {
            Some(Ok(into)) if into == *pool => Err("use another pool than itself".into()),
            Some(Ok(into)) => Ok(into),
            Some(Err(invalid)) => Err(invalid.to_string()),
            None => Err("use a pool's name".into()),
        };
        by_pool(&value, Self::expected, into).map(Overflow)
    }
}

impl TryFrom<Value> for Sticky {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        match value.as_str() {
            Some("tenant") => Ok(Sticky::Tenant),
            Some("task") => Ok(Sticky::Task),
            _ => Err(format!("use {}", Self::EXPECTED)),
        }
    }
}

impl From<Weights> for Value {
    fn from(weights: Weights) -> Value {
        weights.0.into_iter().map(|(pool, weight)| (pool.to_string(), weight)).collect()
    }
}

impl From<Overflow> for Value {
    fn from(overflow: Overflow) -> Value {
        overflow.0.into_iter().map(|(pool, into)| (pool.to_string(), into.to_string())).collect()
    }
}

impl From<Sticky> for Value {
    fn from(sticky: Sticky) -> Value {
        match sticky {
            Sticky::Tenant => "tenant".into(),
            Sticky::Task => "task".into(),
        }
    }
}

/// Reads an object by the names of pools; one entry that is wrong makes all of it wrong.
fn by_pool<T>(
    value: &Value,
    expected: impl Fn() -> String,
    read: impl Fn(&PoolName, &Value) -> Result<T, String>,
) -> Result<BTreeMap<PoolName, T>, String> {
    let entries = value.as_object().ok_or_else(|| format!("use {}", expected()))?;
    if entries.len() > MAX_POOLS {
        return Err(format!("it has {} pools, use at most {MAX_POOLS}", entries.len()));
    }
    let entry = |(name, value): (&String, &Value)| {
        let pool: PoolName = name.parse().map_err(|invalid: InvalidName| invalid.to_string())?;
        let read =
            read(&pool, value).map_err(|reason| format!("its entry {name:?} is {}: {reason}", super::brief(value)))?;
        Ok((pool, read))
    };
    entries.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let weights = json!({"parallel": 5, "single": 95, "stopped": 0});
        assert_eq!(Value::from(Weights::try_from(weights.clone()).expect("good")), weights);
        let overflow = json!({"parallel": "single", "single": "parallel"});
        assert_eq!(Value::from(Overflow::try_from(overflow.clone()).expect("good")), overflow);
        for sticky in [json!("tenant"), json!("task")] {
            assert_eq!(Value::from(Sticky::try_from(sticky.clone()).expect("good")), sticky);
        }
        assert_eq!(Weights::try_from(json!({"a": 95.0})).expect("one kind of number").iter().count(), 1);
        assert_eq!(Value::from(Weights::try_from(json!({})).expect("good")), json!({}));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        let many: Value = (0..=MAX_POOLS).map(|n| (format!("p{n}"), 1)).collect();
        for (weights, says) in [
            (json!(5), "use an object of integers from 0 to 10000, such as"),
            (json!({"a": 0, "b": 0}), "give at least one a weight above 0"),
            (json!({"a": -1}), "its entry \"a\" is -1: use an integer from 0 to 10000"),
            (json!({"a": 0.5}), "its entry \"a\" is 0.5: use an integer"),
            (json!({"a": "95%"}), "its entry \"a\" is \"95%\": use an integer"),
            (json!({"a": 10_001}), "its entry \"a\" is 10001"),
            (json!({"A B": 1}), "pool \"A B\" is not valid"),
            (many, "it has 17 pools, use at most 16"),
        ] {
            let reason = Weights::try_from(weights).expect_err(says);
            assert!(reason.contains(says), "{reason}");
        }
        for (overflow, says) in [
            (json!(true), "use an object of pools"),
            (json!({"a": "a"}), "its entry \"a\" is \"a\": use another pool than itself"),
            (json!({"a": ["b"]}), "use a pool's name"),
            (json!({"a": "B"}), "pool \"B\" is not valid"),
        ] {
            let reason = Overflow::try_from(overflow).expect_err(says);
            assert!(reason.contains(says), "{reason}");
        }
        let reason = Sticky::try_from(json!("user")).expect_err("neither");
        assert_eq!(reason, "use \"tenant\" or \"task\"");
    }
}
