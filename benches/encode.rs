//! What encoding costs: each stage alone and all of them together, on 2 MB of HAR-like JSON, redaction apart; what an
//! encoder holds beside its compressor's state; and what each level of each compression buys.
//!
//! ```text
//! cargo bench --bench encode
//! ```
//!
//! All runs are interleaved, so that a machine that becomes slower does so for all of them. Targets: the stages together
//! take no longer than the sum of their times alone, by 0.95 or better; and at most 128 KiB.

#[path = "support/har.rs"]
mod har;
#[path = "support/spread.rs"]
mod spread;

use std::hint::black_box;
use std::io::{self, BufWriter, Write};
use std::time::{Duration, Instant};

use base64::engine::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::{Compress, FlushCompress, Status};
use peak_alloc::PeakAlloc;
use sha2::{Digest, Sha256};
use spread::Spread;
use weir::payload::encode::{Encoder, write_json};
use weir::payload::redact::Redactor;
use weir::payload::{Compression, Encoding, Redacted};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const PAYLOAD_BYTES: usize = 2_000_000;
const ROUNDS: usize = 60;
const BUFFER_BYTES: usize = 64 * 1024;
const CHUNK_BYTES: usize = 24 * 1024;

const MOST_BYTES: usize = 128 * 1024;
const LEAST_RATIO: f64 = 0.95;

fn main() {
    let redactor = Redactor::new(&Default::default()).expect("valid settings");
    let redacted = redactor.redact(har::record("t-1", PAYLOAD_BYTES));
    let mut json = Vec::new();
    write_json(&redacted, &mut json).expect("into memory");
    println!("{} bytes of JSON, {ROUNDS} interleaved rounds, medians (10th and 90th percentile)\n", json.len());
    stages(&redacted, &json);
    redaction(&redactor, json.len());
    memory(&redacted);
    levels(&redacted, json.len());
}

// ── stages

fn stages(redacted: &Redacted, json: &[u8]) {
    let mut deflate = Compress::new(flate2::Compression::new(2), true);
    let (mut compressed, mut text) = (Vec::new(), Vec::new());
    compress(&mut deflate, json, |chunk| compressed.extend_from_slice(chunk));
    compressed.chunks(CHUNK_BYTES).for_each(|chunk| text.extend(STANDARD.encode(chunk).bytes()));
    let mut encoder = Encoder::new(Encoding::default());

    let mut runs: [(&str, Spread); 5] =
        ["JSON", "zlib, level 2", "base64", "SHA-256", "all together"].map(|it| (it, Spread::default()));
    for _ in 0..ROUNDS {
        runs[0].1.add(timed(|| serialize(redacted)));
        runs[1].1.add(timed(|| compress(&mut deflate, json, |chunk| _ = black_box(chunk))));
        runs[2]
            .1
            .add(timed(|| compressed.chunks(CHUNK_BYTES).for_each(|chunk| drop(black_box(STANDARD.encode(chunk))))));
        runs[3].1.add(timed(|| text.chunks(CHUNK_BYTES / 3 * 4).fold(Sha256::new(), Sha256::chain_update).finalize()));
        runs[4].1.add(timed(|| encoder.encode(redacted, &mut || ()).expect("encodes")));
    }
    println!("{:<16}{:>10}{:>22}{:>14}", "stage", "ms", "", "MB of JSON/s");
    for (name, spread) in &mut runs {
        let (low, high) = (spread.quantile(0.1), spread.quantile(0.9));
        let median = spread.quantile(0.5);
        let around = format!("({:.2} to {:.2})", ms(low), ms(high));
        println!("{name:<16}{:>10.2}{around:>22}{:>14.0}", ms(median), json.len() as f64 / 1e6 / median.as_secs_f64());
    }
    let alone: Duration = runs[..4].iter_mut().map(|(_, spread)| spread.quantile(0.5)).sum();
    let ratio = alone.as_secs_f64() / runs[4].1.quantile(0.5).as_secs_f64();
    println!(
        "\nharmonic sum of the stages alone: {:.2} ms; all together reach {ratio:.3} of it (target: {LEAST_RATIO} or more)\n",
        ms(alone)
    );
}

/// What comes before it, on the same thread. It is in no target: it takes as long as what is looked for is worth.
fn redaction(redactor: &Redactor, bytes: usize) {
    let mut spread = Spread::default();
    for _ in 0..ROUNDS {
        let record = har::record("t-1", PAYLOAD_BYTES);
        let mut redacted = None;
        spread.add(timed(|| redacted = Some(redactor.redact(record))));
        black_box(redacted);
    }
    let [low, median, high] = [0.1, 0.5, 0.9].map(|share| spread.quantile(share));
    let speed = bytes as f64 / 1e6 / median.as_secs_f64();
    println!("redaction: {:.2} ms ({:.2} to {:.2}), {speed:.0} MB of JSON/s\n", ms(median), ms(low), ms(high));
}

