//! HTTP for integrations: a client with a limit on everything, which records what is said.
//!
//! HTTP/1.1 over a pool of connections, with a cap per host (`sockets.rs`), timeouts on connecting and on the whole
//! exchange, and a cap on what is read of a response. The task's deadline ends an exchange if it comes first. Redirects
//! are not followed: credentials must not travel to a host that nobody configured. No proxy is read from the
//! environment, nothing is sent twice.

mod recording;
mod sockets;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::Invalid;
use super::recorder::Recorder;
use crate::telemetry::Telemetry;
use recording::Recording;
use sockets::Sockets;

/// Longer timeouts are a mistake: no task lives that long.
const MAX_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// More sockets to one host are a mistake: a process has about 28,000 ports towards one address.
const MAX_CONNECTIONS_PER_HOST: usize = 20_000;

/// More of a response is never read into memory.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024 * 1024;

/// Response headers beyond this many make an answer unreadable.
const MAX_RESPONSE_HEADERS: usize = 256;

/// Limits of one transport.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Until a connection is made, TLS included.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// From sending the request to the last byte of the answer.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long an unused connection is kept. Keep it below the server's own limit, or requests meet closed sockets.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Requests in flight per host, which is busy sockets per host.
    pub max_connections_per_host: usize,
    /// What is read of one response.
    pub max_response_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(15),
            max_connections_per_host: 64,
            max_response_bytes: 8 * 1024 * 1024,
        }
    }
}

impl Config {
    /// Checks the values.
    pub fn check(&self) -> Result<(), Invalid> {
        let durations = [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("idle_timeout", self.idle_timeout),
        ];
        for (key, value) in durations {
            if value.is_zero() || value > MAX_TIMEOUT {
                let value = humantime::format_duration(value);
                return Err(Invalid::new(key, format!("{value} is out of range: use more than 0s and at most 1h")));
            }
        }
        let sizes = [
            ("max_connections_per_host", self.max_connections_per_host, MAX_CONNECTIONS_PER_HOST),
            ("max_response_bytes", self.max_response_bytes, MAX_RESPONSE_BYTES),
        ];
        for (key, value, max) in sizes {
            if !(1..=max).contains(&value) {
                return Err(Invalid::new(key, format!("{value} is out of range: use 1 to {max}")));
            }
        }
        Ok(())
    }
}

/// Why an exchange has no whole answer. An answer with an error status is an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be made.
    #[error("{target}: the request is not valid: {problem}")]
    Invalid {
        /// Method and host.
        target: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no connection.
    #[error("{target}: no connection: {problem}")]
    Connect {
        /// Method and host.
        target: String,
        /// What the system says.
        problem: String,
    },
    /// The host took too long.
    #[error("{target}: no whole answer within {}; raise {key}.request_timeout if it may take longer", humantime::format_duration(*.after))]
    Timeout {
        /// Method and host.
        target: String,
        /// The limit.
        after: Duration,
        /// Where to raise it.
        key: String,
    },
    /// The task's deadline came first.
    #[error("{target}: the task's deadline came before the answer")]
    Deadline {
        /// Method and host.
        target: String,
    },
    /// The answer is too large.
    #[error(
        "{target}: the answer has more than {limit_bytes} bytes; raise {key}.max_response_bytes if it should be read"
    )]
    TooLarge {
        /// Method and host.
        target: String,
        /// The limit.
        limit_bytes: usize,
        /// Where to raise it.
        key: String,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("{target}: the connection broke: {problem}")]
    Broken {
        /// Method and host.
        target: String,
        /// What the client says.
        problem: String,
    },
    /// Too many hosts at the same time.
    #[error("{target}: {source}")]
    Hosts {
        /// Method and host.
        target: String,
        /// How many are too many.
        source: sockets::TooManyHosts,
    },
}

impl Error {
    /// Whether the same request may be answered later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Error::Invalid { .. } | Error::TooLarge { .. })
    }
}

/// A pool of connections under one set of limits. Clones share it.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    http: reqwest::Client,
    config: Config,
    settings_key: String,
    sockets: Sockets,
    metrics: recording::Metrics,
}

impl Transport {
    /// `label` is the integration in metrics; `settings_key` the configuration's section with these limits, for
    /// messages that name the key to change.
    pub fn new(label: &str, settings_key: &str, config: &Config, telemetry: &Telemetry) -> Result<Self, Invalid> {
        config.check()?;
        // The client panics without a provider, and there is one anyway wherever `main` runs: an error means that.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect_timeout)
            .pool_idle_timeout(config.idle_timeout)
            .pool_max_idle_per_host(config.max_connections_per_host)
            .http1_only()
            .http1_max_headers(MAX_RESPONSE_HEADERS)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()
            .map_err(|error| Invalid::new("tls", root_cause(&error)))?;
        let (sockets, metrics) = telemetry.register(|| {
            let sockets = Sockets::new(label, settings_key, config.max_connections_per_host);
            (sockets, recording::Metrics::new(label))
        });
        let (config, settings_key) = (config.clone(), settings_key.to_owned());
        Ok(Transport { inner: Arc::new(Inner { http, config, settings_key, sockets, metrics }) })
    }

    /// The client of one run, which records into `recorder` and gives up at `deadline`.
    pub fn client<'a>(&'a self, recorder: &'a Recorder, deadline: Instant) -> Client<'a> {
        Client { transport: &self.inner, recorder, deadline }
    }
}

/// A transport in the hands of one run.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    transport: &'a Inner,
    recorder: &'a Recorder,
    deadline: Instant,
}

