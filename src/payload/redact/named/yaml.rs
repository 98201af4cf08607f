//! What only YAML has: block scalars (`password: |` and the more indented lines after it), lists with dashes, and properties
//! before a value (`&anchor`, `!tag`).

use std::ops::Range;

use super::value::{find, line, newline_backslashes};

/// The deepest indentation that is looked at.
const MAX_INDENT: usize = 256;

/// A node has a tag and an anchor at the most.
const MAX_PROPERTIES: usize = 2;

/// What stands before a value, or is a password that begins so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Properties {
    pub end: usize,
    /// Where the value behind them in the same line begins.
    pub content: Option<usize>,
}

/// The properties that begin at `start`.
pub fn properties(bytes: &[u8], start: usize) -> Option<Properties> {
    let ends = |byte: u8| byte <= b' ' || b"\"'<>,;{}[]\\".contains(&byte);
    let (mut end, mut value) = (start, start);
    for _ in 0..MAX_PROPERTIES {
        if !matches!(bytes.get(value), Some(b'!' | b'&')) {
            break;
        }
        end = find(bytes, value + 1, ends);
        value = find(bytes, end, |byte| !matches!(byte, b' ' | b'\t'));
    }
    // `&amp;` is none.
    let is_word = end > start && !matches!(bytes.get(end), Some(b';' | b'<' | b'>'));
    let is_last = value == end || newline_backslashes(bytes, value).is_some() || bytes[value..].starts_with(b"\r\n");
    is_word.then_some(Properties { end, content: (!is_last && value < bytes.len()).then_some(value) })
}

/// What the block holds whose header is at `header`, of the key that begins at `key`. Its lines may end as those of a
/// JSON string do, in which the whole document stands; they end with the string in which they are (`in_string`).
pub fn block(bytes: &[u8], key: usize, header: usize, in_string: bool) -> Option<Range<usize>> {
    if !matches!(bytes.get(header)?, b'|' | b'>') {
        return None;
    }
    let is_indicator = |byte: &&u8| matches!(byte, b'+' | b'-' | b'1'..=b'9');
    let indicators = bytes[header + 1..].iter().take(2).take_while(is_indicator).count();
    lines(bytes, key, header + 1 + indicators, in_string, |_, _| false)
}

/// The items of a list that begins in the line after the key that begins at `key` and whose mark ends at `mark_end`, with
/// their dashes.
pub fn list(bytes: &[u8], key: usize, mark_end: usize, in_string: bool) -> Option<Range<usize>> {
    let is_item = |text: usize| bytes[text..].starts_with(b"- ");
    let items = lines(bytes, key, mark_end, in_string, |text, is_aligned| is_aligned && is_item(text))?;
    is_item(items.start).then_some(items)
}

/// The key of a mapping that begins at `start`, in a line after the one in which a mark ends at `mark_end`.
pub fn key_below(bytes: &[u8], mark_end: usize, start: usize) -> Option<Range<usize>> {
    let line = find(bytes, mark_end, |byte| !matches!(byte, b' ' | b'\t' | b'\r'));
    newline_backslashes(bytes, line)?;
    let end = find(bytes, start, |byte| !byte.is_ascii_alphanumeric() && !b"_.-".contains(&byte));
    let is_key = end > start && bytes.get(end) == Some(&b':');
    let behind = bytes.get(end + 1).copied().unwrap_or(b' ');
    (is_key && matches!(behind, b' ' | b'\n' | b'\r' | b'\\')).then_some(start..end)
}

/// What is below the key that begins at `key`, more indented than that.
pub fn below(bytes: &[u8], key: usize, mark_end: usize, in_string: bool) -> Option<Range<usize>> {
    lines(bytes, key, mark_end, in_string, |_, _| false)
}

/// The lines behind the one that ends at `end` or behind blanks there, which are more indented than the key that begins at
/// `key`, or belong to it all the same: that is asked of where their text begins, and whether it is below the key.
fn lines(
    bytes: &[u8],
    key: usize,
    end: usize,
    in_string: bool,
    belongs: impl Fn(usize, bool) -> bool,
) -> Option<Range<usize>> {
    let end = find(bytes, end, |byte| !matches!(byte, b' ' | b'\t' | b'\r'));
    let backslashes = newline_backslashes(bytes, end)?;
    // In a list, the key of an item's first field begins after the dash.
    let is_indent = |byte: &&u8| matches!(byte, b' ' | b'-');
    let indent = bytes[..key].iter().rev().take(MAX_INDENT).take_while(is_indent).count();
    let (mut held, mut next) = (None::<Range<usize>>, line(bytes, end, backslashes, in_string).1);
    while let Some(start) = next {
        let text = find(bytes, start, |byte| byte != b' ');
        let is_blank = newline_backslashes(bytes, text) == Some(backslashes) || bytes[text..].starts_with(b"\r\n");
        if !is_blank && text - start <= indent && !belongs(text, text - start == indent) {
            break;
        }
        let (end, after) = line(bytes, text, backslashes, in_string);
        if !is_blank {
            held = Some(held.map_or(text, |held| held.start)..end);
        }
        next = after;
    }
    held
}
