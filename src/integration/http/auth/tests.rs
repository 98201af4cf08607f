//! Each kind of credentials against a small bank with a token endpoint: the outcome, and the transcript that it leaves.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, RawForm, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::{get, post};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::integration::http::{Config, Http};
use crate::integration::{Integration, testing};
use crate::lifecycle::Lifecycle;
use crate::task::{Remedy, Transcript};
use crate::telemetry::Telemetry;

mod oauth2;

struct Bank {
    lifecycle: Lifecycle,
    url: String,
    seen: Arc<Mutex<Seen>>,
    directory: tempfile::TempDir,
}

/// What the bank has heard, and what it will say.
#[derive(Default)]
struct Seen {
    /// The forms of requests for tokens, with the `Authorization` before them.
    forms: Vec<String>,
    /// What is answered to them before tokens are granted: status, body and the value of Retry-After.
    denials: VecDeque<(u16, &'static str)>,
    /// In each grant, as JSON.
    also: Value,
    /// How many requests each token is good for.
    uses: usize,
    used: usize,
    /// Requests for tokens wait for this, where there is one.
    gate: Option<CancellationToken>,
}

async fn grant(State(seen): State<Arc<Mutex<Seen>>>, headers: HeaderMap, RawForm(form): RawForm) -> Response<Body> {
    let authorization = headers.get("authorization").map_or("", |value| value.to_str().expect("text"));
    let gate = {
        let mut seen = seen.lock();
        seen.forms.push(format!("{authorization} {}", String::from_utf8_lossy(&form)).trim().to_owned());
        seen.gate.clone()
    };
    if let Some(gate) = gate {
        gate.cancelled().await;
    }
    let mut seen = seen.lock();
    let answer = Response::builder().header("content-type", "application/json");
    if let Some((status, body)) = seen.denials.pop_front() {
        return answer.status(status).header("retry-after", "7").body(Body::from(body)).expect("an answer");
    }
    seen.used = 0;
    let mut granted = json!({ "access_token": format!("access-{}", seen.forms.len()), "token_type": "Bearer" });
    if let Some(also) = seen.also.as_object() {
        granted.as_object_mut().expect("an object").extend(also.clone());
    }
    answer.body(Body::from(granted.to_string())).expect("an answer")
}

/// Takes the latest token, as often as it is good for.
async fn accounts(State(seen): State<Arc<Mutex<Seen>>>, headers: HeaderMap) -> Result<&'static str, StatusCode> {
    let mut seen = seen.lock();
    let expected = format!("Bearer access-{}", seen.forms.len());
    if headers.get("authorization").is_none_or(|it| it != &*expected) || seen.used >= seen.uses {
        return Err(StatusCode::UNAUTHORIZED);
    }
    seen.used += 1;
    Ok("[]")
}

/// Takes fixed credentials of every kind.
async fn fixed(headers: HeaderMap, Query(query): Query<Value>) -> Result<&'static str, StatusCode> {
    let has = |name: &str, value: &str| headers.get(name).is_some_and(|it| it == value);
    let good = has("authorization", "Bearer s3cret/1")
        || has("authorization", "Basic d2VpcjpzM2NyZXQvMQ==")
        || has("x-api-key", "s3cret/1")
        || query["api_key"] == "s3cret/1";
    if good { Ok("[]") } else { Err(StatusCode::UNAUTHORIZED) }
}

impl Bank {
    async fn start() -> Self {
        let (lifecycle, seen) = (Lifecycle::new(), Arc::new(Mutex::new(Seen { uses: usize::MAX, ..Seen::default() })));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let routes = Router::new()
            .route("/token", post(grant))
            .route("/accounts", get(accounts))
            .route("/fixed", get(fixed))
            .with_state(seen.clone());
        let stopping = lifecycle.token().cancelled_owned();
        lifecycle.spawn("bank", async move { axum::serve(listener, routes).with_graceful_shutdown(stopping).await });
        let directory = tempfile::tempdir().expect("a directory");
        Bank { lifecycle, url, seen, directory }
    }

    /// A file with this content, such as a secret.
    fn file(&self, name: &str, content: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.to_string_lossy().into_owned()
    }

    fn integration(&self, path: &str, auth: Value) -> Result<Http, Invalid> {
        let config = json!({ "base_url": self.url, "auth": auth, "steps": [{ "name": "s", "path": path }] });
        let config: Config = serde_json::from_value(config).expect("a configuration");
        Http::new(&"bank".parse().expect("a name"), &config, &Telemetry::new().expect("a recorder"))
    }

    /// One that asks for its tokens with these keys more.
    fn client(&self, more: Value) -> Http {
        let secret = self.file("secret", "s3cret/1\n");
        let mut auth = json!({
            "kind": "oauth2", "token_url": format!("{}/token", self.url), "client_id": "weir",
            "client_secret": { "file": secret },
        });
        auth.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        self.integration("/accounts", auth).expect("valid")
    }

