//! Steps that run for each item of a list.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Barrier;

use super::*;

/// A bank that answers about an item only when `together` requests are there at the same time.
fn api(together: usize, most: Arc<AtomicUsize>) -> Router {
    let (barrier, now) = (Arc::new(Barrier::new(together)), Arc::new(AtomicUsize::new(0)));
    let item = move |Path(id): Path<u64>| {
        let (barrier, now, most) = (barrier.clone(), now.clone(), most.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            barrier.wait().await;
            now.fetch_sub(1, Ordering::SeqCst);
            ([("content-type", "application/json")], format!("{{\"id\": {id}, \"amount\": {id}.10}}"))
        }
    };
    // Refuses the second item once the first one has been asked about, which it never answers.
    let both = Arc::new(Barrier::new(2));
    let turn = move |Path(id): Path<u64>| {
        let both = both.clone();
        async move {
            both.wait().await;
            match id {
                0 => std::future::pending().await,
                _ => StatusCode::NOT_FOUND,
            }
        }
    };
    Router::new()
        .route("/items", get(|| async { Body(json!({ "items": [3, 1, 2, 6, 5, 4, 9, 8, 7] })) }))
        .route("/items/{id}", get(item))
        .route("/turns/{id}", get(turn))
}

const LOOP: &str = r#"
    steps = [
        { name = "items", path = "/items" },
        { name = "each", for_each = "{{ steps.items.items }}", parallel = 3, path = "/items/{{ item }}" },
    ]
"#;

#[tokio::test]
async fn as_many_items_as_allowed_are_asked_about_at_a_time_and_their_order_stays() {
    let most = Arc::new(AtomicUsize::new(0));
    let bank = Bank::serving(api(3, most.clone())).await;
    let context = testing::context("{}");
    // It would never end with fewer than three at a time.
    let output = bank.run_in(LOOP, &context).await.expect("it runs");
    let expected: Vec<_> =
        [3, 1, 2, 6, 5, 4, 9, 8, 7].iter().map(|id| format!("{{\"id\": {id}, \"amount\": {id}.10}}")).collect();
    assert_eq!(output, format!("[{}]", expected.join(",")));
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!(said(&context).0.len(), 10);
    bank.stop().await;
}

#[tokio::test]
async fn items_are_asked_about_one_by_one_unless_configured_otherwise_and_a_value_is_made_for_each() {
    let most = Arc::new(AtomicUsize::new(0));
    let bank = Bank::serving(api(1, most.clone())).await;
    let toml = r#"
        steps = [
            { name = "each", for_each = "{{ input.ids }}", path = "/items/{{ item.id }}", query = { of = "{{ item.id }}" },
              value = { id = "{{ item.id }}", amount = "{{ body.amount }}" } },
            { name = "none", for_each = "{{ input.nothing }}", path = "/never" },
            { name = "skipped", when = "{{ input.more }}", path = "/never" },
        ]
        result = ["{{ steps.each }}", "{{ steps.none }}", "{{ steps.skipped }}"]
    "#;
    let context = testing::context(r#"{"ids": [{"id": 2}, {"id": 1}], "nothing": []}"#);
    let output = bank.run_in(toml, &context).await.expect("it runs");
    assert_eq!(output, r#"[[{"amount":2.10,"id":2},{"amount":1.10,"id":1}],[],null]"#);
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert_eq!(said(&context).0, ["GET /items/2?of=2 200", "GET /items/1?of=1 200"]);
    bank.stop().await;
}

#[tokio::test]
async fn an_item_that_fails_fails_the_step_at_once_and_drops_the_others() {
    let bank = Bank::serving(api(1, Arc::default())).await;
    let turns = r#"steps = [{ name = "t", for_each = "{{ input }}", parallel = 2, path = "/turns/{{ item }}" }]"#;
    let context = testing::context("[0, 1, 2]");
    let error = bank.run_in(turns, &context).await.expect_err("item 1 fails");
    assert_eq!(error, Error::permanent("step t: item 1: GET /turns/{{ item }} answered with status 404"));
    assert_eq!(said(&context).0, ["GET /turns/1 404", "GET /turns/0 cancelled"]);
    bank.stop().await;
}

#[tokio::test]
async fn too_many_items_or_no_list_are_errors_that_name_the_key() {
    let bank = Bank::serving(api(1, Arc::default())).await;
    let toml = r#"steps = [{ name = "t", for_each = "{{ input.l }}", max_items = 2, path = "/turns/{{ item }}" }]"#;
    for (input, says) in [
        (r#"{"l": [1, 2, 3]}"#, "step t: for_each has 3 items; raise max_items, which is 2"),
        (r#"{"l": {"a": 1}}"#, "step t: for_each: a list is needed here"),
        ("{}", "step t: for_each: {{ input.l }} is not there: \"l\" is missing"),
    ] {
        let context = testing::context(input);
        assert_eq!(bank.run_in(toml, &context).await, Err(Error::permanent(says)));
        assert_eq!(said(&context).0.len(), 0);
    }
    bank.stop().await;
}
