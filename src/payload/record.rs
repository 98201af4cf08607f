//! A payload before and after redaction.
//!
//! [`Record`] is raw and can be neither printed nor serialized. [`Redacted`] is what the encoder takes, and only
//! `redact.rs` makes one: nothing raw can reach a store by accident.

use std::time::SystemTime;

use bytes::Bytes;

use crate::task::transcript::{Fault, Phases};
use crate::task::{Json, Outcome, PoolName, Task, Transcript};

/// Names the document's layout; the number goes up when a reader must know.
pub const SCHEMA: &str = "weir.payload.v1";

/// The memory that a record takes beside its texts and bodies, about.
const RECORD_BYTES: usize = 1024;

/// One run of a task, as it was.
pub struct Record {
    /// What was asked.
    pub task: Task,
    /// What came of it.
    pub outcome: Outcome,
    /// What was said to the outside meanwhile.
    pub transcript: Transcript,
    /// The pool of the worker that ran it.
    pub pool: PoolName,
}

impl Record {
    /// About how much memory it holds.
    pub fn size_bytes(&self) -> u64 {
        let output = self.outcome.result.as_ref().map_or_else(|failure| failure.message.len(), |it| it.as_str().len());
        let bytes = RECORD_BYTES + self.transcript.size_bytes() + self.task.input.as_str().len() + output;
        bytes as u64
    }
}

/// One run of a task, fit to be kept. Task and outcome hold their redacted input and result.
pub struct Redacted {
    pub(super) task: Task,
    pub(super) outcome: Outcome,
    pub(super) pool: PoolName,
    pub(super) exchanges: Vec<RedactedExchange>,
    pub(super) exchanges_left_out: u32,
    pub(super) notes: Vec<(SystemTime, String)>,
    pub(super) notes_left_out: u32,
    pub(super) attachments: Vec<RedactedAttachment>,
    pub(super) attachments_left_out: u32,
    /// Why there is nothing but metadata, for people; none when there is more.
    pub(super) withheld: Option<&'static str>,
}

pub(super) struct RedactedExchange {
    pub started: SystemTime,
    pub method: String,
    pub url: String,
    pub request: RedactedMessage,
    pub response: Option<(u16, RedactedMessage)>,
    pub error: Option<String>,
    pub fault: Option<Fault>,
    pub phases: Phases,
}

pub(super) struct RedactedMessage {
    pub headers: Vec<(String, String)>,
    pub body: Body,
    /// How much of the body was recorded, before redaction.
    pub recorded_bytes: u64,
    /// The body's whole length.
    pub whole_bytes: u64,
}

pub(super) struct RedactedAttachment {
    pub at: SystemTime,
    pub name: String,
    pub content_type: String,
    pub body: Body,
    /// How much was recorded, before redaction.
    pub recorded_bytes: u64,
    /// Its whole length.
    pub whole_bytes: u64,
}

/// A text that is shared with the recorded body where redaction left it as it was.
#[derive(Default, PartialEq)]
pub(super) struct Text(Bytes);

impl Text {
    /// The bytes of a text; what is none reads as empty.
    pub fn shared(utf8: Bytes) -> Self {
        Text(utf8)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Text(text.into())
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// A body fit to be kept.
#[derive(Debug, PartialEq)]
pub(super) enum Body {
    Text(Text),
    Binary(Bytes),
    /// Nothing of it, because it could not be looked into; why, for people.
    Withheld(&'static str),
}

/// A text that is valid JSON, or `null`: what stands where an input or an output could not be redacted.
pub(super) fn json_or_text(text: String) -> Json {
    Json::parse(text.clone()).or_else(|_| Json::of(&text)).unwrap_or_else(|_| Json::null())
}

/// The first header of that name.
pub(super) fn header<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}
