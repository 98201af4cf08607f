//! The lines between weir and a program: JSON in UTF-8, one message a line, version 1. docs/exec.md is the reference.
//!
//! Inputs and outputs stay texts, digit for digit. What is wrong with a line is said without quoting it: it may hold
//! personal data. Types and fields that are unknown are passed over, so that a newer program can say more.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::integration::Error;
use crate::task::transcript::{Exchange, Message as HttpMessage, Phases, Response};
use crate::task::{Json, Priority, Remedy, RunId, Task};

/// The version that this is.
pub(super) const VERSION: u32 = 1;

/// Times beyond the year 9999 are cut to it.
const LATEST_MS: u64 = 253_402_300_799_000;

// ── weir to the program

/// Why a run is to stop.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reason {
    Deadline,
    Cancelled,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum ToProgram<'a> {
    Task { run: String, task: TaskFields<'a>, timeout_ms: u64 },
    Cancel { run: String, reason: Reason },
}

#[derive(Serialize)]
struct TaskFields<'a> {
    id: &'a str,
    integration: &'a str,
    tenant: &'a str,
    priority: Priority,
    input: &'a Json,
}

/// The line that starts a run.
pub(super) fn task(run: RunId, task: &Task, remaining: Duration) -> Result<Vec<u8>, serde_json::Error> {
    let fields = TaskFields {
        id: task.id.as_str(),
        integration: task.integration.as_str(),
        tenant: task.tenant.as_str(),
        priority: task.priority,
        input: &task.input,
    };
    let timeout_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
    line(&ToProgram::Task { run: run.to_string(), task: fields, timeout_ms })
}

/// The line that tells a run to stop.
pub(super) fn cancel(run: RunId, reason: Reason) -> Result<Vec<u8>, serde_json::Error> {
    line(&ToProgram::Cancel { run: run.to_string(), reason })
}

fn line(message: &ToProgram<'_>) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(message)?;
    // An input's own line breaks can only stand between its tokens: within a JSON string they are escaped.
    line.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    line.push(b'\n');
    Ok(line)
}

// ── the program to weir

/// What a program says.
pub(super) enum Message {
    Ready {
        protocol: u32,
        concurrency: usize,
    },
    Outcome {
        run: RunId,
        result: Result<Json, Error>,
    },
    Note {
        run: RunId,
        text: String,
    },
    Secret {
        run: RunId,
        value: String,
    },
    Exchange {
        run: RunId,
        exchange: Result<Box<Exchange>, String>,
    },
    /// Of a type that this version does not know.
    Unknown,
}

/// All fields of all types: one pass reads a line, and a raw output is not copied on the way.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    run: Option<Cow<'a, str>>,
    protocol: Option<u32>,
    concurrency: Option<usize>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    error: Option<ErrorFields>,
    text: Option<String>,
    value: Option<String>,
    exchange: Option<ExchangeFields>,
}

#[derive(Deserialize)]
struct ErrorFields {
    message: String,
    remedy: Option<String>,
    reason: Option<String>,
}

#[derive(Deserialize)]
struct ExchangeFields {
    method: String,
    url: String,
    started_ms: Option<u64>,
    #[serde(default)]
    request: MessageFields,
    response: Option<ResponseFields>,
    error: Option<String>,
    #[serde(default)]
    timings: Timings,
}

#[derive(Deserialize, Default)]
struct MessageFields {
    #[serde(default)]
    headers: Vec<(String, String)>,
    body: Option<String>,
    #[serde(default)]
    base64: bool,
    body_bytes: Option<u64>,
}

#[derive(Deserialize)]
struct ResponseFields {
    status: u16,
    #[serde(flatten)]
    message: MessageFields,
}

#[derive(Deserialize, Default)]
struct Timings {
    #[serde(default)]
    blocked_ms: f64,
    #[serde(default)]
    waiting_ms: f64,
    #[serde(default)]
    receiving_ms: f64,
}

