//! Where values end.

use std::ops::Range;

use super::super::names::MAX_NAME_BYTES;
use super::colours;
use super::lines::line;

/// The longest list or object that is no JSON.
const MAX_PRINTED_BYTES: usize = 2 * 1024;

/// How far the first quote of a list of parameters may be.
const MAX_PARAMETER_BYTES: usize = 256;

/// Behind `://` at `at`; also where JSON escapes the slashes, as PHP does.
pub fn behind_slashes(bytes: &[u8], at: usize) -> Option<usize> {
    const ESCAPED: &[u8] = b"u002f";
    let mut at = at + bytes[at..].starts_with(b":").then_some(1)?;
    for _ in 0..2 {
        let slash = find(bytes, at, |byte| byte != b'\\');
        let is_escaped = bytes.get(slash..slash + ESCAPED.len()).is_some_and(|it| it.eq_ignore_ascii_case(ESCAPED));
        at = match bytes.get(slash)? {
            b'/' => slash + 1,
            _ if is_escaped && slash > at => slash + ESCAPED.len(),
            _ => return None,
        };
    }
    Some(at)
}

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

/// Where a value ends that a program has printed, of a type of its own or a list: `Some("x")`, `b'x'`, `['a', 'b']`. None where
/// the value that ends at `end` as a bare one is no such one.
pub fn printed_end(bytes: &[u8], start: usize, end: usize) -> Option<usize> {
    bracketed_text_end(bytes, start).or_else(|| opened_end(bytes, start, end))
}

/// Of one of which the closing bracket is far away or cut off, or that has none, the end of its first text.
fn opened_end(bytes: &[u8], start: usize, end: usize) -> Option<usize> {
    const PREFIXES: &[&[u8]] = &[b"b", b"u", b"r", b"f", b"l", b"rb", b"br", b"@", b"$"];
    let quote = find(bytes, end, |byte| byte != b'\\');
    let before = &bytes[start..end];
    let mark = *bytes.get(quote)?;
    let is_prefix = PREFIXES.iter().any(|prefix| before.eq_ignore_ascii_case(prefix));
    let opens = before.last().is_some_and(|last| matches!(last, b'(' | b'[' | b'='));
    if !matches!(mark, b'"' | b'\'') || !(is_prefix || opens) {
        return None;
    }
    let inside = quote + 1;
    Some(quoted_end(bytes, inside, mark, quote - end))
}

/// Where a list or an object ends that begins at `start`, with the name of a type before it or none: `Secret { inner: "x" }`,
/// `&Some(\n"x")`, `new Secret("x")`. None where it has no end nearby.
fn bracketed_text_end(bytes: &[u8], start: usize) -> Option<usize> {
    let bytes = &bytes[..bytes.len().min(start + MAX_PRINTED_BYTES)];
    let from = ["&mut ", "&", "new "].into_iter().find(|it| bytes[start..].starts_with(it.as_bytes()));
    let from = start + from.map_or(0, str::len);
    let named = find(bytes, from, |byte| !byte.is_ascii_alphanumeric() && !b"_:.".contains(&byte));
    let open = find(bytes, named, |byte| byte != b' ');
    let is_type = named > from && bytes[from].is_ascii_alphabetic();
    match bytes.get(open)? {
        b'[' | b'{' if open == start || (is_type && bytes[from].is_ascii_uppercase()) => {}
        b'(' if (is_type || open == start) && open == named && quote_behind(bytes, open + 1).is_some() => {}
        _ => return None,
    }
    let (mut depth, mut at, mut run) = (0usize, open, 0);
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            b'"' | b'\'' => at = quoted_end(bytes, at + 1, byte, run) + run,
            _ => {}
        }
        run = if byte == b'\\' { run + 1 } else { 0 };
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// Of a value that is one text in a type's brackets, the text: it is the secret, as it stands elsewhere.
pub fn text_in(bytes: &[u8], value: &Range<usize>) -> Option<Range<usize>> {
    let bytes = bytes[..value.end].strip_suffix(b")")?;
    let open = find(bytes, value.start, |byte| matches!(byte, b'(' | b'"' | b'\''));
    let quote = quote_behind(bytes, (open + 1).min(bytes.len())).filter(|_| bytes.get(open) == Some(&b'('))?;
    let backslashes = bytes[open..quote].iter().rev().take_while(|&&byte| byte == b'\\').count();
    let text = quote + 1..quoted_end(bytes, quote + 1, bytes[quote], backslashes);
    let behind = bytes.get(text.end + backslashes + 1..)?;
    let ends = behind.iter().all(|byte| byte.is_ascii_whitespace() || *byte == b',');
    (ends && !text.is_empty()).then_some(text)
}

/// The quote of a text that begins behind blanks and line breaks.
fn quote_behind(bytes: &[u8], at: usize) -> Option<usize> {
    const MAX_PREFIX_BYTES: usize = 2;
    let text = colours::behind_blanks(bytes, at);
    let prefix = bytes[text..].iter().take(MAX_PREFIX_BYTES).take_while(|byte| byte.is_ascii_alphabetic()).count();
    let quote = find(bytes, text + prefix, |byte| byte != b'\\');
    matches!(bytes.get(quote)?, b'"' | b'\'').then_some(quote)
}

