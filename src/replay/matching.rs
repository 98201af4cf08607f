//! Which recorded exchange belongs to a request: by method and URL, then by body, each once, in recorded order.
//!
//! The method and the URL must be the same. Of several recorded ones, one with the same body comes first; a body alone
//! keeps none away, for a body may hold a time or a number that is new in each run. A recording of another host serves,
//! too: which one a configuration names is no part of what the code does.

use super::pattern::{Learned, Names};
use crate::payload::RecordedExchange;
use crate::payload::redact::placeholders;
use crate::task::transcript::{Exchange, Message};

/// The recorded requests that are named where one is missing.
const MAX_NEAREST: usize = 3;

/// A recorded exchange and whether it has been matched.
pub(super) struct Entry<'e> {
    pub(super) recorded: &'e RecordedExchange,
    pub(super) is_used: bool,
}

/// The one that belongs to a request, and what follows for placeholders.
pub(super) struct Found {
    pub(super) position: usize,
    pub(super) learned: Learned,
    /// Whether it is another request, the nearest one.
    pub(super) is_nearest: bool,
}

/// The recorded exchange that answers the request `now`, which is redacted: its own, or else, where that is wanted, the
/// nearest.
pub(super) fn answer(
    entries: &[Entry<'_>],
    names: &Names,
    now: &RecordedExchange,
    takes_similar: bool,
) -> Option<Found> {
    find(entries, names, now).or_else(|| similar(entries, names, now).filter(|_| takes_similar))
}

/// The recorded exchange of the request `now`.
fn find(entries: &[Entry<'_>], names: &Names, now: &RecordedExchange) -> Option<Found> {
    let unused = entries.iter().enumerate().filter(|(_, entry)| !entry.is_used);
    let found = unused.filter_map(|(position, entry)| {
        let then = &entry.recorded.exchange;
        let (learned, elsewhere) = fits(names, then, &now.exchange)?;
        let rank = (elsewhere, !same_body(names, entry.recorded, now));
        Some((rank, Found { position, learned, is_nearest: false }))
    });
    // The first of those that fit best.
    found.min_by_key(|(rank, _)| *rank).map(|(_, found)| found)
}

/// The first that is left with the method and the path of the request `now`, whatever else is different.
fn similar(entries: &[Entry<'_>], names: &Names, now: &RecordedExchange) -> Option<Found> {
    let fits = |entry: &Entry<'_>| {
        let (then, now) = (&entry.recorded.exchange, &now.exchange);
        !entry.is_used && then.method == now.method && names.url(path(&then.url), path(&now.url)).is_some()
    };
    let position = entries.iter().position(fits)?;
    Some(Found { position, learned: Learned::new(), is_nearest: true })
}

/// What follows when the request is the recorded one, and whether it goes to another host.
fn fits(names: &Names, then: &Exchange, now: &Exchange) -> Option<(Learned, bool)> {
    if then.method != now.method {
        return None;
    }
    match names.url(&then.url, &now.url) {
        Some(learned) => Some((learned, false)),
        None => names.url(after_origin(&then.url), after_origin(&now.url)).map(|learned| (learned, true)),
    }
}

/// Whether the bodies of two requests are the same, as far as they are known.
pub(super) fn same_body(names: &Names, then: &RecordedExchange, now: &RecordedExchange) -> bool {
    let (was, is) = (&then.exchange.request, &now.exchange.request);
    let unknown = then.request_withheld.is_some() || now.request_withheld.is_some() || is_cut(was) || is_cut(is);
    unknown || was.body == is.body || names.same(&text(was), &text(is))
}

/// Whether a body is there in part only.
pub(super) fn is_cut(message: &Message) -> bool {
    message.body_bytes > message.body.len() as u64
}

pub(super) fn text(message: &Message) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(&message.body)
}

/// Why there is nothing for the request `now`: what the recording has instead.
pub(super) fn missing(entries: &[Entry<'_>], names: &Names, now: &RecordedExchange) -> String {
    let (method, url) = (&now.exchange.method, shown(entries, names, now));
    let asked = format!("{method} {}", after_origin(&url));
    let times = entries.iter().filter(|entry| fits(names, &entry.recorded.exchange, &now.exchange).is_some()).count();
    if times > 0 {
        let times = if times == 1 { "once".to_owned() } else { format!("{times} times") };
        return format!("the recording has {asked} {times}, and this is one more");
    }
    let mut nearest = nearest(entries, method, &url);
    let mut shown: Vec<String> = Vec::new();
    for Exchange { method, url, .. } in nearest.iter().copied().filter(|then| is_of_path(then, method, &url)) {
        let one = format!("{method} {}", after_origin(url));
        if !shown.contains(&one) {
            shown.push(one);
        }
    }
    if let [first, others @ ..] = &shown[..] {
        let query = match url.split_once('?') {
            Some((_, query)) => format!("?{query}"),
            None => "without a query".to_owned(),
        };
        let more = match others.len() {
            0 => String::new(),
            1 => " and one more query of this path".to_owned(),
            more => format!(" and {more} more queries of this path"),
        };
        return format!("the recording has {first}{more}, not {query}");
    }
    nearest.truncate(MAX_NEAREST);
    let shown: Vec<String> =
        nearest.iter().map(|Exchange { method, url, .. }| format!("{method} {}", after_origin(url))).collect();
    let more = match entries.len().saturating_sub(shown.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match shown.is_empty() {
        true => format!("the recording has no request, and so not {asked}"),
        false => format!("the recording has {}{more}, not {asked}", shown.join(", ")),
    }
}

/// The URL of a request that is not in the recording, with the recording's placeholders: where it is known what they stand
/// for, and where the nearest one of the same path has one for the same value of the query.
pub(super) fn shown(entries: &[Entry<'_>], names: &Names, now: &RecordedExchange) -> String {
    let (method, url) = (&now.exchange.method, names.as_then(&now.exchange.url).into_owned());
    let nearest = nearest(entries, method, &url).into_iter().find(|then| is_of_path(then, method, &url));
    match (nearest, url.split_once('?')) {
        (Some(then), Some((path, query))) => format!("{path}?{}", towards(names, &then.url, query)),
        _ => url,
    }
}

/// The recorded requests, the most alike first, and of equals the last: what is missing mostly comes after what there is.
fn nearest<'e>(entries: &[Entry<'e>], method: &str, url: &str) -> Vec<&'e Exchange> {
    let mut nearest: Vec<&Exchange> = entries.iter().rev().map(|entry| &entry.recorded.exchange).collect();
    nearest.sort_by_key(|then| std::cmp::Reverse(likeness(then, method, url)));
    nearest
}

/// A query with the placeholders of a recorded request where they may be the same.
fn towards(names: &Names, recorded: &str, query: &str) -> String {
    let (_, then) = recorded.split_once('?').unwrap_or_default();
    let pair = |now: &str| {
        let may_be = |then: &&str| key(then) == key(now) && placeholders(then).next().is_some();
        let then = then.split('&').find(|then| may_be(then) && names.url(then, now).is_some());
        then.unwrap_or(now).to_owned()
    };
    query.split('&').map(pair).collect::<Vec<_>>().join("&")
}

fn key(pair: &str) -> &str {
    pair.split('=').next().unwrap_or_default()
}

fn is_of_path(then: &Exchange, method: &str, url: &str) -> bool {
    then.method == method && path(&then.url) == path(url)
}

/// How much of a request is in a recorded one: segments of the path, parts of the query, and the method.
fn likeness(then: &Exchange, method: &str, url: &str) -> usize {
    let pieces = |url: &str| -> Vec<String> { url.split(['/', '?', '&']).map(str::to_owned).collect() };
    let (was, is) = (pieces(after_origin(&then.url)), pieces(after_origin(url)));
    let common = is.iter().filter(|piece| !piece.is_empty() && was.contains(piece)).count();
    2 * common + usize::from(then.method == method)
}

/// What a URL has after scheme and host.
pub(super) fn after_origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    url[start..].find(['/', '?']).map_or("/", |at| &url[start + at..])
}

