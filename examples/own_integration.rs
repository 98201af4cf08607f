//! A team's own integration, and the worker that serves it: what a customer spent where, from their bank's transactions.
//!
//! ```text
//! weir sandbox &
//! cargo run --example own_integration -- --listen 127.0.0.1:7402 &
//! weir submit --to http://127.0.0.1:7402 --integration spending --input '{"customer":"c1"}'
//! ```
//!
//! The worker takes the flags, the `weir.toml` and the `WEIR_…` variables of `weir worker`: with `registry.url` set it
//! joins the pool, with `[payloads]` the debug record of each task is kept. The integration's own configuration is its
//! own affair; here it is three variables of the environment, with the sandbox's values as defaults.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weir::integration::transport::Request;
use weir::integration::{Context, Error, Integration, Integrations};
use weir::task::Json;

/// With less time than this left, no further account is begun: an error that says how far it came is worth more than
/// being cut off in the middle.
const TIME_FOR_ONE_ACCOUNT: Duration = Duration::from_millis(50);

/// The integration: one value serves all tasks, so it holds only what they share.
struct Spending {
    bank: String,
    client_id: String,
    client_secret: String,
}

/// A task's input. What does not fit is refused with the place and what was expected.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    customer: String,
    /// Leaves out counterparties with less than this.
    #[serde(default)]
    at_least_cents: i64,
}

/// A task's output.
#[derive(Serialize)]
struct Report {
    accounts: usize,
    transactions: usize,
    spent: Vec<Spent>,
}

#[derive(Serialize)]
struct Spent {
    counterparty: String,
    currency: String,
    cents: i64,
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
}

#[derive(Deserialize)]
struct Accounts {
    accounts: Vec<Account>,
}

#[derive(Deserialize)]
struct Account {
    id: String,
}

#[derive(Deserialize)]
struct Transactions {
    transactions: Vec<Transaction>,
}

#[derive(Deserialize)]
struct Transaction {
    counterparty: String,
    currency: String,
    amount: String,
}

#[async_trait]
impl Integration for Spending {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        let input: Input = context.input()?;
        let token = self.token(context).await?;

        let query = form(&[("customer", &input.customer)]);
        let Accounts { accounts } = read("accounts", &self.get(context, &token, &format!("/accounts?{query}")).await?)?;
        let mut bodies = Vec::with_capacity(accounts.len());
        for (done, account) in accounts.iter().enumerate() {
            if context.remaining() < TIME_FOR_ONE_ACCOUNT {
                return Err(Error::retryable(format!("no time left after {done} of {} accounts", accounts.len())));
            }
            bodies.push(self.get(context, &token, &format!("/accounts/{}/transactions", account.id)).await?);
        }

        // Megabytes of JSON are parsed on a thread for such work: on this one all other tasks would wait for it.
        let mut report = context.blocking(move || summarize(&bodies)).await??;
        report.spent.retain(|spent| spent.cents >= input.at_least_cents);
        // Notes are in the task's debug record, beside what was said to the bank.
        context.note(format!("{} transactions of {} accounts", report.transactions, report.accounts));
        Json::of(&report).map_err(|error| Error::permanent(format!("the report is not JSON: {error}")))
    }
}

impl Spending {
    fn from_environment() -> Self {
        let variable = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        Spending {
            bank: variable("BANK_URL", "http://127.0.0.1:7480"),
            client_id: variable("BANK_CLIENT_ID", "spending"),
            client_secret: variable("BANK_CLIENT_SECRET", "any"),
        }
    }

    async fn token(&self, context: &Context) -> Result<String, Error> {
        context.secret(&self.client_secret);
        let form = form(&[
            ("grant_type", "client_credentials"),
            ("client_id", &self.client_id),
            ("client_secret", &self.client_secret),
        ]);
        let request = Request::post(format!("{}/oauth/token", self.bank));
        let request = request.body("application/x-www-form-urlencoded", form);
        let Token { access_token } = read("the token", &send(context, "the token", request).await?)?;
        // From here on it is removed from whatever is kept of this task.
        context.secret(&access_token);
        Ok(access_token)
    }

    async fn get(&self, context: &Context, token: &str, path: &str) -> Result<Vec<u8>, Error> {
        let request = Request::get(format!("{}{path}", self.bank)).header("authorization", format!("Bearer {token}"));
        send(context, path, request).await
    }
}

fn form(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// Sends one request; `context.http()` records it, and gives up at the task's deadline.
async fn send(context: &Context, what: &str, request: Request) -> Result<Vec<u8>, Error> {
    let answer = context.http().send(request).await?;
    match answer.status {
        200..300 => Ok(answer.body.to_vec()),
        status @ (429 | 500..) => Err(Error::retryable(format!("the bank answered {what} with status {status}"))),
        status => Err(Error::permanent(format!("the bank answered {what} with status {status}"))),
    }
}

/// The message says where it does not fit and never what was there: it would end up in logs.
fn read<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Error::permanent(format!("what the bank answered for {what} does not fit at line {line} column {column}"))
    })
}

/// What left the accounts, per counterparty and currency, the largest first.
fn summarize(bodies: &[Vec<u8>]) -> Result<Report, Error> {
    let (mut transactions, mut spent) = (0, BTreeMap::<(String, String), i64>::new());
    for body in bodies {
        let of_account: Transactions = read("transactions", body)?;
        transactions += of_account.transactions.len();
        for Transaction { counterparty, currency, amount } in of_account.transactions {
            let cents = cents(&amount).ok_or_else(|| Error::permanent("an amount at the bank has not two decimals"))?;
            if cents < 0 {
                *spent.entry((counterparty, currency)).or_default() -= cents;
            }
        }
    }
    let line = |((counterparty, currency), cents)| Spent { counterparty, currency, cents };
    let mut spent: Vec<_> = spent.into_iter().map(line).collect();
    spent.sort_by_key(|spent| std::cmp::Reverse(spent.cents));
    Ok(Report { accounts: bodies.len(), transactions, spent })
}

/// Money is counted, not measured: `-12.30` is -1230 and never a float.
fn cents(amount: &str) -> Option<i64> {
    let (whole, fraction) = amount.split_once('.').filter(|(_, fraction)| fraction.len() == 2)?;
    format!("{whole}{fraction}").parse().ok()
}

fn main() -> ExitCode {
    let name = "spending".parse().expect("lower-case letters are a valid name");
    weir::cli::serve_worker(Integrations::new().with(name, Spending::from_environment()))
}
