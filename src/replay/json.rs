//! What is different between two JSON texts, by paths. Numbers are compared as they are written: each digit of an amount
//! counts. The order of keys does not.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

/// Deeper parts are compared as texts.
const MAX_DEPTH: usize = 64;

/// More differences than these are not told one by one.
const MAX_DIFFERENCES: usize = 1_000;

/// One place at which two texts differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Such as `$.accounts[1].balance`.
    pub path: String,
    /// The JSON that stood there then; none where nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// The JSON that stands there now; none where nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
}

/// The differences between two JSON texts, `same` telling of strings. None when one of them is no JSON.
pub(super) fn differences(then: &str, now: &str, same: &dyn Fn(&str, &str) -> bool) -> Option<Vec<Difference>> {
    let (then, now) = (serde_json::from_str(then).ok()?, serde_json::from_str(now).ok()?);
    let mut search = Search { same, found: Vec::new() };
    search.compare("$".to_owned(), then, now, 0);
    Some(search.found)
}

struct Search<'s> {
    same: &'s dyn Fn(&str, &str) -> bool,
    found: Vec<Difference>,
}

impl Search<'_> {
    fn compare(&mut self, path: String, then: &RawValue, now: &RawValue, depth: usize) {
        let (then_text, now_text) = (then.get(), now.get());
        if then_text == now_text || self.found.len() >= MAX_DIFFERENCES {
            return;
        }
        if depth < MAX_DEPTH {
            match (then_text.as_bytes().first(), now_text.as_bytes().first()) {
                (Some(b'{'), Some(b'{')) => {
                    if let (Ok(then), Ok(now)) = (serde_json::from_str(then_text), serde_json::from_str(now_text)) {
                        return self.objects(&path, &then, &now, depth);
                    }
                }
                (Some(b'['), Some(b'[')) => {
                    if let (Ok(then), Ok(now)) = (serde_json::from_str(then_text), serde_json::from_str(now_text)) {
                        return self.lists(&path, then, now, depth);
                    }
                }
                _ => {}
            }
        }
        if !self.is_same_text(then_text, now_text) {
            self.add(path, Some(then), Some(now));
        }
    }

    fn objects(
        &mut self,
        path: &str,
        then: &BTreeMap<String, &RawValue>,
        now: &BTreeMap<String, &RawValue>,
        depth: usize,
    ) {
        for (key, was) in then {
            match now.get(key) {
                Some(is) => self.compare(member(path, key), was, is, depth + 1),
                None => self.add(member(path, key), Some(was), None),
            }
        }
        for (key, is) in now.iter().filter(|(key, _)| !then.contains_key(*key)) {
            self.add(member(path, key), None, Some(is));
        }
    }

    fn lists(&mut self, path: &str, then: Vec<&RawValue>, now: Vec<&RawValue>, depth: usize) {
        for index in 0..then.len().max(now.len()) {
            let place = format!("{path}[{index}]");
            match (then.get(index), now.get(index)) {
                (Some(was), Some(is)) => self.compare(place, was, is, depth + 1),
                (was, is) => self.add(place, was.copied(), is.copied()),
            }
        }
    }

    fn is_same_text(&self, then: &str, now: &str) -> bool {
        match (serde_json::from_str::<String>(then), serde_json::from_str::<String>(now)) {
            (Ok(then), Ok(now)) => (self.same)(&then, &now),
            _ => false,
        }
    }

    fn add(&mut self, path: String, then: Option<&RawValue>, now: Option<&RawValue>) {
        if self.found.len() < MAX_DIFFERENCES {
            let text = |raw: &RawValue| raw.get().to_owned();
            self.found.push(Difference { path, then: then.map(text), now: now.map(text) });
        }
    }
}

fn member(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    if plain { format!("{path}.{key}") } else { format!("{path}[{}]", serde_json::Value::from(key)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(then: &str, now: &str) -> Vec<String> {
        let shown =
            |it: Difference| format!("{} {}→{}", it.path, it.then.unwrap_or_default(), it.now.unwrap_or_default());
        differences(then, now, &|then, now| then == now).expect("JSON").into_iter().map(shown).collect()
    }

    #[test]
    fn differences_are_named_by_their_paths() {
        let then = r#"{"a":[1,{"b":"x","c d":null}],"gone":{"e":1},"same":[]}"#;
        let now = r#"{"same":[],"a":[1,{"b":"y","c d":true},3]}"#;
        assert_eq!(
            found(then, now),
            [r#"$.a[1].b "x"→"y""#, r#"$.a[1]["c d"] null→true"#, "$.a[2] →3", r#"$.gone {"e":1}→"#]
        );
        assert!(differences("{", "{}", &|_, _| true).is_none());
    }

    #[test]
    fn each_digit_counts_and_neither_order_nor_space_nor_escapes_do() {
        assert_eq!(found(r#"{"a":1.0,"b":"é"}"#, r#"{ "b" : "\u00e9", "a":1.0 }"#), [""; 0]);
        assert_eq!(found("[1.0, 12345678901234567890]", "[1.00, 12345678901234567891]").len(), 2);
        assert_eq!(found("1", r#""1""#), [r#"$ 1→"1""#]);
    }

    #[test]
    fn what_is_too_deep_is_compared_as_a_text() {
        let deep = |inner: &str| format!("{}{inner}{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(found(&deep("1"), &deep("1")).is_empty());
        let different = differences(&deep("1"), &deep("2"), &|_, _| true).expect("JSON");
        assert_eq!(different.len(), 1);
    }
}