    fn forms(&self) -> Vec<String> {
        self.seen.lock().forms.clone()
    }

    async fn stop(self) {
        self.lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
    }
}

/// The outcome of one task and its transcript.
async fn run(bank: &Http, input: &str) -> (Result<String, Error>, Transcript) {
    let context = testing::context(input);
    let output = bank.run(&context).await.map(|output| output.as_str().to_owned());
    (output, context.recorder().take())
}

/// Method, path and status of each exchange.
fn said(transcript: &Transcript) -> Vec<String> {
    let line = |it: &crate::task::transcript::Exchange| {
        let path = url::Url::parse(&it.url).expect("a URL").path().to_owned();
        format!("{} {path} {}", it.method, it.response.as_ref().map_or(0, |response| response.status))
    };
    transcript.exchanges.iter().map(line).collect()
}

fn notes(transcript: &Transcript) -> Vec<&str> {
    transcript.notes.iter().map(|note| note.text.as_str()).collect()
}

#[tokio::test]
async fn an_empty_token_is_not_sent() {
    let bank = Bank::start().await;
    let integration = bank.integration("/fixed", json!({ "kind": "bearer", "token": "{{ input.token }}" }));
    let (output, transcript) = run(&integration.expect("valid"), r#"{"token": " "}"#).await;
    assert!(output.is_err_and(|error| error.message.contains("the token is empty")));
    assert!(transcript.exchanges.is_empty());
    bank.stop().await;
}

#[tokio::test]
async fn fixed_credentials_of_each_kind_are_accepted_and_named_as_secrets() {
    let bank = Bank::start().await;
    let secret = json!({ "file": bank.file("secret", " s3cret/1 \n") });
    let pair = "d2VpcjpzM2NyZXQvMQ==";
    for (auth, secrets) in [
        (json!({ "kind": "bearer", "token": secret }), &["s3cret/1"][..]),
        (json!({ "kind": "bearer", "token": "{{ input.token }}" }), &["s3cret/1"]),
        (json!({ "kind": "basic", "username": "weir", "password": secret }), &["s3cret/1", pair]),
        (
            json!({ "kind": "basic", "username": { "file": bank.file("user", "weir") }, "password": secret }),
            &["s3cret/1", pair],
        ),
        (json!({ "kind": "api_key", "header": "X-API-Key", "key": secret }), &["s3cret/1"]),
        (json!({ "kind": "api_key", "query": "api_key", "key": secret }), &["s3cret/1"]),
    ] {
        let integration = bank.integration("/fixed", auth.clone()).expect("valid");
        let (output, transcript) = run(&integration, r#"{"token": "s3cret/1"}"#).await;
        assert_eq!(output.as_deref(), Ok("[]"), "{auth}");
        assert_eq!(transcript.secrets, secrets, "{auth}");
        assert_eq!(said(&transcript), ["GET /fixed 200"]);
        let (output, transcript) = run(&integration, r#"{"token": "wrong"}"#).await;
        let of_task = auth["token"].is_string();
        assert_eq!(output.is_err(), of_task, "{auth}");
        assert_eq!(transcript.exchanges.len(), 1, "a 401 is final where nothing newer can be had");
    }
    bank.stop().await;
}

#[tokio::test]
async fn a_token_that_comes_with_the_task_is_a_secret_before_anything_is_sent() {
    let bank = Bank::start().await;
    for (token, input, secrets) in [
        ("{{ input.token }}", r#"{"token": "s3cret/1"}"#, &["s3cret/1"][..]),
        (
            "{{ input.login.user ~ ':' ~ input.word }}",
            r#"{"login": {"user": "erika"}, "word": "s3cret"}"#,
            &["erika", "erika:s3cret", "s3cret"],
        ),
        ("{{ input.missing ~ input.word }}", r#"{"word": "s3cret"}"#, &["s3cret"]),
    ] {
        let auth = json!({ "kind": "bearer", "token": token });
        let integration = bank.integration("/{{ input.nothing }}", auth).expect("valid");
        let (output, transcript) = run(&integration, input).await;
        assert!(output.is_err() && transcript.exchanges.is_empty(), "{token}");
        let mut named = transcript.secrets;
        named.sort();
        assert_eq!(named, secrets, "{token}");
    }
    bank.stop().await;
}

#[tokio::test]
async fn a_secret_whose_file_was_renewed_is_tried_once_more() {
    let bank = Bank::start().await;
    let secret = bank.file("secret", "old");
    let integration = bank
        .integration("/fixed", json!({ "kind": "api_key", "header": "x-api-key", "key": { "file": secret } }))
        .expect("valid");
    let context = testing::context("{}");
    let (request, used) = integration.auth.authorize(&context, Request::get(&*bank.url)).await.expect("readable");
    drop(request);
    assert!(!integration.auth.answered(&context, &used, 401).await, "it is the same");
    bank.file("secret", "s3cret/1");
    assert!(!integration.auth.answered(&context, &used, 403).await, "only 401 speaks of credentials");
    assert!(integration.auth.answered(&context, &used, 401).await, "it is another one");
    bank.stop().await;
}

#[test]
fn a_wrong_configuration_is_refused_with_key_and_what_would_be_right() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bank = runtime.block_on(Bank::start());
    let secret = json!({ "file": bank.file("secret", "s3cret/1") });
    let oauth2 = |more: Value| {
        let mut auth = json!({ "kind": "oauth2", "token_url": "https://bank/token", "client_id": "weir" });
        auth.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        auth
    };
    for (auth, says) in [
        (json!({ "kind": "bearer", "token": "s3cret/1" }), "auth.token: it is not one expression: use { env"),
        (json!({ "kind": "bearer", "token": "Bearer {{ input.x }}" }), "auth.token: it is not one expression"),
        (
            json!({ "kind": "bearer", "token": { "env": "WEIR_TEST_NOT_SET" } }),
            "auth.token.env: the environment has no",
        ),
        (json!({ "kind": "bearer", "token": { "file": "/nowhere" } }), "auth.token.file: \"/nowhere\" cannot be read"),
        (json!({ "kind": "basic", "username": "a:b", "password": secret }), "auth.username: it has a colon"),
        (json!({ "kind": "basic", "username": "", "password": secret }), "auth.username: it is empty"),
        (json!({ "kind": "api_key", "key": secret }), "auth.header: say where the key is sent"),
        (json!({ "kind": "api_key", "key": secret, "header": "a", "query": "b" }), "auth.header: say where"),
        (json!({ "kind": "api_key", "key": secret, "header": "a b" }), "auth.header: header name \"a b\" is not valid"),
        (oauth2(json!({ "token_url": "bank" })), "auth.token_url: \"bank\" is not valid"),
        (oauth2(json!({ "token_url": "ftp://bank" })), "neither http nor https"),
        (oauth2(json!({ "token_url": "https://u:s3cret@bank" })), "auth.token_url: it holds a credential"),
        (oauth2(json!({ "client_secret": { "file": "/nowhere" } })), "auth.client_secret.file: \"/nowhere\""),
        (oauth2(json!({ "client_authentication": "basic" })), "auth.client_authentication: \"basic\" sends a secret"),
        (oauth2(json!({ "grant": "refresh_token" })), "auth.refresh_token: it is missing"),
        (oauth2(json!({ "refresh_token": secret })), "auth.refresh_token: grant = \"client_credentials\" uses none"),
        (oauth2(json!({ "parameters": { "scope": "x" } })), "auth.parameters.scope: it has a key of its own"),
    ] {
        let error = bank.integration("/", auth).err().expect(says).to_string();
        assert!(error.contains(says), "{says:?} is not in {error:?}");
        assert!(!error.contains("s3cret"), "{error}");
    }
    let two = json!({
        "base_url": "http://h", "token": secret, "auth": { "kind": "bearer", "token": secret },
        "steps": [{ "name": "s", "path": "/" }],
    });
    let mut config: Config = serde_json::from_value(two).expect("a configuration");
    let new = |config: &Config| {
        let result = Http::new(&"bank".parse().expect("a name"), config, &Telemetry::new().expect("a recorder"));
        result.err().expect("wrong").to_string()
    };
    assert!(new(&config).starts_with("token: there is auth, too"), "{}", new(&config));
    config.token = None;
    config.headers.insert("Authorization".into(), "x".into());
    assert_eq!(new(&config), "headers.Authorization: it is what auth sends: leave it out here");
    runtime.block_on(bank.stop());
}

#[test]
fn unknown_keys_and_secrets_in_the_configuration_do_not_parse() {
    for (auth, says) in [
        (json!({ "kind": "digest" }), "kind: there is no \"digest\": use one of \"bearer\""),
        (json!({ "kind": "basic", "username": "a", "password": "s3cret" }), "password: a secret does not belong"),
        (
            json!({ "kind": "basic", "username": "a", "password": { "vault": "x" } }),
            "there is no key \"vault\" here: use { env",
        ),
        (
            json!({ "kind": "basic", "username": { "vault": "x" }, "password": { "env": "X" } }),
            "there is no key \"vault\" here: use { env",
        ),
        (json!({ "kind": "basic", "username": 7, "password": { "env": "X" } }), "username: it is no text: use a text"),
        (json!({ "kind": "bearer", "token": { "env": "X" }, "scope": "x" }), "unknown field `scope`"),
        (json!({ "kind": "oauth2", "client_id": "x" }), "missing field `token_url`"),
        (
            json!({ "kind": "oauth2", "token_url": "x", "client_id": "x", "refresh_token": { "env": "X" } }),
            "refresh_token: a new refresh token is written back",
        ),
    ] {
        let error = serde_json::from_value::<AuthConfig>(auth.clone()).expect_err(says).to_string();
        assert!(error.contains(says) && !error.contains("s3cret"), "{says:?} is not in {error:?}");
    }
}
