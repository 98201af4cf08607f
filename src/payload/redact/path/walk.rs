//! Applies paths to a JSON text as it streams by.
//!
//! For each container on the way down, it knows which paths have come how far; where none has, the container is skipped
//! without a look at what it holds. It is as strict as it must be to know where it is, and no stricter.

use std::borrow::Cow;
use std::ops::Range;

use super::{Path, Selector};
use crate::payload::redact::budget::{Budget, Stop};
use crate::payload::redact::decoded::{Escapes, View};

/// How deep it follows. A document that is deeper, and in which a path leads there, cannot be read.
const MAX_DEPTH: usize = 1_000;

/// A value that a path leads to.
#[derive(Debug, PartialEq)]
pub(in super::super) struct Match {
    /// The value; of a string, what is between the quotes.
    pub range: Range<usize>,
    /// Whether it is a string.
    pub is_string: bool,
}

/// A text in which one cannot tell what the paths lead to.
#[derive(Debug, PartialEq)]
pub(in super::super) struct Unreadable;

/// A path, and how many of its steps have been made.
type Progress = (usize, usize);

/// All values that the paths lead to, in order and apart. The text may hold several documents, and be cut short.
pub(in super::super) fn find(
    text: &str,
    paths: &[&Path],
    budget: &mut Budget,
) -> Result<Result<Vec<Match>, Unreadable>, Stop> {
    let mut walk = Walk { text, at: 0, paths, containers: Vec::new(), found: Vec::new() };
    let mut spent = 0;
    loop {
        if walk.at - spent > 4096 {
            budget.spend(walk.at - spent)?;
            spent = walk.at;
        }
        match walk.step() {
            Ok(true) => {}
            Ok(false) => break,
            Err(unreadable) => return Ok(Err(unreadable)),
        }
    }
    budget.spend(text.len() - spent.min(text.len()))?;
    Ok(Ok(walk.found))
}

struct Walk<'t> {
    text: &'t str,
    at: usize,
    paths: &'t [&'t Path],
    containers: Vec<Container>,
    found: Vec<Match>,
}

/// An object or array that is open.
struct Container {
    /// How far which paths have come with it.
    progress: Vec<Progress>,
    /// Of an array, the index of the next value; none for an object.
    index: Option<u64>,
    is_empty: bool,
}

