//! Where a payload lies:
//! `{prefix}/{shard}/{yyyy}/{mm}/{dd}/{hh}/{integration}/{outcome}/{task id}.{run id}{suffix}`
//!
//! The shard comes first, because S3 takes about 3,500 puts a second per prefix: it is the first hex digit of the task
//! id's SHA-256, so `printf %s ID | sha256sum` finds it. The hour (UTC) is the run's start, which its run id carries:
//! the key follows from the outcome alone. A retry has a run id of its own and never overwrites the failure before it.
//!
//! [`Key`] is what a key says, both ways. Within a shard, the order of keys is the order of hours; within an hour it is
//! that of integrations, outcomes and tasks, and not of time.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::encoding::Encoding;
use crate::task::{IntegrationName, Outcome, RunId, TaskId};

/// How many shards there are; each is one hex digit.
pub const SHARDS: u8 = 16;

/// What the names of payloads end in by default; [`super::Encoding::suffix`] is what they do end in.
pub const SUFFIX: &str = ".json.zlib.b64";

/// The key of the payload of `outcome`, a run of `integration`, stored in a form of that suffix.
pub fn key(prefix: &str, integration: &IntegrationName, outcome: &Outcome, suffix: &str) -> String {
    format(prefix, integration, outcome.label(), &outcome.task, outcome.run, suffix)
}

/// What a key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// What ran.
    pub integration: IntegrationName,
    /// `ok`, or a failure's code; of a later version of weir, perhaps another.
    pub outcome: String,
    /// The task.
    pub task: TaskId,
    /// This run of it.
    pub run: RunId,
    /// One of [`Encoding::SUFFIXES`].
    pub suffix: &'static str,
}

/// A text is not the key of a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} is no key of a payload; one is {right}SHARD/YYYY/MM/DD/HH/INTEGRATION/OUTCOME/TASK.RUN{SUFFIX}")]
pub struct InvalidKey {
    key: String,
    right: String,
}

impl Key {
    /// Reads a key that begins with `prefix`. What is read is written again as it was: nothing else is a key, not with
    /// another shard than the task's, nor with another hour than the run's.
    pub fn parse(prefix: &str, key: &str) -> Result<Key, InvalidKey> {
        let invalid = || InvalidKey { key: key.chars().take(200).collect(), right: base(prefix) };
        Self::read(key).filter(|read| read.format(prefix) == key).ok_or_else(invalid)
    }

    /// The key itself.
    pub fn format(&self, prefix: &str) -> String {
        format(prefix, &self.integration, &self.outcome, &self.task, self.run, self.suffix)
    }

    /// When the run started, to the millisecond; 1970 where its run id carries no time.
    pub fn started(&self) -> Timestamp {
        started(self.run)
    }

    fn read(key: &str) -> Option<Key> {
        let mut parts = key.rsplitn(4, '/');
        let (name, outcome, integration) = (parts.next()?, parts.next()?, parts.next()?);
        let suffix = Encoding::SUFFIXES.into_iter().find(|suffix| name.ends_with(suffix))?;
        let (task, run) = name.strip_suffix(suffix)?.rsplit_once('.')?;
        is_outcome(outcome).then_some(())?;
        Some(Key {
            integration: integration.parse().ok()?,
            outcome: outcome.to_owned(),
            task: task.parse().ok()?,
            run: RunId(Uuid::try_parse(run).ok()?),
            suffix,
        })
    }
}

fn format(
    prefix: &str,
    integration: &IntegrationName,
    outcome: &str,
    task: &TaskId,
    run: RunId,
    suffix: &str,
) -> String {
    let (base, shard, hour) = (base(prefix), shard(task), hour(started(run)));
    format!("{base}{shard:x}/{hour}/{integration}/{outcome}/{task}.{run}{suffix}")
}

/// What stands before the shard.
pub(super) fn base(prefix: &str) -> String {
    format!("{prefix}{}", if prefix.is_empty() { "" } else { "/" })
}

