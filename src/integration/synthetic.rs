//! Artificial work for tests and benches; served only where it is configured.
//!
//! The input is an object that says what to do, such as `{"do": "sleep", "ms": 100}`:
//!
//! | key | type, unit | default | what it is |
//! |---|---|---|---|
//! | `do` | `noop`, `sleep`, `spin`, `block`, `panic`, `ignore_cancellation`, `allocate`, `fail` | none | what to do |
//! | `ms` | integer, milliseconds, at most 600,000 | 0 | for how long |
//! | `bytes` | integer, bytes, at most 1 GiB | 0 | the memory that `allocate` holds |
//! | `transcript_bytes` | integer, bytes, at most 1 GiB | 0 | the length of a note in the transcript |
//! | `output_bytes` | integer, bytes, at most 1 GiB | 0 | the length of `filler` in the output, which is `{}` without it |
//!
//! An input that does not fit is a permanent error, and so is `fail`. Some of it misbehaves on purpose: `block` stops an
//! async thread, `ignore_cancellation` runs on after its task has ended, `panic` panics. docs/sandbox.md has the whole of
//! it for whoever submits such tasks.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{Context, Error, Integration, Invalid};
use crate::task::Json;

/// The longest piece of work.
const MAX_MS: u64 = 10 * 60 * 1_000;

/// The most memory, and the longest output.
const MAX_BYTES: usize = 1024 * 1024 * 1024;

/// Memory is touched once in each page, so that it is really there.
const PAGE_BYTES: usize = 4096;

/// There is nothing to configure: `kind = "synthetic"` is all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

/// The integration.
pub struct Synthetic(());

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(rename = "do")]
    what: What,
    #[serde(default)]
    ms: u64,
    #[serde(default)]
    bytes: usize,
    #[serde(default)]
    transcript_bytes: usize,
    #[serde(default)]
    output_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Noop,
    Sleep,
    Spin,
    Block,
    Panic,
    IgnoreCancellation,
    Allocate,
    Fail,
}

#[derive(Serialize)]
struct Output {
    #[serde(rename = "filler", skip_serializing_if = "String::is_empty")]
    filler: String,
}

impl Synthetic {
    /// Ready to run.
    pub fn new(Config {}: &Config) -> Result<Self, Invalid> {
        Ok(Synthetic(()))
    }
}

#[async_trait]
impl Integration for Synthetic {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        let input: Input = context.input()?;
        input.check()?;
        if input.transcript_bytes > 0 {
            context.note(text(context, input.transcript_bytes));
        }
        input.perform(context).await?;
        let filler = if input.output_bytes > 0 { "x".repeat(input.output_bytes) } else { String::new() };
        Json::of(&Output { filler }).map_err(|error| Error::permanent(format!("the output is not JSON: {error}")))
    }
}

impl Input {
    fn check(&self) -> Result<(), Error> {
        if self.ms > MAX_MS {
            return Err(Error::permanent(format!("ms is {}: use at most {MAX_MS}", self.ms)));
        }
        let sizes =
            [("bytes", self.bytes), ("transcript_bytes", self.transcript_bytes), ("output_bytes", self.output_bytes)];
        match sizes.into_iter().find(|(_, value)| *value > MAX_BYTES) {
            Some((key, value)) => Err(Error::permanent(format!("{key} is {value}: use at most {MAX_BYTES}"))),
            None => Ok(()),
        }
    }

    async fn perform(&self, context: &Context) -> Result<(), Error> {
        let time = Duration::from_millis(self.ms);
        match self.what {
            What::Noop => Ok(()),
            What::Sleep => sleep(context, time).await,
            What::Spin => spin(context, time).await,
            What::Block => {
                std::thread::sleep(time);
                Ok(())
            }
            What::Panic => panic!("a synthetic task was told to panic"),
            What::IgnoreCancellation => context.blocking(move || std::thread::sleep(time)).await,
            What::Allocate => {
                let size = self.bytes;
                let memory = context.blocking(move || allocate(size)).await?;
                let slept = sleep(context, time).await;
                drop(memory);
                slept
            }
            What::Fail => Err(Error::permanent("a synthetic task was told to fail")),
        }
    }
}

async fn sleep(context: &Context, time: Duration) -> Result<(), Error> {
    tokio::select! {
        () = context.cancelled() => Err(cancelled()),
        () = tokio::time::sleep(time) => Ok(()),
    }
}

async fn spin(context: &Context, time: Duration) -> Result<(), Error> {
    let token = context.token();
    let finished = context.blocking(move || {
        let began = std::time::Instant::now();
        while began.elapsed() < time {
            if token.is_cancelled() {
                return false;
            }
            std::hint::spin_loop();
        }
        true
    });
    if finished.await? { Ok(()) } else { Err(cancelled()) }
}

