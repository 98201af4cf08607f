//! Takes credentials out of a record, before anything of it is serialized.
//!
//! Headers keep their values only by an allowlist. Everywhere else (URLs, bodies, input, output, messages, notes) the
//! values after a credential's name are masked, and so is whatever the run itself named as a secret. A body that cannot
//! be looked into (compressed, of an unknown charset, in parts) is withheld: what is not understood is not kept.

mod mask;
mod names;

use std::borrow::Cow;

use bytes::Bytes;

pub use mask::PLACEHOLDER;

use self::mask::Mask;
use super::record::{Body, Record, Redacted, RedactedExchange, RedactedMessage, header, json_or_text};
use crate::task::transcript::{Exchange, Message};
use crate::task::{Failure, Json, Outcome, PoolName, Task};

/// The record without its credentials. With more named secrets than can be looked for, its metadata alone.
pub fn redact(record: Record) -> Redacted {
    let Record { task, outcome, transcript, pool } = record;
    let Some(mask) = Mask::new(&transcript.secrets) else {
        return metadata_only(task, outcome, pool, transcript.exchanges_left_out + transcript.exchanges.len() as u32);
    };
    let result = match outcome.result {
        Ok(output) => Ok(json(&mask, &output)),
        Err(failure) => Err(Failure { message: mask.text(&failure.message).into_owned(), ..failure }),
    };
    Redacted {
        task: Task { input: json(&mask, &task.input), ..task },
        outcome: Outcome { result, ..outcome },
        pool,
        exchanges: transcript.exchanges.into_iter().map(|it| exchange(&mask, it)).collect(),
        exchanges_left_out: transcript.exchanges_left_out,
        notes: transcript.notes.into_iter().map(|note| (note.at, mask.text(&note.text).into_owned())).collect(),
    }
}

fn metadata_only(task: Task, outcome: Outcome, pool: PoolName, exchanges_left_out: u32) -> Redacted {
    let withheld = |failure: Failure| Failure { message: PLACEHOLDER.to_owned(), ..failure };
    let result = outcome.result.map(|_| Json::null()).map_err(withheld);
    let (task, outcome) = (Task { input: Json::null(), ..task }, Outcome { result, ..outcome });
    Redacted { task, outcome, pool, exchanges: Vec::new(), exchanges_left_out, notes: Vec::new() }
}

fn json(mask: &Mask, json: &Json) -> Json {
    match mask.text(json.as_str()) {
        Cow::Borrowed(_) => json.clone(),
        Cow::Owned(text) => json_or_text(text),
    }
}

fn exchange(mask: &Mask, exchange: Exchange) -> RedactedExchange {
    let Exchange { started, request, method, url, response, error, phases } = exchange;
    RedactedExchange {
        started,
        method: mask.text(&method).into_owned(),
        url: mask.url(&url),
        request: message(mask, request),
        response: response.map(|response| (response.status, message(mask, response.message))),
        error: error.map(|error| mask.text(&error).into_owned()),
        phases,
    }
}

fn message(mask: &Mask, message: Message) -> RedactedMessage {
    let (recorded_bytes, whole_bytes) = (message.body.len() as u64, message.body_bytes);
    let body = body(mask, &message);
    let headers = message.headers.into_iter().map(|(name, value)| {
        let value = match name.as_str() {
            _ if !names::is_kept_header(&name) => PLACEHOLDER.to_owned(),
            _ if name.eq_ignore_ascii_case("location") => mask.url(&value),
            _ => mask.text(&value).into_owned(),
        };
        (mask.text(&name).into_owned(), value)
    });
    RedactedMessage { headers: headers.collect(), body, recorded_bytes, whole_bytes }
}

fn body(mask: &Mask, message: &Message) -> Body {
    let media_type = header(&message.headers, "content-type").unwrap_or_default().to_ascii_lowercase();
    if message.body.is_empty() {
        return Body::Text(String::new());
    }
    if header(&message.headers, "content-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Body::Withheld("it is compressed, so it could not be searched for credentials");
    }
    if media_type.starts_with("multipart/") {
        return Body::Withheld("it has several parts, so it could not be searched for credentials");
    }
    let text = String::from_utf8_lossy(&message.body);
    let declared_text = ["text", "json", "xml", "form", "javascript"].iter().any(|kind| media_type.contains(kind));
    if text.contains('\0') && declared_text {
        return Body::Withheld("its charset is not UTF-8, so it could not be searched for credentials");
    }
    if declared_text || is_text(&message.body) {
        let cut = message.body_bytes > message.body.len() as u64;
        let text = if cut { mask.without_cut_secret(&text) } else { &text };
        let form = media_type.contains("x-www-form-urlencoded");
        return Body::Text(if form { mask.form(text) } else { mask.text(text).into_owned() });
    }
    // The letters of UTF-16 are the letters of ASCII between zeros.
    match mask.text(&text.replace('\0', "")) {
        Cow::Borrowed(_) => Body::Binary(Bytes::clone(&message.body)),
        Cow::Owned(_) => Body::Withheld("it is binary and holds something like a credential"),
    }
}

