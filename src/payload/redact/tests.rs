//! Secrets planted in every place that a transcript has are in no stored byte; and what is no secret stays as it is.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use super::super::encode::{Limits, decode, encode};
use super::super::record::Body;
use super::super::tests::{message as plain_message, record};
use super::*;
use crate::task::transcript::{Attachment, Note, Response};
use crate::task::{FailureCode, Remedy};

fn redactor(config: &str) -> Redactor {
    Redactor::new(&serde_json::from_str(config).expect("it fits")).expect("it is right")
}

/// The JSON as it is stored.
fn stored_by(redactor: &Redactor, record: Record) -> String {
    let encoded = encode(&redactor.redact(record), 1).expect("encodes");
    decode(&encoded.body, Limits::default()).expect("decodes")
}

fn stored(record: Record) -> String {
    stored_by(&Redactor::default(), record)
}

fn json(text: impl Into<String>) -> Json {
    Json::parse(text.into()).expect("JSON")
}

/// As a JSON body of an answer.
fn answered(body: &str) -> Record {
    let mut record = record("t-1");
    let message = plain_message("application/json", body.as_bytes());
    record.transcript.exchanges[0].response = Some(Response { status: 200, message });
    record
}

fn answer(redactor: &Redactor, record: Record) -> String {
    let document: Value = serde_json::from_str(&stored_by(redactor, record)).expect("JSON");
    let content = &document["transcript"]["log"]["entries"][0]["response"]["content"];
    content["text"].as_str().or(content["comment"].as_str()).expect("a text or a comment").to_owned()
}

/// A body of its own, redacted.
fn redacted_body(config: &str, message: &crate::task::transcript::Message) -> Body {
    let rules = Rules::new(&serde_json::from_str(config).expect("it fits")).expect("it is right");
    let integration = "bank".parse().expect("a name");
    let mut pass = Pass::new(&rules, &integration, &["CANARY".to_owned()]).expect("one secret");
    let mut exchange = record("t-1").transcript.exchanges.remove(0);
    let message = crate::task::transcript::Message {
        headers: message.headers.clone(),
        body: message.body.clone(),
        body_bytes: message.body_bytes,
    };
    exchange.response = Some(Response { status: 200, message });
    let redacted = message::exchange(&mut pass, &exchange).expect("in time");
    redacted.response.expect("an answer").1.body
}

