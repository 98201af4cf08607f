//! Secrets that are known, in each form in which they may turn up.
//!
//! One search finds the beginnings of all of them in one pass; what follows a beginning is compared. Of few it is a
//! vectorised one, of many an automaton.

use std::ops::Range;

use aho_corasick::packed::{self, Searcher};
use aho_corasick::{AhoCorasick, AhoCorasickKind, Span};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use memchr::memmem;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::budget::{Budget, Stop};
use super::placeholder::is_placeholder;

/// The most secrets that a transcript may name; the recorder keeps no more.
pub(super) const MAX_SECRETS: usize = 256;

/// The shortest line of a secret of several that is looked for by itself, and the most such lines.
const MIN_LINE_BYTES: usize = 8;
const MAX_SECRET_LINES: usize = 1_000;

/// How much of a secret the automaton knows: its size does not grow with long tokens.
const BEGINNING_BYTES: usize = 32;

/// The shortest start of a secret that tells something about it.
const MIN_CUT_BYTES: usize = 4;

/// The shortest secret that is looked for in base64, where it stands alone, and in hexadecimal: of a shorter one it is as
/// short as a word or an amount.
const MIN_PACKED_BYTES: usize = 5;

/// What RFC 3986 lets stand.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One to look for.
pub(super) struct Secret {
    pub text: String,
    /// Whether it is one only between characters that are neither letters nor digits, and not as a key of JSON.
    pub stands_alone: bool,
    /// Whether it is looked for in base64, too.
    pub in_base64: bool,
}

/// Several of them.
#[derive(Default)]
pub(super) struct Secrets {
    plain: Vec<Secret>,
    needles: Vec<Needle>,
    beginnings: Option<Beginnings>,
}

/// Finds where needles may begin.
enum Beginnings {
    Few(Searcher),
    Many(AhoCorasick),
}

/// One form of a secret.
struct Needle {
    text: String,
    /// Its place in `plain`.
    secret: usize,
}

impl Needle {
    fn beginning(&self) -> &[u8] {
        &self.text.as_bytes()[..self.text.len().min(BEGINNING_BYTES)]
    }
}

impl Secrets {
    /// Those that a run named, and others.
    pub fn new(secrets: &[String], others: Vec<Secret>) -> Result<Self, Stop> {
        if secrets.len() > MAX_SECRETS {
            return Err(Stop::TooManySecrets);
        }
        let named = |text: &str| Secret { text: text.to_owned(), stands_alone: false, in_base64: true };
        // A run that is replayed names what stands in its input, which may be what was taken out of it.
        let is_one = |secret: &&String| !secret.is_empty() && !is_placeholder(secret);
        let whole = secrets.iter().filter(is_one).map(|secret| named(secret));
        // Whoever logs a key of several lines logs them one by one.
        let lines = secrets.iter().filter(|secret| secret.contains('\n')).flat_map(|secret| secret.lines());
        let lines = lines.map(str::trim).filter(|line| line.len() >= MIN_LINE_BYTES).take(MAX_SECRET_LINES).map(named);
        Secrets::of(whole.chain(lines).chain(others).collect())
    }

    /// Any.
    pub fn of(plain: Vec<Secret>) -> Result<Self, Stop> {
        let forms = plain
            .iter()
            .enumerate()
            .flat_map(|(secret, it)| forms(it).into_iter().map(move |text| Needle { text, secret }));
        let mut needles: Vec<Needle> = forms.collect();
        needles.sort_by(|a, b| a.text.cmp(&b.text).then(a.secret.cmp(&b.secret)));
        needles.dedup_by(|a, b| a.text == b.text);
        let beginnings = if needles.is_empty() { None } else { Some(Beginnings::of(&needles)?) };
        Ok(Secrets { plain, needles, beginnings })
    }

