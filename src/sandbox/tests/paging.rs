//! Pagination of every kind over HTTP: all parts together are the whole list.

use super::*;

const PATH: &str = "/accounts/acc-0123456789abcdef/transactions";

struct Pages {
    fixture: Fixture,
    whole: Vec<Value>,
}

impl Pages {
    async fn start() -> Self {
        let fixture = Fixture::with(Config { response_bytes: 30_000, ..at_once() }, 4).await;
        let (_, body) = fixture.get(PATH, "sandbox.a").await;
        let whole = body["transactions"].as_array().expect("a list").clone();
        assert!((120..180).contains(&whole.len()), "{}", whole.len());
        Pages { fixture, whole }
    }

    async fn get(&self, query: &str) -> Value {
        let (status, body) = self.fixture.get(&format!("{PATH}?{query}"), "sandbox.a").await;
        assert_eq!(status, 200, "{query}: {body}");
        body
    }

    /// Follows pages from a query; `next` says from a page which query is next.
    async fn follow(&self, first: String, next: impl Fn(&Value) -> Option<String>) -> usize {
        let (mut collected, mut query, mut pages) = (Vec::new(), Some(first), 0);
        while let Some(asked) = query {
            let body = self.get(&asked).await;
            collected.extend(body["transactions"].as_array().expect("a list").iter().cloned());
            (query, pages) = (next(&body), pages + 1);
            assert!(pages < 100, "there is no end");
        }
        assert_eq!(collected, self.whole);
        pages
    }
}

#[tokio::test]
async fn page_numbers_lead_through_the_whole_list() {
    let pages = Pages::start().await;
    let (total, size) = (pages.whole.len(), 40);
    let followed = pages
        .follow(format!("page=1&page_size={size}"), |body| {
            assert_eq!((&body["total"], &body["pages"]), (&json!(total), &json!(total.div_ceil(size))));
            let page = body["page"].as_u64().expect("a number");
            (page < body["pages"].as_u64()?).then(|| format!("page={}&page_size={size}", page + 1))
        })
        .await;
    assert_eq!(followed, total.div_ceil(size));
    assert_eq!(pages.get("page=99&page_size=40").await["transactions"], json!([]), "beyond the end there is nothing");
    pages.fixture.stop().await;
}

#[tokio::test]
async fn offsets_lead_through_the_whole_list() {
    let pages = Pages::start().await;
    let next = |body: &Value| {
        let offset = body["offset"].as_u64()? + body["limit"].as_u64()?;
        (offset < body["total"].as_u64()?).then(|| format!("offset={offset}&limit=35"))
    };
    pages.follow("offset=0&limit=35".into(), next).await;
    pages.fixture.stop().await;
}

#[tokio::test]
async fn cursors_lead_through_the_whole_list() {
    let pages = Pages::start().await;
    let next = |body: &Value| {
        assert!(body.as_object().expect("an object").contains_key("next_cursor"), "null at the end, but there");
        body["next_cursor"].as_str().map(|cursor| format!("cursor={cursor}&limit=35"))
    };
    pages.follow("cursor=&limit=35".into(), next).await;
    // Exactly as many as there are leave no empty page at the end.
    assert_eq!(pages.follow(format!("pagination=cursor&limit={}", pages.whole.len()), next).await, 1);
    pages.fixture.stop().await;
}

#[tokio::test]
async fn links_in_the_body_lead_through_the_whole_list() {
    let pages = Pages::start().await;
    let base = format!("http://{}{PATH}?", pages.fixture.sandbox.local_addr);
    let next = |body: &Value| {
        let link = body["links"].as_object().expect("links").get("next")?.as_str().expect("a link");
        Some(link.strip_prefix(&base).expect("a full URL").to_owned())
    };
    pages.follow("pagination=next&limit=35".into(), next).await;
    pages.fixture.stop().await;
}

#[tokio::test]
async fn link_headers_lead_through_the_whole_list() {
    let pages = Pages::start().await;
    let mut url = Some(format!("http://{}{PATH}?pagination=link&limit=35&x=y", pages.fixture.sandbox.local_addr));
    let mut collected = Vec::new();
    while let Some(asked) = url {
        assert!(asked.contains("x=y"), "the rest of the query stays: {asked}");
        let answer = pages.fixture.send(|_| Request::get(asked).header("authorization", "Bearer sandbox.a")).await;
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body.as_object().map(|body| body.len()), Some(2), "nothing about pages is in the body");
        collected.extend(body["transactions"].as_array().expect("a list").iter().cloned());
        url = answer.header("link").map(|link| {
            let url = link.strip_prefix('<').and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
            url.unwrap_or_else(|| panic!("{link}")).to_owned()
        });
    }
    assert_eq!(collected, pages.whole);
    pages.fixture.stop().await;
}

#[tokio::test]
async fn a_query_that_makes_no_sense_is_refused() {
    let pages = Pages::start().await;
    for query in ["page=0", "cursor=abc", "pagination=scroll", "offset=0&limit=0", "page=1&offset=1", "limit=many"] {
        let (status, body) = pages.fixture.get(&format!("{PATH}?{query}"), "sandbox.a").await;
        assert_eq!(status, 400, "{query}: {body}");
    }
    pages.fixture.stop().await;
}
