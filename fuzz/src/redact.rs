//! A secret planted in a run, wherever and in whatever surroundings: it is in no byte of the payload, the redaction does
//! not panic and takes no longer than it may, and the payload is JSON with a HAR transcript.
//!
//! The first bytes choose place, secret, spelling and configuration. The rest is the text in which the secret is planted
//! where `~~` stands, between commas and spaces; without that, at its end. The secret follows from a hash of the text,
//! so that no text can hold it already.

use std::time::{Duration, SystemTime};

use base64::engine::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use weir::payload::Record;
use weir::payload::redact::{Config, Detector};
use weir::task::transcript::{Attachment, Note};
use weir::task::{Failure, FailureCode, Json, Remedy};

use super::sample::{message, record, stored};

/// Longer texts say nothing new and slow the fuzzer down.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// A redaction of so few bytes that is given up for its time has a rule that is too slow.
const QUICK_BYTES: usize = 4 * 1024;

/// By far more than what the configurations below allow, on whatever machine and with a sanitizer.
const MAX_CPU: Duration = Duration::from_secs(5);

/// Panics when something does not hold.
pub fn check(input: &[u8]) {
    let [place, kind, spelling, config, text @ ..] = input else { return };
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_TEXT_BYTES)]);
    let secret = Secret::of(&text, *kind);
    let spelt = spell(&secret.text, *spelling);
    let (before, after) = text.split_once("~~").unwrap_or((&text, ""));
    let planted = format!("{before}, {}{spelt}, {after}", secret.label);

    let mut record = record();
    if secret.is_named {
        record.transcript.secrets.push(secret.text.clone());
    }
    plant(&mut record, &planted, *place, config & 4 != 0);
    let began = cpu_time();
    let (json, document) = stored(&configuration(*config), record);
    let took = cpu_time().saturating_sub(began);

    assert!(took < MAX_CPU, "{took:?} for {} bytes", planted.len());
    let is_whole = document.get("_redaction").is_none();
    assert!(is_whole || planted.len() > QUICK_BYTES, "{} for {} bytes", document["_redaction"], planted.len());
    assert!(!json.contains(&*spelt), "{spelt} is in {json}");
    gone(&document, &secret);
}

/// In no string of the document, as it is, percent-encoded or in base64.
fn gone(value: &Value, secret: &Secret) {
    match value {
        Value::Object(object) => {
            if object.get("encoding").or(object.get("_encoding")).is_some_and(|it| it == "base64") {
                let binary = STANDARD.decode(object["text"].as_str().expect("a text")).expect("base64");
                secret.assert_gone(&String::from_utf8_lossy(&binary));
            }
            for (name, value) in object {
                secret.assert_gone(name);
                gone(value, secret);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| gone(value, secret)),
        Value::String(text) => secret.assert_gone(text),
        Value::Number(number) => secret.assert_gone(&number.to_string()),
        Value::Null | Value::Bool(_) => {}
    }
}

struct Secret {
    /// As it is written, and without spaces and dashes.
    text: String,
    bare: String,
    /// What it is known by, if not by its form.
    label: &'static str,
    /// Whether the run names it.
    is_named: bool,
}

impl Secret {
    fn of(text: &str, kind: u8) -> Self {
        // FNV-1a: with another release of Rust, the corpus must mean the same.
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let token = format!("{hash:016x}{:016x}", hash.rotate_left(29));
        let (text, label, is_named) = match kind % 10 {
            0 => (card(hash), "", false),
            1 => (grouped(&card(hash), ' '), "", false),
            2 => (grouped(&card(hash), '-'), "", false),
            3 => (iban(hash), "", false),
            4 => (grouped(&iban(hash), ' '), "", false),
            5 => (iban(hash).to_lowercase(), "", false),
            6 => (format!("eyJhbGciOiJIUzI1NiJ9.eyJ{token}.{token}"), "", false),
            7 => (token, "Bearer ", false),
            8 => (token, "password=", false),
            _ => (format!("n/{token}+é"), "", true),
        };
        Secret { bare: text.replace([' ', '-'], ""), text, label, is_named }
    }

    fn assert_gone(&self, text: &str) {
        let decoded = percent_decode_str(text).decode_utf8_lossy();
        for text in [text, &decoded] {
            assert!(!text.contains(&self.text) && !text.contains(&self.bare), "{} is in {text}", self.text);
        }
    }
}

/// 16 digits with an issuer's beginning and the right check digit.
fn card(hash: u64) -> String {
    let digits = format!("4{:014}", hash % 100_000_000_000_000);
    let doubled = |(index, digit): (usize, u8)| {
        let value = u32::from(digit - b'0') << ((index + 1) % 2);
        if value > 9 { value - 9 } else { value }
    };
    let sum: u32 = digits.bytes().rev().enumerate().map(doubled).sum();
    format!("{digits}{}", (10 - sum % 10) % 10)
}

/// A German one: 18 digits, and check digits that make the number 1 modulo 97.
fn iban(hash: u64) -> String {
    let account = format!("{:018}", hash % 1_000_000_000_000_000_000);
    let remainder =
        format!("{account}131400").bytes().fold(0, |rest, digit| (rest * 10 + u32::from(digit - b'0')) % 97);
    format!("DE{:02}{account}", 98 - remainder)
}

fn grouped(text: &str, separator: char) -> String {
    let mut grouped = String::new();
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % 4 == 0 {
            grouped.push(separator);
        }
        grouped.push(character);
    }
    grouped
}

