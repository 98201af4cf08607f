//! A stored payload read back: task, outcome and transcript as they were kept, placeholders and gaps included.
//!
//! The reading side of `har.rs`. What a person edited out of the document has a default where one makes sense.

use std::time::{Duration, SystemTime};

use base64::engine::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::decode::{DecodeError, Limits, decode};
use super::har::{Document, Entry};
use super::record::{Redacted, RedactedExchange};
use super::redact::placeholders;
use crate::task::transcript::{Exchange, Fault, Message, Phases, Response};
use crate::task::{
    Failure, FailureCode, FailureReason, IntegrationName, Json, Outcome, PoolName, Priority, Remedy, RunId, Task,
    TaskId, Tenant, Timings, WorkerId,
};

/// One run of a task, as its payload tells it.
pub struct Recorded {
    /// What was asked. Its deadline is not kept: it is the moment of reading.
    pub task: Task,
    /// What came of it.
    pub outcome: Outcome,
    /// The pool of the worker that ran it.
    pub pool: PoolName,
    /// What was said to the outside, in the order in which it began.
    pub exchanges: Vec<RecordedExchange>,
    /// Exchanges that the transcript had no room for.
    pub exchanges_left_out: u32,
    /// Why there is nothing but metadata, where that is so.
    pub withheld: Option<String>,
}

/// One exchange, as a payload tells it. A body that was cut has `body_bytes` beyond its length.
pub struct RecordedExchange {
    /// What was said.
    pub exchange: Exchange,
    /// Why the request's body is not there, where it was withheld.
    pub request_withheld: Option<String>,
    /// Why the answer's body is not there, where it was withheld.
    pub response_withheld: Option<String>,
}

impl Recorded {
    /// Reads a payload in its stored form.
    pub fn read(stored: &[u8], limits: Limits) -> Result<Self, DecodeError> {
        Recorded::parse(&decode(stored, limits)?).map_err(DecodeError::Json)
    }

    /// What a payload of this record would tell.
    pub fn of(redacted: &Redacted) -> Result<Self, serde_json::Error> {
        Recorded::parse(&serde_json::to_string(&Document::of(redacted))?)
    }

    /// Reads the JSON document of a payload.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        let DocumentPart { task, outcome, redaction, transcript } = serde_json::from_str(json)?;
        let pool = outcome.pool;
        let outcome = Outcome {
            task: task.id.clone(),
            run: RunId(outcome.run_id.parse().map_err(|error| {
                let id = &outcome.run_id;
                serde_json::Error::custom(format!("outcome.run_id: {id:?} is no UUID, as each run has one: {error}"))
            })?),
            result: match outcome.result {
                ResultPart::Ok(output) => Ok(output.0),
                ResultPart::Failure { code, message, remedy, reason } => {
                    let code = FailureCode::ALL.into_iter().find(|known| known.as_str() == code);
                    let code = code.ok_or_else(|| serde_json::Error::custom("outcome.result: the code is unknown"))?;
                    Err(Failure { code, message, remedy, reason })
                }
            },
            worker: outcome.worker,
            attempt: outcome.attempt,
            timings: Timings { queued: seconds(outcome.queued_seconds), ran: seconds(outcome.ran_seconds) },
        };
        Ok(Recorded {
            task: Task {
                id: task.id,
                integration: task.integration,
                tenant: task.tenant,
                priority: task.priority,
                input: task.input.0,
                deadline: Instant::now(),
            },
            outcome,
            pool,
            exchanges: transcript.log.entries.into_iter().map(EntryPart::read).collect::<Result<_, _>>()?,
            exchanges_left_out: transcript.log.exchanges_left_out,
            withheld: redaction,
        })
    }

    /// The largest number of a placeholder in what a run was given or told: what is numbered later begins after it.
    pub fn last_placeholder(&self) -> u32 {
        let bodies = self.exchanges.iter().flat_map(|recorded| {
            let Exchange { url, request, response, .. } = &recorded.exchange;
            let heads = response.iter().flat_map(|it| it.message.headers.iter().map(|(_, value)| value.as_str()));
            let text = |body: &Bytes| last_in(&String::from_utf8_lossy(body));
            let body = response.as_ref().map_or(0, |response| text(&response.message.body));
            let asked = request.headers.iter().map(|(_, value)| value.as_str()).chain([url.as_str()]).chain(heads);
            asked.map(last_in).chain([body, text(&request.body)]).collect::<Vec<_>>()
        });
        let result = match &self.outcome.result {
            Ok(output) => output.as_str(),
            Err(failure) => &failure.message,
        };
        let texts = [self.task.input.as_str(), result].map(last_in);
        bodies.chain(texts).max().unwrap_or(0)
    }
}

