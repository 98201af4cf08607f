//! How payloads are stored: which compression, how hard, and whether as text. Names and metadata follow from it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// What an object's metadata are called.
pub(super) mod metadata {
    pub const ENCODING: &str = "encoding";
    pub const SCHEMA: &str = "schema";
    /// The length of the JSON text.
    pub const JSON_BYTES: &str = "json-bytes";
    /// The length of the stored form.
    pub const STORED_BYTES: &str = "stored-bytes";
    /// The checksum of the stored form, in hex.
    pub const SHA256: &str = "sha256";
}

/// How the JSON is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// zlib: RFC 1950.
    Zlib,
    /// gzip: RFC 1952, what `gunzip` and `zcat` read.
    Gzip,
    /// Zstandard: RFC 8878, smaller and faster at once.
    Zstd,
}

/// The stored form of payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Encoding {
    /// The compression.
    pub compression: Compression,
    /// 0 (none) to 9 (small and slow) for zlib and gzip, 1 to 19 for zstd.
    pub level: u32,
    /// Whether the compressed bytes are written as base64 text.
    pub base64: bool,
}

impl Default for Encoding {
    fn default() -> Self {
        Encoding { compression: Compression::Zlib, level: 2, base64: true }
    }
}

impl Compression {
    /// What it is called in settings, metadata and names.
    pub fn as_str(self) -> &'static str {
        match self {
            Compression::Zlib => "zlib",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

impl Encoding {
    /// Each [`Encoding::suffix`]. None ends with another.
    pub const SUFFIXES: [&'static str; 6] =
        [".json.zlib.b64", ".json.zlib", ".json.gz.b64", ".json.gz", ".json.zst.b64", ".json.zst"];

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let levels = match self.compression {
            Compression::Zlib | Compression::Gzip => 0..=9,
            Compression::Zstd => 1..=19,
        };
        if levels.contains(&self.level) {
            return Ok(());
        }
        let right =
            format!("with compression = {:?} use {} to {}", self.compression.as_str(), levels.start(), levels.end());
        Err(ConfigError::new("level", self.level, right))
    }

    /// What payloads' names end in.
    pub fn suffix(&self) -> &'static str {
        match (self.compression, self.base64) {
            (Compression::Zlib, true) => ".json.zlib.b64",
            (Compression::Zlib, false) => ".json.zlib",
            (Compression::Gzip, true) => ".json.gz.b64",
            (Compression::Gzip, false) => ".json.gz",
            (Compression::Zstd, true) => ".json.zst.b64",
            (Compression::Zstd, false) => ".json.zst",
        }
    }

    /// The media type of the stored form.
    pub fn media_type(&self) -> &'static str {
        match (self.base64, self.compression) {
            (true, _) => "text/plain",
            (false, Compression::Zlib) => "application/zlib",
            (false, Compression::Gzip) => "application/gzip",
            (false, Compression::Zstd) => "application/zstd",
        }
    }
}

/// What `encoding` says in an object's metadata, such as `json+zlib+base64`.
impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "json+{}{}", self.compression.as_str(), if self.base64 { "+base64" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_suffix_is_listed() {
        for compression in [Compression::Zlib, Compression::Gzip, Compression::Zstd] {
            for base64 in [true, false] {
                let suffix = Encoding { compression, level: 1, base64 }.suffix();
                let ends: Vec<_> = Encoding::SUFFIXES.iter().filter(|known| suffix.ends_with(*known)).collect();
                assert_eq!(ends, [&suffix]);
            }
        }
    }

    #[test]
    fn levels_are_checked_by_the_compression() {
        let check = |compression, level| Encoding { compression, level, base64: true }.check();
        for (compression, level) in [(Compression::Zlib, 0), (Compression::Gzip, 9), (Compression::Zstd, 19)] {
            check(compression, level).expect("valid");
        }
        let error = check(Compression::Zlib, 10).expect_err("too high").to_string();
        assert_eq!(error, "payloads.level is 10; with compression = \"zlib\" use 0 to 9");
        let error = check(Compression::Zstd, 0).expect_err("too low").to_string();
        assert_eq!(error, "payloads.level is 0; with compression = \"zstd\" use 1 to 19");
    }
}
