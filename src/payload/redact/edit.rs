//! Replacing parts of a text so that JSON stays JSON.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr;

/// The deepest JSON string in a JSON string that is followed; each level doubles the backslashes.
const MAX_LEVELS: usize = 8;

/// What is replaced by what.
#[derive(Debug, PartialEq)]
pub(super) struct Edit {
    pub range: Range<usize>,
    pub with: String,
}

/// The text with the edits made; they are in order and do not overlap.
pub(super) fn apply<'t>(text: Cow<'t, str>, edits: &[Edit]) -> Cow<'t, str> {
    if edits.is_empty() {
        return text;
    }
    let (mut edited, mut copied) = (String::with_capacity(text.len()), 0);
    for Edit { range, with } in edits {
        edited.push_str(&text[copied..range.start]);
        edited.push_str(with);
        copied = range.end;
    }
    edited.push_str(&text[copied..]);
    Cow::Owned(edited)
}

/// Knows of ever later places in a text in which JSON string they stand, if any. Strings in strings are told apart by
/// their backslashes: a string at nesting level k begins and ends with a quote after 2^k − 1 of them.
pub(super) struct Nesting<'t> {
    text: &'t str,
    /// After the last quote.
    at: usize,
    /// Up to where there is no other.
    searched: usize,
    /// Of the text, and of each string that is open: whether it is a JSON document.
    documents: Vec<bool>,
}

impl<'t> Nesting<'t> {
    pub fn new(text: &'t str) -> Self {
        Nesting { text, at: 0, searched: 0, documents: vec![starts_document(text.as_bytes())] }
    }

    /// What to replace for `range`, and the quotes to put around: a number, or a part of one, that stands bare in a
    /// document is replaced as a whole by a string.
    pub fn fit(&mut self, range: Range<usize>) -> (Range<usize>, String) {
        self.advance(range.start);
        if self.documents.last() != Some(&true) {
            return (range, String::new());
        }
        let bytes = self.text.as_bytes();
        let ends = |byte: &u8| b",:[]{}\"\\ \t\r\n".contains(byte);
        let start = bytes[self.at.min(range.start)..range.start].iter().rposition(ends);
        let start = start.map_or(self.at.min(range.start), |it| self.at.min(range.start) + it + 1);
        let end = bytes[range.end..].iter().position(ends).map_or(bytes.len(), |it| range.end + it);
        let backslashes = (1 << (self.documents.len() - 1)) - 1;
        (start..end, format!("{}\"", "\\".repeat(backslashes)))
    }

    /// The part of `range` in the string in which it begins. None when it begins right after the end of one, and so in
    /// the midst of a document's punctuation. It begins at `from` or behind: the mark of a value comes later than the one
    /// before, its value may not.
    pub fn clip(&mut self, from: usize, range: Range<usize>) -> Option<Range<usize>> {
        self.advance(from);
        let bytes = self.text.as_bytes();
        let mut probe = Nesting { documents: self.documents.clone(), ..*self };
        probe.advance(range.start);
        if probe.documents.len() == 1 {
            let after_string = probe.documents[0] && range.start > 0 && bytes[range.start - 1] == b'"';
            return (!after_string).then_some(range);
        }
        (probe.at, probe.searched) = (probe.at.max(range.start), 0);
        while let Some(quote) = probe.next_quote(range.end) {
            if probe.documents.len() == 1 {
                let backslashes = bytes[range.start..quote].iter().rev().take_while(|&&byte| byte == b'\\').count();
                return (quote - backslashes > range.start).then_some(range.start..quote - backslashes);
            }
        }
        Some(range)
    }

    /// Whether a place is in a string.
    pub fn is_in_string(&mut self, at: usize) -> bool {
        self.advance(at);
        self.documents.len() > 1
    }

    /// Whether the last place that was asked for is in a document and in none of its strings.
    pub fn is_bare(&self) -> bool {
        self.documents == [true]
    }

    fn advance(&mut self, to: usize) {
        while self.next_quote(to).is_some() {}
    }

    /// Goes past the next quote before `to`.
    fn next_quote(&mut self, to: usize) -> Option<usize> {
        let bytes = self.text.as_bytes();
        let from = self.at.max(self.searched);
        let found = memchr(b'"', bytes.get(from..to)?);
        self.searched = found.map_or(to, |_| self.searched);
        let quote = from + found?;
        let run = bytes[..quote].iter().rev().take_while(|&&byte| byte == b'\\').count();
        self.at = quote + 1;
        let open = self.documents.len() - 1;
        let closed = (0..open).find(|level| run % (2 << level) == (1 << level) - 1);
        if let Some(level) = closed {
            self.documents.truncate(level + 1);
        } else if open < MAX_LEVELS && run % (2 << open) == (1 << open) - 1 {
            self.documents.push(starts_document(&bytes[self.at..]));
        }
        Some(quote)
    }
}

/// Whether a text looks like a JSON document: its first character opens an object or an array.
pub(super) fn starts_document(text: &[u8]) -> bool {
    text.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| matches!(byte, b'{' | b'['))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(text: &str, part: &str) -> String {
        let at = text.find(part).expect("it is there");
        let (range, quote) = Nesting::new(text).fit(at..at + part.len());
        apply(text.into(), &[Edit { range, with: format!("{quote}X{quote}") }]).into_owned()
    }

    #[test]
    fn a_bare_number_becomes_a_string_of_its_level() {
        assert_eq!(fit(r#"{"a": 4111, "b":1}"#, "411"), r#"{"a": "X", "b":1}"#);
        assert_eq!(fit(r#"["4111"]"#, "4111"), r#"["X"]"#);
        assert_eq!(fit("[1, 4111]", "4111"), r#"[1, "X"]"#);
        assert_eq!(fit(r#"{"a":"{\"b\":4111}"}"#, "4111"), r#"{"a":"{\"b\":\"X\"}"}"#);
        assert_eq!(fit(r#"{"a":"[1,4111]"}"#, "4111"), r#"{"a":"[1,\"X\"]"}"#);
        assert_eq!(fit(r#"{"a":"{\"b\":\"[4111]\"}"}"#, "4111"), r#"{"a":"{\"b\":\"[\\\"X\\\"]\"}"}"#);
        assert_eq!(fit(r#"{"a":"c:\\","n":4111}"#, "4111"), r#"{"a":"c:\\","n":"X"}"#);
        assert_eq!(fit(r#"{"a":"he said \"4111\""}"#, "4111"), r#"{"a":"he said \"X\""}"#);
        assert_eq!(fit("card: 4111, 5", "4111"), "card: X, 5");
    }

    #[test]
    fn a_range_is_clipped_to_the_string_in_which_it_begins() {
        let text = r#"{"a":"xyz","b":1}"#;
        assert_eq!(Nesting::new(text).clip(5, 6..15), Some(6..9));
        assert_eq!(Nesting::new(text).clip(9, 10..12), None);
        assert_eq!(Nesting::new("{token: 'x'}").clip(6, 9..10), Some(9..10));
        assert_eq!(Nesting::new("plain \"text\"").clip(0, 0..9), Some(0..9));
        let mut nesting = Nesting::new(r#"["a=>"]"#);
        assert_eq!(nesting.clip(3, 6..7), None);
        assert_eq!(nesting.clip(4, 5..7), None, "the second value begins before the first one");
    }
}
