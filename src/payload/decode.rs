//! Reads the stored form back, within bounds, and the JSON itself, as a person has it who has read one back before. The
//! form is told by its first bytes, whatever the name says.

use std::io::{self, Read};

use base64::engine::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::bufread::{GzDecoder, ZlibDecoder};
use serde::Deserialize;

use super::record::SCHEMA;
use super::spool;

/// The largest window that a zstd stream may ask a reader to hold, as a power of two: 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

/// What a reader is ready to hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The stored form.
    pub stored_bytes: u64,
    /// The JSON text; a few kilobytes can unfold to gigabytes.
    pub json_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { stored_bytes: 256 << 20, json_bytes: 256 << 20 }
    }
}

/// Why bytes are not a payload.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There is nothing.
    #[error("the payload is empty")]
    Empty,
    /// The stored form is over the limit.
    #[error("the payload has {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// What it has.
        bytes: u64,
        /// What it may have.
        limit: u64,
    },
    /// The JSON text is over the limit.
    #[error("the payload unfolds to more than the limit of {limit} bytes")]
    Bomb {
        /// What it may have.
        limit: u64,
    },
    /// It ends too early.
    #[error("the payload is cut short: {0}")]
    Truncated(&'static str),
    /// It is not base64.
    #[error("the payload is neither JSON, zlib, gzip, zstd, nor one of these as base64, for it is not base64: {0}")]
    Base64(base64::DecodeError),
    /// It is base64 of something else.
    #[error("the payload is base64 of something that is not zlib, gzip or zstd")]
    Unknown,
    /// It is damaged.
    #[error("the payload is not {name}, or damaged: {error}")]
    Damaged {
        /// The compression that its first bytes tell.
        name: &'static str,
        /// What its decoder says.
        error: io::Error,
    },
    /// It is a file of a spool, and damaged.
    #[error("the payload is a file of a worker's spool, and damaged: {0}")]
    Spooled(&'static str),
    /// It is not JSON.
    #[error("the payload is {what}: {0}", what = if .0.is_eof() { "cut short, or not JSON" } else { "not JSON" })]
    Json(serde_json::Error),
    /// It is another JSON.
    #[error("the JSON is no payload of this version: its schema is {found:?}, and {SCHEMA:?} would be right")]
    Foreign {
        /// What stands in `schema`.
        found: String,
    },
}

/// The JSON text of a stored payload, of one in a worker's spool, or of one that is JSON already. White space around a text
/// form is ignored.
pub fn decode(stored: &[u8], limits: Limits) -> Result<String, DecodeError> {
    if stored.len() as u64 > limits.stored_bytes {
        return Err(DecodeError::TooLarge { bytes: stored.len() as u64, limit: limits.stored_bytes });
    }
    let spooled = spool::body(stored).map_err(DecodeError::Spooled)?;
    let stored = spooled.as_deref().unwrap_or(stored);
    let json = match Form::of(stored) {
        Some(form) => form.unfold(stored, limits.json_bytes)?,
        None if stored.trim_ascii_start().starts_with(b"{") => plain(stored.trim_ascii(), limits.json_bytes)?,
        None => {
            let compressed = from_base64(stored.trim_ascii())?;
            Form::of(&compressed).ok_or(DecodeError::Unknown)?.unfold(&compressed, limits.json_bytes)?
        }
    };
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        schema: String,
    }
    let head: Head = serde_json::from_slice(&json).map_err(DecodeError::Json)?;
    if head.schema != SCHEMA {
        return Err(DecodeError::Foreign { found: head.schema.chars().take(80).collect() });
    }
    String::from_utf8(json).map_err(|error| DecodeError::Json(serde::de::Error::custom(error)))
}

fn plain(json: &[u8], limit: u64) -> Result<Vec<u8>, DecodeError> {
    match json.len() as u64 {
        bytes if bytes > limit => Err(DecodeError::TooLarge { bytes, limit }),
        _ => Ok(json.to_owned()),
    }
}

fn from_base64(stored: &[u8]) -> Result<Vec<u8>, DecodeError> {
    if stored.is_empty() {
        return Err(DecodeError::Empty);
    }
    STANDARD.decode(stored).map_err(|error| {
        let alphabet = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        if !stored.len().is_multiple_of(4) && stored.iter().all(alphabet) {
            return DecodeError::Truncated("its base64 is no multiple of 4 characters");
        }
        DecodeError::Base64(error)
    })
}

/// A compression, told by the first bytes. None of these begins a base64 text.
#[derive(Clone, Copy)]
enum Form {
    Zlib,
    Gzip,
    Zstd,
}

