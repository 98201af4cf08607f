//! Where values end.

use std::ops::Range;

/// What stands between `://` and the last `@` before the path.
pub fn user_info(text: &str, start: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let end =
        find(bytes, start, |byte| matches!(byte, b'/' | b'?' | b'#' | b'"' | b'\'' | b'<' | b'\\') || byte <= b' ');
    let at = text.get(start..end)?.rfind('@')?;
    (at > 0).then_some(start..start + at)
}

/// The first place from `start` on where `stop` holds, or the end. Stops only ever at ASCII, so at a character's
/// border.
pub fn find(bytes: &[u8], start: usize, stop: impl Fn(u8) -> bool) -> usize {
    bytes[start..].iter().position(|&byte| stop(byte)).map_or(bytes.len(), |found| start + found)
}

/// Where the string that began before `inside` ends: at its closing quote's first backslash, or the text's end. A quote
/// of the string around it ends it too.
pub fn quoted_end(bytes: &[u8], inside: usize, quote: u8, backslashes: usize) -> usize {
    let mut run = 0;
    for (at, &byte) in bytes.iter().enumerate().skip(inside) {
        if byte == quote && run % (2 * (backslashes + 1)) == backslashes {
            return at - backslashes;
        }
        if byte == b'"' && run < backslashes {
            return at - run;
        }
        run = if byte == b'\\' { run + 1 } else { 0 };
    }
    bytes.len()
}

/// Where the object or array at `start` ends, strings in it skipped.
pub fn bracketed_end(bytes: &[u8], start: usize, backslashes: usize) -> usize {
    let (mut depth, mut at) = (0usize, start);
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => at = quoted_end(bytes, at + 1, b'"', backslashes) + backslashes,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// Where an unquoted value ends. An authentication scheme before it belongs to it (of `Authorization` whichever), and so
/// does what JSON escapes, unless that is what ends a value.
pub fn bare_end(text: &str, start: usize, is_authorization: bool) -> usize {
    let bytes = text.as_bytes();
    let word = find(bytes, start, |byte| !byte.is_ascii_alphanumeric() && byte != b'-');
    let known = ["bearer", "basic", "digest", "token"].iter().any(|it| text[start..word].eq_ignore_ascii_case(it));
    let is_scheme = word > start && (known || is_authorization) && bytes.get(word) == Some(&b' ');
    let mut end = if is_scheme { word + 1 } else { start };
    loop {
        end = find(bytes, end, |byte| ends_bare(char::from(byte)) || byte == b'\\');
        match escaped_end(text, end) {
            Some(after) => end = after,
            None => return end,
        }
    }
}

fn ends_bare(character: char) -> bool {
    character <= ' ' || matches!(character, '&' | '"' | '\'' | '<' | '>' | ',' | ';' | ')' | '}')
}

/// Where the escape at `at` ends, in however many JSON strings, if it stands for a character of a bare value: `\/`,
/// `\u00e9`.
fn escaped_end(text: &str, at: usize) -> Option<usize> {
    const DIGITS: usize = 4;
    let bytes = text.as_bytes();
    let letter = find(bytes, at, |byte| byte != b'\\');
    match bytes.get(letter)? {
        _ if letter == at => None,
        b'/' => Some(letter + 1),
        b'u' => {
            let digits = text.get(letter + 1..letter + 1 + DIGITS)?;
            let unit = u32::from_str_radix(digits, 16).ok()?;
            // Half of a character of two is none, and ends nothing.
            (!char::from_u32(unit).is_some_and(ends_bare)).then_some(letter + 1 + DIGITS)
        }
        _ => None,
    }
}

/// Where a line ends, or the string or element in which it stands.
pub fn line_end(bytes: &[u8], start: usize) -> usize {
    find(bytes, start, |byte| matches!(byte, b'\n' | b'\r' | b'<' | b'\\' | b'"'))
}
