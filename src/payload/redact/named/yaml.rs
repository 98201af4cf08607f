//! What only YAML has: block scalars (`password: |` and the more indented lines after it), lists with dashes, and properties
//! before a value (`&anchor`, `!tag`).

use std::ops::Range;

use super::lines::{Break, break_at, line};
use super::value::find;

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
    let is_last = value == end || break_at(bytes, value).is_some();
    is_word.then_some(Properties { end, content: (!is_last && value < bytes.len()).then_some(value) })
}

/// What a key has in the lines below it.
#[derive(Debug, PartialEq)]
pub enum Below {
    /// A block scalar, a list with its dashes, or a mapping.
    Value(Range<usize>),
    /// The next key.
    Nothing,
}

/// A key with the mark behind it, in a document that may stand in a JSON string.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Where the key begins.
    pub start: usize,
    pub mark: usize,
    /// Whether all ends with the string in which it is.
    pub in_string: bool,
}

impl Key {
    /// What is below it, if its value is not in its own line. What is behind its mark and no blank begins at `value`, and
    /// at `header` what is behind properties, too.
    pub fn below(self, bytes: &[u8], value: usize, header: usize) -> Option<Below> {
        if matches!(bytes.get(header)?, b'|' | b'>') {
            let is_indicator = |byte: &&u8| matches!(byte, b'+' | b'-' | b'1'..=b'9');
            let indicators = bytes[header + 1..].iter().take(2).take_while(is_indicator).count();
            let newline = break_behind(bytes, header + 1 + indicators);
            if let Some(block) = newline.and_then(|newline| self.lines(bytes, newline, |_, _| false)) {
                return Some(Below::Value(block));
            }
        }
        let newline = break_behind(bytes, self.mark + 1)?;
        let is_item = |text: usize| bytes[text..].starts_with(b"- ");
        let held = self.lines(bytes, newline, |text, is_aligned| is_aligned && is_item(text));
        match held {
            Some(held) => (is_item(held.start) || is_key(bytes, held.start)).then_some(Below::Value(held)),
            None => is_key(bytes, value).then_some(Below::Nothing),
        }
    }

    /// The lines behind a line break that are more indented than the key, or belong to it all the same: that is asked of
    /// where their text begins, and whether it is below the key.
    fn lines(self, bytes: &[u8], newline: Break, belongs: impl Fn(usize, bool) -> bool) -> Option<Range<usize>> {
        // In a list, the key of an item's first field begins after the dash.
        let is_indent = |byte: &&u8| matches!(byte, b' ' | b'-' | b'\t');
        let indent = bytes[..self.start].iter().rev().take(MAX_INDENT).take_while(is_indent).count();
        let (mut held, mut next) = (None::<Range<usize>>, Some(newline.end));
        while let Some(start) = next {
            let text = find(bytes, start, |byte| !matches!(byte, b' ' | b'\t'));
            let is_empty = break_at(bytes, text).is_some_and(|it| it.backslashes == newline.backslashes);
            let is_blank = is_empty || (held.is_none() && bytes.get(text) == Some(&b'#'));
            if !is_blank && text - start <= indent && !belongs(text, text - start == indent) {
                break;
            }
            let (end, after) = line(bytes, text, newline.backslashes, self.in_string);
            if !is_blank {
                held = Some(held.map_or(text, |held| held.start)..end);
            }
            next = after;
        }
        held
    }
}

/// Whether a key of a mapping begins at `at`, with quotes or without.
fn is_key(bytes: &[u8], at: usize) -> bool {
    let end = match bytes.get(at) {
        Some(quote @ (b'"' | b'\'')) => find(bytes, at + 1, |byte| byte == *quote || byte < b' ') + 1,
        _ => find(bytes, at, |byte| !byte.is_ascii_alphanumeric() && !b"_.-/<".contains(&byte)),
    };
    let behind = bytes.get(end + 1).copied().unwrap_or(b' ');
    end > at && bytes.get(end) == Some(&b':') && matches!(behind, b' ' | b'\n' | b'\r' | b'\\')
}

/// The line break behind blanks at `at`.
fn break_behind(bytes: &[u8], at: usize) -> Option<Break> {
    break_at(bytes, find(bytes, at, |byte| !matches!(byte, b' ' | b'\t')))
}