impl Form {
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Form::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Form::Zstd),
            // RFC 1950: deflate with a window of 32 KiB, and a check of the two bytes.
            [0x78, flags, ..] if (0x7800 + u16::from(*flags)).is_multiple_of(31) => Some(Form::Zlib),
            _ => None,
        }
    }

    fn unfold(self, compressed: &[u8], limit: u64) -> Result<Vec<u8>, DecodeError> {
        let damaged = |error: io::Error| self.failed(error);
        let (json, rest) = match self {
            Form::Zlib => read(ZlibDecoder::new(compressed), limit, ZlibDecoder::into_inner),
            Form::Gzip => read(GzDecoder::new(compressed), limit, GzDecoder::into_inner),
            Form::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(damaged)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(damaged)?;
                read(decoder.single_frame(), limit, zstd::stream::read::Decoder::finish)
            }
        }
        .map_err(damaged)?;
        if json.len() as u64 > limit {
            return Err(DecodeError::Bomb { limit });
        }
        match rest.len() {
            0 => Ok(json),
            more => Err(self.failed(io::Error::other(format!("{more} bytes follow its end")))),
        }
    }

    fn failed(self, error: io::Error) -> DecodeError {
        let (name, without_end) = match self {
            Form::Zlib => ("zlib", "its zlib stream has no end"),
            Form::Gzip => ("gzip", "its gzip stream has no end"),
            Form::Zstd => ("zstd", "its zstd stream has no end"),
        };
        match error.kind() {
            io::ErrorKind::UnexpectedEof => DecodeError::Truncated(without_end),
            _ => DecodeError::Damaged { name, error },
        }
    }
}

/// Reads at most one byte more than the limit, and what of the input is left then.
fn read<'i, R: Read>(decoder: R, limit: u64, rest: impl Fn(R) -> &'i [u8]) -> io::Result<(Vec<u8>, &'i [u8])> {
    let mut json = Vec::new();
    let mut decoder = decoder.take(limit.saturating_add(1));
    decoder.read_to_end(&mut json)?;
    Ok((json, rest(decoder.into_inner())))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};

    use super::*;

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(9));
        encoder.write_all(plain).expect("into memory");
        encoder.finish().expect("into memory")
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(9));
        encoder.write_all(plain).expect("into memory");
        encoder.finish().expect("into memory")
    }

    /// Each compression, as it is and as base64.
    fn packed(plain: &[u8]) -> Vec<Vec<u8>> {
        let zstd = zstd::encode_all(plain, 3).expect("into memory");
        let binary = [zlib(plain), gzip(plain), zstd];
        let texts = binary.clone().map(|bytes| STANDARD.encode(bytes).into_bytes());
        binary.into_iter().chain(texts).collect()
    }

    fn error(stored: &[u8]) -> String {
        decode(stored, Limits::default()).expect_err("not a payload").to_string()
    }

    #[test]
    fn each_form_is_told_by_its_first_bytes() {
        let plain = format!(r#"{{"schema":"{SCHEMA}","text":"{}"}}"#, "x".repeat(1000));
        for stored in packed(plain.as_bytes()) {
            assert_eq!(decode(&stored, Limits::default()).expect("decodes"), plain);
        }
        assert_eq!(decode(format!("\n{plain}\n").as_bytes(), Limits::default()).expect("decodes"), plain);
        let text = [b"\n ", &STANDARD.encode(gzip(plain.as_bytes())).into_bytes()[..], b"\r\n"].concat();
        assert_eq!(decode(&text, Limits::default()).expect("decodes"), plain);
    }

    #[test]
    fn every_truncation_and_every_appendix_is_an_error() {
        for stored in packed(format!(r#"{{"schema":"{SCHEMA}","text":"{:?}"}}"#, [7; 99]).as_bytes()) {
            for length in 0..stored.len() {
                assert!(decode(&stored[..length], Limits::default()).is_err(), "cut to {length}");
            }
            let longer = [&stored[..], b"AAAA"].concat();
            assert!(decode(&longer, Limits::default()).is_err(), "{}", String::from_utf8_lossy(&longer));
        }
    }

    #[test]
    fn foreign_bytes_are_named_for_what_they_are() {
        assert_eq!(error(b" \n"), "the payload is empty");
        assert!(error(b"[1]").contains("not base64"));
        assert!(error(b"{\"schema\": 1}").contains("not JSON"));
        assert!(error(b"{\"schema\": \"weir.pay").starts_with("the payload is cut short, or not JSON: EOF"));
        assert!(error(b"{\"log\": {}}").contains("its schema is \"\""));
        assert!(error(STANDARD.encode("hello, this is not zlib").as_bytes()).contains("not zlib"));
        assert!(error(b"\x1f\x8b\x08\0\0\0\0\0\0\0 this is not gzip").contains("not gzip, or damaged"));
        for stored in packed(b"hello") {
            assert!(error(&stored).contains("not JSON"));
        }
        for stored in packed(br#"{"schema":"other"}"#) {
            assert!(error(&stored).contains(r#""weir.payload.v1" would be right"#));
        }
    }

    #[test]
    fn a_bomb_does_not_unfold_and_a_big_one_is_not_decoded() {
        let limits = Limits { stored_bytes: 1 << 20, json_bytes: 1 << 20 };
        for bomb in packed(&vec![b' '; 8 << 20]) {
            let bomb = decode(&bomb, limits).expect_err("a bomb").to_string();
            assert_eq!(bomb, "the payload unfolds to more than the limit of 1048576 bytes");
        }
        let long = format!("{{{}}}", " ".repeat(600 << 10)).into_bytes();
        let limits_of_json = Limits { json_bytes: 512 << 10, ..limits };
        assert!(matches!(decode(&long, limits_of_json), Err(DecodeError::TooLarge { limit: 524_288, .. })));
        let big = decode(&vec![b'A'; 2 << 20], limits).expect_err("too big").to_string();
        assert_eq!(big, "the payload has 2097152 bytes, more than the limit of 1048576");
    }
}
