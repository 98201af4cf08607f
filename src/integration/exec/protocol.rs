//! The lines between weir and a program: JSON in UTF-8, one message a line, version 1. docs/exec.md is the reference.
//!
//! Inputs and outputs stay texts, digit for digit. What is wrong with a line is said without quoting it: it may hold
//! personal data. Types and fields that are unknown are passed over, so that a newer program can say more.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::cause::reason;
use super::exchange::{self, Text, read};
use crate::integration::Error;
use crate::task::transcript::Exchange;
use crate::task::{Json, Priority, Remedy, RunId, Task};

/// The version that this is.
pub(super) const VERSION: u32 = 1;

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
        exchange: Box<Exchange>,
    },
    /// About a run, and of a known type, but a field does not fit: it costs that run this message, and nobody else
    /// anything. An outcome of this kind is one with an error.
    Unfit {
        run: RunId,
        problem: String,
    },
    /// Of a type that this version does not know.
    Unknown,
}

/// All fields of all types, as they are written: one pass reads a line, and a field that does not fit spoils no other.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    run: Option<&'a RawValue>,
    #[serde(borrow)]
    protocol: Option<&'a RawValue>,
    #[serde(borrow)]
    concurrency: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    exchange: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ErrorFields {
    message: Text,
    remedy: Option<Text>,
    reason: Option<serde_json::Value>,
}

/// Reads one line. What is wrong with it is said without its content; an error here is the whole process's.
pub(super) fn parse(line: &[u8]) -> Result<Message, String> {
    let fields: Fields<'_> = serde_json::from_slice(line).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => "it has no type, or is not a JSON object".to_owned(),
        _ => format!("it is not a JSON object, at byte {}", error.column()),
    })?;
    match &*fields.kind {
        "ready" => Ok(Message::Ready {
            protocol: read("protocol", fields.protocol)?,
            concurrency: fields.concurrency.map_or(Ok(1), |raw| read("concurrency", Some(raw)))?,
        }),
        "outcome" => {
            let run = fields.run_id()?;
            Ok(Message::Outcome { run, result: fields.outcome() })
        }
        "note" | "secret" | "exchange" => {
            let run = fields.run_id()?;
            Ok(fields.about(run).unwrap_or_else(|problem| Message::Unfit { run, problem }))
        }
        _ => Ok(Message::Unknown),
    }
}

impl Fields<'_> {
    fn run_id(&self) -> Result<RunId, String> {
        let raw = self.run.ok_or_else(|| format!("a message of type {:?} has no run", self.kind))?;
        let run = serde_json::from_str::<Cow<'_, str>>(raw.get()).ok().and_then(|run| Uuid::parse_str(&run).ok());
        run.map(RunId).ok_or_else(|| format!("a message of type {:?} has a run that is no UUID", self.kind))
    }

    fn outcome(&self) -> Result<Json, Error> {
        let unfit = |problem: String| {
            Error::permanent(format!("the program's outcome cannot be used: {problem}")).because(reason("bad_output"))
        };
        match (self.error, self.output) {
            (Some(error), _) => Err(read::<ErrorFields>("error", Some(error)).map_or_else(unfit, ErrorFields::read)),
            (None, Some(output)) => Json::of(&output).map_err(|_| unfit("the field output is not JSON".into())),
            (None, None) => Ok(Json::null()),
        }
    }

    fn about(&self, run: RunId) -> Result<Message, String> {
        Ok(match &*self.kind {
            "note" => Message::Note { run, text: read::<Text>("text", self.text)?.0 },
            "secret" => Message::Secret { run, value: read::<Text>("value", self.value)?.0 },
            _ => Message::Exchange { run, exchange: read::<exchange::Fields>("exchange", self.exchange)?.read()? },
        })
    }
}

