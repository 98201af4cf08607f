//! Tokens and the other credentials, over HTTP.

use super::*;

const FORM: &str = "application/x-www-form-urlencoded";

impl Fixture {
    /// Asks the token endpoint as client `a`; the status and the body.
    async fn token(&self, form: &str) -> (u16, Value) {
        let form = format!("client_id=a&client_secret=x&{form}");
        let answer = self.send(|base| Request::post(base + "/oauth/token").body(FORM, form)).await;
        (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
    }

    async fn access_token(&self) -> String {
        let (status, body) = self.token("grant_type=client_credentials").await;
        assert_eq!(status, 200, "{body}");
        body["access_token"].as_str().expect("a token").to_owned()
    }
}

#[tokio::test]
async fn a_token_that_has_expired_is_told_from_one_that_never_was() {
    let config = Config { token_lifetime: Duration::from_millis(200), ..at_once() };
    let fixture = Fixture::with(config, 4).await;
    let token = fixture.access_token().await;
    let bearer = format!("Bearer {token}");
    let ask =
        || fixture.send(|base| Request::get(base + "/accounts?customer=c1").header("authorization", bearer.clone()));
    let mut answer = ask().await;
    assert_eq!(answer.status, 200);
    while answer.status == 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        answer = ask().await;
    }
    let challenge = answer.header("www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("Bearer error=\"invalid_token\"") && challenge.contains("expired"), "{challenge}");
    assert_eq!((answer.status, fixture.counts("a").unauthorized), (401, 1));
    let (status, body) = fixture.get("/accounts?customer=c1", "access.a.0.9.9.f00").await;
    assert_eq!((status, &body["error"]), (401, &json!("the token is not one of this bank")));
    assert_eq!(fixture.counts("a").unauthorized, 1, "nobody knows whose that was");
    fixture.stop().await;
}

#[tokio::test]
async fn revoked_tokens_are_refused_and_new_ones_are_not() {
    let fixture = Fixture::with(at_once(), 4).await;
    let token = fixture.access_token().await;
    assert_eq!(fixture.get("/accounts?customer=c1", &token).await.0, 200);
    assert_eq!(fixture.send(|base| Request::new("DELETE", base + "/oauth/tokens/a")).await.status, 204);
    assert_eq!(fixture.get("/accounts?customer=c1", &token).await.0, 401);
    assert_eq!(fixture.get("/accounts?customer=c1", &fixture.access_token().await).await.0, 200);
    fixture.sandbox.revoke_tokens("a");
    assert_eq!(fixture.get("/accounts?customer=c1", "sandbox.a").await.0, 200, "this one never ends");
    fixture.stop().await;
}

#[tokio::test]
async fn a_refresh_token_that_was_used_before_is_an_invalid_grant() {
    let fixture = Fixture::with(Config { rotate_refresh_tokens: true, ..at_once() }, 4).await;
    let first = "grant_type=refresh_token&refresh_token=sandbox-refresh.a";
    let (status, body) = fixture.token(first).await;
    let second =
        format!("grant_type=refresh_token&refresh_token={}", body["refresh_token"].as_str().expect("it rotates"));
    assert_eq!((status, &body["token_type"]), (200, &json!("Bearer")));
    let (status, body) = fixture.token(first).await;
    assert_eq!((status, &body["error"]), (400, &json!("invalid_grant")));
    assert_eq!(fixture.token(&second).await.0, 200);
    let expected = TokenCounts { requests: 3, refresh_token: 2, refused: 1, ..TokenCounts::default() };
    assert_eq!(fixture.counts("a").tokens, expected);
    fixture.stop().await;
}

