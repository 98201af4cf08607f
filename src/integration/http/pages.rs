//! Pagination: where the items of a page are, and where the next page is.
//!
//! Pure: an answer comes in, the place of the next page goes out. A step's pages are read one after the other until
//! there is no next one. What would go on for ever is an error, and never a shorter list: more than `max_pages`, a
//! cursor or a link that was there before, a link that leads elsewhere.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::base::Base;
use super::expression::{Names, Scope};
use super::link;
use super::template::{Template, scalar};
use crate::integration::Invalid;

/// More pages are a mistake: ask for larger ones.
const MAX_PAGES: u32 = 10_000;

/// How a bank hands out a long list. `items` is the list of one page; the step's value is the list of all.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Pagination {
    /// Each page names a cursor, which is sent back in a parameter of the query. A page without one is the last.
    Cursor {
        /// The list of one page.
        items: String,
        /// The cursor.
        next: String,
        /// What it is sent in.
        parameter: String,
        /// The most pages.
        #[serde(default = "max_pages")]
        max_pages: u32,
    },
    /// The `Link` header (RFC 8288) of each page has the URL of the next, as `rel="next"`.
    LinkHeader {
        /// The list of one page.
        items: String,
        /// The most pages.
        #[serde(default = "max_pages")]
        max_pages: u32,
    },
    /// The body of each page has the URL of the next.
    NextLink {
        /// The list of one page.
        items: String,
        /// The URL, or a part of it that is relative to the page's own.
        next: String,
        /// The most pages.
        #[serde(default = "max_pages")]
        max_pages: u32,
    },
    /// Pages have numbers. The last is the one with the number `pages`, or one without items.
    Page {
        /// The list of one page.
        items: String,
        /// What the number is sent in.
        #[serde(default = "page")]
        parameter: String,
        /// The number of the first page.
        #[serde(default = "one")]
        first: u64,
        /// The number of the last page, where the bank says it.
        #[serde(default)]
        pages: Option<String>,
        /// The most pages.
        #[serde(default = "max_pages")]
        max_pages: u32,
    },
    /// The number of items before the page is sent. The end is at `total` items, or at a page without items.
    Offset {
        /// The list of one page.
        items: String,
        /// What the offset is sent in.
        #[serde(default = "offset")]
        parameter: String,
        /// The number of all items, where the bank says it.
        #[serde(default)]
        total: Option<String>,
        /// The most pages.
        #[serde(default = "max_pages")]
        max_pages: u32,
    },
}

fn max_pages() -> u32 {
    100
}

fn one() -> u64 {
    1
}

fn page() -> String {
    "page".into()
}

fn offset() -> String {
    "offset".into()
}

/// A compiled [`Pagination`].
pub(super) struct Pages {
    pub(super) items: Template,
    max_pages: u32,
    kind: Kind,
}

enum Kind {
    Cursor { next: Template, parameter: String },
    LinkHeader,
    NextLink { next: Template },
    Page { parameter: String, first: u64, pages: Option<Template> },
    Offset { parameter: String, total: Option<Template> },
}

impl Pages {
    /// Compiles the templates, which may use `names` and the answer.
    pub(super) fn compile(pagination: &Pagination, names: Names<'_>) -> Result<Self, Invalid> {
        let names = Names { body: true, answer: true, ..names };
        let template = |key: &str, source: &str| {
            Template::compile_one(source, names).map_err(|problem| Invalid::new(key, problem))
        };
        let optional = |key: &str, source: &Option<String>| source.as_ref().map(|text| template(key, text)).transpose();
        let (items, max_pages, kind) = match pagination {
            Pagination::Cursor { items, next, parameter, max_pages } => {
                (items, max_pages, Kind::Cursor { next: template("next", next)?, parameter: parameter.clone() })
            }
            Pagination::LinkHeader { items, max_pages } => (items, max_pages, Kind::LinkHeader),
            Pagination::NextLink { items, next, max_pages } => {
                (items, max_pages, Kind::NextLink { next: template("next", next)? })
            }
            Pagination::Page { items, parameter, first, pages, max_pages } => {
                let pages = optional("pages", pages)?;
                (items, max_pages, Kind::Page { parameter: parameter.clone(), first: *first, pages })
            }
            Pagination::Offset { items, parameter, total, max_pages } => {
                let total = optional("total", total)?;
                (items, max_pages, Kind::Offset { parameter: parameter.clone(), total })
            }
        };
        let pages = Pages { items: template("items", items)?, max_pages: *max_pages, kind };
        if !(1..=MAX_PAGES).contains(max_pages) {
            return Err(Invalid::new("max_pages", format!("{max_pages} is out of range: use 1 to {MAX_PAGES}")));
        }
        match pages.parameter() {
            Some("") => Err(Invalid::new("parameter", "it is empty: name a parameter of the query")),
            _ => Ok(pages),
        }
    }