/// The shard of a task's payloads: less than [`SHARDS`].
pub fn shard(task: &TaskId) -> u8 {
    Sha256::digest(task.as_str())[0] >> 4
}

/// The hour in a key, such as `2026/11/22/17`: they sort as texts as they do in time.
pub(super) fn hour(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y/%m/%d/%H").to_string()
}

/// Whether a text may be an outcome's label: `a-z` and `_`.
pub(super) fn is_outcome(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// When a run started, to the millisecond. A run id that was not minted here may carry no time; then it is 1970.
pub fn started(run: RunId) -> Timestamp {
    let time = || {
        let (seconds, nanoseconds) = run.0.get_timestamp()?.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?).ok()
    };
    time().unwrap_or(Timestamp::UNIX_EPOCH)
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
    use proptest::prelude::*;

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

    const STORED: &str = "weir/debug/4/2025/08/20/04/bank/ok/t-1.0198c5d3-0c00-7000-8000-000000000000.json.zlib.b64";

    #[test]
    fn a_key_says_what_is_stored() {
        let key = Key::parse("weir/debug", STORED).expect("a key");
        assert_eq!((key.integration.as_str(), key.outcome.as_str(), key.task.as_str()), ("bank", "ok", "t-1"));
        assert_eq!((key.started().to_string().as_str(), key.suffix), ("2025-08-20T04:53:19.488Z", SUFFIX));
    }

    #[test]
    fn what_is_nearly_a_key_is_none() {
        for (from, to) in [
            ("weir/debug", "weir/other"),
            ("weir/debug/", ""),
            ("/4/", "/5/"),
            ("/4/", "/4/extra/"),
            ("/04/", "/05/"),
            ("/ok/", "/OK/"),
            ("/bank/", "/Bank/"),
            ("/bank/", "/"),
            ("t-1.", "t-2."),
            ("t-1.", ".t-1."),
            ("0c00-", "0C00-"),
            ("-7000-8000-", "70008000"),
            (SUFFIX, ".json"),
            (SUFFIX, ""),
        ] {
            let nearly = STORED.replacen(from, to, 1);
            let error = Key::parse("weir/debug", &nearly).expect_err(&nearly).to_string();
            assert!(error.contains("; one is weir/debug/SHARD/YYYY/"), "{error}");
        }
        assert!(Key::parse("", "payloads/weir-check").is_err());
    }

    fn runs() -> impl Strategy<Value = RunId> {
        // Each millisecond that a version 7 has room for, and ids that carry no time.
        let timed = (0u64..1 << 48, any::<[u8; 10]>())
            .prop_map(|(millis, random)| uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid());
        prop_oneof![4 => timed, 1 => any::<u128>().prop_map(Uuid::from_u128)].prop_map(RunId)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            prefix in "([a-z0-9]{1,3}(/[A-Z0-9._-]{0,2}[a-z]){0,2})?",
            integration in "[a-z0-9][a-z0-9._-]{0,63}",
            outcome in "[a-z_]{1,20}",
            task in "[A-Za-z0-9][A-Za-z0-9._-]{0,127}",
            run in runs(),
            suffix in proptest::sample::select(&Encoding::SUFFIXES[..]),
        ) {
            let (integration, task) = (integration.parse().expect("a name"), task.parse().expect("an id"));
            let key = Key { integration, outcome, task, run, suffix };
            let text = key.format(&prefix);
            prop_assert_eq!(Key::parse(&prefix, &text), Ok(key));
            prop_assert!(Key::parse("no/prefix", &text).is_err());
        }

        #[test]
        fn no_text_is_read_as_what_it_is_not(
            text in "[0-9a-f]/(2026|[0-9]{4})/[01][0-9]/[0-3][0-9]/[0-9]{2}/[a-z/.-]{1,9}/[a-z]{2}/[a-z./]{1,9}.{0,60}",
        ) {
            if let Ok(key) = Key::parse("", &text) {
                prop_assert_eq!(key.format(""), text);
            }
        }
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
