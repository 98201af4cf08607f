//! JSON paths: which values of an integration's JSON are always taken out.
//!
//! The part of RFC 9535 that needs no look at other values: `$.accounts[*].iban`, `$..holder`, `$['odd name'][0]`.
//! Filters, slices, unions and indices from the end are refused. They are applied to the text as it streams by, without
//! a tree: numbers keep their digits, depth needs no stack, and what a cut has left of a document is covered too.

mod walk;

use std::str::FromStr;

pub(super) use walk::{Match, Unreadable, find};

/// The most steps of one path.
const MAX_STEPS: usize = 32;

/// One path.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Path {
    steps: Vec<Step>,
}

/// From a value to some of the values in it.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    /// Whether to look at all values below, too.
    descends: bool,
    selector: Selector,
}

#[derive(Debug, Clone, PartialEq)]
enum Selector {
    Name(String),
    Index(u64),
    Any,
}

/// Why a text is no path.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "{problem} at character {at}: use names, [*] and indices from 0, such as \"$.accounts[*].iban\" or \"$..holder\""
)]
pub(super) struct InvalidPath {
    problem: &'static str,
    /// Counted from 1.
    at: usize,
}

impl FromStr for Path {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let mut reader = Reader { text, at: 0 };
        if !reader.takes("$") {
            return Err(reader.wrong("a path begins with $"));
        }
        let mut steps = Vec::new();
        while reader.at < text.len() {
            if steps.len() == MAX_STEPS {
                return Err(reader.wrong("the path has more than 32 steps"));
            }
            steps.push(reader.step()?);
        }
        Ok(Path { steps })
    }
}

impl Selector {
    /// Whether it takes the field of this key; of a list of which a form does not say the index, each.
    fn takes(&self, key: &str) -> bool {
        match self {
            Selector::Name(name) => name == key,
            Selector::Index(index) => key.is_empty() || key.parse() == Ok(*index),
            Selector::Any => true,
        }
    }
}

impl Path {
    /// Whether it leads to the field of this name in a form, or to what holds it. A form is read as one object, and names such
    /// as `accounts[0][iban]`, `accounts[].iban` and `holder.name` as the ways to what is in it.
    pub fn leads_to_field(&self, field: &str) -> bool {
        let keys = field.split(['.', '[']).map(|key| key.trim_end_matches(']'));
        self.leads_along(std::iter::once(field)) || self.leads_along(keys)
    }

