//! The redaction of one payload's texts: paths, then the run's own secrets, then names, then detectors; and all but
//! paths once more on the text without its escapes.
//!
//! What an earlier rule took out is a placeholder to the later ones. Texts in which nothing is found are not copied.
//! A second pass looks in what is left for what names and paths led to (`redact/followed.rs`).

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr, memchr2, memmem, memrchr};

use super::Rules;
use super::budget::{Budget, Stop};
use super::decoded::{Escapes, MAX_ROUNDS, View};
use super::detect::{Kind, classify, merged};
use super::edit::{Edit, Nesting, apply, starts_document};
use super::followed::{Followed, Guard};
use super::named::{Found, named};
use super::packed;
use super::path::{self, Path, Unreadable};
use super::placeholder::{Placeholders, is_placeholder};
use super::secrets::Secrets;
use crate::payload::record::json_or_text;
use crate::task::{IntegrationName, Json};

/// How the escape of a sign begins.
const SIGN: &[u8] = b"\\u00";

/// At a cut, the end of the text is left out up to here where it may be the beginning of something.
const MAX_CUT_BYTES: usize = 64;

/// What stands in the end of a cut text that may be the beginning of a card number or an IBAN.
const MIN_CUT_DIGITS: usize = 4;

/// Everything that the redaction of one payload needs.
pub(super) struct Pass<'r> {
    pub rules: &'r Rules,
    pub budget: Budget,
    paths: Vec<&'r Path>,
    secrets: Secrets,
    /// Whether only `secrets` are looked for.
    is_second: bool,
    followed: Followed,
    placeholders: Placeholders,
}

impl<'r> Pass<'r> {
    /// Looks for `secrets`, which the run named, and for all that its rules tell.
    pub fn new(rules: &'r Rules, integration: &IntegrationName, secrets: &[String]) -> Result<Self, Stop> {
        Ok(Pass {
            rules,
            budget: Budget::new(rules.time_limit),
            paths: rules.paths(integration),
            secrets: Secrets::new(secrets, Vec::new())?,
            is_second: false,
            followed: Followed::default(),
            placeholders: Placeholders::default(),
        })
    }

    /// The same pass from the start, if this one has learnt secrets that have to be known before names are looked for:
    /// of `password: two words` a name takes one. `secrets` and `placeholders` are those that it began with.
    pub fn anew(&mut self, secrets: &[String], placeholders: &Placeholders) -> Result<bool, Stop> {
        let learnt = self.followed.with_ends();
        if learnt.is_empty() {
            return Ok(false);
        }
        self.secrets = Secrets::new(secrets, learnt)?;
        self.followed = Followed::default();
        self.placeholders = placeholders.clone();
        Ok(true)
    }

    /// With the placeholders of what came before.
    pub fn with(mut self, placeholders: Placeholders) -> Self {
        self.placeholders = placeholders;
        self
    }

    /// The placeholders, for what comes after.
    pub fn into_placeholders(self) -> Placeholders {
        self.placeholders
    }

    /// A second pass, over what this one left: it looks for the secrets that names and paths led to, and for nothing
    /// else. None where there are none.
    pub fn second(self) -> Result<Option<Self>, Stop> {
        let Pass { followed, rules, budget, placeholders, .. } = self;
        let pass = |secrets| Pass {
            rules,
            budget,
            paths: Vec::new(),
            secrets,
            is_second: true,
            followed: Followed::default(),
            placeholders,
        };
        Ok(followed.secrets()?.map(pass))
    }

    /// What stands for the value of a credential of this name.
    pub fn credential(&mut self, name: &str, value: &str) -> String {
        self.followed.add(value, Guard::of(name));
        self.placeholders.of(value)
    }

    /// What stands for a value as a whole.
    pub fn placeholder(&mut self, value: &str) -> String {
        self.placeholders.of(value)
    }