/// Reads one line. What is wrong with it is said without its content.
pub(super) fn parse(line: &[u8]) -> Result<Message, String> {
    let fields: Fields<'_> = serde_json::from_slice(line).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => format!("a field does not fit its type, at byte {}", error.column()),
        _ => format!("it is not a JSON object, at byte {}", error.column()),
    })?;
    let kind = fields.kind.clone();
    let missing = |field: &str| format!("a message of type {kind:?} has no {field}");
    Ok(match &*fields.kind {
        "ready" => Message::Ready {
            protocol: fields.protocol.ok_or_else(|| missing("protocol"))?,
            concurrency: fields.concurrency.unwrap_or(1),
        },
        "outcome" => {
            let run = run_of(&fields)?;
            let result = match (fields.error, fields.output) {
                (Some(error), _) => Err(error.read()),
                (None, Some(output)) => Ok(Json::of(&output).map_err(|_| "its output is not JSON")?),
                (None, None) => Ok(Json::null()),
            };
            Message::Outcome { run, result }
        }
        "note" => Message::Note { run: run_of(&fields)?, text: fields.text.ok_or_else(|| missing("text"))? },
        "secret" => Message::Secret { run: run_of(&fields)?, value: fields.value.ok_or_else(|| missing("value"))? },
        "exchange" => {
            let run = run_of(&fields)?;
            Message::Exchange { run, exchange: fields.exchange.ok_or_else(|| missing("exchange"))?.read() }
        }
        _ => Message::Unknown,
    })
}

fn run_of(fields: &Fields<'_>) -> Result<RunId, String> {
    let run = fields.run.as_deref().ok_or_else(|| format!("a message of type {:?} has no run", fields.kind))?;
    Uuid::parse_str(run)
        .map(RunId)
        .map_err(|_| format!("a message of type {:?} has a run that is no UUID", fields.kind))
}

impl ErrorFields {
    fn read(self) -> Error {
        let remedy = match self.remedy.as_deref() {
            None | Some("none") => Remedy::None,
            Some("retry") => Remedy::Retry,
            Some("user_action") => Remedy::UserAction,
            Some(_) => {
                let says = "(its remedy is unknown: the program must use none, retry or user_action)";
                return Error::permanent(format!("{} {says}", self.message));
            }
        };
        // A word of another form is left out: it is for programs, and they could not have it as a label.
        Error { message: self.message, remedy, reason: self.reason.and_then(|reason| reason.parse().ok()) }
    }
}

impl ExchangeFields {
    fn read(self) -> Result<Box<Exchange>, String> {
        let response = match self.response {
            Some(ResponseFields { status, message }) => Some(Response { status, message: message.read()? }),
            None => None,
        };
        let started = self.started_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms.min(LATEST_MS)));
        let time = |ms: f64| Duration::try_from_secs_f64(ms / 1_000.0).unwrap_or_default();
        Ok(Box::new(Exchange {
            started: started.unwrap_or_else(SystemTime::now),
            request: self.request.read()?,
            method: self.method,
            url: self.url,
            response,
            error: self.error,
            phases: Phases {
                blocked: time(self.timings.blocked_ms),
                waiting: time(self.timings.waiting_ms),
                receiving: time(self.timings.receiving_ms),
            },
        }))
    }
}

