//! The two standards' words for the bank's data.

use super::*;

const AISP: &str = "/open-banking/v4.0/aisp/accounts";
const FDX: &str = "/fdx/v6/accounts";

impl Fixture {
    /// As customer `c1`; the status, the body and the interaction id.
    async fn ask(&self, url: String) -> (u16, Value, String) {
        let bearer = |base: String| {
            let url = if url.starts_with('/') { base + &url } else { url };
            let request = Request::get(url).header("authorization", "Bearer sandbox.a");
            request.header("x-customer-id", "c1").header("x-fapi-interaction-id", "i-1")
        };
        let answer = self.send(bearer).await;
        let id = answer.header("x-fapi-interaction-id").unwrap_or_default().to_owned();
        (answer.status, serde_json::from_slice(&answer.body).expect("JSON"), id)
    }

    async fn own(&self) -> (Vec<Value>, Vec<Value>) {
        let (_, accounts, _) = self.ask("/accounts".into()).await;
        let id = accounts["accounts"][0]["id"].as_str().expect("an id");
        let (_, transactions, _) = self.ask(format!("/accounts/{id}/transactions")).await;
        let list = |value: &Value| value.as_array().expect("a list").clone();
        (list(&accounts["accounts"]), list(&transactions["transactions"]))
    }
}

#[tokio::test]
async fn a_uk_bank_tells_the_same_in_its_words() {
    let fixture = Fixture::with(Config { response_bytes: 30_000, ..at_once() }, 4).await;
    let (accounts, transactions) = fixture.own().await;
    let (status, body, interaction) = fixture.ask(AISP.into()).await;
    assert_eq!((status, &*interaction, &body["Meta"]["TotalPages"]), (200, "i-1", &json!(1)));
    let base = format!("http://{}", fixture.sandbox.local_addr);
    assert_eq!(body["Links"]["Self"], json!(format!("{base}{AISP}")));
    let listed = body["Data"]["Account"].as_array().expect("a list");
    assert_eq!(listed.len(), accounts.len());
    assert_eq!(listed[0]["AccountId"], accounts[0]["id"]);
    assert_eq!(listed[0]["Account"][0]["Identification"], accounts[0]["iban"]);
    let id = listed[0]["AccountId"].as_str().expect("an id");
    assert_eq!(fixture.ask(format!("{AISP}/{id}")).await.1["Data"]["Account"][0], listed[0]);
    let (_, balances, _) = fixture.ask(format!("{AISP}/{id}/balances")).await;
    let balance = json!({ "Amount": accounts[0]["balance"], "Currency": accounts[0]["currency"] });
    assert_eq!(balances["Data"]["Balance"][0]["Amount"], balance);

    let (mut url, mut collected) = (Some(format!("{AISP}/{id}/transactions")), Vec::new());
    while let Some(asked) = url {
        let (status, body, _) = fixture.ask(asked).await;
        assert_eq!((status, &body["Meta"]["TotalPages"]), (200, &json!(transactions.len().div_ceil(50))));
        collected.extend(body["Data"]["Transaction"].as_array().expect("a list").iter().cloned());
        url = body["Links"].get("Next").map(|next| next.as_str().expect("a link").to_owned());
    }
    assert_eq!(collected.len(), transactions.len());
    for (theirs, own) in collected.iter().zip(&transactions) {
        let sign = if theirs["CreditDebitIndicator"] == "Debit" { "-" } else { "" };
        let amount = format!("{sign}{}", theirs["Amount"]["Amount"].as_str().expect("a text"));
        assert_eq!((&theirs["TransactionId"], json!(amount)), (&own["id"], own["amount"].clone()));
        assert!(
            theirs["BookingDateTime"].as_str().expect("a time").starts_with(own["booked"].as_str().expect("a day"))
        );
    }
    let filtered =
        format!("{AISP}/{id}/transactions?fromBookingDateTime=2025-03-01T00:00:00&toBookingDateTime=2025-04-30");
    let (_, body, _) = fixture.ask(filtered).await;
    let within = |own: &&Value| ("2025-03-01"..="2025-04-30").contains(&own["booked"].as_str().expect("a day"));
    let expected = transactions.iter().filter(within).count();
    assert_eq!(body["Data"]["Transaction"].as_array().map(Vec::len), Some(expected));
    fixture.stop().await;
}