/// A request in the making.
#[derive(Clone)]
pub struct Request {
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Request {
    /// Any method, such as `GET`, to a full URL.
    pub fn new(method: impl Into<String>, url: impl Into<String>) -> Self {
        Request { method: method.into(), url: url.into(), headers: Vec::new(), body: Bytes::new() }
    }

    /// A `GET`.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new("GET", url)
    }

    /// A `POST`, without a body yet.
    pub fn post(url: impl Into<String>) -> Self {
        Self::new("POST", url)
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With one more parameter in the URL's query.
    #[must_use]
    pub fn query(mut self, name: &str, value: &str) -> Self {
        // What is no URL is refused when the request is made.
        if let Ok(mut url) = url::Url::parse(&self.url) {
            url.query_pairs_mut().append_pair(name, value);
            self.url = url.into();
        }
        self
    }

    /// With this body.
    #[must_use]
    pub fn body(self, content_type: &str, body: impl Into<Bytes>) -> Self {
        let mut request = self.header("content-type", content_type);
        request.body = body.into();
        request
    }

    /// Whether it can be made; the error says what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        self.build().map(drop)
    }

    fn target(&self) -> String {
        let origin = url::Url::parse(&self.url).map(|url| url.origin().ascii_serialization());
        let method: String = self.method.chars().take(16).collect();
        format!("{method} {}", origin.as_deref().unwrap_or("(not a URL)"))
    }

    fn build(&self) -> Result<reqwest::Request, String> {
        let method = self.method.parse().map_err(|_| "the method is not valid: use one such as GET or POST")?;
        let url = url::Url::parse(&self.url).map_err(|error| format!("the URL is not valid: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("the URL's scheme is {:?}: use http or https", url.scheme()));
        }
        let mut request = reqwest::Request::new(method, url);
        for (name, value) in &self.headers {
            let value = HeaderValue::from_str(value);
            let name = HeaderName::try_from(name.as_str()).map_err(|_| format!("header name {name:?} is not valid"))?;
            let mut value = value.map_err(|_| format!("the value of header {name} is not valid"))?;
            value.set_sensitive(name == reqwest::header::AUTHORIZATION);
            request.headers_mut().append(name, value);
        }
        if !self.body.is_empty() {
            *request.body_mut() = Some(self.body.clone().into());
        }
        Ok(request)
    }
}

/// A whole answer, whatever its status.
#[derive(Clone)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// In the order received; names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// Whether the status is 200 to 299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Client<'_> {
    /// Makes the request and reads the whole answer. The exchange is in the transcript afterwards, also when it fails
    /// or when this future is dropped in the middle.
    pub async fn send(&self, request: Request) -> Result<Answer, Error> {
        let target = request.target();
        let built = match request.build() {
            Ok(built) => built,
            Err(problem) => return Err(Error::Invalid { target, problem }),
        };
        let mut recording = Recording::new(self.recorder, &self.transport.metrics, &built, request.body);
        match self.exchange(built, &mut recording, &target).await {
            Ok((status, headers)) => Ok(Answer { status, headers, body: recording.received() }),
            Err(error) => {
                recording.failed(&error);
                Err(error)
            }
        }
    }

    async fn exchange(
        &self,
        request: reqwest::Request,
        recording: &mut Recording<'_>,
        target: &str,
    ) -> Result<(u16, Vec<(String, String)>), Error> {
        let (transport, config) = (self.transport, &self.transport.config);
        let deadline = || Error::Deadline { target: target.to_owned() };
        let host = request.url().origin().ascii_serialization();
        let _socket = timeout_at(self.deadline, transport.sockets.take(&host))
            .await
            .map_err(|_| deadline())?
            .map_err(|source| Error::Hosts { target: target.to_owned(), source })?;
        recording.sent();
        let limit = Instant::now() + config.request_timeout;
        let answer = timeout_at(limit.min(self.deadline), self.receive(request, recording, target)).await;
        answer.unwrap_or_else(|_| {
            if self.deadline <= limit {
                return Err(deadline());
            }
            let (target, key) = (target.to_owned(), transport.settings_key.clone());
            Err(Error::Timeout { target, after: config.request_timeout, key })
        })
    }

    async fn receive(
        &self,
        request: reqwest::Request,
        recording: &mut Recording<'_>,
        target: &str,
    ) -> Result<(u16, Vec<(String, String)>), Error> {
        let limit_bytes = self.transport.config.max_response_bytes;
        let failed = |error: reqwest::Error| {
            let (target, problem) = (target.to_owned(), root_cause(&error));
            if error.is_connect() { Error::Connect { target, problem } } else { Error::Broken { target, problem } }
        };
        let too_large = || {
            let (target, key) = (target.to_owned(), self.transport.settings_key.clone());
            Error::TooLarge { target, limit_bytes, key }
        };
        let mut response = self.transport.http.execute(request).await.map_err(failed)?;
        recording.answered(&response);
        let announced = response.content_length().unwrap_or(0);
        if announced > limit_bytes as u64 {
            return Err(too_large());
        }
        recording.body.reserve_exact(announced as usize);
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if recording.body.len() + chunk.len() > limit_bytes {
                return Err(too_large());
            }
            recording.body.extend_from_slice(&chunk);
        }
        Ok((response.status().as_u16(), recording::headers(response.headers())))
    }
}

/// The innermost reason: the outer ones say "error sending request" and the URL, which may hold personal data.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = match error.source() {
        Some(cause) => cause,
        None => return "the exchange failed".into(),
    };
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
