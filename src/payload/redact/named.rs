//! Finds the values of credentials by their names, in texts of any kind: JSON, nested JSON, forms, URLs, XML, log lines,
//! and all of them cut short.
//!
//! It does not parse, because what is cut or malformed holds the same secrets. It looks at each `:`, `=` and `>` for
//! the name before it, and at each `--` for the name after it, and when that is a credential's, takes the value after it.
//! Quotes inside quotes are told apart by their backslashes: at nesting depth k a quote has 2^k − 1 of them. One pass,
//! linear in the text.

mod announced;
mod colours;
mod mark;
mod value;
mod yaml;

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr3, memmem, memrchr};

use self::announced::{
    Announced, Announcer, MAX_PAIR_BYTES, has_value_behind, is_headed, is_heading, is_label, is_value, is_void,
    value_before,
};
use self::mark::{Mark, mark_at};
pub(super) use self::value::ends_bare;
use self::value::{
    bare_end, behind_slashes, bracketed_end, find, is_at_line_start, line_end, member_end, next_name, parameters_end,
    printed_end, quoted_end, text_in, user_info, word_end,
};
use self::yaml::Properties;
use super::budget::{Budget, Stop};
use super::decoded::plain;
use super::detect::pem;
use super::edit::Nesting;
use super::followed::Guard;
use super::names::{MAX_NAME_BYTES, is_sensitive};
use super::prose::{AFTER_FLAG, is_one_of};

/// The quotes around a text of several lines in Python and TOML.
const TRIPLES: [&[u8; 3]; 2] = [b"\"\"\"", b"'''"];

/// A credential's value.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    pub range: Range<usize>,
    /// What a placeholder needs around it: quotes, where the value had none but its name has.
    pub quote: String,
    /// What its name says of it.
    pub guard: Guard,
}

/// All values that follow a credential's name, in order and apart.
pub(super) fn named(text: &str, budget: &mut Budget) -> Result<Vec<Found>, Stop> {
    let bytes = text.as_bytes();
    let mut search =
        Search { text, from: 0, tag: None, tags_until: 0, announced: None, searches: 0, nesting: Nesting::new(text) };
    let (mut found, mut spent) = (Vec::new(), 0);
    let dashes = memmem::Finder::new("--");
    let mark_from = |at: usize| memchr3(b':', b'=', b'>', &bytes[at..]).map(|next| at + next);
    let flag_from = |at: usize| dashes.find(&bytes[at..]).map(|next| at + next);
    let (mut mark, mut flag) = (mark_from(0), flag_from(0));
    while let Some(here) = mark.into_iter().chain(flag).min() {
        if here - spent > 4096 {
            budget.spend(here - spent)?;
            spent = here;
        }
        let (value, mut at) =
            if Some(here) == flag { (search.flag_at(here), here + 2) } else { (search.value_at(here), here + 1) };
        budget.spend_searches(std::mem::take(&mut search.searches))?;
        if let Some(value) = value.filter(|value| !value.range.is_empty()) {
            at = value.range.end.max(at);
            search.from = value.range.end;
            found.push(value);
        }
        // What has been looked for and lies ahead is not looked for again.
        mark = if mark.is_some_and(|mark| mark < at) { mark_from(at) } else { mark };
        flag = if flag.is_some_and(|flag| flag < at) { flag_from(at) } else { flag };
    }
    budget.spend(bytes.len() - spent)?;
    Ok(found)
}

/// What is known on the way through a text.
struct Search<'t> {
    text: &'t str,
    /// Where the last value ended; names begin after it.
    from: usize,
    /// The last `<` of those up to `tags_until`, which have been looked for.
    tag: Option<usize>,
    tags_until: usize,
    announced: Option<Announced>,
    /// How often the end of a value was searched for.
    searches: usize,
    nesting: Nesting<'t>,
}

struct Name<'t> {
    text: &'t str,
    /// Where it begins, with its quote.
    start: usize,
    quoted: bool,
    backslashes: usize,
}

