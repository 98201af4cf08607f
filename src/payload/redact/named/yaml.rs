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

/// Lines without a text of their own that have been looked at: those of one search are often those of the next.
#[derive(Debug, Default)]
pub struct Blanks {
    lines: Range<usize>,
    /// Where the line behind them begins, if there is one.
    next: Option<usize>,
    /// What ends a line, and whether a string does.
    ends: (usize, bool),
}

impl Key {
    /// What is below it, if its value is not in its own line. What is behind its mark and no blank begins at `value`, and
    /// at `header` what is behind properties, too.
    pub fn below(self, bytes: &[u8], value: usize, header: usize, blanks: &mut Blanks) -> Option<Below> {
        if matches!(bytes.get(header)?, b'|' | b'>') {
            let is_indicator = |byte: &&u8| matches!(byte, b'+' | b'-' | b'1'..=b'9');
            let indicators = bytes[header + 1..].iter().take(2).take_while(is_indicator).count();
            let newline = break_behind(bytes, header + 1 + indicators);
            if let Some(newline) = newline
                && let Some(first) = self.first(bytes, newline, blanks, |_, _| false)
            {
                return Some(Below::Value(self.lines(bytes, first, newline, |_, _| false)));
            }
        }
        let newline = break_behind(bytes, self.mark + 1)?;
        let is_item = |text: usize| bytes[text..].starts_with(b"- ");
        let belongs = |text: usize, is_aligned: bool| is_aligned && is_item(text);
        match self.first(bytes, newline, blanks, belongs) {
            Some(first) if is_item(first) || is_key(bytes, first) => {
                Some(Below::Value(self.lines(bytes, first, newline, belongs)))
            }
            Some(_) => None,
            None => is_key(bytes, value).then_some(Below::Nothing),
        }
    }

    /// Where the text begins of the first line behind a line break that has one and is no comment, if it is more indented than
    /// the key, or belongs to it all the same: that is asked of where the text begins, and whether it is below the key.
    fn first(
        self,
        bytes: &[u8],
        newline: Break,
        blanks: &mut Blanks,
        belongs: impl Fn(usize, bool) -> bool,
    ) -> Option<usize> {
        let ends = (newline.backslashes, self.in_string);
        let mut next = Some(newline.end);
        while let Some(start) = next {
            if blanks.ends == ends && blanks.lines.contains(&start) {
                next = blanks.next;
                continue;
            }
            let text = text_of(bytes, start);
            let (end, after) = line(bytes, text, newline.backslashes, self.in_string);
            if end > text && bytes[text] != b'#' {
                return self.is_below(bytes, start, text, belongs).then_some(text);
            }
            let from = if blanks.ends == ends && blanks.next == Some(start) { blanks.lines.start } else { start };
            *blanks = Blanks { lines: from..after.unwrap_or(end.max(start + 1)), next: after, ends };
            next = after;
        }
        None
    }

    /// From the text of the first line on, the lines that are below the key as [`Key::first`] has it.
    fn lines(self, bytes: &[u8], first: usize, newline: Break, belongs: impl Fn(usize, bool) -> bool) -> Range<usize> {
        let (mut held, mut next) = line(bytes, first, newline.backslashes, self.in_string);
        while let Some(start) = next {
            let text = text_of(bytes, start);
            let (end, after) = line(bytes, text, newline.backslashes, self.in_string);
            if end > text {
                if !self.is_below(bytes, start, text, &belongs) {
                    break;
                }
                held = end;
            }
            next = after;
        }
        first..held
    }

    /// Whether the line at `start`, whose text begins at `text`, belongs to the key.
    fn is_below(self, bytes: &[u8], start: usize, text: usize, belongs: impl Fn(usize, bool) -> bool) -> bool {
        // In a list, the key of an item's first field begins after the dash.
        let is_indent = |byte: &&u8| matches!(byte, b' ' | b'-' | b'\t');
        let indent = bytes[..self.start].iter().rev().take(MAX_INDENT).take_while(is_indent).count();
        text - start > indent || belongs(text, text - start == indent)
    }
}

/// Where the text of the line at `start` begins.
fn text_of(bytes: &[u8], start: usize) -> usize {
    find(bytes, start, |byte| !matches!(byte, b' ' | b'\t'))
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
