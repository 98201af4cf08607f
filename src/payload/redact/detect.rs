//! The net under the names and paths: finds what looks like a secret, wherever it stands.
//!
//! One pass over the text, word by word. A word is a run of ASCII letters and digits; a card number, an IBAN, a token
//! each begin at the start of one, a card number also after the letters of one. What is found passes a checksum or has
//! an unmistakable form, so that amounts, identifiers and times stay readable.

mod card;
mod iban;
pub(super) mod pem;
mod token;

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr_iter;
use serde::{Deserialize, Serialize};

pub(super) use self::pem::goes_on as private_key_goes_on;
use self::token::Scheme;
use super::budget::{Budget, Stop};

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detector {
    /// Card numbers: 13 to 19 digits with the beginning of an issuer and the right check digit.
    Card,
    /// IBANs: the country's length and the right check digits.
    Iban,
    /// JSON web tokens.
    Jwt,
    /// What follows `Bearer`.
    Bearer,
    /// User and password after `Basic`.
    Basic,
    /// Private keys in PEM.
    Pem,
    /// E-mail addresses.
    Email,
}

impl Detector {
    /// Those that are on where the configuration says nothing.
    pub const DEFAULT: [Detector; 6] =
        [Detector::Card, Detector::Iban, Detector::Jwt, Detector::Bearer, Detector::Basic, Detector::Pem];
}

/// What a placeholder says of what it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Redacted,
    Card,
    Iban,
    Jwt,
    Email,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Redacted, Kind::Card, Kind::Iban, Kind::Jwt, Kind::Email];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Redacted => "redacted",
            Kind::Card => "card",
            Kind::Iban => "iban",
            Kind::Jwt => "jwt",
            Kind::Email => "email",
        }
    }
}

/// The detectors that are on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Detectors {
    card: bool,
    iban: bool,
    jwt: bool,
    bearer: bool,
    basic: bool,
    pem: bool,
    email: bool,
}

impl Detectors {
    pub fn new(detectors: &[Detector]) -> Self {
        let on = |detector| detectors.contains(&detector);
        Detectors {
            card: on(Detector::Card),
            iban: on(Detector::Iban),
            jwt: on(Detector::Jwt),
            bearer: on(Detector::Bearer),
            basic: on(Detector::Basic),
            pem: on(Detector::Pem),
            email: on(Detector::Email),
        }
    }

    /// All that is found, in order and apart.
    pub fn find(&self, text: &str, budget: &mut Budget) -> Result<Vec<Range<usize>>, Stop> {
        let bytes = text.as_bytes();
        let (mut found, mut at, mut spent, mut searched) = (Vec::new(), 0, 0, 0);
        while at < bytes.len() {
            if !bytes[at].is_ascii_alphanumeric() {
                at += 1;
                continue;
            }
            if at - spent > 4096 {
                budget.spend(at - spent)?;
                spent = at;
            }
            match self.word(text, at, &mut searched, budget)? {
                (Some(range), _) => {
                    at = range.end;
                    found.push(range);
                }
                (None, next) => at = next,
            }
        }
        budget.spend(at - spent)?;
        if self.email {
            found = merged(found, emails(bytes));
        }
        Ok(found)
    }

    /// What begins with the word at `at`, and where to go on when nothing does.
    fn word(
        &self,
        text: &str,
        at: usize,
        searched: &mut usize,
        budget: &mut Budget,
    ) -> Result<(Option<Range<usize>>, usize), Stop> {
        let bytes = text.as_bytes();
        let letters = run(bytes, at, |byte| byte.is_ascii_alphabetic());
        if letters == at {
            let digits = run(bytes, at, |byte| byte.is_ascii_digit());
            let card = if self.card { card::at(bytes, at) } else { None };
            // `?31DE89…`: a subfield of MT940.
            let is_subfield = self.iban && digits - at == 2 && bytes.get(digits).is_some_and(u8::is_ascii_uppercase);
            let found = card.or_else(|| if is_subfield { iban::at(bytes, digits) } else { None });
            return Ok((found, word_end(bytes, digits)));
        }
        let found = match letters - at {
            2 | 6 if self.iban => iban::at(bytes, at),
            _ => None,
        };
        let found = found.or_else(|| if self.jwt { token::jwt(bytes, at, searched) } else { None });
        let found = match Scheme::of(&bytes[at..letters]) {
            Some(scheme) if found.is_none() && self.has(scheme) => {
                // What it is followed by may be long and no token, and the next scheme in the midst of it.
                budget.spend_searches(1)?;
                token::behind(scheme, text, letters)
            }
            _ => found,
        };
        let found = found.or_else(|| if self.pem { pem::at(bytes, at) } else { None });
        if found.is_some() {
            return Ok((found, letters));
        }
        if self.card && bytes.get(letters).is_some_and(u8::is_ascii_digit) {
            return Ok((card::at(bytes, letters), word_end(bytes, letters)));
        }
        Ok((None, word_end(bytes, letters)))
    }

