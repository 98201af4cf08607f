//! Marks between a name and its value: `:`, `=`, and those of more characters (`:=`, `::`, `=>`, `->`, ` == `).

use super::colours;
use super::element::is_one_of;
use super::lines::behind_blanks;
use super::value::find;

/// Where the name before the mark ends of which the first `:`, `=` or `>` is at `mark`.
pub fn name_end(bytes: &[u8], mark: usize) -> usize {
    // Of `->` the `-` is no part of the name.
    if bytes[mark] == b'>' { mark - 1 } else { mark }
}

/// Where the value behind the mark begins of which the first `:`, `=` or `>` is at `mark`: behind blanks, colours, and what
/// else no value begins with.
pub fn value_start(bytes: &[u8], mark: usize) -> usize {
    let is_comparison = bytes[..mark].ends_with(b" ") && bytes[mark..].starts_with(b"== ");
    let is_long = is_comparison || matches!(bytes[mark..], [b':', b'=' | b':', ..] | [b'=', b'>', ..]);
    let behind = behind_blanks(bytes, mark + 1 + usize::from(is_long));
    let behind = if bytes[mark] == b':' { behind_markup(bytes, behind_bold(bytes, behind)) } else { behind };
    behind_type(bytes, behind)
}

/// `**Password:** x`, in Markdown, and `*Password:* x`, in that of chats.
fn behind_bold(bytes: &[u8], at: usize) -> usize {
    let bold = [&b"**"[..], b"__", b"*", b"_"].into_iter().find(|it| bytes[at..].starts_with(it));
    let behind = bold.map(|it| at + it.len()).filter(|behind| bytes.get(*behind) == Some(&b' '));
    behind.map_or(at, |behind| colours::behind_blanks(bytes, behind))
}

/// Blanks that HTML does not break a line at.
fn behind_hard_blanks(bytes: &[u8], mut at: usize) -> usize {
    const HARD: [&[u8]; 3] = [b"&nbsp;", b"&#160;", "\u{a0}".as_bytes()];
    while let Some(hard) = HARD.into_iter().find(|it| bytes[at..].starts_with(it)) {
        at = colours::behind_blanks(bytes, at + hard.len());
    }
    at
}

/// `<b>Password:</b> x`, `Password:<br><code>x</code>`. Behind other elements there may be a field, and the text of the next one.
fn behind_markup(bytes: &[u8], mut at: usize) -> usize {
    const INLINE: &[&str] = &[
        "b", "big", "br", "code", "em", "font", "i", "kbd", "mark", "pre", "samp", "small", "span", "strong", "tt",
        "u", "var",
    ];
    const MAX_TAGS: usize = 4;
    const MAX_TAG_BYTES: usize = 512;
    for _ in 0..MAX_TAGS {
        at = behind_hard_blanks(bytes, at);
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
    behind_hard_blanks(bytes, at)
}

/// A part of what is printed before a value.
enum Part {
    Text(&'static [u8]),
    Type,
    Digits,
}

/// The types of values as programs print them, and what the values behind them begin with.
const TYPES: &[(&[Part], &[u8])] = &[
    // PHP's var_dump: `string(6) "x"`
    (&[Part::Text(b"string("), Part::Digits, Part::Text(b") ")], b"\"'"),
    // Go's spew: `(string) (len=6) "x"`
    (&[Part::Text(b"("), Part::Type, Part::Text(b") (len="), Part::Digits, Part::Text(b") ")], b"\"'"),
    // Go's `%#v` of a list: `[]string{"x"}`
    (&[Part::Text(b"[]"), Part::Type], b"{"),
    // of a variable, behind its name: `string = "x"`
    (&[Part::Type, Part::Text(b" = ")], b"\"'"),
];

/// The type of the value that begins at `at`.
fn behind_type(bytes: &[u8], at: usize) -> usize {
    let behind = |at: usize, part: &Part| {
        let end = match part {
            Part::Text(text) => return bytes.get(at..)?.starts_with(text).then_some(at + text.len()),
            Part::Type => find(bytes, at, |byte| !byte.is_ascii_alphanumeric() && !b"_.*".contains(&byte)),
            Part::Digits => find(bytes, at, |byte| !byte.is_ascii_digit()),
        };
        (end > at).then_some(end)
    };
    let value = |(parts, begins): &(&[Part], &[u8])| {
        let value = parts.iter().try_fold(at, behind)?;
        begins.contains(bytes.get(find(bytes, value, |byte| byte != b'\\'))?).then_some(value)
    };
    TYPES.iter().find_map(value).unwrap_or(at)
}