#[tokio::test]
async fn of_many_at_once_only_one_uses_a_rotating_refresh_token() {
    let fixture = Fixture::with(Config { rotate_refresh_tokens: true, ..at_once() }, 64).await;
    let form = "grant_type=refresh_token&refresh_token=sandbox-refresh.a";
    let all = join_all((0..50).map(|_| fixture.token(form))).await;
    assert_eq!(all.iter().filter(|(status, _)| *status == 200).count(), 1);
    let expected = TokenCounts { requests: 50, refresh_token: 1, refused: 49, ..TokenCounts::default() };
    assert_eq!(fixture.counts("a").tokens, expected);
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_token_request_is_said_in_the_words_of_the_standard() {
    let fixture = Fixture::with(at_once(), 4).await;
    for (form, basic, status, error) in [
        ("grant_type=password&client_id=a&client_secret=x", None, 400, "unsupported_grant_type"),
        ("grant_type=client_credentials&client_id=a&client_secret=wrong", None, 401, "invalid_client"),
        ("grant_type=client_credentials&client_id=a", None, 401, "invalid_client"),
        ("grant_type=client_credentials", None, 401, "invalid_client"),
        ("grant_type=client_credentials", Some("Basic YTp3cm9uZw=="), 401, "invalid_client"),
        ("grant_type=client_credentials&client_secret=x", Some("Basic YTp4"), 400, "invalid_request"),
        ("grant_type=refresh_token", Some("Basic YTp4"), 400, "invalid_request"),
        ("grant_type=refresh_token&refresh_token=other", Some("Basic YTp4"), 400, "invalid_grant"),
    ] {
        let answer = fixture
            .send(|base| {
                let request = Request::post(base + "/oauth/token").body(FORM, form);
                basic.iter().fold(request, |request, basic| request.header("authorization", *basic))
            })
            .await;
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!((answer.status, &body["error"]), (status, &json!(error)), "{form} {basic:?}");
        assert!(body["error_description"].is_string(), "{form}");
        let challenged = answer.header("www-authenticate").is_some();
        assert_eq!(challenged, basic.is_some() && status == 401, "{form}");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn the_token_endpoint_can_be_slow_and_fail() {
    let token_errors = Some(Errors { share: 1.0, status: 503 });
    let fixture = Fixture::behaving(Behaviour { token_errors, ..Behaviour::default() }).await;
    let (status, body) = fixture.token("grant_type=client_credentials").await;
    assert_eq!((status, &body["error"]), (503, &json!("server_error")));
    let slow = Behaviour { token_latency: Some(Duration::from_millis(50)), ..Behaviour::default() };
    fixture
        .sandbox
        .set_behaviour(Behaviour { token_errors: Some(Errors { share: 0.0, status: 503 }), ..slow })
        .expect("valid");
    let began = Instant::now();
    fixture.access_token().await;
    assert!(began.elapsed() >= Duration::from_millis(50));
    let tokens = fixture.counts("a").tokens;
    assert_eq!((tokens.requests, tokens.errors, tokens.client_credentials), (2, 1, 1));
    fixture.stop().await;
}

#[tokio::test]
async fn other_credentials_name_the_same_client() {
    let fixture = Fixture::with(at_once(), 4).await;
    let get = |path: &'static str, header: Option<(&'static str, &'static str)>| {
        let request = move |base: String| {
            let request = Request::get(base + path);
            header.iter().fold(request, |request, (name, value)| request.header(*name, *value))
        };
        fixture.send(request)
    };
    let accounts = "/accounts?customer=c1";
    for (path, header, expected) in [
        (accounts, Some(("x-api-key", "sandbox.a")), 200),
        ("/accounts?customer=c1&api_key=sandbox.a", None, 200),
        (accounts, Some(("authorization", "Basic YTp4")), 200),
        (accounts, Some(("authorization", "Bearer sandbox.a")), 200),
        (accounts, Some(("x-api-key", "a")), 401),
        ("/accounts?customer=c1&api_key=", None, 401),
        (accounts, Some(("authorization", "Basic YTp3cm9uZw==")), 401),
        (accounts, Some(("authorization", "Basic YTo=")), 401),
        (accounts, Some(("authorization", "Digest a")), 401),
        ("/accounts?customer=c1&api_key=sandbox.a", Some(("authorization", "Bearer other")), 401),
        (accounts, None, 401),
    ] {
        let answer = get(path, header).await;
        assert_eq!(answer.status, expected, "{path} {header:?}");
        assert_eq!(answer.header("www-authenticate").is_some(), expected == 401, "{path} {header:?}");
    }
    assert_eq!(fixture.counts("a").total, 4);
    fixture.stop().await;
}

#[tokio::test]
async fn a_consent_that_has_run_out_needs_the_user() {
    let fixture = Fixture::with(at_once(), 4).await;
    let (status, body) = fixture.get("/accounts?customer=expired-7", "sandbox.a").await;
    assert_eq!((status, body), (403, json!({ "error": "consent_expired" })));
    let answer = fixture
        .send(|base| {
            let request = Request::get(base + "/accounts/acc-0123456789abcdef/transactions");
            request.header("authorization", "Bearer sandbox.a").header("x-customer-id", "expired-7")
        })
        .await;
    assert_eq!(answer.status, 403);
    fixture.stop().await;
}
