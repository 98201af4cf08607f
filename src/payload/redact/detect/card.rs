//! Card numbers: 13 to 19 digits that begin as an issuer's do and end in the right check digit (ISO/IEC 7812, Luhn).
//!
//! In one run, or in groups of at least four (the last may be shorter) with the same separator, or two spaces, between
//! them; two groups with a dot between are a decimal number. A run within a longer one, a part of a decimal number or of a
//! UUID is no card number; after zeros that fill a field up, and before the `.0` of a number that a program took for a
//! decimal one, it is. What the magnetic stripe has after the number (track 2 of ISO/IEC 7813) goes with it. One in ten other
//! numbers of the same length and beginning has the right check digit by chance; it is taken out too.

use std::ops::{Range, RangeInclusive};

use super::{separator_at, widthless_end};

/// The most groups that are looked at: 4 4 4 4 3.
const MAX_GROUPS: usize = 5;

const MIN_DIGITS: usize = 13;
const MAX_DIGITS: usize = 19;

/// So many zeros before a number fill it up; a single one is a digit of an account's number.
const MIN_PADDING: usize = 2;

/// What follows the number on track 2: the month of expiry, the service code, and what the issuer likes, in 40 characters
/// altogether.
const TRACK_DIGITS: RangeInclusive<usize> = 7..=40;

/// The card number in the digits that begin at `start`, at the start of a word or after its letters, with the rest of its
/// track.
pub fn at(bytes: &[u8], start: usize) -> Option<Range<usize>> {
    if !bytes.get(start)?.is_ascii_digit() || is_fraction(bytes, start) {
        return None;
    }
    let zeros = bytes[start..].iter().take_while(|&&byte| byte == b'0').count();
    let number = start + if zeros >= MIN_PADDING { zeros } else { 0 };
    let end = number_end(bytes, start, number)?;
    Some(number..track_end(bytes, number, end))
}

/// The digits of the card number that a text is, with the rest of its track or without.
pub fn number(text: &str) -> Option<String> {
    let (number, track) = text.split_once('=').unwrap_or((text, ""));
    let is_card = at(number.as_bytes(), 0) == Some(0..number.len()) && track.bytes().all(|it| it.is_ascii_digit());
    is_card.then(|| number.chars().filter(char::is_ascii_digit).collect())
}

/// Where the number that begins at `from` ends; the digits before and in it begin at `start`.
fn number_end(bytes: &[u8], start: usize, from: usize) -> Option<usize> {
    let (mut number, mut end, mut separator, mut best) = ([0; MAX_DIGITS], from, None, None);
    let mut digits = 0;
    for group in 0..MAX_GROUPS {
        let from = end;
        while let Some(digit) = bytes.get(end).filter(|byte| byte.is_ascii_digit()) {
            *number.get_mut(digits)? = digit - b'0';
            (digits, end) = (digits + 1, end + 1);
        }
        let ends_here = if group == 0 { !is_decimal(bytes, end) } else { ends_group(bytes, end, separator) };
        let is_number = separator == Some(b".") && group == 1;
        if digits >= MIN_DIGITS && ends_here && !is_number && is_card(&number[..digits]) {
            best = Some(end);
        }
        let next = gap_at(bytes, end).filter(|next| separator.is_none_or(|before| before == *next));
        let is_whole_group = end - from >= 4 && !(separator.is_none() && is_chained(bytes, start, next));
        let Some(next) = next.filter(|next| is_whole_group && is_digit(bytes, end + next.len())) else { break };
        separator = Some(next);
        if digits_of_group(bytes, end + next.len()) + digits > MAX_DIGITS {
            break;
        }
        end += next.len();
    }
    best
}

/// What stands between two groups: a separator, or two spaces (in a form, `++`), with what has no width before and after it.
fn gap_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    if bytes.get(at).is_none_or(u8::is_ascii_alphanumeric) {
        return None;
    }
    let visible = widthless_end(bytes, at);
    let wide = ["  ", "++"].into_iter().find(|wide| bytes[visible..].starts_with(wide.as_bytes()));
    let separator = wide.or_else(|| separator_at(bytes, visible)).map_or(0, str::len);
    let end = widthless_end(bytes, visible + separator);
    (end > at).then_some(&bytes[at..end])
}

fn is_digit(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_some_and(u8::is_ascii_digit)
}

fn digits_of_group(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().take(MAX_DIGITS + 1).take_while(|byte| byte.is_ascii_digit()).count()
}

/// Whether groups between dashes would begin in the middle of a longer chain, as in a UUID: after hexadecimal digits.
fn is_chained(bytes: &[u8], start: usize, separator: Option<&[u8]>) -> bool {
    const MIN_GROUP: usize = 4;
    let Some(before) = bytes[..start].strip_suffix(b"-").filter(|_| separator == Some(b"-")) else { return false };
    let group = before.iter().rev().take(MAX_DIGITS).take_while(|byte| byte.is_ascii_alphanumeric());
    let (mut length, mut is_hex, mut has_digit) = (0, true, false);
    for byte in group {
        (length, is_hex, has_digit) =
            (length + 1, is_hex && byte.is_ascii_hexdigit(), has_digit || byte.is_ascii_digit());
    }
    is_hex && (has_digit || length >= MIN_GROUP)
}

/// Whether the digits before `end` are the whole of their group, and a chain between dashes ends there.
fn ends_group(bytes: &[u8], end: usize, separator: Option<&[u8]>) -> bool {
    let letter = bytes.get(end).is_some_and(u8::is_ascii_alphabetic);
    let chain = separator == Some(b"-") && bytes.get(end) == Some(&b'-');
    let goes_on = chain && bytes.get(end + 1).is_some_and(u8::is_ascii_alphanumeric);
    !letter && !goes_on
}

