//! Pagination of every kind: which part of a list a query asks for, and where the next part is.
//!
//! `pagination=KIND` selects the kind; so does a parameter that only this kind has.
//!
//! | kind | asked with | and then | the end |
//! |---|---|---|---|
//! | none | `limit` | there is no more | |
//! | `page` | `page` (from 1), `page_size` | `page`, `page_size`, `pages`, `total` in the body | `page` is `pages` |
//! | `offset` | `offset`, `limit` | `offset`, `limit`, `total` in the body | `offset` + `limit` reaches `total` |
//! | `cursor` | `cursor` (empty at first), `limit` | `next_cursor` in the body | `next_cursor` is null |
//! | `link` | `pagination=link`, `limit` | a `Link` header with `rel="next"` (RFC 8288), a full URL | no such link |
//! | `next` | `pagination=next`, `limit` | `links.next` in the body, a full URL | no `next` in `links` |
//!
//! A part has 50 unless the query says otherwise, 1 to 1,000. All parts together are the list, in its order. Cursors are
//! opaque, and one that is not the bank's own is refused.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::bank::Random;

const DEFAULT_SIZE: usize = 50;
const MAX_SIZE: usize = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    None,
    Page,
    Offset,
    Cursor,
    Link,
    Next,
}

/// A part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) kind: Kind,
    pub(super) offset: usize,
    pub(super) size: usize,
}

/// A query's parameters, in its order.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn read(query: Option<&str>) -> Self {
        let parse = |query: &str| url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Query(query.map(parse).unwrap_or_default())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A number, where there is one.
    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, &'static str> {
        let number = |text: &str| text.parse().map_err(|_| "a limit, an offset, a page or a page size is no number");
        self.get(name).map(number).transpose()
    }

    /// The same query with this parameter instead.
    pub(super) fn with(&self, name: &str, value: &str) -> String {
        let mut changed = url::form_urlencoded::Serializer::new(String::new());
        changed.extend_pairs(self.0.iter().filter(|(key, _)| key != name)).append_pair(name, value);
        changed.finish()
    }
}

impl Part {
    /// What the query asks for. Cursors are of this `list`, such as an account's id.
    pub(super) fn read(query: &Query, seed: u64, list: &str) -> Result<Part, &'static str> {
        let kind = Kind::read(query)?;
        let size_key = if kind == Kind::Page { "page_size" } else { "limit" };
        let size = query.number(size_key)?;
        if kind == Kind::None {
            return Ok(Part { kind, offset: 0, size: size.unwrap_or(usize::MAX) });
        }
        let size = checked_size(size)?;
        let offset = match kind {
            Kind::Page => match query.number("page")?.unwrap_or(1).checked_sub(1) {
                Some(before) => before.saturating_mul(size),
                None => return Err("the first page is 1"),
            },
            Kind::Offset => query.number("offset")?.unwrap_or(0),
            _ => match query.get("cursor").filter(|cursor| !cursor.is_empty()) {
                Some(cursor) => read_cursor(seed, list, cursor).ok_or("the cursor is not one of this list")?,
                None => 0,
            },
        };
        Ok(Part { kind, offset, size })
    }

    /// The elements of this part.
    pub(super) fn of<'a, T>(&self, list: &'a [T]) -> &'a [T] {
        let from = self.offset.min(list.len());
        &list[from..from.saturating_add(self.size).min(list.len())]
    }

    /// Where the next part of a list of this length begins, if there is one.
    pub(super) fn next(&self, total: usize) -> Option<usize> {
        Some(self.offset.saturating_add(self.size)).filter(|next| *next < total)
    }
}

/// A part's size, where the query may name one.
pub(super) fn checked_size(size: Option<usize>) -> Result<usize, &'static str> {
    let size = size.unwrap_or(DEFAULT_SIZE);
    if !(1..=MAX_SIZE).contains(&size) {
        return Err("the size of a part is out of range: use 1 to 1000");
    }
    Ok(size)
}

