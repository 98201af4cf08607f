//! An encoder thread: takes payloads out of the queue, redacts and encodes them, and sees them off.
//!
//! Encoders run at a low priority and step aside while the runtime lags, so that they get the processor when the tasks
//! leave some. At a flush the tasks have ended and the time is short: encoders at the normal priority relieve them, for a
//! thread cannot raise its own, and on a busy machine a low one would hardly get the processor at all. They are as many as
//! the machine has cores, and twice that where they write to a spool themselves. An encoded payload waits for its upload
//! slot *here*, and its encoder meanwhile takes no further one: what a slow store cannot take stays in the queue's bounds.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::Lag;
use super::encode::{EncodeError, Encoded, Encoder};
use super::encoding::{Encoding, metadata};
use super::key::key;
use super::ledger::Reason;
use super::pace::Pace;
use super::queue::{Crew, Next};
use super::record::SCHEMA;
use super::redact::Redactor;
use super::refusals::Refusals;
use super::store::Object;
use super::upload::{AWAY, Offered, PendingPayload, Uploader};
use crate::lifecycle::Lifecycle;

/// How much an encoder thread steps back behind the tasks' threads (0 not at all, 19 most).
const NICENESS: i32 = 10;

/// A wait for a slot that is worth a warning.
const LONG_WAIT: Duration = Duration::from_millis(100);

/// What the encoder threads share.
pub(super) struct Encoders {
    pub uploader: Arc<Uploader>,
    pub redactor: Arc<Redactor>,
    pub prefix: String,
    pub encoding: Encoding,
    pub lag: Lag,
    pub runtime: Handle,
    /// How many threads work beside the tasks, and how many at a flush.
    pub threads: usize,
    pub flush_threads: usize,
}

/// When an encoder was at work last, and what it may pause.
struct Shift {
    pace: Pace,
    since: Instant,
}

impl Encoders {
    /// Starts a crew. Its threads inherit the priority of the thread that calls this.
    pub fn start(self: &Arc<Self>, crew: Crew, lifecycle: &Lifecycle) -> io::Result<()> {
        let threads = if crew == Crew::Flush { self.flush_threads } else { self.threads };
        (0..threads).try_for_each(|_| {
            let encoders = self.clone();
            lifecycle.thread("payload encoder", move |_token| encoders.run(crew))
        })
    }

    /// Until the queue is closed, or another crew has taken over.
    fn run(&self, crew: Crew) {
        if crew == Crew::Background {
            lower_priority();
        }
        let _uploads_go_here = self.runtime.enter();
        let mut encoder = Encoder::new(self.encoding);
        let mut shift = Shift { pace: Pace::default(), since: Instant::now() };
        while let Some((offered, pending)) = self.uploader.queue.next(crew) {
            shift.since = Instant::now();
            self.encode(*offered, pending, &mut encoder, &mut shift);
        }
    }

    fn encode(&self, offered: Offered, mut pending: PendingPayload, encoder: &mut Encoder, shift: &mut Shift) {
        let Offered { record, value } = offered;
        let key = key(&self.prefix, &record.task.integration, &record.outcome, self.encoding.suffix());
        let mut worked = Duration::ZERO;
        let mut between = || worked += self.step_aside(shift);
        // One strange payload must not take the worker down.
        let encoded = catch_unwind(AssertUnwindSafe(|| {
            let redacted = self.redactor.redact(record);
            between();
            let encoded = encoder.encode(&redacted, &mut between);
            between();
            encoded
        }));
        let lost = |pending, why: &str| self.uploader.lost(pending, Reason::Encode, &format!("encoding {key} {why}"));
        let encoded: Encoded = match encoded {
            Ok(Ok(encoded)) => encoded,
            Ok(Err(error)) => return lost(pending, &failed(&error)),
            // The panic's message may quote the payload.
            Err(_) => return lost(pending, "panicked"),
        };
        self.uploader.metrics.encoded(&encoded, worked);
        let fits = pending.resize(encoded.body.len(), value);
        let object = object(key, self.encoding, encoded);
        match (fits, &self.uploader.spool) {
            (true, _) => self.see_off(object, value, pending),
            (false, Some(_)) => self.uploader.detour(object, value, pending, "the queue has no room for it, encoded"),
            (false, None) => {
                self.uploader.lost(pending, Reason::QueueBytes, &format!("no room for {}, encoded", object.key))
            }
        }
    }

    /// To the store if it is there and has a slot, otherwise to the spool if there is one.
    fn see_off(&self, object: Object, value: super::Value, mut pending: PendingPayload) {
        const SLOW: &str = "the store does not take them fast enough";
        let has_spool = self.uploader.spool.is_some();
        if has_spool && self.uploader.health.is_away() {
            return self.uploader.detour(object, value, pending, AWAY);
        }
        let waiting = Instant::now();
        let next = pending.wait_for_slot(has_spool);
        let is_away = self.uploader.health.is_away();
        if (waiting.elapsed() >= LONG_WAIT || next == Next::Spool) && !is_away {
            self.uploader.log_wait();
        }
        match next {
            Next::Stop => {}
            Next::Spool => self.uploader.detour(object, value, pending, if is_away { AWAY } else { SLOW }),
            Next::Upload => match self.uploader.health.leave(Refusals::default()) {
                None if has_spool => self.uploader.detour(object, value, pending, AWAY),
                leave => self.uploader.start(object, value, pending, leave),
            },
        }
    }

    /// Pauses if the runtime lags and it is not time to work. Returns how long it had worked.
    fn step_aside(&self, shift: &mut Shift) -> Duration {
        let worked = shift.since.elapsed();
        shift.pace.worked(worked);
        let pausing = Instant::now();
        let mut has_paused = false;
        while let Some(nap) = shift.pace.pause((self.lag)()) {
            has_paused = true;
            if !self.uploader.queue.nap(nap) {
                break;
            }
        }
        if has_paused {
            self.uploader.metrics.pause_duration.record(pausing.elapsed());
        }
        shift.since = Instant::now();
        worked
    }
}

fn failed(error: &EncodeError) -> String {
    format!("failed: {error}")
}

fn object(key: String, encoding: Encoding, encoded: Encoded) -> Object {
    let Encoded { body, json_bytes } = encoded;
    let metadata = [
        (metadata::ENCODING, encoding.to_string()),
        (metadata::SCHEMA, SCHEMA.to_owned()),
        (metadata::JSON_BYTES, json_bytes.to_string()),
        (metadata::STORED_BYTES, body.len().to_string()),
        (metadata::SHA256, body.sha256_hex()),
    ];
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value)).into();
    Object { key, body, media_type: encoding.media_type().to_owned(), metadata }
}

/// Best effort, and on Linux only, where a thread has a priority of its own.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
        tracing::debug!("an encoder thread keeps its normal priority: {error}");
    }
}