fn allocate(size: usize) -> Vec<u8> {
    let mut memory = vec![0_u8; size];
    for page in memory.chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    std::hint::black_box(memory)
}

fn cancelled() -> Error {
    Error::retryable("cancelled")
}

/// Text that compresses about as a bank's JSON does, the same for the same task.
fn text(context: &Context, size: usize) -> String {
    let mut hasher = DefaultHasher::new();
    context.task().id.hash(&mut hasher);
    let mut random = StdRng::seed_from_u64(hasher.finish());
    let mut text = String::with_capacity(size + 128);
    while text.len() < size {
        let (id, cents, day): (u64, u32, u8) =
            (random.random(), random.random_range(0..1_000_000), random.random_range(1..29));
        text.push_str(&format!(
            r#"{{"id":"{id:016x}","amount":"{}.{:02}","currency":"EUR","booked":"2026-01-{day:02}"}},"#,
            cents / 100,
            cents % 100
        ));
    }
    text.truncate(size);
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::integration::testing;
    use crate::lifecycle::Lifecycle;
    use crate::task::Remedy;

    async fn run(input: &str) -> Result<Json, Error> {
        Synthetic(()).run(&testing::context(input)).await
    }

    #[tokio::test]
    async fn it_does_what_the_input_says() {
        for good in [
            r#"{"do": "noop"}"#,
            r#"{"do": "sleep", "ms": 1}"#,
            r#"{"do": "spin", "ms": 1}"#,
            r#"{"do": "block", "ms": 1}"#,
            r#"{"do": "ignore_cancellation", "ms": 1}"#,
            r#"{"do": "allocate", "bytes": 100000}"#,
        ] {
            assert_eq!(run(good).await.expect(good).as_str(), "{}");
        }
        assert_eq!(run(r#"{"do": "noop", "output_bytes": 3}"#).await.expect("output").as_str(), r#"{"filler":"xxx"}"#);
        assert_eq!(run(r#"{"do": "fail"}"#).await.expect_err("told to").remedy, Remedy::None);
    }

    #[test]
    fn each_key_and_each_kind_of_work_is_documented() {
        let page = include_str!("../../docs/sandbox.md");
        let unknown = serde_json::from_str::<Input>(r#"{"": 1}"#).expect_err("no such key").to_string();
        let what = serde_json::from_str::<What>(r#""""#).expect_err("no such work").to_string();
        let texts = [unknown, what];
        let named: Vec<_> = texts.iter().flat_map(|text| text.split('`').skip(1).step_by(2)).collect();
        assert!(named.contains(&"ignore_cancellation") && named.contains(&"transcript_bytes"), "{named:?}");
        for name in named.into_iter().filter(|name| !name.is_empty()) {
            assert!(page.contains(&format!("| `{name}` |")), "{name}");
        }
    }

    #[tokio::test]
    async fn a_wrong_input_is_a_permanent_error_that_says_what_is_wrong() {
        for (bad, says) in [
            (r#"{"do": "dance"}"#, "unknown variant `dance`"),
            (r#"{"do": "sleep", "seconds": 1}"#, "unknown field `seconds`"),
            (r#"{"do": "sleep", "ms": 600001}"#, "at most 600000"),
            (r#"{"do": "allocate", "bytes": 1073741825}"#, "at most 1073741824"),
            (r"[]", "the input does not fit"),
        ] {
            let error = run(bad).await.expect_err(bad);
            assert!(error.remedy == Remedy::None && error.message.contains(says), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sleep_ends_with_the_cancellation() {
        let cancel = CancellationToken::new();
        let input = r#"{"do": "sleep", "ms": 600000}"#;
        let context = testing::context_on(&Lifecycle::new(), input, 1, Arc::new(()), cancel.clone());
        let (result, ()) = tokio::join!(Synthetic(()).run(&context), async { cancel.cancel() });
        assert_eq!(result.expect_err("cancelled").message, "cancelled");
    }

    #[tokio::test]
    async fn the_transcript_has_the_asked_size_and_is_the_same_each_time() {
        let mut notes = Vec::new();
        for _ in 0..2 {
            let context = testing::context(r#"{"do": "noop", "transcript_bytes": 200000}"#);
            Synthetic(()).run(&context).await.expect("runs");
            notes.push(context.recorder().take().notes.remove(0).text);
        }
        assert_eq!(notes[0].len(), 200_000);
        assert_eq!(notes[0], notes[1]);
    }
}
