//! The document is HAR 1.2, field by field.

use serde_json::{Value, json};

use super::super::redact::redact;
use super::super::tests::{message, record};
use super::*;

fn document(record: super::super::Record) -> Value {
    serde_json::to_value(Document::of(&redact(record))).expect("serializes")
}

#[test]
fn the_transcript_is_har_with_every_mandatory_field() {
    let document = document(record("t-1"));
    let log = &document["transcript"]["log"];
    assert_eq!(log["version"], "1.2");
    let entry = &log["entries"][0];
    assert_eq!(entry["startedDateTime"], "2025-08-20T05:00:00.250000Z");
    assert_eq!(entry["time"], 111.0);
    let timings = json!({"blocked": 1.0, "dns": -1.0, "connect": -1.0, "ssl": -1.0,
        "send": 0.0, "wait": 100.0, "receive": 10.0});
    assert_eq!(entry["timings"], timings);
    assert_eq!(entry["cache"], json!({}));
    // Chrome's own fields: without them, its developer tools show JSON as a script and count a byte too few.
    assert_eq!(
        (&entry["_resourceType"], &entry["response"]["_transferSize"]),
        (&json!("fetch"), &entry["response"]["bodySize"])
    );
    assert_eq!(entry["request"]["queryString"], json!([{"name": "page", "value": "2"}]));
    assert_eq!(
        entry["response"]["content"],
        json!({"size": 11, "mimeType": "application/json", "text": "{\"n\": true}"})
    );
}

#[test]
fn an_exchange_without_an_answer_has_status_0_and_an_error() {
    let mut record = record("t-1");
    record.transcript.exchanges[0].response = None;
    record.transcript.exchanges[0].error = Some("connection refused".into());
    let document = document(record);
    let entry = &document["transcript"]["log"]["entries"][0];
    assert_eq!((&entry["response"]["status"], &entry["_error"]), (&json!(0), &json!("connection refused")));
    assert_eq!(entry["response"]["_transferSize"], 0);
}

#[test]
fn cut_and_binary_bodies_say_so() {
    let mut record = record("t-1");
    let mut body = message("image/png", b"\x89PNG\xff");
    body.body_bytes = 1000;
    record.transcript.exchanges[0].response.as_mut().expect("an answer").message = body;
    let content = &document(record)["transcript"]["log"]["entries"][0]["response"]["content"];
    let expected = json!({"size": 1000, "mimeType": "image/png", "text": "iVBOR/8=", "encoding": "base64",
        "comment": "cut to its first 5 bytes", "_truncatedFrom": 1000});
    assert_eq!(*content, expected);
}

/// The name of a field, the type of its value, and whether it must be there.
type Field = (&'static str, &'static str, bool);

/// The published schema of HAR 1.2: of each object its fields, their types, and whether they must be there.
const SCHEMA_OF: &[(&str, &[Field])] = &[
    (
        "log",
        &[
            ("version", "string", true),
            ("creator", "creator", true),
            ("browser", "creator", false),
            ("pages", "[page]", false),
            ("entries", "[entry]", true),
            ("comment", "string", false),
        ],
    ),
    ("creator", &[("name", "string", true), ("version", "string", true), ("comment", "string", false)]),
    (
        "entry",
        &[
            ("pageref", "string", false),
            ("startedDateTime", "date", true),
            ("time", "count", true),
            ("request", "request", true),
            ("response", "response", true),
            ("cache", "cache", true),
            ("timings", "timings", true),
            ("serverIPAddress", "string", false),
            ("connection", "string", false),
            ("comment", "string", false),
        ],
    ),
    (
        "request",
        &[
            ("method", "string", true),
            ("url", "url", true),
            ("httpVersion", "string", true),
            ("cookies", "[cookie]", true),
            ("headers", "[pair]", true),
            ("queryString", "[pair]", true),
            ("postData", "postData", false),
            ("headersSize", "integer", true),
            ("bodySize", "integer", true),
            ("comment", "string", false),
        ],
    ),
    (
        "response",
        &[
            ("status", "integer", true),
            ("statusText", "string", true),
            ("httpVersion", "string", true),
            ("cookies", "[cookie]", true),
            ("headers", "[pair]", true),
            ("content", "content", true),
            ("redirectURL", "string", true),
            ("headersSize", "integer", true),
            ("bodySize", "integer", true),
            ("comment", "string", false),
        ],
    ),
    ("pair", &[("name", "string", true), ("value", "string", true), ("comment", "string", false)]),
    (
        "postData",
        &[
            ("mimeType", "string", true),
            ("params", "[param]", false),
            ("text", "string", false),
            ("comment", "string", false),
        ],
    ),
    (
        "content",
        &[
            ("size", "integer", true),
            ("compression", "integer", false),
            ("mimeType", "string", true),
            ("text", "string", false),
            ("encoding", "string", false),
            ("comment", "string", false),
        ],
    ),
    ("cache", &[]),
    (
        "timings",
        &[
            ("blocked", "time", false),
            ("dns", "time", false),
            ("connect", "time", false),
            ("send", "time", true),
            ("wait", "time", true),
            ("receive", "time", true),
            ("ssl", "time", false),
            ("comment", "string", false),
        ],
    ),
];