    fn leads_along<'k>(&self, keys: impl Iterator<Item = &'k str>) -> bool {
        // After each key, how many steps may have been made.
        let mut made = vec![false; self.steps.len() + 1];
        made[0] = true;
        for key in keys {
            let before = std::mem::replace(&mut made, vec![false; self.steps.len() + 1]);
            for (index, step) in self.steps.iter().enumerate().filter(|(index, _)| before[*index]) {
                made[index] |= step.descends;
                made[index + 1] |= step.selector.takes(key);
            }
            if made[self.steps.len()] {
                return true;
            }
        }
        false
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl Reader<'_> {
    fn step(&mut self) -> Result<Step, InvalidPath> {
        let descends = self.takes("..");
        if self.takes("[") {
            return Ok(Step { descends, selector: self.bracket()? });
        }
        if !descends && !self.takes(".") {
            return Err(self.wrong("a step begins with . or ["));
        }
        if self.takes("*") {
            return Ok(Step { descends, selector: Selector::Any });
        }
        let is_name = |it: char| it.is_alphanumeric() || it == '_' || it == '-' || !it.is_ascii();
        let rest = &self.text[self.at..];
        let name = &rest[..rest.find(|it| !is_name(it)).unwrap_or(rest.len())];
        if name.is_empty() {
            return Err(self.wrong("a name or * is missing"));
        }
        self.at += name.len();
        Ok(Step { descends, selector: Selector::Name(name.to_owned()) })
    }

    /// After `[`.
    fn bracket(&mut self) -> Result<Selector, InvalidPath> {
        let rest = &self.text[self.at..];
        let selector = if self.takes("*") {
            Selector::Any
        } else if let Some(quote) = rest.chars().next().filter(|it| matches!(it, '\'' | '"')) {
            self.at += 1;
            Selector::Name(self.quoted(quote)?)
        } else {
            let digits = &rest[..rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len())];
            let Ok(index) = digits.parse() else { return Err(self.wrong("this is no name, index or *")) };
            self.at += digits.len();
            Selector::Index(index)
        };
        if self.takes("]") { Ok(selector) } else { Err(self.wrong("] is missing")) }
    }

    fn quoted(&mut self, quote: char) -> Result<String, InvalidPath> {
        let mut name = String::new();
        let mut characters = self.text[self.at..].char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some((_, escaped)) if escaped == quote || escaped == '\\' => name.push(escaped),
                    _ => {
                        self.at += at;
                        return Err(self.wrong("of escapes, only those of quotes and backslashes are known"));
                    }
                },
                _ if character == quote => {
                    self.at += at + 1;
                    return Ok(name);
                }
                _ => name.push(character),
            }
        }
        Err(self.wrong("the quote does not end"))
    }

    fn takes(&mut self, expected: &str) -> bool {
        let takes = self.text[self.at..].starts_with(expected);
        self.at += if takes { expected.len() } else { 0 };
        takes
    }

    fn wrong(&self, problem: &'static str) -> InvalidPath {
        InvalidPath { problem, at: self.text[..self.at].chars().count() + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(descends: bool, selector: Selector) -> Step {
        Step { descends, selector }
    }

    #[test]
    fn paths_are_read() {
        let name = |name: &str| Selector::Name(name.to_owned());
        for (text, steps) in [
            ("$", vec![]),
            (
                "$.accounts[*].iban",
                vec![step(false, name("accounts")), step(false, Selector::Any), step(false, name("iban"))],
            ),
            ("$..holder", vec![step(true, name("holder"))]),
            ("$..*", vec![step(true, Selector::Any)]),
            (
                "$['it\\'s'][\"a.b\"][7]",
                vec![step(false, name("it's")), step(false, name("a.b")), step(false, Selector::Index(7))],
            ),
            ("$..[0].größe", vec![step(true, Selector::Index(0)), step(false, name("größe"))]),
        ] {
            assert_eq!(text.parse(), Ok(Path { steps }), "{text}");
        }
    }

    #[test]
    fn fields_of_a_form_are_led_to_by_their_names() {
        for (path, field, leads) in [
            ("$.holder", "holder", true),
            ("$..holder", "holder", true),
            ("$.holder", "a[holder]", false),
            ("$..holder", "a[holder]", true),
            ("$..holder", "a.b.holder", true),
            ("$.holder", "holder[name]", true),
            ("$.accounts[*].iban", "accounts[0][iban]", true),
            ("$.accounts[1].iban", "accounts[0][iban]", false),
            ("$.accounts[1].iban", "accounts[][iban]", true),
            ("$.accounts[*].iban", "accounts.iban", false),
            ("$['a.b']", "a.b", true),
            ("$..a..b..c", "a.x.b.b.c.d", true),
            ("$..a..b..c", "a.x.c.b", false),
            ("$", "holder", false),
        ] {
            let path: Path = path.parse().expect("a path");
            assert_eq!(path.leads_to_field(field), leads, "{path:?} {field}");
        }
        let path: Path = "$..a..a..a..a..a..b".parse().expect("a path");
        assert!(!path.leads_to_field(&"a.".repeat(100_000)), "and it does not take for ever");
    }

    #[test]
    fn what_is_no_path_is_refused_with_its_place() {
        for (text, problem) in [
            ("accounts", "a path begins with $ at character 1"),
            ("$accounts", "a step begins with . or [ at character 2"),
            ("$.", "a name or * is missing at character 3"),
            ("$.é[?(@.a)]", "this is no name, index or * at character 5"),
            ("$[-1]", "this is no name, index or * at character 3"),
            ("$[1:2]", "] is missing at character 4"),
            ("$['a','b']", "] is missing at character 6"),
            ("$['a", "the quote does not end"),
            ("$.a b", "a step begins with . or [ at character 4"),
        ] {
            let error = text.parse::<Path>().expect_err(text).to_string();
            assert!(error.starts_with(problem), "{text}: {error}");
        }
    }
}