impl Kind {
    fn read(query: &Query) -> Result<Kind, &'static str> {
        let by_parameter =
            [("page", Kind::Page), ("page_size", Kind::Page), ("offset", Kind::Offset), ("cursor", Kind::Cursor)];
        let mut found = match query.get("pagination") {
            None => None,
            Some("page") => Some(Kind::Page),
            Some("offset") => Some(Kind::Offset),
            Some("cursor") => Some(Kind::Cursor),
            Some("link") => Some(Kind::Link),
            Some("next") => Some(Kind::Next),
            Some(_) => return Err("the pagination is not known: use page, offset, cursor, link or next"),
        };
        for (parameter, kind) in by_parameter {
            if query.get(parameter).is_none() {
                continue;
            }
            // The links themselves carry cursors.
            let follows_link = parameter == "cursor" && matches!(found, Some(Kind::Link | Kind::Next));
            match found {
                Some(other) if other != kind && !follows_link => return Err("the query mixes kinds of pagination"),
                Some(_) => {}
                None => found = Some(kind),
            }
        }
        Ok(found.unwrap_or(Kind::None))
    }
}

/// The cursor of a place in a list.
pub(super) fn cursor(seed: u64, list: &str, offset: usize) -> String {
    let check = Random::new(seed, &["cursor", list, &offset.to_string()]).next() as u32;
    BASE64_URL_SAFE_NO_PAD.encode(format!("{offset}.{check:08x}"))
}

pub(super) fn read_cursor(seed: u64, list: &str, text: &str) -> Option<usize> {
    let decoded = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let offset = decoded.split_once('.')?.0.parse().ok()?;
    (cursor(seed, list, offset) == text).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(query: &str) -> Result<Part, &'static str> {
        Part::read(&Query::read(Some(query)), 1, "a")
    }

    #[test]
    fn the_kind_is_named_or_told_by_a_parameter() {
        for (query, kind, offset, size) in [
            ("", Kind::None, 0, usize::MAX),
            ("limit=3", Kind::None, 0, 3),
            ("page=2&page_size=10", Kind::Page, 10, 10),
            ("page_size=10", Kind::Page, 0, 10),
            ("pagination=page", Kind::Page, 0, 50),
            ("offset=100&limit=50", Kind::Offset, 100, 50),
            ("cursor=&limit=7", Kind::Cursor, 0, 7),
            ("pagination=cursor&limit=7", Kind::Cursor, 0, 7),
            (&format!("cursor={}", cursor(1, "a", 70)), Kind::Cursor, 70, 50),
            ("pagination=link&limit=7", Kind::Link, 0, 7),
            (&format!("pagination=next&cursor={}", cursor(1, "a", 9)), Kind::Next, 9, 50),
        ] {
            assert_eq!(part(query), Ok(Part { kind, offset, size }), "{query}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (query, expected) in [
            ("pagination=scroll", "is not known"),
            ("page=1&cursor=", "mixes"),
            ("pagination=link&page=2", "mixes"),
            ("pagination=offset&cursor=x", "mixes"),
            ("page=0", "the first page is 1"),
            ("page=two", "no number"),
            ("limit=-1", "no number"),
            ("offset=0&limit=0", "1 to 1000"),
            ("offset=0&limit=1001", "1 to 1000"),
            ("cursor=NzA", "not one of this list"),
            (&format!("cursor={}", cursor(1, "b", 70)), "not one of this list"),
            (&format!("cursor={}", cursor(2, "a", 70)), "not one of this list"),
        ] {
            let error = part(query).expect_err(query);
            assert!(error.contains(expected), "{query}: {error}");
        }
    }

    #[test]
    fn parts_end_where_the_list_does() {
        let list: Vec<_> = (0..120).collect();
        let part = |offset| Part { kind: Kind::Offset, offset, size: 50 };
        assert_eq!((part(0).of(&list), part(0).next(120)), (&list[..50], Some(50)));
        assert_eq!((part(100).of(&list), part(100).next(120)), (&list[100..], None));
        assert_eq!((part(70).of(&list), part(70).next(120)), (&list[70..], None), "exactly to the end");
        assert!(part(120).of(&list).is_empty() && part(usize::MAX).of(&list).is_empty());
        assert_eq!(part(usize::MAX).next(120), None);
    }

    #[test]
    fn a_next_link_keeps_the_rest_of_the_query() {
        let query = Query::read(Some("limit=5&cursor=old&api_key=sandbox.a%20b"));
        assert_eq!(query.with("cursor", "new"), "limit=5&api_key=sandbox.a+b&cursor=new");
    }
}