impl<'t> Search<'t> {
    /// The value after the mark at `mark`, if the name before it says so.
    fn value_at(&mut self, mark: usize) -> Option<Found> {
        let bytes = self.text.as_bytes();
        if let Some(start) = behind_slashes(bytes, mark) {
            return user_info(self.text, start).map(|range| unquoted(range, Guard::UserInfo));
        }
        // `->` is a mark as `=>` is one.
        if bytes[mark] == b'>' && !(mark > self.from && bytes[mark - 1] == b'-') {
            let tag = memrchr(b'<', &bytes[self.tags_until..mark]).map(|tag| self.tags_until + tag);
            (self.tag, self.tags_until) = (tag.or(self.tag), mark);
            // An element does not reach out of the JSON string that it is in.
            let (range, guard) = self.element(mark)?;
            return self.nesting.clip(range).map(|range| unquoted(range, guard));
        }
        let Mark { name_end, value: start } = mark_at(bytes, mark);
        let name = name_before(self.text, self.from, name_end)?;
        let plain_name = plain_name(name.text);
        let local = last_part(&plain_name);
        let announced = self.announced_at(mark).filter(|_| is_value(local)).map(|it| it.guard);
        if let Some(announcer) = Announcer::of(local) {
            let named = self.named_credential(start).filter(|guard| announcer.announces(*guard));
            let floor = self.from.max(mark.saturating_sub(MAX_PAIR_BYTES));
            let before = named.and_then(|guard| Some(unquoted(value_before(bytes, floor, mark)?, guard)));
            match named.filter(|_| before.is_none()) {
                Some(guard) => self.announced = Some(Announced::new(announcer, guard, mark)),
                None => self.announced = self.announced.take().filter(|it| !announcer.ends(it.by)),
            }
            // `<entry key="password">x</entry>`: it is the name of a value, and none itself.
            if before.is_some() || (named.is_some() && has_value_behind(bytes, floor, inside_quotes(bytes, start))) {
                return before;
            }
        }
        let guard = announced.or_else(|| is_sensitive(&plain_name).then(|| Guard::of(&plain_name)))?;
        let may_have = bytes[mark] == b':' && start > mark + 1;
        let properties = if may_have { yaml::properties(bytes, start) } else { None };
        let content = properties.and_then(|it| it.content).unwrap_or(start);
        if bytes[mark] == b':' {
            let in_string = self.nesting.is_in_string(mark);
            let block = yaml::block(bytes, name.start, content, in_string);
            let held = block.or_else(|| match bytes[start..].starts_with(b"- ") {
                true => yaml::list(bytes, name.start, mark + 1, in_string),
                false => None,
            });
            if let Some(range) = held {
                return self.nesting.clip(range).map(|range| unquoted(range, guard));
            }
        }
        if bytes[mark] == b':'
            && let Some(key) = yaml::key_below(bytes, mark + 1, start)
        {
            // What is below it is a credential's as a whole, unless its names say more.
            let in_string = self.nesting.is_in_string(mark);
            let below = yaml::below(bytes, name.start, mark + 1, in_string);
            let range = below.filter(|_| !is_sensitive(&self.text[key]))?;
            return self.nesting.clip(range).map(|range| unquoted(range, guard));
        }
        let value = self.value(content, &name, &plain_name);
        let value = match properties {
            // Which of the two is the password cannot be told.
            Some(Properties { end, .. }) => unquoted(start..value.map_or(end, |it| it.range.end.max(end)), guard),
            None => Found { guard, ..value? },
        };
        // The quote after a bare name may be the end of the JSON string that the name is in; so may the value's end.
        let range = if name.quoted { value.range } else { self.nesting.clip(value.range)? };
        Some(match text_in(bytes, &range) {
            Some(range) => unquoted(range, guard),
            None => Found { range, ..value },
        })
    }

    /// What the value at `mark` is, where it may be one that was announced.
    fn announced_at(&self, mark: usize) -> Option<&Announced> {
        self.announced.as_ref().filter(|it| it.reaches(mark))
    }

    /// The value after the flag at `at`, on a command line: `--password X`.
    fn flag_at(&mut self, at: usize) -> Option<Found> {
        let (text, bytes) = (self.text, self.text.as_bytes());
        let begins_word = (at == 0 || !is_name(bytes[at - 1])) && bytes.get(at + 2) != Some(&b'-');
        let end = at + 2 + bytes[at + 2..].iter().take(MAX_NAME_BYTES).take_while(|&&byte| is_name(byte)).count();
        let end = text.floor_char_boundary(end);
        let name = Name { text: &text[at + 2..end], start: at, quoted: false, backslashes: 0 };
        if !begins_word || !matches!(bytes.get(end), Some(b' ' | b'\t')) || !is_sensitive(name.text) {
            return None;
        }
        let start = find(bytes, end, |byte| !matches!(byte, b' ' | b'\t'));
        // It is one word, whatever the name.
        let Found { range, .. } = self.value(start, &name, "").filter(|_| !bytes[start..].starts_with(b"--"))?;
        if is_one_of(AFTER_FLAG, text[start..range.end].trim_end_matches('.')) {
            None
        } else {
            self.nesting.clip(range).map(|range| unquoted(range, Guard::of(name.text)))
        }
    }

