//! What a run said to the outside and heard back: HTTP exchanges and notes, in order.
//!
//! It is raw: it holds credentials and personal data until the payload's redaction has seen it, so it has no `Debug`
//! that prints content and no `Serialize`.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One run's conversation with the outside.
#[derive(Default)]
pub struct Transcript {
    /// HTTP exchanges, in the order in which they ended.
    pub exchanges: Vec<Exchange>,
    /// Remarks of the integration.
    pub notes: Vec<Note>,
    /// Files that the integration added: a screenshot, a page, a log.
    pub attachments: Vec<Attachment>,
    /// Values that must never be stored, wherever they turn up: tokens that the run was given or was handed.
    pub secrets: Vec<String>,
    /// How many more such values there were: more or longer ones than are kept.
    pub secrets_left_out: u32,
    /// Exchanges left out because the transcript had reached its limit.
    pub exchanges_left_out: u32,
    /// Remarks left out or cut for the same reason.
    pub notes_left_out: u32,
    /// Attachments left out for the same reason.
    pub attachments_left_out: u32,
    /// About how much memory exchanges, notes and attachments hold, as it was added up while they were recorded.
    pub recorded_bytes: usize,
}

impl Transcript {
    /// About how much memory it holds; what a queue that is bounded by bytes counts. It is known, not added up here:
    /// this is asked on a task's path.
    pub fn size_bytes(&self) -> usize {
        self.recorded_bytes
    }
}

impl fmt::Debug for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Transcript { exchanges, notes, attachments, .. } = self;
        let (exchanges, notes, attachments) = (exchanges.len(), notes.len(), attachments.len());
        write!(f, "Transcript({exchanges} exchanges, {notes} notes, {attachments} attachments)")
    }
}

/// One HTTP request and what came of it.
pub struct Exchange {
    /// When the request was made.
    pub started: SystemTime,
    /// What was asked.
    pub request: Message,
    /// The request's method, such as `GET`.
    pub method: String,
    /// The full URL.
    pub url: String,
    /// What was answered; none when there was no answer.
    pub response: Option<Response>,
    /// What went wrong, for an exchange without a whole answer.
    pub error: Option<String>,
    /// The kind of what went wrong, where it is known.
    pub fault: Option<Fault>,
    /// Where the time went.
    pub phases: Phases,
}

impl Exchange {
    /// About how much memory it holds.
    pub fn size_bytes(&self) -> usize {
        let response = self.response.as_ref().map_or(0, |response| response.message.size_bytes());
        size_of::<Exchange>() + self.url.len() + self.request.size_bytes() + response
    }
}

/// The ways in which an exchange can be without a whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// There was no connection.
    Connect,
    /// The host took too long.
    Timeout,
    /// The task's deadline came first.
    Deadline,
    /// More was answered than is read.
    TooLarge,
    /// The connection broke, or what came was not HTTP.
    Broken,
    /// Too many hosts were asked at the same time.
    Hosts,
    /// The run stopped waiting for the answer, or ended.
    Cancelled,
}

/// An answer.
pub struct Response {
    /// The HTTP status code.
    pub status: u16,
    /// Headers and body.
    pub message: Message,
}

/// Headers and body of either direction.
#[derive(Default)]
pub struct Message {
    /// In the order sent. Values that are not UTF-8 are kept lossily.
    pub headers: Vec<(String, String)>,
    /// The body, cut to the recorder's limit.
    pub body: Bytes,
    /// The body's whole length; more than `body.len()` when it was cut.
    pub body_bytes: u64,
}

impl Message {
    fn size_bytes(&self) -> usize {
        self.body.len() + self.headers.iter().map(|(name, value)| name.len() + value.len() + 48).sum::<usize>()
    }
}

/// Where an exchange's time went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// Waiting for one of the host's sockets.
    pub blocked: Duration,
    /// From sending the request to the response's headers; connecting included.
    pub waiting: Duration,
    /// Reading the body.
    pub receiving: Duration,
}

/// A remark of the integration.
pub struct Note {
    /// When it was made.
    pub at: SystemTime,
    /// What it says.
    pub text: String,
    /// Whether its end is missing, because the transcript had reached its limit.
    pub is_cut: bool,
}

/// A file that the integration added.
pub struct Attachment {
    /// When it was added.
    pub at: SystemTime,
    /// What it is called.
    pub name: String,
    /// Its media type, such as `image/png`.
    pub content_type: String,
    /// What it holds, cut to the recorder's limit for bodies.
    pub body: Bytes,
    /// Its whole length; more than `body.len()` when it was cut.
    pub body_bytes: u64,
}

impl Attachment {
    /// About how much memory it holds.
    pub fn size_bytes(&self) -> usize {
        size_of::<Attachment>() + self.name.len() + self.content_type.len() + self.body.len()
    }
}
