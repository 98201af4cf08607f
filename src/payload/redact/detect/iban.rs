//! IBANs (ISO 13616): country, check digits, and the length that the country's registration states.
//!
//! In either case, with up to four separators between any two characters, also line breaks and colons. With separators between
//! the country and the check digits only in capitals, for those may be words.

use std::ops::Range;

use super::{separator_at, widthless_end};

/// The most separators between two characters.
const MAX_GAP: usize = 4;

/// The countries of the registry, and others in use, with the length of their IBANs.
const COUNTRIES: &[(&[u8; 2], usize)] = &[
    (b"AD", 24),
    (b"AE", 23),
    (b"AL", 28),
    (b"AO", 25),
    (b"AT", 20),
    (b"AZ", 28),
    (b"BA", 20),
    (b"BE", 16),
    (b"BF", 28),
    (b"BG", 22),
    (b"BH", 22),
    (b"BI", 27),
    (b"BJ", 28),
    (b"BR", 29),
    (b"BY", 28),
    (b"CF", 27),
    (b"CG", 27),
    (b"CH", 21),
    (b"CI", 28),
    (b"CM", 27),
    (b"CR", 22),
    (b"CV", 25),
    (b"CY", 28),
    (b"CZ", 24),
    (b"DE", 22),
    (b"DJ", 27),
    (b"DK", 18),
    (b"DO", 28),
    (b"DZ", 26),
    (b"EE", 20),
    (b"EG", 29),
    (b"ES", 24),
    (b"FI", 18),
    (b"FK", 18),
    (b"FO", 18),
    (b"FR", 27),
    (b"GA", 27),
    (b"GB", 22),
    (b"GE", 22),
    (b"GI", 23),
    (b"GL", 18),
    (b"GQ", 27),
    (b"GR", 27),
    (b"GT", 28),
    (b"GW", 25),
    (b"HN", 28),
    (b"HR", 21),
    (b"HU", 28),
    (b"IE", 22),
    (b"IL", 23),
    (b"IQ", 23),
    (b"IR", 26),
    (b"IS", 26),
    (b"IT", 27),
    (b"JO", 30),
    (b"KM", 27),
    (b"KW", 30),
    (b"KZ", 20),
    (b"LB", 28),
    (b"LC", 32),
    (b"LI", 21),
    (b"LT", 20),
    (b"LU", 20),
    (b"LV", 21),
    (b"LY", 25),
    (b"MA", 28),
    (b"MC", 27),
    (b"MD", 24),
    (b"ME", 22),
    (b"MG", 27),
    (b"MK", 19),
    (b"ML", 28),
    (b"MN", 20),
    (b"MR", 27),
    (b"MT", 31),
    (b"MU", 30),
    (b"MZ", 25),
    (b"NE", 28),
    (b"NI", 28),
    (b"NL", 18),
    (b"NO", 15),
    (b"OM", 23),
    (b"PK", 24),
    (b"PL", 28),
    (b"PS", 29),
    (b"PT", 25),
    (b"QA", 29),
    (b"RO", 24),
    (b"RS", 22),
    (b"RU", 33),
    (b"SA", 24),
    (b"SC", 31),
    (b"SD", 18),
    (b"SE", 24),
    (b"SI", 19),
    (b"SK", 24),
    (b"SM", 27),
    (b"SN", 28),
    (b"SO", 23),
    (b"ST", 25),
    (b"SV", 28),
    (b"TD", 27),
    (b"TG", 28),
    (b"TL", 23),
    (b"TN", 24),
    (b"TR", 26),
    (b"UA", 29),
    (b"VA", 22),
    (b"VG", 24),
    (b"XK", 20),
    (b"YE", 30),
];

