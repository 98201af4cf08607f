//! What the payload path as a whole promises, with a store that fails, hangs and is slow; and the examples that the
//! tests of its parts share. The clock is real: the encoders are threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::*;
use crate::task::testing::task;
use crate::task::transcript::{Exchange, Message, Phases, Response};
use crate::task::{Json, Outcome, RunId, Timings, Transcript};

mod outages;
mod stops;

pub(super) fn outcome(id: &str) -> Outcome {
    Outcome {
        task: id.parse().expect("an id"),
        run: RunId::mint(),
        result: Ok(Json::of(&7).expect("JSON")),
        worker: "w-1".parse().expect("an id"),
        attempt: 1,
        timings: Timings { queued: Duration::from_millis(5), ran: Duration::from_secs(2) },
    }
}

pub(super) fn message(content_type: &str, body: &[u8]) -> Message {
    let headers = vec![("Content-Type".into(), content_type.into())];
    Message { headers, body: Bytes::copy_from_slice(body), body_bytes: body.len() as u64 }
}

/// One exchange, no secrets.
pub(super) fn record(id: &str) -> Record {
    let exchange = Exchange {
        started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_755_666_000_250),
        request: Message::default(),
        method: "GET".into(),
        url: "https://bank/accounts?page=2".into(),
        response: Some(Response { status: 200, message: message("application/json", br#"{"n": true}"#) }),
        error: None,
        fault: None,
        phases: Phases {
            blocked: Duration::from_millis(1),
            waiting: Duration::from_millis(100),
            receiving: Duration::from_millis(10),
        },
    };
    let transcript = Transcript { recorded_bytes: 1_000, exchanges: vec![exchange], ..Default::default() };
    Record { task: task(id), outcome: outcome(id), transcript, pool: "parallel".parse().expect("a name") }
}

/// What a store does with the n-th put.
type Fault = fn(u64) -> Deed;

#[derive(Clone, Copy)]
enum Deed {
    Keep,
    Fail,
    Hang,
    Dawdle,
    /// For 50 ms.
    TakeLong,
    /// For 3 s.
    TakeLonger,
}

/// A store in memory with faults.
struct Faulty {
    fault: Mutex<Fault>,
    puts: AtomicU64,
    /// What it never takes: keys with this in them.
    refused: Option<&'static str>,
    /// What it keeps of payloads, and how often each was put.
    kept: Mutex<HashMap<String, (Body, u64)>>,
}

impl Faulty {
    fn new(fault: Fault) -> Arc<Self> {
        Arc::new(Faulty { fault: Mutex::new(fault), puts: Default::default(), refused: None, kept: Default::default() })
    }

    fn refusing(refused: &'static str) -> Arc<Self> {
        let fault: Fault = |_| Deed::Keep;
        let (puts, kept) = Default::default();
        Arc::new(Faulty { fault: Mutex::new(fault), puts, refused: Some(refused), kept })
    }

    fn becomes(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    fn kept(&self) -> usize {
        self.kept.lock().len()
    }
}

#[async_trait]
impl Store for Faulty {
    async fn put(&self, object: &Object) -> Result<(), StoreError> {
        let deed = (*self.fault.lock())(self.puts.fetch_add(1, Ordering::Relaxed));
        let deed = if self.refused.is_some_and(|refused| object.key.contains(refused)) { Deed::Fail } else { deed };
        match deed {
            Deed::Keep => {}
            Deed::Dawdle => tokio::time::sleep(Duration::from_millis(1)).await,
            Deed::TakeLong => tokio::time::sleep(Duration::from_millis(50)).await,
            Deed::TakeLonger => tokio::time::sleep(Duration::from_secs(3)).await,
            Deed::Hang => std::future::pending().await,
            Deed::Fail => {
                let location = object.key.clone();
                return Err(StoreError::Failed { action: "store", location, reason: "on purpose".into() });
            }
        }
        if object.key.ends_with("weir-check") {
            return Ok(());
        }
        self.kept.lock().entry(object.key.clone()).or_insert((object.body.clone(), 0)).1 += 1;
        Ok(())
    }

    async fn get(&self, key: &str, _limit_bytes: u64) -> Result<Stored, StoreError> {
        let found = self.kept.lock().get(key).map(|(body, _)| body.to_bytes());
        found.map(|body| Stored { body }).ok_or(StoreError::NotFound { location: key.into() })
    }

    async fn list(&self, _prefix: &str, _start_after: &str, _limit: usize) -> Result<Page, StoreError> {
        Ok(Page::default())
    }

    fn location(&self, key: &str) -> String {
        key.into()
    }
}

fn start(config: Config, store: Arc<Faulty>) -> (Payloads, Telemetry, Lifecycle) {
    start_under(config, store, Arc::new(|| Duration::ZERO))
}

fn start_under(config: Config, store: Arc<Faulty>, lag: Lag) -> (Payloads, Telemetry, Lifecycle) {
    let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
    let payloads = Payloads::start(&config, store, lag, &telemetry, &lifecycle).expect("it starts");
    (payloads, telemetry, lifecycle)
}

fn offer(payloads: &Payloads, ids: impl IntoIterator<Item = u64>) {
    ids.into_iter().for_each(|n| payloads.offer(record(&format!("t-{n}")), Value::Ordinary));
}

/// Whether the metrics have this line; help texts have lines, too.
fn shows(telemetry: &Telemetry, line: &str) -> bool {
    telemetry.render().lines().any(|it| it == line)
}

/// Waits until it holds, for what other threads bring about.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn the_probe_has_a_key_that_stores_take_whatever_the_prefix() {
    for (prefix, key) in [("", "weir-check"), ("a/b", "a/b/weir-check")] {
        assert_eq!(Config { prefix: prefix.into(), ..Config::default() }.probe().key, key);
    }
}

#[tokio::test]
async fn what_is_offered_is_stored_under_its_key_and_can_be_read() {
    let store = Faulty::new(|_| Deed::Keep);
    let (payloads, telemetry, lifecycle) = start(Config::default(), store.clone());
    let record = record("t-1");
    let key = key::key("payloads", &record.task.integration, &record.outcome, key::SUFFIX);
    payloads.offer(record, Value::Ordinary);
    let ledger = payloads.flush(LONG).await;
    assert_eq!((ledger.offered, ledger.stored, ledger.pending), (1, 1, 0));
    let stored = store.get(&key, 1 << 20).await.expect("it is there");
    assert!(decode(&stored.body, Limits::default()).expect("decodes").contains(r#""id":"t-1""#));
    let metrics = telemetry.render();
    for line in ["weir_payloads_offered_total 1", "weir_payloads_stored_total 1", "weir_payloads_pending 0"] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    assert!(metrics.contains(r#"weir_payloads_dropped_total{reason="queue_bytes"} 0"#), "{metrics}");
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test]
async fn a_flush_ends_at_its_deadline_and_counts_the_rest() {
    let config = Config { uploads: 2, ..Config::default() };
    let (payloads, _telemetry, lifecycle) = start(config, Faulty::new(|_| Deed::Hang));
    offer(&payloads, 0..10);
    let started = Instant::now();
    let ledger = payloads.flush(Duration::from_millis(100)).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!((ledger.dropped(Reason::Shutdown), ledger.pending, ledger.pending_bytes), (10, 0, 0));
    payloads.offer(record("late"), Value::Failure);
    assert_eq!(payloads.ledger().dropped(Reason::Shutdown), 11);
    lifecycle.stop(LONG).await.expect("no thread hangs");
}

#[tokio::test]
async fn a_store_that_fails_costs_payloads_and_says_so() {
    let (payloads, telemetry, lifecycle) = start(Config::default(), Faulty::new(|_| Deed::Fail));
    offer(&payloads, 0..5);
    let ledger = payloads.flush(LONG).await;
    assert_eq!((ledger.stored, ledger.dropped(Reason::Store)), (0, 5));
    assert!(telemetry.render().contains(r#"weir_payloads_dropped_total{reason="store"} 5"#));
    lifecycle.stop(LONG).await.expect("all of it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_offers_and_faults_leaves_the_ledger_balanced() {
    let config = Config { queue_items: 50, queue_bytes: 1 << 20, uploads: 4, encoder_threads: 2, ..Config::default() };
    let store = Faulty::new(|n| match n % 50 {
        7 => Deed::Hang,
        n if n % 5 == 0 => Deed::Fail,
        n if n % 3 == 0 => Deed::Dawdle,
        _ => Deed::Keep,
    });
    let (payloads, _telemetry, lifecycle) = start(config, store.clone());
    let offering = Lifecycle::new();
    for caller in 0..8 {
        let payloads = payloads.clone();
        offering.spawn("caller", async move {
            for n in 0..50 {
                let value = [Value::Ordinary, Value::Slow, Value::Failure][n % 3];
                payloads.offer(record(&format!("t-{caller}-{n}")), value);
                let ledger = payloads.ledger();
                assert!(ledger.balanced() && ledger.pending <= 50 && ledger.pending_bytes <= 1 << 20, "{ledger:?}");
                tokio::task::yield_now().await;
            }
        });
    }
    offering.wait(LONG).await.expect("offers never wait");
    let ledger = payloads.flush(Duration::from_millis(20)).await;
    assert!(ledger.balanced() && ledger.offered == 400 && ledger.pending == 0, "{ledger:?}");
    assert!(store.kept() as u64 >= ledger.stored);
    lifecycle.stop(LONG).await.expect("all of it ends");
    assert_eq!(offering.failed(), None);
}

#[tokio::test]
async fn a_stop_without_a_flush_ends_and_counts() {
    let (payloads, _telemetry, lifecycle) =
        start(Config { uploads: 1, ..Config::default() }, Faulty::new(|_| Deed::Hang));
    offer(&payloads, 0..5);
    lifecycle.stop(LONG).await.expect("no thread hangs");
    assert_eq!(payloads.ledger().dropped(Reason::Shutdown), 5);
}

#[tokio::test]
async fn disabled_payloads_are_not_offered() {
    let payloads = Payloads::disabled();
    payloads.offer(record("t-1"), Value::Ordinary);
    assert_eq!(payloads.flush(LONG).await, Ledger::default());
}

#[test]
fn settings_that_cannot_be_right_are_named() {
    let wrong = |change: fn(&mut Config)| {
        let mut config = Config { store: store::Kind::S3, ..Config::default() };
        config.s3.bucket = "weir".into();
        config.check().expect("right so far");
        change(&mut config);
        config.check().expect_err("wrong").to_string()
    };
    assert_eq!(wrong(|it| it.uploads = 0), "payloads.uploads is 0; use 1 to 1024");
    assert!(wrong(|it| it.level = 10).starts_with("payloads.level is 10; with compression = \"zlib\""));
    assert_eq!(wrong(|it| it.slow_quantile = 1.0), "payloads.slow_quantile is 1; use more than 0 and less than 1");
    assert!(wrong(|it| it.spool.path = Some("".into())).contains("spool.path is empty"));
    assert!(wrong(|it| it.spool.max_age = Duration::ZERO).contains("spool.max_age is 0s"));
    assert!(wrong(|it| it.prefix = "/x".into()).contains("prefix is \"/x\"; use segments"));
    assert!(wrong(|it| it.s3.bucket = "".into()).contains("s3.bucket is \"\""));
    assert!(wrong(|it| it.s3.endpoint = Some("localhost:9000".into())).contains("s3.endpoint"));
    assert!(wrong(|it| it.s3.idle_timeout = LONG).contains("s3.idle_timeout is 20s"));
    assert!(wrong(|it| it.s3.operation_timeout = LONG * 10).contains("s3.operation_timeout is 3m 20s"));
}

#[tokio::test]
async fn a_store_is_opened_by_the_settings_without_the_network() {
    let open = async |kind| {
        let mut config = Config { store: kind, ..Config::default() };
        config.s3.bucket = "weir".into();
        let store =
            tokio::time::timeout(Duration::from_secs(10), store::open(&config)).await.expect("it does not wait");
        store.expect("valid").map(|store| store.location("k"))
    };
    assert_eq!(open(store::Kind::None).await, None);
    assert_eq!(open(store::Kind::Directory).await.as_deref(), Some("payloads/k"));
    assert_eq!(open(store::Kind::S3).await.as_deref(), Some("s3://weir/k"));
}

#[test]
fn settings_are_read_by_name_and_unknown_ones_are_refused() {
    let read = |json: &str| serde_json::from_str::<Config>(json);
    let config = read(r#"{"store": "s3", "flush_within": "5s", "s3": {"bucket": "b", "checksums": "when_required"}}"#);
    let config = config.expect("good settings");
    assert_eq!((config.flush_within, config.s3.checksums), (LONG / 4, store::s3::Checksums::WhenRequired));
    let error = read(r#"{"stores": "s3"}"#).expect_err("unknown").to_string();
    assert!(error.contains("unknown field `stores`"), "{error}");
}

#[tokio::test]
async fn encoders_pause_while_the_runtime_lags_and_get_on_all_the_same() {
    let lag: Lag = Arc::new(|| Duration::from_secs(1));
    let (payloads, telemetry, lifecycle) = start_under(Config::default(), Faulty::new(|_| Deed::Keep), lag);
    offer(&payloads, 0..50);
    eventually("all of it is stored", || payloads.ledger().stored == 50).await;
    assert!(!telemetry.render().contains("weir_payload_encode_pause_duration_seconds_count 0"));
    payloads.flush(LONG).await;
    lifecycle.stop(LONG).await.expect("all of it ends");
}
