//! Keeps a run's transcript while the run goes on.
//!
//! The worker holds a clone, so that the transcript survives a run that panics or is dropped. It is bounded: bodies are
//! cut at `max_body_bytes` each (their whole length is kept); once the transcript holds `max_exchanges` exchanges or
//! about `max_bytes` in all, further exchanges, notes and attachments are counted and left out.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Invalid;
use crate::task::Transcript;
use crate::task::transcript::{Attachment, Exchange, Message, Note};

/// The most secrets that one run can name, and the longest of them; tokens are few and small.
const MAX_SECRETS: usize = 256;
const MAX_SECRET_BYTES: usize = 16 * 1024;

/// The most notes of one run.
const MAX_NOTES: usize = 1_000;

/// The most attachments of one run.
const MAX_ATTACHMENTS: usize = 100;

/// The longest name and media type of an attachment.
const MAX_NAME_BYTES: usize = 128;

/// Limits of one run's transcript.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where a body, of a request, of a response or of an attachment, is cut.
    pub max_body_bytes: usize,
    /// The whole transcript, about.
    pub max_bytes: usize,
    /// HTTP exchanges.
    pub max_exchanges: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { max_body_bytes: 256 * 1024, max_bytes: 4 * 1024 * 1024, max_exchanges: 1_000 }
    }
}

impl Config {
    /// Checks that the limits fit each other.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.max_body_bytes > self.max_bytes {
            let problem = format!(
                "{} is more than max_bytes, which is {}: one body must fit the transcript",
                self.max_body_bytes, self.max_bytes
            );
            return Err(Invalid::new("max_body_bytes", problem));
        }
        Ok(())
    }
}

/// One run's transcript in the making. Clones share it.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    limits: Config,
    transcript: Mutex<Transcript>,
}

impl Recorder {
    /// An empty transcript under these limits.
    pub fn new(limits: &Config) -> Self {
        Recorder { inner: Arc::new(Inner { limits: limits.clone(), transcript: Mutex::default() }) }
    }

    /// Keeps an exchange, its bodies cut to the limit.
    pub fn record(&self, mut exchange: Exchange) {
        let limits = &self.inner.limits;
        cut(&mut exchange.request, limits.max_body_bytes);
        if let Some(response) = &mut exchange.response {
            cut(&mut response.message, limits.max_body_bytes);
        }
        let size_bytes = exchange.size_bytes();
        let mut transcript = self.inner.transcript.lock();
        let fits = transcript.exchanges.len() < limits.max_exchanges
            && transcript.recorded_bytes.saturating_add(size_bytes) <= limits.max_bytes;
        if fits {
            transcript.recorded_bytes += size_bytes;
            transcript.exchanges.push(exchange);
        } else {
            transcript.exchanges_left_out = transcript.exchanges_left_out.saturating_add(1);
        }
    }

    /// Keeps a remark, cut to what still fits.
    pub fn note(&self, text: impl Into<String>) {
        self.keep_note(text.into(), false);
    }

    /// As [`Recorder::note`], of a text that was cut already: what is left of a secret at its end is no secret's form.
    pub(super) fn note_cut(&self, text: impl Into<String>) {
        self.keep_note(text.into(), true);
    }

    fn keep_note(&self, mut text: String, was_cut: bool) {
        let mut transcript = self.inner.transcript.lock();
        let room = self.inner.limits.max_bytes.saturating_sub(transcript.recorded_bytes);
        let is_full = transcript.notes.len() >= MAX_NOTES || room <= size_of::<Note>();
        let is_cut = !is_full && text.len() > room - size_of::<Note>();
        if is_full || is_cut {
            transcript.notes_left_out = transcript.notes_left_out.saturating_add(1);
        }
        if is_full {
            return;
        }
        text.truncate(text.floor_char_boundary(room - size_of::<Note>()));
        transcript.recorded_bytes += text.len() + size_of::<Note>();
        transcript.notes.push(Note { at: SystemTime::now(), text, is_cut: is_cut || was_cut });
    }

    /// Keeps a file, cut as a body is. In its name, all but letters, digits, `.`, `_` and `-` become `_`.
    pub fn attach(&self, name: &str, content_type: &str, body: impl Into<Bytes>) {
        let mut body = body.into();
        let body_bytes = body.len() as u64;
        if body.len() > self.inner.limits.max_body_bytes {
            body = Bytes::copy_from_slice(&body[..self.inner.limits.max_body_bytes]);
        }
        let name: String = name.chars().take(MAX_NAME_BYTES).map(in_name).collect();
        let name = if name.is_empty() { "attachment".to_owned() } else { name };
        let content_type = content_type.chars().filter(|it| it.is_ascii_graphic() || *it == ' ').take(MAX_NAME_BYTES);
        let content_type = content_type.collect();
        let attachment = Attachment { at: SystemTime::now(), name, content_type, body, body_bytes };
        let size_bytes = attachment.size_bytes();
        let mut transcript = self.inner.transcript.lock();
        let fits = transcript.attachments.len() < MAX_ATTACHMENTS
            && transcript.recorded_bytes.saturating_add(size_bytes) <= self.inner.limits.max_bytes;
        if fits {
            transcript.recorded_bytes += size_bytes;
            transcript.attachments.push(attachment);
        } else {
            let left_out = &mut transcript.attachments_left_out;
            *left_out = left_out.saturating_add(1);
        }
    }