    /// The value from `start` on, of a credential called `name`.
    fn value(&mut self, start: usize, name: &Name<'_>, plain_name: &str) -> Option<Found> {
        let (text, bytes) = (self.text, self.text.as_bytes());
        self.searches += 1;
        let backslashes = find(bytes, start, |byte| byte != b'\\') - start;
        let quote = || format!("{}\"", "\\".repeat(name.backslashes));
        if let Some(key) = private_key(bytes, start).filter(|_| !name.quoted) {
            return Some(unquoted(key, Guard::Token));
        }
        match bytes.get(start + backslashes)? {
            b'"' | b'\'' => {
                let inside = start + backslashes + 1;
                let triple = TRIPLES.into_iter().find(|triple| bytes[inside - 1..].starts_with(*triple));
                if let Some(triple) = triple.filter(|_| backslashes == 0) {
                    let inside = inside - 1 + triple.len();
                    let end = memmem::find(&bytes[inside..], triple).map_or(bytes.len(), |end| inside + end);
                    return Some(unquoted(inside..end, Guard::Token));
                }
                let mut end = quoted_end(bytes, inside, bytes[inside - 1], backslashes);
                // `'it''s'`, in YAML and SQL.
                while backslashes == 0 && end > inside && bytes[end..].starts_with(b"''") {
                    end = quoted_end(bytes, end + 2, b'\'', 0);
                }
                Some(unquoted(inside..end, Guard::Token))
            }
            b'{' | b'[' if name.quoted => Some(Found {
                range: start..bracketed_end(bytes, start, name.backslashes),
                quote: quote(),
                guard: Guard::Token,
            }),
            _ => {
                let is_authorization = plain_name.to_ascii_lowercase().ends_with("authorization");
                let end = if name.quoted {
                    member_end(bytes, start)
                } else if is_sensitive_line(plain_name) {
                    line_end(bytes, start)
                } else if is_authorization && let Some(end) = parameters_end(bytes, start) {
                    end
                } else {
                    bare_end(text, start, is_authorization)
                };
                let end = printed_end(bytes, start, end).unwrap_or(end);
                if !name.quoted && next_name(text, start..end).is_some_and(|name| is_sensitive(&self::plain_name(name)))
                {
                    return None;
                }
                let is_first = end > start && is_at_line_start(bytes, name.start);
                let end = if is_first { word_end(bytes, end) } else { end };
                let is_constant = name.quoted && matches!(&text[start..end], "null" | "true" | "false" | "");
                let quote = if name.quoted { quote() } else { String::new() };
                (!is_constant).then_some(Found { range: start..end, quote, guard: Guard::Token })
            }
        }
    }

    /// What the value at `start`, of something called `name`, says, if it is a credential's name.
    fn named_credential(&self, start: usize) -> Option<Guard> {
        let bytes = self.text.as_bytes();
        let inside = inside_quotes(bytes, start);
        let ends = |byte: u8| b"\\\"'<>,;&".contains(&byte) || byte.is_ascii_whitespace();
        let end = inside + bytes[inside..].iter().take(MAX_NAME_BYTES).take_while(|&&byte| !ends(byte)).count();
        let name = plain_name(self.text.get(inside..end)?.trim_end_matches(':'));
        is_sensitive(&name).then(|| Guard::of(&name))
    }

    /// What the element holds whose start tag ends at `mark`, if it is a credential's.
    fn element(&mut self, mark: usize) -> Option<(Range<usize>, Guard)> {
        let (text, bytes) = (self.text, self.text.as_bytes());
        let tag = self.tag.filter(|tag| *tag >= self.from)?;
        let name_end = tag
            + 1
            + bytes[tag + 1..mark].iter().take(MAX_NAME_BYTES).take_while(|&&it| is_name(it) || it == b':').count();
        let name = text.get(tag + 1..name_end)?;
        let is_start = !name.is_empty() && bytes[mark - 1] != b'/';
        let (local, start) = (name.rsplit(':').next().unwrap_or(name), mark + 1);
        let may_be_announced = |it: &&Announced| {
            // `<param name="pin">x`, and not what follows `<input name="pin">`.
            let by_its_tag = it.is_behind(tag) && !is_void(local.as_bytes());
            let holds_value = it.by != Announcer::Id || (!is_label(local.as_bytes()) && is_one_word(bytes, start));
            let is_next = if it.by == Announcer::Heading {
                is_headed(local.as_bytes())
            } else {
                is_value(local) || local == "string"
            };
            (by_its_tag && holds_value) || is_next
        };
        let announced = self.announced_at(mark).filter(may_be_announced).map(|it| it.guard);
        if is_start && announced.is_none() && Announcer::of(local) == Some(Announcer::Name) {
            self.announced = self.named_credential(start).map(|guard| Announced::new(Announcer::Name, guard, mark));
        }
        if is_start && is_heading(local.as_bytes(), &bytes[start..]) {
            let announced = self.named_credential(start).map(|guard| Announced::new(Announcer::Heading, guard, mark));
            self.announced = announced.or(self.announced.take());
        }
        if !is_start {
            return None;
        }
        let guard = announced.or_else(|| is_sensitive(local).then(|| Guard::of(local)))?;
        self.searches += 1;
        let rest = &bytes[start..];
        let content = find(bytes, start, |byte| !byte.is_ascii_whitespace());
        let is_text = !bytes[content..].starts_with(b"<");
        let text_end = if is_text { find(bytes, start, |byte| byte == b'<') } else { start };
        let end = if is_text && !bytes[text_end..].starts_with(b"<!") {
            text_end
        } else {
            // Other elements, CDATA or a comment: all up to the end tag, or, where a cut took that, to the text's end.
            memmem::find(rest, format!("</{name}").as_bytes()).map_or(bytes.len(), |end| start + end)
        };
        if announced.is_some() {
            self.announced = None;
        }
        Some((start..end, guard))
    }
}

