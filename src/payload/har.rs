//! The JSON document of a payload; the transcript in it is HAR 1.2, so that any HAR viewer opens it.
//!
//! Fields that HAR has no place for start with an underscore, as its specification asks. What the transcript does not
//! know is `-1`, `unknown` or empty, as it says too. Format: <http://www.softwareishard.com/blog/har-12-spec/>.

use std::time::{Duration, SystemTime};

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use url::form_urlencoded;

use super::record::{Body, Redacted, RedactedAttachment, RedactedExchange, RedactedMessage, SCHEMA, header};
use crate::task::transcript::Fault;
use crate::task::{FailureReason, Json, Priority, Remedy};

/// What the comment on a body that was withheld begins with.
pub(super) const LEFT_OUT: &str = "left out: ";

/// The whole document, borrowing from the redacted record.
#[derive(Serialize)]
pub(super) struct Document<'r> {
    schema: &'static str,
    task: TaskPart<'r>,
    outcome: OutcomePart<'r>,
    /// Why there is nothing but metadata.
    #[serde(rename = "_redaction", skip_serializing_if = "Option::is_none")]
    redaction: Option<&'static str>,
    transcript: Transcript<'r>,
}

#[derive(Serialize)]
struct TaskPart<'r> {
    id: &'r str,
    integration: &'r str,
    tenant: &'r str,
    priority: Priority,
    input: &'r Json,
}

#[derive(Serialize)]
struct OutcomePart<'r> {
    run_id: String,
    result: ResultPart<'r>,
    worker: &'r str,
    pool: &'r str,
    attempt: u32,
    queued_seconds: f64,
    ran_seconds: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum ResultPart<'r> {
    Ok(&'r Json),
    Failure {
        code: &'static str,
        message: &'r str,
        remedy: Remedy,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'r FailureReason>,
    },
}

#[derive(Serialize)]
struct Transcript<'r> {
    log: Log<'r>,
}

#[derive(Serialize)]
struct Log<'r> {
    version: &'static str,
    creator: Creator,
    entries: Vec<Entry<'r>>,
    #[serde(rename = "_exchangesLeftOut")]
    exchanges_left_out: u32,
    #[serde(rename = "_notes")]
    notes: Vec<Note<'r>>,
    #[serde(rename = "_notesLeftOut", skip_serializing_if = "is_zero")]
    notes_left_out: u32,
    #[serde(rename = "_attachments", skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<Attachment<'r>>,
    #[serde(rename = "_attachmentsLeftOut", skip_serializing_if = "is_zero")]
    attachments_left_out: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
}

#[derive(Serialize)]
struct Creator {
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
struct Note<'r> {
    at: String,
    text: &'r str,
}

/// A file that the integration added; its content has the form of a response's.
#[derive(Serialize)]
struct Attachment<'r> {
    at: String,
    name: &'r str,
    content: Content<'r>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry<'r> {
    started_date_time: String,
    time: f64,
    request: Request<'r>,
    response: Response<'r>,
    cache: Cache,
    timings: Timings,
    /// Chrome's own: without it, its developer tools take JSON for a script.
    #[serde(rename = "_resourceType")]
    resource_type: &'static str,
    #[serde(rename = "_error", skip_serializing_if = "Option::is_none")]
    error: Option<&'r str>,
    #[serde(rename = "_fault", skip_serializing_if = "Option::is_none")]
    fault: Option<Fault>,
}

#[derive(Serialize)]
struct Cache {}

#[derive(Serialize)]
struct Timings {
    blocked: f64,
    dns: f64,
    connect: f64,
    ssl: f64,
    send: f64,
    wait: f64,
    receive: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'r> {
    method: &'r str,
    url: &'r str,
    http_version: &'static str,
    cookies: [(); 0],
    headers: Vec<Pair<'r>>,
    query_string: Vec<Pair<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    post_data: Option<PostData<'r>>,
    headers_size: i64,
    body_size: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'r> {
    status: u16,
    status_text: &'static str,
    http_version: &'static str,
    cookies: [(); 0],
    headers: Vec<Pair<'r>>,
    content: Content<'r>,
    #[serde(rename = "redirectURL")]
    redirect_url: &'r str,
    headers_size: i64,
    body_size: i64,
    /// Chrome's own: without it, its developer tools add up the sizes above, also where they are -1.
    #[serde(rename = "_transferSize")]
    transfer_size: u64,
}

