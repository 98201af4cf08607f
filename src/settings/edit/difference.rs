//! What differs between two documents, setting by setting.

use serde_json::{Map, Value};

use super::read;

/// What is different in two documents.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The setting, or the name of what is no setting.
    pub key: String,
    /// Its flag before, if it was there.
    pub before: Option<Value>,
    /// Its flag after, if it is there.
    pub after: Option<Value>,
}

/// What differs between two documents, setting by setting.
pub fn differences(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut compare = |key: String, before: Option<&Value>, after: Option<&Value>| {
        if before != after {
            found.push(Difference { key, before: before.cloned(), after: after.cloned() });
        }
    };
    for name in names(before, after) {
        match (before.get(name), after.get(name)) {
            (Some(Value::Object(before)), Some(Value::Object(after))) => {
                for key in names(before, after) {
                    let path = if name == "flags" { key.to_owned() } else { format!("{name}.{key}") };
                    compare(path, before.get(key), after.get(key));
                }
            }
            (before, after) => compare(name.to_owned(), before, after),
        }
    }
    found
}

/// Whether nothing differs; not of what is none.
pub fn is_same(before: &[u8], after: &[u8]) -> bool {
    matches!((read(before), read(after)), (Ok(before), Ok(after)) if differences(&before, &after).is_empty())
}

fn names<'a>(one: &'a Map<String, Value>, other: &'a Map<String, Value>) -> Vec<&'a str> {
    let more = other.keys().filter(|name| !one.contains_key(*name));
    one.keys().chain(more).map(String::as_str).collect()
}
