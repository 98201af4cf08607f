//! Reads flagd's flag definitions: a JSON document with, per flag, a state, named variants and the default one.
//!
//! ```json
//! { "flags": { "max_parallelism": {
//!     "state": "ENABLED", "variants": { "low": 1, "high": 30 }, "defaultVariant": "high" } } }
//! ```
//!
//! The format is specified at <https://flagd.dev/reference/flag-definitions/>. A flag may have `targeting`, a rule that
//! names the variant for the worker that reads it (`targeting.rs`), and `metadata`, of which weir knows `allow_jump`:
//! true for a value that may be many times the one before.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::store::{MAX_DOCUMENT_BYTES, TooLarge, version_of};
use super::targeting::{self, Context};
use super::{brief, by_integration, strict_json};

/// A flag's value; none when the flag is disabled or leaves the value to the program; or what is wrong with it.
pub type Evaluated = Result<Option<Flag>, String>;

/// What a flag says for one worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Flag {
    /// The value of the variant.
    pub value: Value,
    /// Whether it may be many times the value before.
    pub allow_jump: bool,
}

/// The metadata that says so.
pub const ALLOW_JUMP: &str = "allow_jump";

/// A document that was read once, to be evaluated for many workers.
#[derive(Debug)]
pub struct Document {
    version: String,
    flags: Map<String, Value>,
    /// Rules by name that flags refer to.
    shared: Map<String, Value>,
    shared_mentions: bool,
}

impl Document {
    /// Reads a document, or says why it is none.
    pub fn read(document: &[u8]) -> Result<Self, String> {
        if document.len() > MAX_DOCUMENT_BYTES {
            return Err(format!("it {}", TooLarge::of(document.len() as u64)));
        }
        let version = version_of(document);
        let mut document = strict_json::read(document).map_err(|error| format!("it {error}"))?;
        let mut part = |name| document.get_mut(name).map(Value::take);
        let flags = match part("flags").ok_or("it has no \"flags\"; use {\"flags\": {…}}")? {
            Value::Object(flags) => flags,
            _ => return Err("\"flags\" is not an object; use {\"flags\": {…}}".into()),
        };
        let shared = match part("$evaluators").unwrap_or(Value::Null) {
            Value::Null => Map::new(),
            Value::Object(shared) => shared,
            _ => return Err("\"$evaluators\" is not an object; use {\"name\": {…}}".into()),
        };
        let shared_mentions = shared.values().any(mentions_integration);
        Ok(Document { version, flags, shared, shared_mentions })
    }

    /// Names its content.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Every flag as it is for `context`.
    pub fn evaluate(&self, context: &Context) -> BTreeMap<String, Evaluated> {
        self.flags.iter().map(|(key, flag)| (key.clone(), self.evaluate_one(key, flag, context))).collect()
    }

    /// One flag as it is for `context`; as a disabled one where the document has none of that name.
    pub fn flag(&self, key: &str, context: &Context) -> Evaluated {
        self.flags.get(key).map_or(Ok(None), |flag| self.evaluate_one(key, flag, context))
    }

    fn evaluate_one(&self, key: &str, flag: &Value, context: &Context) -> Evaluated {
        let mentions = self.shared_mentions || flag.get("targeting").is_some_and(mentions_integration);
        by_integration::evaluate(key, context, mentions, |context| evaluate_flag(key, flag, &self.shared, context))
    }
}

/// Every flag of the document as it is for `context`, or why it is none.
pub fn evaluate(document: &[u8], context: &Context) -> Result<BTreeMap<String, Evaluated>, String> {
    Document::read(document).map(|document| document.evaluate(context))
}

fn evaluate_flag(key: &str, flag: &Value, shared: &Map<String, Value>, context: &Context) -> Evaluated {
    let flag = flag.as_object().ok_or("the flag is not an object; use {\"state\": …, \"variants\": {…}, …}")?;
    match flag.get("state").and_then(Value::as_str) {
        Some("ENABLED") => {}
        Some("DISABLED") => return Ok(None),
        _ => return Err(format!("its state is {}, use \"ENABLED\" or \"DISABLED\"", shown(flag, "state"))),
    }
    let allow_jump = match flag.get("metadata").and_then(|metadata| metadata.get(ALLOW_JUMP)) {
        None => false,
        Some(Value::Bool(allow)) => *allow,
        Some(other) => return Err(format!("its metadata {ALLOW_JUMP} is {}, use true or false", brief(other))),
    };
    let variants = flag.get("variants").and_then(Value::as_object);
    let variants = variants.ok_or_else(|| format!("its variants are {}, use an object", shown(flag, "variants")))?;
    let named = |role: &str, name: &str| {
        let value = variants.get(name).map(|value| Some(Flag { value: value.clone(), allow_jump }));
        value.ok_or_else(|| {
            let names: Vec<_> = variants.keys().map(|name| format!("{name:?}")).collect();
            let offered = if names.is_empty() { "of which it has none".into() } else { names.join(", ") };
            format!("its {role} {name:?}, use one of its variants: {offered}")
        })
    };
    // A default that is wrong is so for everyone, whomever the targeting picks out.
    let default = match flag.get("defaultVariant") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => named("defaultVariant is", name)?,
        Some(_) => {
            return Err(format!("its defaultVariant is {}, use a variant's name", shown(flag, "defaultVariant")));
        }
    };
    let rule = flag.get("targeting").filter(|rule| !rule.is_null() && !rule.as_object().is_some_and(Map::is_empty));
    let targeted = rule.map(|rule| targeting::variant(key, rule, shared, context)).transpose()?.flatten();
    match targeted {
        Some(name) => named("targeting gives", &name),
        None => Ok(default),
    }
}

