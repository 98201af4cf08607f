//! Base64 in a text, and in it a text that holds a secret: a cursor, a `data:` URL, a SOAP body in a JSON string.

use std::borrow::Cow;
use std::ops::Range;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::budget::{Budget, Stop};
use super::named::break_at;

/// Shorter ones hold no name with a value, no card number and no IBAN.
const MIN_BYTES: usize = 20;

/// The bytes in so much base64, less what may be a part of a character at its end.
const MIN_TEXT_BYTES: usize = MIN_BYTES / 4 * 3 - 3;

/// How much is decoded at a time.
const PIECE_BYTES: usize = 256;

/// The shortest line that base64 is broken into.
const MIN_LINE_BYTES: usize = 40;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// All base64, in order and apart, whose text `holds_secret`. One level: base64 in base64 is not looked into.
pub(super) fn find(
    text: &str,
    budget: &mut Budget,
    mut holds_secret: impl FnMut(&str, &mut Budget) -> Result<bool, Stop>,
) -> Result<Vec<Range<usize>>, Stop> {
    let bytes = text.as_bytes();
    let (mut found, mut at, mut spent) = (Vec::new(), 0, 0);
    while let Some(shortest) = bytes.get(at..at + MIN_BYTES) {
        // From the end: of most texts, few bytes need to be looked at.
        if let Some(other) = shortest.iter().rposition(|&byte| !is_base64(byte)) {
            at += other + 1;
            continue;
        }
        let packed = Packed::at(bytes, at);
        let (base64, end) = (&packed.base64[..], packed.end);
        budget.spend(end - spent)?;
        (at, spent) = (end + 1, end);
        let mut start = 0;
        // It may begin after any character that also separates: the segments of a path, `state-…`.
        while start + MIN_BYTES <= base64.len() {
            if let Some(plain) = unpacked(&base64[start..]) {
                if holds_secret(&plain, budget)? {
                    let padding = bytes[end..].iter().take(2).take_while(|&&byte| byte == b'=').count();
                    found.push(packed.place(start)..end + padding);
                    break;
                }
                // What has been looked at is not looked at again.
                start += plain.len();
            }
            let separator = base64[start..].iter().position(|byte| b"+/-_".contains(byte));
            start = separator.map_or(base64.len(), |separator| start + separator + 1);
        }
    }
    budget.spend(bytes.len() - spent)?;
    Ok(found)
}

/// A run of base64, in as many lines as it was broken into (MIME has 76 characters in one, PEM 64).
struct Packed<'t> {
    base64: Cow<'t, [u8]>,
    /// Where each line begins: in `base64`, and in the text.
    lines: Vec<(usize, usize)>,
    /// Where the last one ends in the text.
    end: usize,
}

impl<'t> Packed<'t> {
    fn at(bytes: &'t [u8], at: usize) -> Self {
        let length = |at: usize| bytes[at..].iter().take_while(|&&byte| is_base64(byte)).count();
        let mut end = at + length(at);
        let (mut base64, mut lines) = (Cow::Borrowed(&bytes[at..end]), vec![(0, at)]);
        let mut last = end - at;
        while last >= MIN_LINE_BYTES && last.is_multiple_of(4) {
            let Some(next) = break_at(bytes, end).map(|it| it.end).filter(|next| length(*next) > 0) else { break };
            last = length(next);
            end = next + last;
            lines.push((base64.len(), next));
            base64.to_mut().extend_from_slice(&bytes[next..end]);
        }
        Packed { base64, lines, end }
    }

    fn place(&self, at: usize) -> usize {
        let line = self.lines.partition_point(|(here, _)| *here <= at).saturating_sub(1);
        let (here, there) = self.lines[line];
        there + (at - here)
    }
}

/// Of either alphabet.
fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/-_".contains(&byte)
}

/// The text that is in it, as far as it is one; the rest may be something else, or what a cut has left.
fn unpacked(base64: &[u8]) -> Option<String> {
    let mut plain = decoded(&base64[..MIN_BYTES]);
    if text_bytes(&plain) < MIN_TEXT_BYTES {
        return None;
    }
    // Piece by piece: what begins as a text often does not go on as one.
    let mut checked = 0;
    for piece in base64[MIN_BYTES..].chunks(PIECE_BYTES) {
        plain.extend(decoded(piece));
        checked += text_bytes(&plain[checked..]);
        // What is more than a part of a character is no text.
        if plain.len() - checked >= char::MAX_LEN_UTF8 {
            break;
        }
    }
    plain.truncate(checked + text_bytes(&plain[checked..]));
    String::from_utf8(plain).ok()
}

fn decoded(base64: &[u8]) -> Vec<u8> {
    // One character more than a multiple of four is what a cut leaves.
    let whole = base64.len() - usize::from(base64.len() % 4 == 1);
    let standard = |byte: &u8| match byte {
        b'-' => b'+',
        b'_' => b'/',
        byte => *byte,
    };
    LENIENT.decode(base64[..whole].iter().map(standard).collect::<Vec<u8>>()).unwrap_or_default()
}

/// How many bytes there are before the first that is in no text.
fn text_bytes(plain: &[u8]) -> usize {
    let utf8 = std::str::from_utf8(plain).map_or_else(|error| error.valid_up_to(), str::len);
    let is_control = |byte: &u8| *byte < b' ' && !b"\t\r\n".contains(byte);
    plain[..utf8].iter().position(is_control).unwrap_or(utf8)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::*;

    fn found(text: &str) -> Vec<&str> {
        let mut budget = Budget::new(Duration::from_secs(60));
        let found = find(text, &mut budget, |plain, _| Ok(plain.contains("CANARY"))).expect("in time");
        found.into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn base64_of_a_text_with_a_secret_is_found_in_either_alphabet_whole_and_cut() {
        let plain = "CANARY ??? ~~~ ??? é ???>";
        for packed in [STANDARD.encode(plain), URL_SAFE_NO_PAD.encode(plain)] {
            assert!(packed.contains(['/', '_']), "{packed}");
            assert_eq!(found(&format!("https://b/x/state-{packed}")), [packed.as_str()]);
            assert_eq!(found(&format!("data:x;base64,{packed}, and more")), [packed.as_str()]);
            assert_eq!(found(&format!("/{packed}/segment")).len(), 1, "{packed}");
            for end in 24..packed.len() {
                assert_eq!(found(&packed[..end]), [&packed[..end]], "cut to {end}");
            }
        }
    }

    #[test]
    fn base64_that_was_broken_into_lines_is_one() {
        for before in 0..60 {
            let packed = STANDARD.encode(format!("{}CANARY and more of it", "x".repeat(before)));
            for line_break in ["\n", "\r\n", r"\n", r"\r\n", r"\\n"] {
                for width in [76, 64, 40] {
                    let lines: Vec<_> = packed.as_bytes().chunks(width).map(String::from_utf8_lossy).collect();
                    let lines = lines.join(line_break);
                    let text = format!("packed: {lines}{line_break}, and more");
                    let found = found(&text);
                    assert!(found.len() == 1 && found[0].ends_with(&lines), "{text:?}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn other_texts_and_what_is_no_base64_stay() {
        let harmless = STANDARD.encode(r#"{"page": 2, "limit": 100}"#);
        let binary = STANDARD.encode([&[0u8, 1, 2][..], b"CANARY CANARY CANARY"].concat());
        for text in [&*harmless, &*binary, "/accounts/acc-cc5b76a9d00cddaa/transactions", "", "Q0FOQVJZ"] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }
}
