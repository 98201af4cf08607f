//! The token endpoint: how it is asked, what its answers mean, and that all tasks share what it grants.

use super::*;

#[tokio::test]
async fn a_client_asks_for_a_token_in_the_way_that_is_configured() {
    let bank = Bank::start().await;
    let oauth2 = json!({ "kind": "oauth2", "token_url": format!("{}/token", bank.url), "client_id": "weir:1" });
    let with = |more: Value| {
        let mut auth = oauth2.clone();
        auth.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        auth
    };
    let secret = json!({ "file": bank.file("secret", "s3cret/1") });
    // RFC 6749, section 2.3.1: both halves are encoded first.
    let basic = format!("Basic {}", BASE64_STANDARD.encode("weir%3A1:s3cret%2F1"));
    for (auth, form) in [
        (with(json!({ "client_secret": secret })), format!("{basic} grant_type=client_credentials")),
        (
            with(json!({ "client_secret": secret, "client_authentication": "body", "scope": "a b" })),
            "grant_type=client_credentials&scope=a+b&client_id=weir%3A1&client_secret=s3cret%2F1".into(),
        ),
        (
            with(json!({ "parameters": { "audience": "https://bank" } })),
            "grant_type=client_credentials&audience=https%3A%2F%2Fbank&client_id=weir%3A1".into(),
        ),
    ] {
        let integration = bank.integration("/accounts", auth).expect("valid");
        let (output, transcript) = run(&integration, "{}").await;
        assert_eq!(output.as_deref(), Ok("[]"));
        assert_eq!(bank.forms().last(), Some(&form));
        assert_eq!(said(&transcript), ["POST /token 200", "GET /accounts 200"]);
        let token = format!("access-{}", bank.forms().len());
        assert!(transcript.secrets.contains(&token), "{:?}", transcript.secrets);
        assert_eq!(
            transcript.secrets.contains(&"s3cret/1".to_owned()),
            form.contains("secret") || form.contains("Basic")
        );

        let (output, transcript) = run(&integration, "{}").await;
        assert_eq!(output.as_deref(), Ok("[]"));
        assert_eq!(said(&transcript), ["GET /accounts 200"], "the token is there");
        assert_eq!(transcript.secrets, [token], "and is a secret of whoever uses it");
    }
    bank.stop().await;
}

#[tokio::test]
async fn a_refresh_token_that_the_bank_replaces_is_written_back() {
    let bank = Bank::start().await;
    bank.seen.lock().also = json!({ "refresh_token": "refresh-2", "expires_in": 0 });
    let refresh = bank.file("refresh", "refresh-1\n");
    let client = bank.client(json!({ "grant": "refresh_token", "refresh_token": { "file": refresh } }));
    let (output, transcript) = run(&client, "{}").await;
    assert_eq!(output.as_deref(), Ok("[]"));
    assert!(bank.forms()[0].ends_with(" grant_type=refresh_token&refresh_token=refresh-1"), "{:?}", bank.forms());
    assert_eq!(std::fs::read_to_string(&refresh).expect("readable"), "refresh-2");
    for secret in ["s3cret/1", "refresh-1", "refresh-2", "access-1"] {
        assert!(transcript.secrets.iter().any(|known| known == secret), "{secret}");
    }
    bank.seen.lock().also = json!({ "expires_in": "3600" });
    assert_eq!(run(&client, "{}").await.0.as_deref(), Ok("[]"));
    assert!(bank.forms()[1].ends_with("&refresh_token=refresh-2"), "{:?}", bank.forms());
    assert_eq!(std::fs::read_to_string(&refresh).expect("readable"), "refresh-2", "the bank handed out no other");
    bank.stop().await;
}

