//! Each kind of pagination against a bank that pages that way.

use axum::extract::RawQuery;
use axum::http::Uri;

use super::*;

/// Five amounts, which floats would change, in pages of two.
const AMOUNTS: [&str; 5] = ["1.10", "12345678901234567.10", "3e0", "-0.40", "5.50"];

fn parameter(query: &Option<String>, name: &str) -> Option<String> {
    let pairs = url::form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes());
    pairs.into_owned().find(|(known, _)| known == name).map(|(_, value)| value)
}

fn json(body: String) -> impl IntoResponse {
    ([("content-type", "application/json")], body)
}

/// The list of the page that starts at `start`.
fn list(start: usize) -> String {
    let end = (start + 2).min(AMOUNTS.len());
    format!("[{}]", AMOUNTS[start.min(end)..end].join(", "))
}

fn next(start: usize) -> Option<usize> {
    Some(start + 2).filter(|next| *next < AMOUNTS.len())
}

fn api() -> Router {
    let start = |query: &Option<String>, name: &str| {
        parameter(query, name).map_or(0, |value| value.trim_start_matches("c/").parse().expect("a number"))
    };
    let cursor = move |RawQuery(query): RawQuery| async move {
        let start = start(&query, "cursor");
        let next = next(start).map_or("null".into(), |next| format!("\"c/{next}\""));
        json(format!("{{\"items\": {}, \"next\": {next}}}", list(start)))
    };
    let header = move |RawQuery(query): RawQuery| async move {
        let start = start(&query, "start");
        let next = next(start).map_or(String::new(), |next| format!(", <?start={next}>; rel=\"next\""));
        ([("link", format!("</v1/header>; rel=first{next}"))], json(list(start)))
    };
    let body = move |uri: Uri, headers: HeaderMap, RawQuery(query): RawQuery| async move {
        let start = start(&query, "start");
        let host = headers["host"].to_str().expect("a text").to_owned();
        let next = next(start).map(|next| format!("\"Next\": \"http://{host}/v1{}?start={next}\"", uri.path()));
        json(format!("{{\"Data\": {}, \"Links\": {{{}}}}}", list(start), next.unwrap_or_default()))
    };
    let page = move |RawQuery(query): RawQuery| async move {
        let page: usize = parameter(&query, "page").and_then(|page| page.parse().ok()).expect("a number");
        json(format!("{{\"items\": {}, \"pages\": 3}}", list(2 * (page - 1))))
    };
    let offset = move |RawQuery(query): RawQuery| async move {
        json(format!("{{\"items\": {}, \"total\": 5}}", list(start(&query, "offset"))))
    };
    Router::new()
        .route("/cursor", get(cursor))
        .route("/header", get(header))
        .route("/body", get(body))
        .route("/page", get(page))
        .route("/offset", get(offset))
        .route("/evil", get(|| async { Body(json!({ "items": [1], "next": "http://127.0.0.1:1/v1/" })) }))
        .route("/loop", get(|| async { Body(json!({ "items": [1], "next": "same" })) }))
}

fn step(path: &str, pagination: &str) -> String {
    format!("steps = [{{ name = \"list\", path = \"{path}\", query = {{ a = 1 }}, pagination = {{ {pagination} }} }}]")
}

#[tokio::test]
async fn every_kind_reads_all_pages_and_keeps_each_digit() {
    let bank = Bank::serving(api()).await;
    let items = "items = \"{{ body.items }}\"";
    for (path, pagination, queries) in [
        (
            "/cursor",
            format!("kind = \"cursor\", {items}, next = \"{{{{ body.next }}}}\", parameter = \"cursor\""),
            &["?a=1", "?a=1&cursor=c%2F2", "?a=1&cursor=c%2F4"][..],
        ),
        ("/header", "kind = \"link_header\", items = \"{{ body }}\"".into(), &["?a=1", "?start=2", "?start=4"]),
        (
            "/body",
            "kind = \"next_link\", items = \"{{ body.Data }}\", next = \"{{ body.Links.Next }}\"".into(),
            &["?a=1", "?start=2", "?start=4"],
        ),
        ("/page", format!("kind = \"page\", {items}"), &["?a=1&page=1", "?a=1&page=2", "?a=1&page=3", "?a=1&page=4"]),
        (
            "/page",
            format!("kind = \"page\", {items}, pages = \"{{{{ body.pages }}}}\""),
            &["?a=1&page=1", "?a=1&page=2", "?a=1&page=3"],
        ),
        (
            "/offset",
            format!("kind = \"offset\", {items}"),
            &["?a=1&offset=0", "?a=1&offset=2", "?a=1&offset=4", "?a=1&offset=5"],
        ),
        (
            "/offset",
            format!("kind = \"offset\", {items}, total = \"{{{{ body.total }}}}\""),
            &["?a=1&offset=0", "?a=1&offset=2", "?a=1&offset=4"],
        ),
    ] {
        let context = testing::context("{}");
        let output = bank.run_in(&step(path, &pagination), &context).await.expect(&pagination);
        assert_eq!(output, format!("[{}]", AMOUNTS.join(",")), "{pagination}");
        let expected: Vec<_> = queries.iter().map(|query| format!("GET {path}{query} 200")).collect();
        assert_eq!(said(&context).0, expected, "{pagination}");
    }
    bank.stop().await;
}

#[tokio::test]
async fn a_page_limit_a_loop_and_a_link_elsewhere_are_errors_and_no_shorter_list() {
    let bank = Bank::serving(api()).await;
    for (path, pagination, says, requests) in [
        (
            "/cursor",
            r#"kind = "cursor", items = "{{ body.items }}", next = "{{ body.next }}", parameter = "cursor", max_pages = 2"#,
            "step list: there are more than 2 pages; raise pagination.max_pages to read them",
            2,
        ),
        (
            "/loop",
            r#"kind = "cursor", items = "{{ body.items }}", next = "{{ body.next }}", parameter = "cursor""#,
            "step list: the next page is one that was read before: the pages would never end",
            2,
        ),
        (
            "/evil",
            r#"kind = "next_link", items = "{{ body.items }}", next = "{{ body.next }}""#,
            "step list: the next page's link leads to another host: credentials stay with base_url's",
            1,
        ),
        (
            "/evil",
            r#"kind = "link_header", items = "{{ body.none }}""#,
            "step list: pagination.items: {{ body.none }} is not there: \"none\" is missing",
            1,
        ),
        (
            "/evil",
            r#"kind = "link_header", items = "{{ body.next }}""#,
            "step list: pagination.items: a list is needed here",
            1,
        ),
    ] {
        let context = testing::context("{}");
        let error = bank.run_in(&step(path, pagination), &context).await.expect_err(says);
        assert_eq!(error, Error::permanent(says));
        assert_eq!(said(&context).0.len(), requests, "{says}");
    }
    bank.stop().await;
}