/// As it is, or with each character as an escape.
fn spell(text: &str, spelling: u8) -> String {
    let percent = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    match spelling % 6 {
        1 => percent(text),
        2 => percent(&percent(text)),
        3 => text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect(),
        4 => text.chars().map(|it| format!("&#{};", u32::from(it))).collect(),
        5 => text.chars().map(|it| format!("&#x{:x};", u32::from(it))).collect(),
        _ => text.to_owned(),
    }
}

fn configuration(choice: u8) -> Config {
    let mut config = Config { time_limit: Duration::from_millis(50), ..Config::default() };
    if choice & 1 != 0 {
        config.detect.push(Detector::Email);
        config.keep_query = vec!["*".into()];
        config.keep_headers = vec!["x-branch".into()];
    }
    if choice & 2 != 0 {
        config.paths.insert("*".into(), vec!["$..a".into(), "$[1]".into(), "$.b[*].c".into()]);
    }
    config
}

const MEDIA_TYPES: &[&str] = &[
    "application/json",
    "text/html; charset=utf-8",
    "application/x-www-form-urlencoded",
    "application/soap+xml",
    "multipart/form-data; boundary=B",
    "application/octet-stream",
    "",
];

/// Puts the text into one place of the run.
fn plant(record: &mut Record, text: &str, place: u8, is_cut: bool) {
    let (at, transcript) = (SystemTime::UNIX_EPOCH, &mut record.transcript);
    let exchange = &mut transcript.exchanges[0];
    let (place, media_type) = (place % 16, MEDIA_TYPES[usize::from(place / 16) % MEDIA_TYPES.len()]);
    let json = || Json::parse(text.to_owned()).or_else(|_| Json::of(&text)).expect("a string is JSON");
    match place {
        0..=3 => {
            let body = match media_type.starts_with("multipart/") {
                true => format!("--B\r\nContent-Disposition: form-data; name=\"n\"\r\n\r\n{text}\r\n--B--\r\n"),
                false => text.to_owned(),
            };
            if place == 0 {
                let (name, content_type, body_bytes) = ("page".into(), media_type.into(), body.len() as u64);
                transcript.attachments.push(Attachment { at, name, content_type, body: body.into(), body_bytes });
            } else if place == 1 {
                exchange.request = message(media_type, body, false);
            } else if let Some(response) = &mut exchange.response {
                response.message = message(media_type, body, is_cut);
            }
        }
        4 => exchange.url = format!("https://bank.example/{text}"),
        5 => exchange.url = format!("https://bank.example/accounts?page={text}"),
        6 => exchange.url = format!("https://bank.example/accounts#{text}"),
        7 => exchange.request.headers.push(("User-Agent".into(), text.into())),
        8 => exchange.request.headers.push(("X-Branch".into(), text.into())),
        9 => exchange.request.headers.push(("Location".into(), text.into())),
        10 => exchange.request.headers.push((text.into(), "1".into())),
        11 => exchange.error = Some(text.into()),
        12 => transcript.notes.push(Note { at, text: text.into(), is_cut }),
        13 => record.task.input = json(),
        14 => record.outcome.result = Ok(json()),
        _ => record.outcome.result = Err(Failure::new(FailureCode::Integration, text, Remedy::Retry)),
    }
}

/// The processor time that this thread has had.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
