//! Where the document is kept: what reads it, says when to look again, and changes it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use super::file::File;
use super::flagd::{self, Evaluated};
use super::redis::Redis;
use super::targeting::Context;
use super::{Config, Source, launchdarkly};
use crate::lifecycle::Lifecycle;

/// The largest document.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// How many changes a history keeps.
pub const HISTORY: usize = 50;

/// The document, or why there is none.
pub type Reading = Result<Vec<u8>, ReadError>;

/// Why there is no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nobody has put one there.
    #[error("it is not there")]
    Missing,
    /// It is there, and too large to be one.
    #[error("it {0}")]
    TooLarge(TooLarge),
    /// It cannot be reached, or is none.
    #[error("it cannot be read: {0}")]
    Failed(String),
}

/// What is larger than a document may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// As much of it as is read: one byte more than a document may have.
    pub beginning: Vec<u8>,
    /// How many it has, where that is known.
    bytes: Option<u64>,
}

impl TooLarge {
    /// One of so many bytes.
    pub(super) fn of(bytes: u64) -> Self {
        TooLarge { beginning: Vec::new(), bytes: Some(bytes) }
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            Some(bytes) => write!(f, "has {bytes} bytes, and may have at most {MAX_DOCUMENT_BYTES}"),
            None => write!(f, "has more than {MAX_DOCUMENT_BYTES} bytes, which is the most that it may have"),
        }
    }
}

/// The document, of which at most one byte more than it may have was read. `bytes` is its size, where that is known.
pub(super) fn within_limit(read: Vec<u8>, bytes: Option<u64>) -> Reading {
    match read.len() > MAX_DOCUMENT_BYTES {
        true => Err(ReadError::TooLarge(TooLarge { beginning: read, bytes })),
        false => Ok(read),
    }
}

/// Why a document was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Somebody else was faster.
    #[error("somebody else has changed the settings meanwhile; look at them, and try again")]
    Conflict,
    /// Nobody would take it.
    #[error("nothing was written: the document {0}")]
    TooLarge(TooLarge),
    /// It cannot be reached, or may not be written.
    #[error("the settings cannot be written: {0}")]
    Failed(String),
}

/// A document to write, and what its history is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The whole document.
    pub document: String,
    /// Who changes it.
    pub who: String,
    /// What for.
    pub why: String,
}

impl Edit {
    /// Whether the document is one that workers and routers take.
    pub(super) fn check(&self) -> Result<(), WriteError> {
        let bytes = self.document.len();
        if bytes > MAX_DOCUMENT_BYTES { Err(WriteError::TooLarge(TooLarge::of(bytes as u64))) } else { Ok(()) }
    }
}

/// One change of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// Counts the changes, from 1.
    pub number: u64,
    /// When, by the store's clock.
    pub at: SystemTime,
    /// The document, who, and why.
    pub edit: Edit,
}

impl Revision {
    /// Whether weir did not write its document, but found it.
    pub fn is_found(&self) -> bool {
        self.edit.who == UNKNOWN && self.edit.why == FOUND
    }

    /// Fails where it stands for bytes that are no text, and so no document.
    pub fn is_document(&self) -> Result<(), String> {
        let is_text = !(self.is_found() && self.edit.document.contains(char::REPLACEMENT_CHARACTER));
        if is_text { Ok(()) } else { Err("it is not UTF-8".into()) }
    }

    /// What workers that run it call it.
    pub fn version(&self) -> String {
        version_of(self.edit.document.as_bytes())
    }
}

/// Who a history names when weir found a document that it did not write.
pub(super) const UNKNOWN: &str = "unknown";

/// Why such a document is in a history.
pub(super) const FOUND: &str = "(found: it was not written with weir)";

/// A place that holds one document.
#[async_trait]
pub trait Store: Send + Sync {
    /// What it is and where: `file settings.json`.
    fn name(&self) -> String;

    /// The document, where it can be had at once, for the start; nothing waits for what is elsewhere.
    fn read_at_start(&self) -> Option<Reading> {
        None
    }

    /// The document.
    async fn read(&self) -> Reading;

    /// Waits until it is time to read again: because something has changed, or because it may have.
    async fn wait(&self);

    /// Whether a document that is read can be one that somebody is still writing.
    fn may_be_partial(&self) -> bool {
        false
    }

    /// Whether it is as it should be before anybody has written a document. Where a file is away, its name may be wrong.
    fn may_be_empty(&self) -> bool {
        false
    }

    /// Whether what is read is a document that could be written again, and not only what names one.
    fn has_document(&self) -> bool {
        true
    }

    /// What a document says to whoever is in this context, or why it is none.
    fn evaluate(&self, document: &[u8], context: &Context) -> Result<BTreeMap<String, Evaluated>, String> {
        flagd::evaluate(document, context)
    }

    /// Writes a document in the place of `expected`, if that is still there, and returns the number of the change. One that is
    /// too large is expected by its beginning.
    async fn write(&self, expected: Option<&[u8]>, edit: &Edit) -> Result<u64, WriteError>;

    /// The last [`HISTORY`] changes, oldest first.
    async fn history(&self) -> Result<Vec<Revision>, ReadError>;
}

/// The store that the configuration names; none where the start values stay.
pub fn open(config: &Config, lifecycle: &Lifecycle) -> Result<Option<Arc<dyn Store>>, super::SettingsError> {
    config.check()?;
    if config.source == Source::LaunchDarkly {
        return launchdarkly::open(&config.launchdarkly, lifecycle).map(Some);
    }
    Ok(match (config.source, &config.file, &config.redis.url) {
        (Source::File, Some(path), _) => Some(Arc::new(File::new(path.clone(), lifecycle.clone()))),
        (Source::Redis, _, Some(_)) => Some(Arc::new(Redis::new(&config.redis, &config.redis_key)?)),
        _ => None,
    })
}

/// The first 12 hex digits of the SHA-256.
pub fn version_of(document: &[u8]) -> String {
    Sha256::digest(document).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
