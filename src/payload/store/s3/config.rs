//! `[payloads.s3]`: which bucket, how to reach it, and how it keeps what it gets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sockets::trust;
use crate::payload::ConfigError;
use crate::payload::store::UPLOAD_DEADLINE;

/// S3 closes unused connections after about 20 s.
const LONGEST_IDLE: Duration = Duration::from_secs(15);

/// Tags that an object in S3 can have.
const MAX_TAGS: usize = 10;

/// Where the bucket is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The bucket; it must exist.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// The URL of a store other than AWS.
    pub endpoint: Option<String>,
    /// Puts the bucket into the path instead of the host name, as most stores other than AWS need it.
    pub path_style: bool,
    /// A file of certificates in PEM to trust beside the system's, for an endpoint with a private authority.
    pub ca_file: Option<PathBuf>,
    /// `when_required` for stores that refuse checksums of the newer kind; else `when_supported`.
    pub checksums: Checksums,
    /// Which key the store encrypts with, beyond the bucket's own default.
    pub encryption: Encryption,
    /// For `encryption = "kms"`: the key's id or ARN; without one, the account's own for S3.
    pub kms_key_id: Option<String>,
    /// Such as `STANDARD_IA`; without one, the bucket's default.
    pub storage_class: Option<String>,
    /// Tags of each object, for lifecycle rules and costs.
    pub tags: BTreeMap<String, String>,
    /// The longest that one attempt may take.
    #[serde(with = "humantime_serde")]
    pub attempt_timeout: Duration,
    /// The longest that a request may take with its retries.
    #[serde(with = "humantime_serde")]
    pub operation_timeout: Duration,
    /// When unused connections are closed; 0s keeps none.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

/// When requests carry a checksum in a header of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checksums {
    /// Only where the protocol demands it.
    WhenRequired,
    /// Wherever the protocol knows them.
    WhenSupported,
}

/// What the store is asked to encrypt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Nothing is asked: the bucket's default holds.
    Default,
    /// SSE-S3: a key of S3's.
    S3,
    /// SSE-KMS: a key of the key management service.
    Kms,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            bucket: String::new(),
            region: "us-east-1".into(),
            endpoint: None,
            path_style: false,
            ca_file: None,
            checksums: Checksums::WhenSupported,
            encryption: Encryption::Default,
            kms_key_id: None,
            storage_class: None,
            tags: BTreeMap::new(),
            attempt_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            idle_timeout: LONGEST_IDLE,
        }
    }
}

fn fail(key: &'static str, value: String, right: &str) -> Result<(), ConfigError> {
    Err(ConfigError::new(key, value, right))
}

impl Config {
    /// Whether the file of certificates is there and holds some, as the start will find out. Reads it.
    pub fn check_certificates(&self) -> Result<(), ConfigError> {
        trust(self).map(drop)
    }

    pub(in crate::payload) fn check(&self) -> Result<(), ConfigError> {
        if self.bucket.is_empty() || self.bucket.contains('/') {
            return fail("s3.bucket", format!("{:?}", self.bucket), "name the bucket alone, such as \"weir-payloads\"");
        }
        if self.region.is_empty() {
            return fail("s3.region", "empty".into(), "name the bucket's region, such as \"eu-central-1\"");
        }
        let holds_credential = |url: url::Url| !url.username().is_empty() || url.password().is_some();
        if self.endpoint.as_deref().and_then(|it| url::Url::parse(it).ok()).is_some_and(holds_credential) {
            return fail(
                "s3.endpoint",
                "(not shown)".into(),
                "leave user and password out: it is in logs. Use access_key_id and secret_access_key",
            );
        }
        if let Some(endpoint) = &self.endpoint
            && !url::Url::parse(endpoint).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        {
            return fail("s3.endpoint", format!("{endpoint:?}"), "use a URL such as \"http://127.0.0.1:9000\"");
        }
        self.check_keeping()?;
        self.check_times()
    }

    fn check_keeping(&self) -> Result<(), ConfigError> {
        if let Some(key) = &self.kms_key_id
            && (self.encryption != Encryption::Kms || key.is_empty())
        {
            return fail("s3.kms_key_id", format!("{key:?}"), "it goes with s3.encryption = \"kms\", and is not empty");
        }
        let upper = |class: &str| class.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        if let Some(class) = self.storage_class.as_ref().filter(|class| class.is_empty() || !upper(class)) {
            return fail("s3.storage_class", format!("{class:?}"), "use a name such as \"STANDARD_IA\"");
        }
        if self.tags.len() > MAX_TAGS {
            return fail("s3.tags", format!("{} tags", self.tags.len()), "use at most 10, for S3 takes no more");
        }
        let fits = |(name, value): (&String, &String)| (1..=128).contains(&name.len()) && value.len() <= 256;
        match self.tags.iter().all(fits) {
            true => Ok(()),
            false => fail("s3.tags", "too long".into(), "use 1 to 128 bytes for a name and at most 256 for a value"),
        }
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let shown = |duration: Duration| humantime::format_duration(duration).to_string();
        if self.attempt_timeout.is_zero() || self.attempt_timeout > self.operation_timeout {
            let right = "use more than 0 and no more than s3.operation_timeout";
            return fail("s3.attempt_timeout", shown(self.attempt_timeout), right);
        }
        if self.operation_timeout > UPLOAD_DEADLINE {
            return fail("s3.operation_timeout", shown(self.operation_timeout), "use at most 60s");
        }
        match self.idle_timeout > LONGEST_IDLE {
            true => fail("s3.idle_timeout", shown(self.idle_timeout), "use at most 15s, for S3 closes after 20s"),
            false => Ok(()),
        }
    }

    /// The tags as the header has them.
    pub(super) fn tagging(&self) -> Option<String> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.tags);
        Some(query.finish()).filter(|query| !query.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_encoded_for_their_header() {
        let mut config = Config::default();
        assert_eq!(config.tagging(), None);
        config.tags.insert("team".into(), "a b&c".into());
        config.tags.insert("cost".into(), "ü".into());
        assert_eq!(config.tagging().as_deref(), Some("cost=%C3%BC&team=a+b%26c"));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let wrong = |change: fn(&mut Config)| {
            let mut config = Config { bucket: "weir".into(), ..Config::default() };
            config.check().expect("right so far");
            change(&mut config);
            config.check().expect_err("wrong").to_string()
        };
        assert!(wrong(|it| it.kms_key_id = Some("k".into())).contains("it goes with s3.encryption = \"kms\""));
        assert!(wrong(|it| it.storage_class = Some("cold".into())).contains("such as \"STANDARD_IA\""));
        assert!(wrong(|it| it.tags = (0..11).map(|n| (n.to_string(), String::new())).collect()).contains("at most 10"));
    }
}