#[tokio::test]
async fn a_refresh_token_is_replaced_even_when_the_task_that_asked_is_cancelled() {
    let bank = Bank::start().await;
    let gate = CancellationToken::new();
    {
        let mut seen = bank.seen.lock();
        (seen.gate, seen.also) = (Some(gate.clone()), json!({ "refresh_token": "refresh-2" }));
    }
    let refresh = bank.file("refresh", "refresh-1");
    let client = bank.client(json!({ "grant": "refresh_token", "refresh_token": { "file": refresh } }));
    let (lifecycle, cancel) = (Lifecycle::new(), CancellationToken::new());
    let context = testing::context_on(&lifecycle, "{}", 1, Arc::new(()), cancel.clone());
    let canceller = async {
        while bank.forms().is_empty() {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (output, ()) = tokio::join!(client.run(&context), canceller);
    assert_eq!(output.expect_err("cancelled").message, "cancelled");
    gate.cancel();
    lifecycle.wait(Duration::from_secs(20)).await.expect("the request for the token ends by itself");
    assert_eq!(std::fs::read_to_string(&refresh).expect("readable"), "refresh-2");
    assert_eq!(run(&client, "{}").await.0.as_deref(), Ok("[]"));
    assert_eq!(bank.forms().len(), 1, "and the token serves the next task");
    bank.stop().await;
}

#[tokio::test]
async fn what_the_token_endpoint_refuses_is_typed_and_nothing_of_its_answer_is_quoted() {
    let bank = Bank::start().await;
    let code = |code: &'static str| match code {
        "invalid_client" => r#"{"error":"invalid_client","error_description":"CANARY"}"#,
        "invalid_scope" => r#"{"error":"invalid_scope"}"#,
        "invalid_grant" => r#"{"error":"invalid_grant"}"#,
        _ => r#"{"error":"CANARY"}"#,
    };
    let refresh = json!({ "grant": "refresh_token", "refresh_token": { "file": bank.file("refresh", "refresh-1") } });
    let no_grant = json!({});
    for (more, status, body, remedy, reason, says) in [
        (&no_grant, 401, code("invalid_client"), Remedy::None, Some("invalid_client"), "check client_id"),
        (&no_grant, 400, code("invalid_scope"), Remedy::None, None, "status 400 and invalid_scope"),
        (&no_grant, 400, code("invalid_grant"), Remedy::None, None, "status 400 and invalid_grant"),
        (&refresh, 400, code("invalid_grant"), Remedy::UserAction, Some("consent_expired"), "no longer valid"),
        (&no_grant, 400, code("other"), Remedy::None, None, "status 400"),
        (&no_grant, 503, "<html>CANARY", Remedy::Retry, None, "status 503"),
        (&no_grant, 429, code("other"), Remedy::Retry, None, "status 429"),
        (&no_grant, 200, "<html>CANARY", Remedy::None, None, "it is not the JSON of RFC 6749"),
        (&no_grant, 200, r#"{"access_token":"CANARY","token_type":"mac"}"#, Remedy::None, None, "is not bearer"),
        (&no_grant, 200, r#"{"access_token":"CA NARY"}"#, Remedy::None, None, "does not fit into a header"),
    ] {
        bank.seen.lock().denials.push_back((status, body));
        let asked = bank.forms().len();
        let client = bank.client(more.clone());
        let (output, transcript) = run(&client, "{}").await;
        let error = output.expect_err(says);
        let start = format!("step s: auth: POST {}/token answered with status {status}", bank.url);
        assert!(error.message.starts_with(&start) && error.message.contains(says), "{error}");
        assert!(!error.message.contains("NARY"), "{error}");
        assert_eq!((error.remedy, error.reason.as_ref().map(|it| it.as_str())), (remedy, reason), "{error}");
        assert_eq!(said(&transcript), [format!("POST /token {status}")]);

        let (output, transcript) = run(&client, "{}").await;
        assert_eq!(output.expect_err("the same"), error, "it is shared during the pause");
        assert_eq!((transcript.exchanges.len(), bank.forms().len()), (0, asked + 1));
    }
    bank.stop().await;
}

#[tokio::test]
async fn a_newer_refresh_token_in_the_file_is_tried_when_the_bank_refuses_the_one_before() {
    let bank = Bank::start().await;
    let gate = CancellationToken::new();
    bank.seen.lock().gate = Some(gate.clone());
    bank.seen.lock().denials.push_back((400, r#"{"error":"invalid_grant"}"#));
    let refresh = bank.file("refresh", "refresh-1");
    let client = bank.client(json!({ "grant": "refresh_token", "refresh_token": { "file": refresh } }));
    let renewer = async {
        while bank.forms().is_empty() {
            tokio::task::yield_now().await;
        }
        bank.file("refresh", "refresh-of-a-new-consent");
        gate.cancel();
    };
    let ((output, transcript), ()) = tokio::join!(run(&client, "{}"), renewer);
    assert_eq!(output.as_deref(), Ok("[]"));
    assert!(bank.forms()[1].ends_with("&refresh_token=refresh-of-a-new-consent"), "{:?}", bank.forms());
    assert_eq!(said(&transcript), ["POST /token 400", "POST /token 200", "GET /accounts 200"]);
    bank.stop().await;
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_and_a_second_refusal_is_final() {
    let bank = Bank::start().await;
    bank.seen.lock().uses = 1;
    let client = bank.client(json!({}));
    assert_eq!(run(&client, "{}").await.0.as_deref(), Ok("[]"));
    let (output, transcript) = run(&client, "{}").await;
    assert_eq!(output.as_deref(), Ok("[]"));
    assert_eq!(said(&transcript), ["GET /accounts 401", "POST /token 200", "GET /accounts 200"]);
    assert_eq!(notes(&transcript), ["the credentials were refused with status 401: sending once more with newer ones"]);

    bank.seen.lock().uses = 0;
    let (output, transcript) = run(&client, "{}").await;
    assert!(output.expect_err("refused").message.ends_with("GET /accounts answered with status 401"));
    assert_eq!(said(&transcript), ["GET /accounts 401", "POST /token 200", "GET /accounts 401"]);
    let (output, transcript) = run(&client, "{}").await;
    assert!(output.expect_err("refused").message.ends_with("status 401"));
    assert_eq!(said(&transcript), ["GET /accounts 401"], "no token was ever accepted: no more are asked for");
    bank.stop().await;
}

#[tokio::test]
async fn a_task_waits_for_a_token_no_longer_than_its_deadline() {
    let bank = Bank::start().await;
    let gate = CancellationToken::new();
    bank.seen.lock().gate = Some(gate.clone());
    let client = bank.client(json!({}));
    let context = testing::context_within("{}", Duration::from_millis(100));
    let error = client.run(&context).await.expect_err("it comes first");
    assert_eq!(error.message, "step s: auth: the task's deadline came before an access token");
    assert_eq!(error.remedy, Remedy::Retry);
    gate.cancel();
    let (output, transcript) = run(&client, "{}").await;
    assert_eq!((output.as_deref(), bank.forms().len()), (Ok("[]"), 1), "the request went on");
    assert_eq!(said(&transcript), ["GET /accounts 200"]);
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_that_expires_under_load_is_renewed_once_by_a_hundred_tasks() {
    let bank = Bank::start().await;
    bank.seen.lock().uses = 150;
    let client = Arc::new(bank.client(json!({})));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            bank.lifecycle.spawn("task", async move {
                // With two requests each, a hundred tasks need two tokens.
                let first = run(&client, "{}").await;
                let second = run(&client, "{}").await;
                [first, second]
            })
        })
        .collect();
    let mut asked = 0;
    for task in tasks {
        for (output, transcript) in task.await.expect("it runs").expect("it does not panic") {
            assert_eq!(output.as_deref(), Ok("[]"));
            asked += said(&transcript).iter().filter(|line| *line == "POST /token 200").count();
            assert!(!transcript.secrets.is_empty(), "who uses a token names it");
        }
    }
    assert_eq!((bank.forms().len(), asked), (2, 2), "each is in one transcript");
    bank.stop().await;
}
