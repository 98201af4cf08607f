//! What one task may use: requests, and bytes of answers. So neither a loop over many items nor a bank without a last
//! page takes the bank's patience or the worker's memory.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::config::Config;
use crate::integration::{Error, Invalid};

/// More requests of one task are a mistake.
const MAX_REQUESTS: u64 = 1_000_000;

/// More bytes in one task are a mistake: 64 GiB.
const MAX_BYTES: u64 = 64 * 1024 * 1024 * 1024;

/// The limits of each task.
pub(super) struct Limits {
    requests: u64,
    bytes: u64,
    /// The configuration's section with these limits.
    section: String,
}

impl Limits {
    /// Checks the values of `[section]`.
    pub(super) fn new(config: &Config, section: &str) -> Result<Self, Invalid> {
        let limits = [("max_requests", config.max_requests, MAX_REQUESTS), ("max_bytes", config.max_bytes, MAX_BYTES)];
        for (key, value, max) in limits {
            if !(1..=max).contains(&value) {
                return Err(Invalid::new(key, format!("{value} is out of range: use 1 to {max}")));
            }
        }
        Ok(Limits { requests: config.max_requests, bytes: config.max_bytes, section: section.to_owned() })
    }
}

/// What one task has used so far.
pub(super) struct Budget<'a> {
    limits: &'a Limits,
    requests: AtomicU64,
    bytes: AtomicU64,
    /// The places that the transcript has a note of; at most all rules of `errors`.
    noted: Mutex<HashSet<String>>,
}

impl<'a> Budget<'a> {
    /// Nothing yet.
    pub(super) fn new(limits: &'a Limits) -> Self {
        Budget { limits, requests: AtomicU64::new(0), bytes: AtomicU64::new(0), noted: Mutex::default() }
    }

    /// One more request is about to be sent.
    pub(super) fn request(&self) -> Result<(), Error> {
        let Limits { requests, section, .. } = self.limits;
        if self.requests.fetch_add(1, Ordering::Relaxed) < *requests {
            return Ok(());
        }
        let message = format!("the task needs more than {requests} requests; raise {section}.max_requests if it may");
        Err(Error::permanent(message))
    }

    /// An answer of this many bytes was read.
    pub(super) fn answer(&self, bytes: usize) -> Result<(), Error> {
        let (Limits { bytes: limit, section, .. }, bytes) = (self.limits, bytes as u64);
        if self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= *limit {
            return Ok(());
        }
        let message =
            format!("the task's answers have more than {limit} bytes in all; raise {section}.max_bytes if it may");
        Err(Error::permanent(message))
    }

    /// Whether the transcript has no note of this place yet; it gets one now.
    pub(super) fn is_first_note(&self, place: &str) -> bool {
        self.noted.lock().insert(place.to_owned())
    }
}