#[derive(Serialize)]
struct Pair<'r> {
    name: std::borrow::Cow<'r, str>,
    value: std::borrow::Cow<'r, str>,
}

/// A request's body. The specification has no encoding and no size for it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PostData<'r> {
    mime_type: &'r str,
    text: BodyText<'r>,
    #[serde(rename = "_encoding", skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    #[serde(rename = "_truncatedFrom", skip_serializing_if = "Option::is_none")]
    truncated_from: Option<u64>,
}

/// A response's body.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content<'r> {
    size: u64,
    mime_type: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<BodyText<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    #[serde(rename = "_truncatedFrom", skip_serializing_if = "Option::is_none")]
    truncated_from: Option<u64>,
}

struct BodyText<'r>(&'r Body);

impl Serialize for BodyText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Body::Text(text) => serializer.serialize_str(text.as_str()),
            Body::Binary(bytes) => serializer.collect_str(&Base64Display::new(bytes, &STANDARD)),
            Body::Withheld(_) => serializer.serialize_str(""),
        }
    }
}

impl<'r> Document<'r> {
    pub fn of(redacted: &'r Redacted) -> Self {
        let Redacted { task, outcome, pool, .. } = redacted;
        let result = match &outcome.result {
            Ok(output) => ResultPart::Ok(output),
            Err(failure) => ResultPart::Failure {
                code: failure.code.as_str(),
                message: &failure.message,
                remedy: failure.remedy,
                reason: failure.reason.as_ref(),
            },
        };
        Document {
            schema: SCHEMA,
            task: TaskPart {
                id: task.id.as_str(),
                integration: task.integration.as_str(),
                tenant: task.tenant.as_str(),
                priority: task.priority,
                input: &task.input,
            },
            outcome: OutcomePart {
                run_id: outcome.run.to_string(),
                result,
                worker: outcome.worker.as_str(),
                pool: pool.as_str(),
                attempt: outcome.attempt,
                queued_seconds: outcome.timings.queued.as_secs_f64(),
                ran_seconds: outcome.timings.ran.as_secs_f64(),
            },
            redaction: redacted.withheld,
            transcript: Transcript { log: Log::of(redacted) },
        }
    }
}

impl<'r> Log<'r> {
    fn of(redacted: &'r Redacted) -> Self {
        // They were recorded in the order in which they ended; the specification prefers the order of their start.
        let mut exchanges: Vec<&RedactedExchange> = redacted.exchanges.iter().collect();
        exchanges.sort_by_key(|exchange| exchange.started);
        Log {
            version: "1.2",
            creator: Creator { name: "weir", version: env!("CARGO_PKG_VERSION") },
            entries: exchanges.into_iter().map(Entry::of).collect(),
            exchanges_left_out: redacted.exchanges_left_out,
            notes: redacted.notes.iter().map(|(at, text)| Note { at: rfc3339(*at), text }).collect(),
            notes_left_out: redacted.notes_left_out,
            attachments: redacted.attachments.iter().map(Attachment::of).collect(),
            attachments_left_out: redacted.attachments_left_out,
            comment: left_out(redacted),
        }
    }
}

impl<'r> Attachment<'r> {
    fn of(attachment: &'r RedactedAttachment) -> Self {
        let RedactedAttachment { at, name, content_type, body, recorded_bytes, whole_bytes } = attachment;
        Attachment { at: rfc3339(*at), name, content: Content::of(content_type, body, *recorded_bytes, *whole_bytes) }
    }
}

impl<'r> Entry<'r> {
    pub fn of(exchange: &'r RedactedExchange) -> Self {
        let phases = exchange.phases;
        Entry {
            started_date_time: rfc3339(exchange.started),
            time: milliseconds(phases.blocked + phases.waiting + phases.receiving),
            request: request(exchange),
            response: response(exchange),
            cache: Cache {},
            timings: Timings {
                blocked: milliseconds(phases.blocked),
                dns: -1.0,
                connect: -1.0,
                ssl: -1.0,
                send: 0.0,
                wait: milliseconds(phases.waiting),
                receive: milliseconds(phases.receiving),
            },
            resource_type: "fetch",
            error: exchange.error.as_deref(),
            fault: exchange.fault,
        }
    }
}

