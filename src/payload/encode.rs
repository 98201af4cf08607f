//! The stored form, written in one pass: JSON → compressor → base64 → chunks. Nowhere is the whole JSON text, and
//! nowhere a whole compressed copy.
//!
//! The serializer writes a few bytes at a time, and each write enters the compressor: a 64 KiB buffer between them
//! makes the pipeline 4.6 times faster (226 instead of 49 MB of JSON a second). The compressor fills 24 KiB at a time,
//! which are 32 KiB of base64, without a remainder: one chunk. So an encoder holds less than 128 KiB beside the
//! compressor's own state, which it keeps from one payload to the next, and the chunks.
//!
//! zlib's level 2 is the default, for there the bytes saved per second of CPU, which is the tasks', stop paying: on the
//! bench's payload level 1 saves 105 MB for each, level 2 another 79 (29% fewer bytes for 20% more time), level 3 and
//! those beyond it 2. `cargo bench --bench encode` measures it on the machine at hand.

use std::io::{self, BufWriter, Write};

use base64::engine::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::{Compress, FlushCompress, Status};
use zstd::stream::raw::{self, CParameter, Operation, OutBuffer};

use super::body::{Body, Builder};
pub use super::decode::{DecodeError, Limits, decode};
use super::encoding::{Compression, Encoding};
use super::har::Document;
use super::record::Redacted;

/// Between the serializer and the compressor, and the most that is compressed at a stretch.
const BUFFER_BYTES: usize = 64 * 1024;

/// What one chunk holds before base64. A multiple of 3, so that base64 has no padding inside.
const COMPRESSED_BYTES: usize = 24 * 1024;

/// zlib's and gzip's window, as a power of two: 32 KiB.
const WINDOW_BITS: u8 = 15;

/// A payload ready to be stored.
#[derive(Debug)]
pub struct Encoded {
    /// The stored form.
    pub body: Body,
    /// The length of the JSON text.
    pub json_bytes: u64,
}

/// Why a payload could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The compressor could not be made.
    #[error("no {name} compressor: {error}")]
    Compressor {
        /// Which.
        name: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The serializer or the compressor failed.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Encodes one payload after the other, with one compressor.
pub struct Encoder {
    encoding: Encoding,
    compressor: Option<Compressor>,
    buffer: Box<[u8]>,
}

impl Encoder {
    /// Makes the compressor only when it is first needed.
    pub fn new(encoding: Encoding) -> Self {
        Encoder { encoding, compressor: None, buffer: vec![0; COMPRESSED_BYTES].into() }
    }

    /// Serializes, compresses and encodes. Calls `between` after each 64 KiB of JSON or so: a place to step aside.
    pub fn encode(&mut self, redacted: &Redacted, between: &mut dyn FnMut()) -> Result<Encoded, EncodeError> {
        let compressor = match self.compressor.take() {
            Some(compressor) => compressor.again(),
            None => Compressor::new(self.encoding),
        };
        let name = self.encoding.compression.as_str();
        let mut compressor = compressor.map_err(|error| EncodeError::Compressor { name, error })?;
        let stream = Stream {
            compressor: &mut compressor,
            buffer: &mut self.buffer,
            filled: 0,
            base64: self.encoding.base64,
            chunks: Builder::default(),
            json_bytes: 0,
            between,
        };
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, stream);
        write_json(redacted, &mut writer)?;
        let stream = writer.into_inner().map_err(|error| serde_json::Error::io(error.into_error()))?;
        let encoded = stream.finish().map_err(serde_json::Error::io)?;
        // Only one that came to its end is used again.
        self.compressor = Some(compressor);
        Ok(encoded)
    }
}

/// Writes a payload's JSON text, a few bytes at a time.
pub fn write_json(redacted: &Redacted, writer: impl Write) -> Result<(), serde_json::Error> {
    serde_json::to_writer(writer, &Document::of(redacted))
}

/// One payload on its way through compressor and base64 into chunks.
struct Stream<'e> {
    compressor: &'e mut Compressor,
    buffer: &'e mut [u8],
    filled: usize,
    base64: bool,
    chunks: Builder,
    json_bytes: u64,
    between: &'e mut dyn FnMut(),
}