    fn has(&self, scheme: Scheme) -> bool {
        match scheme {
            Scheme::Bearer => self.bearer,
            Scheme::Basic => self.basic,
        }
    }
}

/// A secret's kind and one form for all the ways in which it is written.
pub(super) fn classify(plain: &str) -> (Kind, Cow<'_, str>) {
    let bytes = plain.as_bytes();
    let letters_and_digits = || plain.chars().filter(char::is_ascii_alphanumeric).collect::<String>();
    if let Some(number) = card::number(plain) {
        return (Kind::Card, number.into());
    }
    if iban::at(bytes, 0) == Some(0..bytes.len()) {
        return (Kind::Iban, letters_and_digits().to_ascii_uppercase().into());
    }
    if token::jwt(bytes, 0, &mut 0) == Some(0..bytes.len()) {
        return (Kind::Jwt, plain.into());
    }
    if emails(bytes).first() == Some(&(0..bytes.len())) {
        return (Kind::Email, plain.into());
    }
    (Kind::Redacted, plain.into())
}

/// The longest local part and domain of RFC 5321, to bound the search.
const MAX_LOCAL_BYTES: usize = 64;
const MAX_DOMAIN_BYTES: usize = 255;

/// Addresses such as `first.last+tag@bank.example`.
fn emails(bytes: &[u8]) -> Vec<Range<usize>> {
    let is_local = |byte: u8| byte.is_ascii_alphanumeric() || b"._%+-'".contains(&byte);
    let is_domain = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    let mut found: Vec<Range<usize>> = Vec::new();
    for at in memchr_iter(b'@', bytes) {
        let floor = found.last().map_or(0, |last| last.end).max(at.saturating_sub(MAX_LOCAL_BYTES));
        let Some(local) = bytes.get(floor..at) else { continue };
        let start = at - local.iter().rev().take_while(|&&byte| is_local(byte)).count();
        let ceiling = bytes.len().min(at + 1 + MAX_DOMAIN_BYTES);
        let mut end = at + 1 + bytes[at + 1..ceiling].iter().take_while(|&&byte| is_domain(byte)).count();
        while end > at + 1 && b".-".contains(&bytes[end - 1]) {
            end -= 1;
        }
        let domain = &bytes[at + 1..end];
        let top = domain.iter().rposition(|&byte| byte == b'.').map(|dot| &domain[dot + 1..]);
        let has_top = top.is_some_and(|it| it.len() >= 2 && it.iter().all(u8::is_ascii_alphanumeric));
        if start < at && has_top {
            found.push(start..end);
        }
    }
    found
}

