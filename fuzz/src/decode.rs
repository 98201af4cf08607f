//! Stored payloads from a foreign hand: what is no payload is an error, nothing unfolds beyond the limit, and what
//! decodes is what was encoded.
//!
//! The first byte says whether the rest is the stored form itself or what is packed into one, and how; the second, how
//! often it is repeated then. Packed inputs get behind the checksums, where no fuzzer comes by chance.

use std::io::Write;

use base64::engine::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use weir::payload::{DecodeError, Limits, decode};

const LIMITS: Limits = Limits { stored_bytes: 1 << 20, json_bytes: 1 << 16 };

#[derive(Clone, Copy)]
enum Form {
    Zlib,
    Gzip,
    Zstd,
}

/// Panics when something does not hold.
pub fn check(input: &[u8]) {
    let [how, times, content @ ..] = input else { return };
    let form = match how & 3 {
        0 => return stored(content),
        1 => Form::Zlib,
        2 => Form::Gzip,
        _ => Form::Zstd,
    };
    let plain = content.repeat(usize::from(*times).clamp(1, 64));
    packed(&plain, &pack(&plain, form, how & 4 != 0));
}

/// Of arbitrary bytes, what decodes has the form of a payload, and can be stored again.
fn stored(stored: &[u8]) {
    let Ok(json) = decode(stored, LIMITS) else { return };
    assert!(json.len() as u64 <= LIMITS.json_bytes, "{} bytes", json.len());
    // As a text, for there is JSON that no tree can hold.
    let _: &serde_json::value::RawValue = serde_json::from_str(&json).expect("what decodes is JSON");
    if let Ok(document) = serde_json::from_str::<serde_json::Value>(&json) {
        assert_eq!(document["schema"], "weir.payload.v1");
    }
    for form in [Form::Zlib, Form::Gzip, Form::Zstd] {
        for base64 in [false, true] {
            let again = decode(&pack(json.as_bytes(), form, base64), LIMITS);
            assert_eq!(again.expect("it has decoded once"), json);
        }
    }
}

/// What is packed comes out as it was, or is refused for what it is.
fn packed(plain: &[u8], stored: &[u8]) {
    match decode(stored, LIMITS) {
        Ok(json) => assert_eq!(json.as_bytes(), plain),
        Err(DecodeError::Bomb { .. }) => assert!(plain.len() as u64 > LIMITS.json_bytes, "{} bytes", plain.len()),
        Err(DecodeError::Json(_) | DecodeError::Foreign { .. }) => {
            assert!(plain.len() as u64 <= LIMITS.json_bytes, "a bomb was unfolded: {} bytes", plain.len());
            assert!(!is_payload(plain), "a payload was refused");
        }
        Err(DecodeError::TooLarge { .. }) => assert!(stored.len() as u64 > LIMITS.stored_bytes),
        Err(error) => panic!("a whole payload is none: {error}"),
    }
    for end in [stored.len() / 2, stored.len() - 1] {
        assert!(decode(&stored[..end], LIMITS).is_err(), "cut to {end} of {} bytes", stored.len());
    }
}

/// Whether it is JSON of this version; a second `schema` makes it doubtful.
fn is_payload(plain: &[u8]) -> bool {
    let once = plain.windows(6).filter(|it| *it == b"schema").count() == 1 && !plain.contains(&b'\\');
    once && serde_json::from_slice::<serde_json::Value>(plain).is_ok_and(|it| it["schema"] == "weir.payload.v1")
}

fn pack(plain: &[u8], form: Form, base64: bool) -> Vec<u8> {
    let compressed = match form {
        Form::Zlib => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(1));
            encoder.write_all(plain).and_then(|()| encoder.finish())
        }
        Form::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
            encoder.write_all(plain).and_then(|()| encoder.finish())
        }
        Form::Zstd => zstd::encode_all(plain, 1),
    }
    .expect("into memory");
    if base64 { STANDARD.encode(compressed).into_bytes() } else { compressed }
}