    /// Whether there is none to look for.
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }

    /// Where secrets stand, in order and apart, and which: of what overlaps, the longest of the first.
    pub fn find(&self, text: &str, budget: &mut Budget) -> Result<Vec<(Range<usize>, &str)>, Stop> {
        let found = self.find_each(text, budget)?;
        let mut apart: Vec<(Range<usize>, &str)> = Vec::with_capacity(found.len());
        for (range, secret) in found {
            match apart.last_mut() {
                Some((last, _)) if range.start < last.end => last.end = last.end.max(range.end),
                _ => apart.push((range, secret)),
            }
        }
        Ok(apart)
    }

    /// Where each secret stands, and which: in order, of those that begin at one place the longest first.
    pub fn find_each(&self, text: &str, budget: &mut Budget) -> Result<Vec<(Range<usize>, &str)>, Stop> {
        let Some(beginnings) = &self.beginnings else { return Ok(Vec::new()) };
        let mut found: Vec<(Range<usize>, &str)> = Vec::new();
        budget.spend_text(text.len())?;
        let mut look = |start: usize, needle: &Needle| {
            let secret = &self.plain[needle.secret];
            let here = &text.as_bytes()[start..];
            if !here.starts_with(needle.beginning()) {
                return Ok(());
            }
            budget.spend(needle.text.len())?;
            let range = start..start + needle.text.len();
            let is_there = here.starts_with(needle.text.as_bytes());
            if is_there && (!secret.stands_alone || stands_alone(text, &range)) {
                found.push((range, &*secret.text));
            }
            Ok::<_, Stop>(())
        };
        match beginnings {
            Beginnings::Many(beginnings) => {
                for beginning in beginnings.find_overlapping_iter(text) {
                    look(beginning.start(), &self.needles[beginning.pattern().as_usize()])?;
                }
            }
            Beginnings::Few(beginnings) => {
                let mut rest = Span::from(0..text.len());
                while let Some(beginning) = beginnings.find_in(text, rest) {
                    // Of those that begin alike, it tells one.
                    self.needles.iter().try_for_each(|needle| look(beginning.start(), needle))?;
                    rest.start = beginning.start() + 1;
                }
            }
        }
        found.sort_by(|(a, _), (b, _)| a.start.cmp(&b.start).then(b.end.cmp(&a.end)));
        Ok(found)
    }

    /// A text without an end that may be the start of a secret: what a cut leaves of one.
    pub fn without_cut<'t>(&self, text: &'t str, budget: &mut Budget) -> Result<&'t str, Stop> {
        let mut longest = 0;
        for needle in &self.needles {
            let needle = needle.text.as_bytes();
            let Some(start) = needle.get(..MIN_CUT_BYTES) else { continue };
            let end = &text.as_bytes()[text.len().saturating_sub(needle.len() - 1)..];
            budget.spend(end.len())?;
            for at in memmem::find_iter(end, start) {
                budget.spend(end.len() - at)?;
                if needle.starts_with(&end[at..]) {
                    longest = longest.max(end.len() - at);
                    break;
                }
            }
        }
        Ok(&text[..text.floor_char_boundary(text.len() - longest)])
    }
}

impl Beginnings {
    fn of(needles: &[Needle]) -> Result<Self, Stop> {
        let beginnings = || needles.iter().map(Needle::beginning);
        // It is there for so many, and on so many processors, as it pays for.
        if let Some(searcher) = packed::Config::new().builder().extend(beginnings()).build() {
            return Ok(Beginnings::Few(searcher));
        }
        let many = AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(beginnings());
        many.map(Beginnings::Many).map_err(|_| Stop::TooManySecrets)
    }
}

/// A secret as it is, percent-encoded in the ways in use (a space as `%20` or `+`, `~` as it is or not), inside JSON
/// strings down to the second level, in JSON of ASCII alone, and in base64 and hexadecimal, where it has a length at which
/// that is no word by chance.
fn forms(secret: &Secret) -> Vec<String> {
    let Secret { text: secret, in_base64, .. } = secret;
    let upper = utf8_percent_encode(secret, ENCODED).to_string();
    // A `%` of the secret's own is `%25` in it.
    let plus = upper.replace("%20", "+");
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let lower = [&upper, &plus, &form].map(|encoded| percent_lowercase(encoded));
    let escaped = json_escaped(secret);
    let (slashes, ascii) = (escaped.replace('/', "\\/"), ascii_escaped(&escaped));
    let mut forms = vec![secret.clone(), upper, plus, form, json_escaped(&escaped), escaped, slashes, ascii];
    forms.extend(lower);
    if *in_base64 && secret.len() >= MIN_PACKED_BYTES {
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        forms.extend([STANDARD_NO_PAD.encode(secret), URL_SAFE_NO_PAD.encode(secret), hex.to_ascii_uppercase(), hex]);
    }
    forms
}

/// Whether nothing at a range's ends goes on, and it is no key of JSON. A number goes on behind a point or a dash: a PIN is
/// no part of the amount `4711.00` or `4711,00`, or of a date.
fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let (before, after) = (&text[..range.start], &text[range.end..]);
    let is_number = text[range.clone()].bytes().all(|byte| byte.is_ascii_digit());
    let goes_on = |beyond: &mut dyn Iterator<Item = char>| match beyond.next() {
        Some('.' | '-') => is_number && beyond.next().is_some_and(|it| it.is_ascii_digit()),
        next => next.is_some_and(char::is_alphanumeric),
    };
    let is_amount = is_number && ends_with_cents(after.as_bytes());
    let is_key = || after.strip_prefix('"').is_some_and(|rest| rest.trim_ascii_start().starts_with(':'));
    !goes_on(&mut before.chars().rev()) && !goes_on(&mut after.chars()) && !is_amount && !is_key()
}

/// A decimal comma and two digits; behind those no comma or bracket, for then it may be a list of numbers.
fn ends_with_cents(after: &[u8]) -> bool {
    let [b',', tens, ones, rest @ ..] = after else { return false };
    let goes_on = rest.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || b",]}".contains(byte));
    tens.is_ascii_digit() && ones.is_ascii_digit() && !goes_on
}

