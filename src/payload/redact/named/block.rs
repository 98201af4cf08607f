//! Block scalars of YAML: `password: |` and the more indented lines after it.

use std::ops::Range;

use super::value::{find, line, newline_backslashes};

/// The deepest indentation that is looked at.
const MAX_INDENT: usize = 256;

/// What the block holds whose header is at `header`, of the key that begins at `key`. Its lines may end as those of a
/// JSON string do, in which the whole document stands; they end with the string in which they are (`in_string`).
pub fn block(bytes: &[u8], key: usize, header: usize, in_string: bool) -> Option<Range<usize>> {
    if !matches!(bytes.get(header)?, b'|' | b'>') {
        return None;
    }
    let is_indicator = |byte: &&u8| matches!(byte, b'+' | b'-' | b'1'..=b'9');
    let indicators = bytes[header + 1..].iter().take(2).take_while(is_indicator).count();
    let end_of_header = find(bytes, header + 1 + indicators, |byte| !matches!(byte, b' ' | b'\t' | b'\r'));
    let backslashes = newline_backslashes(bytes, end_of_header)?;
    // In a list, the key of an item's first field begins after the dash.
    let is_indent = |byte: &&u8| matches!(byte, b' ' | b'-');
    let indent = bytes[..key].iter().rev().take(MAX_INDENT).take_while(is_indent).count();
    let (mut held, mut next) = (None::<Range<usize>>, line(bytes, end_of_header, backslashes, in_string).1);
    while let Some(start) = next {
        let text = find(bytes, start, |byte| byte != b' ');
        let is_blank = newline_backslashes(bytes, text) == Some(backslashes) || bytes[text..].starts_with(b"\r\n");
        if !is_blank && text - start <= indent {
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
