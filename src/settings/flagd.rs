//! Reads flagd's flag definitions: a JSON document with, per flag, a state, named variants and the default one.
//!
//! ```json
//! { "flags": { "max_parallelism": {
//!     "state": "ENABLED", "variants": { "low": 1, "high": 30 }, "defaultVariant": "high" } } }
//! ```
//!
//! The format is specified at <https://flagd.dev/reference/flag-definitions/>. Targeting rules are not evaluated: a flag
//! that has some is refused rather than given a value that its author did not mean.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::brief;

/// A flag's value; none when the flag is disabled or leaves the value to the program; or what is wrong with it.
pub type Evaluated = Result<Option<Value>, String>;

/// Every flag of the document, or why it is none.
pub fn evaluate(document: &[u8]) -> Result<BTreeMap<String, Evaluated>, String> {
    // Some editors put it there, and it means nothing.
    const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
    let document = document.strip_prefix(BYTE_ORDER_MARK).unwrap_or(document);
    let document: Value = serde_json::from_slice(document).map_err(|error| format!("it is not JSON: {error}"))?;
    let flags = document.get("flags").ok_or("it has no \"flags\"; use {\"flags\": {…}}")?;
    let flags = flags.as_object().ok_or("\"flags\" is not an object; use {\"flags\": {…}}")?;
    Ok(flags.iter().map(|(key, flag)| (key.clone(), evaluate_flag(flag))).collect())
}

fn evaluate_flag(flag: &Value) -> Evaluated {
    let flag = flag.as_object().ok_or("the flag is not an object; use {\"state\": …, \"variants\": {…}, …}")?;
    match flag.get("state").and_then(Value::as_str) {
        Some("ENABLED") => {}
        Some("DISABLED") => return Ok(None),
        _ => return Err(format!("its state is {}, use \"ENABLED\" or \"DISABLED\"", shown(flag, "state"))),
    }
    if !matches!(flag.get("targeting"), None | Some(Value::Null)) && !is_empty_object(flag.get("targeting")) {
        return Err("it has targeting, which is not supported yet; use variants and defaultVariant alone".into());
    }
    let variants = flag.get("variants").and_then(Value::as_object);
    let variants = variants.ok_or_else(|| format!("its variants are {}, use an object", shown(flag, "variants")))?;
    match flag.get("defaultVariant") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => variants.get(name).cloned().map(Some).ok_or_else(|| {
            let names: Vec<_> = variants.keys().map(|name| format!("{name:?}")).collect();
            let offered = if names.is_empty() { "of which it has none".into() } else { names.join(", ") };
            format!("its defaultVariant is {}, use one of its variants: {offered}", shown(flag, "defaultVariant"))
        }),
        Some(_) => Err(format!("its defaultVariant is {}, use a variant's name", shown(flag, "defaultVariant"))),
    }
}

fn shown(flag: &Map<String, Value>, key: &str) -> String {
    flag.get(key).map_or_else(|| "missing".into(), brief)
}

fn is_empty_object(value: Option<&Value>) -> bool {
    value.and_then(Value::as_object).is_some_and(Map::is_empty)
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
        evaluate(document.as_bytes()).expect("a document").remove("key").expect("the flag")
    }

    #[test]
    fn the_default_variant_is_the_value() {
        let variants = json!({"low": 1, "high": 30});
        let flag = json!({"state": "ENABLED", "variants": variants, "defaultVariant": "high", "targeting": {}});
        assert_eq!(one(flag), Ok(Some(json!(30))));
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
                json!({"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "a", "targeting": {"if": []}}),
                "not supported yet",
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
        ] {
            let reason = evaluate(document.as_bytes()).expect_err(why);
            assert!(reason.contains(why), "{reason}");
        }
    }

    #[test]
    fn a_written_document_reads_back() {
        let flags = evaluate(document(&[("a", json!(0.5)), ("b", json!("x"))]).as_bytes()).expect("a document");
        assert_eq!(flags["a"], Ok(Some(json!(0.5))));
        assert_eq!(flags["b"], Ok(Some(json!("x"))));
    }
}
