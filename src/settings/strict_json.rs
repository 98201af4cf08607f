//! JSON in which no object has a key twice.
//!
//! JSON leaves open which of the two counts (RFC 8259, section 4), and readers differ: most take the last one in silence. Whoever
//! wrote the first one believes in that. So a document that has both is none, and the message says where they are.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Some editors begin a file with it, and it means nothing.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Why a text is no such JSON.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It is none at all.
    #[error("is not JSON: {0}")]
    Syntax(serde_json::Error),
    /// A key is there twice.
    #[error("has {0}; keep one of them")]
    Twice(serde_json::Error),
}

/// Reads a text.
pub(super) fn read(text: &[u8]) -> Result<Value, Error> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = Unique(None).deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    // To the reader, any value is good data; what is not is a key.
    read.map_err(|error| if error.is_data() { Error::Twice(error) } else { Error::Syntax(error) })
}

/// The key that leads into an object, and how one came to it.
struct Step<'a> {
    before: Option<&'a Step<'a>>,
    key: &'a str,
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(before) = self.before {
            write!(f, "{before}.")?;
        }
        f.write_str(self.key)
    }
}

/// Reads a value in this place.
#[derive(Clone, Copy)]
struct Unique<'a>(Option<&'a Step<'a>>);

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut read = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            read.push(item);
        }
        Ok(read.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut read = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if read.contains_key(&key) {
                let place = self.0.map(|step| format!(" in {:?}", step.to_string())).unwrap_or_default();
                return Err(A::Error::custom(format!("the key {key:?} twice{place}, the second time")));
            }
            let value = entries.next_value_seed(Unique(Some(&Step { before: self.0, key: &key })))?;
            read.insert(key, value);
        }
        Ok(read.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_each_key_once_is_what_any_reader_reads() {
        for text in [
            r#"{"a": {"b": [1, -2, 0.1, 1e300, "x\n", true, null, {}]}, "c": {"b": {"b": 18446744073709551615}}}"#,
            " [{\"a\": 1}, {\"a\": 2}] ",
            "30",
            "\"ä\\u00e4\"",
        ] {
            let expected: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(read(text.as_bytes()).expect("unique"), expected);
            assert_eq!(read(format!("\u{feff}{text}").as_bytes()).expect("unique"), expected);
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_named_with_its_place() {
        for (text, why) in [
            (
                "{\"flags\": {\n  \"a\": {},\n  \"a\": {}}}",
                "has the key \"a\" twice in \"flags\", the second time at line 3 column 5; keep one of them",
            ),
            ("{\"flags\": 1, \"flags\": 1}", "has the key \"flags\" twice, the second time at line 1 column 20;"),
            ("{\"a\": {\"b\": [{\"c\": 1, \"\\u0063\": 1}]}}", "has the key \"c\" twice in \"a.b\", the second time"),
        ] {
            let error = read(text.as_bytes()).expect_err(why).to_string();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn what_is_no_json_is_told_as_ever() {
        let deep = "[".repeat(200);
        for text in ["", "{", "{\"a\" 1}", "1 2", "{\"a\": 1e999}", &deep] {
            let expected = serde_json::from_str::<Value>(text).expect_err("none");
            assert_eq!(read(text.as_bytes()).expect_err("none").to_string(), format!("is not JSON: {expected}"));
        }
    }
}
