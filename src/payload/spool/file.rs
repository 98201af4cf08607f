//! One spooled payload as a file: whole or not there, and never mistaken for what it is not.
//!
//! ```text
//! weir.spool.v1 {SHA-256 of the next line, in hex}
//! {"key": …, "media_type": …, "metadata": …, "bytes": …, "sha256": …}
//! the body
//! ```
//!
//! It is written under a hidden name and renamed. It is not synced to the disk: a killed process loses nothing by that,
//! and what a power failure leaves of it is found out by the checksums.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::payload::body::{Body, hex};
use crate::payload::store::Object;

const MAGIC: &str = "weir.spool.v1 ";

/// What the names of files end in that are not whole yet.
pub(super) const UNFINISHED: &str = ".tmp";

/// Only weir's own user reads it: it holds what banks answered.
const MODE: u32 = 0o600;

#[derive(Serialize, Deserialize)]
struct Head {
    key: String,
    media_type: String,
    metadata: Vec<(String, String)>,
    bytes: u64,
    sha256: String,
}

/// Why a file is not a spooled payload any more.
#[derive(Debug, thiserror::Error)]
pub(in crate::payload) enum ReadError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is damaged, or was never one.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// The lines before the body.
pub(super) fn head(object: &Object) -> Result<String, serde_json::Error> {
    let head = serde_json::to_string(&Head {
        key: object.key.clone(),
        media_type: object.media_type.clone(),
        metadata: object.metadata.clone(),
        bytes: object.body.len(),
        sha256: object.body.sha256_hex(),
    })?;
    Ok(format!("{MAGIC}{}\n{head}\n", hex(&Sha256::digest(&head))))
}

/// Writes a file whole, or leaves none.
pub(super) fn write(directory: &Path, name: &str, head: &str, body: &Body) -> io::Result<()> {
    let unfinished = directory.join(format!(".{name}{UNFINISHED}"));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&unfinished)?;
        file.write_all(head.as_bytes())?;
        body.chunks().iter().try_for_each(|chunk| file.write_all(chunk))?;
        std::fs::rename(&unfinished, directory.join(name))
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

/// Reads one back; `bytes` is its size.
pub(super) fn read(path: &Path, bytes: u64) -> Result<Object, ReadError> {
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    File::open(path)?.take(bytes.saturating_add(1)).read_to_end(&mut content)?;
    parse(content.into()).map_err(ReadError::Damaged)
}

/// The body in a spooled payload's file; None when it is none.
pub(in crate::payload) fn body(content: &[u8]) -> Result<Option<Bytes>, &'static str> {
    if !content.starts_with(MAGIC.as_bytes()) {
        return Ok(None);
    }
    parse(Bytes::copy_from_slice(content)).map(|object| Some(object.body.to_bytes()))
}

fn parse(content: Bytes) -> Result<Object, &'static str> {
    let rest = content.strip_prefix(MAGIC.as_bytes()).ok_or("it has no head")?;
    let mut lines = rest.splitn(3, |byte| *byte == b'\n');
    let (Some(sum), Some(head), Some(body)) = (lines.next(), lines.next(), lines.next()) else {
        return Err("its head is cut short");
    };
    if hex(&Sha256::digest(head)).as_bytes() != sum {
        return Err("its head does not match its checksum");
    }
    let head: Head = serde_json::from_slice(head).map_err(|_| "its head is of another version")?;
    let body = Body::from(content.slice_ref(body));
    if body.len() != head.bytes || body.sha256_hex() != head.sha256 {
        return Err("its body does not match its checksum");
    }
    let Head { key, media_type, metadata, .. } = head;
    Ok(Object { key, body, media_type, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Object {
        let metadata = vec![("encoding".to_owned(), "json+zlib".to_owned())];
        Object { key: "a/b\n\"c\"".into(), body: "line\nline\n\0".into(), media_type: "text/plain".into(), metadata }
    }

    #[test]
    fn what_is_written_is_read_back_and_every_other_file_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let object = object();
        write(directory.path(), "x", &head(&object).expect("JSON"), &object.body).expect("written");
        let path = directory.path().join("x");
        let content = std::fs::read(&path).expect("it is there");
        let found = read(&path, content.len() as u64).expect("it is whole");
        assert_eq!((found.key, found.media_type, found.metadata), (object.key, object.media_type, object.metadata));
        assert_eq!(found.body.to_bytes(), object.body.to_bytes());
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 1);
        assert_eq!(body(&content).expect("it is whole"), Some(object.body.to_bytes()));
        assert_eq!(body(b"eJwDAAAAAAE=").expect("another form"), None);

        for length in 0..content.len() {
            assert!(parse(Bytes::copy_from_slice(&content[..length])).is_err(), "cut to {length}");
        }
        for at in 0..content.len() {
            let mut flipped = content.clone();
            flipped[at] ^= 1;
            assert!(parse(flipped.into()).is_err(), "one bit at {at}");
        }
        assert!(parse([&content[..], b"x"].concat().into()).is_err(), "more than it was");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_not_there() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("x")).expect("a directory in its place");
        write(directory.path(), "x", "", &"body".into()).expect_err("it cannot be renamed");
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 1);
    }
}
