//! Pulls from the sandbox bank through a worker, into the stored payload: each way in which a bank knows who asks, hands
//! out long lists, and misbehaves, with the outcome and the transcript that it leaves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use weir::client::{Client, Submission};
use weir::config;
use weir::integration::Integrations;
use weir::lifecycle::Lifecycle;
use weir::payload;
use weir::sandbox::{Behaviour, Beyond, Concurrency, Errors, Latency, Oversized, RateLimit, Sandbox, Tls};
use weir::task::{Failure, FailureCode, Outcome, Remedy};
use weir::telemetry::Telemetry;
use weir::worker::Worker;

use crate::documents::read;
use crate::support::house::{LONG, submission};
use crate::support::lone::{self, ACCOUNTS, WORKER};

/// A bank, and a worker that pulls from it.
struct Pulls {
    sandbox: Sandbox,
    worker: Option<Worker>,
    client: Client,
    upstream: Lifecycle,
    directory: TempDir,
}

impl Pulls {
    /// `integrations` is TOML, in which `BANK` stands for the bank's address and `DIR` for a directory with the file
    /// `secret`.
    async fn start(integrations: &str) -> Self {
        Pulls::at(weir::sandbox::Config::default(), tempfile::tempdir().expect("a directory"), integrations).await
    }

    async fn at(bank: weir::sandbox::Config, directory: TempDir, integrations: &str) -> Self {
        let upstream = Lifecycle::new();
        let scheme = if bank.tls.certificate.is_some() { "https" } else { "http" };
        let latency = Latency::Fixed(Duration::from_millis(1));
        let bank = weir::sandbox::Config { listen: ([127, 0, 0, 1], 0).into(), latency, ..bank };
        let sandbox = Sandbox::start(bank, &upstream).await.expect("a bank");
        let root = directory.path().to_str().expect("a path");
        std::fs::write(directory.path().join("secret"), "CANARY-secret\n").expect("written");
        let text = integrations
            .replace("BANK", &format!("{scheme}://localhost:{}", sandbox.local_addr.port()))
            .replace("DIR", root);
        let mut config = config::from_text(&format!("{text}\n{WORKER}")).expect("a configuration");
        config.payloads.directory.path = directory.path().join("payloads");
        let telemetry = Telemetry::new().expect("a recorder");
        let (worker, client) = lone::start(config, Integrations::new(), telemetry).await;
        Pulls { sandbox, worker: Some(worker), client, upstream, directory }
    }

    /// Submits a task and waits for its outcome.
    async fn run(&self, integration: &str, id: &str, input: Value) -> Outcome {
        self.client.submit(&submission(id, integration, input)).await.expect("an outcome")
    }

    /// The output of a task.
    async fn output(&self, integration: &str, id: &str, input: Value) -> Value {
        let outcome = self.run(integration, id, input).await;
        outcome.result.expect(id).read().expect("JSON")
    }

    /// The failure of a task.
    async fn failure(&self, integration: &str, id: &str) -> Failure {
        self.run(integration, id, json!({ "customer": "c1" })).await.result.expect_err(id)
    }

    /// Stops the worker in order and reads what it has stored: the payload of each task, by its id.
    async fn stored(&mut self) -> Vec<(String, Value)> {
        let ended = self.worker.take().expect("it runs").drain().await;
        assert_eq!((ended.in_flight, ended.left_behind), (0, 0));
        assert!(ended.payloads.expect("payloads are kept").balanced());
        let mut found = Vec::new();
        collect(&self.directory.path().join("payloads"), &mut found);
        found
    }

    async fn stop(self) {
        drop(self.client);
        self.upstream.stop(LONG).await.expect("the bank ends");
    }
}

