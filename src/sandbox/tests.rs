//! The bank over HTTP, and the `http` integration's transport as its client.

mod dialects;
mod live;
mod misbehaviour;
mod oauth;
mod paging;
mod tls;

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::integration::recorder::{self, Recorder};
use crate::integration::transport::{self, Answer, Request, Transport};
use crate::telemetry::Telemetry;

struct Fixture {
    lifecycle: Lifecycle,
    sandbox: Sandbox,
    transport: Transport,
}

impl Fixture {
    async fn start(latency: Duration, connections: usize) -> Self {
        Self::with(Config { latency: Latency::Fixed(latency), ..Config::default() }, connections).await
    }

    /// A bank that answers at once and behaves like this.
    async fn behaving(behaviour: Behaviour) -> Self {
        Self::with(Config { behaviour, ..at_once() }, 64).await
    }

    async fn with(config: Config, connections: usize) -> Self {
        let (lifecycle, telemetry) = (Lifecycle::new(), Telemetry::new().expect("a recorder"));
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let sandbox = Sandbox::start(Config { listen, ..config }, &lifecycle).await.expect("it starts");
        let limits = transport::Config { max_connections_per_host: connections, ..Default::default() };
        let transport = Transport::new("bank", "integrations.bank", &limits, &telemetry).expect("valid");
        Fixture { lifecycle, sandbox, transport }
    }

    async fn try_send(&self, request: impl FnOnce(String) -> Request) -> Result<Answer, transport::Error> {
        let recorder = Recorder::new(&recorder::Config::default());
        let client = self.transport.client(&recorder, Instant::now() + Duration::from_secs(20));
        client.send(request(format!("http://{}", self.sandbox.local_addr))).await
    }

    async fn send(&self, request: impl FnOnce(String) -> Request) -> Answer {
        self.try_send(request).await.expect("an answer")
    }

    /// The status of a request about an account, or the error, as `client`.
    async fn pull(&self, client: &str) -> Result<u16, transport::Error> {
        let bearer = format!("Bearer sandbox.{client}");
        let request = |base| Request::get(base + "/accounts?customer=c1").header("authorization", bearer);
        self.try_send(request).await.map(|answer| answer.status)
    }

    fn counts(&self, client: &str) -> Counts {
        self.sandbox.stats().clients.get(client).copied().unwrap_or_default()
    }

    async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        let bearer = format!("Bearer {token}");
        let answer = self.send(|base| Request::get(base + path).header("authorization", bearer)).await;
        (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
    }

    /// Waits until nothing is in flight: a caller sees an answer, or leaves, before the bank has counted it out.
    async fn is_idle(&self) {
        let idle = async {
            while self.sandbox.stats().all.in_flight > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), idle).await.expect("it comes to rest");
    }

    async fn stop(self) {
        drop(self.transport);
        self.lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
    }
}

fn at_once() -> Config {
    Config { latency: Latency::Fixed(Duration::ZERO), ..Config::default() }
}