fn mentions_integration(rule: &Value) -> bool {
    match rule {
        Value::String(text) => text == "integration",
        Value::Array(items) => items.iter().any(mentions_integration),
        Value::Object(operation) => operation.values().any(mentions_integration),
        _ => false,
    }
}

fn shown(flag: &Map<String, Value>, key: &str) -> String {
    flag.get(key).map_or_else(|| "missing".into(), brief)
}

/// A document that sets these values.
pub fn document(values: &[(&str, Value)]) -> String {
    let flags: Map<String, Value> = values
        .iter()
        .map(|(key, value)| {
            let flag = json!({"state": "ENABLED", "variants": {"value": value}, "defaultVariant": "value"});
            ((*key).to_owned(), flag)
        })
        .collect();
    let document = json!({"$schema": "https://flagd.dev/schema/v0/flags.json", "flags": flags});
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(flag: Value) -> Evaluated {
        let document = json!({"flags": {"key": flag}}).to_string();
        evaluate(document.as_bytes(), &Context::default()).expect("a document").remove("key").expect("the flag")
    }

    fn is(value: impl Into<Value>) -> Evaluated {
        Ok(Some(Flag { value: value.into(), allow_jump: false }))
    }

    #[test]
    fn targeting_names_the_variant_and_falls_back_to_the_default() {
        let flag = |default: Value, then: &str| {
            json!({"state": "ENABLED", "variants": {"low": 1, "high": 30}, "defaultVariant": default,
                "targeting": {"if": [{"$ref": "is_default_pool"}, then, null]}})
        };
        let evaluate = |flag: Value, pool: &str| {
            let shared = json!({"is_default_pool": {"===": [{"var": "pool"}, "default"]}});
            let document = json!({"flags": {"key": flag}, "$evaluators": shared}).to_string();
            let context = Context { pool: pool.parse().expect("a pool"), ..Context::default() };
            evaluate(document.as_bytes(), &context).expect("a document").remove("key").expect("the flag")
        };
        assert_eq!(evaluate(flag(json!("low"), "high"), "default"), is(30));
        assert_eq!(evaluate(flag(json!("low"), "high"), "other"), is(1));
        assert_eq!(evaluate(flag(Value::Null, "high"), "other"), Ok(None), "the program's own");
        let reason = evaluate(flag(json!("low"), "higher"), "default").expect_err("no such variant");
        assert_eq!(reason, "its targeting gives \"higher\", use one of its variants: \"low\", \"high\"");
        let document = json!({"flags": {}, "$evaluators": []}).to_string();
        assert!(super::evaluate(document.as_bytes(), &Context::default()).is_err());
    }

    #[test]
    fn a_jump_is_allowed_by_the_flags_metadata() {
        let flag = |allow: Value| {
            one(
                json!({"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a", "metadata": {"allow_jump": allow}}),
            )
        };
        assert_eq!(flag(json!(true)), Ok(Some(Flag { value: json!(1), allow_jump: true })));
        assert_eq!(flag(json!(false)), is(1));
        assert_eq!(flag(json!("yes")), Err("its metadata allow_jump is \"yes\", use true or false".into()));
    }

    #[test]
    fn the_default_variant_is_the_value() {
        let variants = json!({"low": 1, "high": 30});
        let flag = json!({"state": "ENABLED", "variants": variants, "defaultVariant": "high", "targeting": {}});
        assert_eq!(one(flag), is(30));
        assert_eq!(one(json!({"state": "DISABLED", "variants": variants, "defaultVariant": "high"})), Ok(None));
        assert_eq!(one(json!({"state": "ENABLED", "variants": variants, "defaultVariant": null})), Ok(None));
    }

    #[test]
    fn what_is_wrong_with_a_flag_is_said() {
        for (flag, why) in [
            (json!(30), "not an object"),
            (json!({"variants": {}}), "its state is missing, use \"ENABLED\" or \"DISABLED\""),
            (json!({"state": "enabled"}), "its state is \"enabled\""),
            (json!({"state": "ENABLED", "variants": [1]}), "its variants are [1], use an object"),
            (
                json!({"state": "ENABLED", "variants": {"a": 1, "b": 2}, "defaultVariant": "c"}),
                "its defaultVariant is \"c\", use one of its variants: \"a\", \"b\"",
            ),
            (json!({"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": 1}), "use a variant's name"),
            (
                json!({"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a", "targeting": {"iff": []}}),
                "has the operation \"iff\"",
            ),
        ] {
            let reason = one(flag).expect_err(why);
            assert!(reason.contains(why), "{reason}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused_as_a_whole() {
        for (document, why) in [
            ("", "not JSON"),
            ("{\"flags\": {\"max_par", "not JSON"),
            ("[]", "no \"flags\""),
            ("{\"flag\": {}}", "no \"flags\""),
            ("{\"flags\": []}", "not an object"),
            ("{\"flags\": {\"a\": {}, \"a\": {}}}", "it has the key \"a\" twice in \"flags\""),
            (
                &format!("{{\"flags\": {{}}}}{}", " ".repeat(MAX_DOCUMENT_BYTES)),
                "it has 1048589 bytes, and may have at most",
            ),
        ] {
            let reason = evaluate(document.as_bytes(), &Context::default()).expect_err(why);
            assert!(reason.contains(why), "{reason}");
        }
    }

    #[test]
    fn a_written_document_reads_back() {
        let written = document(&[("a", json!(0.5)), ("b", json!("x"))]);
        let flags = evaluate(written.as_bytes(), &Context::default()).expect("a document");
        assert_eq!([&flags["a"], &flags["b"]], [&is(0.5), &is("x")]);
    }
}
