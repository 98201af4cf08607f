//! The bank's paths.
//!
//! `POST /oauth/token`, then with the token `GET /accounts?customer=…`, `/accounts/{id}`, `/accounts/{id}/transactions`.
//! Beside them, without one: `GET /stats`, and `DELETE /stats` to count from zero. A token is `sandbox.<client id>`.

use std::sync::Arc;

use axum::extract::{Path, Query, RawForm, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::bank::Random;
use super::clients::{Clients, InFlight, Stats};
use super::{Config, bank};

/// How long a token is said to last; the bank itself takes it forever.
const TOKEN_SECONDS: u64 = 3_600;

const TOKEN_PREFIX: &str = "sandbox.";
const MAX_CLIENT_ID_BYTES: usize = 64;

pub(super) fn routes(config: Config, clients: Arc<Clients>, stopping: CancellationToken) -> Router {
    Router::new()
        .route("/oauth/token", post(token))
        .route("/accounts", get(accounts))
        .route("/accounts/{id}", get(account))
        .route("/accounts/{id}/transactions", get(transactions))
        .route("/stats", get(stats).delete(reset))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .with_state(Arc::new(Bank { config, clients, stopping }))
}

struct Bank {
    config: Config,
    clients: Arc<Clients>,
    stopping: CancellationToken,
}

impl Bank {
    /// Checks the token, counts the request, and waits as long as the bank takes.
    async fn admit(&self, headers: &HeaderMap, uri: &Uri) -> Result<InFlight, Response> {
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let client = token.and_then(|token| token.strip_prefix(TOKEN_PREFIX)).filter(|client| is_client_id(client));
        let Some(client) = client else {
            let refusal = refuse(StatusCode::UNAUTHORIZED, "a token from POST /oauth/token is needed");
            return Err(([(WWW_AUTHENTICATE, "Bearer")], refusal).into_response());
        };
        let in_flight = self.clients.enter(client);
        let latency = self.config.latency.draw(&mut Random::new(self.config.seed, &["latency", &uri.to_string()]));
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "the bank closes")),
            () = tokio::time::sleep(latency) => Ok(in_flight),
        }
    }
}

#[derive(Deserialize)]
struct Credentials {
    grant_type: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
}

async fn token(headers: HeaderMap, RawForm(form): RawForm) -> Response {
    let mut form = Credentials::read(&form);
    if form.grant_type.as_deref() != Some("client_credentials") {
        return refuse(StatusCode::BAD_REQUEST, "unsupported_grant_type: use client_credentials");
    }
    if let Some((id, secret)) = basic(&headers) {
        (form.client_id, form.client_secret) = (Some(id), Some(secret));
    }
    match (form.client_id, form.client_secret) {
        (Some(client), Some(secret)) if is_client_id(&client) && !secret.is_empty() => Json(json!({
            "access_token": format!("{TOKEN_PREFIX}{client}"), "token_type": "Bearer", "expires_in": TOKEN_SECONDS,
        }))
        .into_response(),
        _ => {
            let rule = "invalid_client: use a client_id of 1 to 64 of A-Z a-z 0-9 . _ - and any client_secret";
            refuse(StatusCode::UNAUTHORIZED, rule)
        }
    }
}

impl Credentials {
    fn read(form: &[u8]) -> Self {
        let mut credentials = Credentials { grant_type: None, client_id: None, client_secret: None };
        for (name, value) in url::form_urlencoded::parse(form) {
            match &*name {
                "grant_type" => credentials.grant_type = Some(value.into_owned()),
                "client_id" => credentials.client_id = Some(value.into_owned()),
                "client_secret" => credentials.client_secret = Some(value.into_owned()),
                _ => {}
            }
        }
        credentials
    }
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let encoded = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    text.split_once(':').map(|(id, secret)| (id.to_owned(), secret.to_owned()))
}

fn is_client_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_CLIENT_ID_BYTES).contains(&text.len()) && text.bytes().all(plain)
}

#[derive(Deserialize)]
struct Customer {
    customer: Option<String>,
}

async fn accounts(
    State(bank): State<Arc<Bank>>,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Query<Customer>,
) -> Result<Response, Response> {
    let _in_flight = bank.admit(&headers, &uri).await?;
    match query.customer.filter(|customer| !customer.is_empty()) {
        Some(customer) => Ok(body(bank::accounts(bank.config.seed, &customer))),
        None => Err(refuse(StatusCode::BAD_REQUEST, "the query needs a customer")),
    }
}

async fn account(
    State(bank): State<Arc<Bank>>,
    uri: Uri,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Response, Response> {
    let _in_flight = bank.admit(&headers, &uri).await?;
    bank::account(bank.config.seed, &id).map(body).ok_or_else(no_account)
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<usize>,
}

async fn transactions(
    State(bank): State<Arc<Bank>>,
    uri: Uri,
    headers: HeaderMap,
    Path(id): Path<String>,
    Query(query): Query<Limit>,
) -> Result<Response, Response> {
    let _in_flight = bank.admit(&headers, &uri).await?;
    let Config { seed, response_bytes, .. } = bank.config;
    bank::transactions(seed, &id, query.limit, response_bytes).map(body).ok_or_else(no_account)
}

async fn stats(State(bank): State<Arc<Bank>>) -> Json<Stats> {
    Json(bank.clients.stats())
}

async fn reset(State(bank): State<Arc<Bank>>) -> StatusCode {
    bank.clients.reset();
    StatusCode::NO_CONTENT
}

fn body(json: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], json).into_response()
}

fn no_account() -> Response {
    refuse(StatusCode::NOT_FOUND, "there is no such account")
}

fn refuse(status: StatusCode, problem: &str) -> Response {
    (status, Json(json!({ "error": problem }))).into_response()
}
