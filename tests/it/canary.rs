//! Secrets that an integration comes across are in no stored byte and in no line of a log: through a real worker, by way
//! of all that an integration may call.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use weir::config;
use weir::integration::transport::Request;
use weir::integration::{Context, Error, Integration, Integrations};
use weir::payload::{self, Limits, decode};
use weir::task::Json;
use weir::task::transcript::{Exchange, Message, Phases, Response};
use weir::telemetry::Telemetry;

use crate::support::house::submission;
use crate::support::lone;

/// Known by their form, by a name before them, and because the run names it.
const SECRETS: [&str; 7] = [
    "4929 1234 1234 1232",
    "DE02120300000000202051",
    "eyJhbGciOiJIUzI1NiJ9.eyJDQU5BUlkiOjF9.Q0FOQVJZ",
    "CANARY-bearer-1",
    "Q0FOQVJZOmJhc2lj",
    "CANARY-password",
    "CANARY named one",
];

/// All of them in one text.
fn text() -> String {
    let [card, iban, jwt, bearer, basic, password, named] = SECRETS;
    format!("{card}, {iban}, {jwt}; Bearer {bearer}, Basic {basic} password={password} {named}.")
}

/// Says everything to everyone.
struct Leaky;

#[async_trait]
impl Integration for Leaky {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        let input: Value = context.input()?;
        context.secret(SECRETS[6]);
        context.note(text());
        context.attach("page.html", "text/html", format!("<p>{}</p>", text()));
        context.attach(
            "data.json",
            "application/json",
            json!({"deep": json!({"text": text()}).to_string()}).to_string(),
        );
        let body = json!({"text": text(), "password": SECRETS[5], "card": 4929123412341232u64}).to_string();
        let message = |headers: &[&str]| Message {
            headers: headers.iter().map(|name| (name.to_string(), text())).collect(),
            body: body.clone().into(),
            body_bytes: body.len() as u64,
        };
        context.recorder().record(Exchange {
            started: SystemTime::now(),
            request: message(&["authorization", "cookie", "x-own", "user-agent"]),
            method: "POST".into(),
            url: format!("https://u:{}@bank/x?token={}&q={}", SECRETS[5], SECRETS[3], SECRETS[1]),
            response: Some(Response { status: 200, message: message(&["set-cookie", "date"]) }),
            error: Some(text()),
            fault: None,
            phases: Phases::default(),
        });
        // Nobody listens there: the error may name what was asked.
        let url = format!("http://127.0.0.1:9/{}?access_token={}", SECRETS[1], SECRETS[3]);
        let request =
            Request::post(url).header("authorization", format!("Bearer {}", SECRETS[3])).body("text/plain", text());
        assert!(context.http().send(request).await.is_err());
        match input["end"].as_str() {
            Some("panic") => panic!("{}", text()),
            Some("error") => Err(Error::permanent(text())),
            _ => Ok(Json::of(&json!({"text": text()})).expect("JSON")),
        }
    }
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is written from now on, by whatever logs in this process.
fn capture() -> Log {
    let log = Log::default();
    let writer = log.clone();
    let filter = Targets::new().with_default(LevelFilter::DEBUG).with_target("weir", LevelFilter::TRACE);
    let layer =
        tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone()).with_filter(filter);
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).expect("the only logger");
    log
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Runs a task that ends in each way, and stops the worker.
async fn run(payloads: &payload::Config) -> payload::Ledger {
    let mut config = config::from_text("").expect("valid");
    config.worker.listen = "127.0.0.1:0".parse().expect("an address");
    config.worker.admin.listen = config.worker.listen;
    let telemetry = Telemetry::new().expect("a recorder");
    config.payloads = payloads.clone();
    let own = Integrations::new().with("leaky".parse().expect("a name"), Leaky);
    let (worker, client) = lone::start(config, own, telemetry).await;
    for end in ["output", "error", "panic"] {
        let input = json!({"end": end, "text": text(), "password": SECRETS[5], "card": 4929123412341232u64});
        client.submit(&submission(end, "leaky", input)).await.expect("an outcome");
    }
    worker.drain().await.payloads.expect("they are kept")
}

/// A whole payload, without a secret.
fn check(encoded: &[u8], place: &str) {
    let json = decode(encoded, Limits::default()).unwrap_or_else(|error| panic!("{place}: {error}"));
    let payload: Value = serde_json::from_str(&json).expect("JSON");
    let log = &payload["transcript"]["log"];
    assert_eq!(log["entries"].as_array().map(Vec::len), Some(2), "{json}");
    assert_eq!(log["_attachments"].as_array().map(Vec::len), Some(2), "{json}");
    assert_gone(&json, place);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_integration_comes_across_is_in_no_stored_or_spooled_byte_and_in_no_log() {
    let log = capture();
    let directory = tempfile::tempdir().expect("a directory");
    let mut payloads = config::from_text("[payloads]\nstore = \"directory\"").expect("valid").payloads;
    payloads.directory.path = directory.path().join("payloads");
    assert_eq!(run(&payloads).await.stored, 3);
    let stored = files(&payloads.directory.path);
    assert_eq!(stored.len(), 3, "{stored:?}");
    for path in stored {
        check(&std::fs::read(&path).expect("readable"), &path.to_string_lossy());
    }

    // A file is in the way of the store, so all of them stay in the spool.
    payloads.directory.path = directory.path().join("in the way");
    std::fs::write(&payloads.directory.path, "").expect("written");
    payloads.spool.path = Some(directory.path().join("spool"));
    payloads.flush_within = Duration::from_secs(4);
    assert_eq!(run(&payloads).await.spooled, 3);
    let mut spooled = 0;
    for path in files(&directory.path().join("spool")) {
        let file = std::fs::read(&path).expect("readable");
        assert_gone(&String::from_utf8_lossy(&file), &path.to_string_lossy());
        // Two lines of its own come before the payload.
        if let [_, _, body] = file.splitn(3, |byte| *byte == b'\n').collect::<Vec<_>>()[..] {
            check(body, &path.to_string_lossy());
            spooled += 1;
        }
    }
    assert_eq!(spooled, 3);

    let lines = String::from_utf8_lossy(&log.0.lock().expect("not poisoned")).into_owned();
    assert!(lines.contains("the worker has stopped"), "it is logged: {lines}");
    assert_gone(&lines, "the log");
}

fn assert_gone(text: &str, place: &str) {
    for secret in SECRETS.into_iter().chain(["4929123412341232", "CANARY", "Q0FOQVJZ"]) {
        assert!(!text.contains(secret), "{secret} is in {place}: {text}");
    }
}