/// Both lists in order; what overlaps becomes one.
pub(super) fn merged(mut ranges: Vec<Range<usize>>, others: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.extend(others);
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// What stands between the groups of a number: spaces (in a form, `+`), also those that are narrow or do not break, tabs,
/// dashes, dots, slashes, underscores.
const SEPARATORS: &[&str] = &[
    " ", "-", "+", "\u{a0}", "\t", ".", "/", "_", "\u{2007}", "\u{2009}", "\u{202f}", "\u{2010}", "\u{2011}",
    "\u{2012}", "\u{2013}",
];

/// What has no width: where a line may break, joiners, the soft hyphen.
const WIDTHLESS: &[&str] = &["\u{200b}", "\u{200c}", "\u{200d}", "\u{2060}", "\u{feff}", "\u{ad}"];

/// Behind at most two of those at `at`.
fn widthless_end(bytes: &[u8], mut at: usize) -> usize {
    for _ in 0..2 {
        if bytes.get(at).is_none_or(u8::is_ascii) {
            return at;
        }
        let widthless = WIDTHLESS.iter().find(|it| bytes[at..].starts_with(it.as_bytes()));
        at += widthless.map_or(0, |it| it.len());
    }
    at
}

/// The separator at `at`, if there is one.
fn separator_at(bytes: &[u8], at: usize) -> Option<&'static str> {
    SEPARATORS.iter().find(|separator| bytes[at..].starts_with(separator.as_bytes())).copied()
}

/// Where the run of bytes that are `inside` ends, from `at` on.
fn run(bytes: &[u8], at: usize, inside: impl Fn(u8) -> bool) -> usize {
    bytes[at..].iter().position(|&byte| !inside(byte)).map_or(bytes.len(), |length| at + length)
}

fn word_end(bytes: &[u8], at: usize) -> usize {
    run(bytes, at, |byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn found(text: &str) -> Vec<&str> {
        let all = [&Detector::DEFAULT[..], &[Detector::Email]].concat();
        let mut budget = Budget::new(Duration::from_secs(60));
        let ranges = Detectors::new(&all).find(text, &mut budget).expect("in time");
        ranges.into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn each_kind_is_found_among_words() {
        let text = "pay 4111 1111 1111 1111 to DE89 3704 0044 0532 0130 00 as jo.e+x@bank.example. \
            PAN5555555555554444,IBANGB82WEST12345698765432;ref 0004111111111111111, \
            ;4111111111111111=29121010000000000? 4111  1111  1111  1111 {4111111111111111.0} eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln \
            Bearer abc-def_123 Basic dXNlcjpwYXNz :25:DE89370400440532013000EUR ?31GB82WEST12345698765432?32 \
            DE89 3704 0044 0532 0130 00EUR";
        assert_eq!(
            found(text),
            [
                "4111 1111 1111 1111",
                "DE89 3704 0044 0532 0130 00",
                "jo.e+x@bank.example",
                "5555555555554444",
                "GB82WEST12345698765432",
                "4111111111111111",
                "4111111111111111=29121010000000000",
                "4111  1111  1111  1111",
                "4111111111111111",
                "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
                "abc-def_123",
                "dXNlcjpwYXNz",
                "DE89370400440532013000",
                "GB82WEST12345698765432",
                "DE89 3704 0044 0532 0130 00",
            ]
        );
    }

    #[test]
    fn what_only_looks_alike_stays() {
        for plain in [
            "2026-11-25T18:50:56.123456789Z",
            "1755666000250 1755666000250123 12345678901234567890.5",
            "0198c5d3-0c00-7000-8000-000000000000",
            "41111111-1111-1111-1111-111111111111",
            "4111111111111112 04111111111111111 4111111111111111.25 0.4111111111111111",
            "5d41402abc4b2a76b9719d911017c592",
            "DE88370400440532013000 XX89370400440532013000 DE8937040044053201300",
            "Bearer token is missing; Bearer realm=\"bank\"; basic authentication; Basic plan",
            "user@host a@b @x.yz",
            "000000001250 00000000000000004711 5555555555554444.00 EUR",
            "eyJhbGciOi",
            "page=2&limit=100",
        ] {
            assert_eq!(found(plain), [""; 0], "{plain}");
        }
    }

    #[test]
    fn a_secret_has_one_form() {
        assert_eq!(classify("4111-1111-1111-1111"), (Kind::Card, "4111111111111111".into()));
        assert_eq!(classify("4111111111111111=2912101000"), (Kind::Card, "4111111111111111".into()));
        assert_eq!(classify("de89 3704 0044 0532 0130 00"), (Kind::Iban, "DE89370400440532013000".into()));
        assert_eq!(classify("a@b.de"), (Kind::Email, "a@b.de".into()));
        assert_eq!(classify("a b"), (Kind::Redacted, "a b".into()));
    }
}
