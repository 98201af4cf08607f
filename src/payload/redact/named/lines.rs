//! Lines of a text, which may stand in a JSON string in a JSON string: at depth k the `\n` that ends a line has 2^(k − 1)
//! backslashes.

use std::ops::Range;

use memchr::memchr3;

use super::colours;
use super::value::find;

/// Of an escape in the deepest JSON string that is looked at.
const MAX_BACKSLASHES: usize = 8;

/// What ends a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Break {
    /// Of one of its escapes; 0 where it is no escape.
    pub backslashes: usize,
    /// Where the next line begins.
    pub end: usize,
}

/// The line break that begins at `at`: a newline, with a carriage return before it or not, or one that JSON has escaped.
pub fn break_at(bytes: &[u8], at: usize) -> Option<Break> {
    let raw = at + usize::from(bytes[at..].starts_with(b"\r\n"));
    if bytes.get(raw) == Some(&b'\n') {
        return Some(Break { backslashes: 0, end: raw + 1 });
    }
    let (backslashes, letter) = escape_at(bytes, at).filter(|(_, letter)| matches!(bytes[*letter], b'n' | b'r'))?;
    let newline = escape_at(bytes, letter + 1).filter(|it| bytes[letter] == b'r' && it.0 == backslashes);
    let newline = newline.filter(|(_, letter)| bytes[*letter] == b'n');
    Some(Break { backslashes, end: newline.map_or(letter, |(_, letter)| letter) + 1 })
}

/// Behind blanks, line breaks and colours, also those that JSON has escaped.
pub fn behind_blanks(bytes: &[u8], at: usize) -> usize {
    const MAX_ESCAPES: usize = 8;
    let mut at = colours::behind_blanks(bytes, at);
    for _ in 0..MAX_ESCAPES {
        match escape_at(bytes, at) {
            Some((_, letter)) if matches!(bytes[letter], b'n' | b'r' | b't') => {
                at = colours::behind_blanks(bytes, letter + 1);
            }
            _ => break,
        }
    }
    at
}

/// How many backslashes the escape at `at` has, and where its letter is.
fn escape_at(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let backslashes = bytes[at..].iter().take(MAX_BACKSLASHES + 1).take_while(|&&byte| byte == b'\\').count();
    let is_escape = backslashes.is_power_of_two() && backslashes <= MAX_BACKSLASHES;
    (is_escape && at + backslashes < bytes.len()).then_some((backslashes, at + backslashes))
}

/// Where the line ends in which `at` is, and where the next one begins, if there is one: at a newline, or at a `\n` with so
/// many backslashes. With `in_string`, or where a newline has backslashes, a string ends the line that ends before it.
pub fn line(bytes: &[u8], at: usize, backslashes: usize, in_string: bool) -> (usize, Option<usize>) {
    let (own, quote) = (2 * backslashes.max(1), if in_string || backslashes > 0 { b'"' } else { b'\n' });
    let mut from = at;
    while let Some(found) = memchr3(b'\n', quote, b'\\', &bytes[from..]) {
        let end = from + found;
        from = find(bytes, end, |byte| byte != b'\\');
        // Backslashes of the text itself come in twos, fours and so on before them.
        let run = (from - end) % own;
        match bytes.get(from) {
            Some(b'\n') => {
                let end = from - usize::from(from > at && bytes[from - 1] == b'\r');
                return (end, Some(from + 1));
            }
            Some(&byte) if byte == quote && run + 1 < own => return (from - run, None),
            Some(b'n' | b'r') if backslashes > 0 && run == backslashes => {
                return (from - run, break_at(bytes, from - run).map(|it| it.end));
            }
            // The quote of a string in this one.
            Some(b'"') => from += 1,
            _ => {}
        }
    }
    (bytes.len(), None)
}

/// Where a line ends, or the string or element in which it stands. Where it begins within `searched`, that has the same end.
pub fn line_end(bytes: &[u8], start: usize, searched: &mut Range<usize>) -> usize {
    if !searched.contains(&start) {
        *searched = start..find(bytes, start, |byte| matches!(byte, b'\n' | b'\r' | b'<' | b'\\' | b'"'));
    }
    searched.end
}

/// Whether the name at `at` is the first thing in its line, or string: `export SECRET=`, `> X-Api-Key:`.
pub fn is_at_line_start(bytes: &[u8], at: usize) -> bool {
    const MAX_BYTES: usize = 64;
    const BEFORE: &[&[u8]] = &[b"", b"export", b"set", b"ENV", b"ARG", b"-", b">", b"<", b"*", b"#"];
    let near = &bytes[at.saturating_sub(MAX_BYTES)..at];
    let begin = near.iter().rposition(|byte| matches!(byte, b'\n' | b'"'));
    let before = match begin {
        Some(begin) => &near[begin + 1..],
        None if near.len() == at => near,
        None => return false,
    };
    // A line break of a JSON string ends so, however deep that is.
    let escaped = before.windows(2).rposition(|it| it == b"\\n").map_or(before, |newline| &before[newline + 2..]);
    BEFORE.contains(&escaped.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_breaks_alike_in_however_many_strings() {
        for (text, backslashes) in
            [("\n", 0), ("\r\n", 0), (r"\n", 1), (r"\r\n", 1), (r"\r", 1), (r"\\n", 2), (r"\\r\\n", 2), (r"\\\\n", 4)]
        {
            let long = format!("{text}x");
            assert_eq!(break_at(long.as_bytes(), 0), Some(Break { backslashes, end: text.len() }), "{text:?}");
            assert_eq!(behind_blanks(long.as_bytes(), 0), text.len(), "{text:?}");
            assert!(is_at_line_start(format!("x{text} token").as_bytes(), text.len() + 2) || text == r"\r", "{text:?}");
        }
        for text in ["", "x", "\r", "\\", r"\\\n", r"\t", r"\\\\\\\\\\\\\\\\n"] {
            assert_eq!(break_at(text.as_bytes(), 0), None, "{text:?}");
        }
        // The second is an escape of another string.
        assert_eq!(break_at(br"\r\\n", 0), Some(Break { backslashes: 1, end: 2 }));
    }
}