/// The IBAN that begins with the word at `start`, or after the letters `IBAN` there.
pub fn at(bytes: &[u8], start: usize) -> Option<Range<usize>> {
    let label = bytes.get(start..start + 4)?.eq_ignore_ascii_case(b"iban");
    let start = if label { start + 4 } else { start };
    let [first, second, third] = *bytes.get(start..start + 3)? else { return None };
    // Most words go on.
    if third.is_ascii_alphabetic() {
        return None;
    }
    let country = [first.to_ascii_uppercase(), second.to_ascii_uppercase()];
    let index = COUNTRIES.binary_search_by_key(&country, |(code, _)| **code).ok()?;
    let check = behind_gap(bytes, start + 2);
    if !bytes.get(check).is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let (characters, end) = collect(bytes, start, COUNTRIES[index].1)?;
    if check > start + 2 && bytes[start..end].iter().any(u8::is_ascii_lowercase) {
        return None;
    }
    // In MT940 a currency or a bank's code may follow without a separator.
    let goes_on = |byte: &u8| match byte {
        b'A'..=b'Z' => !characters.last().is_some_and(u8::is_ascii_digit),
        byte => byte.is_ascii_alphanumeric(),
    };
    let whole = !bytes.get(end).is_some_and(goes_on);
    (whole && has_check_digits(&characters)).then_some(start..end)
}

/// The next `length` letters and digits, and where they end.
fn collect(bytes: &[u8], start: usize, length: usize) -> Option<(Vec<u8>, usize)> {
    let (mut characters, mut at) = (Vec::with_capacity(length), start);
    while characters.len() < length {
        at = behind_gap(bytes, at);
        characters.push(bytes.get(at).filter(|byte| byte.is_ascii_alphanumeric())?.to_ascii_uppercase());
        at += 1;
    }
    Some((characters, at))
}

/// Behind the separators at `at`.
fn behind_gap(bytes: &[u8], mut at: usize) -> usize {
    for _ in 0..MAX_GAP {
        if bytes.get(at).is_none_or(u8::is_ascii_alphanumeric) {
            return at;
        }
        at = widthless_end(bytes, at);
        at += match bytes[at..] {
            [b':' | b'\n' | b'\r', ..] => 1,
            // The next subfield of MT940's `:86:`.
            [b'?', b'2' | b'3' | b'6', b'0'..=b'9', ..] => 3,
            _ => separator_at(bytes, at).map_or(0, str::len),
        };
    }
    widthless_end(bytes, at)
}

/// The first four characters moved to the end, letters as 10 to 35: the number is 1 modulo 97.
fn has_check_digits(characters: &[u8]) -> bool {
    let (head, rest) = characters.split_at(4);
    let is_number = head[2..].iter().all(u8::is_ascii_digit);
    let remainder = rest.iter().chain(head).fold(0u32, |remainder, &character| match character {
        b'0'..=b'9' => (remainder * 10 + u32::from(character - b'0')) % 97,
        letter => (remainder * 100 + u32::from(letter - b'A') + 10) % 97,
    });
    is_number && remainder == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ibans_of_many_countries_are_known() {
        assert!(COUNTRIES.is_sorted_by_key(|(code, _)| **code));
        for iban in [
            "DE89370400440532013000",
            "GB82 WEST 1234 5698 7654 32",
            "FR1420041010050500013M02606",
            "NO9386011117947",
            "MT84MALT011000012345MTLCAST001S",
            "nl91abna0417164300",
            "CH93-0076-2011-6238-5295-7",
            "DE89.3704.0044.0532.0130.00",
            "SE45\u{202f}5000\u{202f}0000\u{202f}0583\u{202f}9825\u{202f}7466",
            "DE 89 3704 0044 0532 0130 00",
            "DE 8937 0400 4405 3201 3000",
            "DE89  3704  0044  0532  0130  00",
            "DE89:3704:0044:0532:0130:00",
            "DE89\n3704\n0044\n0532\n0130\n00",
            "DE89\r\n  370400440532013000",
            "DE8937040?2104405320?2213000",
            "DE89\u{200b}3704\u{200b}0044\u{200b}0532\u{200b}0130\u{200b}00",
            "SE45\u{a0}5000\u{a0}0000\u{a0}0583\u{a0}9825\u{a0}7466",
        ] {
            assert_eq!(at(iban.as_bytes(), 0), Some(0..iban.len()), "{iban}");
        }
        assert_eq!(at(b"IBANDE89370400440532013000", 0), Some(4..26));
        assert_eq!(at(b"DE89 3704 0044 0532 0130 00 COBADEFF", 0), Some(0..27));
        for other in [
            "DE88370400440532013000",
            "DE893704004405320130001",
            "DE89     370400440532013000",
            "de 89 3704 0044 0532 0130 00",
            "DEA9370400440532013000",
            "ZZ89370400440532013000",
        ] {
            assert_eq!(at(other.as_bytes(), 0), None, "{other}");
        }
    }
}