    /// Any text.
    pub fn text<'t>(&mut self, text: &'t str) -> Result<Cow<'t, str>, Stop> {
        let mut text = self.raw(Cow::Borrowed(text))?;
        if !self.is_second {
            text = self.unescaped(text, Escapes::Markup)?;
            text = self.pieces(text)?;
        }
        self.unescaped(text, Escapes::All)
    }

    /// An input or an output.
    pub fn json(&mut self, json: &Json) -> Result<Json, Stop> {
        Ok(match self.document(json.as_str())? {
            Ok(Cow::Borrowed(_)) => json.clone(),
            Ok(Cow::Owned(text)) => json_or_text(text),
            Err(Unreadable) => json_or_text(r#""[redacted-0]""#.to_owned()),
        })
    }

    /// A JSON document, whole or cut.
    pub fn document<'t>(&mut self, text: &'t str) -> Result<Result<Cow<'t, str>, Unreadable>, Stop> {
        let without_paths = match self.without_paths(text)? {
            Ok(text) => text,
            Err(unreadable) => return Ok(Err(unreadable)),
        };
        let was_number = is_number(&without_paths);
        Ok(Ok(match self.text_of(without_paths)? {
            Cow::Owned(changed) if was_number => Cow::Owned(format!("\"{changed}\"")),
            text => text,
        }))
    }

    /// A JSON document without what the integration's paths lead to.
    fn without_paths<'t>(&mut self, text: &'t str) -> Result<Result<Cow<'t, str>, Unreadable>, Stop> {
        if self.paths.is_empty() {
            return Ok(Ok(Cow::Borrowed(text)));
        }
        let Ok(found) = path::find(text, &self.paths, &mut self.budget)? else { return Ok(Err(Unreadable)) };
        let edit = |it: path::Match| {
            self.followed.add(&text[it.range.clone()], Guard::Path);
            let quote = if it.is_string { "" } else { "\"" };
            let with = format!("{quote}{}{quote}", self.placeholders.of(&text[it.range.clone()]));
            Edit { range: it.range, with }
        };
        let edits: Vec<Edit> = found.into_iter().filter(|it| !it.range.is_empty()).map(edit).collect();
        Ok(Ok(apply(Cow::Borrowed(text), &edits)))
    }

    /// As [`Pass::text`], of a text that is changed already or not.
    pub fn text_of<'t>(&mut self, text: Cow<'t, str>) -> Result<Cow<'t, str>, Stop> {
        match text {
            Cow::Borrowed(text) => self.text(text),
            Cow::Owned(text) => Ok(Cow::Owned(self.text(&text)?.into_owned())),
        }
    }

    /// What stands for the value of a field to which a path leads, if one does.
    pub fn at_path(&mut self, name: &str, value: &str) -> Option<String> {
        let is_led_to = self.paths.iter().any(|path| path.leads_to_field(name));
        is_led_to.then(|| {
            self.followed.add(value, Guard::Path);
            self.placeholders.of(value)
        })
    }

    /// Whether a secret that is known stands in bytes of any kind.
    pub fn holds_known(&mut self, bytes: &[u8]) -> Result<bool, Stop> {
        Ok(!self.secrets.is_empty()
            && !self.secrets.find(&String::from_utf8_lossy(bytes), &mut self.budget)?.is_empty())
    }

    /// A cut text without an end that may be the beginning of a known secret.
    pub fn without_start<'t>(&mut self, text: &'t str) -> Result<&'t str, Stop> {
        self.secrets.without_cut(text, &mut self.budget)
    }

    /// A cut text without an end that may be the beginning of a secret.
    pub fn without_cut<'t>(&mut self, text: &'t str) -> Result<&'t str, Stop> {
        let text = self.without_start(text)?;
        let start = text.len().saturating_sub(MAX_CUT_BYTES);
        let end = &text.as_bytes()[start..];
        // Beyond ASCII: spaces and dashes of other widths.
        let belongs = |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii() || b" -_.+%=/~@:\t".contains(byte);
        let length = end.iter().rev().take_while(|byte| belongs(byte)).count();
        let tail = &text[text.ceil_char_boundary(text.len() - length)..];
        let digits = tail.bytes().filter(u8::is_ascii_digit).count();
        let user_info = tail.split_once("://").is_some_and(|(_, rest)| !rest.contains('/'));
        let begins = |start: &str| tail.to_ascii_lowercase().contains(start);
        if digits >= MIN_CUT_DIGITS || user_info || ["eyj", "@", "bearer ", "basic "].into_iter().any(begins) {
            return Ok(&text[..text.len() - tail.len()]);
        }
        Ok(text)
    }

    /// The text as it is.
    fn raw<'t>(&mut self, mut text: Cow<'t, str>) -> Result<Cow<'t, str>, Stop> {
        let found = self.secrets.find(&text, &mut self.budget)?;
        let edits = fitted(&text, found.into_iter().map(|(range, secret)| (range, self.placeholders.of(secret))));
        text = apply(text, &edits);
        let edits: Vec<Edit> = self
            .named(&text)?
            .into_iter()
            .map(|Found { range, quote, .. }| {
                let with = format!("{quote}{}{quote}", self.placeholders.of(&text[range.clone()]));
                Edit { range, with }
            })
            .collect();
        text = apply(text, &edits);
        let found = self.formed(&text)?;
        let edits = fitted(
            &text,
            found.into_iter().map(|range| {
                let with = self.placeholders.of(&text[range.clone()]);
                (range, with)
            }),
        );
        Ok(apply(text, &edits))
    }

    /// What follows a credential's name.
    fn named(&mut self, text: &str) -> Result<Vec<Found>, Stop> {
        if self.is_second {
            return Ok(Vec::new());
        }
        let mut found = named(text, &mut self.budget)?;
        // With the end of a sentence it is one still.
        found.retain(|it| !is_placeholder(text[it.range.clone()].trim_end_matches(['.', '!', '?', ':'])));
        for Found { range, guard, .. } in &found {
            let value = &text[range.clone()];
            self.followed.add(value, *guard);
            // Of what is below a name, also what the names in it lead to.
            if value.contains("\n") || value.contains("\\n") {
                let inside = named(value, &mut self.budget)?;
                inside.into_iter().for_each(|it| self.followed.add(&value[it.range], it.guard));
            }
        }
        Ok(found)
    }

    /// What has the form of a secret, and base64 with a secret in it.
    fn formed(&mut self, text: &str) -> Result<Vec<Range<usize>>, Stop> {
        let (secrets, detectors, is_second) = (&self.secrets, &self.rules.detectors, self.is_second);
        let packed = packed::find(text, &mut self.budget, |plain, budget| {
            let holds_more = |budget: &mut Budget| {
                Ok(!named(plain, budget)?.is_empty() || !detectors.find(plain, budget)?.is_empty())
            };
            Ok(!secrets.find(plain, budget)?.is_empty() || (!is_second && holds_more(budget)?))
        })?;
        if is_second {
            return Ok(packed);
        }
        let found = detectors.find(text, &mut self.budget)?;
        for value in found.iter().map(|range| &text[range.clone()]) {
            // Of the other kinds, each is found by its form wherever it stands.
            if classify(value).0 == Kind::Redacted {
                self.followed.add(value, Guard::Token);
            }
        }
        Ok(merged(found, packed))
    }

    /// The text without its escapes, level by level.
    fn unescaped<'t>(&mut self, mut text: Cow<'t, str>, escapes: Escapes) -> Result<Cow<'t, str>, Stop> {
        let (mut views, mut level): (Vec<View>, usize) = (Vec::new(), 1);
        while level <= MAX_ROUNDS {
            while views.len() < level {
                let source = views.last().map_or(&*text, |view| &view.text);
                self.budget.spend(source.len())?;
                match View::of(source, escapes) {
                    Some(view) => views.push(view),
                    None => return Ok(text),
                }
            }
            let mut found = self.escaped(&views, escapes)?;
            found.sort_by(|(a, _), (b, _)| a.start.cmp(&b.start).then(b.end.cmp(&a.end)));
            let edits = clipped(&text, found);
            if !edits.is_empty() {
                text = apply(text, &edits);
                views.clear();
            }
            level += 1;
        }
        Ok(text)
    }

    /// What follows a name between two quotes of the text, without its escapes. In a view of the whole text a quote that
    /// was escaped may open what a quote of the text closes, so that a name in it is not seen.
    fn pieces<'t>(&mut self, mut text: Cow<'t, str>) -> Result<Cow<'t, str>, Stop> {
        for level in 1..=MAX_ROUNDS {
            let (mut found, mut any) = (Vec::new(), false);
            for piece in pieces(&text) {
                let mut views: Vec<View> = Vec::new();
                while views.len() < level {
                    let source = views.last().map_or(&text[piece.clone()], |view| &view.text);
                    self.budget.spend(source.len())?;
                    let Some(view) = View::of(source, Escapes::Markup) else { break };
                    views.push(view);
                }
                if views.len() == level {
                    any = true;
                    let inside = self.escaped(&views, Escapes::Markup)?;
                    found.extend(
                        inside.into_iter().map(|(it, with)| (piece.start + it.start..piece.start + it.end, with)),
                    );
                }
            }
            if !any {
                break;
            }
            let edits = clipped(&text, found);
            text = apply(text, &edits);
        }
        Ok(text)
    }

    /// What is found in the last of the views, each of which is made of the one before, by its place in what the first
    /// is made of.
    fn escaped(&mut self, views: &[View], escapes: Escapes) -> Result<Vec<(Range<usize>, String)>, Stop> {
        let Some(view) = views.last() else { return Ok(Vec::new()) };
        let mut found: Vec<(Range<usize>, String)> = Vec::new();
        let ranges = if escapes == Escapes::Markup {
            // Without JSON's backslashes one cannot tell where its values end: names are looked for with them.
            self.named(&view.text)?.into_iter().map(|it| it.range).collect()
        } else {
            // Each: of one that reaches out of the string in which it begins a part is left, and may be another.
            for (range, secret) in self.secrets.find_each(&view.text, &mut self.budget)? {
                found.push((range, self.placeholders.of(secret)));
            }
            self.formed(&view.text)?
        };
        for range in ranges {
            if !is_placeholder(&view.text[range.clone()]) {
                let with = self.placeholders.of(&view.text[range.clone()]);
                found.push((range, with));
            }
        }
        for (range, _) in &mut found {
            *range = views.iter().rev().fold(range.clone(), |range, view| view.source(range));
        }
        Ok(found)
    }
}