#[tokio::test]
async fn an_american_bank_tells_the_same_in_its_words() {
    let fixture = Fixture::with(Config { response_bytes: 30_000, ..at_once() }, 4).await;
    let (accounts, transactions) = fixture.own().await;
    let (status, body, interaction) = fixture.ask(FDX.into()).await;
    assert_eq!((status, &*interaction, &body["page"]["totalElements"]), (200, "i-1", &json!(accounts.len())));
    let id = body["accounts"][0]["accountId"].as_str().expect("an id");
    assert_eq!(json!(id), accounts[0]["id"]);
    assert_eq!(fixture.ask(format!("{FDX}/{id}")).await.1, body["accounts"][0]);

    let (mut path, mut collected) = (Some(format!("/accounts/{id}/transactions?limit=35")), Vec::new());
    while let Some(asked) = path {
        let (status, body, _) = fixture.ask(format!("/fdx/v6{asked}")).await;
        assert_eq!((status, &body["page"]["totalElements"]), (200, &json!(transactions.len())), "{asked}: {body}");
        collected.extend(body["transactions"].as_array().expect("a list").iter().cloned());
        path = body["links"].get("next").map(|next| next["href"].as_str().expect("a path").to_owned());
        assert_eq!(path.is_some(), body["page"].get("nextOffset").is_some());
    }
    assert_eq!(collected.len(), transactions.len());
    for (theirs, own) in collected.iter().zip(&transactions) {
        let sign = if theirs["debitCreditMemo"] == "DEBIT" { "-" } else { "" };
        let amount = format!("{sign}{:.2}", theirs["amount"].as_f64().expect("a number"));
        assert_eq!((&theirs["transactionId"], json!(amount)), (&own["id"], own["amount"].clone()));
    }
    let (_, body, _) =
        fixture.ask(format!("{FDX}/{id}/transactions?startTime=2025-03-01&endTime=2025-04-30&limit=1000")).await;
    let within = |own: &&Value| ("2025-03-01"..="2025-04-30").contains(&own["booked"].as_str().expect("a day"));
    assert_eq!(body["transactions"].as_array().map(Vec::len), Some(transactions.iter().filter(within).count()));
    fixture.stop().await;
}

#[tokio::test]
async fn each_dialect_says_no_in_its_own_words() {
    let fixture = Fixture::with(at_once(), 4).await;
    let no_account = "acc-none/transactions";
    for (path, status, pointer, expected) in [
        (format!("{AISP}/{no_account}"), 404, "/Errors/0/ErrorCode", "U011"),
        (format!("{AISP}/acc-0123456789abcdef/transactions?page=0"), 400, "/Errors/0/ErrorCode", "U002"),
        (format!("{FDX}/{no_account}"), 404, "/code", "701"),
        (format!("{FDX}/acc-0123456789abcdef/transactions?offset=7"), 400, "/code", "703"),
        (format!("{FDX}/acc-0123456789abcdef/transactions?limit=0"), 400, "/code", "703"),
    ] {
        let (answered, body, interaction) = fixture.ask(path.clone()).await;
        assert_eq!((answered, body.pointer(pointer), &*interaction), (status, Some(&json!(expected)), "i-1"), "{path}");
    }
    for (path, pointer, expected) in [(AISP, "/Errors/0/ErrorCode", "U009"), (FDX, "/code", "602")] {
        let (status, body) = fixture.get(&format!("{path}?customer=expired-1"), "sandbox.a").await;
        assert_eq!((status, body.pointer(pointer)), (403, Some(&json!(expected))), "{path}");
        let (status, body) = fixture.get(path, "nobody").await;
        assert_eq!((status, body.pointer(pointer).is_some()), (401, true), "{path}: {body}");
    }
    let (_, own_customer) = fixture.get(FDX, "sandbox.c1").await;
    assert_eq!(
        own_customer["accounts"],
        fixture.ask(FDX.into()).await.1["accounts"],
        "else the client is the customer"
    );
    fixture.stop().await;
}
