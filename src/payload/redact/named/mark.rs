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
    let behind = behind_escaped_blanks(bytes, behind);
    let behind = if bytes[at] == b':' { behind_markup(bytes, behind_bold(bytes, behind)) } else { behind };
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
        if bytes.get(at) != Some(&b'<') {
            break;
        }
        let near = &bytes[..bytes.len().min(at + MAX_TAG_BYTES)];
        let name = at + if near[at..].starts_with(b"</") { 2 } else { 1 };
        let name_end = find(near, name.min(near.len()), |byte| !byte.is_ascii_alphanumeric());
        let is_inline = near.get(name..name_end).is_some_and(|name| is_one_of(INLINE, name));
        let end = find(near, name_end, |byte| matches!(byte, b'<' | b'>'));
        if !is_inline || near.get(end) != Some(&b'>') {
            break;
        }
        at = colours::behind_blanks(bytes, end + 1);
    }
    at
}

/// The type of a value: `string(6) "x"` as PHP prints it, `(string) (len=6) "x"` and `[]string{"x"}` as Go does, and of a variable
/// (`: string = "x"`).
fn behind_type(bytes: &[u8], at: usize) -> usize {
    let is_type = |byte: u8| byte.is_ascii_alphanumeric() || b"_.*".contains(&byte);
    // Most values begin with a quote.
    if !bytes.get(at).is_some_and(|byte| is_type(*byte) || matches!(byte, b'(' | b'[')) {
        return at;
    }
    let behind = |at: usize, what: &[u8]| bytes.get(at..)?.starts_with(what).then_some(at + what.len());
    let number = |at: usize| find(bytes, at, |byte| !byte.is_ascii_digit());
    let of_php = || behind(number(behind(at, b"string(")?), b") ");
    let of_spew = || {
        let length = behind(find(bytes, behind(at, b"(")?, |byte| !is_type(byte)), b") (len=")?;
        behind(number(length), b") ")
    };
    let of_variable = || {
        let end = find(bytes, at, |byte| !is_type(byte));
        behind(end, b" = ").filter(|_| end > at)
    };
    let is_quoted = |at: &usize| matches!(bytes.get(find(bytes, *at, |byte| byte != b'\\')), Some(b'"' | b'\''));
    let of_go = || {
        let open = find(bytes, behind(at, b"[]")?, |byte| !is_type(byte));
        (bytes.get(open) == Some(&b'{')).then_some(open)
    };
    of_php().or_else(of_spew).or_else(of_variable).filter(is_quoted).or_else(of_go).unwrap_or(at)
}
