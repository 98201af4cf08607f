//! A run to redact, and its payload as it is stored.

use std::time::SystemTime;

use bytes::Bytes;
use serde_json::Value;
use weir::payload::encode::{Encoder, write_json};
use weir::payload::redact::{Config, Redactor};
use weir::payload::{Compression, Encoding, Limits, Record, decode};
use weir::task::transcript::{Exchange, Message, Phases, Response};
use weir::task::{Json, Outcome, Priority, RunId, Task, Timings, Transcript};

/// A run with one exchange, in which nothing stands yet.
pub fn record() -> Record {
    let id: weir::task::TaskId = "t-1".parse().expect("an id");
    let task = Task {
        id: id.clone(),
        integration: "bank".parse().expect("a name"),
        tenant: Default::default(),
        priority: Priority::Batch,
        input: Json::null(),
        deadline: tokio::time::Instant::now(),
    };
    let exchange = Exchange {
        fault: None,
        started: SystemTime::UNIX_EPOCH,
        request: Message::default(),
        method: "POST".into(),
        url: "https://bank.example/accounts".into(),
        response: Some(Response { status: 200, message: Message::default() }),
        error: None,
        phases: Phases::default(),
    };
    let outcome = Outcome {
        task: id,
        run: RunId::mint(),
        result: Ok(Json::null()),
        worker: "w-1".parse().expect("an id"),
        attempt: 1,
        timings: Timings::default(),
    };
    let transcript = Transcript { exchanges: vec![exchange], ..Transcript::default() };
    Record { task, outcome, transcript, pool: "single".parse().expect("a name") }
}

/// A body of a media type; a cut one had more to it.
pub fn message(media_type: &str, body: impl Into<Bytes>, is_cut: bool) -> Message {
    let body = body.into();
    let body_bytes = body.len() as u64 + if is_cut { 1_000 } else { 0 };
    Message { headers: vec![("Content-Type".into(), media_type.into())], body, body_bytes }
}

/// The payload's JSON: what is encoded decodes to it, and its transcript is what a HAR viewer expects.
pub fn stored(config: &Config, record: Record) -> (String, Value) {
    const ENCODING: Encoding = Encoding { compression: Compression::Zlib, level: 1, base64: true };
    let redacted = Redactor::new(config).expect("a right configuration").redact(record);
    let mut json = Vec::new();
    write_json(&redacted, &mut json).expect("into memory");
    let encoded = Encoder::new(ENCODING).encode(&redacted, &mut || ()).expect("into memory");
    let json = String::from_utf8(json).expect("JSON is UTF-8");
    let decoded = decode(&encoded.body.to_bytes(), Limits::default()).expect("what is encoded decodes");
    assert_eq!((decoded.len() as u64, &decoded), (encoded.json_bytes, &json));
    let document: Value = serde_json::from_str(&json).expect("a payload is JSON");
    let why = document["_redaction"].as_str().unwrap_or_default();
    assert!(!why.contains("bug"), "the redaction panicked");
    har(&document["transcript"]["log"]);
    (json, document)
}

/// What HAR 1.2 requires of a log.
fn har(log: &Value) {
    assert_eq!(log["version"], "1.2");
    assert!(log["creator"]["name"].is_string() && log["creator"]["version"].is_string());
    for entry in log["entries"].as_array().expect("entries") {
        let (request, response, timings) = (&entry["request"], &entry["response"], &entry["timings"]);
        for text in [&entry["startedDateTime"], &request["method"], &request["url"], &request["httpVersion"]] {
            assert!(text.is_string(), "{entry}");
        }
        for text in [&response["statusText"], &response["httpVersion"], &response["redirectURL"]] {
            assert!(text.is_string(), "{entry}");
        }
        for list in [&request["headers"], &request["queryString"], &response["headers"]] {
            let is_pair = |pair: &Value| pair["name"].is_string() && pair["value"].is_string();
            assert!(list.as_array().is_some_and(|list| list.iter().all(is_pair)), "{entry}");
        }
        assert!(response["status"].is_u64() && response["content"]["size"].is_u64(), "{entry}");
        assert!(response["content"]["mimeType"].is_string(), "{entry}");
        let known = ["blocked", "send", "wait", "receive"].map(|phase| timings[phase].as_f64().expect("a number"));
        let time = entry["time"].as_f64().expect("a number");
        assert!((known.iter().sum::<f64>() - time).abs() < 0.01, "{entry}");
    }
}
