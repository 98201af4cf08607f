//! Decimals in expressions: what comes in exact goes out exact, or it is an error.
//!
//! MiniJinja computes with floats. A JSON number with a fraction is handed to it as the nearest float. A float that comes
//! out and was in what went in is written with the digits that it had there, however many: `10.10` stays `10.10`. Any
//! other was computed: it may have 15 digits, so that `0.1 + 0.2` is an error and no amount of 0.30000000000000004.
//! `sum` does not compute with floats at all; it also adds texts that hold decimals, as many banks send them.
//!
//! A number that a float rounds (from 16 digits on, such as 12345678901234567.10) is compared as the float that it is,
//! and may not become a part of a text.

use std::collections::{HashMap, HashSet};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};

/// Decimal digits that a float keeps, whatever they are.
const FLOAT_DIGITS: usize = 15;

/// Integers of this many digits fit those of MiniJinja.
const INTEGER_DIGITS: usize = 18;

/// Digits after the point, in `sum`.
const MAX_SCALE: u32 = 30;

/// The decimals in what an expression sees.
#[derive(Default)]
pub(super) struct Decimals<'a> {
    /// By the floats that stand for them; nothing where one float stands for two that are not the same.
    known: HashMap<u64, Option<&'a str>>,
    /// How MiniJinja would write those that a float rounds.
    rounded: HashSet<String>,
}

impl<'a> Decimals<'a> {
    /// Learns the decimals of one JSON text.
    pub(super) fn learn(&mut self, json: &'a str) {
        for (_, token) in decimals(json) {
            let Ok(float) = token.parse::<f64>() else { continue };
            let known = self.known.entry(float.to_bits()).or_insert(Some(token));
            if Digits::of(token) != Digits::of(&float.to_string()) {
                self.rounded.insert(Value::from(float).to_string());
                if known.is_some_and(|known| Digits::of(known) != Digits::of(token)) {
                    *known = None;
                }
            }
        }
    }

    /// The JSON text of a value, its decimals as they came in.
    pub(super) fn restore(&self, json: String) -> Result<String, String> {
        let (mut restored, mut copied) = (String::new(), 0);
        for (start, token) in decimals(&json) {
            let known = token.parse::<f64>().ok().and_then(|float| self.known.get(&float.to_bits()));
            let text = match known {
                Some(Some(known)) => known,
                Some(None) => return Err("has a number with more digits than an expression can tell apart".into()),
                None if Digits::of(token).digits.len() > FLOAT_DIGITS => {
                    return Err("computes a decimal with more digits than are exact: use sum, round, or a text".into());
                }
                None => token,
            };
            restored.push_str(&json[copied..start]);
            restored.push_str(text);
            copied = start + token.len();
        }
        restored.push_str(&json[copied..]);
        let part_of_number = |c: char| matches!(c, '0'..='9' | '.' | '-' | '+' | 'e');
        let mut runs = restored.split(|c| !part_of_number(c)).map(|run| run.trim_matches(['.', 'e', '+']));
        match !self.rounded.is_empty() && runs.any(|run| self.rounded.contains(run)) {
            true => Err("writes a number with more digits than an expression keeps into a text".into()),
            false => Ok(restored),
        }
    }
}

