//! Finds the values of credentials by their names, in texts of any kind: JSON, nested JSON, forms, URLs, XML, log lines,
//! and all of them cut short.
//!
//! It does not parse, because what is cut or malformed holds the same secrets. It looks at each `:`, `=` and `>` for
//! the name before it, and at each `--` for the name after it, and when that is a credential's, takes the value after it.
//! Quotes inside quotes are told apart by their backslashes: at nesting depth k a quote has 2^k − 1 of them. One pass,
//! linear in the text.

mod block;
mod colours;
mod value;

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr3, memmem, memrchr};

use self::block::block;
pub(super) use self::value::ends_bare;
use self::value::{
    bare_end, bracketed_end, find, has_parameters, line_end, member_end, next_name, parameters_end, printed_end,
    quoted_end, text_in, user_info,
};
use super::budget::{Budget, Stop};
use super::decoded::plain;
use super::detect::pem;
use super::edit::Nesting;
use super::followed::Guard;
use super::names::{MAX_NAME_BYTES, is_sensitive};
use super::prose::{AFTER_FLAG, is_one_of};

/// How far a `value` may be from the `name` that says what it is: `{"name": "api_key", "value": "…"}`.
const MAX_PAIR_BYTES: usize = 256;

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

/// A `name` that is a credential's, before the `value` that belongs to it.
struct Announced {
    /// Where the value has to begin before.
    until: usize,
    guard: Guard,
}

/// How a name beside a `value` says what that is.
#[derive(Clone, Copy, PartialEq)]
enum Announcer {
    /// `name="api_key"`.
    Name,
    /// `type="password"`, the type of a field for passwords. Other types are those of tokens, and say nothing here.
    Type,
}

impl Announcer {
    fn of(name: &str) -> Option<Self> {
        let is = |other| name.eq_ignore_ascii_case(other);
        match () {
            () if is("name") || is("key") => Some(Announcer::Name),
            () if is("type") => Some(Announcer::Type),
            () => None,
        }
    }