/// Every stored payload below a directory; none has a secret in it.
fn collect(folder: &Path, found: &mut Vec<(String, Value)>) {
    for entry in std::fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, found);
            continue;
        }
        let text = payload::decode(&std::fs::read(&path).expect("readable"), Default::default()).expect("a payload");
        for secret in ["CANARY", "sandbox.weir", "sandbox-refresh", "Bearer s"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
        let payload: Value = serde_json::from_str(&text).expect("JSON");
        found.push((payload["task"]["id"].as_str().expect("an id").to_owned(), payload));
    }
}

/// What the transcript of a task says of its exchanges: a status, or 0 without an answer, and the error.
fn exchanges(stored: &[(String, Value)], id: &str) -> Vec<(i64, String)> {
    let (_, payload) = stored.iter().find(|(task, _)| task == id).unwrap_or_else(|| panic!("{id} left no payload"));
    let entries = payload["transcript"]["log"]["entries"].as_array().expect("a transcript");
    let read = |entry: &Value| {
        let error = entry["_error"].as_str().unwrap_or_default().to_owned();
        (entry["response"]["status"].as_i64().expect("a status"), error)
    };
    entries.iter().map(read).collect()
}

fn notes(stored: &[(String, Value)], id: &str) -> String {
    let (_, payload) = stored.iter().find(|(task, _)| task == id).unwrap_or_else(|| panic!("{id} left no payload"));
    payload["transcript"]["log"]["_notes"].to_string()
}

/// One client of the bank for each misbehaviour, so that all of them happen in one process, at the same time.
fn misbehaving(clients: &[&str]) -> String {
    let errors = r#"errors = [{ status = [403], when = "{{ body.error == 'consent_expired' }}", remedy = "user_action", reason = "consent_expired" }]"#;
    clients.iter().map(|client| lone::asking(client, &format!("{errors}\n{ACCOUNTS}"))).collect()
}

const MISBEHAVIOURS: [&str; 9] =
    ["errors", "resets", "truncated", "oversized", "hangs", "refuses", "limited", "slow", "well"];