fn request(exchange: &RedactedExchange) -> Request<'_> {
    let query = exchange.url.split('#').next().and_then(|url| url.split_once('?')).map_or("", |(_, query)| query);
    let message = &exchange.request;
    Request {
        method: &exchange.method,
        url: &exchange.url,
        http_version: "unknown",
        cookies: [],
        headers: headers(message),
        query_string: form_urlencoded::parse(query.as_bytes()).map(|(name, value)| Pair { name, value }).collect(),
        post_data: (message.whole_bytes > 0).then(|| post_data(message)),
        headers_size: -1,
        body_size: size(message.whole_bytes),
    }
}

fn response(exchange: &RedactedExchange) -> Response<'_> {
    let Some((status, message)) = &exchange.response else {
        return no_response();
    };
    Response {
        status: *status,
        status_text: "",
        http_version: "unknown",
        cookies: [],
        headers: headers(message),
        content: Content::of(
            header(&message.headers, "content-type").unwrap_or_default(),
            &message.body,
            message.recorded_bytes,
            message.whole_bytes,
        ),
        redirect_url: header(&message.headers, "location").unwrap_or_default(),
        headers_size: -1,
        body_size: size(message.whole_bytes),
        transfer_size: message.whole_bytes,
    }
}

/// What HAR viewers know as a request without an answer.
fn no_response<'r>() -> Response<'r> {
    let content =
        Content { size: 0, mime_type: "x-unknown", text: None, encoding: None, comment: None, truncated_from: None };
    Response {
        status: 0,
        status_text: "",
        http_version: "unknown",
        cookies: [],
        headers: Vec::new(),
        content,
        redirect_url: "",
        headers_size: -1,
        body_size: -1,
        transfer_size: 0,
    }
}

fn headers(message: &RedactedMessage) -> Vec<Pair<'_>> {
    message.headers.iter().map(|(name, value)| Pair { name: name.into(), value: value.into() }).collect()
}

impl<'r> Content<'r> {
    fn of(mime_type: &'r str, body: &'r Body, recorded_bytes: u64, whole_bytes: u64) -> Self {
        Content {
            size: whole_bytes,
            mime_type: mime_type_or_unknown(mime_type),
            text: (!matches!(body, Body::Withheld(_))).then_some(BodyText(body)),
            encoding: encoding(body),
            comment: comment(body, recorded_bytes, whole_bytes),
            truncated_from: (whole_bytes > recorded_bytes).then_some(whole_bytes),
        }
    }
}

fn post_data(message: &RedactedMessage) -> PostData<'_> {
    let RedactedMessage { headers, body, recorded_bytes, whole_bytes } = message;
    PostData {
        mime_type: mime_type_or_unknown(header(headers, "content-type").unwrap_or_default()),
        text: BodyText(body),
        encoding: encoding(body),
        comment: comment(body, *recorded_bytes, *whole_bytes),
        truncated_from: (whole_bytes > recorded_bytes).then_some(*whole_bytes),
    }
}

fn mime_type_or_unknown(mime_type: &str) -> &str {
    if mime_type.is_empty() { "x-unknown" } else { mime_type }
}

fn encoding(body: &Body) -> Option<&'static str> {
    matches!(body, Body::Binary(_)).then_some("base64")
}

/// What is missing in a body, for people.
fn comment(body: &Body, recorded_bytes: u64, whole_bytes: u64) -> Option<String> {
    match body {
        Body::Withheld(why) => Some(format!("{LEFT_OUT}{why}")),
        _ if whole_bytes > recorded_bytes => Some(format!("cut to its first {recorded_bytes} bytes")),
        _ => None,
    }
}

/// What is missing in the transcript, for people.
fn left_out(redacted: &Redacted) -> Option<String> {
    let counts = [
        (redacted.exchanges_left_out, "exchanges"),
        (redacted.notes_left_out, "notes"),
        (redacted.attachments_left_out, "attachments"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let counts = (!counts.is_empty()).then(|| counts.join(", "));
    match (redacted.withheld, counts) {
        (Some(why), _) => Some(why.to_owned()),
        (None, Some(counts)) => Some(format!("left out or cut, for the transcript had reached its limit: {counts}")),
        (None, None) => None,
    }
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// To the microsecond. A clock beyond the year 9999 reads as 1970.
fn rfc3339(at: SystemTime) -> String {
    format!("{:.6}", Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests;