fn serialize(redacted: &Redacted) {
    struct Counted(u64);
    impl Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += black_box(bytes).len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, Counted(0));
    write_json(redacted, &mut writer).expect("into nothing");
    black_box(writer.into_inner().map_err(|_| ()).expect("into nothing").0);
}

fn compress(deflate: &mut Compress, json: &[u8], mut take: impl FnMut(&[u8])) {
    deflate.reset();
    let (mut buffer, mut filled) = (vec![0; CHUNK_BYTES], 0);
    let pieces = json.chunks(BUFFER_BYTES).map(|piece| (piece, FlushCompress::None));
    for (mut piece, flush) in pieces.chain([(&[][..], FlushCompress::Finish)]) {
        loop {
            let (read, written) = (deflate.total_in(), deflate.total_out());
            let status = deflate.compress(piece, &mut buffer[filled..], flush).expect("compresses");
            piece = &piece[(deflate.total_in() - read) as usize..];
            filled += (deflate.total_out() - written) as usize;
            let is_done = status == Status::StreamEnd || (piece.is_empty() && flush == FlushCompress::None);
            if filled == buffer.len() || status == Status::StreamEnd {
                take(&buffer[..filled]);
                filled = 0;
            }
            if is_done {
                break;
            }
        }
    }
}

// ── memory

fn memory(redacted: &Redacted) {
    println!("{:<16}{:>12}{:>14}{:>12}{:>16}", "held, bytes", "at its peak", "compressor", "output", "beyond them");
    for compression in [Compression::Zlib, Compression::Gzip] {
        let before = ALLOCATOR.current_usage();
        let state = Compress::new(flate2::Compression::new(2), true);
        let state_bytes = ALLOCATOR.current_usage() - before;
        drop(state);
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let mut encoder = Encoder::new(Encoding { compression, ..Encoding::default() });
        let encoded = encoder.encode(redacted, &mut || ()).expect("encodes");
        let peak = ALLOCATOR.peak_usage() - before;
        let output = encoded.body.len() as usize;
        let beyond = peak.saturating_sub(state_bytes + output);
        println!("{:<16}{peak:>12}{state_bytes:>14}{output:>12}{beyond:>16}", compression.as_str());
        println!("{:<16}{:>54}", "", format!("(target: at most {MOST_BYTES})"));
    }
    println!("(zstd's memory is the C library's own and is not counted)\n");
}

// ── levels

fn levels(redacted: &Redacted, json_bytes: usize) {
    const LEVELS: [(Compression, u32); 10] = [
        (Compression::Zlib, 1),
        (Compression::Zlib, 2),
        (Compression::Zlib, 3),
        (Compression::Zlib, 4),
        (Compression::Zlib, 6),
        (Compression::Zlib, 9),
        (Compression::Zstd, 1),
        (Compression::Zstd, 3),
        (Compression::Zstd, 6),
        (Compression::Zstd, 9),
    ];
    let of = |(compression, level)| (Encoder::new(Encoding { compression, level, base64: true }), Spread::default(), 0);
    let mut runs: Vec<_> = LEVELS.into_iter().map(of).collect();
    for _ in 0..ROUNDS / 4 {
        for (encoder, spread, stored) in &mut runs {
            spread.add(timed(|| *stored = encoder.encode(redacted, &mut || ()).expect("encodes").body.len()));
        }
    }
    println!("{:<10}{:>6}{:>14}{:>12}{:>28}", "", "level", "MB of JSON/s", "stored", "MB saved per CPU second");
    println!("{:<10}{:>6}{:>14}{:>12}{:>28}", "", "", "", "", "beyond the level before");
    let mut before: Option<(Compression, f64, f64)> = None;
    for ((compression, level), (_, spread, stored)) in LEVELS.into_iter().zip(&mut runs) {
        let (seconds, stored) = (spread.quantile(0.5).as_secs_f64(), *stored as f64);
        let saved = match before {
            Some((same, seconds_before, stored_before)) if same == compression => {
                (stored_before - stored) / 1e6 / (seconds - seconds_before).max(1e-9)
            }
            _ => (json_bytes as f64 - stored) / 1e6 / seconds,
        };
        before = Some((compression, seconds, stored));
        let speed = json_bytes as f64 / 1e6 / seconds;
        println!("{:<10}{level:>6}{speed:>14.0}{stored:>12.0}{saved:>28.1}", compression.as_str());
    }
}

fn timed<T>(run: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    black_box(run());
    started.elapsed()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
