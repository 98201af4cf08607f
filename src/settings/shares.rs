//! A number from 0 to 1 for each integration: `0.1` for all of them, or `{"*": 0.1, "bank": 1}`.
//!
//! It is looked at by each run, so it is a table of names: what rules say of an integration has been put into it when the
//! settings were read (`by_integration.rs`). An object must say what holds for those that it does not name; whoever wants
//! one integration to differ should not change all others unawares.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::brief;
use crate::limits::{ByName, OTHERS};
use crate::task::IntegrationName;

/// The numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Shares {
    others: f64,
    named: BTreeMap<IntegrationName, f64>,
}

/// Which numbers may stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    /// 0 and 1, too.
    Closed,
    /// What is between 0 and 1.
    Open,
}

impl Range {
    fn has(self, number: f64) -> bool {
        match self {
            Range::Closed => (0.0..=1.0).contains(&number),
            Range::Open => number > 0.0 && number < 1.0,
        }
    }

    /// In words, such as `0 to 1`.
    pub(super) fn words(self) -> &'static str {
        match self {
            Range::Closed => "0 to 1",
            Range::Open => "above 0, below 1",
        }
    }

    fn number(self) -> &'static str {
        match self {
            Range::Closed => "a number from 0 to 1",
            Range::Open => "a number above 0 and below 1",
        }
    }

    pub(super) fn expected(self) -> String {
        let example = match self {
            Range::Closed => r#"{"*": 0.1, "bank": 1}"#,
            Range::Open => r#"{"*": 0.99, "bank": 0.9}"#,
        };
        format!("{}, or an object of them by integration, such as {example}", self.number())
    }
}

impl Shares {
    /// This for every integration.
    pub fn of_all(share: f64) -> Self {
        Shares { others: share, named: BTreeMap::new() }
    }

    /// What holds for an integration.
    pub fn of(&self, integration: &IntegrationName) -> f64 {
        self.named.get(integration).copied().unwrap_or(self.others)
    }

    /// Those that have a number of their own.
    pub fn named(&self) -> impl Iterator<Item = &IntegrationName> {
        self.named.keys()
    }

    /// What holds for those that are not named.
    pub fn others(&self) -> f64 {
        self.others
    }

    /// Reads a number or an object; says what would be right, if it is neither.
    pub(super) fn read(value: &Value, range: Range) -> Result<Self, String> {
        let number = |value: &Value| value.as_f64().filter(|number| range.has(*number));
        let Value::Object(entries) = value else {
            return number(value).map(Shares::of_all).ok_or_else(|| format!("use {}", range.expected()));
        };
        let wrong =
            |name: &str, value: &Value, reason: &str| format!("its entry {name:?} is {}: {reason}", brief(value));
        let entries = ByName::<IntegrationName, Value>::read(entries)
            .map_err(|entry| wrong(&entry.name, &entry.value, &entry.reason))?;
        let entry = |name: &str, value: &Value| {
            number(value).ok_or_else(|| wrong(name, value, &format!("use {}", range.number())))
        };
        let others =
            entries.others.ok_or_else(|| format!("say in {OTHERS:?} what holds for all other integrations"))?;
        let named = entries.named.iter().map(|(name, value)| Ok((name.clone(), entry(name.as_str(), value)?)));
        Ok(Shares { others: entry(OTHERS, &others)?, named: named.collect::<Result<_, String>>()? })
    }
}

impl TryFrom<Value> for Shares {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        Shares::read(&value, Range::Closed)
    }
}

impl From<Shares> for Value {
    fn from(shares: Shares) -> Value {
        if shares.named.is_empty() {
            return shares.others.into();
        }
        let others = std::iter::once((OTHERS.to_owned(), shares.others.into()));
        let named = shares.named.into_iter().map(|(name, share)| (name.to_string(), share.into()));
        Value::Object(others.chain(named).collect::<Map<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Shares, String> {
        Shares::read(&value, Range::Closed)
    }

    #[test]
    fn a_number_is_for_all_and_an_object_for_each_by_its_name() {
        let of = |shares: &Shares, name: &str| shares.of(&name.parse().expect("a name"));
        let (all, some) = (read(json!(1)).expect("good"), read(json!({"bank": 1, "*": 0.1})).expect("good"));
        assert_eq!([of(&all, "bank"), of(&all, "broker"), all.others()], [1.0; 3]);
        assert_eq!([of(&some, "bank"), of(&some, "broker"), some.others()], [1.0, 0.1, 0.1]);
        assert_eq!([Value::from(all), Value::from(some.clone())], [json!(1.0), json!({"*": 0.1, "bank": 1.0})]);
        assert_eq!(read(Value::from(some.clone())), Ok(some), "what was written reads back");
        assert_eq!(read(json!({"*": 0.5})), read(json!(0.5)));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        let expected = "use a number from 0 to 1, or an object of them by integration, such as";
        for (value, why) in [
            (json!(-0.1), expected),
            (json!(1.1), expected),
            (json!("1"), expected),
            (json!(null), expected),
            (json!([1]), expected),
            (json!({}), "say in \"*\" what holds for all other integrations"),
            (json!({"bank": 1}), "say in \"*\" what holds for all other integrations"),
            (json!({"*": 2}), "its entry \"*\" is 2: use a number from 0 to 1"),
            (json!({"*": 1, "bank": "10%"}), "its entry \"bank\" is \"10%\": use a number from 0 to 1"),
            (json!({"*": 1, "Bank": 1}), "integration \"Bank\" is not valid"),
        ] {
            let reason = read(value).expect_err(why);
            assert!(reason.contains(why), "{reason}");
        }
        for wrong in [json!(0), json!(1), json!({"*": 0.5, "bank": 1})] {
            let reason = Shares::read(&wrong, Range::Open).expect_err("not between 0 and 1");
            assert!(reason.contains("use a number above 0 and below 1"), "{reason}");
        }
        assert_eq!(Shares::read(&json!(0.99), Range::Open), Ok(Shares::of_all(0.99)));
    }
}
