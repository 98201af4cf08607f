//! What refusals are mapped to, and the limits of a task and of a step.

use super::*;

fn api() -> Router {
    let consent =
        || async { (StatusCode::FORBIDDEN, Body(json!({ "Errors": [{ "ErrorCode": "UK.Consent.Expired" }] }))) };
    let slow = || std::future::pending::<()>();
    Router::new()
        .route("/consent", get(consent))
        .route("/plain", get(|| async { (StatusCode::FORBIDDEN, "secret") }))
        .route("/inside", get(|| async { Body(json!({ "error": "busy" })) }))
        .route("/big", get(|| async { Body(json!("x".repeat(998))) }))
        .route("/slow", get(slow))
}

#[tokio::test]
async fn refusals_become_remedies_and_reasons() {
    let bank = Bank::serving(api()).await;
    let toml = r#"
        errors = [
            { status = [401, 403], when = "{{ body.Errors[0].ErrorCode == 'UK.Consent.Expired' }}", remedy = "user_action", reason = "consent_expired" },
            { status = [200], when = "{{ body.error is defined }}", remedy = "retry", reason = "busy" },
        ]
        retries = { attempts = 1 }
        steps = [{ name = "s", path = "/{{ input }}", errors = [{ status = [200], when = "{{ input == 'none' }}", remedy = "none" }] }]
    "#;
    let reason = |reason: &str| reason.parse().expect("a reason");
    for (path, expected) in [
        ("consent", Error::user_action("status 403").because(reason("consent_expired"))),
        ("plain", Error::permanent("status 403")),
        ("inside", Error::retryable("status 200").because(reason("busy"))),
    ] {
        let error = bank.run(toml, &format!("\"{path}\"")).await.expect_err(path);
        let message = format!("step s: GET /{{{{ input }}}} answered with {}", expected.message);
        assert_eq!(error, Error { message, ..expected });
    }
    bank.stop().await;
}

#[tokio::test]
async fn limits_of_a_task_are_errors_that_name_the_key() {
    let bank = Bank::serving(api()).await;
    let each = r#"steps = [{ name = "s", for_each = "{{ input }}", path = "/big" }]"#;
    for (limit, requests, says) in [
        ("max_requests = 3", 3, "the task needs more than 3 requests; raise integrations.bank.max_requests if it may"),
        (
            "max_bytes = 3000",
            4,
            "the task's answers have more than 3000 bytes in all; raise integrations.bank.max_bytes if it may",
        ),
    ] {
        let context = testing::context("[1, 2, 3, 4, 5]");
        let error = bank.run_in(&format!("{limit}\n{each}"), &context).await.expect_err(says);
        assert_eq!(error, Error::permanent(format!("step s: item 3: {says}")));
        assert_eq!(said(&context).0.len(), requests);
    }
    let exactly = format!("max_requests = 3\nmax_bytes = 3000\n{each}");
    bank.run(&exactly, "[1, 2, 3]").await.expect("both limits are reached and not passed");
    bank.stop().await;
}

#[tokio::test]
async fn a_step_has_its_own_timeout_for_all_that_it_does() {
    let bank = Bank::serving(api()).await;
    let context = testing::context("[1, 2]");
    let toml = r#"steps = [{ name = "s", for_each = "{{ input }}", parallel = 2, path = "/slow", timeout = "2s" }]"#;
    let error = bank.run_in(toml, &context).await.expect_err("too slow");
    assert_eq!(error, Error::retryable("step s: it took longer than 2s; raise its timeout if it may"));
    assert_eq!(said(&context).0, ["GET /slow cancelled", "GET /slow cancelled"]);
    bank.stop().await;
}

#[tokio::test]
async fn an_encoding_that_was_not_asked_for_and_a_redirect_are_called_what_they_are() {
    let gzip = || async { ([("content-encoding", "gzip")], vec![0x1f_u8, 0x8b, 0x08, 0xff]) };
    let moved = || async { (StatusCode::FOUND, [("location", "/elsewhere")]) };
    let bank = Bank::serving(Router::new().route("/gzip", get(gzip)).route("/moved", get(moved))).await;
    for (path, says) in [
        ("gzip", "answered with a body that is not JSON: its content-encoding is gzip, and none was asked for"),
        ("moved", "answered with status 302, and redirects are not followed"),
    ] {
        let toml = format!(r#"steps = [{{ name = "s", path = "/{path}" }}]"#);
        let error = bank.run(&toml, "{}").await.expect_err(path);
        assert!(error.message.ends_with(says), "{error:?}");
    }
    bank.stop().await;
}

#[tokio::test]
async fn a_rule_that_cannot_be_evaluated_is_noted_once_unless_something_is_missing() {
    let odd = || async { (StatusCode::SERVICE_UNAVAILABLE, Body(json!({ "code": "secret" }))) };
    let bank = Bank::serving(Router::new().route("/odd", get(odd))).await;
    let toml = r#"
        errors = [
            { status = [503], when = "{{ body.missing + 1 == 2 }}", remedy = "none" },
            { status = [503], when = "{{ body.code | int == 7 }}", remedy = "none" },
        ]
        retries = { attempts = 3, first_pause = "1ms" }
        steps = [{ name = "s", path = "/odd" }]
    "#;
    let context = testing::context("{}");
    bank.run_in(toml, &context).await.expect_err("odd");
    let (_, notes) = said(&context);
    let unclear: Vec<_> = notes.iter().filter(|note| note.contains("when")).collect();
    let says = "step s: errors[1].when: {{ body.code | int == 7 }} cannot be evaluated: int needs numbers and met a text \
                that is no number: the rule does not match";
    assert_eq!(unclear, [says]);
    bank.stop().await;
}