impl Walk<'_> {
    /// One value or the end of a container; false at the end of the text.
    fn step(&mut self) -> Result<bool, Unreadable> {
        self.skip_space();
        let Some(byte) = self.byte() else { return Ok(false) };
        let Some(container) = self.containers.last_mut() else {
            let progress = (0..self.paths.len()).map(|path| (path, 0)).collect();
            let is_match = self.paths.iter().any(|path| path.steps.is_empty());
            return self.value(progress, is_match).map(|()| true);
        };
        let close = if container.index.is_some() { b']' } else { b'}' };
        if byte == close {
            self.containers.pop();
            self.at += 1;
            return Ok(true);
        }
        if !std::mem::replace(&mut container.is_empty, false) {
            if byte != b',' {
                return Err(Unreadable);
            }
            self.at += 1;
            self.skip_space();
        }
        match self.containers.last_mut().and_then(|it| it.index.as_mut()) {
            Some(index) => {
                *index += 1;
                let index = *index - 1;
                self.child(|selector| matches!(selector, Selector::Index(it) if *it == index))
            }
            None => self.member(),
        }
    }

    fn member(&mut self) -> Result<bool, Unreadable> {
        let Some(byte) = self.byte() else { return Ok(false) };
        if byte != b'"' {
            return Err(Unreadable);
        }
        let (key, closed) = self.string();
        self.skip_space();
        match self.byte() {
            None => return Ok(false),
            Some(b':') if closed => self.at += 1,
            _ => return Err(Unreadable),
        }
        let key = &self.text[key];
        let key = View::of(key, Escapes::Json).map_or(Cow::Borrowed(key), |view| Cow::Owned(view.text));
        self.child(|selector| matches!(selector, Selector::Name(name) if *name == key))
    }

    /// The next value, which a step of a path leads to when `is_named` says so.
    fn child(&mut self, is_named: impl Fn(&Selector) -> bool) -> Result<bool, Unreadable> {
        self.skip_space();
        let is_container = matches!(self.byte(), Some(b'{' | b'['));
        let (mut progress, mut is_match): (Vec<Progress>, bool) = (Vec::new(), false);
        for &(path, made) in self.containers.last().map_or(&[][..], |it| &it.progress) {
            let steps = &self.paths[path].steps;
            let Some(step) = steps.get(made) else { continue };
            let leads_here = matches!(step.selector, Selector::Any) || is_named(&step.selector);
            is_match |= leads_here && made + 1 == steps.len();
            if is_container && step.descends {
                progress.push((path, made));
            }
            if is_container && leads_here {
                progress.push((path, made + 1));
            }
        }
        progress.sort_unstable();
        progress.dedup();
        self.value(progress, is_match).map(|()| true)
    }

    fn value(&mut self, progress: Vec<Progress>, is_match: bool) -> Result<(), Unreadable> {
        let Some(byte) = self.byte() else { return Ok(()) };
        let start = self.at;
        match byte {
            b'"' => {
                let (range, _) = self.string();
                if is_match {
                    self.found.push(Match { range, is_string: true });
                }
                return Ok(());
            }
            b'{' | b'[' if is_match || progress.is_empty() => self.skip_container(),
            b'{' | b'[' => {
                if self.containers.len() == MAX_DEPTH {
                    return Err(Unreadable);
                }
                self.at += 1;
                let index = (byte == b'[').then_some(0);
                self.containers.push(Container { progress, index, is_empty: true });
                return Ok(());
            }
            b',' | b':' | b']' | b'}' => return Err(Unreadable),
            _ => self.skip_while(|byte| !b",:[]{}\" \t\r\n".contains(&byte)),
        }
        let range = start..self.at;
        if is_match && &self.text[range.clone()] != "null" {
            self.found.push(Match { range, is_string: false });
        }
        Ok(())
    }

    /// What is between the quotes, and whether there was a second one.
    fn string(&mut self) -> (Range<usize>, bool) {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        self.at = start;
        while let Some(found) = memchr::memchr2(b'"', b'\\', &bytes[self.at..]) {
            self.at += found;
            if bytes[self.at] == b'"' {
                self.at += 1;
                return (start..self.at - 1, true);
            }
            self.at = (self.at + 2).min(bytes.len());
        }
        self.at = bytes.len();
        (start..bytes.len(), false)
    }

    /// Goes past an object or array, strings in it skipped.
    fn skip_container(&mut self) {
        let mut depth = 0usize;
        while let Some(byte) = self.byte() {
            match byte {
                b'"' => {
                    self.string();
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    fn skip_space(&mut self) {
        self.skip_while(|byte| byte.is_ascii_whitespace());
        if self.at == 0 && self.text.starts_with('\u{feff}') {
            self.at = '\u{feff}'.len_utf8();
            self.skip_while(|byte| byte.is_ascii_whitespace());
        }
    }

    fn skip_while(&mut self, skips: impl Fn(u8) -> bool) {
        let bytes = self.text.as_bytes();
        self.at += bytes[self.at..].iter().take_while(|&&byte| skips(byte)).count();
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn found<'t>(text: &'t str, paths: &[&str]) -> Option<Vec<&'t str>> {
        let paths: Vec<Path> = paths.iter().map(|path| path.parse().expect("a path")).collect();
        let paths: Vec<&Path> = paths.iter().collect();
        let found = find(text, &paths, &mut Budget::new(Duration::from_secs(60))).expect("in time");
        found.ok().map(|found| found.into_iter().map(|it| &text[it.range]).collect())
    }

    const BANK: &str = r#" {"accounts": [{"iban": "A\"1", "holder": {"name": "N1"}}, {"iban": 22.50, "x": [1, [2]]}],
        "holder": null, "deep": {"accounts": {"holder": ["H", "I"]}}, "ib\u0061n": "E"} "#;

    #[test]
    fn paths_lead_to_values() {
        for (path, values) in [
            ("$.accounts[*].iban", vec![r#"A\"1"#, "22.50"]),
            ("$..holder", vec![r#"{"name": "N1"}"#, r#"["H", "I"]"#]),
            ("$..holder[0]", vec!["H"]),
            ("$.accounts[1]", vec![r#"{"iban": 22.50, "x": [1, [2]]}"#]),
            ("$['iban']", vec!["E"]),
            ("$..x[*]", vec!["1", "[2]"]),
            ("$..x..*", vec!["1", "[2]"]),
            ("$.deep.*.holder.*", vec!["H", "I"]),
            ("$.nothing", vec![]),
            ("$", vec![BANK.trim()]),
        ] {
            assert_eq!(found(BANK, &[path]), Some(values), "{path}");
        }
        assert_eq!(found(BANK, &["$.iban", "$..name"]), Some(vec!["N1", "E"]));
        assert_eq!(found("{\"a\":1}\n{\"a\":2}", &["$.a"]), Some(vec!["1", "2"]), "lines of JSON");
        assert_eq!(found("\u{feff}[7]", &["$[0]"]), Some(vec!["7"]));
    }

    #[test]
    fn what_a_cut_leaves_is_covered() {
        for end in 0..BANK.len() {
            if let Some(cut) = BANK.get(..end) {
                let values = found(cut, &["$..*"]).unwrap_or_else(|| panic!("{cut}"));
                assert!(values.iter().all(|value| !value.is_empty() || cut.ends_with('"')), "{cut}: {values:?}");
            }
        }
        assert_eq!(found(r#"{"a":{"iban":"DE8"#, &["$..iban"]), Some(vec!["DE8"]));
        assert_eq!(found(r#"{"a":[12, 3"#, &["$.a[1]"]), Some(vec!["3"]));
        assert_eq!(found(r#"{"a":{"b":[1"#, &["$.a"]), Some(vec![r#"{"b":[1"#]));
    }

    #[test]
    fn what_is_no_json_is_unreadable() {
        for text in [r#"{"a" 1}"#, r#"{a: 1}"#, "[1 2]", "[,]", "}", r#"{"a":}"#, "[1}"] {
            assert_eq!(found(text, &["$..b"]), None, "{text}");
        }
        let deep = "[".repeat(MAX_DEPTH + 1);
        assert_eq!(found(&deep, &["$..b"]), None);
        assert_eq!(found(&"[".repeat(1_000_000), &["$.b"]), Some(vec![]), "no path leads there");
    }
}
