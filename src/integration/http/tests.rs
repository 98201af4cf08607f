//! Declarative pulls against a small bank of their own: an organ's tests know no other module.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, RawForm};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json as Body, Router};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

mod amounts;
mod errors;
mod loops;
mod pages;
mod requests;
mod retries;
mod worked;

use super::*;
use crate::integration::{Config as AnyConfig, Integrations, testing};
use crate::lifecycle::Lifecycle;
use crate::task::Remedy;

struct Bank {
    lifecycle: Lifecycle,
    base_url: String,
    seen: Arc<Mutex<Vec<String>>>,
    token: tempfile::NamedTempFile,
}

impl Bank {
    async fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        Bank { seen: seen.clone(), ..Bank::serving(routes(seen)).await }
    }

    /// One that serves `api` below `/v1`.
    async fn serving(api: Router) -> Self {
        let (lifecycle, seen) = (Lifecycle::new(), Arc::new(Mutex::new(Vec::new())));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base_url = format!("http://{}/v1/", listener.local_addr().expect("an address"));
        let (routes, stopping) = (Router::new().nest("/v1", api), lifecycle.token().cancelled_owned());
        lifecycle.spawn("bank", async move { axum::serve(listener, routes).with_graceful_shutdown(stopping).await });
        let token = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(token.path(), " opaque \n").expect("written");
        Bank { lifecycle, base_url, seen, token }
    }

    /// The integration that `toml` configures, at this bank and with its token.
    fn integration(&self, toml: &str) -> Result<Http, Invalid> {
        let mut config = parse(toml);
        config.base_url = self.base_url.clone();
        config.token = Some(SecretSource::File(self.token.path().to_owned()));
        let telemetry = Telemetry::new().expect("a recorder");
        Http::new(&"bank".parse().expect("a name"), &config, &telemetry)
    }

    async fn run(&self, toml: &str, input: &str) -> Result<Value, Error> {
        let output = self.run_in(toml, &testing::context(input)).await?;
        Ok(serde_json::from_str(&output).expect("JSON"))
    }

    /// The output's text.
    async fn run_in(&self, toml: &str, context: &Context) -> Result<String, Error> {
        let output = self.integration(toml).expect("valid").run(context).await?;
        Ok(output.as_str().to_owned())
    }

    async fn stop(self) {
        self.lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
    }
}

