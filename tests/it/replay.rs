//! `weir payload replay`: what a worker has stored is run again, when the bank and the secrets are gone.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use weir::client::Submission;
use weir::integration::transport::Request;
use weir::integration::{Context, Error, Integration, Integrations};
use weir::lifecycle::Lifecycle;
use weir::replay::{Change, Replay};
use weir::sandbox::{Behaviour, Errors, Latency, Oversized, Sandbox};
use weir::task::Json;

use crate::cli::{run, stderr, stdout, weir};
use crate::support::desk::Production;
use crate::support::house::{LONG, submission};
use crate::support::lone::{ACCOUNTS, asking};

/// All accounts of a customer and all pages of each, two accounts at a time; an access token from the bank's endpoint.
const PULL: &str = r#"
[integrations.pull]
kind = "http"
base_url = "BANK"
auth = { kind = "oauth2", token_url = "BANK/oauth/token", client_id = "weir", client_secret = { file = "DIR/secret" } }
steps = [
    { name = "accounts", path = "/accounts", query = { customer = "{{ input.customer }}" } },
    { name = "pages", for_each = "{{ steps.accounts.accounts }}", parallel = 2, path = "/accounts/{{ item.id }}/transactions", query = { limit = 7, pagination = "cursor" }, pagination = { kind = "cursor", items = "{{ body.transactions }}", next = "{{ body.next_cursor }}", parameter = "cursor" }, value = { id = "{{ item.id }}", count = "{{ body | length }}", first = "{{ body[0].amount }}" } },
]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn pages_loops_and_a_token_replay_to_the_same_output_without_bank_and_secret() {
    let production = Production::start(PULL, Integrations::new()).await;
    for id in ["first", "second"] {
        production.run("pull", id, json!({ "customer": "c1" })).await.result.expect("an output");
    }
    let desk = production.end().await;
    let first = desk.assert_same("first").await;
    let requests = first["requests"].as_array().expect("a list");
    assert!(requests.len() > 6, "{first:#}");
    assert_eq!((&requests[0]["method"], &requests[0]["then"]), (&json!("POST"), &json!({ "status": 200 })));
    // The first task's token served this one: no request for one is in its recording.
    let second = desk.assert_same("second").await;
    assert_eq!(second["requests"].as_array().expect("a list").len(), requests.len() - 1, "{second:#}");

    // What get has written can be run again, too.
    let written = desk.directory.path().join("first.json");
    let output = run(weir().args(["payload", "get"]).arg(&desk.payloads["first"]).arg("-o").arg(&written), "").await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let file = desk.directory.path().join("replay.toml");
    let output = run(weir().arg("-c").arg(&file).args(["payload", "replay"]).arg(&written), "").await;
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));

    let (code, text, _) = desk.replay("first", &[]).await;
    let says =
        ["task first of pull", "then  ok after ", "now   the same, after ", "all alike", "    POST /oauth/token"];
    says.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));
    assert_eq!(code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_replays_to_the_same_failure() {
    let clients = ["errors", "resets", "truncated", "oversized", "hangs", "consent", "slow"];
    let integrations: String = clients.map(|client| asking(client, ACCOUNTS)).concat();
    let production = Production::start(&integrations, Integrations::new()).await;
    let all = Behaviour::default();
    for (client, behaviour) in [
        ("errors", Behaviour { errors: Some(Errors { share: 1.0, status: 503 }), ..all }),
        ("resets", Behaviour { resets: Some(1.0), ..all }),
        ("truncated", Behaviour { truncated: Some(1.0), ..all }),
        ("oversized", Behaviour { oversized: Some(Oversized { share: 1.0, bytes: 1 << 20 }), ..all }),
        ("hangs", Behaviour { hangs: Some(1.0), ..all }),
        ("slow", Behaviour { latency: Some(Latency::Fixed(LONG)), ..all }),
    ] {
        production.misbehave(client, behaviour);
    }
    let mut expected = BTreeMap::new();
    for client in &clients[..6] {
        let customer = if *client == "consent" { "expired-c1" } else { "c1" };
        let outcome = production.run(client, client, json!({ "customer": customer })).await;
        expected.insert(*client, outcome.result.expect_err(client));
    }
    let timeout = Duration::from_millis(100);
    let slow = Submission { timeout, ..submission("slow", "slow", json!({ "customer": "c1" })) };
    let outcome = production.client.submit(&slow).await.expect("an outcome");
    expected.insert("slow", outcome.result.expect_err("too slow"));
    let desk = production.end().await;
    for (client, failure) in expected {
        let replayed = desk.assert_same(client).await;
        let now = &replayed["now"]["result"]["failure"];
        assert_eq!((&now["code"], &now["message"]), (&json!(failure.code.as_str()), &json!(failure.message)));
        let attempts = replayed["requests"].as_array().expect("a list").len();
        let twice = ["errors", "resets", "truncated", "hangs"].contains(&client);
        assert_eq!(attempts, if twice { 2 } else { 1 }, "{replayed:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_that_fail_at_the_same_time_the_first_is_the_first() {
    let steps =
        r#"steps = [{ name = "each", for_each = "{{ input.ids }}", parallel = 4, path = "/accounts/{{ item }}" }]"#;
    let production = Production::start(&asking("race", steps), Integrations::new()).await;
    let ids: Vec<String> = (0..4).map(|id| format!("nobody-{id}")).collect();
    for task in 0..5 {
        let outcome = production.run("race", &format!("t{task}"), json!({ "ids": ids })).await;
        assert!(outcome.result.expect_err("no such account").message.contains("status 404"));
    }
    let desk = production.end().await;
    for task in 0..5 {
        let (code, out, errors) = desk.replay(&format!("t{task}"), &["--json"]).await;
        let replayed: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{errors}"));
        assert_eq!((code, &replayed["same"]), (Some(0), &json!(true)), "{replayed:#}");
        // How many of the others were asked before the first answer is chance.
        for request in replayed["requests"].as_array().expect("a list") {
            let is_given_up = [&request["then"], &request["now"]].iter().any(|said| said["error"] == "cancelled");
            assert!(request["change"] == "same" || is_given_up, "{replayed:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn card_numbers_in_urls_and_bodies_are_placeholders_on_both_sides() {
    const CARDS: [&str; 2] = ["4929123412341232", "4111 1111 1111 1111"];
    let steps = r#"steps = [
        { name = "owner", path = "/accounts", query = { customer = "{{ input.cards[0] }}" } },
        { name = "each", for_each = "{{ input.cards }}", parallel = 2, path = "/accounts", query = { customer = "{{ item }}", note = "card {{ item }}" }, value = { card = "{{ item }}" } },
        { name = "order", method = "POST", path = "/cards/{{ input.cards[1] }}", body = { card = "{{ input.cards[0] }}", pin = "{{ input.pin }}" } },
    ]"#;
    let production = Production::start(&asking("cards", steps), Integrations::new()).await;
    let input = json!({ "cards": CARDS, "pin": "1234" });
    let failure = production.run("cards", "cards", input).await.result.expect_err("the bank takes no orders");
    assert!(failure.message.contains("status 404"), "{failure}");
    let desk = production.end().await;
    let replayed = desk.assert_same("cards").await;
    let text = replayed.to_string();
    for secret in CARDS.into_iter().chain(["1234", "4111"]) {
        assert!(!text.contains(secret), "{secret} is in {replayed:#}");
    }
    assert!(text.contains("/cards/[card-") && text.contains("&note=[redacted-"), "{replayed:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_shows_in_the_outcome_and_in_the_requests() {
    let production = Production::start(PULL, Integrations::new()).await;
    production.run("pull", "t", json!({ "customer": "c1" })).await.result.expect("an output");
    let desk = production.end().await;

    // Another output from the same answers.
    let other = desk.integrations.replace("{{ body | length }}", "{{ body | length + 1 }}");
    let (code, text, _) = desk.replay_with(&other, "t", &[]).await;
    assert_eq!(code, Some(1), "{text}");
    let says = ["what is different, then → now", "  output[0].count  ", "all alike"];
    says.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));
    let (_, out, _) = desk.replay_with(&other, "t", &["--json"]).await;
    let replayed: Value = serde_json::from_str(&out).expect("JSON");
    let difference = &replayed["differences"][0];
    let count = |side: &str| difference[side].as_str().expect("a number").parse::<u64>().expect("a number");
    assert_eq!((&difference["path"], count("now")), (&json!("output[0].count"), count("then") + 1), "{replayed:#}");

    // Another request, for which there is no answer.
    let other = desk.integrations.replace("limit = 7", "limit = 8");
    let (code, text, _) = desk.replay_with(&other, "t", &[]).await;
    assert_eq!(code, Some(1), "{text}");
    let says = [
        "now   integration_error (remedy none)",
        ": the recording has GET /accounts/",
        "not ?limit=8&pagination=[redacted-",
        "+ GET /accounts/",
        "not in the recording",
        "- GET /accounts/",
        "(- then only, + now only)",
    ];
    says.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));
    // One value has one number, in the failure and in the list of requests.
    let asked = text.split_once("not ?").expect("it is said").1.lines().next().expect("a line");
    let is_listed = |line: &str| line.trim_start().starts_with("+ GET ") && line.contains(&format!("?{asked} "));
    assert!(asked.starts_with("limit=8&pagination=[redacted-") && text.lines().any(is_listed), "{asked}: {text}");
    // The nearest there is serves on request, and that is told.
    let (_, text, _) = desk.replay_with(&other, "t", &["--nearest"]).await;
    let says = ["was answered with what was recorded for GET /accounts/", "  ~ GET /accounts/", "url  \"/accounts/"];
    says.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));
    assert!(!text.contains("not in the recording") && !text.contains("  + "), "{text}");
    let (_, out, _) = desk.replay_with(&other, "t", &["--nearest", "--json"]).await;
    let replayed: Value = serde_json::from_str(&out).expect("JSON");
    let nearest: Vec<_> =
        replayed["requests"].as_array().expect("a list").iter().filter(|it| it["change"] == "changed").collect();
    assert!(nearest.len() > 1, "{replayed:#}");
    for request in nearest {
        let url = &request["differences"][0];
        let limits = [("then", "?limit=7&"), ("now", "?limit=8&")];
        let is_right = limits.iter().all(|(side, limit)| url[side].as_str().is_some_and(|it| it.contains(limit)));
        assert!(url["path"] == "url" && is_right && request["then"] == request["now"], "{request:#}");
    }

    // Another host is the same bank.
    let bank = desk.integrations.split('"').find(|part| part.starts_with("http://")).expect("a URL").to_owned();
    let other = desk.integrations.replace(&bank, "https://bank.example");
    let (code, text, _) = desk.replay_with(&other, "t", &[]).await;
    let says = ["note: https://bank.example is asked here, and was http://127.0.0.1:", "all alike"];
    says.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));
    assert_eq!(code, Some(0));

    // No integration of that name, and one that is wrong.
    let (code, _, errors) = desk.replay_with("", "t", &[]).await;
    assert!(code == Some(2) && errors.contains("the payload is one of pull, which is not configured"), "{errors}");
    let other = desk.integrations.replace("for_each = \"{{ steps.accounts", "for_each = \"{{ steps.nothing");
    let (code, _, errors) = desk.replay_with(&other, "t", &[]).await;
    assert!(code == Some(2) && errors.contains("integrations.pull.steps[1]"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn live_asks_the_bank_with_the_configured_credentials() {
    let production = Production::start(&asking("live", ACCOUNTS), Integrations::new()).await;
    production.misbehave("live", Behaviour { errors: Some(Errors { share: 1.0, status: 500 }), ..Default::default() });
    production.run("live", "t", json!({ "customer": "c1" })).await.result.expect_err("a bad day");
    production.misbehave("live", Behaviour { errors: Some(Errors { share: 0.0, status: 500 }), ..Default::default() });
    let (desk, sandbox, upstream) = production.close().await;

    let (code, _, errors) = desk.replay("t", &["--live"]).await;
    assert!(code == Some(2) && errors.contains("integrations.live.auth.key.file"), "a secret is needed: {errors}");
    std::fs::write(desk.directory.path().join("live.key"), "sandbox.live").expect("written");
    let before = sandbox.stats().clients["live"].total;
    desk.assert_same("t").await;
    assert_eq!(sandbox.stats().clients["live"].total, before, "a replay asks nobody");

    let here = format!("http://{}", sandbox.local_addr);
    let elsewhere = desk.integrations.replace(&here, "http://127.0.0.1:9");
    let (code, text, errors) = desk.replay_with(&elsewhere, "t", &["--live", &here]).await;
    assert_eq!(code, Some(1), "{text}{errors}");
    for part in
        ["now   ok after", "~ GET /accounts?customer=[redacted-1]", "500 → 200", "- GET /accounts", "(~ changed"]
    {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    assert_eq!(sandbox.stats().clients["live"].total, before + 1);
    let (code, _, errors) = desk.replay("t", &["--live", "bank"]).await;
    assert!(code == Some(2) && errors.contains("--live bank: this is no http URL"), "{errors}");
    // The key stands where a URL may.
    let (code, _, errors) = desk.replay_by(&desk.integrations, &["--live", desk.path("t")]).await;
    assert_eq!(code, Some(1), "{errors}");
    let (code, _, errors) = desk.replay_by(&desk.integrations, &["--live", &here]).await;
    assert!(code == Some(2) && errors.contains("name a key or a file to replay"), "{errors}");
    for (flag, value, says) in [
        ("--input", "", "--input is empty: use JSON"),
        ("--input", "@", "--input @ names no file"),
        ("--timeout", "300000000000years", "use at most 30days"),
    ] {
        let (code, _, errors) = desk.replay("t", &[flag, value]).await;
        assert!(code == Some(2) && errors.contains(says), "{errors}");
    }
    upstream.stop(LONG).await.expect("the bank ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_recording_does_not_have_is_said() {
    let more = format!("{ACCOUNTS}\n[worker.environment.recorder]\nmax_body_bytes = 100");
    let text = asking("cut", &more);
    // The table of the worker is opened by the recorder's; the rest of it follows.
    let production = Production::start(&text, Integrations::new()).await;
    for id in ["cut", "bare", "older", "withheld"] {
        production.run("cut", id, json!({ "customer": "c1" })).await.result.expect("an output");
    }
    let desk = production.end().await;
    let (code, text, _) = desk.replay("cut", &[]).await;
    assert_eq!(code, Some(1), "{text}");
    let says =
        ["note: GET /accounts?customer=", "the recording has the first ", "answered with a body that is not JSON"];
    says.iter().for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));

    desk.edit("bare", |document| document["_redaction"] = json!("only metadata was kept: for a test"));
    let (code, out, errors) = desk.replay("bare", &[]).await;
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(errors.contains("there is nothing to replay: only metadata was kept: for a test"), "{errors}");

    // Timings that no clock can have.
    desk.edit("withheld", |document| {
        document["transcript"]["log"]["entries"][0]["timings"]["wait"] = json!(1e22);
        let content = &mut document["transcript"]["log"]["entries"][0]["response"]["content"];
        content["text"] = json!("");
        content["comment"] = json!("left out: it is no JSON");
    });
    let (code, text, _) = desk.replay("withheld", &[]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the body of the answer is not in the recording: it is no JSON"), "{text}");
    assert!(text.contains("now   integration_error"), "nothing goes on with an empty body: {text}");

    desk.edit("older", |document| {
        document["task"]["input"]["customer"] = json!("[redacted-1]");
        document["transcript"]["log"]["entries"] = json!([]);
        document["transcript"]["log"]["_exchangesLeftOut"] = json!(3);
    });
    let (code, text, _) = desk.replay("older", &[]).await;
    assert!(code == Some(1) && text.contains("3 exchanges of the run had no room in the recording"), "{text}");
    assert!(text.contains("the recording has no request, and so not GET /accounts?customer="), "{text}");
    let hint = "placeholders where 1 values were redacted, and requests may have been made of these: give it with them";
    assert!(text.contains(hint), "{text}");
}

/// Reads accounts and their transactions side by side, as a team's own code does.
struct Own {
    bank: String,
}

#[async_trait]
impl Integration for Own {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        let input: Value = context.input()?;
        let token = "sandbox.own";
        context.secret(token);
        let get = async |path: String| -> Result<Value, Error> {
            let request =
                Request::get(format!("{}{path}", self.bank)).header("authorization", format!("Bearer {token}"));
            let answer = context.http().send(request).await?;
            let read = move || serde_json::from_slice(&answer.body).map_err(|_| Error::permanent("no JSON"));
            context.blocking(read).await?
        };
        let accounts = get(format!("/accounts?customer={}", input["customer"].as_str().unwrap_or_default())).await?;
        let ids: Vec<String> = accounts["accounts"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|account| account["id"].as_str().map(str::to_owned))
            .collect();
        let all = ids.iter().map(|id| get(format!("/accounts/{id}/transactions")));
        let counts: Vec<usize> = futures_util::future::try_join_all(all)
            .await?
            .iter()
            .map(|page| page["transactions"].as_array().map_or(0, Vec::len))
            .collect();
        if input["fail"] == true {
            return Err(Error::user_action(format!("{counts:?} transactions, and no consent")));
        }
        Json::of(&counts).map_err(|error| Error::permanent(error.to_string()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teams_own_test_replays_a_stored_payload() {
    let upstream = Lifecycle::new();
    let bank = weir::sandbox::Config { listen: ([127, 0, 0, 1], 0).into(), ..Default::default() };
    let sandbox = Sandbox::start(bank, &upstream).await.expect("a bank");
    let own = || Own { bank: format!("http://{}", sandbox.local_addr) };
    let name = "own".parse().expect("a name");
    let production = Production::start("", Integrations::new().with(name, own())).await;
    production.run("own", "fine", json!({ "customer": "c1" })).await.result.expect("an output");
    production.run("own", "fails", json!({ "customer": "c1", "fail": true })).await.result.expect_err("on purpose");
    let desk = production.end().await;
    upstream.stop(LONG).await.expect("the bank ends");

    for id in ["fine", "fails"] {
        let replay = Replay::from_file(&desk.payloads[id]).expect("a payload");
        let replayed = replay.run(own()).await.expect("it runs");
        assert!(replayed.is_same() && replayed.requests.len() > 1, "{replayed}");
        assert!(replayed.requests.iter().all(|request| request.change == Change::Same), "{replayed}");
    }
    // Mended code: the same requests, and another outcome.
    let replay = Replay::from_file(&desk.payloads["fails"]).expect("a payload");
    let input = Json::of(&json!({ "customer": "c1" })).expect("JSON");
    let replayed = replay.with_input(input).run(own()).await.expect("it runs");
    assert!(!replayed.is_same() && replayed.now.outcome.result.is_ok(), "{replayed}");
    assert!(replayed.to_string().contains("then  integration_error (remedy user_action) after "), "{replayed}");
}

/// Asks for a customer, and fails in words that name them.
struct Refuses {
    bank: String,
    words: &'static str,
}

#[async_trait]
impl Integration for Refuses {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        let customer: String = context.input()?;
        context.secret(&customer);
        let request = Request::get(format!("{}/accounts?customer={customer}", self.bank));
        context.http().send(request.header("authorization", "Bearer sandbox.refuses")).await?;
        Err(Error::permanent(format!("{} {customer}", self.words)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_has_one_number_in_the_failure_and_in_the_requests() {
    let upstream = Lifecycle::new();
    let bank = weir::sandbox::Config { listen: ([127, 0, 0, 1], 0).into(), ..Default::default() };
    let sandbox = Sandbox::start(bank, &upstream).await.expect("a bank");
    let refuses = |words| Refuses { bank: format!("http://{}", sandbox.local_addr), words };
    let name = "refuses".parse().expect("a name");
    let production = Production::start("", Integrations::new().with(name, refuses("no consent of"))).await;
    let failure = production.run("refuses", "t", json!("customer-7")).await.result.expect_err("on purpose");
    assert_eq!(failure.message, "no consent of customer-7");
    let desk = production.end().await;
    upstream.stop(LONG).await.expect("the bank ends");
    // What was redacted is known again, and is numbered anew.
    let replay = Replay::from_file(&desk.payloads["t"]).expect("a payload");
    let replay = replay.with_input(Json::of(&"customer-7").expect("JSON"));
    let replayed = replay.run(refuses("nobody knows")).await.expect("it runs");
    let text = replayed.to_string();
    let (then, now) = ("      no consent of [redacted-1]\n", "      nobody knows [redacted-1]\n");
    assert!(text.contains(then) && text.contains(now) && !text.contains("customer-7"), "{text}");
    assert!(text.contains("GET /accounts?customer=[redacted-1]  200") && !text.contains("[redacted-2]"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_replayed_live_alone() {
    let script = r#"echo '{"type":"ready","protocol":1}'; while read -r line; do run=${line#*\"run\":\"}; run=${run%%\"*}; echo "{\"type\":\"outcome\",\"run\":\"$run\",\"output\":7}"; done"#;
    let text =
        format!("[integrations.program]\nkind = \"exec\"\nprocesses = 1\ncommand = [\"sh\", \"-c\", '''{script}''']\n");
    let production = Production::start(&text, Integrations::new()).await;
    production.run("program", "t", json!({})).await.result.expect("an output");
    let desk = production.end().await;
    let (code, out, errors) = desk.replay("t", &[]).await;
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(errors.contains("speaks to the network itself") && errors.contains("--live"), "{errors}");
    let (code, text, errors) = desk.replay("t", &["--live"]).await;
    assert!(code == Some(0) && text.contains("no requests, then or now"), "{text}{errors}");
    let (code, _, errors) = desk.replay("t", &["--live", "http://127.0.0.1:9"]).await;
    assert!(code == Some(2) && errors.contains("has no base URL"), "{errors}");
}