/// UTF-8 without zeros, or as much of it as a cut in the middle of a character leaves.
fn is_text(body: &[u8]) -> bool {
    let utf8 = std::str::from_utf8(body).map_or_else(|error| error.error_len().is_none(), |_| true);
    utf8 && !body.contains(&0)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::encode::{Limits, decode, encode};
    use super::super::tests::{message as plain_message, record};
    use super::*;
    use crate::task::Remedy;
    use crate::task::transcript::{Note, Response};

    /// Encodes the record with secrets planted and proves that none of them is left.
    fn stored(record: Record) -> String {
        let encoded = encode(&redact(record), 1).expect("encodes");
        let json = decode(&encoded.body, Limits::default()).expect("decodes");
        assert!(!json.contains("CANARY"), "{json}");
        json
    }

    #[test]
    fn a_canary_in_any_place_does_not_come_through() {
        let mut record = record("t-1");
        let secret = "CANARY-named";
        record.transcript.secrets.push(secret.to_owned());
        record.task.input =
            Json::parse(format!(r#"{{"password":"CANARY","list":["{secret}"],"account":7}}"#)).expect("JSON");
        record.outcome.result =
            Ok(Json::parse(r#"{"access_token":"CANARY","n":12345678901234567890.5}"#.into()).expect("JSON"));
        record
            .transcript
            .notes
            .push(Note { at: SystemTime::UNIX_EPOCH, text: format!("api_key=CANARY then {secret}") });
        let exchange = &mut record.transcript.exchanges[0];
        exchange.url = format!("https://u:CANARY@bank/{secret}/x?token=CANARY&page=2#access_token=CANARY");
        exchange.error = Some(format!("could not send {secret}"));
        exchange.request = plain_message(
            "application/x-www-form-urlencoded",
            b"grant_type=x&client_secret=CANARY&refresh_token=CANARY",
        );
        for name in ["Authorization", "cookie", "X-Api-Key", "x-unheard-of"] {
            exchange.request.headers.push((name.into(), "CANARY".into()));
        }
        let mut answer = plain_message(
            "application/json",
            br#"{"id_token":"CANARY","deep":"{\"secret\":\"CANARY\"}","balance":42}"#,
        );
        answer.headers.push(("Set-Cookie".into(), "sid=CANARY".into()));
        answer.headers.push(("Location".into(), "https://bank/?code_verifier=CANARY".into()));
        exchange.response = Some(Response { status: 200, message: answer });

        let json = stored(record);
        for kept in
            [r#""account":7"#, "12345678901234567890.5", "page=2", "grant_type=x", r#"\"balance\":42"#, "x-unheard-of"]
        {
            assert!(json.contains(kept), "{kept} is missing in {json}");
        }
    }

    #[test]
    fn a_failures_message_is_redacted() {
        let mut record = record("t-1");
        let message = "refused: token=CANARY".to_owned();
        record.outcome.result = Err(Failure::new(crate::task::FailureCode::Integration, message, Remedy::Retry));
        assert!(stored(record).contains(r#""message":"refused: token=[redacted]""#));
    }

    #[test]
    fn a_body_that_cannot_be_searched_is_withheld() {
        let mask = Mask::new(&["CANARY".to_owned()]).expect("one secret");
        let utf16: Vec<u8> = "{\"a\":\"CANARY\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut compressed = plain_message("application/json", b"whatever");
        compressed.headers.push(("Content-Encoding".into(), "gzip".into()));
        for withheld in [
            compressed,
            plain_message("multipart/form-data; boundary=x", b"name=\"password\"\r\n\r\nCANARY"),
            plain_message("text/plain; charset=utf-16", &utf16),
            plain_message("application/octet-stream", &utf16),
            plain_message("application/pdf", b"\xff\xfeCANARY"),
        ] {
            assert!(matches!(body(&mask, &withheld), Body::Withheld(_)));
        }
        let picture = plain_message("image/png", b"\x89PNG\xff");
        assert_eq!(body(&mask, &picture), Body::Binary(Bytes::from_static(b"\x89PNG\xff")));
        let cut = plain_message("", "{\"name\":\"é".as_bytes().split_last().expect("bytes").1);
        assert_eq!(body(&mask, &cut), Body::Text("{\"name\":\"\u{fffd}".into()));
    }

    #[test]
    fn with_too_many_secrets_only_metadata_is_kept() {
        let mut record = record("t-1");
        record.transcript.secrets = (0..1000).map(|n| format!("CANARY-{n}")).collect();
        record.task.input = Json::of(&"CANARY-7").expect("JSON");
        let json = stored(record);
        assert!(json.contains(r#""entries":[],"_exchangesLeftOut":1"#), "{json}");
    }
}
