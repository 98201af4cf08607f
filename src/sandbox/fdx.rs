//! The same accounts and transactions as an American bank tells them: the Financial Data Exchange's API, version 6.
//!
//! `GET /fdx/v6/accounts`, `/accounts/{accountId}` and `/accounts/{accountId}/transactions` with `startTime`, `endTime`,
//! `offset` and `limit`. `page.nextOffset` is opaque and missing at the end, `page.totalElements` counts all, and
//! `links.next.href` is the path of the next page below `/fdx/v6`, as in the specification's examples. The customer is
//! the one that the header `x-customer-id` or `customer` in the query names, else the client itself. Amounts are never
//! negative, `debitCreditMemo` says which way they go. Names: schemas.apis.io/schemas/fdx and
//! taxdataexchange.org/docs/fdx/v6.4.1/entities.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use serde_json::{Value, json};

use super::asked::Asked;
use super::bank::{self, Account, Amount, Transaction};
use super::open_banking::is_between;
use super::pages::{Kind, Part, Query, checked_size, cursor, read_cursor};
use super::refusals::{Dialect, Refusal};
use super::routes::{Bank, body};

/// What links are relative to.
const BASE: &str = "/fdx/v6";

/// When balances were true: the bank's clock stands still.
const AS_OF: &str = "2025-12-31T00:00:00Z";

pub(super) fn routes() -> Router<Arc<Bank>> {
    let path = |path: &str| format!("{BASE}/accounts{path}");
    Router::new()
        .route(&path(""), get(accounts))
        .route(&path("/{id}"), get(account))
        .route(&path("/{id}/transactions"), get(transactions))
}

async fn accounts(State(bank): State<Arc<Bank>>, asked: Asked) -> Response {
    let accounts = bank::accounts(bank.config.seed, asked.customer_or_client());
    let accounts: Vec<_> = accounts.iter().map(account_json).collect();
    body(json!({ "page": { "totalElements": accounts.len() }, "links": {}, "accounts": accounts }).to_string())
}

async fn account(State(bank): State<Arc<Bank>>, Path(id): Path<String>) -> Response {
    match Account::find(bank.config.seed, &id) {
        Some(account) => body(account_json(&account).to_string()),
        None => Dialect::Fdx.refuse(Refusal::NoAccount),
    }
}

async fn transactions(State(bank): State<Arc<Bank>>, asked: Asked, Path(id): Path<String>) -> Response {
    let seed = bank.config.seed;
    let Some(account) = Account::find(seed, &id) else {
        return Dialect::Fdx.refuse(Refusal::NoAccount);
    };
    let part = match part(&asked.query, seed, &id) {
        Ok(part) => part,
        Err(problem) => return Dialect::Fdx.refuse(Refusal::BadRequest(problem)),
    };
    let days = ["startTime", "endTime"].map(|name| asked.query.get(name).and_then(|time| time.split('T').next()));
    let all: Vec<_> = bank::transactions(seed, &account, bank.config.response_bytes)
        .filter(|transaction| is_between(&transaction.booked(), days))
        .collect();
    let (mut page, mut links) = (json!({ "totalElements": all.len() }), json!({}));
    if let Some(offset) = part.next(all.len()) {
        let next = cursor(seed, &id, offset);
        links["next"] = json!({ "href": next_path(&asked, &next) });
        page["nextOffset"] = next.into();
    }
    let listed: Vec<_> = part.of(&all).iter().map(|transaction| transaction_json(&account, transaction)).collect();
    body(json!({ "page": page, "links": links, "transactions": listed }).to_string())
}

fn part(query: &Query, seed: u64, id: &str) -> Result<Part, &'static str> {
    let size = checked_size(query.number("limit")?)?;
    let offset = match query.get("offset").filter(|offset| !offset.is_empty()) {
        Some(offset) => read_cursor(seed, id, offset).ok_or("the offset is not one of this list")?,
        None => 0,
    };
    Ok(Part { kind: Kind::Cursor, offset, size })
}

fn next_path(asked: &Asked, offset: &str) -> String {
    format!("{}?{}", asked.uri.path().trim_start_matches(BASE), asked.query.with("offset", offset))
}

/// An amount as FDX has it: a JSON number.
fn number(amount: Amount) -> Value {
    amount.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn category(account: &Account) -> (&'static str, &'static str, &'static str) {
    match account.kind {
        "savings" => ("DEPOSIT_ACCOUNT", "SAVINGS", "ASSET"),
        "card" => ("LOC_ACCOUNT", "CREDITCARD", "LIABILITY"),
        _ => ("DEPOSIT_ACCOUNT", "CHECKING", "ASSET"),
    }
}

fn account_json(account: &Account) -> Value {
    let (category, kind, balance_type) = category(account);
    json!({
        "accountCategory": category, "accountId": account.id, "accountType": kind,
        "accountNumberDisplay": account.iban.split_at(account.iban.len() - 4).1, "nickname": account.kind,
        "status": "OPEN", "currency": { "currencyCode": account.currency }, "balanceType": balance_type,
        "balanceAsOf": AS_OF, "currentBalance": number(account.balance),
    })
}

fn transaction_json(account: &Account, transaction: &Transaction) -> Value {
    let posted = format!("{}T00:00:00Z", transaction.booked());
    json!({
        "accountCategory": category(account).0, "accountId": account.id, "transactionId": transaction.id(),
        "transactionTimestamp": posted, "postedTimestamp": posted, "description": transaction.party,
        "memo": transaction.reference(), "debitCreditMemo": if transaction.is_debit { "DEBIT" } else { "CREDIT" },
        "status": "POSTED", "amount": number(transaction.amount),
    })
}
