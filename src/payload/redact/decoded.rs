//! A text without its escapes, and the way back from places in it to places in the text.
//!
//! A secret can stand in a text as `a%40b`, `a\u0040b` or `a&#64;b`, in a JSON string in a JSON string, or in the value
//! of a parameter of a URL in an XML element. Whoever looks for it looks at the [`View`] too. It is made without parsing,
//! for what is cut or malformed holds the same secrets.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr3;

/// Escapes within escapes are followed so far.
pub(super) const MAX_ROUNDS: usize = 3;

/// The longest entity that is looked at: `&#x0010ffff;`.
const MAX_ENTITY_BYTES: usize = 12;

/// Which escapes to take away.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Escapes {
    /// JSON's backslashes, and those of programs: `\x40`, `\u{40}`.
    Json,
    /// `%40` and `&#64;`, and of JSON's the signs that some write as `\\u003d`; what they stand for keeps its own structure.
    Markup,
    /// All of them.
    All,
}

/// A text with one level of escapes taken away.
pub(super) struct View {
    pub text: String,
    /// After each escape: the place in the view, and the place in the source.
    places: Vec<(usize, usize)>,
}

impl View {
    /// None when there is no escape in `source`.
    pub fn of(source: &str, escapes: Escapes) -> Option<Self> {
        let bytes = source.as_bytes();
        let (mut text, mut places, mut copied, mut at) = (String::new(), Vec::new(), 0, 0);
        while let Some(found) = memchr3(b'\\', b'%', b'&', &bytes[at..]) {
            at += found;
            let Some((character, length)) = escape(source, at, escapes) else {
                at += 1;
                continue;
            };
            text.push_str(&source[copied..at]);
            text.push(character);
            at += length;
            copied = at;
            places.push((text.len(), at));
        }
        if places.is_empty() {
            return None;
        }
        text.push_str(&source[copied..]);
        Some(View { text, places })
    }

    /// Where a range of the view stands in the source.
    pub fn source(&self, range: Range<usize>) -> Range<usize> {
        self.place(range.start)..self.place(range.end)
    }

    fn place(&self, at: usize) -> usize {
        let after = self.places.partition_point(|(here, _)| *here <= at);
        let (here, there) = after.checked_sub(1).map_or((0, 0), |index| self.places[index]);
        there + (at - here)
    }
}

/// A value without any escapes.
pub(super) fn plain(value: &str) -> Cow<'_, str> {
    let mut plain = Cow::Borrowed(value);
    for _ in 0..MAX_ROUNDS {
        match View::of(&plain, Escapes::All) {
            Some(view) => plain = Cow::Owned(view.text),
            None => break,
        }
    }
    plain
}

/// The character that the escape at `at` stands for, and the escape's length.
fn escape(source: &str, at: usize, escapes: Escapes) -> Option<(char, usize)> {
    let bytes = source.as_bytes();
    match (bytes[at], escapes) {
        (b'\\', Escapes::Json | Escapes::All) => backslash(source, at),
        (b'\\', Escapes::Markup) => sign(source, at),
        (b'%', Escapes::Markup | Escapes::All) => of_bytes(bytes, at, b"%"),
        (b'&', Escapes::Markup | Escapes::All) => entity(source, at),
        _ => None,
    }
}

fn backslash(source: &str, at: usize) -> Option<(char, usize)> {
    let character = match *source.as_bytes().get(at + 1)? {
        byte @ (b'"' | b'\\' | b'/' | b'\'') => char::from(byte),
        b'n' => '\n',
        b't' => '\t',
        b'r' => '\r',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'x' => return of_bytes(source.as_bytes(), at, b"\\x"),
        b'u' if source[at..].starts_with("\\u{") => return braced(source, at),
        b'u' => return unicode(source, at),
        _ => return None,
    };
    Some((character, 2))
}

/// What programs that write JSON for HTML escape without need, in however many strings: `\u003d` is `=`, `\u0022` a quote.
fn sign(source: &str, at: usize) -> Option<(char, usize)> {
    const MAX_BACKSLASHES: usize = 8;
    let run = source.as_bytes()[at..].iter().take(MAX_BACKSLASHES + 1).take_while(|&&byte| byte == b'\\').count();
    let digits = source.get(at + run..at + run + 5)?.strip_prefix("u00").filter(|_| run <= MAX_BACKSLASHES)?;
    let sign = hexadecimal(digits).filter(|sign| "\"&':;<=>".contains(*sign))?;
    Some((sign, run + 5))
}

/// `\u{41}`.
fn braced(source: &str, at: usize) -> Option<(char, usize)> {
    const MAX_DIGITS: usize = 6;
    let digits = &source[at + 3..];
    let length = digits.bytes().take(MAX_DIGITS + 1).position(|byte| byte == b'}')?;
    hexadecimal(&digits[..length]).map(|character| (character, length + 4))
}

