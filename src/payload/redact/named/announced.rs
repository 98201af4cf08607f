//! Names that stand as values, and say what another value beside them is: `{"name": "api_key", "value": "…"}`,
//! `<param name="pin">…</param>`.

use std::ops::Range;

use memchr::{memchr2, memmem};

use super::super::followed::Guard;
use super::element::Element;
use super::value::{find, quoted_end};

/// How far a value may be from the name that says what it is.
pub const MAX_PAIR_BYTES: usize = 256;

/// A name that is a credential's, before the value that belongs to it.
pub struct Announced {
    pub by: Announcer,
    pub guard: Guard,
    /// Where the value has to begin before.
    until: usize,
}

impl Announced {
    pub fn new(by: Announcer, guard: Guard, at: usize) -> Self {
        Announced { by, guard, until: at + MAX_PAIR_BYTES }
    }

    /// Whether the value at `at` is near enough.
    pub fn reaches(&self, at: usize) -> bool {
        at < self.until
    }

    /// Whether the name stands behind `at`.
    pub fn is_behind(&self, at: usize) -> bool {
        self.until > at + MAX_PAIR_BYTES
    }
}

/// What the name stands behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Announcer {
    /// `name="api_key"`.
    Name,
    /// `id="api_key"`, which may stand beside a name, and may be of the label of a field.
    Id,
    /// `<th>Password</th><td>x</td>`, side by side.
    Heading,
    /// `type="password"`, the type of a field for passwords. Other types are those of tokens, and say nothing here.
    Type,
}

impl Announcer {
    pub fn of(name: &str) -> Option<Self> {
        const IDS: &[&str] = &["id", "field", "param", "parameter", "attribute", "header", "property"];
        let is = |other: &&str| name.eq_ignore_ascii_case(other);
        match () {
            () if ["name", "key"].iter().any(is) => Some(Announcer::Name),
            () if IDS.iter().any(is) => Some(Announcer::Id),
            () if is(&"type") => Some(Announcer::Type),
            () => None,
        }
    }

    /// Whether the name of something else behind it ends what was announced.
    pub fn ends(self, announced: Announcer) -> bool {
        self == Announcer::Name || (self == Announcer::Id && announced == Announcer::Id)
    }

    pub fn announces(self, guard: Guard) -> bool {
        self != Announcer::Type || guard == Guard::Password
    }
}

/// Whether what has this name is what a name beside it names.
pub fn is_value(name: &str) -> bool {
    const ENDING: &[u8] = b"value";
    let name = name.as_bytes();
    // `rejectedValue`
    let ends = name.len() >= ENDING.len() && name[name.len() - ENDING.len()..].eq_ignore_ascii_case(ENDING);
    ends || [&b"content"[..], b"val"].iter().any(|it| name.eq_ignore_ascii_case(it))
}

/// What the name of a credential that stands as a value belongs to.
pub enum Pair {
    /// A value before it.
    Before(Range<usize>, Guard),
    /// A value behind it, in its element.
    Behind,
    /// It may be a value of its own.
    None,
}

/// The quoted value in `floor..mark` that stands in the same element or object as the name behind `mark`.
pub fn value_before(bytes: &[u8], floor: usize, mark: usize) -> Option<Range<usize>> {
    let opens = |byte: &u8| matches!(byte, b'<' | b'>' | b'{' | b'}');
    let start = bytes[floor..mark].iter().rposition(opens).map_or(floor, |at| floor + at + 1);
    let names = [&b"value"[..], b"content"].into_iter();
    let at = names.filter_map(|name| Some(start + memmem::rfind(&bytes[start..mark], name)? + name.len())).max()?;
    let quote = find(bytes, at, |byte| !matches!(byte, b'\\' | b'"' | b':' | b'=' | b' '));
    let inside = if bytes.get(quote) == Some(&b'\'') { quote + 1 } else { quote };
    let (quote, between) = bytes[at..inside].split_last()?;
    let backslashes = between.iter().rev().take_while(|&&byte| byte == b'\\').count();
    let has_mark = between.iter().any(|byte| matches!(byte, b':' | b'='));
    let end = quoted_end(bytes, inside, *quote, backslashes);
    (has_mark && matches!(quote, b'"' | b'\'') && end < mark).then_some(inside..end)
}

/// Whether there is a value for the name that begins at `name`, of an attribute in the tag that begins in `floor..name`: a
/// text in the element, or a `value` beside it.
pub fn has_value_behind(bytes: &[u8], floor: usize, name: usize) -> bool {
    let Some(tag) = bytes[floor..name].iter().rposition(|byte| matches!(byte, b'<' | b'>')) else { return false };
    let tag = floor + tag;
    let element = &bytes[tag + 1..find(bytes, tag + 1, |byte| !byte.is_ascii_alphanumeric())];
    let near = &bytes[..bytes.len().min(name + MAX_PAIR_BYTES)];
    let name_end = find(near, name, |byte| matches!(byte, b'"' | b'\'' | b'<' | b'>') || byte.is_ascii_whitespace());
    let Some(end) = memchr2(b'<', b'>', &near[name_end..]).map(|end| name_end + end) else { return false };
    if bytes[tag] != b'<' || bytes[end] != b'>' {
        return false;
    }
    let attributes = &bytes[name_end..end];
    let has_value = [&b"value="[..], b"content="].iter().any(|it| memmem::find(attributes, it).is_some());
    let text = find(bytes, end + 1, |byte| !byte.is_ascii_whitespace());
    let is_empty =
        attributes.ends_with(b"/") || Element::of(element) == Element::Void || bytes[text..].starts_with(b"</");
    has_value || (!is_empty && text < bytes.len())
}