#[tokio::test(flavor = "multi_thread")]
async fn each_misbehaviour_of_a_bank_has_its_outcome_and_its_transcript() {
    let directory = tempfile::tempdir().expect("a directory");
    for client in MISBEHAVIOURS {
        std::fs::write(directory.path().join(format!("{client}.key")), format!("sandbox.{client}")).expect("written");
    }
    let mut pulls = Pulls::at(weir::sandbox::Config::default(), directory, &misbehaving(&MISBEHAVIOURS)).await;
    let all = Behaviour::default();
    let refuse = Concurrency { limit: 1, beyond: Beyond::Refuse };
    for (client, behaviour) in [
        ("errors", Behaviour { errors: Some(Errors { share: 1.0, status: 503 }), ..all }),
        ("resets", Behaviour { resets: Some(1.0), ..all }),
        ("truncated", Behaviour { truncated: Some(1.0), ..all }),
        ("oversized", Behaviour { oversized: Some(Oversized { share: 1.0, bytes: 1 << 20 }), ..all }),
        ("hangs", Behaviour { hangs: Some(1.0), ..all }),
        ("refuses", Behaviour { concurrency: Some(refuse), latency: Some(Latency::Fixed(LONG)), ..all }),
        ("limited", Behaviour { rate_limit: Some(RateLimit { per_second: 1.0, burst: 1 }), ..all }),
        ("slow", Behaviour { latency: Some(Latency::Fixed(LONG)), ..all }),
    ] {
        pulls.sandbox.set_client_behaviour(client, behaviour).expect("a behaviour");
    }

    for (client, says, remedy) in [
        ("errors", "answered with status 503, the last of 2 attempts", Remedy::Retry),
        ("resets", "the connection broke", Remedy::Retry),
        ("truncated", "the connection broke", Remedy::Retry),
        ("oversized", "raise integrations.oversized.max_response_bytes", Remedy::None),
        ("hangs", "no whole answer within 500ms; raise integrations.hangs.request_timeout", Remedy::Retry),
    ] {
        let failure = pulls.failure(client, client).await;
        assert_eq!((failure.code, failure.remedy), (FailureCode::Integration, remedy), "{client}: {failure}");
        assert!(failure.message.starts_with("step accounts: ") && failure.message.contains(says), "{failure}");
    }

    // Over the limit it asks for a second, and then all is well.
    pulls.output("limited", "limited-first", json!({ "customer": "c1" })).await;
    pulls.output("limited", "limited", json!({ "customer": "c1" })).await;

    // The deadline of the task ends what the bank does not.
    let slow =
        Submission { timeout: Duration::from_millis(300), ..submission("slow", "slow", json!({ "customer": "c1" })) };
    let failure = pulls.client.submit(&slow).await.expect("an outcome").result.expect_err("too slow");
    assert_eq!((failure.code, failure.remedy), (FailureCode::Deadline, Remedy::Retry), "{failure}");

    // One request holds the only place; the next is refused at once.
    let client = pulls.client.clone();
    let first =
        async move { client.submit(&submission("refuses-first", "refuses", json!({ "customer": "c1" }))).await };
    let holder = pulls.upstream.spawn("first", first);
    while pulls.sandbox.stats().clients.get("refuses").is_none_or(|counts| counts.in_flight == 0) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let failure = pulls.failure("refuses", "refuses").await;
    assert!(failure.message.contains("answered with status 503") && failure.remedy == Remedy::Retry, "{failure}");
    holder.abort();

    let expired = pulls.run("well", "consent", json!({ "customer": "expired-c1" })).await.result.expect_err("expired");
    let reason = expired.reason.as_ref().map(|reason| reason.as_str());
    assert_eq!((expired.remedy, reason), (Remedy::UserAction, Some("consent_expired")), "{expired}");
    pulls.output("well", "well", json!({ "customer": "c1" })).await;

    let counted = pulls.sandbox.stats();
    let stored = pulls.stored().await;
    let told = |id: &str| exchanges(&stored, id);
    assert_eq!(told("errors"), vec![(503, String::new()); 2]);
    assert!(told("resets").iter().all(|(status, error)| *status == 0 && error.contains("the connection broke")));
    assert_eq!(told("resets").len(), 2);
    assert!(told("truncated").iter().all(|(status, error)| *status == 200 && error.contains("the connection broke")));
    assert_eq!(told("truncated").len(), 2, "{:?}", told("truncated"));
    let oversized = told("oversized");
    assert!(
        oversized.len() == 1 && oversized[0].0 == 200 && oversized[0].1.contains("more than 100000"),
        "{oversized:?}"
    );
    let hangs = told("hangs");
    assert!(
        hangs.len() == 2 && hangs.iter().all(|(status, error)| *status == 0 && error.contains("500ms")),
        "{hangs:?}"
    );
    assert_eq!(told("limited").iter().map(|(status, _)| *status).collect::<Vec<_>>(), [429, 200]);
    assert!(notes(&stored, "limited").contains("attempt 1 of 2"), "{}", notes(&stored, "limited"));
    let slow = told("slow");
    assert!(slow.len() == 1 && slow[0].0 == 0, "{slow:?}");
    assert_eq!(told("refuses"), vec![(503, String::new()); 2]);
    assert_eq!(told("consent"), [(403, String::new())]);
    assert_eq!(told("well"), [(200, String::new())]);
    let of = |client: &str| counted.clients[client];
    assert_eq!((of("errors").errors, of("resets").reset, of("truncated").truncated), (2, 2, 2));
    assert_eq!((of("hangs").hung, of("refuses").refused, of("limited").rate_limited), (2, 2, 1));
    pulls.stop().await;
}