/// The character that has this number.
fn hexadecimal(digits: &str) -> Option<char> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16).ok().filter(|_| is_number).and_then(char::from_u32)
}

/// `\u0041`, or two of them that are one character.
fn unicode(source: &str, at: usize) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let escape = source.get(at..at + 6)?;
        let digits = escape.strip_prefix("\\u").filter(|it| it.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        u16::from_str_radix(digits, 16).ok()
    };
    let units = [unit(at)?, unit(at + 6).unwrap_or(0)];
    let decoded = char::decode_utf16(units).next()?;
    let character = decoded.unwrap_or(char::REPLACEMENT_CHARACTER);
    Some((character, 6 * character.len_utf16()))
}

/// `%40` or `\x40`, or as many of them as are one character; of Latin-1, where they are none of UTF-8.
fn of_bytes(bytes: &[u8], at: usize, sign: &[u8]) -> Option<(char, usize)> {
    let each = sign.len() + 2;
    let byte = |index: usize| {
        let escape = bytes.get(at + each * index..at + each * (index + 1))?;
        let digit = |it: u8| char::from(it).to_digit(16).and_then(|it| u8::try_from(it).ok());
        match escape.strip_prefix(sign)? {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        }
    };
    let mut buffer = [byte(0)?, 0, 0, 0];
    let length = match buffer[0] {
        ..0x80 => 1,
        0xc2..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0..0xf5 => 4,
        byte => return Some((char::from(byte), each)),
    };
    for (index, to) in buffer.iter_mut().enumerate().take(length).skip(1) {
        *to = byte(index).unwrap_or(0);
    }
    let character = std::str::from_utf8(&buffer[..length]).ok().and_then(|it| it.chars().next());
    Some(character.map_or((char::from(buffer[0]), each), |it| (it, each * length)))
}

/// `&amp;`, `&#64;`, `&#x40;`.
fn entity(source: &str, at: usize) -> Option<(char, usize)> {
    let bytes = &source.as_bytes()[at..];
    let end = bytes.iter().take(MAX_ENTITY_BYTES).position(|&byte| byte == b';')?;
    let name = source.get(at + 1..at + end)?;
    let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
    let character = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => '\u{a0}',
        _ => match name.strip_prefix('#')? {
            hex if hex.starts_with(['x', 'X']) => number(&hex[1..], 16)?,
            digits => number(digits, 10)?,
        },
    };
    Some((character, end + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_of_each_kind_are_taken_away_and_places_lead_back() {
        for (source, expected) in [
            (r"a\u0040b", "a@b"),
            (r"\ud83d\ude00!", "😀!"),
            (r"\ud83d!", "\u{fffd}!"),
            ("a%40b%c3%a9%2", "a@bé%2"),
            ("%c3x%ff%e9t", "Ãxÿét"),
            (r"\x61\u{e9}\xzz\u{}\u{110000}", r"aé\xzz\u{}\u{110000}"),
            (r"\xc3\xa9\xe9\xc3%a9", "ééÃ©"),
            ("a&#64;b&#x40;&amp;&nbsp;&unknown;", "a@b@&\u{a0}&unknown;"),
            (r#"\"\\\/\n\x"#, "\"\\/\n\\x"),
        ] {
            assert_eq!(View::of(source, Escapes::All).expect("escapes").text, expected);
        }
        assert!(View::of("100% \\x & more", Escapes::All).is_none());
        for (source, expected) in
            [(r"a\u003db\\u0022c\u0041\n", r#"a=b"c\u0041\n"#), (r"\\\\\\\\\\u003c\u003", r"\\<\u003")]
        {
            assert_eq!(View::of(source, Escapes::Markup).expect("escapes").text, expected);
        }
        let source = "x=%61%62&y";
        let view = View::of(source, Escapes::All).expect("escapes");
        assert_eq!((view.text.as_str(), view.source(2..4), view.source(4..5)), ("x=ab&y", 2..8, 8..9));
        assert_eq!(plain("%255Cu0041"), "A");
    }

    proptest! {
        #[test]
        fn places_of_any_view_are_places_of_characters(source in r#"([a-z é%&;#\\"]|%C3%A9|\\u00e9|\\ud83d|&#64;){0,40}"#) {
            if let Some(view) = View::of(&source, Escapes::All) {
                for (at, character) in view.text.char_indices() {
                    let range = view.source(at..at + character.len_utf8());
                    prop_assert!(source.get(range.clone()).is_some_and(|it| !it.is_empty()), "{range:?}");
                }
                prop_assert_eq!(view.source(0..view.text.len()), 0..source.len());
            }
        }
    }
}
