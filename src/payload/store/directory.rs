//! Payloads as files below one directory, the key being the path.
//!
//! A file appears whole or not at all: it is written under a temporary name beside its place and renamed. A stop in the
//! middle may leave a hidden `.tmp` file, and never half a payload. The metadata is not kept; the file says all of it.

use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use super::super::ConfigError;
use super::{Object, Store, StoreError, Stored, check_key};

/// Where the files go.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The directory; made when it is not there.
    pub path: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Config { path: "payloads".into() }
    }
}

impl Config {
    pub(in super::super) fn check(&self) -> Result<(), ConfigError> {
        match self.path.as_os_str().is_empty() {
            true => Err(ConfigError::new("directory.path", "empty", "name a directory, such as \"./payloads\"")),
            false => Ok(()),
        }
    }
}

/// A directory of payloads.
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Touches nothing until the first payload.
    pub fn new(config: &Config) -> Self {
        Directory { root: config.path.clone() }
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        check_key(key)?;
        Ok(self.root.join(key))
    }
}

#[async_trait]
impl Store for Directory {
    async fn put(&self, object: Object) -> Result<(), StoreError> {
        let path = self.path(&object.key)?;
        write(&path, &object.body).await.map_err(|error| failed("store", &path, &error))
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> Result<Stored, StoreError> {
        let path = self.path(key)?;
        let location = || path.display().to_string();
        let body = read(&path, limit_bytes).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::NotFound { location: location() },
            _ => failed("read", &path, &error),
        })?;
        if body.len() as u64 > limit_bytes {
            return Err(StoreError::TooLarge { location: location(), limit_bytes });
        }
        Ok(Stored { body: body.into() })
    }

    fn location(&self, key: &str) -> String {
        self.root.join(key).display().to_string()
    }
}

async fn write(path: &Path, body: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = directory.join(format!(".{}.tmp", Uuid::now_v7()));
    tokio::fs::create_dir_all(directory).await?;
    let written = match tokio::fs::write(&temporary, body).await {
        Ok(()) => tokio::fs::rename(&temporary, path).await,
        Err(error) => Err(error),
    };
    if written.is_err() {
        let _ = tokio::fs::remove_file(&temporary).await;
    }
    written
}

/// One byte more than the limit tells that there is more.
async fn read(path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    tokio::fs::File::open(path).await?.take(limit_bytes.saturating_add(1)).read_to_end(&mut body).await?;
    Ok(body)
}

fn failed(action: &'static str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Failed { action, location: path.display().to_string(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn object(key: &str) -> Object {
        Object { key: key.into(), body: Bytes::from_static(b"body"), metadata: Vec::new() }
    }

    #[tokio::test]
    async fn what_is_put_is_there_whole_and_alone() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Directory::new(&Config { path: root.path().join("made") });
        store.put(object("a/b/c.b64")).await.expect("stores");
        store.put(object("a/b/c.b64")).await.expect("stores again");
        assert_eq!(store.get("a/b/c.b64", 4).await.expect("reads").body, "body");
        assert_eq!(std::fs::read_dir(root.path().join("made/a/b")).expect("a directory").count(), 1);
        assert!(store.location("a/b/c.b64").ends_with("made/a/b/c.b64"));
    }

    #[tokio::test]
    async fn what_cannot_be_read_or_stored_is_named() {
        let root = tempfile::tempdir().expect("a directory");
        let store = Directory::new(&Config { path: root.path().into() });
        store.put(object("big")).await.expect("stores");
        assert!(matches!(store.get("big", 3).await, Err(StoreError::TooLarge { .. })));
        assert!(matches!(store.get("absent", 3).await, Err(StoreError::NotFound { .. })));
        let error = store.put(object("big/below")).await.expect_err("a file is in the way").to_string();
        assert!(error.starts_with("could not store ") && error.contains("big/below: "), "{error}");
        for key in ["/etc/passwd", "a/../../b", "..", "", "a//b", "a/./b"] {
            assert!(matches!(store.put(object(key)).await, Err(StoreError::InvalidKey { .. })), "{key}");
            assert!(matches!(store.get(key, 1).await, Err(StoreError::InvalidKey { .. })), "{key}");
        }
    }
}