    /// The parameter of the query that it sets.
    pub(super) fn parameter(&self) -> Option<&str> {
        match &self.kind {
            Kind::Cursor { parameter, .. } | Kind::Page { parameter, .. } | Kind::Offset { parameter, .. } => {
                Some(parameter)
            }
            Kind::LinkHeader | Kind::NextLink { .. } => None,
        }
    }
}

/// Where a page is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum At<'p> {
    /// Where the step's path and query say.
    Start,
    /// There, with one parameter more.
    Parameter(&'p str, String),
    /// At a URL of its own.
    Link(String),
}

/// A page among the pages of one step.
pub(super) struct Position<'p> {
    pages: &'p Pages,
    pub(super) at: At<'p>,
    /// How many pages were read.
    read: u32,
    /// How many items they had.
    items: u64,
    seen: HashSet<String>,
}

impl<'p> Position<'p> {
    /// The first page.
    pub(super) fn first(pages: &'p Pages) -> Self {
        let at = match &pages.kind {
            Kind::Cursor { .. } | Kind::LinkHeader | Kind::NextLink { .. } => At::Start,
            Kind::Page { parameter, first, .. } => At::Parameter(parameter, first.to_string()),
            Kind::Offset { parameter, .. } => At::Parameter(parameter, "0".into()),
        };
        Position { pages, at, read: 0, items: 0, seen: HashSet::new() }
    }

    /// Takes in that `url` answered with what `scope` sees, `count` items: whether there is a next page.
    pub(super) fn advance(&mut self, base: &Base, url: &str, scope: &Scope<'_>, count: usize) -> Result<bool, String> {
        self.read += 1;
        self.items += count as u64;
        let Some(next) = self.next(base, url, scope, count)? else { return Ok(false) };
        let max_pages = self.pages.max_pages;
        if self.read >= max_pages {
            return Err(format!("there are more than {max_pages} pages; raise pagination.max_pages to read them"));
        }
        let name = match &next {
            At::Link(url) => url.as_str(),
            At::Parameter(_, value) => value.as_str(),
            At::Start => url,
        };
        self.seen.insert(base.follow(url, "").unwrap_or_default());
        if !self.seen.insert(name.to_owned()) {
            return Err("the next page is one that was read before: the pages would never end".into());
        }
        self.at = next;
        Ok(true)
    }