impl ErrorFields {
    fn read(self) -> Error {
        let message = self.message.0;
        let remedy = match self.remedy.as_ref().map(|remedy| &*remedy.0) {
            None | Some("none") => Remedy::None,
            Some("retry") => Remedy::Retry,
            Some("user_action") => Remedy::UserAction,
            Some(_) => {
                let says = "(its remedy is unknown: the program must use none, retry or user_action)";
                return Error::permanent(format!("{message} {says}"));
            }
        };
        // A word of another form is left out: it is for programs, and they could not have it as a label.
        let reason = self.reason.as_ref().and_then(|reason| reason.as_str()?.parse().ok());
        Error { message, remedy, reason }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

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
        let Ok(Message::Exchange { exchange, .. }) = parse(line.as_bytes()) else { panic!("one") };
        assert_eq!((exchange.started, exchange.request.body_bytes), (UNIX_EPOCH + Duration::from_secs(1), 2));
        let response = exchange.response.expect("one");
        assert_eq!((response.status, &response.message.body[..], response.message.body_bytes), (200, &[0, 1][..], 10));
        assert_eq!((exchange.phases.waiting, exchange.phases.blocked), (Duration::from_micros(1_500), Duration::ZERO));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_line() {
        for (line, says) in [
            ("CANARY", "not a JSON object, at byte 1"),
            ("[\"CANARY\"]", "it has no type, or is not a JSON object"),
            ("", "not a JSON object"),
            (r#"{"type":"note","run":"CANARY","text":"t"}"#, "a run that is no UUID"),
            (r#"{"type":"note","run":5,"text":"CANARY"}"#, "a run that is no UUID"),
            (r#"{"type":"note","text":"CANARY"}"#, "has no run"),
            (r#"{"type":"ready","protocol":"CANARY"}"#, "the field protocol does not fit its type"),
        ] {
            let problem = parse(line.as_bytes()).err().unwrap_or_else(|| panic!("{line} is wrong"));
            assert!(problem.contains(says) && !problem.contains("CANARY"), "{line}: {problem}");
        }
        assert!(matches!(parse(br#"{"type":"of_tomorrow","x":1,"text":5}"#), Ok(Message::Unknown)));
    }

    #[test]
    fn a_field_that_does_not_fit_is_named_and_costs_its_message_alone() {
        let good = r#""method":"GET","url":"http://b/""#;
        for (rest, says) in [
            (r#""note","text":{"CANARY":1}"#.to_owned(), "the field text does not fit its type"),
            (r#""note""#.to_owned(), "the field text is missing"),
            (r#""secret","value":5"#.to_owned(), "the field value does not fit its type"),
            (r#""exchange","exchange":"CANARY""#.to_owned(), "the field exchange does not fit its type"),
            (r#""exchange","exchange":{"method":"GET"}"#.to_owned(), "the field exchange.url is missing"),
            (format!(r#""exchange","exchange":{{{good},"started_ms":1.5}}"#), "the field exchange.started_ms does not"),
            (format!(r#""exchange","exchange":{{{good},"started_ms":-1}}"#), "the field exchange.started_ms does not"),
            (
                format!(r#""exchange","exchange":{{{good},"response":{{"status":"CANARY"}}}}"#),
                "the field exchange.response.status does not fit",
            ),
            (
                format!(r#""exchange","exchange":{{{good},"response":{{"status":99999}}}}"#),
                "the field exchange.response.status does not fit",
            ),
            (format!(r#""exchange","exchange":{{{good},"response":{{}}}}"#), "exchange.response.status is missing"),
            (
                format!(r#""exchange","exchange":{{{good},"request":{{"body":"CANARY!","base64":true}}}}"#),
                "the field exchange.request.body is not base64",
            ),
        ] {
            let line = format!(r#"{{"type":{rest},"run":"{RUN}"}}"#);
            let Ok(Message::Unfit { problem, .. }) = parse(line.as_bytes()) else { panic!("{line} does not fit") };
            assert!(problem.contains(says) && !problem.contains("CANARY"), "{line}: {problem}");
        }
        for (rest, says) in [
            (r#""CANARY""#, "the field error does not fit its type"),
            (r#"{"remedy":"retry"}"#, "the field error.message is missing"),
            (r#"{"message":{"CANARY":1}}"#, "the field error.message does not fit its type"),
            (r#"{"message":"m","remedy":429}"#, "the field error.remedy does not fit its type"),
        ] {
            let error = outcome(&format!(r#","error":{rest}"#)).expect_err(rest);
            assert_eq!((error.remedy, error.reason.as_ref().expect("one").as_str()), (Remedy::None, "bad_output"));
            assert!(error.message.contains(says) && !error.message.contains("CANARY"), "{error}");
        }
        let error = outcome(r#","error":{"message":"m","remedy":"retry","reason":429}"#).expect_err("an error");
        assert_eq!((&*error.message, error.remedy, error.reason), ("m", Remedy::Retry, None));
    }

    #[test]
    fn half_a_character_is_replaced_in_a_text_and_stays_as_it_is_in_an_output() {
        let line = format!(r#"{{"type":"note","run":"{RUN}","text":"a\ud83d b\ud83d\ude00"}}"#);
        let Ok(Message::Note { text, .. }) = parse(line.as_bytes()) else { panic!("a note") };
        assert_eq!(text.replace('\u{fffd}', ""), "a b😀");
        let error = outcome(r#","error":{"message":"a\udc00"}"#).expect_err("an error");
        assert_eq!(error.message.replace('\u{fffd}', ""), "a");
        let output = outcome(r#","output":["\ud83d"]"#).expect("an output");
        assert_eq!(output.as_str(), r#"["\ud83d"]"#);
    }
}