fn routes(seen: Arc<Mutex<Vec<String>>>) -> Router {
    let accounts = |Query(query): Query<Value>, headers: HeaderMap| async move {
        let authorized = headers.get("authorization").is_some_and(|value| value == "Bearer opaque");
        match query["customer"].as_str() {
            _ if !authorized => StatusCode::UNAUTHORIZED.into_response(),
            Some(customer) => {
                let id = format!("{customer}/1");
                Body(json!({ "accounts": [{ "id": id }], "query": query })).into_response()
            }
            None => StatusCode::BAD_REQUEST.into_response(),
        }
    };
    let slow_seen = seen.clone();
    let slow = move || async move {
        slow_seen.lock().push("slow".to_owned());
        std::future::pending::<()>().await
    };
    let transactions = move |Path(id): Path<String>| async move {
        seen.lock().push(id);
        ([("content-type", "application/json")], r#"{"transactions":[{"amount":12345678901234567.10}]}"#)
    };
    let echo = |headers: HeaderMap, RawForm(form): RawForm| async move {
        Body(json!({ "form": String::from_utf8_lossy(&form), "client": headers["x-client-id"].to_str().ok() }))
    };
    let status = |Path(status): Path<u16>| async move {
        (StatusCode::from_u16(status).expect("a status"), "secret body").into_response()
    };
    Router::new()
        .route("/accounts", get(accounts))
        .route("/accounts/{id}/transactions", get(transactions))
        .route("/echo", post(echo))
        .route("/json", post(|Body(body): Body<Value>| async move { Body(body) }))
        .route("/status/{status}", get(status))
        .route("/html", get(|| async { "<html>secret" }))
        .route("/slow", get(slow))
}

/// What a transcript says: paths with queries and statuses or errors, and notes.
fn said(context: &Context) -> (Vec<String>, Vec<String>) {
    let transcript = context.recorder().take();
    let exchanges = transcript.exchanges.iter().map(|exchange| {
        let path = exchange.url.split_once("/v1").map_or("elsewhere", |(_, path)| path);
        let status = exchange.response.as_ref().map(|response| response.status.to_string());
        format!("{} {path} {}", exchange.method, exchange.error.clone().or(status).unwrap_or_default())
    });
    (exchanges.collect(), transcript.notes.into_iter().map(|note| note.text).collect())
}

fn parse(toml: &str) -> Config {
    let source = ::config::File::from_str(toml, ::config::FileFormat::Toml);
    let parsed = ::config::Config::builder().add_source(source).build().expect("TOML");
    parsed.try_deserialize().expect("a configuration")
}

const PULL: &str = r#"
    steps = [
        { name = "accounts", path = "/accounts", query = { customer = "{{ input.customer }}", page = 1, none = "{{ input.none }}" } },
        { name = "transactions", method = "GET", path = "/accounts/{{ steps.accounts.accounts[0].id }}/transactions" },
    ]
    result = { list = "{{ steps.transactions.transactions }}", first = ["{{ steps.accounts.query.page }}", 7] }
"#;

#[tokio::test]
async fn steps_use_the_input_and_each_other_and_values_are_encoded_for_their_place() {
    let bank = Bank::start().await;
    let context = testing::context(r#"{"customer": "a&b c", "none": null}"#);
    let output = bank.integration(PULL).expect("valid").run(&context).await.expect("it runs");
    assert_eq!(output.as_str(), r#"{"first":["1",7],"list":[{"amount":12345678901234567.10}]}"#);
    assert_eq!(*bank.seen.lock(), ["a&b c/1"]);

    let transcript = context.recorder().take();
    let urls: Vec<&str> = transcript.exchanges.iter().map(|exchange| exchange.url.as_str()).collect();
    assert!(urls[0].ends_with("/v1/accounts?customer=a%26b+c&page=1"), "{urls:?}");
    assert!(urls[1].ends_with("/v1/accounts/a%26b%20c%2F1/transactions"), "{urls:?}");
    assert_eq!(transcript.secrets, ["opaque"]);
    bank.stop().await;
}

#[tokio::test]
async fn bodies_are_json_or_forms_and_without_a_result_the_last_body_is_the_output() {
    let bank = Bank::start().await;
    let form = r#"
        headers = { x-client-id = "weir" }
        steps = [{ name = "echo", method = "POST", path = "/echo", form = { a = "{{ input.a }}", b = true } }]
    "#;
    let output = bank.run(form, r#"{"a": "x y&z"}"#).await.expect("it runs");
    assert_eq!(output, json!({ "form": "a=x+y%26z&b=true", "client": "weir" }));
    let body = r#"steps = [{ name = "j", method = "POST", path = "/json", body = { all = "{{ input }}", n = [1, "{{ task.id }}"] } }]"#;
    let output = bank.run(body, r#"{"a": [1.50]}"#).await.expect("it runs");
    assert_eq!(output, json!({ "all": { "a": [1.5] }, "n": [1, "task-1"] }));
    bank.stop().await;
}

#[tokio::test]
async fn error_statuses_are_named_and_typed_without_the_body() {
    let bank = Bank::start().await;
    let status = r#"steps = [{ name = "s", path = "/status/{{ input.status }}" }]"#;
    for (code, retryable) in
        [(400, false), (401, false), (404, false), (408, true), (429, true), (500, true), (503, true)]
    {
        let error = bank.run(status, &format!(r#"{{"status": {code}}}"#)).await.expect_err("an error status");
        assert_eq!(error.remedy == Remedy::Retry, retryable, "{code}");
        let last = if matches!(code, 408 | 429 | 500 | 503) { ", the last of 2 attempts" } else { "" };
        assert_eq!(
            error.message,
            format!("step s: GET /status/{{{{ input.status }}}} answered with status {code}{last}")
        );
    }
    std::fs::write(bank.token.path(), "another").expect("written");
    let error = bank.run(PULL, r#"{"customer": "c", "none": null}"#).await.expect_err("unauthorized");
    assert!(error.message.contains("status 401") && error.remedy == Remedy::None, "{error}");
    bank.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_not_json_is_said_so_without_the_body() {
    let bank = Bank::start().await;
    let error = bank.run(r#"steps = [{ name = "h", path = "/html" }]"#, "{}").await.expect_err("HTML");
    assert_eq!(error.message, "step h: GET /html answered with a body that is not JSON at line 1 column 1");
    bank.stop().await;
}

#[tokio::test]
async fn an_input_cannot_lead_a_request_elsewhere() {
    let bank = Bank::start().await;
    let path = r#"steps = [{ name = "s", path = "/accounts/{{ input.id }}/transactions" }]"#;
    for (id, works) in
        [("..", false), (".", false), ("", false), ("../../x", true), ("%2e%2e", true), ("@host:1/", true)]
    {
        let result = bank.run(path, &json!({ "id": id }).to_string()).await;
        assert_eq!(result.is_ok(), works, "{id}: {result:?}");
    }
    assert_eq!(*bank.seen.lock(), ["../../x", "%2e%2e", "@host:1/"], "each is one segment");
    bank.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_ends_at_once_and_its_exchange_is_recorded() {
    let bank = Bank::start().await;
    let cancel = CancellationToken::new();
    let context = testing::context_on(&bank.lifecycle, "{}", 1, Arc::new(()), cancel.clone());
    let slow = bank.integration(r#"steps = [{ name = "s", path = "/slow" }]"#).expect("valid");
    let canceller = async {
        while bank.seen.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(slow.run(&context), canceller);
    assert_eq!(result.expect_err("cancelled"), Error::retryable("cancelled"));
    assert_eq!(context.recorder().take().exchanges[0].error.as_deref(), Some("cancelled"));
    drop(slow);
    bank.stop().await;
}

#[test]
fn a_wrong_configuration_is_refused_with_key_value_and_what_would_be_right() {
    let telemetry = Telemetry::new().expect("a recorder");
    let ok = r#"base_url = "http://h/""#;
    for (toml, says) in [
        (r#"steps = [{ name = "a", path = "/" }]"#.to_owned(), "base_url: \"\" is not valid"),
        (format!("{ok}\nsteps = []"), "steps: 0 steps are configured: use 1 to 32"),
        (format!("{ok}\nsteps = [{{ name = \"A b\", path = \"/\" }}]"), "steps[0].name: \"A b\" is not valid"),
        (
            format!("{ok}\nsteps = [{{ name = \"a\", path = \"x\" }}]"),
            "steps[0].path: \"x\" is not valid: start it with /",
        ),
        (format!("{ok}\nsteps = [{{ name = \"a\", path = \"/?x\" }}]"), "use query ="),
        (format!("{ok}\nsteps = [{{ name = \"a\", method = \"get\", path = \"/\" }}]"), "steps[0].method: \"get\""),
        (format!("{ok}\nsteps = [{{ name = \"a\", path = \"/\", body = 1 }}]"), "GET has no body"),
        (format!("{ok}\nsteps = [{{ name = \"a\", path = \"/{{{{ steps.b.x }}}}\" }}]"), "which is no earlier step"),
        (
            format!("{ok}\nsteps = [{{ name = \"a\", path = \"/\", query = {{ q = [1] }} }}]"),
            "steps[0].query.q: use a text",
        ),
        (
            format!("{ok}\nsteps = [{{ name = \"a\", path = \"/\" }}]\nresult = \"{{{{ x }}}}\""),
            "result: {{ x }} uses \"x\"",
        ),
        (
            format!("{ok}\nsteps = [{{ name = \"a\", path = \"/\" }}]\nheaders = {{ \"a b\" = \"c\" }}"),
            "headers: header name",
        ),
        (
            format!("{ok}\nsteps = [{{ name = \"a\", path = \"/\" }}]\nmax_response_bytes = 0"),
            "max_response_bytes: 0 is out",
        ),
        (
            format!("{ok}\nsteps = [{{ name = \"a\", path = \"/\" }}]\ntoken = {{ file = \"/nowhere\" }}"),
            "token.file: \"/nowhere\"",
        ),
        (
            r#"base_url = "http://u:p@h/""#.to_owned() + "\nsteps = [{ name = \"a\", path = \"/\" }]",
            "it holds a credential",
        ),
    ] {
        let error =
            Http::new(&"bank".parse().expect("a name"), &parse(&toml), &telemetry).err().expect(says).to_string();
        assert!(error.contains(says), "{says:?} is not in {error:?}");
        assert!(!error.contains("u:p"), "{error}");
    }
}

#[test]
fn the_kind_chooses_the_integration_and_unknown_keys_are_refused() {
    let read = |json: Value| serde_json::from_value::<AnyConfig>(json);
    let step = json!([{ "name": "a", "path": "/" }]);
    let bank = read(json!({ "kind": "http", "base_url": "http://h", "request_timeout": "3s", "steps": step }));
    let test = read(json!({ "kind": "synthetic" })).expect("valid");
    let configs = [("bank", bank.expect("valid")), ("test", test)];
    let configs = configs.into_iter().map(|(name, config)| (name.parse().expect("a name"), config)).collect();
    let telemetry = Telemetry::new().expect("a recorder");
    let integrations = Integrations::from_config(&configs, &telemetry).expect("valid");
    assert_eq!(integrations.names().map(IntegrationName::as_str).collect::<Vec<_>>(), ["bank", "test"]);
    assert!(integrations.get(&"other".parse().expect("a name")).is_none());

    for wrong in [
        json!({ "kind": "http", "base": "http://h" }),
        json!({ "kind": "http", "steps": [{ "name": "a", "pth": "/" }] }),
        json!({ "kind": "synthetic", "x": 1 }),
        json!({ "kind": "soap" }),
    ] {
        let error = read(wrong.clone()).expect_err("unknown").to_string();
        assert!(error.contains("unknown field") || error.contains("there is no \"soap\""), "{wrong}: {error}");
    }
    for (key, value, says) in [
        ("steps", json!([{ "name": "a" }, { "retries": { "attempts": "x" } }]), "steps[1].retries.attempts: "),
        ("steps", json!([{ "pagination": { "kind": "cursor" } }]), "steps[0].pagination: missing field"),
        ("errors", json!([{ "status": [400] }]), "errors[0]: missing field `remedy`"),
    ] {
        let error = read(json!({ "kind": "http", key: value })).expect_err(says).to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}
