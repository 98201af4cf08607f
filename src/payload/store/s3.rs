//! Payloads in S3, or in whatever speaks its protocol.
//!
//! Every wait has an end: an attempt, an operation with its retries, an idle connection (S3 closes those after about
//! 20 s, so they go after 15). Sockets are bounded by the uploads, which are bounded by their slots. Credentials come
//! from where the SDK looks for them (environment, profile, web identity, instance) at the first request, so that a
//! start neither waits for the network nor fails without it.

mod config;
mod sockets;
mod upload;

use std::time::Duration;

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use base64::engine::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

pub use self::config::{Checksums, Config, Encryption};
use self::sockets::Sockets;
use super::super::ConfigError;
use super::super::body::hex;
use super::super::encoding::metadata::{SHA256, STORED_BYTES};
use super::{Listed, Object, Page, Store, StoreError, Stored, check_key};
use crate::causes::with_causes;

/// Attempts of one request, the first included.
const ATTEMPTS: u32 = 3;

/// The most keys that S3 puts into one answer.
const MAX_KEYS: usize = 1_000;

/// The longest detail of a failure that is passed on.
const MAX_REASON_CHARS: usize = 400;

/// Why an answer that says 200 is none.
const NO_E_TAG: &str =
    "the answer has no ETag, so it is no S3 server's: check payloads.s3.endpoint, and what stands before the store";

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
    config: Config,
    tagging: Option<String>,
    sockets: Sockets,
    place: String,
}

impl S3 {
    /// One client for the process. Sends nothing yet.
    pub async fn connect(config: &Config, max_sockets: usize) -> Result<Self, ConfigError> {
        Self::connect_with(config, max_sockets, None).await
    }

    /// As [`S3::connect`], with the given credentials instead of those that the SDK finds.
    pub async fn connect_with(
        config: &Config,
        max_sockets: usize,
        credentials: Option<Credentials>,
    ) -> Result<Self, ConfigError> {
        let (http, sockets) = sockets::client(config, max_sockets)?;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(config.attempt_timeout.min(Duration::from_secs(5)))
            .operation_attempt_timeout(config.attempt_timeout)
            .operation_timeout(config.operation_timeout)
            .build();
        let requests = match config.checksums {
            Checksums::WhenRequired => RequestChecksumCalculation::WhenRequired,
            Checksums::WhenSupported => RequestChecksumCalculation::WhenSupported,
        };
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(Region::new(config.region.clone()))
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(retries(config.operation_timeout))
            .request_checksum_calculation(requests)
            // Each object's metadata has its own, which names both sums when they differ.
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
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
        let (client, tagging) = (Client::from_conf(settings), config.tagging());
        Ok(S3 { client, config: config.clone(), tagging, sockets, place })
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
                self.refusal(action, status, service.err().code(), service.err().message())
            }
            other => unreached(other),
        };
        StoreError::Failed { action, location, reason }
    }

    fn refusal(&self, action: &str, status: u16, code: Option<&str>, message: Option<&str>) -> String {
        let bucket = &self.config.bucket;
        let message: String = message.unwrap_or("no message").chars().take(MAX_REASON_CHARS).collect();
        match code {
            Some("NoSuchBucket") => {
                format!("bucket {bucket:?} does not exist (NoSuchBucket); create it, or set another")
            }
            Some("AccessDenied") if action == "read" => format!(
                "access denied (AccessDenied); the credentials need s3:GetObject on {bucket:?}, and without s3:ListBucket S3 \
                 says this of a key that does not exist, too"
            ),
            Some(
                code @ ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"),
            ) => format!("the bucket is in another region ({code}); set payloads.s3.region: {message}"),
            Some("AccessDenied") => format!(
                "access denied (AccessDenied); the credentials need s3:PutObject, s3:GetObject and s3:ListBucket on {bucket:?}"
            ),
            Some(code @ ("SignatureDoesNotMatch" | "InvalidAccessKeyId" | "ExpiredToken")) => {
                format!("the credentials were refused ({code}); check key, secret and clock")
            }
            Some(code) => format!("HTTP {status}, {code}: {message}"),
            None => {
                format!("HTTP {status} without an S3 error code: if that is no S3 server, set payloads.s3.endpoint")
            }
        }
    }
}

/// Retries whose pauses take at most half of the operation's time: otherwise the time may run out in a pause, and the
/// error would say that it did, instead of what each attempt ran into.
fn retries(operation_timeout: Duration) -> RetryConfig {
    RetryConfig::standard().with_max_attempts(ATTEMPTS).with_max_backoff(operation_timeout / (2 * ATTEMPTS))
}

