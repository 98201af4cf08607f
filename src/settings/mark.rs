//! The mark of a raise under way: a text in a flag's `metadata`, which flagd leaves to its users.
//!
//! It is in the document itself, so that the same compare-and-set that keeps two changes apart keeps two raises apart; and
//! whoever finds it after a raise was killed reads in it who to ask. Any other change of the setting removes it.

use serde_json::{Value, json};

/// The key in `metadata`.
pub const RAISE: &str = "raise";

/// The document with the mark on a setting; one that is no object, or does not have the setting, stays as it is.
pub fn mark(document: &str, key: &str, text: &str) -> String {
    let Ok(mut parsed) = serde_json::from_str::<Value>(document) else { return document.to_owned() };
    let Some(flag) = parsed.pointer_mut(&format!("/flags/{key}")).and_then(Value::as_object_mut) else {
        return document.to_owned();
    };
    let metadata = flag.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert(RAISE.into(), text.into());
    }
    format!("{parsed:#}\n")
}

/// The mark on a setting, if there is one.
pub fn marked(document: &[u8], key: &str) -> Option<String> {
    let parsed: Value = serde_json::from_slice(document).ok()?;
    let text = parsed.pointer(&format!("/flags/{key}/metadata/{RAISE}"))?;
    Some(text.as_str().map_or_else(|| text.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::edit::{Change, Scope, edit};
    use crate::settings::{Config, Context, flagd};

    #[test]
    fn a_mark_changes_no_value_and_the_next_change_removes_it() {
        let set = |before: Option<&str>, value: u32| {
            let change =
                Change { key: "max_parallelism".into(), value: value.into(), scope: Scope::Default, allow_jump: false };
            edit(before.map(str::as_bytes), &[change], &Config::default().start(), 10.0).expect("good")
        };
        let plain = set(None, 40);
        let with_mark = mark(&plain, "max_parallelism", "by me");
        assert_eq!(marked(with_mark.as_bytes(), "max_parallelism").as_deref(), Some("by me"));
        let value = |document: &str| flagd::evaluate(document.as_bytes(), &Context::default()).expect("a document");
        assert_eq!(value(&with_mark), value(&plain));
        let next = set(Some(&with_mark), 50);
        assert_eq!(marked(next.as_bytes(), "max_parallelism"), None);
        assert!(!next.contains("metadata"), "{next}");
        assert_eq!((mark("[]", "n", "x"), marked(b"{", "n")), ("[]".to_owned(), None));
    }
}
