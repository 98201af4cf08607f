//! Keeps a run's transcript while the run goes on.
//!
//! The worker holds a clone, so that the transcript survives a run that panics or is dropped. It is bounded: bodies are
//! cut at `max_body_bytes` each (their whole length is kept); once the transcript holds `max_exchanges` exchanges or
//! about `max_bytes` in all, further exchanges are counted and left out, and further notes are dropped.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Invalid;
use crate::task::Transcript;
use crate::task::transcript::{Exchange, Message, Note};

/// The most secrets that one run can name, and the longest of them; tokens are few and small.
const MAX_SECRETS: usize = 256;
const MAX_SECRET_BYTES: usize = 16 * 1024;

/// The most notes of one run.
const MAX_NOTES: usize = 1_000;

/// Limits of one run's transcript.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where a body, of a request or of a response, is cut.
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
        let mut text = text.into();
        let mut transcript = self.inner.transcript.lock();
        let room = self.inner.limits.max_bytes.saturating_sub(transcript.recorded_bytes);
        if transcript.notes.len() >= MAX_NOTES || room <= size_of::<Note>() {
            return;
        }
        text.truncate(text.floor_char_boundary(room - size_of::<Note>()));
        transcript.recorded_bytes += text.len() + size_of::<Note>();
        transcript.notes.push(Note { at: SystemTime::now(), text });
    }

    /// Has `value` removed wherever it would be stored.
    pub fn secret(&self, value: impl Into<String>) {
        let value = value.into();
        let mut transcript = self.inner.transcript.lock();
        let secrets = &mut transcript.secrets;
        if value.is_empty() || value.len() > MAX_SECRET_BYTES || secrets.len() >= MAX_SECRETS {
            return;
        }
        if !secrets.contains(&value) {
            secrets.push(value);
        }
    }

    /// The transcript so far; what is recorded later starts an empty one.
    pub fn take(&self) -> Transcript {
        std::mem::take(&mut *self.inner.transcript.lock())
    }
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
    fn secrets_are_kept_once() {
        let recorder = Recorder::new(&Config::default());
        for secret in ["a", "a", "", "b"] {
            recorder.secret(secret);
        }
        assert_eq!(recorder.take().secrets, ["a", "b"]);
    }
}