/// Of `fields[0][name]` or `field.name`, the `name`.
fn last_part(name: &str) -> &str {
    name.rsplit(['[', '.']).next().map_or(name, |part| part.trim_end_matches(']'))
}

/// Behind the quotes that begin at `at`.
fn inside_quotes(bytes: &[u8], at: usize) -> usize {
    find(bytes, at, |byte| !matches!(byte, b'\\' | b'"' | b'\''))
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

fn unquoted(range: Range<usize>, guard: Guard) -> Found {
    Found { range, quote: String::new(), guard }
}

/// The text of a private key whose first line begins at `start`.
fn private_key(bytes: &[u8], start: usize) -> Option<Range<usize>> {
    bytes[start..].starts_with(pem::DASHES).then(|| pem::at(bytes, start + pem::DASHES.len())).flatten()
}

/// Names whose bare value is the rest of the line: `Cookie: a=1; b=2`.
fn is_sensitive_line(name: &str) -> bool {
    let name = name.as_bytes();
    [&b"cookie"[..], b"cookies"]
        .iter()
        .any(|line| name.len() >= line.len() && name[name.len() - line.len()..].eq_ignore_ascii_case(line))
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || !byte.is_ascii() || matches!(byte, b'_' | b'-' | b'.' | b'%' | b'[' | b']')
}

/// The name that ends at `mark`: quoted, or a run of name characters.
fn name_before(text: &str, from: usize, mark: usize) -> Option<Name<'_>> {
    let bytes = text.as_bytes();
    let floor = from.max(mark.saturating_sub(MAX_NAME_BYTES));
    let mut end = colours::before(bytes, floor, mark);
    while end > floor && bytes[end - 1].is_ascii_whitespace() {
        end = colours::before(bytes, floor, end - 1);
    }
    // `` `password`: `x` ``
    end -= usize::from(bytes[floor..end].ends_with(b"`"));
    // `config["password"] = x`: what follows is an expression, and no member of JSON.
    let is_index = bytes[floor..end].ends_with(b"\"]") || bytes[floor..end].ends_with(b"']");
    end -= usize::from(is_index);
    if end > floor && matches!(bytes[end - 1], b'"' | b'\'') {
        let quote = bytes[end - 1];
        let mut inside_end = end - 1;
        while inside_end > floor && bytes[inside_end - 1] == b'\\' {
            inside_end -= 1;
        }
        let start = bytes[floor..inside_end].iter().rposition(|&byte| byte == quote);
        // Of a longer name, the end tells what it is.
        let inside = start.map_or_else(|| text.ceil_char_boundary(floor), |it| floor + it + 1);
        let backslashes = end - 1 - inside_end;
        let start = inside.saturating_sub(1);
        return Some(Name {
            text: text.get(inside..inside_end)?,
            start,
            quoted: quote == b'"' && !is_index,
            backslashes,
        });
    }
    let start = bytes[floor..end].iter().rposition(|&byte| !is_name(byte)).map_or(floor, |it| floor + it + 1);
    let start = start + colours::in_name(&bytes[start..end], start.checked_sub(1).map(|before| bytes[before]));
    let start = text.ceil_char_boundary(start);
    (start < end).then(|| Name { text: &text[start..end], start, quoted: false, backslashes: 0 })
}

/// A name without percent-encoding and `\u` escapes.
fn plain_name(name: &str) -> Cow<'_, str> {
    if name.contains(['%', '\\']) { plain(name) } else { Cow::Borrowed(name) }
}

#[cfg(test)]
mod tests;
