//! Where encoded payloads are kept: put one, get one, and say where it is.

pub mod directory;
pub mod s3;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::body::Body;

/// A store has limits of its own; this one ends what those do not, such as a hung network file system.
pub(super) const UPLOAD_DEADLINE: Duration = Duration::from_secs(60);

/// Which store is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// S3, or whatever speaks its protocol.
    S3,
    /// A directory.
    Directory,
    /// None: payloads are not kept.
    None,
}

/// A payload to be stored.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its name.
    pub key: String,
    /// The encoded payload.
    pub body: Body,
    /// Its media type.
    pub media_type: String,
    /// What a reader may want to know before reading: encoding, schema, sizes and checksum.
    pub metadata: Vec<(String, String)>,
}

/// A payload as it was found.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The encoded payload.
    pub body: Bytes,
}

/// One payload in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub key: String,
    /// Its size as it is stored.
    pub bytes: u64,
}

/// A part of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Payloads in the order of their keys' bytes.
    pub payloads: Vec<Listed>,
    /// Whether there are more: ask again with the last of these keys as `start_after`.
    pub has_more: bool,
}

/// A place for payloads. All calls may be cancelled; a put is then either whole or not there.
#[async_trait]
pub trait Store: Send + Sync {
    /// Stores one; in place of the one of that key, if there is one.
    async fn put(&self, object: &Object) -> Result<(), StoreError>;

    /// Reads one of at most `limit_bytes`.
    async fn get(&self, key: &str, limit_bytes: u64) -> Result<Stored, StoreError>;

    /// At most `limit` payloads whose keys begin with `prefix` and come after `start_after` (empty for all).
    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Page, StoreError>;

    /// Where the payload of that key is, for people.
    fn location(&self, key: &str) -> String;

    /// Connections that are open, busy or idle, for a store that has some.
    fn open_sockets(&self) -> u64 {
        0
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key could lead out of the store.
    #[error("key {key:?} is not valid: use names between single slashes, none of them . or .., and no slash first")]
    InvalidKey {
        /// The key.
        key: String,
    },
    /// There is no such payload.
    #[error("{location} does not exist")]
    NotFound {
        /// Where it was looked for.
        location: String,
    },
    /// It is too big to be read.
    #[error("{location} has more than {limit_bytes} bytes")]
    TooLarge {
        /// Where it is.
        location: String,
        /// What was asked for at most.
        limit_bytes: u64,
    },
    /// A part of what was stored is missing.
    #[error("{location} is cut short: it has {found_bytes} of {stored_bytes} bytes")]
    CutShort {
        /// Where it is.
        location: String,
        /// What was read.
        found_bytes: u64,
        /// What its metadata say.
        stored_bytes: u64,
    },
    /// It is not what was stored.
    #[error("{location} is damaged: its SHA-256 is {found}, and {stored} was stored")]
    Damaged {
        /// Where it is.
        location: String,
        /// What was read.
        found: String,
        /// What its metadata say.
        stored: String,
    },
    /// The store refused, or could not be reached.
    #[error("could not {action} {location}: {reason}")]
    Failed {
        /// `store`, `read` or `list`.
        action: &'static str,
        /// What it was about.
        location: String,
        /// What went wrong, and what may help.
        reason: String,
    },
}

impl StoreError {
    /// Whether the same payload would be refused at any other time too.
    pub fn is_permanent(&self) -> bool {
        matches!(self, StoreError::InvalidKey { .. } | StoreError::TooLarge { .. })
    }
}

/// Opens the store that the settings name; none for [`Kind::None`]. Does not need the store to be there yet.
pub async fn open(config: &super::Config) -> Result<Option<Arc<dyn Store>>, super::ConfigError> {
    Ok(match config.store {
        Kind::None => None,
        Kind::Directory => Some(Arc::new(directory::Directory::new(&config.directory))),
        Kind::S3 => Some(Arc::new(s3::S3::connect(&config.s3, config.uploads).await?)),
    })
}

/// Refuses keys that could lead out of the store.
fn check_key(key: &str) -> Result<(), StoreError> {
    let safe = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains(['\\', '\0']);
    match key.len() <= 1024 && key.split('/').all(safe) {
        true => Ok(()),
        false => Err(StoreError::InvalidKey { key: key.chars().take(200).collect() }),
    }
}
