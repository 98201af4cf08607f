//! Texts of two runs compared, where secrets are placeholders in one or both of them.
//!
//! The numbers of placeholders mean something within one payload only. But a run that is replayed begins with the
//! placeholders of the recorded one, in its input and in what it is answered: these keep their numbers, and what is
//! redacted anew is numbered after the last of them ([`Names::last`]). So a placeholder of the recording stands for
//! itself, and any other text may be what the recording has a placeholder for: which one, is learned from the requests
//! whose URLs have found each other, and holds from then on.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::payload::redact::placeholders;

/// What the placeholders of a recording are called in a later run.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The largest number of the recording's placeholders.
    last: u32,
    now: HashMap<String, String>,
    then: HashMap<String, String>,
}

/// Pairs of a recorded placeholder and what stands in its place now.
pub(super) type Learned = Vec<(String, String)>;

impl Names {
    /// Of a recording whose placeholders have numbers up to `last`.
    pub(super) fn after(last: u32) -> Self {
        Names { last, ..Names::default() }
    }

    /// Whether the URL `now` may be the recorded one, and what would follow for its placeholders. In a URL a
    /// placeholder stands for no more than a segment of the path or a value of the query.
    pub(super) fn url(&self, then: &str, now: &str) -> Option<Learned> {
        const ENDS: [char; 4] = ['/', '?', '&', '#'];
        let (then, now) = (unescaped(then), unescaped(now));
        let (parts, mut rest, mut learned) = (parts(&then), &*now, Vec::new());
        let mut parts = parts.iter().peekable();
        while let Some(part) = parts.next() {
            let name = match part {
                Part::Text(text) => {
                    rest = rest.strip_prefix(text)?;
                    continue;
                }
                Part::Placeholder(name, _) => *name,
            };
            let taken = match parts.peek() {
                None => rest.len(),
                Some(Part::Text(next)) => rest.find(next)?,
                // One after the other: the first is there as it is, or nothing can be known.
                Some(Part::Placeholder(..)) => rest.starts_with(name).then_some(name.len())?,
            };
            let (value, after) = rest.split_at(taken);
            if value.is_empty() || value.contains(ENDS) || !self.may_be(name, value, &learned) {
                return None;
            }
            learned.push((name.to_owned(), value.to_owned()));
            rest = after;
        }
        rest.is_empty().then_some(learned)
    }

    fn may_be(&self, name: &str, value: &str, learned: &Learned) -> bool {
        if self.is_recorded(value) {
            return name == value;
        }
        let known = |(one, other): &(String, String)| (one == name) == (other == value);
        self.now.get(name).is_none_or(|now| now == value)
            && self.then.get(value).is_none_or(|then| then == name)
            && learned.iter().all(known)
    }

    /// Whether the text is a placeholder of the recording, and nothing else.
    fn is_recorded(&self, text: &str) -> bool {
        placeholders(text).any(|it| it.range == (0..text.len()) && it.number <= self.last)
    }

    /// Takes over what follows from a match.
    pub(super) fn learn(&mut self, learned: Learned) {
        for (then, now) in learned {
            if then != now {
                self.then.insert(now.clone(), then.clone());
                self.now.insert(then, now);
            }
        }
    }

    /// Whether two redacted texts say the same: a placeholder of the recording is itself, and what is known to stand
    /// for it, and any placeholder of which nothing is known.
    pub(super) fn same(&self, then: &str, now: &str) -> bool {
        if then == now {
            return true;
        }
        let (then, now) = (unescaped(then), unescaped(now));
        let (then, now) = (parts(&then), parts(&now));
        then.len() == now.len()
            && then.iter().zip(&now).all(|(then, now)| match (then, now) {
                (Part::Text(then), Part::Text(now)) => then == now,
                (Part::Placeholder(then, _), Part::Placeholder(now, number)) => {
                    then == now || (*number > self.last && self.then.get(*now).is_none_or(|known| known == then))
                }
                _ => false,
            })
    }

    /// A text of now with the recording's placeholders, as far as they are known.
    pub(super) fn as_then<'t>(&self, now: &'t str) -> Cow<'t, str> {
        if self.then.is_empty() || placeholders(now).next().is_none() {
            return Cow::Borrowed(now);
        }
        let known = |part: &Part<'t>| match part {
            Part::Text(text) => *text,
            Part::Placeholder(name, _) => name,
        };
        let then = |name: &'t str| self.then.get(name).map_or(name.to_owned(), Clone::clone);
        Cow::Owned(parts(now).iter().map(known).map(then).collect())
    }
}

