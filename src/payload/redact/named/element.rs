//! Elements of XML and HTML that hold the value of a credential: by their name, by what was announced before them
//! (`<param name="pin">x</param>`), or right behind their heading.

use std::ops::Range;

use memchr::memmem;

use super::super::followed::Guard;
use super::super::names::{MAX_NAME_BYTES, is_sensitive};
use super::announced::{Announced, Announcer, is_value};
use super::value::find;
use super::{Search, is_name};

/// What an element of HTML holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Element {
    /// Nothing.
    Void,
    /// The name of what the one behind it holds.
    Heading,
    /// What its heading names.
    Headed,
    /// A text for people to read, or other elements.
    Label,
    Other,
}

impl Element {
    pub fn of(name: &[u8]) -> Self {
        const KINDS: &[(Element, &[&str])] = &[
            (Element::Void, &["input", "meta", "link", "br", "img"]),
            (Element::Heading, &["th", "dt"]),
            (Element::Headed, &["td", "dd"]),
            (
                Element::Label,
                &[
                    "a", "body", "button", "caption", "fieldset", "form", "h1", "h2", "h3", "h4", "h5", "h6", "label",
                    "legend", "option", "script", "section", "select", "style", "summary", "table", "title", "ul",
                ],
            ),
        ];
        KINDS.iter().find(|(_, names)| is_one_of(names, name)).map_or(Element::Other, |(kind, _)| *kind)
    }
}

/// Whether the name of an element is in a list, whatever its case.
pub fn is_one_of(elements: &[&str], name: &[u8]) -> bool {
    elements.iter().any(|it| name.eq_ignore_ascii_case(it.as_bytes()))
}

impl Search<'_> {
    /// What the element holds whose start tag ends at `mark`, if it is a credential's.
    pub(super) fn element(&mut self, mark: usize) -> Option<(Range<usize>, Guard)> {
        let (text, bytes) = (self.text, self.text.as_bytes());
        let tag = self.tag.filter(|tag| *tag >= self.from)?;
        let name_end = tag
            + 1
            + bytes[tag + 1..mark].iter().take(MAX_NAME_BYTES).take_while(|&&it| is_name(it) || it == b':').count();
        let name = text.get(tag + 1..name_end)?;
        if name.is_empty() || bytes[mark - 1] == b'/' || is_in_attribute(bytes, name_end, mark) {
            return None;
        }
        let (local, start) = (name.rsplit(':').next().unwrap_or(name), mark + 1);
        let element = Element::of(local.as_bytes());
        let may_be_announced = |it: &&Announced| {
            // `<param name="pin">x`, and not what follows `<input name="pin">`.
            let by_its_tag = it.is_behind(tag) && element != Element::Void;
            let is_label = matches!(element, Element::Label | Element::Heading);
            let holds_value = it.by != Announcer::Id || (!is_label && is_one_word(bytes, start));
            let is_next = if it.by == Announcer::Heading {
                element == Element::Headed
            } else {
                is_value(local) || local == "string"
            };
            (by_its_tag && holds_value) || is_next
        };
        let announced = self.announced_at(mark).filter(may_be_announced).map(|it| it.guard);
        if announced.is_none() && Announcer::of(local) == Some(Announcer::Name) {
            self.announced = self.named_credential(start).map(|guard| Announced::new(Announcer::Name, guard, mark));
        }
        if element == Element::Heading
            && let Some(heading) = heading_of_next(text, start).filter(|it| is_sensitive(it.trim()))
        {
            self.announced = Some(Announced::new(Announcer::Heading, Guard::of(heading.trim()), mark));
        }
        let guard = announced.or_else(|| is_sensitive(local).then(|| Guard::of(local)))?;
        self.searches += 1;
        let content = find(bytes, start, |byte| !byte.is_ascii_whitespace());
        let is_text = !bytes[content..].starts_with(b"<");
        let text_end = if is_text { find(bytes, start, |byte| byte == b'<') } else { start };
        let end = if is_text && !bytes[text_end..].starts_with(b"<!") {
            text_end
        } else {
            // Other elements, CDATA or a comment: all up to the end tag, or, where a cut took that, to the text's end.
            memmem::find(&bytes[start..], format!("</{name}").as_bytes()).map_or(bytes.len(), |end| start + end)
        };
        if announced.is_some() {
            self.announced = None;
        }
        Some((start..end, guard))
    }
}

/// Whether the `>` at `mark` is in the value of an attribute, of a tag whose name ends at `name_end`.
fn is_in_attribute(bytes: &[u8], name_end: usize, mark: usize) -> bool {
    const MAX_TAG_BYTES: usize = 1024;
    if mark - name_end > MAX_TAG_BYTES {
        return false;
    }
    let open: Result<_, ()> = bytes[name_end..mark].iter().try_fold(None, |open, &byte| match open {
        None if byte == b'>' => Err(()),
        None if matches!(byte, b'"' | b'\'') => Ok(Some(byte)),
        Some(quote) if quote == byte => Ok(None),
        open => Ok(open),
    });
    let Ok(Some(quote)) = open else { return false };
    let near = &bytes[..bytes.len().min(mark + MAX_TAG_BYTES)];
    near.get(find(near, mark, |byte| byte == quote || byte == b'<')) == Some(&quote)
}

/// What a heading says that begins at `start`, without the elements in it, if what it names is right behind it.
fn heading_of_next(text: &str, start: usize) -> Option<String> {
    const MAX_BYTES: usize = 512;
    let mut rest = &text[start..text.floor_char_boundary(start + MAX_BYTES)];
    let mut heading = String::new();
    loop {
        let (before, tag) = rest.split_once('<')?;
        heading.push_str(before);
        let (tag, behind) = tag.split_once('>')?;
        rest = behind;
        if tag.strip_prefix('/').is_some_and(|name| Element::of(name.as_bytes()) == Element::Heading) {
            break;
        }
    }
    let next = rest.trim_start().strip_prefix('<')?.as_bytes();
    let next = &next[..find(next, 0, |byte| !byte.is_ascii_alphanumeric())];
    (Element::of(next) == Element::Headed).then_some(heading)
}

/// Whether the text of an element that begins at `start` is one word, as far as it goes.
fn is_one_word(bytes: &[u8], start: usize) -> bool {
    const MAX_WORD_BYTES: usize = 4096;
    let bytes = &bytes[..bytes.len().min(start + MAX_WORD_BYTES)];
    let word = find(bytes, start, |byte| !byte.is_ascii_whitespace());
    let end = find(bytes, word, |byte| byte == b'<' || byte.is_ascii_whitespace());
    let behind = find(bytes, end, |byte| !byte.is_ascii_whitespace());
    end > word && matches!(bytes.get(behind), None | Some(b'<'))
}