    /// Has `value` removed wherever it would be stored. Of a run with more than 256 of them, or with one of more than
    /// 16 KiB, only metadata is stored.
    pub fn secret(&self, value: impl Into<String>) {
        let value = value.into();
        let mut transcript = self.inner.transcript.lock();
        if value.is_empty() || transcript.secrets.contains(&value) {
            return;
        }
        if value.len() > MAX_SECRET_BYTES || transcript.secrets.len() >= MAX_SECRETS {
            transcript.secrets_left_out = transcript.secrets_left_out.saturating_add(1);
            return;
        }
        transcript.secrets.push(value);
    }

    /// The transcript so far; what is recorded later starts an empty one.
    pub fn take(&self) -> Transcript {
        std::mem::take(&mut *self.inner.transcript.lock())
    }
}

/// What a character is in the name of an attachment.
fn in_name(character: char) -> char {
    if character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-') { character } else { '_' }
}

/// Cuts a body, into memory of its own so that the whole one is not held by its beginning.
fn cut(message: &mut Message, max_bytes: usize) {
    if message.body.len() > max_bytes {
        message.body_bytes = message.body_bytes.max(message.body.len() as u64);
        message.body = Bytes::copy_from_slice(&message.body[..max_bytes]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::transcript::Phases;

    fn exchange(body_bytes: usize) -> Exchange {
        Exchange {
            started: SystemTime::now(),
            request: Message { body: vec![0; body_bytes].into(), ..Message::default() },
            method: "POST".into(),
            url: "http://h/".into(),
            response: None,
            error: None,
            fault: None,
            phases: Phases::default(),
        }
    }

    #[test]
    fn bodies_are_cut_and_exchanges_beyond_the_limits_are_counted() {
        let recorder = Recorder::new(&Config { max_body_bytes: 1_000, max_bytes: 10_000, max_exchanges: 2 });
        for body_bytes in [5_000, 10, 10] {
            recorder.record(exchange(body_bytes));
        }
        let transcript = recorder.take();
        assert_eq!((transcript.exchanges.len(), transcript.exchanges_left_out), (2, 1));
        let request = &transcript.exchanges[0].request;
        assert_eq!((request.body.len(), request.body_bytes), (1_000, 5_000));
        assert_eq!(recorder.take().exchanges.len(), 0, "taken is taken");
    }

    #[test]
    fn the_whole_transcript_stays_within_its_limit() {
        let recorder = Recorder::new(&Config { max_body_bytes: 1_000, max_bytes: 10_000, max_exchanges: 1_000 });
        for _ in 0..100 {
            recorder.record(exchange(1_000));
            recorder.note("ü".repeat(3_000));
        }
        let transcript = recorder.take();
        assert!((9_000..=10_000).contains(&transcript.size_bytes()), "{}", transcript.size_bytes());
        assert!(transcript.exchanges_left_out > 90);
    }

    #[test]
    fn attachments_are_cut_named_and_counted() {
        let recorder = Recorder::new(&Config { max_body_bytes: 1_000, max_bytes: 3_000, max_exchanges: 1 });
        recorder.attach("page 1/é.html", "text/html\r\n; charset=utf-8", vec![b'x'; 5_000]);
        for name in ["", "third"] {
            recorder.attach(name, "image/png", vec![0; 1_000]);
        }
        recorder.note("x".repeat(5_000));
        let transcript = recorder.take();
        let names: Vec<_> = transcript.attachments.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["page_1__.html", "attachment"]);
        let first = &transcript.attachments[0];
        assert_eq!((first.body.len(), first.body_bytes), (1_000, 5_000));
        assert_eq!(first.content_type, "text/html; charset=utf-8");
        assert_eq!((transcript.attachments_left_out, transcript.notes_left_out), (1, 1));
        assert!(transcript.notes[0].is_cut && transcript.size_bytes() <= 3_000);
    }

    #[test]
    fn secrets_are_kept_once() {
        let recorder = Recorder::new(&Config::default());
        for secret in ["a", "a", "", "b"] {
            recorder.secret(secret);
        }
        let transcript = recorder.take();
        assert_eq!((transcript.secrets, transcript.secrets_left_out), (vec!["a".to_owned(), "b".to_owned()], 0));
    }

    #[test]
    fn secrets_beyond_the_limits_are_counted() {
        let recorder = Recorder::new(&Config::default());
        recorder.secret("x".repeat(MAX_SECRET_BYTES + 1));
        for n in 0..=MAX_SECRETS {
            recorder.secret(n.to_string());
        }
        let transcript = recorder.take();
        assert_eq!((transcript.secrets.len(), transcript.secrets_left_out), (MAX_SECRETS, 2));
    }
}