/// Each kind of pagination, all of the same list: the query, and where the next page is.
const PAGINATIONS: [(&str, &str, &str); 5] = [
    ("page", "page_size = 7", r#"kind = "page", items = "{{ body.transactions }}", pages = "{{ body.pages }}""#),
    (
        "offset",
        r#"limit = 7, pagination = "offset""#,
        r#"kind = "offset", items = "{{ body.transactions }}", total = "{{ body.total }}""#,
    ),
    (
        "cursor",
        r#"limit = 7, pagination = "cursor""#,
        r#"kind = "cursor", items = "{{ body.transactions }}", next = "{{ body.next_cursor }}", parameter = "cursor""#,
    ),
    ("link", r#"limit = 7, pagination = "link""#, r#"kind = "link_header", items = "{{ body.transactions }}""#),
    (
        "next",
        r#"limit = 7, pagination = "next""#,
        r#"kind = "next_link", items = "{{ body.transactions }}", next = "{{ body.links.next }}""#,
    ),
];

/// An integration that reads all transactions of an account; `more` goes on with its step.
fn reading(name: &str, more: &str, result: &str) -> String {
    format!(
        r#"
        [integrations.{name}]
        kind = "http"
        base_url = "BANK"
        token = {{ file = "DIR/token" }}
        steps = [{{ name = "t", path = "/accounts/{{{{ input.account }}}}/transactions"{more} }}]
        result = "{{{{ {result} }}}}"
        "#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_pagination_gives_the_whole_list() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("token"), "sandbox.weir").expect("written");
    let paged = PAGINATIONS.map(|(name, query, pagination)| {
        reading(name, &format!(", query = {{ {query} }}, pagination = {{ {pagination} }}"), "steps.t")
    });
    let all = reading("all", "", "steps.t.transactions") + &paged.concat();
    let mut pulls = Pulls::at(weir::sandbox::Config::default(), directory, &all).await;
    let input = || json!({ "account": "acc-0123456789abcdef" });
    let whole = pulls.output("all", "all", input()).await;
    let count = whole.as_array().expect("a list").len();
    assert!(count > 21, "{count} transactions are some pages");
    for (kind, ..) in PAGINATIONS {
        assert_eq!(pulls.output(kind, kind, input()).await, whole, "{kind}");
    }
    let stored = pulls.stored().await;
    for (kind, ..) in PAGINATIONS {
        assert_eq!(exchanges(&stored, kind), vec![(200, String::new()); count.div_ceil(7)], "{kind}");
    }
    pulls.stop().await;
}

/// Each way to say who asks.
const CREDENTIALS: [(&str, &str); 8] = [
    ("bearer", r#"{ kind = "bearer", token = { file = "DIR/token" } }"#),
    ("task", r#"{ kind = "bearer", token = "{{ input.access_token }}" }"#),
    ("basic", r#"{ kind = "basic", username = "weir", password = { file = "DIR/secret" } }"#),
    ("header", r#"{ kind = "api_key", header = "x-api-key", key = { file = "DIR/token" } }"#),
    ("query", r#"{ kind = "api_key", query = "api_key", key = { file = "DIR/token" } }"#),
    (
        "client",
        r#"{ kind = "oauth2", token_url = "BANK/oauth/token", client_id = "weir", client_secret = { file = "DIR/secret" } }"#,
    ),
    (
        "refresh",
        r#"{ kind = "oauth2", token_url = "BANK/oauth/token", grant = "refresh_token", refresh_token = { file = "DIR/refresh" }, client_id = "weir", client_secret = { file = "DIR/secret" }, client_authentication = "body" }"#,
    ),
    (
        "wrong",
        r#"{ kind = "oauth2", token_url = "BANK/oauth/token", grant = "refresh_token", refresh_token = { file = "DIR/refresh-wrong" }, client_id = "weir", client_secret = { file = "DIR/secret" } }"#,
    ),
];

/// An integration that asks with these credentials.
fn asking((name, auth): &(&str, &str)) -> String {
    format!(
        r#"
        [integrations.{name}]
        kind = "http"
        base_url = "BANK"
        auth = {auth}
        steps = [{{ name = "a", path = "/accounts", query = {{ customer = "c1" }} }}]
        "#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_credentials_is_taken_and_none_of_them_is_stored() {
    let directory = tempfile::tempdir().expect("a directory");
    for (file, text) in
        [("token", "sandbox.weir"), ("refresh", "sandbox-refresh.weir"), ("refresh-wrong", "CANARY-refresh")]
    {
        std::fs::write(directory.path().join(file), text).expect("written");
    }
    let bank = weir::sandbox::Config { rotate_refresh_tokens: true, ..Default::default() };
    let mut pulls = Pulls::at(bank, directory, &CREDENTIALS.iter().map(asking).collect::<String>()).await;
    for (kind, token_requests) in
        [("bearer", 0), ("task", 0), ("basic", 0), ("header", 0), ("query", 0), ("client", 1), ("refresh", 2)]
    {
        let output = pulls.output(kind, kind, json!({ "access_token": "sandbox.weir" })).await;
        assert_eq!(output["customer"], "c1", "{kind}");
        assert_eq!(pulls.sandbox.stats().clients["weir"].tokens.requests, token_requests, "{kind}");
    }
    let rotated = std::fs::read_to_string(pulls.directory.path().join("refresh")).expect("readable");
    assert!(rotated.trim() != "sandbox-refresh.weir", "the bank's new refresh token is written back");
    let failure = pulls.failure("wrong", "wrong").await;
    let reason = failure.reason.as_ref().map(|reason| reason.as_str());
    assert_eq!((failure.remedy, reason), (Remedy::UserAction, Some("consent_expired")), "{failure}");

    let stored = pulls.stored().await;
    for (kind, expected) in
        [("bearer", vec![200]), ("query", vec![200]), ("client", vec![200, 200]), ("refresh", vec![200, 200])]
    {
        let statuses: Vec<_> = exchanges(&stored, kind).into_iter().map(|(status, _)| status).collect();
        assert_eq!(statuses, expected, "{kind}");
    }
    assert!(stored.iter().all(|(_, payload)| !payload.to_string().contains(rotated.trim())));
    pulls.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_under_load_is_refreshed_once() {
    let client = CREDENTIALS.iter().filter(|(name, _)| *name == "client").map(asking).collect::<String>();
    let pulls = Pulls::start(&client).await;
    let slow = Behaviour { token_latency: Some(Duration::from_millis(100)), ..Behaviour::default() };
    pulls.sandbox.set_client_behaviour("weir", slow).expect("a behaviour");
    let wave = |wave: usize| {
        let submissions = (0..100).map(move |n| submission(&format!("t-{wave}-{n}"), "client", json!({})));
        pulls.client.submit_many(futures_util::stream::iter(submissions))
    };
    for (number, requests) in [(0, 1), (1, 1), (2, 2)] {
        if number == 2 {
            // What every token of the client is then answered with is a 401.
            pulls.sandbox.revoke_tokens("weir");
        }
        let answers: Vec<_> = futures_util::StreamExt::collect(wave(number)).await;
        assert!(answers.iter().all(|(_, answer)| answer.as_ref().is_ok_and(|outcome| outcome.result.is_ok())));
        assert_eq!(pulls.sandbox.stats().clients["weir"].tokens.requests, requests, "wave {number}");
    }
    let Pulls { sandbox, worker, client, upstream, directory } = pulls;
    worker.expect("it runs").drain().await;
    drop((client, sandbox, directory));
    upstream.stop(LONG).await.expect("the bank ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_demands_a_certificate_gets_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
    let write = |name: &str, pem: &str| -> PathBuf {
        let file = directory.path().join(name);
        std::fs::write(&file, pem).expect("written");
        file
    };
    let certify = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(vec![name.to_owned()]).expect("a name").signed_by(&key, &root);
        let certificate = write(&format!("{name}.pem"), &certificate.expect("signed").pem());
        (certificate, write(&format!("{name}.key"), &key.serialize_pem()))
    };
    let ca = write("ca.pem", &root.pem());
    let (certificate, key) = certify("localhost");
    certify("pulls");
    let tls = Tls { certificate: Some(certificate), key: Some(key), client_ca: Some(ca) };
    let with = r#"
        [integrations.mutual]
        kind = "http"
        base_url = "BANK"
        tls = { ca = "DIR/ca.pem", client_certificate = "DIR/pulls.pem", client_key = "DIR/pulls.key" }
        steps = [{ name = "a", path = "/accounts", query = { customer = "c1" } }]
        [integrations.alone]
        kind = "http"
        base_url = "BANK"
        tls = { ca = "DIR/ca.pem" }
        steps = [{ name = "a", path = "/accounts", query = { customer = "c1" } }]
        [integrations.stranger]
        kind = "http"
        base_url = "BANK"
        steps = [{ name = "a", path = "/accounts", query = { customer = "c1" } }]
    "#;
    let mut pulls = Pulls::at(weir::sandbox::Config { tls, ..Default::default() }, directory, with).await;
    assert_eq!(pulls.output("mutual", "mutual", json!({})).await["customer"], "c1");
    assert_eq!(pulls.sandbox.stats().clients["pulls"].total, 1, "the certificate says who asks");
    for (integration, says) in [("alone", "ertificate"), ("stranger", "no connection")] {
        let failure = pulls.failure(integration, integration).await;
        assert!(failure.message.contains(says), "{failure}");
    }
    let stored = pulls.stored().await;
    assert_eq!(exchanges(&stored, "mutual"), [(200, String::new())]);
    assert!(exchanges(&stored, "stranger").iter().all(|(status, error)| *status == 0 && !error.is_empty()));
    pulls.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worked_configurations_pull_from_the_sandbox() {
    let at_bank = |text: String| {
        let text = text.replace("http://127.0.0.1:7480", "BANK");
        let text = text.replace(r#"{ env = "BANK_SECRET" }"#, r#"{ file = "DIR/secret" }"#);
        // One registry, none at all, for both.
        text.replace("[registry]\nurl = \"redis://127.0.0.1:6379\"\n", "")
    };
    let both = ["examples/uk_open_banking.toml", "examples/fdx.toml"].map(|name| at_bank(read(name))).join("\n");
    let mut pulls = Pulls::start(&both).await;
    let uk = pulls.output("uk_bank", "uk", json!({ "customer": "c1", "from": "2025-01-01T00:00:00" })).await;
    let of_customer = |access_token: &str| json!({ "access_token": access_token, "customer": "c1", "from": "2025-01-01", "to": "2025-12-31" });
    let fdx = pulls.output("fdx_bank", "fdx", of_customer("sandbox.weir")).await;

    let uk_accounts = uk["accounts"].as_array().expect("accounts");
    let fdx_accounts = fdx["accounts"].as_array().expect("accounts");
    assert!(!uk_accounts.is_empty() && uk_accounts.len() == fdx_accounts.len(), "the same customer at the same bank");
    let counts = |list: &Value| -> Vec<usize> {
        let of = |one: &Value| one["transactions"].as_array().expect("transactions").len();
        list.as_array().expect("a list").iter().map(of).collect()
    };
    assert_eq!(counts(&uk["accounts"]), counts(&fdx["transactions"]), "the same transactions");
    assert!(counts(&uk["accounts"]).iter().all(|count| *count > 50), "more than a page");

    for (integration, input) in [
        ("uk_bank", json!({ "customer": "expired-c1", "from": "2025-01-01T00:00:00" })),
        (
            "fdx_bank",
            json!({ "access_token": "sandbox.weir", "customer": "expired-c1", "from": "2025-01-01", "to": "2025-12-31" }),
        ),
    ] {
        let failure = pulls.run(integration, integration, input).await.result.expect_err("expired");
        assert_eq!(failure.remedy, Remedy::UserAction, "{integration}: {failure}");
    }
    let stored = pulls.stored().await;
    assert!(exchanges(&stored, "uk").len() > 2 * uk_accounts.len());
    pulls.stop().await;
}
