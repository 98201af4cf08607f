//! Marks between a name and its value: `:`, `=`, and those of more characters (`:=`, `::`, `=>`, `->`, ` == `).

use super::announced::is_one_of;
use super::colours;
use super::value::find;

/// What stands on both sides of a mark.
pub struct Mark {
    pub name_end: usize,
    /// Where the value begins, behind blanks, colours, and what else no value begins with.
    pub value: usize,
}

/// The mark of which the first `:`, `=` or `>` is at `at`.
pub fn mark_at(bytes: &[u8], at: usize) -> Mark {
    let is_comparison = bytes[..at].ends_with(b" ") && bytes[at..].starts_with(b"== ");
    let is_long = is_comparison || matches!(bytes[at..], [b':', b'=' | b':', ..] | [b'=', b'>', ..]);
    // Of `->` the `-` is no part of the name.
    let name_end = if bytes[at] == b'>' { at - 1 } else { at };
    let behind = colours::behind_blanks(bytes, at + 1 + usize::from(is_long));
    let behind = match bytes[at] {
        b':' => behind_markup(bytes, behind_bold(bytes, behind_escaped_blanks(bytes, behind))),
        _ => behind,
    };
    Mark { name_end, value: behind_type(bytes, behind) }
}

/// Line breaks and tabs as JSON writes them, in however many strings.
fn behind_escaped_blanks(bytes: &[u8], mut at: usize) -> usize {
    const MAX_BLANKS: usize = 8;
    for _ in 0..MAX_BLANKS {
        let run = find(bytes, at, |byte| byte != b'\\') - at;
        if !run.is_power_of_two() || !matches!(bytes.get(at + run), Some(b'n' | b'r' | b't')) {
            break;
        }
        at = colours::behind_blanks(bytes, at + run + 1);
    }
    at
}

/// `**Password:** x`, in Markdown.
fn behind_bold(bytes: &[u8], at: usize) -> usize {
    if bytes[at..].starts_with(b"** ") { colours::behind_blanks(bytes, at + 2) } else { at }
}

/// `<b>Password:</b> x`, `Password:<br><code>x</code>`. Behind other elements there may be a field, and the text of the next one.
fn behind_markup(bytes: &[u8], mut at: usize) -> usize {
    const INLINE: &[&str] = &["b", "br", "code", "em", "font", "i", "span", "strong", "tt", "u"];
    const MAX_TAGS: usize = 4;
    const MAX_TAG_BYTES: usize = 64;
    for _ in 0..MAX_TAGS {
        let near = &bytes[..bytes.len().min(at + MAX_TAG_BYTES)];
        let name = at + if near[at..].starts_with(b"</") { 2 } else { 1 };
        let name_end = find(near, name.min(near.len()), |byte| !byte.is_ascii_alphanumeric());
        let is_inline = near.get(name..name_end).is_some_and(|name| is_one_of(INLINE, name));
        let end = find(near, name_end, |byte| matches!(byte, b'<' | b'>'));
        if near.get(at) != Some(&b'<') || !is_inline || near.get(end) != Some(&b'>') {
            break;
        }
        at = colours::behind_blanks(bytes, end + 1);
    }
    at
}

/// `string(6) "x"`, as PHP's `var_dump` prints texts.
fn behind_type(bytes: &[u8], at: usize) -> usize {
    const TYPE: &[u8] = b"string(";
    if !bytes[at..].starts_with(TYPE) {
        return at;
    }
    let digits = find(bytes, at + TYPE.len(), |byte| !byte.is_ascii_digit());
    let quote = find(bytes, (digits + 2).min(bytes.len()), |byte| byte != b'\\');
    if bytes[digits..].starts_with(b") ") && bytes.get(quote) == Some(&b'"') { digits + 2 } else { at }
}