/// Where track 2 ends whose number this is: before its `?`. A cut one is known by the `;` before it.
fn track_end(bytes: &[u8], start: usize, end: usize) -> usize {
    if bytes.get(end) != Some(&b'=') {
        return end;
    }
    let rest = &bytes[end + 1..];
    let digits = rest.iter().take(TRACK_DIGITS.end() + 1).take_while(|byte| byte.is_ascii_digit()).count();
    let is_marked = bytes[..start].ends_with(b";") || rest.get(digits) == Some(&b'?');
    if is_marked && TRACK_DIGITS.contains(&digits) { end + 1 + digits } else { end }
}

/// Whether the number that ends at `end` has a fraction, other than the `.0` of a whole one.
fn is_decimal(bytes: &[u8], end: usize) -> bool {
    let is_whole = bytes[end..].starts_with(b".0") && !is_digit(bytes, end + 2);
    bytes.get(end) == Some(&b'.') && is_digit(bytes, end + 1) && !is_whole
}

/// Whether the digits at `start` are a fraction.
fn is_fraction(bytes: &[u8], start: usize) -> bool {
    start >= 2 && bytes[start - 1] == b'.' && bytes[start - 2].is_ascii_digit()
}

fn is_card(digits: &[u8]) -> bool {
    has_issuer(digits) && luhn(digits)
}

/// The beginnings that are given out, and the lengths that go with them.
fn has_issuer(digits: &[u8]) -> bool {
    let prefix = |length: usize| digits[..length].iter().fold(0u32, |number, digit| number * 10 + u32::from(*digit));
    let length = digits.len();
    match prefix(2) {
        34 | 37 => length == 15,
        36 | 38 | 39 => (14..=19).contains(&length),
        30 => matches!(prefix(3), 300..=305 | 309) && (14..=19).contains(&length),
        35 => matches!(prefix(4), 3528..=3589) && length >= 16,
        20 | 22..=27 => {
            (matches!(prefix(4), 2200..=2204) && length >= 16) || (matches!(prefix(4), 2221..=2720) && length == 16)
        }
        40..=49 => matches!(length, 13 | 16 | 18 | 19),
        51..=55 => length == 16,
        // Maestro and domestic ones.
        50 | 56..=69 => true,
        81 | 82 => length == 16,
        97 => prefix(4) == 9792 && length == 16,
        _ => false,
    }
}

/// Every second digit from the right doubled, the sum of all digits is a multiple of ten.
fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, &digit)| {
            let value = u32::from(digit) << (index % 2);
            if value > 9 { value - 9 } else { value }
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_each_issuer_are_known() {
        for card in [
            "4111111111111111",
            "4222222222222",
            "5555555555554444",
            "2223003122003222",
            "378282246310005",
            "3782 822463 10005",
            "30569309025904",
            "6011111111111117",
            "3530111333300000",
            "6304000000000000",
            "4111-1111-1111-1111",
            "6304 0000 0000 0000",
            "4111\u{a0}1111\u{a0}1111\u{a0}1111",
            "4111\u{202f}1111\u{202f}1111\u{202f}1111",
            "4111\u{2013}1111\u{2013}1111\u{2013}1111",
            "4111.1111.1111.1111",
            "4111/1111/1111/1111",
            "4111_1111_1111_1111",
            "4111\t1111\t1111\t1111",
            "4111  1111  1111  1111",
            "36227206271667",
            "4111\u{200b} 1111\u{200b} 1111\u{200b} 1111",
            "4111\u{200b}1111\u{200b}1111\u{200b}1111",
        ] {
            assert_eq!(at(card.as_bytes(), 0), Some(0..card.len()), "{card}");
        }
        for other in [
            "1755666000250",
            "9111111111111111",
            "4111111111111",
            "41111111111111111111",
            "4111 11 11",
            "412345695850.0017",
        ] {
            assert_eq!(at(other.as_bytes(), 0), None, "{other}");
        }
    }

    #[test]
    fn a_number_ends_where_the_digits_that_go_with_it_end() {
        assert_eq!(at(b"4111 1111 1111 1111 12/27", 0), Some(0..19));
        assert_eq!(at(b"4111111111111111=25121011234", 0), Some(0..16));
        assert_eq!(at(b"4111-1111-1111-1111-1111", 0), None);
        assert_eq!(at(b"00-4111-1111-1111-1111", 3), None);
        assert_eq!(at(b"4111111111111111.", 0), Some(0..16));
        assert_eq!(at(b"4111111111111111.0", 0), Some(0..16));
        for amount in ["5555555555554444.00", "5555555555554444.05", "5555555555554444.50"] {
            assert_eq!(at(amount.as_bytes(), 0), None, "{amount}");
        }
    }

    #[test]
    fn zeros_before_a_number_do_not_hide_it() {
        assert_eq!(at(b"0004111111111111111", 0), Some(3..19));
        assert_eq!(at(b"004111111111111111100", 0), None);
        assert_eq!(at(b"00000000004111 1111 1111 1111", 0), Some(10..29));
        for other in ["04111111111111111", "0004111111111111112", "00000000000000000000", "00"] {
            assert_eq!(at(other.as_bytes(), 0), None, "{other}");
        }
        assert_eq!(at(b"0.004111111111111111", 2), None);
    }

    #[test]
    fn track_2_goes_with_its_number() {
        assert_eq!(at(b";4111111111111111=29121010000000000?", 1), Some(1..35));
        assert_eq!(at(b"4111111111111111=2912101?", 0), Some(0..24));
        assert_eq!(at(b";4111111111111111=2912101", 1), Some(1..25));
        assert_eq!(at(b";4111111111111111=2912", 1), Some(1..17));
        assert_eq!(at(b"4111111111111111=2?page=29121010", 0), Some(0..16));
    }
}
