//! The bank's paths, and its own dialect.
//!
//! With a credential (`credentials.rs`), about a customer (`customer` in the query, or the header `x-customer-id`; one
//! whose id starts with `expired-` has taken the consent back and answers 403):
//! `GET /accounts`, `/accounts/{id}`, `/accounts/{id}/transactions` with pagination of every kind (`pages.rs`). The same
//! data as a UK bank tells it is below `/open-banking/v4.0/aisp` (`open_banking.rs`), and as an American one does below
//! `/fdx/v6` (`fdx.rs`). `POST /oauth/token` gives tokens (`oauth.rs`).
//!
//! Without one: `GET /stats`, and `DELETE /stats` to count from zero; `GET /metrics` for Prometheus; the bank's behaviour
//! (`control.rs`).

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, LINK};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::asked::Asked;
use super::bank::{self, Account, TRANSACTION_BYTES, Transaction};
use super::clients::{Clients, Stats};
use super::conduct::Conduct;
use super::lines::Lines;
use super::meter::Meters;
use super::pages::{Kind, Part, cursor};
use super::refusals::{Dialect, Refusal};
use super::tokens::Tokens;
use super::{Config, control, door, fdx, oauth, open_banking};
use crate::telemetry::{METRICS_TYPE, Telemetry};

/// Everything that a request may need.
pub(super) struct Bank {
    pub(super) config: Config,
    pub(super) clients: Arc<Clients>,
    pub(super) telemetry: Telemetry,
    pub(super) conduct: Arc<Conduct>,
    pub(super) lines: Arc<Lines>,
    pub(super) meters: Meters,
    pub(super) tokens: Tokens,
    pub(super) stopping: CancellationToken,
}

pub(super) fn routes(bank: Arc<Bank>) -> Router {
    let behind_the_door = Router::new()
        .route("/accounts", get(accounts))
        .route("/accounts/{id}", get(account))
        .route("/accounts/{id}/transactions", get(transactions))
        .merge(open_banking::routes())
        .merge(fdx::routes())
        .route_layer(from_fn_with_state(bank.clone(), door::pass));
    behind_the_door
        .merge(oauth::routes())
        .merge(control::routes())
        .route("/stats", get(stats).delete(reset))
        .route("/metrics", get(metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, Json(json!({ "error": "there is nothing at this path" }))) })
        .method_not_allowed_fallback(|| async {
            let problem = "this path has other methods: the header Allow names them";
            (StatusCode::METHOD_NOT_ALLOWED, Json(json!({ "error": problem })))
        })
        .with_state(bank)
}

async fn stats(State(bank): State<Arc<Bank>>) -> Json<Stats> {
    Json(bank.clients.stats())
}

async fn metrics(State(bank): State<Arc<Bank>>) -> Response {
    ([(CONTENT_TYPE, METRICS_TYPE)], bank.telemetry.render()).into_response()
}

async fn reset(State(bank): State<Arc<Bank>>) -> StatusCode {
    bank.clients.reset();
    StatusCode::NO_CONTENT
}

async fn accounts(State(bank): State<Arc<Bank>>, asked: Asked) -> Response {
    let Some(customer) = asked.customer else {
        return Dialect::Own.refuse(Refusal::BadRequest("the query needs a customer"));
    };
    let mut json = format!(r#"{{"customer":{},"accounts":["#, Value::from(&*customer));
    for (index, account) in bank::accounts(bank.config.seed, &customer).iter().enumerate() {
        json.push_str(if index > 0 { "," } else { "" });
        account.write(&mut json);
    }
    json.push_str("]}");
    body(json)
}

async fn account(State(bank): State<Arc<Bank>>, Path(id): Path<String>) -> Response {
    let Some(account) = Account::find(bank.config.seed, &id) else {
        return Dialect::Own.refuse(Refusal::NoAccount);
    };
    let mut json = String::new();
    account.write(&mut json);
    body(json)
}

async fn transactions(State(bank): State<Arc<Bank>>, asked: Asked, Path(id): Path<String>) -> Response {
    let Config { seed, response_bytes, .. } = bank.config;
    let Some(account) = Account::find(seed, &id) else {
        return Dialect::Own.refuse(Refusal::NoAccount);
    };
    let part = match Part::read(&asked.query, seed, &id) {
        Ok(part) => part,
        Err(problem) => return Dialect::Own.refuse(Refusal::BadRequest(problem)),
    };
    let all = bank::transactions(seed, &account, response_bytes);
    if part.kind == Kind::None {
        let mut json = String::with_capacity(response_bytes + 2 * TRANSACTION_BYTES);
        write_list(&account, all.take(part.size), &mut json);
        json.push('}');
        return body(json);
    }
    let all: Vec<_> = all.collect();
    let next = part.next(all.len());
    let mut json = String::new();
    write_list(&account, part.of(&all).iter().cloned(), &mut json);
    let link = next.map(|offset| asked.url_with("cursor", &cursor(seed, &id, offset)));
    let more = match part.kind {
        Kind::Page => json!({
            "page": part.offset / part.size + 1, "page_size": part.size,
            "pages": all.len().div_ceil(part.size), "total": all.len(),
        }),
        Kind::Offset => json!({ "offset": part.offset, "limit": part.size, "total": all.len() }),
        Kind::Cursor => json!({ "next_cursor": next.map(|offset| cursor(seed, &id, offset)) }),
        Kind::Next => json!({ "links": link.as_ref().map_or(json!({}), |link| json!({ "next": link })) }),
        Kind::Link | Kind::None => json!({}),
    };
    // The members of `more` go on where the list ended.
    let more = more.to_string();
    if more.len() > 2 {
        json.push(',');
    }
    json.push_str(&more[1..]);
    let link = link.filter(|_| part.kind == Kind::Link).map(|link| [(LINK, format!("<{link}>; rel=\"next\""))]);
    (link, body(json)).into_response()
}

/// The object of an account's transactions, up to what follows its list.
fn write_list(account: &Account, transactions: impl Iterator<Item = Transaction>, json: &mut String) {
    json.push_str(&bank::body_head(account));
    for (index, transaction) in transactions.enumerate() {
        json.push_str(if index > 0 { "," } else { "" });
        transaction.write(json);
    }
    json.push(']');
}

pub(super) fn body(json: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], json).into_response()
}
