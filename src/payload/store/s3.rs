//! Payloads in S3, or in whatever speaks its protocol.
//!
//! Every wait has an end: an attempt, an operation with its retries, an idle connection (S3 closes those after about
//! 20 s, so they go after 15). Sockets are bounded by the uploads, which are bounded by their slots. Credentials come
//! from where the SDK looks for them (environment, profile, web identity, instance) at the first request, so that a
//! start neither waits for the network nor fails without it.

use std::time::Duration;

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::tls;
use serde::{Deserialize, Serialize};

use super::super::ConfigError;
use super::{Object, Store, StoreError, Stored, UPLOAD_DEADLINE, check_key};

/// Attempts of one request, the first included.
const ATTEMPTS: u32 = 3;

/// The longest detail of a failure that is passed on.
const MAX_REASON_CHARS: usize = 400;

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
    /// `when_required` for stores that refuse the SDK's CRC checksums; else `when_supported`.
    pub checksums: Checksums,
    /// The longest that one attempt may take.
    #[serde(with = "humantime_serde")]
    pub attempt_timeout: Duration,
    /// The longest that a request may take with its retries.
    #[serde(with = "humantime_serde")]
    pub operation_timeout: Duration,
    /// When unused connections are closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
}

/// When requests and answers carry the SDK's own checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checksums {
    /// Only where the protocol demands it.
    WhenRequired,
    /// Wherever the protocol knows them.
    WhenSupported,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            bucket: String::new(),
            region: "us-east-1".into(),
            endpoint: None,
            path_style: false,
            checksums: Checksums::WhenSupported,
            attempt_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(15),
        }
    }
}

impl Config {
    pub(in super::super) fn check(&self) -> Result<(), ConfigError> {
        let fail = |key, value: String, right: &str| Err(ConfigError::new(key, value, right));
        if self.bucket.is_empty() || self.bucket.contains('/') {
            return fail("s3.bucket", format!("{:?}", self.bucket), "name the bucket alone, such as \"weir-payloads\"");
        }
        if self.region.is_empty() {
            return fail("s3.region", "empty".into(), "name the bucket's region, such as \"eu-central-1\"");
        }
        if let Some(endpoint) = &self.endpoint
            && !url::Url::parse(endpoint).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        {
            return fail("s3.endpoint", format!("{endpoint:?}"), "use a URL such as \"http://127.0.0.1:9000\"");
        }
        let shown = |duration: Duration| humantime::format_duration(duration).to_string();
        if self.attempt_timeout.is_zero() || self.attempt_timeout > self.operation_timeout {
            return fail(
                "s3.attempt_timeout",
                shown(self.attempt_timeout),
                "use more than 0 and no more than s3.operation_timeout",
            );
        }
        if self.operation_timeout > UPLOAD_DEADLINE {
            return fail("s3.operation_timeout", shown(self.operation_timeout), "use at most 60s");
        }
        match self.idle_timeout.is_zero() || self.idle_timeout > Duration::from_secs(15) {
            true => fail(
                "s3.idle_timeout",
                shown(self.idle_timeout),
                "use more than 0 and at most 15s, for S3 closes after 20s",
            ),
            false => Ok(()),
        }
    }
}

/// An access key and its secret, given instead of found; its `Debug` hides the secret.
#[derive(Debug, Clone)]
pub struct Credentials(aws_sdk_s3::config::Credentials);

impl Credentials {
    /// The ones of a long-lived access key.
    pub fn fixed(access_key: &str, secret_key: &str) -> Self {
        Credentials(aws_sdk_s3::config::Credentials::new(access_key, secret_key, None, None, "given"))
    }
}

/// A bucket.
pub struct S3 {
    client: Client,
    bucket: String,
    place: String,
}

impl S3 {
    /// One client for the process. Sends nothing yet.
    pub async fn connect(config: &Config, max_sockets: usize) -> Self {
        Self::connect_with(config, max_sockets, None).await
    }

