//! The worked configurations in `examples/` against small banks that speak the two standards.

use axum::extract::RawQuery;

use super::*;

/// The integration of a worked configuration, at this bank.
fn worked(text: &str, name: &str, bank: &Bank) -> Http {
    let source = ::config::File::from_str(text, ::config::FileFormat::Toml);
    let all: Value =
        ::config::Config::builder().add_source(source).build().expect("TOML").try_deserialize().expect("JSON");
    let config = serde_json::from_value::<AnyConfig>(all["integrations"][name].clone()).expect("a configuration");
    let AnyConfig::Http(mut config) = config else { panic!("{name} is of kind http") };
    config.base_url = bank.base_url.clone();
    config.auth = None;
    Http::new(&name.parse().expect("a name"), &config, &Telemetry::new().expect("a recorder")).expect("valid")
}

fn json(body: &'static str) -> impl IntoResponse {
    ([("content-type", "application/json")], body)
}

const UK: &str = include_str!("../../../../examples/uk_open_banking.toml");
const FDX: &str = include_str!("../../../../examples/fdx.toml");

#[tokio::test]
async fn uk_open_banking() {
    let accounts = |headers: HeaderMap| async move {
        let id = headers["x-fapi-interaction-id"].to_str().expect("a text");
        uuid::Uuid::parse_str(id).expect("a UUID");
        json(r#"{"Data": {"Account": [{"AccountId": "1"}, {"AccountId": "2"}]}, "Links": {"Self": "/accounts"}}"#)
    };
    let balances = || async { json(r#"{"Data": {"Balance": [{"Amount": {"Amount": "1230.00"}}]}, "Links": {}}"#) };
    let transactions = |Path(id): Path<String>, RawQuery(query): RawQuery| async move {
        match (id.as_str(), query.as_deref()) {
            ("1", Some("page=2")) => json(r#"{"Data": {"Transaction": [{"Amount": "2.50"}]}, "Links": {}}"#),
            ("1", Some("fromBookingDateTime=2025-01-01T00%3A00%3A00")) => json(
                r#"{"Data": {"Transaction": [{"Amount": "1.10"}]}, "Links": {"Next": "/v1/accounts/1/transactions?page=2"}}"#,
            ),
            _ => json(r#"{"Data": {}, "Links": {}}"#),
        }
    };
    let bank = Bank::serving(
        Router::new()
            .route("/accounts", get(accounts))
            .route("/accounts/{id}/balances", get(balances))
            .route("/accounts/{id}/transactions", get(transactions)),
    );
    let bank = bank.await;
    let context = testing::context(r#"{"customer": "c1", "from": "2025-01-01T00:00:00"}"#);
    let output = worked(UK, "uk_bank", &bank).run(&context).await.expect("it runs");
    let expected = concat!(
        r#"{"accounts":[{"account":{"AccountId": "1"},"balances":[{"Amount": {"Amount": "1230.00"}}],"#,
        r#""transactions":[{"Amount":"1.10"},{"Amount":"2.50"}]},"#,
        r#"{"account":{"AccountId": "2"},"balances":[{"Amount": {"Amount": "1230.00"}}],"transactions":[]}]}"#
    );
    assert_eq!(output.as_str(), expected);
    assert_eq!(said(&context).0.len(), 6);
    bank.stop().await;

    for (status, body, remedy, reason) in [
        (401, r#"{"Errors": [{"ErrorCode": "UK.OBIE.Reauthenticate"}]}"#, Remedy::UserAction, "reauthenticate"),
        (403, r#"{"Errors": [{"ErrorCode": "U028"}]}"#, Remedy::UserAction, "reauthenticate"),
        (403, "", Remedy::UserAction, "consent_expired"),
        (401, "", Remedy::None, "unauthorized"),
    ] {
        let refused = move || async move { (StatusCode::from_u16(status).expect("a status"), body) };
        let bank = Bank::serving(Router::new().route("/accounts", get(refused))).await;
        let error =
            worked(UK, "uk_bank", &bank).run(&testing::context(r#"{"customer": "c1"}"#)).await.expect_err("refused");
        let expected = format!("step accounts: GET /accounts answered with status {status}");
        assert_eq!(error, Error { message: expected, remedy, reason: reason.parse().ok() });
        bank.stop().await;
    }
}

#[tokio::test]
async fn fdx() {
    let accounts = |Query(query): Query<Value>| async move {
        match query["offset"].as_str() {
            None => json(r#"{"page": {"nextOffset": "B47D80MVP23T"}, "accounts": [{"accountId": "d/1"}]}"#),
            Some("B47D80MVP23T") => json(r#"{"page": {}, "accounts": [{"accountId": "d2"}]}"#),
            Some(_) => json("null"),
        }
    };
    let transactions = |Path(id): Path<String>, Query(query): Query<Value>| async move {
        let in_range =
            (query["startTime"].as_str(), query["endTime"].as_str()) == (Some("2025-01-01"), Some("2025-02-01"));
        match (in_range, id.as_str(), query["offset"].as_str()) {
            (true, "d/1", None) => json(r#"{"page": {"nextOffset": "7"}, "transactions": [{"amount": 0.80}]}"#),
            (true, "d/1", Some("7")) => json(r#"{"page": {"nextOffset": ""}, "transactions": [{"amount": 400.00}]}"#),
            (true, ..) => json(r#"{"transactions": []}"#),
            (false, ..) => json("null"),
        }
    };
    let api = Router::new().route("/accounts", get(accounts)).route("/accounts/{id}/transactions", get(transactions));
    let bank = Bank::serving(api).await;
    let context = testing::context(r#"{"customer": "c1", "from": "2025-01-01", "to": "2025-02-01"}"#);
    let output = worked(FDX, "fdx_bank", &bank).run(&context).await.expect("it runs");
    let expected = concat!(
        r#"{"accounts":[{"accountId": "d/1"},{"accountId": "d2"}],"#,
        r#""transactions":[{"accountId":"d/1","transactions":[{"amount": 0.80},{"amount": 400.00}]},"#,
        r#"{"accountId":"d2","transactions":[]}]}"#
    );
    assert_eq!(output.as_str(), expected);
    bank.stop().await;

    for code in ["602", "\"602\""] {
        let refused = move || async move { (StatusCode::FORBIDDEN, format!("{{\"code\": {code}}}")) };
        let bank = Bank::serving(Router::new().route("/accounts", get(refused))).await;
        let error =
            worked(FDX, "fdx_bank", &bank).run(&testing::context(r#"{"customer": "c1"}"#)).await.expect_err("refused");
        assert_eq!((error.remedy, error.reason), (Remedy::UserAction, "consent_expired".parse().ok()));
        bank.stop().await;
    }
}