#[test]
fn equal_private_keys_have_one_placeholder_and_others_another() {
    let key = |text: &str| format!("-----BEGIN RSA PRIVATE KEY-----\\n{text}\\n-----END RSA PRIVATE KEY-----");
    let encrypted = key("Proc-Type: 4,ENCRYPTED\\nDEK-Info: AES-256-CBC,0F\\n\\nMIIE");
    let body = format!(r#"{{"a":"{}","b":"{}","c":"{}","d":"{encrypted}"}}"#, key("MIIA"), key("MIIB"), key("MIIA"));
    let redacted: Value = serde_json::from_str(&answer(&Redactor::default(), answered(&body))).expect("JSON");
    let placeholder =
        |number| format!("-----BEGIN RSA PRIVATE KEY-----[redacted-{number}]-----END RSA PRIVATE KEY-----");
    let expected = [("a", 1), ("b", 2), ("c", 1), ("d", 3)];
    for (key, number) in expected {
        assert_eq!(redacted[key], placeholder(number), "{redacted}");
    }
}

#[test]
fn a_named_secret_is_found_in_base64_where_it_stands_alone_and_in_json_of_ascii() {
    let mut record =
        answered(r#"{"a":"U0VDUkVUbmFtZWQ1MQ==","b":"NTQ3MTE","c":"eyJuYW1lIjoicGFzcyBcdTAwZTQgb3J0In0="}"#);
    record.transcript.secrets = ["SECRETnamed51", "54711", "pass ä ort"].map(str::to_owned).to_vec();
    let redacted = answer(&Redactor::default(), record);
    for left in ["U0VDUkVU", "NTQ3", "eyJu"] {
        assert!(!redacted.contains(left), "{redacted}");
    }
}

#[test]
fn a_failures_own_reason_is_no_hole() {
    let mut record = record("t-1");
    let failure = |reason: &str| Failure {
        reason: Some(reason.parse().expect("a name")),
        ..Failure::new(FailureCode::Integration, "it failed", Remedy::None)
    };
    record.outcome.result = Err(failure("card-4111111111111111"));
    assert!(!stored(record).contains("4111"));
    let mut record = self::record("t-1");
    record.outcome.result = Err(failure("consent_expired"));
    assert!(stored(record).contains("consent_expired"));
}

#[test]
fn what_is_no_secret_stays() {
    let mut record = answered(r#"{"balance": 42.10, "deep":"{\"n\":12345678901234567890.5}", "when": 1755666000250}"#);
    record.task.input = json(r#"{"account": 7,"list":[1.50e3]}"#);
    let stored = stored(record);
    for kept in [
        r#"{"account": 7,"list":[1.50e3]}"#,
        r#"{\"balance\": 42.10, \"deep\":\"{\\\"n\\\":12345678901234567890.5}\", \"when\": 1755666000250}"#,
        "https://bank/accounts?page=2",
    ] {
        assert!(stored.contains(kept), "{kept} is missing in {stored}");
    }
    assert!(!stored.contains("redacted"), "{stored}");
}

#[test]
fn the_same_secret_is_the_same_placeholder_wherever_it_stands() {
    let mut record =
        answered(r#"{"access_token":"tok\/en-one+1","other_token":"two","iban":"DE89370400440532013000"}"#);
    record.task.input = json(r#"{"iban":"DE89 3704 0044 0532 0130 00","card":4111111111111111}"#);
    let exchange = &mut record.transcript.exchanges[0];
    exchange.url = "https://bank/x?iban=DE89+3704+0044+0532+0130+00&access_token=tok%2Fen-one%2B1".into();
    exchange.request.headers.push(("Authorization".into(), "Bearer tok/en-one+1".into()));
    record.transcript.notes.push(Note {
        at: SystemTime::UNIX_EPOCH,
        text: "card 4111-1111-1111-1111, token=tok/en-one+1".into(),
        is_cut: false,
    });
    let stored = stored(record);
    for expected in [
        r#"{"iban":"[iban-1]","card":"[card-2]"}"#,
        "https://bank/x?iban=[iban-1]&access_token=[redacted-3]",
        r#"{"name":"Authorization","value":"[redacted-3]"}"#,
        r#"{\"access_token\":\"[redacted-3]\",\"other_token\":\"[redacted-4]\",\"iban\":\"[iban-1]\"}"#,
        "card [card-2], token=[redacted-3]",
    ] {
        assert!(stored.contains(expected), "{expected} is missing in {stored}");
    }
}

#[test]
fn paths_hold_for_bodies_input_and_output_whole_and_cut() {
    let redactor = redactor(r#"{"paths": {"bank": ["$.holder", "$..items[*].note"], "*": ["$.age"]}}"#);
    let text =
        r#"{"holder": {"name": "CANARY"}, "n": 1.0, "items": [{"note": "CANARY \"x\""}, {"note": 7}], "age": 44}"#;
    let expected = r#"{"holder": "[redacted-1]", "n": 1.0, "items": [{"note": "[redacted-2]"}, {"note": "[redacted-3]"}], "age": "[redacted-4]"}"#;
    let mut record = answered(text);
    record.task.input = json(text);
    record.outcome.result = Ok(json(text));
    let stored = stored_by(&redactor, record);
    assert_eq!(stored.matches(expected).count(), 2, "{stored}");
    assert_eq!(answer(&redactor, answered(text)), expected);

    let mut cut = answered(&text[..text.find(r#" \"x"#).expect("it is there")]);
    cut.transcript.exchanges[0].response.as_mut().expect("an answer").message.body_bytes = 5_000;
    let left = answer(&redactor, cut);
    assert!(left.ends_with(r#""items": [{"note": "[redacted-2]"#), "{left}");

    let broken = answer(&redactor, answered(r#"{"holder" "CANARY"}"#));
    assert_eq!(broken, "left out: it is not valid JSON, so the paths that are configured could not be found");
    let page = answer(&redactor, answered("<html>down</html>"));
    assert_eq!(page, "<html>down</html>", "there is nothing in it that a path leads to");
}

#[test]
fn only_values_of_kept_keys_are_left_of_a_query() {
    let url = |config: &str, url: &str| {
        let mut record = record("t-1");
        record.transcript.exchanges[0].url = url.into();
        let document: Value = serde_json::from_str(&stored_by(&redactor(config), record)).expect("JSON");
        document["transcript"]["log"]["entries"][0]["request"]["url"].as_str().expect("a URL").to_owned()
    };
    let raw = "https://bank/x?page=2&customer=C%201&dateFrom=2026-01-01&empty=&flag&token=T#state=S";
    assert_eq!(
        url("{}", raw),
        "https://bank/x?page=2&customer=[redacted-1]&dateFrom=2026-01-01&empty=&[redacted-2]&token=[redacted-3]#state=[redacted-4]"
    );
    assert_eq!(
        url(r#"{"keep_query": ["*"]}"#, raw),
        "https://bank/x?page=2&customer=C%201&dateFrom=2026-01-01&empty=&flag&token=[redacted-1]#state=S"
    );
    assert_eq!(url(r#"{"keep_query": ["q"]}"#, "/s?q=card+4111+1111+1111+1111+x"), "/s?q=card+[card-1]+x");
}

#[test]
fn a_body_that_cannot_be_searched_is_withheld() {
    let utf16: Vec<u8> = "{\"a\":\"CANARY\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut compressed = plain_message("application/json", b"whatever");
    compressed.headers.push(("Content-Encoding".into(), "gzip".into()));
    for withheld in [
        compressed,
        plain_message("multipart/form-data; boundary=x", b"name=\"password\"\r\n\r\nCANARY"),
        plain_message("text/plain; charset=utf-16", &utf16),
        plain_message("application/octet-stream", &utf16),
        plain_message("application/octet-stream", b"\xff\xfeCANARY"),
        plain_message("application/pdf", b"%PDF-1.7\n\xff\xfe"),
        plain_message("application/octet-stream", b"PK\x03\x04\xff"),
    ] {
        assert!(matches!(redacted_body("{}", &withheld), Body::Withheld(_)));
    }
    for mislabelled in ["image/png", "audio/mpeg", "video/mp4"] {
        for start in [&b"\x1f\x8b\x08\xff"[..], b"PK\x03\x04\xff", b"%PDF-1.7\n\xff\xfe"] {
            let body = plain_message(mislabelled, start);
            let kept = redacted_body(r#"{"keep_binary": ["image/*", "audio/*", "video/*"]}"#, &body);
            assert!(matches!(kept, Body::Withheld(_)), "{mislabelled}: {start:?}");
            let kept = redacted_body(&format!(r#"{{"keep_binary": ["{mislabelled}"]}}"#), &body);
            assert_eq!(kept, Body::Binary(body.body), "named by itself");
        }
    }
    let pdf = plain_message("application/pdf", b"%PDF-1.7\n\xff\xfe");
    let kept = redacted_body(r#"{"keep_binary": ["application/pdf"]}"#, &pdf);
    assert_eq!(kept, Body::Binary(pdf.body));
    let picture = plain_message("image/png", b"\x89PNG\xff");
    assert_eq!(redacted_body("{}", &picture), Body::Binary(Bytes::from_static(b"\x89PNG\xff")));
    assert!(matches!(redacted_body(r#"{"keep_binary": []}"#, &picture), Body::Binary(_)), "nothing is found in it");
    let cut = plain_message("", "{\"name\":\"é".as_bytes().split_last().expect("bytes").1);
    assert_eq!(redacted_body("{}", &cut), Body::Text("{\"name\":\"\u{fffd}".to_owned().into()));
}

#[test]
fn the_parts_of_a_form_are_redacted_each_as_what_it_is() {
    let parts = "--B1\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\nhunter2\r\n\
        --B1\r\nContent-Disposition: form-data; name=\"holder\"\r\n\r\nErika Muster\r\n\
        --B1\r\nContent-Disposition: form-data; name=\"n\"\r\n\r\n7 4111111111111111\r\n\
        --B1\r\nContent-Disposition: form-data; name=\"j\"\r\nContent-Type: application/json\r\n\r\n{\"pin\":12}\r\n\
        --B1\r\nContent-Disposition: form-data; name=\"f\"\r\nContent-Type: application/pdf\r\n\r\n%PDF\u{0}\r\n--B1--\r\n";
    let message = plain_message("multipart/form-data; boundary=B1", parts.as_bytes());
    let Body::Text(text) = redacted_body(r#"{"paths": {"*": ["$..holder"]}}"#, &message) else {
        panic!("its parts are texts");
    };
    let expected = parts
        .replace("hunter2", "[redacted-1]")
        .replace("Erika Muster", "[redacted-2]")
        .replace("4111111111111111", "[card-3]")
        .replace("{\"pin\":12}", "{\"pin\":\"[redacted-4]\"}")
        .replace("%PDF\u{0}", "[left out: it is of a binary format that could not be searched for secrets]");
    assert_eq!(text.as_str(), expected);
}

#[test]
fn where_redaction_is_given_up_only_metadata_is_kept_and_counted() {
    let telemetry = crate::telemetry::Telemetry::new().expect("a recorder");
    let config: Config = serde_json::from_str(r#"{"time_limit": "1ns"}"#).expect("it fits");
    let hasty = telemetry.register(|| Redactor::new(&config)).expect("it is right");
    let mut late = answered("CANARY");
    late.outcome.result = Err(Failure::new(FailureCode::Integration, "CANARY", Remedy::Retry));
    let patient = telemetry.register(Redactor::default);
    let mut many = answered("CANARY");
    many.transcript.secrets = (0..1000).map(|n| format!("CANARY-{n}")).collect();
    many.task.input = Json::of(&"CANARY-7").expect("JSON");
    let mut unknown = answered("CANARY");
    unknown.transcript.secrets_left_out = 1;
    let cases = [
        (hasty.redact(late), "took longer"),
        (patient.redact(many), "more secrets"),
        (patient.redact(unknown), "more secrets"),
        (patient.guarded(answered("CANARY"), |_, _| panic!("on purpose, with CANARY")), "a bug of weir"),
    ];
    for (redacted, why) in cases {
        let encoded = encode(&redacted, 1).expect("encodes");
        let json = decode(&encoded.body, Limits::default()).expect("decodes");
        assert!(!json.contains("CANARY"), "{json}");
        for expected in
            [r#""id":"t-1""#, r#""_redaction":"only metadata was kept: "#, why, r#""entries":[],"_exchangesLeftOut":1"#]
        {
            assert!(json.contains(expected), "{expected} is missing in {json}");
        }
    }
    let metrics = telemetry.render();
    for (reason, count) in [("overdue", 1), ("too_many_secrets", 2), ("panicked", 1)] {
        let line = format!(r#"weir_payload_metadata_only_total{{reason="{reason}"}} {count}"#);
        assert!(metrics.contains(&line), "{line} is missing in {metrics}");
    }
}

/// What is slow for one rule or the other.
const SLOW: &[&str] = &[
    "eyJhbGciOiJIUzI1NiJ9-",
    "[",
    "{\"a\":",
    ">",
    "a>",
    "\\",
    "%2541",
    "4111 ",
    "DE89 ",
    "token=\"",
    "bearer ",
    "@",
    ":",
    "=\"",
    "&#64;",
    "basic+",
    "\"",
    "<pin>",
    "1 ",
    "token:'",
    "-----BEGIN PRIVATE KEY-----\n",
    "token=[",
    "token:S{",
    "\\\"",
    "://",
    "--token ",
    "--pin '",
    "pin: |\n ",
    "pin: |\\n  x",
    "pin:=",
    "=>",
    "--",
    "0",
    "4111111111111111=1",
    "authorization: digest \"",
    "authorization: digest \\\"\\n",
    "\"authorization: digest x\",",
    "authorization: hawk id=\"",
    "authorization: hawk id=\"x\"<",
    "pin='''",
    "cookie: Some(\n\"",
    "-basic+",
    "/basic+",
    "/bearer+token+",
    "\"<pin><a>\",",
    "<pin></pin>",
    "\"<pin>\">",
    "a=1&",
    "%2541%",
    "data: 1\n\n",
];

#[test]
fn a_large_body_cannot_take_longer_than_it_may() {
    for paths in ["{}", r#"{"*": ["$..a"]}"#] {
        let detect = r#"["card", "iban", "jwt", "bearer", "basic", "pem", "email"]"#;
        let redactor = redactor(&format!(r#"{{"time_limit": "3ms", "paths": {paths}, "detect": {detect}}}"#));
        for unit in SLOW {
            let mut record = answered(&unit.repeat((2 << 20) / unit.len()));
            record.transcript.secrets.push("%25412541%25412541%25412541%25412541%25412541".into());
            let before = budget::thread_time();
            let _ = redactor.redact(record);
            let took = budget::thread_time() - before;
            eprintln!("{unit:22} {took:?}");
            // Between two looks at the clock, and in what the libraries do in one go, it goes on.
            assert!(took < std::time::Duration::from_secs(2), "{unit}: {took:?}");
        }
    }
}

#[test]
fn texts_for_logs_are_redacted_by_name_and_by_form() {
    let text = for_log("refused: token=abc for DE89 3704 0044 0532 0130 00, é");
    assert_eq!(text, "refused: token=[redacted-1] for [iban-2], é");
}

mod canary;
mod followed;
mod properties;