impl Stream<'_> {
    fn finish(mut self) -> io::Result<Encoded> {
        loop {
            let (written, is_done) = self.compressor.finish(&mut self.buffer[self.filled..])?;
            self.advance(written);
            if is_done {
                break;
            }
        }
        self.emit();
        Ok(Encoded { body: self.chunks.finish(), json_bytes: self.json_bytes })
    }

    fn advance(&mut self, written: usize) {
        self.filled += written;
        if self.filled == self.buffer.len() {
            self.emit();
        }
    }

    fn emit(&mut self) {
        let compressed = &self.buffer[..self.filled];
        let chunk = match self.base64 {
            true => STANDARD.encode(compressed).into(),
            false => Bytes::copy_from_slice(compressed),
        };
        if !chunk.is_empty() {
            self.chunks.push(chunk);
        }
        self.filled = 0;
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, json: &[u8]) -> io::Result<usize> {
        let mut left = &json[..json.len().min(BUFFER_BYTES)];
        let taken = left.len();
        while !left.is_empty() {
            let (read, written) = self.compressor.compress(left, &mut self.buffer[self.filled..])?;
            left = &left[read..];
            self.advance(written);
        }
        self.json_bytes += taken as u64;
        (self.between)();
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A compressor's state, used for one payload after the other.
enum Compressor {
    Deflate(Compress),
    Zstd(raw::Encoder<'static>),
}

impl Compressor {
    fn new(Encoding { compression, level, .. }: Encoding) -> io::Result<Self> {
        let deflate_level = flate2::Compression::new(level);
        match compression {
            Compression::Zlib => Ok(Compressor::Deflate(Compress::new(deflate_level, true))),
            Compression::Gzip => Ok(Compressor::Deflate(Compress::new_gzip(deflate_level, WINDOW_BITS))),
            Compression::Zstd => {
                let mut encoder = raw::Encoder::new(level as i32)?;
                // Four bytes, so that damage is found wherever the payload lies; zlib and gzip have theirs always.
                encoder.set_parameter(CParameter::ChecksumFlag(true))?;
                Ok(Compressor::Zstd(encoder))
            }
        }
    }

    /// Ready for the next payload.
    fn again(mut self) -> io::Result<Self> {
        match &mut self {
            Compressor::Deflate(deflate) => deflate.reset(),
            Compressor::Zstd(zstd) => zstd.reinit()?,
        }
        Ok(self)
    }

    /// Returns how much was read of `input` and written to `output`, which must not be empty.
    fn compress(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize)> {
        match self {
            Compressor::Deflate(deflate) => {
                let (read, written, _) = step(deflate, input, output, FlushCompress::None)?;
                Ok((read, written))
            }
            Compressor::Zstd(zstd) => {
                zstd.run_on_buffers(input, output).map(|status| (status.bytes_read, status.bytes_written))
            }
        }
    }

    /// Writes what is left; true when that was all.
    fn finish(&mut self, output: &mut [u8]) -> io::Result<(usize, bool)> {
        match self {
            Compressor::Deflate(deflate) => {
                let (_, written, status) = step(deflate, &[], output, FlushCompress::Finish)?;
                Ok((written, matches!(status, Status::StreamEnd)))
            }
            Compressor::Zstd(zstd) => {
                let mut output = OutBuffer::around(output);
                let left = zstd.finish(&mut output, true)?;
                Ok((output.pos(), left == 0))
            }
        }
    }
}

fn step(
    deflate: &mut Compress,
    input: &[u8],
    output: &mut [u8],
    flush: FlushCompress,
) -> io::Result<(usize, usize, Status)> {
    let (read, written) = (deflate.total_in(), deflate.total_out());
    let status = deflate.compress(input, output, flush).map_err(io::Error::other)?;
    Ok(((deflate.total_in() - read) as usize, (deflate.total_out() - written) as usize, status))
}

/// The stored form in one piece, for tests.
#[cfg(test)]
pub(super) struct Whole {
    pub body: Bytes,
    pub json_bytes: u64,
}

/// Encodes one payload as the default does, for tests.
#[cfg(test)]
pub(super) fn encode(redacted: &Redacted, level: u32) -> Result<Whole, EncodeError> {
    let encoded = Encoder::new(Encoding { level, ..Encoding::default() }).encode(redacted, &mut || ())?;
    Ok(Whole { body: encoded.body.to_bytes(), json_bytes: encoded.json_bytes })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::redact::redact;
    use super::super::tests::{message, record};
    use super::*;
    use crate::payload::Record;

    fn all_encodings() -> impl Iterator<Item = Encoding> {
        let levels = [(Compression::Zlib, 0), (Compression::Zlib, 1), (Compression::Zlib, 9)];
        let others = [(Compression::Gzip, 1), (Compression::Zstd, 1), (Compression::Zstd, 9)];
        let encoding = |(compression, level)| [true, false].map(|base64| Encoding { compression, level, base64 });
        levels.into_iter().chain(others).flat_map(encoding)
    }

    /// A record with one body of noise, which does not compress.
    fn noisy(bytes: usize) -> Record {
        let mut record = record("t-1");
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b'!' + (state >> 40) as u8 % 90
        };
        let body: Vec<u8> = (0..bytes).map(|_| next()).collect();
        record.transcript.exchanges[0].response.as_mut().expect("an answer").message = message("text/plain", &body);
        record
    }

    fn plain(redacted: &Redacted) -> String {
        let mut json = Vec::new();
        write_json(redacted, &mut json).expect("into memory");
        String::from_utf8(json).expect("JSON")
    }

    #[test]
    fn what_is_encoded_can_be_read_back() {
        for encoding in all_encodings() {
            let mut encoder = Encoder::new(encoding);
            for bytes in [10, 3_000_000, 0, 100_000] {
                let redacted = redact(noisy(bytes));
                let encoded = encoder.encode(&redacted, &mut || ()).expect("encodes");
                let json = decode(&encoded.body.to_bytes(), Limits::default()).expect("decodes");
                assert_eq!(json.len() as u64, encoded.json_bytes);
                assert_eq!(json, plain(&redacted), "{encoding}");
                assert!(json.starts_with(r#"{"schema":"weir.payload.v1","task":{"id":"t-1""#));
                let largest = encoded.body.chunks().iter().map(Bytes::len).max();
                assert!(largest <= Some(COMPRESSED_BYTES / 3 * 4), "{largest:?}");
            }
        }
    }

    #[test]
    fn other_programs_read_it_too() {
        let redacted = redact(record("t-1"));
        let encoded = encode(&redacted, 6).expect("encodes");
        let mut json = String::new();
        let compressed = STANDARD.decode(&encoded.body).expect("base64 with padding");
        io::Read::read_to_string(&mut flate2::read::ZlibDecoder::new(&compressed[..]), &mut json).expect("zlib");
        assert_eq!((json.len() as u64, json), (encoded.json_bytes, plain(&redacted)));
    }

    #[test]
    fn an_encoder_steps_aside_after_each_buffer_however_large_a_body_is() {
        let mut times = 0;
        let mut encoder = Encoder::new(Encoding::default());
        encoder.encode(&redact(noisy(1 << 20)), &mut || times += 1).expect("encodes");
        assert!((16..40).contains(&times), "{times}");
    }

    #[test]
    fn a_payload_that_fails_does_not_spoil_the_next() {
        for encoding in all_encodings() {
            let mut encoder = Encoder::new(encoding);
            let redacted = redact(noisy(500_000));
            let fails = || encoder.encode(&redacted, &mut || panic!("on purpose"));
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(fails)).expect_err("it panics");
            let encoded = encoder.encode(&redacted, &mut || ()).expect("encodes");
            assert_eq!(decode(&encoded.body.to_bytes(), Limits::default()).expect("decodes"), plain(&redacted));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_length_comes_back(bytes in 0usize..200_000, which in 0usize..12) {
            let encoding = all_encodings().nth(which).expect("twelve of them");
            let redacted = redact(noisy(bytes));
            let encoded = Encoder::new(encoding).encode(&redacted, &mut || ()).expect("encodes");
            prop_assert_eq!(decode(&encoded.body.to_bytes(), Limits::default()).expect("decodes"), plain(&redacted));
        }
    }
}
