//! What stands where something was taken out: `[card-1]`, `[iban-2]`, `[redacted-3]`.
//!
//! Within one payload the same secret has the same placeholder, however it is encoded where it stands, so that one can
//! see that the token of the second request is the one that the first answer handed out. The number is a counter: from
//! the placeholder nothing follows about the secret, and numbers of two payloads have nothing to do with each other. It
//! needs no escaping in JSON, forms or XML.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use memchr::{memchr, memchr_iter};

use super::decoded::plain;
use super::detect::{self, Kind};

/// The most secrets of one payload that are told apart; further ones share the number 0.
const MAX_NUMBERS: u32 = 100_000;

/// Longer than any placeholder.
const MAX_PLACEHOLDER_BYTES: usize = 24;

/// The placeholders of one payload.
#[derive(Clone, Default)]
pub struct Placeholders {
    /// By a hash of the secret, keyed anew for each payload: bodies can be secrets as a whole, and are not held here.
    known: HashMap<(u64, u64), (Kind, u32)>,
    keys: (RandomState, RandomState),
    last: u32,
}

/// A placeholder in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder {
    /// Where it stands.
    pub range: Range<usize>,
    /// Its number.
    pub number: u32,
}

/// All placeholders in a text.
pub fn placeholders(text: &str) -> impl Iterator<Item = Placeholder> {
    memchr_iter(b'[', text.as_bytes()).filter_map(|start| {
        let end =
            start + memchr(b']', text.as_bytes().get(start..start + MAX_PLACEHOLDER_BYTES.min(text.len() - start))?)?;
        let range = start..end + 1;
        let inside = text.get(range.clone()).filter(|it| is_placeholder(it))?;
        let number = inside.trim_end_matches(']').rsplit('-').next()?.parse().ok()?;
        Some(Placeholder { range, number })
    })
}

impl Placeholders {
    /// Of a payload in whose texts placeholders up to the number `last` stand already.
    pub fn after(last: u32) -> Self {
        Placeholders { last, ..Placeholders::default() }
    }

    /// For a value as it stands in a text, in whatever encoding. A value that is a placeholder already stays one.
    pub(super) fn of(&mut self, value: &str) -> String {
        let plain = secret_of(value);
        if is_placeholder(&plain) {
            return plain;
        }
        let (kind, secret) = detect::classify(&plain);
        let hashes = (self.keys.0.hash_one(&*secret), self.keys.1.hash_one(&*secret));
        let (kind, number) = *self.known.entry(hashes).or_insert_with(|| {
            let number = if self.last < MAX_NUMBERS { self.last + 1 } else { 0 };
            self.last = self.last.max(number);
            (kind, number)
        });
        format!("[{}-{number}]", kind.as_str())
    }
}

/// Whether the text is a placeholder and nothing else.
pub(super) fn is_placeholder(text: &str) -> bool {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).and_then(|it| it.split_once('-'));
    let digits = |number: &str| (1..=6).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    inside.is_some_and(|(kind, number)| Kind::ALL.iter().any(|it| it.as_str() == kind) && digits(number))
}

/// What the secret is in a value as it stands in a text, in whatever encoding.
pub(super) fn secret_of(value: &str) -> String {
    without_scheme(plain(value).trim()).to_owned()
}

/// `Bearer abc` is the secret `abc`.
fn without_scheme(value: &str) -> &str {
    let (scheme, rest) = value.split_once(' ').unwrap_or(("", value));
    let is_scheme = ["bearer", "basic", "token"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    if is_scheme { rest.trim_start() } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_secret_has_the_same_placeholder_in_each_encoding() {
        let mut placeholders = Placeholders::default();
        for same in ["p/q é", "p%2Fq%20%C3%A9", r"p\/q \u00e9", "Bearer p/q é", r"p\\/q \\u00e9"] {
            assert_eq!(placeholders.of(same), "[redacted-1]", "{same}");
        }
        for same in ["4111 1111 1111 1111", "4111111111111111", "4111-1111-1111-1111"] {
            assert_eq!(placeholders.of(same), "[card-2]", "{same}");
        }
        for same in ["DE89 3704 0044 0532 0130 00", "de89370400440532013000"] {
            assert_eq!(placeholders.of(same), "[iban-3]", "{same}");
        }
        assert_eq!(placeholders.of("other"), "[redacted-4]");
        assert_eq!(placeholders.of("Bearer [redacted-1]"), "[redacted-1]");
        assert_eq!(placeholders.of("[nothing-1]"), "[redacted-5]");
        assert_eq!(Placeholders::after(7).of("[redacted-3]"), "[redacted-3]");
        assert_eq!(Placeholders::after(7).of("p"), "[redacted-8]");
    }

    #[test]
    fn placeholders_are_found_in_a_text() {
        let text = "[[card-1]/é[redacted-20]] [iban-x] [jwt-1234567] [email-3";
        let found: Vec<_> = placeholders(text).map(|it| (&text[it.range], it.number)).collect();
        assert_eq!(found, [("[card-1]", 1), ("[redacted-20]", 20)]);
    }
}