/// Scheme and host of a URL.
pub(super) fn origin(url: &str) -> &str {
    url.strip_suffix(after_origin(url)).unwrap_or(url)
}

fn path(url: &str) -> &str {
    after_origin(url).split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::task::transcript::Phases;

    fn request(method: &str, url: &str, body: &str) -> RecordedExchange {
        let request = Message { body: body.to_owned().into(), body_bytes: body.len() as u64, ..Message::default() };
        let exchange = Exchange {
            started: SystemTime::UNIX_EPOCH,
            request,
            method: method.into(),
            url: url.into(),
            response: None,
            error: None,
            fault: None,
            phases: Phases::default(),
        };
        RecordedExchange { exchange, request_withheld: None, response_withheld: None }
    }

    fn entries(recorded: &[RecordedExchange]) -> Vec<Entry<'_>> {
        recorded.iter().map(|recorded| Entry { recorded, is_used: false }).collect()
    }

    /// Matches one request after the other: where each was found.
    fn replay(recorded: &[RecordedExchange], asked: &[RecordedExchange]) -> Vec<Option<usize>> {
        let (mut entries, mut names) = (entries(recorded), Names::after(9));
        let mut one = |now: &RecordedExchange| {
            let Found { position, learned, .. } = find(&entries, &names, now)?;
            entries[position].is_used = true;
            names.learn(learned);
            Some(position)
        };
        asked.iter().map(&mut one).collect()
    }

    #[test]
    fn each_recorded_request_is_found_once_and_in_order() {
        let get = |url: &str| request("GET", url, "");
        let recorded = [get("http://h/a"), get("http://h/b?page=1"), get("http://h/a"), get("http://h/b?page=2")];
        let asked = [get("http://h/b?page=2"), get("http://h/a"), get("http://h/a"), get("http://h/a")];
        assert_eq!(replay(&recorded, &asked), [Some(3), Some(0), Some(2), None]);
        assert_eq!(replay(&recorded, &[request("POST", "http://h/a", ""), get("http://h/b?page=3")]), [None, None]);
    }

    #[test]
    fn the_same_body_comes_first_and_another_one_serves() {
        let post = |body: &str| request("POST", "http://h/q", body);
        let recorded = [post(r#"{"n":1}"#), post(r#"{"n":2,"key":"[redacted-3]"}"#), post(r#"{"n":3}"#)];
        let asked = [post(r#"{"n":2,"key":"[redacted-11]"}"#), post(r#"{"n":3}"#), post(r#"{"n":9}"#)];
        assert_eq!(replay(&recorded, &asked), [Some(1), Some(2), Some(0)]);
    }

    #[test]
    fn loops_over_redacted_values_find_their_own_pages() {
        let get = |url: &str| request("GET", url, "");
        let recorded = [
            get("http://h/t?account=[redacted-1]"),
            get("http://h/t?account=[redacted-2]"),
            get("http://h/t?account=[redacted-2]&page=2"),
            get("http://h/t?account=[redacted-1]&page=2"),
        ];
        let asked = [
            get("http://h/t?account=[redacted-10]"),
            get("http://h/t?account=[redacted-11]"),
            get("http://h/t?account=[redacted-10]&page=2"),
            get("http://h/t?account=[redacted-11]&page=2"),
        ];
        assert_eq!(replay(&recorded, &asked), [Some(0), Some(1), Some(3), Some(2)]);
    }

    #[test]
    fn another_host_serves_when_the_recorded_one_is_not_asked() {
        let get = |url: &str| request("GET", url, "");
        let recorded = [get("https://a.example/x?page=1"), get("https://b.example/x?page=1")];
        assert_eq!(replay(&recorded, &[get("https://b.example/x?page=1")]), [Some(1)]);
        assert_eq!(replay(&recorded, &[get("http://localhost:1/x?page=1")]), [Some(0)]);
    }

    #[test]
    fn what_is_missing_is_named_with_the_nearest() {
        let get = |url: &str| request("GET", url, "");
        let recorded = [
            get("http://h/accounts?page=1"),
            get("http://h/accounts?page=2"),
            get("http://h/cards/7/tx"),
            get("http://h/q?by=[redacted-3]&page=1"),
        ];
        let says = |asked: &RecordedExchange| missing(&entries(&recorded), &Names::after(3), asked);
        for (asked, text) in [
            (
                get("http://h/accounts?page=3"),
                "the recording has GET /accounts?page=2 and one more query of this path, not ?page=3",
            ),
            (
                get("http://h/accounts"),
                "the recording has GET /accounts?page=2 and one more query of this path, not without a query",
            ),
            (
                get("http://h/q?by=[redacted-9]&page=2"),
                "the recording has GET /q?by=[redacted-3]&page=1, not ?by=[redacted-3]&page=2",
            ),
            (get("http://h/cards/7/tx"), "the recording has GET /cards/7/tx once, and this is one more"),
            (
                request("POST", "http://h/cards/8/tx", ""),
                "the recording has GET /cards/7/tx, GET /q?by=[redacted-3]&page=1, GET /accounts?page=2 and 1 more, not POST /cards/8/tx",
            ),
        ] {
            assert_eq!(says(&asked), text);
        }
        let none = missing(&[], &Names::after(0), &get("http://h/a"));
        assert_eq!(none, "the recording has no request, and so not GET /a");
    }

    #[test]
    fn urls_fall_into_origin_and_rest() {
        for (url, parts) in [
            ("http://h:1/a?b", ("http://h:1", "/a?b")),
            ("http://h", ("http://h", "/")),
            ("http://h?x", ("http://h", "?x")),
        ] {
            assert_eq!((origin(url), after_origin(url)), parts);
        }
    }
}