impl RecordedExchange {
    /// What a payload would tell of this exchange.
    pub(super) fn of(redacted: &RedactedExchange) -> Result<Self, serde_json::Error> {
        let entry: EntryPart = serde_json::from_str(&serde_json::to_string(&Entry::of(redacted))?)?;
        entry.read()
    }
}

#[derive(Deserialize)]
struct DocumentPart {
    task: TaskPart,
    outcome: OutcomePart,
    #[serde(rename = "_redaction")]
    redaction: Option<String>,
    transcript: TranscriptPart,
}

#[derive(Deserialize)]
struct TaskPart {
    id: TaskId,
    integration: IntegrationName,
    #[serde(default)]
    tenant: Tenant,
    priority: Priority,
    input: Raw,
}

#[derive(Deserialize)]
struct OutcomePart {
    run_id: String,
    result: ResultPart,
    worker: WorkerId,
    #[serde(default)]
    pool: PoolName,
    attempt: u32,
    #[serde(default)]
    queued_seconds: f64,
    #[serde(default)]
    ran_seconds: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ResultPart {
    Ok(Raw),
    Failure { code: String, message: String, remedy: Remedy, reason: Option<FailureReason> },
}

#[derive(Deserialize)]
struct TranscriptPart {
    log: LogPart,
}

#[derive(Deserialize)]
struct LogPart {
    #[serde(default)]
    entries: Vec<EntryPart>,
    #[serde(default, rename = "_exchangesLeftOut")]
    exchanges_left_out: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryPart {
    #[serde(default)]
    started_date_time: String,
    request: RequestPart,
    response: ResponsePart,
    #[serde(default)]
    timings: TimingsPart,
    #[serde(rename = "_error")]
    error: Option<String>,
    #[serde(rename = "_fault")]
    fault: Option<Fault>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestPart {
    method: String,
    url: String,
    #[serde(default)]
    headers: Vec<PairPart>,
    post_data: Option<BodyPart>,
}

#[derive(Deserialize)]
struct ResponsePart {
    status: u16,
    #[serde(default)]
    headers: Vec<PairPart>,
    #[serde(default)]
    content: BodyPart,
}

#[derive(Deserialize)]
struct PairPart {
    name: String,
    value: String,
}

/// Of a request, where HAR has no encoding, or of a response.
#[derive(Deserialize, Default)]
struct BodyPart {
    text: Option<String>,
    encoding: Option<String>,
    #[serde(rename = "_encoding")]
    own_encoding: Option<String>,
    comment: Option<String>,
    #[serde(rename = "_truncatedFrom")]
    truncated_from: Option<u64>,
}

#[derive(Deserialize, Default)]
struct TimingsPart {
    #[serde(default)]
    blocked: f64,
    #[serde(default)]
    wait: f64,
    #[serde(default)]
    receive: f64,
}

/// JSON as it is written.
struct Raw(Json);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Json::parse(raw.get().to_owned()).map(Raw).map_err(D::Error::custom)
    }
}

impl EntryPart {
    fn read(self) -> Result<RecordedExchange, serde_json::Error> {
        let (request, request_withheld) = message(self.request.headers, self.request.post_data.unwrap_or_default())?;
        let (answer, response_withheld) = message(self.response.headers, self.response.content)?;
        let status = self.response.status;
        let exchange = Exchange {
            started: self.started_date_time.parse::<Timestamp>().map_or(SystemTime::UNIX_EPOCH, SystemTime::from),
            method: self.request.method,
            url: self.request.url,
            request,
            // HAR has 0 for no answer.
            response: (status != 0).then_some(Response { status, message: answer }),
            error: self.error,
            fault: self.fault,
            phases: Phases {
                blocked: seconds(self.timings.blocked / 1e3),
                waiting: seconds(self.timings.wait / 1e3),
                receiving: seconds(self.timings.receive / 1e3),
            },
        };
        Ok(RecordedExchange { exchange, request_withheld, response_withheld })
    }
}

/// Headers and body, and why that was withheld, if it was.
fn message(headers: Vec<PairPart>, part: BodyPart) -> Result<(Message, Option<String>), serde_json::Error> {
    let BodyPart { text, encoding, own_encoding, comment, truncated_from } = part;
    let withheld = comment.and_then(|comment| comment.strip_prefix(super::har::LEFT_OUT).map(str::to_owned));
    let text = text.unwrap_or_default();
    let body: Bytes = match encoding.or(own_encoding).as_deref() {
        None => text.into(),
        Some("base64") => STANDARD.decode(text).map_err(serde_json::Error::custom)?.into(),
        Some(other) => return Err(serde_json::Error::custom(format!("a body's encoding is {other:?}, not base64"))),
    };
    // A text without its secrets may be longer than the whole body was.
    let body_bytes = truncated_from.map_or(body.len() as u64, |whole| whole.max(body.len() as u64 + 1));
    let headers = headers.into_iter().map(|pair| (pair.name, pair.value)).collect();
    Ok((Message { headers, body, body_bytes }, withheld))
}

/// The largest number of a placeholder in a text.
fn last_in(text: &str) -> u32 {
    placeholders(text).map(|it| it.number).max().unwrap_or(0)
}

/// A negative number is HAR's word for what is not known.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::redact::redact;
    use super::super::tests::{message, record};
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut record = record("t-1");
        let exchange = &mut record.transcript.exchanges[0];
        (exchange.error, exchange.fault) = (Some("it broke".into()), Some(Fault::Broken));
        let mut body = message("image/png", b"\x89PNG\xff");
        body.body_bytes = 1000;
        exchange.response.as_mut().expect("an answer").message = body;
        let (task, run, url) = (record.task.clone(), record.outcome.run, exchange.url.clone());
        let recorded = Recorded::of(&redact(record)).expect("it is read");
        assert_eq!((&recorded.task.id, recorded.outcome.run), (&task.id, run));
        assert_eq!(recorded.task.input.as_str(), task.input.as_str());
        let RecordedExchange { exchange, request_withheld, response_withheld } = &recorded.exchanges[0];
        assert_eq!((&exchange.url, request_withheld, response_withheld), (&url, &None, &None));
        assert_eq!((exchange.error.as_deref(), exchange.fault), (Some("it broke"), Some(Fault::Broken)));
        let answer = &exchange.response.as_ref().expect("an answer").message;
        assert_eq!((&answer.body[..], answer.body_bytes), (&b"\x89PNG\xff"[..], 1000));
        assert_eq!(exchange.phases.waiting, Duration::from_millis(100));
    }

    #[test]
    fn a_run_that_is_none_is_named() {
        let json = serde_json::to_string(&Document::of(&redact(record("t-1")))).expect("JSON");
        let run = Recorded::parse(&json).expect("it is read").outcome.run.to_string();
        let error = Recorded::parse(&json.replace(&run, "zzz")).err().expect("no run").to_string();
        assert!(error.starts_with("outcome.run_id: \"zzz\" is no UUID, as each run has one: invalid "), "{error}");
    }

    #[test]
    fn what_was_withheld_says_why_and_no_answer_is_none() {
        let mut one = record("t-1");
        let mut body = message("application/json", b"\x1f\x8b");
        body.headers.push(("content-encoding".into(), "gzip".into()));
        one.transcript.exchanges[0].response.as_mut().expect("an answer").message = body;
        let recorded = Recorded::of(&redact(one)).expect("it is read");
        let withheld = recorded.exchanges[0].response_withheld.as_deref();
        assert!(withheld.is_some_and(|why| why.starts_with("it is compressed")), "{withheld:?}");
        let mut other = record("t-2");
        other.transcript.exchanges[0].response = None;
        let recorded = Recorded::of(&redact(other)).expect("it is read");
        assert!(recorded.exchanges[0].exchange.response.is_none());
    }

    #[test]
    fn the_largest_placeholder_is_found_wherever_it_stands() {
        let mut one = record("t-1");
        one.task.input = Json::parse(r#"{"a":"[card-3]","b":"[x-9]"}"#.into()).expect("JSON");
        assert_eq!(Recorded::of(&redact(one)).expect("it is read").last_placeholder(), 3);
        let mut other = record("t-2");
        other.transcript.exchanges[0].response.as_mut().expect("an answer").message =
            message("text/plain", b"a [redacted-12], [iban-7");
        assert_eq!(Recorded::of(&redact(other)).expect("it is read").last_placeholder(), 12);
    }
}
