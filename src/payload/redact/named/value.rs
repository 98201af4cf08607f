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

/// Where an unquoted value ends. An authentication scheme before it belongs to it, and so does an escaped slash.
pub fn bare_end(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let scheme = ["bearer ", "basic ", "digest ", "token "]
        .iter()
        .find(|scheme| bytes[start..].get(..scheme.len()).is_some_and(|it| it.eq_ignore_ascii_case(scheme.as_bytes())));
    let mut end = start + scheme.map_or(0, |scheme| scheme.len());
    loop {
        let stops = |byte: u8| {
            byte <= b' ' || matches!(byte, b'&' | b'"' | b'\'' | b'<' | b'>' | b',' | b';' | b')' | b'}' | b'\\')
        };
        end = find(bytes, end, stops);
        if !bytes[end..].starts_with(b"\\/") {
            return end;
        }
        end += 2;
    }
}

/// Where a line ends, or the string or element in which it stands.
pub fn line_end(bytes: &[u8], start: usize) -> usize {
    find(bytes, start, |byte| matches!(byte, b'\n' | b'\r' | b'<' | b'\\' | b'"'))
}
