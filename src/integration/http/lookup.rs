//! Plain paths such as `steps.accounts.accounts[0].id`, looked up in a JSON text.
//!
//! The text is read past what is not asked for, and what is asked for is handed out as the text that it is: cheap for a
//! large body, and exact for its numbers.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Where a path begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Root {
    Input,
    Step(String),
    /// The item of a loop.
    Item,
    /// What was answered.
    Body,
    TaskId,
    TaskTenant,
    TaskRun,
}

/// One step down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    Name(String),
    Index(usize),
}

/// Reads `source` as a path; nothing when it is something else.
pub(super) fn parse(source: &str) -> Option<(Root, Vec<Key>)> {
    let (first, mut rest) = identifier(source)?;
    let mut keys = Vec::new();
    while !rest.is_empty() {
        let (key, after) = match rest.strip_prefix('.') {
            Some(rest) => identifier(rest).map(|(name, after)| (Key::Name(name.to_owned()), after))?,
            None => bracket(rest)?,
        };
        keys.push(key);
        rest = after;
    }
    match (first, &keys[..]) {
        ("input", _) => Some((Root::Input, keys)),
        ("item", _) => Some((Root::Item, keys)),
        ("body", _) => Some((Root::Body, keys)),
        ("steps", [Key::Name(_), ..]) => {
            let Key::Name(step) = keys.remove(0) else { return None };
            Some((Root::Step(step), keys))
        }
        ("task", [Key::Name(name)]) if name == "id" => Some((Root::TaskId, Vec::new())),
        ("task", [Key::Name(name)]) if name == "tenant" => Some((Root::TaskTenant, Vec::new())),
        ("task", [Key::Name(name)]) if name == "run" => Some((Root::TaskRun, Vec::new())),
        _ => None,
    }
}

/// The items of a JSON list, as the texts that they are; nothing when it is no list.
pub(super) fn items(json: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(json).ok()
}

/// The JSON text at `keys` below `json`.
pub(super) fn find<'a>(json: &'a str, keys: &[Key]) -> Result<Cow<'a, str>, String> {
    let mut text = json;
    for key in keys {
        let found = Down(key).deserialize(&mut serde_json::Deserializer::from_str(text));
        text = match found {
            Ok(Some(value)) => value.get(),
            Ok(None) => return Err(format!("is not there: {key} is missing")),
            Err(_) => return Err(format!("is not there: {key} is asked of {}", kind(text))),
        };
    }
    Ok(Cow::Borrowed(text.trim()))
}

fn identifier(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well.then(|| text.split_at(end))
}

fn bracket(text: &str) -> Option<(Key, &str)> {
    let inside = text.strip_prefix('[')?;
    for quote in ['"', '\''] {
        if let Some(inside) = inside.strip_prefix(quote) {
            let (name, after) = inside.split_once(quote)?;
            let plain = !name.contains('\\');
            return after.strip_prefix(']').filter(|_| plain).map(|after| (Key::Name(name.to_owned()), after));
        }
    }
    let (digits, after) = inside.split_once(']')?;
    digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit())).map(|i| (Key::Index(i), after))
}

fn kind(json: &str) -> &'static str {
    match json.trim_start().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "a text",
        Some(b'n') => "null",
        Some(b't' | b'f') => "a truth value",
        _ => "a number",
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Name(name) => write!(f, "{name:?}"),
            Key::Index(index) => write!(f, "item {index}"),
        }
    }
}

/// Reads one level of a JSON text for one key.
struct Down<'k>(&'k Key);

impl<'de> DeserializeSeed<'de> for Down<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.0 {
            Key::Name(_) => deserializer.deserialize_map(self),
            Key::Index(_) => deserializer.deserialize_seq(self),
        }
    }
}

impl<'de> Visitor<'de> for Down<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value with {}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match self.0 {
                Key::Name(wanted) if *wanted == name => found = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let Key::Index(wanted) = *self.0 else { return Ok(None) };
        for _ in 0..wanted {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(None);
            }
        }
        let found = list.next_element()?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_expressions() {
        for path in ["input", "input.a[0].b", "input[\"a b\"]", "steps.one", "steps['one'].x", "task.id"] {
            assert!(parse(path).is_some(), "{path}");
        }
        for other in
            ["", "other", "steps", "task", "input.a | upper", "input[-1]", "input[a]", "input.0", "1", "input."]
        {
            assert!(parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn values_are_found_as_the_text_that_they_are() {
        let json = r#" {"a": [1, {"b\u0020c": 1.50}], "a": [ 2.0 , {"b\u0020c": 2.50}], "z": {}} "#;
        let found = |path: &str| {
            let (_, keys) = parse(path).expect(path);
            find(json, &keys).map(Cow::into_owned)
        };
        assert_eq!(found("input.a[1]['b c']").as_deref(), Ok("2.50"), "the last of two equal keys counts");
        assert_eq!(found("input.a[0]").as_deref(), Ok("2.0"));
        assert_eq!(found("input"), Ok(json.trim().to_owned()));
        assert_eq!(found("input.a[2]"), Err("is not there: item 2 is missing".into()));
        assert_eq!(found("input.z.y"), Err("is not there: \"y\" is missing".into()));
        assert_eq!(found("input.a.y"), Err("is not there: \"y\" is asked of a list".into()));
        assert_eq!(found("input.z[0]"), Err("is not there: item 0 is asked of an object".into()));
    }
}
