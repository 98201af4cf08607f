//! The same accounts and transactions as a UK bank tells them: Open Banking Read/Write 4.0, account information.
//!
//! `GET /open-banking/v4.0/aisp/accounts`, `/accounts/{AccountId}`, `/accounts/{AccountId}/balances` and
//! `/accounts/{AccountId}/transactions` with `fromBookingDateTime` and `toBookingDateTime`. There are pages of 50, by
//! `page`; `Links.Next` is a full URL and missing at the end. The customer is the one that the header `x-customer-id` or
//! `customer` in the query names, else the client itself: the sandbox has no consents. `x-fapi-interaction-id` is sent
//! back. Names and codes: openbankinguk.github.io/read-write-api-site3/v4.0/resources-and-data-models/aisp.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use serde_json::{Map, Value, json};

use super::asked::Asked;
use super::bank::{self, Account, Transaction};
use super::pages::{Kind, Part};
use super::refusals::{Dialect, Refusal};
use super::routes::{Bank, body};

/// Transactions in a page.
const PAGE: usize = 50;

/// When balances were true: the bank's clock stands still.
const AS_OF: &str = "2025-12-31T00:00:00+00:00";

pub(super) fn routes() -> Router<Arc<Bank>> {
    let path = |path: &str| format!("/open-banking/v4.0/aisp/accounts{path}");
    Router::new()
        .route(&path(""), get(accounts))
        .route(&path("/{id}"), get(account))
        .route(&path("/{id}/balances"), get(balances))
        .route(&path("/{id}/transactions"), get(transactions))
}

/// What every answer has around its data.
fn envelope(asked: &Asked, data: Value, pages: usize) -> Response {
    let links = json!({ "Self": asked.url() });
    body(json!({ "Data": data, "Links": links, "Meta": { "TotalPages": pages } }).to_string())
}

async fn accounts(State(bank): State<Arc<Bank>>, asked: Asked) -> Response {
    let accounts = bank::accounts(bank.config.seed, asked.customer_or_client());
    let accounts: Vec<_> = accounts.iter().map(account_json).collect();
    envelope(&asked, json!({ "Account": accounts }), 1)
}

async fn account(State(bank): State<Arc<Bank>>, asked: Asked, Path(id): Path<String>) -> Response {
    match Account::find(bank.config.seed, &id) {
        Some(account) => envelope(&asked, json!({ "Account": [account_json(&account)] }), 1),
        None => Dialect::OpenBanking.refuse(Refusal::NoAccount),
    }
}

async fn balances(State(bank): State<Arc<Bank>>, asked: Asked, Path(id): Path<String>) -> Response {
    match Account::find(bank.config.seed, &id) {
        Some(account) => envelope(&asked, json!({ "Balance": [balance_json(&account)] }), 1),
        None => Dialect::OpenBanking.refuse(Refusal::NoAccount),
    }
}

async fn transactions(State(bank): State<Arc<Bank>>, asked: Asked, Path(id): Path<String>) -> Response {
    let refuse = |refusal| Dialect::OpenBanking.refuse(refusal);
    let Some(account) = Account::find(bank.config.seed, &id) else {
        return refuse(Refusal::NoAccount);
    };
    let page = match asked.query.number("page") {
        Ok(Some(0)) => return refuse(Refusal::BadRequest("the first page is 1")),
        Ok(page) => page.unwrap_or(1),
        Err(problem) => return refuse(Refusal::BadRequest(problem)),
    };
    let days = ["fromBookingDateTime", "toBookingDateTime"].map(|name| asked.query.get(name).map(day));
    let all: Vec<_> = bank::transactions(bank.config.seed, &account, bank.config.response_bytes)
        .filter(|transaction| is_between(&transaction.booked(), days))
        .collect();
    let part = Part { kind: Kind::Page, offset: (page - 1).saturating_mul(PAGE), size: PAGE };
    let pages = all.len().div_ceil(PAGE).max(1);
    let page_url = |page: usize| asked.url_with("page", &page.to_string());
    let mut links = Map::new();
    links.insert("Self".into(), asked.url().into());
    links.insert("First".into(), page_url(1).into());
    if page > 1 {
        links.insert("Prev".into(), page_url(page - 1).into());
    }
    if part.next(all.len()).is_some() {
        links.insert("Next".into(), page_url(page + 1).into());
    }
    links.insert("Last".into(), page_url(pages).into());
    let listed: Vec<_> = part.of(&all).iter().map(|transaction| transaction_json(&account, transaction)).collect();
    let data = json!({ "Transaction": listed });
    body(json!({ "Data": data, "Links": links, "Meta": { "TotalPages": pages } }).to_string())
}

/// The day of a date or a date and time; the standard ignores time zones here.
fn day(text: &str) -> &str {
    text.split('T').next().unwrap_or(text)
}

/// Whether a day is within these, which count themselves.
pub(super) fn is_between(day: &str, [from, to]: [Option<&str>; 2]) -> bool {
    from.is_none_or(|from| day >= from) && to.is_none_or(|to| day <= to)
}

fn account_json(account: &Account) -> Value {
    let code = match account.kind {
        "savings" => "SVGS",
        "card" => "CARD",
        _ => "CACC",
    };
    json!({
        "AccountId": account.id, "Status": "Enabled", "StatusUpdateDateTime": AS_OF, "Currency": account.currency,
        "AccountCategory": "Personal", "AccountTypeCode": code, "Nickname": account.kind,
        "Account": [{ "SchemeName": "UK.OBIE.IBAN", "Identification": account.iban, "Name": "Example Customer" }],
    })
}

fn balance_json(account: &Account) -> Value {
    json!({
        "AccountId": account.id, "CreditDebitIndicator": "Credit", "Type": "ITBD", "DateTime": AS_OF,
        "Amount": { "Amount": account.balance.to_string(), "Currency": account.currency },
    })
}

fn transaction_json(account: &Account, transaction: &Transaction) -> Value {
    let booked = format!("{}T00:00:00+00:00", transaction.booked());
    json!({
        "AccountId": account.id, "TransactionId": transaction.id(), "TransactionReference": transaction.reference(),
        "CreditDebitIndicator": if transaction.is_debit { "Debit" } else { "Credit" }, "Status": "BOOK",
        "BookingDateTime": booked, "ValueDateTime": booked, "TransactionInformation": transaction.party,
        "Amount": { "Amount": transaction.amount.to_string(), "Currency": transaction.currency },
    })
}