impl MessageFields {
    fn read(self) -> Result<HttpMessage, String> {
        let text = self.body.unwrap_or_default();
        let body = match self.base64 {
            true => BASE64_STANDARD.decode(text).map_err(|_| "a body of an exchange is not base64")?,
            false => text.into_bytes(),
        };
        let body_bytes = self.body_bytes.unwrap_or_default().max(body.len() as u64);
        Ok(HttpMessage { headers: self.headers, body: Bytes::from(body), body_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integration::testing;

    const RUN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn run() -> RunId {
        RunId(Uuid::parse_str(RUN).expect("a UUID"))
    }

    #[test]
    fn a_task_is_one_line_whose_input_is_as_it_was() {
        let input = "{\"n\": 12345678901234567890.5,\r\n \"s\": \"a\\nb\"}";
        let line = task(run(), &testing::task(input), Duration::from_millis(1_500)).expect("a line");
        let line = String::from_utf8(line).expect("UTF-8");
        assert_eq!(
            line,
            format!(
                r#"{{"type":"task","run":"{RUN}","task":{{"id":"task-1","integration":"bank","tenant":"default","priority":"interactive","input":{{"n": 12345678901234567890.5,   "s": "a\nb"}}}},"timeout_ms":1500}}{}"#,
                "\n"
            )
        );
        let line = String::from_utf8(cancel(run(), Reason::Deadline).expect("a line")).expect("UTF-8");
        assert_eq!(line, format!("{{\"type\":\"cancel\",\"run\":\"{RUN}\",\"reason\":\"deadline\"}}\n"));
    }

    fn outcome(rest: &str) -> Result<Json, Error> {
        match parse(format!(r#"{{"type":"outcome","run":"{RUN}"{rest}}}"#).as_bytes()) {
            Ok(Message::Outcome { result, .. }) => result,
            _ => panic!("{rest} is no outcome"),
        }
    }

    #[test]
    fn an_outcome_is_an_output_as_it_was_or_an_error_with_its_remedy() {
        let output = outcome(r#","output":{"a": 1.10, "a": 2},"new":[1]"#).expect("an output");
        assert_eq!(output.as_str(), r#"{"a": 1.10, "a": 2}"#);
        assert_eq!(outcome("").expect("null").as_str(), "null");
        let error = outcome(r#","error":{"message":"m","remedy":"user_action","reason":"consent_expired"}"#);
        let error = error.expect_err("an error");
        assert_eq!((error.remedy, error.reason.expect("one").as_str()), (Remedy::UserAction, "consent_expired"));
        let error = outcome(r#","error":{"message":"m","reason":"No Word"}"#).expect_err("an error");
        assert_eq!((error.remedy, error.reason), (Remedy::None, None));
        let error = outcome(r#","error":{"message":"m","remedy":"pray"}"#).expect_err("an error");
        assert!(error.message.contains("its remedy is unknown"), "{error}");
    }

    #[test]
    fn an_exchange_becomes_one_of_the_transcript() {
        let line = format!(
            r#"{{"type":"exchange","run":"{RUN}","exchange":{{"method":"POST","url":"http://b/","started_ms":1000,
            "request":{{"headers":[["a","b"]],"body":"ü"}},"timings":{{"waiting_ms":1.5,"blocked_ms":-1}},
            "response":{{"status":200,"body":"AAE=","base64":true,"body_bytes":10}}}}}}"#
        );
        let Ok(Message::Exchange { exchange: Ok(exchange), .. }) = parse(line.as_bytes()) else { panic!("one") };
        assert_eq!((exchange.started, exchange.request.body_bytes), (UNIX_EPOCH + Duration::from_secs(1), 2));
        let response = exchange.response.expect("one");
        assert_eq!((response.status, &response.message.body[..], response.message.body_bytes), (200, &[0, 1][..], 10));
        assert_eq!((exchange.phases.waiting, exchange.phases.blocked), (Duration::from_micros(1_500), Duration::ZERO));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_line() {
        for (line, says) in [
            ("CANARY", "not a JSON object, at byte 1"),
            ("[\"CANARY\"]", "does not fit its type"),
            ("", "not a JSON object"),
            (r#"{"type":"note","run":"CANARY","text":"t"}"#, "a run that is no UUID"),
            (r#"{"type":"note","text":"CANARY"}"#, "has no run"),
            (r#"{"type":"outcome","run":"CANARY","error":"CANARY"}"#, "does not fit its type"),
            (&format!(r#"{{"type":"note","run":"{RUN}","text":{{"CANARY":1}}}}"#), "does not fit its type"),
        ] {
            let problem = parse(line.as_bytes()).err().unwrap_or_else(|| panic!("{line} is wrong"));
            assert!(problem.contains(says) && !problem.contains("CANARY"), "{line}: {problem}");
        }
        assert!(matches!(parse(br#"{"type":"of_tomorrow","x":1}"#), Ok(Message::Unknown)));
    }
}