/// As many JSON libraries write it by default: `\u00e4` for `ä`.
fn ascii_escaped(escaped: &str) -> String {
    let mut units = [0; 2];
    let mut ascii = String::with_capacity(escaped.len());
    for letter in escaped.chars() {
        if letter.is_ascii() {
            ascii.push(letter);
        } else {
            ascii.extend(letter.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    ascii
}

fn json_escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn percent_lowercase(encoded: &str) -> String {
    let mut after_percent = 0;
    let lower = |it: char| {
        after_percent = if it == '%' { 2 } else { i32::max(after_percent - 1, -1) };
        if it != '%' && after_percent >= 0 { it.to_ascii_lowercase() } else { it }
    };
    encoded.chars().map(lower).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn secrets(texts: &[&str]) -> Secrets {
        Secrets::new(&texts.iter().map(ToString::to_string).collect::<Vec<_>>(), Vec::new()).expect("few")
    }

    fn found<'s>(secrets: &'s Secrets, text: &str) -> Vec<(Range<usize>, &'s str)> {
        secrets.find(text, &mut Budget::new(Duration::from_secs(60))).expect("in time")
    }

    #[test]
    fn a_named_secret_is_found_in_each_of_its_forms() {
        let secret = "p/q\" é+1";
        let secrets = secrets(&[secret, ""]);
        for form in forms(&Secret { text: secret.to_owned(), stands_alone: false, in_base64: true }) {
            assert_eq!(found(&secrets, &format!("<{form}>")), [(1..form.len() + 1, secret)], "{form}");
        }
        assert_eq!(found(&secrets, "https://b/p%2fq%22%20%c3%a9%2b1/x").len(), 1);
    }

    #[test]
    fn one_that_stands_alone_is_no_part_of_a_word_and_no_key() {
        let secret = Secret { text: "1234".to_owned(), stands_alone: true, in_base64: true };
        let secrets = Secrets::of(vec![secret]).expect("few");
        for (text, expected) in [
            ("pin=1234&n=12345", 1),
            (r#"{"1234": "1234", "n": 1234}"#, 2),
            ("é1234", 0),
            ("a/1234", 1),
            (r#"["1234.00", 1234.5, "2026-1234", 0.1234]"#, 0),
            ("[1,1234,2], is 1234. 1", 2),
        ] {
            assert_eq!(found(&secrets, text).len(), expected, "{text}");
        }
    }

    #[test]
    fn a_named_secret_is_found_as_python_quotes_it_and_in_hexadecimal() {
        let secret = "p/q~ é%20";
        let secrets = secrets(&[secret, "abcd"]);
        for form in [
            "p%2Fq~+%C3%A9%2520",
            "p%2fq~+%c3%a9%2520",
            "p%2Fq%7E+%C3%A9%2520",
            "p%2fq%7e+%c3%a9%2520",
            "702f717e20c3a9253230",
            "702F717E20C3A9253230",
        ] {
            assert_eq!(found(&secrets, &format!("q={form}&n=1")), [(2..form.len() + 2, secret)], "{form}");
        }
        assert!(found(&secrets, "too short for it: 61626364").is_empty());
    }

    #[test]
    fn the_lines_of_a_secret_are_found_one_by_one() {
        let secrets = secrets(&["first line\r\nsecond line\nshort\n"]);
        assert_eq!(found(&secrets, "a second line"), [(2..13, "second line")]);
        assert_eq!(found(&secrets, "first line, short"), [(0..10, "first line")]);
    }

    #[test]
    fn long_and_overlapping_secrets_are_told_apart() {
        let (one, two) = (format!("{}1", "a".repeat(100)), format!("{}2", "a".repeat(100)));
        let secrets = secrets(&[&one, &two, "a1", "xyz", "yzz"]);
        assert_eq!(found(&secrets, &two), [(0..101, two.as_str())]);
        assert_eq!(found(&secrets, &one), [(0..101, one.as_str())]);
        assert_eq!(found(&secrets, "xyzz a1"), [(0..4, "xyz"), (5..7, "a1")]);
    }

    #[test]
    fn what_a_cut_leaves_of_a_secret_is_left_out() {
        let secrets = secrets(&["CANARY-named", "abababc"]);
        for (text, left) in [
            ("bearer CANARY-na", "bearer "),
            ("CANARY and more", "CANARY and more"),
            ("CANARY-named", "CANARY-named"),
            ("CAN", "CAN"),
            ("x abababab", "x ab"),
            ("CANARY-CANA", "CANARY-"),
        ] {
            let mut budget = Budget::new(Duration::from_secs(60));
            assert_eq!(secrets.without_cut(text, &mut budget), Ok(left));
        }
    }

    #[test]
    fn more_secrets_than_can_be_looked_for_are_refused() {
        assert_eq!(Secrets::new(&vec!["s".to_owned(); MAX_SECRETS + 1], Vec::new()).err(), Some(Stop::TooManySecrets));
    }
}