/// Why a request got no answer.
fn unreached(error: &(dyn std::error::Error + 'static)) -> String {
    let reason = reason(error);
    // The second: an authority of the same name is trusted, with another key.
    if ["UnknownIssuer", "BadSignature"].iter().any(|it| reason.contains(it)) {
        const UNTRUSTED: &str = "its certificate comes from an authority that is not trusted; name a file with that \
            authority's certificate in payloads.s3.ca_file";
        return UNTRUSTED.to_owned();
    }
    if reason.contains("loading credentials") {
        return format!("no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({reason})");
    }
    reason
}

/// An error and its causes, of bounded length.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    with_causes(error).chars().take(MAX_REASON_CHARS).collect()
}

#[async_trait]
impl Store for S3 {
    async fn put(&self, object: &Object) -> Result<(), StoreError> {
        check_key(&object.key)?;
        let config = &self.config;
        let encryption = match config.encryption {
            Encryption::Default => None,
            Encryption::S3 => Some(ServerSideEncryption::Aes256),
            Encryption::Kms => Some(ServerSideEncryption::AwsKms),
        };
        let checksum = (config.checksums == Checksums::WhenSupported).then(|| STANDARD.encode(object.body.sha256()));
        let metadata = object.metadata.iter().cloned().collect();
        let request = self
            .client
            .put_object()
            .bucket(&config.bucket)
            .key(&object.key)
            .content_type(&object.media_type)
            .set_metadata(Some(metadata))
            .set_checksum_sha256(checksum)
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(config.kms_key_id.clone())
            .set_storage_class(config.storage_class.as_deref().map(StorageClass::from))
            .set_tagging(self.tagging.clone())
            .body(upload::stream(&object.body))
            .customize()
            .interceptor(upload::Signed { sha256: object.body.sha256_hex() });
        let answer = request.send().await.map_err(|error| self.failed("store", &object.key, &error))?;
        // S3 gives the ETag of what it has stored. A page of a proxy, or of whatever else listens there, has none.
        match answer.e_tag().is_some_and(|e_tag| !e_tag.is_empty()) {
            true => Ok(()),
            false => Err(StoreError::Failed {
                action: "store",
                location: format!("{} at {}", self.location(&object.key), self.place),
                reason: NO_E_TAG.to_owned(),
            }),
        }
    }

    async fn get(&self, key: &str, limit_bytes: u64) -> Result<Stored, StoreError> {
        check_key(key)?;
        let too_large = || StoreError::TooLarge { location: self.location(key), limit_bytes };
        let object = self.client.get_object().bucket(&self.config.bucket).key(key).send().await;
        let object =
            object.map_err(|error| match error.as_service_error().is_some_and(|error| error.is_no_such_key()) {
                true => StoreError::NotFound { location: format!("{} at {}", self.location(key), self.place) },
                false => self.failed("read", key, &error),
            })?;
        let length = object.content_length.and_then(|length| u64::try_from(length).ok());
        if length.is_some_and(|length| length > limit_bytes) {
            return Err(too_large());
        }
        let mut metadata = object.metadata.unwrap_or_default();
        let stored = metadata.remove(SHA256);
        let stored_bytes = metadata.remove(STORED_BYTES).and_then(|bytes| bytes.parse::<u64>().ok());
        let mut body = Vec::new();
        let mut stream = object.body;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| StoreError::Failed {
                action: "read",
                location: self.location(key),
                reason: reason(&error),
            })?;
            if (body.len() + chunk.len()) as u64 > limit_bytes {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        let found_bytes = body.len() as u64;
        if let Some(stored_bytes) = stored_bytes.filter(|stored_bytes| found_bytes < *stored_bytes) {
            return Err(StoreError::CutShort { location: self.location(key), found_bytes, stored_bytes });
        }
        let found = hex(&Sha256::digest(&body));
        match stored.filter(|stored| *stored != found) {
            Some(stored) => Err(StoreError::Damaged { location: self.location(key), found, stored }),
            None => Ok(Stored { body: body.into() }),
        }
    }

    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Page, StoreError> {
        let mut page = Page::default();
        let mut after = start_after.to_owned();
        // One more than is wanted says whether there are more.
        while page.payloads.len() <= limit {
            let most = (limit + 1 - page.payloads.len()).min(MAX_KEYS);
            let request = self.client.list_objects_v2().bucket(&self.config.bucket).max_keys(most as i32);
            let request = request.prefix(prefix).set_start_after(Some(after.clone()).filter(|after| !after.is_empty()));
            let answer = request.send().await.map_err(|error| self.failed("list", prefix, &error))?;
            for object in answer.contents.unwrap_or_default() {
                let bytes = u64::try_from(object.size.unwrap_or_default()).unwrap_or_default();
                page.payloads.extend(object.key.map(|key| Listed { key, bytes }));
            }
            match page.payloads.last() {
                Some(last) if answer.is_truncated == Some(true) && last.key > after => after.clone_from(&last.key),
                _ => break,
            }
        }
        page.has_more = page.payloads.len() > limit;
        page.payloads.truncate(limit);
        Ok(page)
    }

    fn location(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.config.bucket)
    }

    fn open_sockets(&self) -> u64 {
        self.sockets.open()
    }
}
