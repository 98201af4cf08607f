//! An encoded payload: a list of chunks, so that none of it is ever copied into one piece, and its checksum.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// The bytes of a stored payload. Clones share them.
#[derive(Clone)]
pub struct Body {
    chunks: Arc<[Bytes]>,
    len: u64,
    sha256: [u8; 32],
}

impl Body {
    /// Its pieces in order.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its SHA-256.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Its SHA-256 in hex.
    pub fn sha256_hex(&self) -> String {
        hex(&self.sha256)
    }

    /// All of it in one piece: a copy. For readers and tests, not for the way to the store.
    pub fn to_bytes(&self) -> Bytes {
        match &*self.chunks {
            [one] => one.clone(),
            many => many.concat().into(),
        }
    }
}

/// The bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let mut builder = Builder::default();
        builder.push(bytes);
        builder.finish()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.len)
    }
}

/// A body in the making.
#[derive(Default)]
pub(super) struct Builder {
    chunks: Vec<Bytes>,
    len: u64,
    sha256: Sha256,
}

impl Builder {
    pub fn push(&mut self, chunk: Bytes) {
        self.sha256.update(&chunk);
        self.len += chunk.len() as u64;
        self.chunks.push(chunk);
    }

    pub fn finish(self) -> Body {
        Body { chunks: self.chunks.into(), len: self.len, sha256: self.sha256.finalize().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_a_whole_with_one_checksum() {
        let mut builder = Builder::default();
        for piece in ["ab", "", "c"] {
            builder.push(Bytes::from_static(piece.as_bytes()));
        }
        let body = builder.finish();
        assert_eq!((body.len(), body.is_empty(), &body.to_bytes()[..]), (3, false, &b"abc"[..]));
        assert_eq!(body.sha256_hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(body.sha256(), Body::from("abc").sha256());
    }
}