/// Edits that leave JSON what it is: a bare number becomes a string.
fn fitted(text: &str, found: impl Iterator<Item = (Range<usize>, String)>) -> Vec<Edit> {
    let mut nesting = Nesting::new(text);
    let mut edits: Vec<Edit> = Vec::new();
    for (range, with) in found {
        // Of two in one number, the first stands for it.
        if edits.last().is_some_and(|last| range.start < last.range.end) {
            continue;
        }
        let (range, quote) = nesting.fit(range);
        match edits.last_mut() {
            // What was made wider may reach into the one before.
            Some(last) if range.start < last.range.end => last.range.end = last.range.end.max(range.end),
            _ => edits.push(Edit { range, with: format!("{quote}{with}{quote}") }),
        }
    }
    edits
}

/// Edits that do not reach out of the JSON string in which they begin.
fn clipped(text: &str, found: Vec<(Range<usize>, String)>) -> Vec<Edit> {
    let mut nesting = Nesting::new(text);
    let mut edits: Vec<Edit> = Vec::new();
    for (range, with) in found {
        let Some(range) = nesting.clip(range.start, range) else { continue };
        let is_bare = nesting.is_bare();
        // Outside of strings there are no escapes: what is more than a number was not seen right.
        if is_bare && text[range.clone()].contains(['"', ',', '{', '}', '[', ']']) {
            continue;
        }
        match edits.last_mut() {
            Some(last) if range.start < last.range.end => last.range.end = last.range.end.max(range.end),
            _ => {
                let quote = if is_bare { "\"" } else { "" };
                edits.push(Edit { range, with: format!("{quote}{with}{quote}") });
            }
        }
    }
    edits
}