#[tokio::test]
async fn a_client_gets_a_token_and_with_it_accounts_and_transactions() {
    let fixture = Fixture::start(Duration::ZERO, 4).await;
    let form = "grant_type=client_credentials&client_id=weir&client_secret=x";
    let answer =
        fixture.send(|base| Request::post(base + "/oauth/token").body("application/x-www-form-urlencoded", form)).await;
    let token: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!((&token["token_type"], &token["expires_in"]), (&json!("Bearer"), &json!(3600)));
    let issued = token["access_token"].as_str().expect("a token");

    let (status, listed) = fixture.get("/accounts?customer=c1", issued).await;
    assert_eq!((status, &listed["customer"]), (200, &json!("c1")));
    let id = listed["accounts"][0]["id"].as_str().expect("an id");
    let (_, alone) = fixture.get(&format!("/accounts/{id}"), "sandbox.weir").await;
    assert_eq!(alone, listed["accounts"][0]);
    let (_, two) = fixture.get(&format!("/accounts/{id}/transactions?limit=2"), "sandbox.weir").await;
    assert_eq!(two["transactions"].as_array().map(Vec::len), Some(2));
    assert_eq!(fixture.get("/accounts?customer=c1", "sandbox.other").await.1, listed, "repeatable");

    let (_, stats) = fixture.get("/stats", "").await;
    let weir: Counts = serde_json::from_value(stats["clients"]["weir"].clone()).expect("counts");
    let tokens = TokenCounts { requests: 1, client_credentials: 1, ..TokenCounts::default() };
    assert_eq!(weir, Counts { max_in_flight: 1, total: 3, tokens, ..Counts::default() });
    assert_eq!(fixture.send(|base| Request::new("DELETE", base + "/stats")).await.status, 204);
    assert_eq!(fixture.sandbox.stats(), Stats::default());
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_a_json_error() {
    let fixture = Fixture::start(Duration::ZERO, 4).await;
    for (path, token, expected) in [
        ("/accounts?customer=c1", "", 401),
        ("/accounts?customer=c1", "other.weir", 401),
        ("/accounts?customer=c1", "sandbox.", 401),
        ("/accounts", "sandbox.weir", 400),
        ("/accounts/none", "sandbox.weir", 404),
        ("/accounts/none/transactions", "sandbox.weir", 404),
        ("/nowhere", "sandbox.weir", 404),
    ] {
        let (status, body) = fixture.get(path, token).await;
        assert_eq!(status, expected, "{path} {token}");
        assert!(body["error"].is_string(), "{path} {token}");
    }
    for (form, expected) in [
        ("grant_type=password&client_id=a&client_secret=b", 400),
        ("grant_type=client_credentials&client_id=a%20b", 401),
    ] {
        let answer = fixture
            .send(|base| Request::post(base + "/oauth/token").body("application/x-www-form-urlencoded", form))
            .await;
        assert_eq!(answer.status, expected, "{form}");
    }
    let basic = fixture.send(|base| {
        let request = Request::post(base + "/oauth/token").header("authorization", "Basic d2VpcjpzZWNyZXQ=");
        request.body("application/x-www-form-urlencoded", "grant_type=client_credentials")
    });
    assert_eq!(basic.await.status, 200);
    fixture.stop().await;
}

#[tokio::test]
async fn a_transport_never_has_more_in_flight_than_its_cap_as_the_bank_counts() {
    let fixture = Fixture::start(Duration::from_millis(20), 3).await;
    let all = join_all((0..24).map(|_| fixture.get("/accounts?customer=c1", "sandbox.weir"))).await;
    assert!(all.iter().all(|(status, _)| *status == 200));
    let counts = fixture.sandbox.stats().clients["weir"];
    assert_eq!(counts, Counts { max_in_flight: 3, total: 24, ..Counts::default() });
    fixture.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_slow_answers() {
    let fixture = Fixture::start(Duration::from_secs(300), 4).await;
    let answer = fixture.get("/accounts?customer=c1", "sandbox.weir");
    let stop = async {
        while fixture.sandbox.stats().all.in_flight == 0 {
            tokio::task::yield_now().await;
        }
        fixture.lifecycle.stop(Duration::from_secs(5)).await
    };
    let ((status, _), stopped) = tokio::join!(answer, stop);
    assert_eq!((status, stopped), (503, Ok(())));
    assert_eq!(fixture.sandbox.stats().all.in_flight, 0);
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let fixture = Fixture::start(Duration::ZERO, 1).await;
    let config = Config { listen: fixture.sandbox.local_addr, ..Config::default() };
    let error = Sandbox::start(config, &fixture.lifecycle).await.err().expect("in use").to_string();
    assert!(error.contains(&fixture.sandbox.local_addr.to_string()) && error.contains("port 0"), "{error}");
    fixture.stop().await;
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_its_key() {
    let lifecycle = Lifecycle::new();
    let slow = |slowdown| Behaviour { slowdown: Some(slowdown), ..Behaviour::default() };
    let pem = |name: &str| Some(PathBuf::from(name));
    for (config, expected) in [
        (Config { response_bytes: usize::MAX, ..Config::default() }, "response_bytes: "),
        (Config { token_lifetime: Duration::ZERO, ..Config::default() }, "token_lifetime: 0s is out of range"),
        (Config { behaviour: slow(-1.0), ..Config::default() }, "behaviour.slowdown: -1"),
        (Config { clients: [("a".into(), slow(-1.0))].into(), ..Config::default() }, "clients.a.slowdown: -1"),
        (
            Config { clients: [("a b".into(), slow(1.0))].into(), ..Config::default() },
            "clients: \"a b\" is no client id",
        ),
        (Config { script: pem("/nowhere.toml"), ..Config::default() }, "script /nowhere.toml: "),
        (
            Config { tls: Tls { key: pem("k"), ..Tls::default() }, ..Config::default() },
            "tls.certificate: it is missing",
        ),
        (
            Config { tls: Tls { certificate: pem("c"), ..Tls::default() }, ..Config::default() },
            "tls.key: it is missing",
        ),
    ] {
        let error = Sandbox::start(config, &lifecycle).await.err().expect(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