/// The numbers of a JSON text that are no small integers, each with its place.
fn decimals(json: &str) -> impl Iterator<Item = (usize, &str)> {
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
                    let token = &json[start..at];
                    if token.len() > INTEGER_DIGITS || token.contains(['.', 'e', 'E']) {
                        return Some((start, token));
                    }
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

/// A number without what does not change it: `-1.50e1` and `-15` are the same.
#[derive(PartialEq, Eq)]
struct Digits {
    is_negative: bool,
    digits: String,
    /// The power of ten of the last digit.
    exponent: i64,
}

impl Digits {
    fn of(token: &str) -> Self {
        let (is_negative, token) = token.strip_prefix('-').map_or((false, token), |rest| (true, rest));
        let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_end_matches('0');
        let exponent = exponent.parse::<i64>().unwrap_or(i64::MAX);
        let exponent = exponent.saturating_sub(fraction.len() as i64).saturating_add((all.len() - digits.len()) as i64);
        match digits.trim_start_matches('0') {
            "" => Digits { is_negative, digits: String::new(), exponent: 0 },
            digits => Digits { is_negative, digits: digits.to_owned(), exponent },
        }
    }
}

/// The filter `flatten`: a list of lists as one list.
pub(super) fn flatten(lists: &Value) -> Result<Value, Error> {
    let mut all = Vec::new();
    for list in lists.try_iter()? {
        all.extend(list.try_iter()?);
    }
    Ok(Value::from(all))
}

/// The filter `sum`: exact. A text among the values makes a text of the sum, with as many digits after the point as the
/// longest has.
pub(super) fn sum(values: &Value, attribute: Option<String>, named: Kwargs) -> Result<Value, Error> {
    let attribute = match attribute {
        None => named.get::<Option<String>>("attribute")?,
        given => given,
    };
    named.assert_all_used()?;
    let (mut total, mut has_text) = (Decimal { units: 0, scale: 0 }, false);
    for value in values.try_iter()? {
        let mut path = attribute.iter().flat_map(|path| path.split('.'));
        let value = path.try_fold(value, |value, name| value.get_attr(name))?;
        has_text |= value.as_str().is_some();
        let text = match value.as_str() {
            Some(text) => text.to_owned(),
            None if value.is_integer() => value.to_string(),
            None => f64::try_from(value)?.to_string(),
        };
        total = Decimal::parse(&text).and_then(|value| total.plus(value)).ok_or_else(not_exact)?;
    }
    let text = total.to_string();
    match total.scale {
        _ if has_text => Ok(Value::from(text)),
        0 => Ok(Value::from(total.units)),
        _ if Digits::of(&text).digits.len() > FLOAT_DIGITS => Err(not_exact()),
        _ => text.parse::<f64>().map(Value::from).map_err(|_| not_exact()),
    }
}

fn not_exact() -> Error {
    Error::new(ErrorKind::InvalidOperation, "sum needs decimals, and a sum that can be written exactly")
}

/// `units` divided by ten to the power of `scale`.
#[derive(Clone, Copy)]
struct Decimal {
    units: i128,
    scale: u32,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = whole.strip_prefix('-').unwrap_or(whole);
        let plain = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let scale = fraction.len() as u32;
        let valid = plain(digits) && (plain(fraction) || !text.contains('.')) && fraction.len() <= MAX_SCALE as usize;
        valid.then(|| format!("{whole}{fraction}").parse().ok()).flatten().map(|units| Decimal { units, scale })
    }

    fn plus(self, other: Self) -> Option<Self> {
        let scale = self.scale.max(other.scale);
        let units = |decimal: Self| 10_i128.checked_pow(scale - decimal.scale)?.checked_mul(decimal.units);
        Some(Decimal { units: units(self)?.checked_add(units(other)?)?, scale })
    }
}

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (digits, scale) = (self.units.unsigned_abs().to_string(), self.scale as usize);
        let padded = format!("{digits:0>width$}", width = scale + 1);
        let (whole, fraction) = padded.split_at(padded.len() - scale);
        let (sign, point) = (if self.units < 0 { "-" } else { "" }, if scale == 0 { "" } else { "." });
        write!(f, "{sign}{whole}{point}{fraction}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_outside_of_texts() {
        let json = r#"{"1.5": [1, -2.50, "3.5\"4.5", 1e3, 12345678901234567890, true], "a": 0.10}"#;
        let found: Vec<_> = decimals(json).map(|(_, token)| token).collect();
        assert_eq!(found, ["-2.50", "1e3", "12345678901234567890", "0.10"]);
    }

    #[test]
    fn what_came_in_goes_out_with_its_digits_and_what_was_rounded_does_not() {
        let mut decimals = Decimals::default();
        decimals.learn("[10.10, 10.1, 51.50735200000001, 1.0E2, 12345678901234567.10, 12345678901234567890]");
        decimals.learn("[0.12345678901234567001, 0.12345678901234567002, -0.0, 1e999]");
        for (computed, restored) in [
            (r#"{"a":10.1,"b":[51.50735200000001,100.0]}"#, Some(r#"{"a":10.10,"b":[51.50735200000001,1.0E2]}"#)),
            (r#"[1,0.5,"10.1",true]"#, Some(r#"[1,0.5,"10.1",true]"#)),
            ("123456.789012345", Some("123456.789012345")),
            ("12345678901234568.0", Some("12345678901234567.10")),
            ("[12345678901234567890]", Some("[12345678901234567890]")),
            (r#""EUR 12345678901234568.0.""#, None),
            ("0.12345678901234567", None),
            ("0.30000000000000004", None),
        ] {
            assert_eq!(decimals.restore(computed.into()).ok().as_deref(), restored, "{computed}");
        }
    }

    #[test]
    fn sums_are_exact() {
        let no_names = || Kwargs::from_iter(std::iter::empty::<(&str, Value)>());
        let total = |json: &str| {
            let values: Value = serde_json::from_str(json).expect("JSON");
            sum(&values, None, no_names()).map(|sum| serde_json::to_string(&sum).expect("JSON")).ok()
        };
        for (values, expected) in [
            ("[]", Some("0")),
            ("[1, 2, -5]", Some("-2")),
            ("[0.1, 0.2]", Some("0.3")),
            ("[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1]", Some("5.6")),
            ("[1000000.1, -1000000]", Some("0.1")),
            (r#"["10.00", "0.5"]"#, Some(r#""10.50""#)),
            (r#"["-0.05"]"#, Some(r#""-0.05""#)),
            (r#"["12345678901234567.10", 1]"#, Some(r#""12345678901234568.10""#)),
            ("[1000000000000000, 0.1]", None),
            (r#"["1,000.00"]"#, None),
            (r#"["1."]"#, None),
            ("[null]", None),
            ("[[1]]", None),
        ] {
            assert_eq!(total(values).as_deref(), expected, "{values}");
        }
    }
}