/// The parts of a text between quotes, without the backslashes of these, in which there may be an escape of
/// [`Escapes::Markup`].
fn pieces(text: &str) -> impl Iterator<Item = Range<usize>> + use<'_> {
    let (bytes, mut at) = (text.as_bytes(), 0);
    let sign_from = |at: usize| memmem::find(&bytes[at..], SIGN).map(|found| at + found);
    let markup_from = |at: usize| memchr2(b'%', b'&', &bytes[at..]).map(|found| at + found);
    let (mut sign, mut markup) = (sign_from(0), markup_from(0));
    std::iter::from_fn(move || {
        // What has been looked for and lies ahead is not looked for again.
        sign = if sign.is_some_and(|sign| sign < at) { sign_from(at) } else { sign };
        markup = if markup.is_some_and(|markup| markup < at) { markup_from(at) } else { markup };
        let found = sign.into_iter().chain(markup).min()?;
        let start = memrchr(b'"', &bytes[at..found]).map_or(at, |quote| at + quote + 1);
        at = memchr(b'"', &bytes[found..]).map_or(bytes.len(), |quote| found + quote);
        Some(start..start + text[start..at].trim_end_matches('\\').len())
    })
}

/// Whether a document is a number and nothing else.
fn is_number(text: &str) -> bool {
    const MAX_NUMBER_BYTES: usize = 64;
    let text = text.trim_ascii();
    let belongs = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    (1..=MAX_NUMBER_BYTES).contains(&text.len()) && text.bytes().all(belongs)
}

/// Whether a body of this type is to be read as JSON.
pub(super) fn is_json(media_type: &str, text: &str) -> bool {
    media_type.contains("json") || starts_document(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_with_an_escape_is_looked_at_whichever_it_has() {
        let text = r#"{"a":"\u003d1","b":"plain","c":"%22","d":"&amp;","e":"2\\u003d","f":"x%20"}"#;
        let found: Vec<_> = pieces(text).map(|piece| &text[piece]).collect();
        assert_eq!(found, [r"\u003d1", "%22", "&amp;", r"2\\u003d", "x%20"]);
        assert_eq!(pieces("plain").count(), 0);
    }
}