    /// As [`S3::connect`], with the given credentials instead of those that the SDK finds.
    pub async fn connect_with(config: &Config, max_sockets: usize, credentials: Option<Credentials>) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .pool_idle_timeout(config.idle_timeout)
            .pool_max_idle_per_host(max_sockets)
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(config.attempt_timeout.min(Duration::from_secs(5)))
            .operation_attempt_timeout(config.attempt_timeout)
            .operation_timeout(config.operation_timeout)
            .build();
        let (request, response) = match config.checksums {
            Checksums::WhenRequired => {
                (RequestChecksumCalculation::WhenRequired, ResponseChecksumValidation::WhenRequired)
            }
            Checksums::WhenSupported => {
                (RequestChecksumCalculation::WhenSupported, ResponseChecksumValidation::WhenSupported)
            }
        };
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(Region::new(config.region.clone()))
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(retries(config.operation_timeout))
            .request_checksum_calculation(request)
            .response_checksum_validation(response);
        if let Some(endpoint) = &config.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(Credentials(credentials)) = credentials {
            loader = loader.credentials_provider(credentials);
        }
        let settings = aws_sdk_s3::config::Builder::from(&loader.load().await)
            .force_path_style(config.path_style)
            .retry_partition(RetryPartition::new("weir payloads"))
            .build();
        let place = config.endpoint.clone().unwrap_or_else(|| format!("region {}", config.region));
        S3 { client: Client::from_conf(settings), bucket: config.bucket.clone(), place }
    }

    fn failed<E>(&self, action: &'static str, key: &str, error: &SdkError<E>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let location = format!("{} at {}", self.location(key), self.place);
        let reason = match error {
            SdkError::TimeoutError(_) => "it did not answer in time".to_owned(),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => "it did not answer in time".to_owned(),
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                self.refusal(status, service.err().code(), service.err().message())
            }
            other => unreached(other),
        };
        StoreError::Failed { action, location, reason }
    }

    fn refusal(&self, status: u16, code: Option<&str>, message: Option<&str>) -> String {
        let bucket = &self.bucket;
        match code {
            Some("NoSuchBucket") => {
                format!("bucket {bucket:?} does not exist (NoSuchBucket); create it, or set another")
            }
            Some("AccessDenied") => format!(
                "access denied (AccessDenied); the credentials need s3:PutObject and s3:GetObject on {bucket:?}"
            ),
            Some(code @ ("SignatureDoesNotMatch" | "InvalidAccessKeyId" | "ExpiredToken")) => {
                format!("the credentials were refused ({code}); check key, secret and clock")
            }
            code => {
                let message = message.unwrap_or("no message").chars().take(MAX_REASON_CHARS).collect::<String>();
                format!("HTTP {status}, {}: {message}", code.unwrap_or("no code"))
            }
        }
    }
}

/// Retries whose pauses take at most half of the operation's time: otherwise the time may run out in a pause, and the
/// error would say that it did, instead of what each attempt ran into.
fn retries(operation_timeout: Duration) -> RetryConfig {
    RetryConfig::standard().with_max_attempts(ATTEMPTS).with_max_backoff(operation_timeout / (2 * ATTEMPTS))
}

/// The causes of a request that got no answer, outermost first.
fn unreached(error: &(dyn std::error::Error + 'static)) -> String {
    let causes: Vec<String> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    let reason: String = causes.join(": ").chars().take(MAX_REASON_CHARS).collect();
    if reason.contains("loading credentials") {
        return format!("no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({reason})");
    }
    reason
}

#[async_trait]
impl Store for S3 {
    async fn put(&self, object: Object) -> Result<(), StoreError> {
        check_key(&object.key)?;
        let mut request = self.client.put_object().bucket(&self.bucket).key(&object.key).content_type("text/plain");
        for (name, value) in object.metadata {
            request = request.metadata(name, value);
        }
        let result = request.body(ByteStream::from(object.body)).send().await;
        result.map(drop).map_err(|error| self.failed("store", &object.key, &error))
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> Result<Stored, StoreError> {
        check_key(key)?;
        let too_large = || StoreError::TooLarge { location: self.location(key), limit_bytes };
        let object = self.client.get_object().bucket(&self.bucket).key(key).send().await;
        let object =
            object.map_err(|error| match error.as_service_error().is_some_and(|error| error.is_no_such_key()) {
                true => StoreError::NotFound { location: format!("{} at {}", self.location(key), self.place) },
                false => self.failed("read", key, &error),
            })?;
        let mut body = Vec::new();
        let mut stream = object.body;
        while let Some(chunk) = stream.next().await {
            let failed = |error: &dyn std::fmt::Display| StoreError::Failed {
                action: "read",
                location: self.location(key),
                reason: error.to_string(),
            };
            let chunk = chunk.map_err(|error| failed(&error))?;
            if (body.len() + chunk.len()) as u64 > limit_bytes {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Stored { body: body.into() })
    }

    fn location(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }
}
