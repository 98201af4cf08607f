//! Finds the values of credentials by their names, in texts of any kind: JSON, nested JSON, forms, URLs, XML, log lines,
//! and all of them cut short.
//!
//! It does not parse, because what is cut or malformed holds the same secrets. It looks at each `:`, `=` and `>` for
//! the name before it, and at each `--` for the name after it, and when that is a credential's, takes the value after it.
//! Quotes inside quotes are told apart by their backslashes: at nesting depth k a quote has 2^k − 1 of them. One pass; what
//! was searched for an end that no value had is not searched again, so that no text takes time in proportion to its square
//! (`benches/hostile.rs`).

mod announced;
mod colours;
mod element;
mod lines;
mod mark;
mod value;
mod yaml;

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr3, memmem, memrchr};

use self::announced::{Announced, Announcer, MAX_PAIR_BYTES, Pair, has_value_behind, is_value, value_before};
pub(super) use self::lines::break_at;
use self::lines::{is_at_line_start, line_end};
pub(super) use self::value::ends_bare;
use self::value::{
    bare_end, behind_slashes, bracketed_end, find, member_end, next_name, parameters_end, printed_end, quoted_end,
    text_in, user_info, word_end,
};
use self::yaml::{Below, Properties};
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
    let mut search = Search {
        text,
        from: 0,
        tag: None,
        tags_until: 0,
        announced: None,
        searches: 0,
        bare: 0..0,
        line: 0..0,
        blanks: yaml::Blanks::default(),
        nesting: Nesting::new(text),
    };
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
    /// Where the end of a value without quotes was searched for last, and that of a line.
    bare: Range<usize>,
    line: Range<usize>,
    blanks: yaml::Blanks,
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
            return self.nesting.clip(mark, range).map(|range| unquoted(range, guard));
        }
        let name = name_before(self.text, self.from, mark::name_end(bytes, mark))?;
        let plain_name = plain_name(name.text);
        let local = last_part(&plain_name);
        let announcer = Announcer::of(local);
        let announced = self.announced_at(mark).filter(|_| is_value(local)).map(|it| it.guard);
        let guard = announced.or_else(|| is_sensitive(&plain_name).then(|| Guard::of(&plain_name)));
        if announcer.is_none() && guard.is_none() {
            return None;
        }
        let start = mark::value_start(bytes, mark);
        match announcer.map_or(Pair::None, |announcer| self.pair(announcer, mark, start)) {
            Pair::Before(value, guard) => return Some(unquoted(value, guard)),
            // `<entry key="password">x</entry>`: it is the name of a value, and none itself.
            Pair::Behind => return None,
            Pair::None => {}
        }
        let guard = guard?;
        let properties = match bytes[mark] == b':' && start > mark + 1 {
            true => yaml::properties(bytes, start),
            false => None,
        };
        let content = properties.and_then(|it| it.content).unwrap_or(start);
        if bytes[mark] == b':' {
            let key = yaml::Key { start: name.start, mark, in_string: self.nesting.is_in_string(mark) };
            match key.below(bytes, start, content, &mut self.blanks) {
                Some(Below::Value(range)) => {
                    return self.nesting.clip(mark, range).map(|range| unquoted(range, guard));
                }
                Some(Below::Nothing) => return None,
                None => {}
            }
        }
        let value = self.value(content, &name, &plain_name);
        let value = match properties {
            // Which of the two is the password cannot be told.
            Some(Properties { end, .. }) => unquoted(start..value.map_or(end, |it| it.range.end.max(end)), guard),
            None => Found { guard, ..value? },
        };
        // The quote after a bare name, or one of other backslashes after a quoted one, may be the end of the JSON string that the
        // name is in; so may the value's end.
        let quote = find(bytes, content, |byte| byte != b'\\');
        let is_member = name.quoted && (quote - content == name.backslashes || bytes.get(quote) != Some(&b'"'));
        let range = if is_member { value.range } else { self.nesting.clip(mark, value.range)? };
        Some(match text_in(bytes, &range) {
            Some(range) => unquoted(range, guard),
            None => Found { range, ..value },
        })
    }

    /// What the value from `start` on belongs to, behind the `mark` of an announcer, if it is a credential's name.
    fn pair(&mut self, announcer: Announcer, mark: usize, start: usize) -> Pair {
        let bytes = self.text.as_bytes();
        let Some(guard) = self.named_credential(start).filter(|guard| announcer.announces(*guard)) else {
            self.announced = self.announced.take().filter(|it| !announcer.ends(it.by));
            return Pair::None;
        };
        let floor = self.from.max(mark.saturating_sub(MAX_PAIR_BYTES));
        if let Some(value) = value_before(bytes, floor, mark) {
            self.announced = self.announced.take().filter(|it| !announcer.ends(it.by));
            return Pair::Before(value, guard);
        }
        self.announced = Some(Announced::new(announcer, guard, mark));
        if has_value_behind(bytes, floor, inside_quotes(bytes, start)) { Pair::Behind } else { Pair::None }
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
            self.nesting.clip(at, range).map(|range| unquoted(range, Guard::of(name.text)))
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
                    line_end(bytes, start, &mut self.line)
                } else if is_authorization && let Some(end) = parameters_end(bytes, start) {
                    end
                } else {
                    bare_end(text, start, is_authorization, &mut self.bare)
                };
                let end = printed_end(bytes, start, end).unwrap_or(end);
                if !name.quoted && next_name(text, start..end).is_some_and(|name| is_sensitive(&self::plain_name(name)))
                {
                    return None;
                }
                // A sign may be the first character of a password, too.
                let breaks = |byte: &u8| matches!(byte, b'\n' | b'\\');
                let is_in_line = end > start || !bytes[name.start..start].iter().any(breaks);
                let is_first = is_in_line && is_at_line_start(bytes, name.start);
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
}

/// Of `fields[0][name]` or `field.name`, the `name`.
fn last_part(name: &str) -> &str {
    name.rsplit(['[', '.']).next().map_or(name, |part| part.trim_end_matches(']'))
}

/// Behind the quotes that begin at `at`.
fn inside_quotes(bytes: &[u8], at: usize) -> usize {
    find(bytes, at, |byte| !matches!(byte, b'\\' | b'"' | b'\''))
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
        let run = bytes[floor..end - 1].iter().rev().take_while(|&&byte| byte == b'\\').count();
        // Further ones are of the name itself, in pairs and more.
        let backslashes = (1 << run.trailing_ones()) - 1;
        let inside_end = end - 1 - backslashes;
        let start = bytes[floor..inside_end].iter().rposition(|&byte| byte == quote);
        // Of a longer name, the end tells what it is.
        let inside = start.map_or_else(|| text.ceil_char_boundary(floor), |it| floor + it + 1);
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
