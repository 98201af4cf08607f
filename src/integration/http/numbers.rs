//! Numbers in expressions: what comes in exact goes out exact.
//!
//! MiniJinja's own numbers are integers and floats. A decimal of at most 15 digits is handed to it as a float: no two
//! such decimals share one, so it stands for the decimal as well as a text would. All else that is no integer of 64 bits
//! (12345678901234567.10, 1e309) is an [`Exact`], which MiniJinja can carry and not compute with. No float is ever
//! computed: `operators.rs` hands all arithmetic to `arithmetic.rs`. Where a value is written, a decimal is written
//! with the digits that an equal one came in with: `0.80` stays `0.80`.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{DynObject, Object, ObjectRepr, ValueKind};
use minijinja::{State, Value};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::decimal::Digits;

/// Decimal digits that a float keeps, whatever they are.
pub(super) const FLOAT_DIGITS: usize = 15;

/// Levels of lists and objects in what is written; what comes in has at most 128.
const MAX_DEPTH: usize = 200;

/// The name under which expressions carry [`Spellings`]; none that an expression may use.
pub(super) const SPELLINGS: &str = "__spellings";

/// A number that no integer and no float of MiniJinja's stands for.
#[derive(Debug)]
pub(super) struct Exact(pub(super) String);

impl Object for Exact {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        Digits::of(&self.0).len() > 0
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        let other = other.downcast_ref::<Exact>()?;
        Some(Digits::of(&self.0).cmp(&Digits::of(&other.0)))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The value that stands for a JSON number.
pub(super) fn number(token: &str) -> Value {
    let is_whole = !token.contains(['.', 'e', 'E']);
    if is_whole && let Ok(whole) = token.parse::<i64>() {
        return Value::from(whole);
    }
    if is_whole && let Ok(whole) = token.parse::<u64>() {
        return Value::from(whole);
    }
    match token.parse::<f64>() {
        Ok(float) if !is_whole && stands_for(float, token) => Value::from(float),
        _ => Value::from_object(Exact(token.to_owned())),
    }
}

fn stands_for(float: f64, token: &str) -> bool {
    match Digits::of(token).len() {
        0 => true,
        digits => digits <= FLOAT_DIGITS && float.is_normal(),
    }
}

/// A number as a JSON number; nothing where it is none.
pub(super) fn token(value: &Value) -> Option<String> {
    if let Some(Exact(text)) = value.downcast_object_ref() {
        return Some(text.clone());
    }
    match value.kind() {
        ValueKind::Number if value.is_integer() => Some(value.to_string()),
        ValueKind::Number => f64::try_from(value.clone()).ok().map(float_token),
        _ => None,
    }
}

fn float_token(float: f64) -> String {
    serde_json::Value::from(float).to_string()
}

/// Reads a JSON text.
pub(super) fn read(json: &str) -> Result<Value, String> {
    let mut plain = String::new();
    let mut copied = 0;
    for (start, token) in numbers(json).filter(|(_, token)| is_exact(token)) {
        plain.push_str(&json[copied..start]);
        plain.push('0');
        copied = start + token.len();
    }
    let read = match copied {
        0 => serde_json::from_str(json),
        _ => {
            plain.push_str(&json[copied..]);
            Read(&mut numbers(json).map(|(_, token)| token))
                .deserialize(&mut serde_json::Deserializer::from_str(&plain))
        }
    };
    read.map_err(|_| "cannot be evaluated: it sees JSON that is nested too deep".to_owned())
}

/// Whether a JSON number is an [`Exact`]; most are short.
fn is_exact(token: &str) -> bool {
    let is_short = token.len() <= FLOAT_DIGITS && !token.contains(['e', 'E']);
    !is_short && number(token).as_object().is_some()
}

/// How decimals were written in what came in, where that is another way than a float's.
#[derive(Debug, Default)]
pub(super) struct Spellings(HashMap<u64, Box<str>>);

impl Object for Spellings {}

impl Spellings {
    /// Learns those of one JSON text; of several for one number the first counts.
    pub(super) fn learn(&mut self, json: &str) {
        for (_, token) in numbers(json).filter(|(_, token)| token.contains(['.', 'e', 'E'])) {
            let Ok(float) = token.parse::<f64>() else { continue };
            if stands_for(float, token) && !self.0.contains_key(&float.to_bits()) {
                self.0.insert(float.to_bits(), token.into());
            }
        }
    }

    /// A number as it came in; nothing where the value is no number.
    fn number(&self, value: &Value) -> Option<String> {
        let is_float = value.kind() == ValueKind::Number && !value.is_integer();
        let float = if is_float { f64::try_from(value.clone()).ok() } else { None };
        let known = float.and_then(|float| self.0.get(&float.to_bits()));
        known.map(|token| token.to_string()).or_else(|| token(value))
    }

    /// Appends the JSON text of a value.
    pub(super) fn write(&self, value: &Value, out: &mut String) -> Result<(), String> {
        self.write_at(value, out, 0)
    }