    fn announces(self, guard: Guard) -> bool {
        self == Announcer::Name || guard == Guard::Password
    }
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
        if bytes[mark..].starts_with(b"://") {
            return user_info(self.text, mark + 3).map(|range| unquoted(range, Guard::UserInfo));
        }
        // `->` is a mark as `=>` is one.
        if bytes[mark] == b'>' && !(mark > self.from && bytes[mark - 1] == b'-') {
            let tag = memrchr(b'<', &bytes[self.tags_until..mark]).map(|tag| self.tags_until + tag);
            (self.tag, self.tags_until) = (tag.or(self.tag), mark);
            // An element does not reach out of the JSON string that it is in.
            let (range, guard) = self.element(mark)?;
            return self.nesting.clip(range).map(|range| unquoted(range, guard));
        }
        let name_ends = if bytes[mark] == b'>' { mark - 1 } else { mark };
        let name = name_before(self.text, self.from, name_ends)?;
        let plain_name = plain_name(name.text);
        // `:=` and `=>` are one mark.
        let is_long = matches!(bytes[mark..], [b':', b'=' | b':', ..] | [b'=', b'>', ..]) || is_comparison(bytes, mark);
        let start = colours::behind_blanks(bytes, mark + 1 + usize::from(is_long));
        // `**Password:** x`
        let is_bold = bytes[start..].starts_with(b"** ");
        let start = if is_bold { colours::behind_blanks(bytes, start + 2) } else { start };
        let announced = self.announced_at(mark).filter(|_| is_value(&plain_name));
        if let Some(announcer) = Announcer::of(&plain_name) {
            let named = self.named_credential(start).filter(|guard| announcer.announces(*guard));
            let before = named.and_then(|guard| self.value_before(mark).map(|range| unquoted(range, guard)));
            match named.filter(|_| before.is_none()) {
                Some(guard) => self.announce(mark, guard),
                // Another name ends what was announced, and another type does not.
                None if announcer == Announcer::Name => self.announced = None,
                None => {}
            }
            // `<entry key="password">x</entry>`: it is the name, whatever else a key may be.
            if before.is_some() || (named.is_some() && is_in_tag(bytes, self.from, mark)) {
                return before;
            }
        }
        let guard = announced.or_else(|| is_sensitive(&plain_name).then(|| Guard::of(&plain_name)))?;
        if bytes[mark] == b':' && matches!(bytes.get(start), Some(b'|' | b'>')) {
            let in_string = self.nesting.is_in_string(mark);
            if let Some(range) = block(bytes, name.start, start, in_string) {
                return self.nesting.clip(range).map(|range| unquoted(range, guard));
            }
        }
        let value = Found { guard, ..self.value(start, &name, &plain_name)? };
        // The quote after a bare name may be the end of the JSON string that the name is in; so may the value's end.
        let range = if name.quoted { value.range } else { self.nesting.clip(value.range)? };
        Some(match text_in(bytes, &range) {
            Some(range) => unquoted(range, guard),
            None => Found { range, ..value },
        })
    }

    /// What the value at `mark` is, where it may be one that was announced.
    fn announced_at(&self, mark: usize) -> Option<Guard> {
        self.announced.as_ref().filter(|it| mark < it.until).map(|it| it.guard)
    }

    fn announce(&mut self, mark: usize, guard: Guard) {
        self.announced = Some(Announced { until: mark + MAX_PAIR_BYTES, guard });
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
        match bytes.get(start + backslashes)? {
            b'"' | b'\'' => {
                let inside = start + backslashes + 1;
                let triple = TRIPLES.into_iter().find(|triple| bytes[inside - 1..].starts_with(*triple));
                if let Some(triple) = triple.filter(|_| backslashes == 0) {
                    let inside = inside - 1 + triple.len();
                    let end = memmem::find(&bytes[inside..], triple).map_or(bytes.len(), |end| inside + end);
                    return Some(unquoted(inside..end, Guard::Token));
                }
                let end = quoted_end(bytes, inside, bytes[inside - 1], backslashes);
                Some(unquoted(inside..end, Guard::Token))
            }
            b'{' | b'[' if name.quoted => Some(Found {
                range: start..bracketed_end(bytes, start, name.backslashes),
                quote: quote(),
                guard: Guard::Token,
            }),
            b'-' if !name.quoted && private_key(bytes, start).is_some() => {
                private_key(bytes, start).map(|range| unquoted(range, Guard::Token))
            }
            _ => {
                let is_authorization = plain_name.to_ascii_lowercase().ends_with("authorization");
                let end = if name.quoted {
                    member_end(bytes, start)
                } else if is_sensitive_line(plain_name) {
                    line_end(bytes, start)
                } else if is_authorization && has_parameters(bytes, start) {
                    parameters_end(bytes, start)
                } else {
                    bare_end(text, start, is_authorization)
                };
                let end = printed_end(bytes, start, end).unwrap_or(end);
                if !name.quoted && next_name(text, start..end).is_some_and(|name| is_sensitive(&self::plain_name(name)))
                {
                    return None;
                }
                let is_constant = name.quoted && matches!(&text[start..end], "null" | "true" | "false" | "");
                let quote = if name.quoted { quote() } else { String::new() };
                (!is_constant).then_some(Found { range: start..end, quote, guard: Guard::Token })
            }
        }
    }

    /// The quoted `value` before the `name` at `mark`, in the same element or object.
    fn value_before(&self, mark: usize) -> Option<Range<usize>> {
        let bytes = self.text.as_bytes();
        let floor = self.from.max(mark.saturating_sub(MAX_PAIR_BYTES));
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

    /// What the value at `start`, of something called `name`, says, if it is a credential's name.
    fn named_credential(&self, start: usize) -> Option<Guard> {
        let bytes = self.text.as_bytes();
        let inside = find(bytes, start, |byte| !matches!(byte, b'\\' | b'"' | b'\''));
        let ends = |byte: u8| matches!(byte, b'\\' | b'"' | b'\'' | b'>' | b',' | b'<') || byte.is_ascii_whitespace();
        let end = inside + bytes[inside..].iter().take(MAX_NAME_BYTES).take_while(|&&byte| !ends(byte)).count();
        let name = plain_name(self.text.get(inside..end)?);
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
        // `<param name="pin">x`, and not what follows `<input name="pin">`.
        let is_in_tag = self.announced.as_ref().is_some_and(|it| it.until > tag + MAX_PAIR_BYTES);
        let may_be_announced = (is_in_tag && !is_void(local)) || is_value(local) || local == "string";
        let announced = self.announced_at(mark).filter(|_| may_be_announced);
        if is_start && announced.is_none() && Announcer::of(local) == Some(Announcer::Name) {
            self.announced = None;
            if let Some(guard) = self.named_credential(start) {
                self.announce(mark, guard);
            }
        }
        if !is_start {
            return None;
        }
        let guard = announced.or_else(|| is_sensitive(local).then(|| Guard::of(local)))?;
        self.searches += 1;
        let rest = &bytes[start..];
        let content = find(bytes, start, |byte| !byte.is_ascii_whitespace());
        let is_text = !bytes[content..].starts_with(b"<");
        let end = if is_text {
            find(bytes, start, |byte| byte == b'<')
        } else {
            // Other elements or CDATA: all up to the end tag, or, where a cut took that, to the text's end.
            memmem::find(rest, format!("</{name}").as_bytes()).map_or(bytes.len(), |end| start + end)
        };
        if announced.is_some() {
            self.announced = None;
        }
        Some((start..end, guard))
    }
}

/// The name of what a `name` beside it names.
fn is_value(name: &str) -> bool {
    ["value", "content", "val"].iter().any(|it| name.eq_ignore_ascii_case(it))
}

/// Whether an element of HTML has nothing in it.
fn is_void(name: &str) -> bool {
    ["input", "meta", "link", "br", "img"].iter().any(|it| name.eq_ignore_ascii_case(it))
}

fn unquoted(range: Range<usize>, guard: Guard) -> Found {
    Found { range, quote: String::new(), guard }
}

/// The text of a private key whose first line begins at `start`.
fn private_key(bytes: &[u8], start: usize) -> Option<Range<usize>> {
    bytes[start..].starts_with(pem::DASHES).then(|| pem::at(bytes, start + pem::DASHES.len())).flatten()
}

/// Whether ` == ` is at `mark`. Without the blanks it may be the end of base64.
fn is_comparison(bytes: &[u8], mark: usize) -> bool {
    bytes[mark..].starts_with(b"== ") && mark > 0 && bytes[mark - 1] == b' '
}

/// Whether `mark` is between a `<` and its `>`, as far as can be seen nearby.
fn is_in_tag(bytes: &[u8], from: usize, mark: usize) -> bool {
    let before = &bytes[from.max(mark.saturating_sub(MAX_PAIR_BYTES))..mark];
    before.iter().rev().find(|byte| matches!(byte, b'<' | b'>')) == Some(&b'<')
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