/// The name that a bare value is, with a value of its own behind it: `auth: password: x`, `auth = password = x`. What ends in `=`
/// may be base64, unless it is a word.
pub fn next_name(text: &str, value: Range<usize>) -> Option<&str> {
    // Of a longer name, the end tells what it is.
    let start = text.ceil_char_boundary(value.start.max(value.end.saturating_sub(MAX_NAME_BYTES)));
    let (bytes, name) = (text.as_bytes(), &text[start..value.end]);
    if let Some(name) = name.strip_suffix(':') {
        return Some(name);
    }
    if let Some(name) = name.strip_suffix('=') {
        let is_word = name.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b' ' | b'_' | b'-'));
        return is_word.then_some(name);
    }
    let behind = find(bytes, value.end, |byte| byte != b' ');
    let has_mark = matches!(bytes.get(behind), Some(b'=' | b':')) && behind > value.end;
    has_mark.then_some(name)
}

/// Where the word ends of which a value that ends at `end` is the beginning: of a secret with a `)` or a `;` in it. What has a mark
/// of its own is something else.
pub fn word_end(bytes: &[u8], end: usize) -> usize {
    let word = find(bytes, end, |byte| byte <= b' ' || matches!(byte, b'"' | b'<' | b'\\'));
    let rest = &bytes[end..word];
    let goes_on = rest.iter().any(u8::is_ascii_alphanumeric) && !rest.iter().any(|byte| matches!(byte, b'=' | b':'));
    if goes_on { word } else { end }
}

/// Where a value of JSON ends that has no quotes.
pub fn member_end(bytes: &[u8], start: usize) -> usize {
    find(bytes, start, |byte| matches!(byte, b',' | b'}' | b']' | b'"' | b'\\') || byte.is_ascii_whitespace())
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
/// does what JSON escapes, unless that is what ends a value. Where it begins within `searched`, that has the same end.
pub fn bare_end(text: &str, start: usize, is_authorization: bool, searched: &mut Range<usize>) -> usize {
    let bytes = text.as_bytes();
    let word = find(bytes, start, |byte| !byte.is_ascii_alphanumeric() && byte != b'-');
    let known = ["bearer", "basic", "digest", "token"].iter().any(|it| text[start..word].eq_ignore_ascii_case(it));
    let is_scheme = word > start && (known || is_authorization) && bytes.get(word) == Some(&b' ');
    let start = if is_scheme { colours::behind(bytes, word + 1) } else { start };
    if searched.contains(&start) {
        return searched.end;
    }
    let mut end = start;
    loop {
        end = find(bytes, end, |byte| ends_bare(char::from(byte)) || byte == b'\\');
        match escaped_end(text, end) {
            Some(after) => end = after,
            None => break,
        }
    }
    *searched = start..end;
    end
}

/// Whether a value without quotes ends at this character.
pub fn ends_bare(character: char) -> bool {
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

/// Where the credentials that begin at `start` end, if they are parameters of a scheme (RFC 9110, 11.4): `Digest username="x"`,
/// `Hawk id="x"`, `hmac id=1, mac=x`.
pub fn parameters_end(bytes: &[u8], start: usize) -> Option<usize> {
    let near = &bytes[..bytes.len().min(start + MAX_PARAMETER_BYTES)];
    let scheme = find(near, start, |byte| !is_of_parameter(byte));
    let name = find(near, scheme, |byte| byte != b' ');
    if scheme == start || name == scheme {
        return None;
    }
    let value = parameter_value(near, name);
    let is_quoted = value.is_some_and(|value| near.get(find(near, value, |byte| byte != b'\\')) == Some(&b'"'));
    if is_quoted || bytes[start..scheme].eq_ignore_ascii_case(b"digest") {
        return Some(quoted_parameters_end(bytes, start));
    }
    bare_parameters_end(bytes, value?)
}

fn is_of_parameter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Where the value of the parameter begins whose name begins at `name`.
fn parameter_value(bytes: &[u8], name: usize) -> Option<usize> {
    let mark = find(bytes, name, |byte| !is_of_parameter(byte));
    (mark > name && bytes.get(mark) == Some(&b'=')).then_some(mark + 1)
}

/// Where parameters end of which the first has no quotes, and its value begins at `value`. None where there is only one, or
/// the first is the end of base64.
fn bare_parameters_end(bytes: &[u8], mut value: usize) -> Option<usize> {
    let mut end = None;
    if bytes[find(bytes, value, |byte| byte != b'=')..].starts_with(b",") {
        return None;
    }
    loop {
        let quote = find(bytes, value, |byte| byte != b'\\');
        let value_end = if bytes.get(quote) == Some(&b'"') {
            quoted_end(bytes, quote + 1, b'"', quote - value) + quote - value + 1
        } else {
            find(bytes, value, |byte| matches!(byte, b',' | b'"' | b'<' | b'\\') || byte <= b' ')
        };
        let value_end = value_end.min(bytes.len());
        end = end.map(|_| value_end);
        if bytes.get(value_end) != Some(&b',') {
            return end;
        }
        let name = find(bytes, value_end + 1, |byte| byte != b' ');
        let Some(next) = parameter_value(bytes, name) else { return end };
        (value, end) = (next, Some(value_end));
    }
}

/// Where the parameters of a scheme end, in whose values there are quotes: with the line.
fn quoted_parameters_end(bytes: &[u8], start: usize) -> usize {
    // The user's name comes first, as a rule.
    let near = &bytes[..bytes.len().min(start + MAX_PARAMETER_BYTES)];
    let quote = find(near, start, |byte| matches!(byte, b'"' | b'\n' | b'<'));
    let backslashes = bytes[start..quote].iter().rev().take_while(|&&byte| byte == b'\\').count();
    // A quote in k strings has 2^k − 1 of them, the n of a newline 2^(k − 1).
    let (end, _) = line(bytes, start, backslashes.div_ceil(2), false);
    find(&bytes[..end], start, |byte| byte == b'<')
}