    fn write_at(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), String> {
        let unknown = || "is no JSON value".to_owned();
        if depth > MAX_DEPTH {
            return Err("is nested too deep".to_owned());
        }
        if let Some(number) = self.number(value) {
            out.push_str(&number);
            return Ok(());
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::String => out.push_str(&quoted(value.as_str().ok_or_else(unknown)?)),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                for (position, item) in value.try_iter().map_err(|_| unknown())?.enumerate() {
                    out.push_str(if position == 0 { "" } else { "," });
                    self.write_at(&item, out, depth + 1)?;
                }
                out.push(']');
            }
            ValueKind::Map => {
                out.push('{');
                for (position, name) in value.try_iter().map_err(|_| unknown())?.enumerate() {
                    out.push_str(if position == 0 { "" } else { "," });
                    out.push_str(&quoted(name.as_str().unwrap_or(&name.to_string())));
                    out.push(':');
                    self.write_at(&value.get_item(&name).map_err(|_| unknown())?, out, depth + 1)?;
                }
                out.push('}');
            }
            _ => return Err(unknown()),
        }
        Ok(())
    }
}

/// A number as a text, with the digits that it came in with; nothing where the value is no number.
pub(super) fn spelled(state: &State<'_, '_>, value: &Value) -> Option<String> {
    let spellings = state.lookup(SPELLINGS);
    match spellings.as_ref().and_then(|spellings| spellings.downcast_object_ref::<Spellings>()) {
        Some(spellings) => spellings.number(value),
        None => token(value),
    }
}

/// The JSON text of a value, its numbers with the digits that they came in with.
pub(super) fn written(state: &State<'_, '_>, value: &Value) -> Result<String, String> {
    let (mut text, spellings) = (String::new(), state.lookup(SPELLINGS));
    match spellings.as_ref().and_then(|spellings| spellings.downcast_object_ref::<Spellings>()) {
        Some(spellings) => spellings.write(value, &mut text)?,
        None => Spellings::default().write(value, &mut text)?,
    }
    Ok(text)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The numbers of a JSON text, each with its place.
fn numbers(json: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = json.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() {
            let start = at;
            match bytes[at] {
                b'"' => at = end_of_text(bytes, at),
                b'-' | b'0'..=b'9' => {
                    while at < bytes.len() && matches!(bytes[at], b'-' | b'+' | b'.' | b'0'..=b'9' | b'e' | b'E') {
                        at += 1;
                    }
                    return Some((start, &json[start..at]));
                }
                _ => at += 1,
            }
        }
        None
    })
}

fn end_of_text(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// Reads a JSON text whose numbers, in their order, are those of an iterator.
struct Read<'i, I>(&'i mut I);

impl<'de, 't, I: Iterator<Item = &'t str>> DeserializeSeed<'de> for Read<'_, I> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, 't, I: Iterator<Item = &'t str>> Visitor<'de> for Read<'_, I> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::from(()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(self.0.next().map_or(Value::UNDEFINED, number))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(self.0.next().map_or(Value::UNDEFINED, number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(self.0.next().map_or(Value::UNDEFINED, number))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(Read(&mut *self.0))? {
            items.push(item);
        }
        Ok(Value::from(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            pairs.push((name, map.next_value_seed(Read(&mut *self.0))?));
        }
        Ok(Value::from_pairs(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_outside_of_texts() {
        let json = r#"{"1.5": [1, -2.50, "3.5\"4.5", 1e3, 12345678901234567890, true], "a": 0.10}"#;
        let found: Vec<_> = numbers(json).map(|(_, token)| token).collect();
        assert_eq!(found, ["1", "-2.50", "1e3", "12345678901234567890", "0.10"]);
    }

    #[test]
    fn what_came_in_goes_out_with_its_digits() {
        let long = "9".repeat(400);
        for json in [
            r#"{"a":10.10,"b":[51.507352,1.0E2,-7,0.0,-0.0],"c":"1.50","d":null,"e":{}}"#,
            "[12345678901234567.10,12345678901234567890,123456789012345678901234567890,1.000000000000000001,1]",
            "[1e309,-1e-400,5e-324,0.5]",
            &format!(r#"{{"a":[{long}],"b":true,"c":"{long}"}}"#),
        ] {
            let (mut spellings, mut written) = (Spellings::default(), String::new());
            spellings.learn(json);
            spellings.write(&read(json).expect(json), &mut written).expect(json);
            assert_eq!(written, json);
        }
    }

    #[test]
    fn a_number_takes_over_the_digits_of_an_equal_one_and_of_no_other() {
        let mut spellings = Spellings::default();
        spellings.learn("[0.80, 0.8, 1.000000000000000001, 9007199254740993.00]");
        for (value, written) in [
            (Value::from(0.8), "0.80"),
            (Value::from(1.0), "1.0"),
            (Value::from(9_007_199_254_740_992.0), "9007199254740992.0"),
            (Value::from(i128::MAX), "170141183460469231731687303715884105727"),
        ] {
            assert_eq!(spellings.number(&value).as_deref(), Some(written));
        }
    }

    #[test]
    fn json_that_is_nested_too_deep_is_refused_in_these_words() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert!(read(&deep).expect_err("deep").contains("nested too deep"));
    }
}
