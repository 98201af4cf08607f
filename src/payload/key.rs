//! Where a payload lies:
//! `{prefix}/{shard}/{yyyy}/{mm}/{dd}/{hh}/{integration}/{outcome}/{task id}.{run id}{suffix}`
//!
//! The shard comes first, because S3 takes about 3,500 puts a second per prefix: it is the first hex digit of the task
//! id's SHA-256, so `printf %s ID | sha256sum` finds it. The hour (UTC) is the run's start, which its run id carries:
//! the key follows from the outcome alone. A retry has a run id of its own and never overwrites the failure before it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};

use crate::task::{IntegrationName, Outcome, RunId};

/// What the names of payloads end in by default; [`super::Encoding::suffix`] is what they do end in.
pub const SUFFIX: &str = ".json.zlib.b64";

/// The key of the payload of `outcome`, a run of `integration`, stored in a form of that suffix.
pub fn key(prefix: &str, integration: &IntegrationName, outcome: &Outcome, suffix: &str) -> String {
    let shard = Sha256::digest(outcome.task.as_str())[0] >> 4;
    let started = started(outcome.run).to_zoned(TimeZone::UTC);
    let slash = if prefix.is_empty() { "" } else { "/" };
    format!(
        "{prefix}{slash}{shard:x}/{}/{integration}/{}/{}.{}{suffix}",
        started.strftime("%Y/%m/%d/%H"),
        outcome.label(),
        outcome.task,
        outcome.run,
    )
}

/// When a run started. A run id that was not minted here may carry no time; then it is 1970.
fn started(run: RunId) -> Timestamp {
    let seconds = run.0.get_timestamp().map_or(0, |timestamp| timestamp.to_unix().0);
    Timestamp::from_second(i64::try_from(seconds).unwrap_or(0)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Whether `prefix` can start keys in every store: segments of `A-Z a-z 0-9 . _ -` between single slashes, no `.`
/// first.
pub(super) fn prefix_is_valid(prefix: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let segment = |segment: &str| !segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(allowed);
    prefix.is_empty() || (prefix.len() <= 200 && prefix.split('/').all(segment))
}

#[cfg(test)]
mod tests {
    use super::super::tests::outcome;
    use super::*;

    #[test]
    fn a_key_follows_from_the_outcome() {
        let run = "0198c5d3-0c00-7000-8000-000000000000".parse().expect("a run id");
        let mut outcome = outcome("t-1");
        outcome.run = RunId(run);
        let integration = "bank".parse().expect("a name");
        assert_eq!(
            key("weir/debug", &integration, &outcome, SUFFIX),
            "weir/debug/4/2025/08/20/04/bank/ok/t-1.0198c5d3-0c00-7000-8000-000000000000.json.zlib.b64"
        );
        assert!(key("", &integration, &outcome, ".json.zst").starts_with("4/2025"));
    }

    #[test]
    fn prefixes_are_checked() {
        for good in ["", "weir", "a/b.c/d-e"] {
            assert!(prefix_is_valid(good), "{good}");
        }
        for bad in ["/", "a/", "/a", "a//b", "a/../b", "ä", "a b"] {
            assert!(!prefix_is_valid(bad), "{bad}");
        }
    }
}
