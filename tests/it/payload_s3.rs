//! Payloads on a real S3 server that verifies signatures: put, get, decode, and what goes wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weir::lifecycle::Lifecycle;
use weir::payload::store::s3::{Checksums, S3};
use weir::payload::{Config, Limits, Object, Payloads, Reason, Record, Store, StoreError, Value, decode, key, store};
use weir::task::{Json, Outcome, Priority, RunId, Task, Timings, Transcript};
use weir::telemetry::Telemetry;

use crate::support::s3::{ACCESS_KEY, S3Server, SECRET_KEY};

const LONG: Duration = Duration::from_secs(30);

fn config(endpoint: String) -> Config {
    let mut config = Config { store: store::Kind::S3, ..Config::default() };
    config.s3.bucket = "weir".into();
    config.s3.endpoint = Some(endpoint);
    config.s3.path_style = true;
    config
}

async fn connect(config: &Config, secret: &str) -> Arc<S3> {
    let credentials = store::s3::Credentials::fixed(ACCESS_KEY, secret);
    Arc::new(S3::connect_with(&config.s3, config.uploads, Some(credentials)).await.expect("valid settings"))
}

async fn server() -> (S3Server, tempfile::TempDir) {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(root.path().join("weir")).expect("a bucket");
    (S3Server::start(root.path()).await, root)
}

fn record(id: &str) -> Record {
    let id: weir::task::TaskId = id.parse().expect("an id");
    let task = Task {
        id: id.clone(),
        integration: "bank".parse().expect("a name"),
        tenant: Default::default(),
        priority: Priority::Batch,
        input: Json::of(&"x".repeat(10_000)).expect("JSON"),
        deadline: tokio::time::Instant::now() + LONG,
    };
    let outcome = Outcome {
        task: id,
        run: RunId::mint(),
        result: Ok(Json::null()),
        worker: "w-1".parse().expect("an id"),
        attempt: 1,
        timings: Timings::default(),
    };
    Record { task, outcome, transcript: Transcript::default(), pool: "parallel".parse().expect("a name") }
}

fn object(key: &str) -> Object {
    Object { key: key.into(), body: "body".into(), media_type: "text/plain".into(), metadata: Vec::new() }
}

/// Offers `count` records and flushes.
async fn run(config: &Config, store: Arc<S3>, count: usize) -> (weir::payload::Ledger, Vec<String>) {
    let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
    let payloads =
        Payloads::start(config, store, Arc::new(|| Duration::ZERO), &telemetry, &lifecycle).expect("it starts");
    let records: Vec<Record> = (0..count).map(|n| record(&format!("t-{n}"))).collect();
    let suffix = config.encoding().suffix();
    let keys = records.iter().map(|it| key::key(&config.prefix, &it.task.integration, &it.outcome, suffix)).collect();
    records.into_iter().for_each(|record| payloads.offer(record, Value::Ordinary));
    let ledger = payloads.flush(LONG).await;
    lifecycle.stop(LONG).await.expect("all of it ends");
    (ledger, keys)
}

#[tokio::test]
async fn what_is_stored_in_s3_can_be_read_back() {
    let (server, _root) = server().await;
    for checksums in [Checksums::WhenRequired, Checksums::WhenSupported] {
        let mut config = config(server.endpoint());
        config.s3.checksums = checksums;
        let store = connect(&config, SECRET_KEY).await;
        let (ledger, keys) = run(&config, store.clone(), 100).await;
        assert_eq!((ledger.offered, ledger.stored, ledger.pending), (100, 100, 0), "{ledger:?}");
        for (n, key) in keys.iter().enumerate() {
            let stored = store.get(key, 1 << 20).await.expect("it is there");
            let json = decode(&stored.body, Limits::default()).expect("it decodes");
            assert!(json.contains(&format!(r#""id":"t-{n}""#)), "{json}");
        }
        assert!(matches!(store.get(&keys[0], 10).await, Err(StoreError::TooLarge { .. })));
        assert_eq!(store.location("a/b"), "s3://weir/a/b");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_missing_payload_is_named() {
    let (server, _root) = server().await;
    let store = connect(&config(server.endpoint()), SECRET_KEY).await;
    let error = store.get("no/such", 10).await.expect_err("absent").to_string();
    assert_eq!(error, format!("s3://weir/no/such at {} does not exist", server.endpoint()));
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_secret_is_a_clear_error_and_counted() {
    let (server, root) = server().await;
    let config = config(server.endpoint());
    let store = connect(&config, "wrong").await;
    let object = object("k");
    let error = store.put(&object).await.expect_err("refused").to_string();
    assert!(error.starts_with("could not store s3://weir/k at http://127.0.0.1"), "{error}");
    assert!(
        error.ends_with("the credentials were refused (SignatureDoesNotMatch); check key, secret and clock"),
        "{error}"
    );
    assert!(!error.contains("wrong"), "{error}");

    let (ledger, _) = run(&config, store, 3).await;
    assert_eq!((ledger.stored, ledger.dropped(Reason::Store), ledger.pending), (0, 3, 0));
    assert_eq!(std::fs::read_dir(root.path().join("weir")).expect("the bucket").count(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_store_that_is_away_costs_payloads_and_no_hang() {
    let (server, _root) = server().await;
    let mut config = config(server.endpoint());
    server.stop().await;
    config.s3.attempt_timeout = Duration::from_millis(500);
    config.s3.operation_timeout = Duration::from_secs(2);
    let store = connect(&config, SECRET_KEY).await;
    let error = store.get("k", 10).await.expect_err("nobody listens").to_string();
    assert!(error.contains("s3://weir/k at http://127.0.0.1") && error.contains("onnection refused"), "{error}");
    assert!(!error.contains('{'), "{error}");
    let started = Instant::now();
    let (ledger, _) = run(&config, store, 20).await;
    assert_eq!((ledger.stored, ledger.dropped(Reason::Store), ledger.pending), (0, 20, 0), "{ledger:?}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_store_that_accepts_and_never_answers_times_out() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut config = config(format!("http://{}", silent.local_addr().expect("it is bound")));
    config.s3.attempt_timeout = Duration::from_millis(200);
    config.s3.operation_timeout = Duration::from_millis(500);
    let store = connect(&config, SECRET_KEY).await;
    let error = store.get("k", 10).await.expect_err("no answer").to_string();
    assert!(error.ends_with("it did not answer in time"), "{error}");
}