    fn next(&self, base: &Base, url: &str, scope: &Scope<'_>, count: usize) -> Result<Option<At<'p>>, String> {
        Ok(match &self.pages.kind {
            Kind::Cursor { next, parameter } => text(next, scope)?.map(|cursor| At::Parameter(parameter, cursor)),
            Kind::LinkHeader => {
                let headers = scope.answer.map_or(&[][..], |(_, headers)| headers);
                let values = headers.iter().filter(|(name, _)| name == "link").map(|(_, value)| value.as_str());
                link::next(values).map(|link| base.follow(url, &link)).transpose()?.map(At::Link)
            }
            Kind::NextLink { next } => {
                let link = next.present(scope).map_err(|problem| format!("pagination.next: {problem}"))?;
                if link.as_ref().is_some_and(|json| !json.starts_with('"')) {
                    return Err("pagination.next is no text: the URL of the next page is needed".into());
                }
                text(next, scope)?.map(|link| base.follow(url, &link)).transpose()?.map(At::Link)
            }
            Kind::Page { .. } | Kind::Offset { .. } if count == 0 => None,
            Kind::Page { parameter, first, pages } => {
                let (last, next) = (number(pages, scope)?, first.saturating_add(u64::from(self.read)));
                last.is_none_or(|last| next <= last).then(|| At::Parameter(parameter, next.to_string()))
            }
            Kind::Offset { parameter, total } => {
                let total = number(total, scope)?;
                let is_next = total.is_none_or(|total| self.items < total);
                is_next.then(|| At::Parameter(parameter, self.items.to_string()))
            }
        })
    }
}

fn text(template: &Template, scope: &Scope<'_>) -> Result<Option<String>, String> {
    let json = template.present(scope).map_err(|problem| format!("pagination.next: {problem}"))?;
    json.map(|json| scalar(&json).map_err(|problem| format!("pagination.next {problem}"))).transpose()
}

fn number(template: &Option<Template>, scope: &Scope<'_>) -> Result<Option<u64>, String> {
    let Some(template) = template else { return Ok(None) };
    let problem = |problem: &str| format!("how many pages or items there are {problem}");
    let Some(json) = template.present(scope).map_err(|error| problem(&error))? else { return Ok(None) };
    let text = scalar(&json).map_err(|error| problem(&error))?;
    text.parse().map(Some).map_err(|_| problem("is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integration::testing;
    use crate::task::RunId;

    const URL: &str = "https://bank.example/v1/list?a=1";

    fn compiled(json: serde_json::Value) -> Result<Pages, Invalid> {
        Pages::compile(&serde_json::from_value(json).expect("a pagination"), Names::default())
    }

    /// Where the pages are that follow a first one, each answering with a body and a number of items.
    fn places(pages: &Pages, headers: &[(String, String)], answers: &[(&str, usize)]) -> Vec<Result<String, String>> {
        let (base, task) = (Base::parse("https://bank.example/v1").expect("valid"), testing::task("{}"));
        let (mut position, mut places) = (Position::first(pages), Vec::new());
        for (body, count) in answers {
            let (body, answer) = (Some(*body), Some((200, headers)));
            let scope = Scope { task: &task, run: RunId::mint(), steps: &[], item: None, body, answer };
            places.push(match position.advance(&base, URL, &scope, *count) {
                Ok(true) => Ok(match &position.at {
                    At::Start => "start".into(),
                    At::Parameter(name, value) => format!("{name}={value}"),
                    At::Link(url) => url.clone(),
                }),
                Ok(false) => Ok("end".into()),
                Err(problem) => Err(problem),
            });
        }
        places
    }

    fn answered(pagination: serde_json::Value, answers: &[(&str, usize)]) -> Vec<String> {
        let places = places(&compiled(pagination).expect("valid"), &[], answers);
        places.into_iter().map(|place| place.unwrap_or_else(|problem| format!("error: {problem}"))).collect()
    }

    #[test]
    fn cursors_are_sent_back_until_there_is_none() {
        let cursor = serde_json::json!({ "kind": "cursor", "items": "{{ body.x }}", "next": "{{ body.next }}", "parameter": "c" });
        for last in [r#"{"next": null}"#, "{}", r#"{"next": ""}"#, "[]"] {
            let answers = [(r#"{"next": "a/b"}"#, 2), (r#"{"next": 7}"#, 0), (last, 1)];
            assert_eq!(answered(cursor.clone(), &answers), ["c=a/b", "c=7", "end"], "{last}");
        }
        let in_header = compiled(serde_json::json!({
            "kind": "cursor", "items": "{{ body }}", "next": "{{ headers['x-next'] }}", "parameter": "c"
        }));
        let (in_header, headers) = (in_header.expect("valid"), [("x-next".to_owned(), "a".to_owned())]);
        assert_eq!(places(&in_header, &headers, &[("[]", 1)]), [Ok("c=a".into())]);
        assert_eq!(places(&in_header, &[], &[("[]", 1)]), [Ok("end".into())]);
        let again = answered(cursor.clone(), &[(r#"{"next": "a"}"#, 1), (r#"{"next": "a"}"#, 1)]);
        assert!(again[1].contains("would never end"), "{again:?}");
        let list = answered(cursor, &[(r#"{"next": [1]}"#, 1)]);
        assert!(list[0].contains("is a list"), "{list:?}");
    }

    #[test]
    fn links_in_bodies_and_headers_are_followed_at_the_same_bank() {
        let in_body = serde_json::json!({ "kind": "next_link", "items": "{{ body.x }}", "next": "{{ body.l.n }}" });
        let answers = [(r#"{"l": {"n": "/v1/list?a=2"}}"#, 1), (r#"{"l": {"n": "?a=3"}}"#, 1), ("{}", 1)];
        let expected = ["https://bank.example/v1/list?a=2", "https://bank.example/v1/list?a=3", "end"];
        assert_eq!(answered(in_body.clone(), &answers), expected);
        for (link, says) in [("https://evil.example/", "another host"), ("/v2", "out of /v1/"), ("?a=1", "never end")] {
            let body = serde_json::json!({ "l": { "n": link } }).to_string();
            let places = answered(in_body.clone(), &[(&body, 1)]);
            assert!(places[0].contains(says), "{places:?}");
        }
        for link in ["7", "true", "{}"] {
            let places = answered(in_body.clone(), &[(&format!(r#"{{"l": {{"n": {link}}}}}"#), 1)]);
            assert!(places[0].contains("pagination.next is no text"), "{places:?}");
        }
        let in_header = compiled(serde_json::json!({ "kind": "link_header", "items": "{{ body }}" })).expect("valid");
        let headers = [("link".to_owned(), "</v1/list?a=0>; rel=prev, <?a=2>; rel=\"next\"".to_owned())];
        assert_eq!(places(&in_header, &headers, &[("[]", 1)]), [Ok("https://bank.example/v1/list?a=2".into())]);
        assert_eq!(places(&in_header, &[], &[("[]", 1)]), [Ok("end".into())]);
    }

    #[test]
    fn numbers_and_offsets_go_up_to_the_end() {
        let page = serde_json::json!({ "kind": "page", "items": "{{ body }}" });
        assert_eq!(answered(page, &[("[]", 5), ("[]", 5), ("[]", 0)]), ["page=2", "page=3", "end"]);
        let known = serde_json::json!({ "kind": "page", "items": "{{ body }}", "parameter": "p", "first": 0, "pages": "{{ body.last }}" });
        assert_eq!(answered(known.clone(), &[(r#"{"last": 1}"#, 5), (r#"{"last": "1"}"#, 5)]), ["p=1", "end"]);
        assert_eq!(answered(known.clone(), &[("{}", 5), ("{}", 0)]), ["p=1", "end"], "not known");
        assert!(answered(known, &[(r#"{"last": "x"}"#, 5)])[0].contains("is no number"));
        let offset = serde_json::json!({ "kind": "offset", "items": "{{ body }}" });
        assert_eq!(answered(offset, &[("[]", 5), ("[]", 3), ("[]", 0)]), ["offset=5", "offset=8", "end"]);
        let total = serde_json::json!({ "kind": "offset", "items": "{{ body }}", "parameter": "skip", "total": "{{ body.total }}" });
        assert_eq!(answered(total, &[(r#"{"total": 8}"#, 5), (r#"{"total": 8}"#, 3)]), ["skip=5", "end"]);
    }

    #[test]
    fn more_pages_than_the_limit_are_an_error_and_exactly_as_many_are_not() {
        let pages = serde_json::json!({ "kind": "page", "items": "{{ body }}", "max_pages": 2 });
        let places = answered(pages.clone(), &[("[]", 1), ("[]", 1)]);
        assert_eq!(places[1], "error: there are more than 2 pages; raise pagination.max_pages to read them");
        assert_eq!(answered(pages, &[("[]", 1), ("[]", 0)]), ["page=2", "end"]);
    }

    #[test]
    fn wrong_values_are_refused() {
        for (json, says) in [
            (serde_json::json!({ "kind": "page", "items": "{{ body }}", "max_pages": 0 }), "max_pages: 0 is out of"),
            (serde_json::json!({ "kind": "page", "items": "{{ body }}", "parameter": "" }), "parameter: it is empty"),
            (
                serde_json::json!({ "kind": "page", "items": "body.items" }),
                "items: \"body.items\" is not one expression",
            ),
            (
                serde_json::json!({ "kind": "page", "items": "{{ body }}", "pages": "body.p" }),
                "pages: \"body.p\" is not",
            ),
            (serde_json::json!({ "kind": "offset", "items": "{{ body }}", "total": "9" }), "total: \"9\" is not one"),
            (
                serde_json::json!({ "kind": "next_link", "items": "{{ body }}", "next": "/x{{ body.n }}" }),
                "next: \"/x{{ body.n }}\" is not one",
            ),
            (serde_json::json!({ "kind": "page", "items": "{{ items }}" }), "items: {{ items }} uses \"items\""),
            (serde_json::json!({ "kind": "page", "items": "{{ body }}", "pages": "{{ 1 + }}" }), "pages: "),
            (serde_json::json!({ "kind": "next_link", "items": "{{ body }}", "next": "{{ x }}" }), "next: "),
        ] {
            let error = compiled(json).err().expect(says).to_string();
            assert!(error.contains(says), "{error}");
        }
        for json in [
            serde_json::json!({ "kind": "cursor", "items": "{{ body }}", "next": "{{ body }}" }),
            serde_json::json!({ "kind": "link_header", "items": "{{ body }}", "next": "x" }),
            serde_json::json!({ "kind": "token", "items": "{{ body }}" }),
        ] {
            serde_json::from_value::<Pagination>(json.clone()).expect_err(&json.to_string());
        }
    }
}