enum Part<'t> {
    Text(&'t str),
    Placeholder(&'t str, u32),
}

fn parts(text: &str) -> Vec<Part<'_>> {
    let (mut parts, mut from) = (Vec::new(), 0);
    for placeholder in placeholders(text) {
        let range = placeholder.range;
        if range.start > from {
            parts.push(Part::Text(&text[from..range.start]));
        }
        parts.push(Part::Placeholder(&text[range.clone()], placeholder.number));
        from = range.end;
    }
    if from < text.len() {
        parts.push(Part::Text(&text[from..]));
    }
    parts
}

/// The text with its placeholders as they are, where a URL or a form has them encoded.
pub(super) fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains("%5B") {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("%5B") {
        plain.push_str(before);
        let inside = after.split_once("%5D").map(|(inside, after)| (format!("[{inside}]"), after));
        let found = inside.filter(|(inside, _)| placeholders(inside).any(|it| it.range == (0..inside.len())));
        match found {
            Some((placeholder, after)) => {
                plain.push_str(&placeholder);
                rest = after;
            }
            None => {
                plain.push_str("%5B");
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(names: &mut Names, then: &str, now: &str) -> bool {
        match names.url(then, now) {
            Some(learned) => {
                names.learn(learned);
                true
            }
            None => false,
        }
    }

    #[test]
    fn a_placeholder_is_what_it_was_the_first_time() {
        let mut names = Names::after(3);
        assert!(matches(&mut names, "http://h/a?customer=[redacted-1]", "http://h/a?customer=[redacted-4]"));
        assert!(matches(
            &mut names,
            "http://h/b?customer=[redacted-1]&page=2",
            "http://h/b?customer=[redacted-4]&page=2"
        ));
        assert!(!matches(&mut names, "http://h/b?customer=[redacted-1]", "http://h/b?customer=[redacted-5]"));
        assert!(!matches(&mut names, "http://h/b?customer=[redacted-2]", "http://h/b?customer=[redacted-4]"));
        assert_eq!(names.as_then("x [redacted-4] y [redacted-5]"), "x [redacted-1] y [redacted-5]");
    }

    #[test]
    fn the_recordings_own_placeholders_stand_for_themselves_however_they_are_encoded() {
        let mut names = Names::after(3);
        assert!(matches(&mut names, "http://h/cards/[card-1]/tx", "http://h/cards/%5Bcard-1%5D/tx"));
        assert!(!matches(&mut names, "http://h/cards/[card-1]/tx", "http://h/cards/%5Bcard-2%5D/tx"));
        assert_eq!(unescaped("a=%5B1%5D&b=%5Bjwt-2%5D%5B"), "a=%5B1%5D&b=[jwt-2]%5B");
    }

    #[test]
    fn a_placeholder_may_be_any_text_of_one_segment_or_value() {
        let mut names = Names::after(3);
        assert!(matches(&mut names, "http://h/a?c=[redacted-1]&d=[redacted-2]", "http://h/a?c=c1&d=x%20y"));
        for now in ["http://h/a?c=c1&d=c1", "http://h/a?c=c1&d=", "http://h/a?c=c1&d=x&e=1", "http://h/a?c=c1"] {
            assert!(!matches(&mut names, "http://h/a?c=[redacted-1]&d=[redacted-2]", now), "{now}");
        }
        assert!(!matches(&mut names, "http://h/[iban-3]", "http://h/a/b"));
        assert!(!matches(&mut names, "http://h/a", "http://h/ab"));
    }

    #[test]
    fn redacted_texts_are_the_same_when_their_placeholders_may_be() {
        let mut names = Names::after(3);
        assert!(names.same(r#"{"a":"[card-1]","b":[1]}"#, r#"{"a":"[card-1]","b":[1]}"#));
        assert!(names.same("secret=[redacted-2]&x=1", "secret=[redacted-9]&x=1"));
        assert!(!names.same("secret=[redacted-2]", "secret=[redacted-3]"), "both are of the recording");
        assert!(!names.same("secret=[redacted-2]", "secret=open"));
        names.learn(vec![("[redacted-1]".into(), "[redacted-9]".into())]);
        assert!(!names.same("secret=[redacted-2]", "secret=[redacted-9]"), "it is known to be another");
    }
}