/// Fails where a value is not what the schema says. Fields that it does not know begin with an underscore.
fn validate(value: &Value, kind: &str, place: &str) {
    if let Some(kind) = kind.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let list = value.as_array().unwrap_or_else(|| panic!("{place} is no list"));
        list.iter().enumerate().for_each(|(index, it)| validate(it, kind, &format!("{place}[{index}]")));
        return;
    }
    let is_right = match kind {
        "string" => value.is_string(),
        "integer" => value.as_i64().is_some_and(|it| it >= -1),
        "count" => value.as_f64().is_some_and(|it| it >= 0.0),
        "time" => value.as_f64().is_some_and(|it| it >= -1.0),
        "date" => value.as_str().is_some_and(|it| it.parse::<Timestamp>().is_ok() && it.ends_with('Z')),
        "url" => value.as_str().is_some_and(|it| url::Url::parse(it).is_ok()),
        _ => value.is_object(),
    };
    assert!(is_right, "{place} is no {kind}: {value}");
    let Some((_, fields)) = SCHEMA_OF.iter().find(|(name, _)| *name == kind) else { return };
    let object = value.as_object().expect("checked");
    for (field, kind, must) in *fields {
        match object.get(*field) {
            Some(value) => validate(value, kind, &format!("{place}.{field}")),
            None => assert!(!must, "{place}.{field} is missing"),
        }
    }
    let unknown = |name: &&String| !name.starts_with('_') && !fields.iter().any(|(field, _, _)| field == name);
    assert_eq!(object.keys().find(unknown), None, "{place} has a field of its own without an underscore");
}

#[test]
fn every_kind_of_transcript_is_valid_by_the_published_schema() {
    let exchange = || super::super::tests::record("x").transcript.exchanges.remove(0);
    let with = |request: Option<crate::task::transcript::Message>, answer: crate::task::transcript::Message| {
        let mut exchange = exchange();
        exchange.request = request.unwrap_or_default();
        exchange.url = "https://u:p@bank/4111111111111111/x?token=1&page=2&q#f".into();
        exchange.response = Some(crate::task::transcript::Response { status: 302, message: answer });
        exchange
    };
    let mut unanswered = exchange();
    unanswered.response = None;
    unanswered.error = Some("connection refused".into());
    unanswered.started -= Duration::from_secs(5);
    let mut cut = message("text/plain", b"some");
    cut.body_bytes = 9;
    let mut redirect = message("", b"");
    redirect.headers = vec![("Location".into(), "/next?code=7".into())];
    let mut record = record("t-1");
    record.transcript.exchanges.extend([
        with(Some(message("application/x-www-form-urlencoded", b"a=1&pin=2")), redirect),
        with(Some(message("application/octet-stream", b"\x00\xff")), message("image/png", b"\xff\xfe")),
        with(Some(message("application/pdf", b"%PDF\xff")), cut),
        unanswered,
    ]);
    record.transcript.exchanges_left_out = 3;
    record.transcript.notes_left_out = 1;
    let log = &document(record)["transcript"]["log"];
    validate(log, "log", "log");
    assert_eq!(log["entries"][0]["_error"], "connection refused", "in the order of their start");
    let timings = |entry: &Value| {
        let times = entry["timings"].as_object().expect("timings").values().filter_map(Value::as_f64);
        times.filter(|time| *time >= 0.0).sum::<f64>()
    };
    for entry in log["entries"].as_array().expect("entries") {
        assert!((timings(entry) - entry["time"].as_f64().expect("a time")).abs() < 1e-6, "{entry}");
    }
    assert_eq!(log["comment"], "left out or cut, for the transcript had reached its limit: 3 exchanges, 1 notes");
    let binary = &log["entries"][3]["request"]["postData"];
    assert_eq!((&binary["text"], &binary["_encoding"]), (&json!("AP8="), &json!("base64")));
    assert!(
        log["entries"][4]["request"]["postData"]["comment"].as_str().is_some_and(|it| it.starts_with("left out: "))
    );
}

#[test]
fn attachments_have_the_form_of_a_response_s_content() {
    use crate::task::transcript::Attachment;
    let mut record = record("t-1");
    let attachment = |name: &str, content_type: &str, body: &'static [u8]| Attachment {
        at: SystemTime::UNIX_EPOCH,
        name: name.into(),
        content_type: content_type.into(),
        body: bytes::Bytes::from_static(body),
        body_bytes: body.len() as u64,
    };
    record.transcript.attachments = vec![
        attachment("page.html", "text/html", b"<p>token=CANARY</p>"),
        attachment("screen.png", "image/png", b"\x89PNG\xff"),
    ];
    let log = &document(record)["transcript"]["log"];
    validate(log, "log", "log");
    let expected = json!([
        {"at": "1970-01-01T00:00:00.000000Z", "name": "page.html",
            "content": {"size": 19, "mimeType": "text/html", "text": "<p>token=[redacted-1]</p>"}},
        {"at": "1970-01-01T00:00:00.000000Z", "name": "screen.png",
            "content": {"size": 5, "mimeType": "image/png", "text": "iVBOR/8=", "encoding": "base64"}},
    ]);
    assert_eq!(log["_attachments"], expected);
}
