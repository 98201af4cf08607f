//! HTTP for integrations: a client with a limit on everything, which records what is said.
//!
//! HTTP/1.1 over a pool of connections, with a cap per host (`sockets.rs`), timeouts on connecting and on the whole
//! exchange, and a cap on what is read of a response. The task's deadline ends an exchange if it comes first. Redirects
//! are not followed: credentials must not travel to a host that nobody configured. No proxy is read from the
//! environment, nothing is sent twice.

mod config;
mod connections;
mod line;
mod probe;
mod recording;
mod request;
mod sockets;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout_at};

use super::Invalid;
use super::recorder::Recorder;
use crate::task::transcript::Fault;
use crate::telemetry::Telemetry;
use connections::Connector;
use recording::Recording;
use sockets::Sockets;

pub use config::{Config, TlsConfig};
pub(super) use line::Line;
pub use line::{Reply, StandIn};
pub use request::{Answer, Request};

/// Response headers beyond this many make an answer unreadable.
const MAX_RESPONSE_HEADERS: usize = 256;

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
    /// What stands in for the network says so.
    #[error("{message}")]
    Told {
        /// The kind of what went wrong; none is for what no other attempt could mend.
        fault: Option<Fault>,
        /// What it says.
        message: String,
    },
}

impl Error {
    /// Its kind; none when the request was never made.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Error::Invalid { .. } => None,
            Error::Connect { .. } => Some(Fault::Connect),
            Error::Timeout { .. } => Some(Fault::Timeout),
            Error::Deadline { .. } => Some(Fault::Deadline),
            Error::TooLarge { .. } => Some(Fault::TooLarge),
            Error::Broken { .. } => Some(Fault::Broken),
            Error::Hosts { .. } => Some(Fault::Hosts),
            Error::Told { fault, .. } => *fault,
        }
    }

    /// Whether the same request may be answered later.
    pub fn is_retryable(&self) -> bool {
        self.fault().is_some_and(|fault| fault != Fault::TooLarge)
    }
}

/// A pool of connections under one set of limits. Clones share it.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    http: legacy::Client<Connector, Full<Bytes>>,
    connector: Connector,
    config: Config,
    settings_key: String,
    sockets: Sockets,
    metrics: recording::Metrics,
}

impl Inner {
    fn too_large(&self, target: &str) -> Error {
        let (target, key) = (target.to_owned(), self.settings_key.clone());
        Error::TooLarge { target, limit_bytes: self.config.max_response_bytes, key }
    }
}

impl Transport {
    /// `label` is the integration in metrics; `settings_key` the configuration's section with these limits, for
    /// messages that name the key to change.
    pub fn new(label: &str, settings_key: &str, config: &Config, telemetry: &Telemetry) -> Result<Self, Invalid> {
        config.check()?;
        let tls = tls::client(&config.tls).map_err(|invalid| invalid.within("tls"))?;
        let (sockets, metrics) = telemetry.register(|| {
            let sockets = Sockets::new(label, settings_key, config.max_connections_per_host);
            (sockets, recording::Metrics::new(label))
        });
        sockets.count_idle(label, telemetry);
        let connector = Connector::new(tls, config.connect_timeout, sockets.open());
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.idle_timeout)
            .pool_max_idle_per_host(config.max_connections_per_host)
            .http1_max_headers(MAX_RESPONSE_HEADERS)
            .build(connector.clone());
        let (config, settings_key) = (config.clone(), settings_key.to_owned());
        Ok(Transport { inner: Arc::new(Inner { http, connector, config, settings_key, sockets, metrics }) })
    }

    /// A client of the network, which records into `recorder` and gives up at `deadline`. A run's comes from its
    /// context: see [`super::Context::client`].
    pub(crate) fn client<'a>(&'a self, recorder: &'a Recorder, deadline: Instant) -> Client<'a> {
        Client { transport: &self.inner, recorder, deadline, stand_in: None }
    }
}

/// A transport in the hands of one run.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    transport: &'a Inner,
    recorder: &'a Recorder,
    deadline: Instant,
    stand_in: Option<&'a dyn StandIn>,
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
        let answered = match self.stand_in {
            None => self.exchange(built, &mut recording, &target).await,
            Some(stand_in) => self.stood_in(stand_in, &mut recording, &target).await,
        };
        match answered {
            Ok((status, headers)) => Ok(Answer { status, headers, body: recording.received() }),
            Err(error) => {
                recording.failed(&error);
                Err(error)
            }
        }
    }

    async fn stood_in(
        &self,
        stand_in: &dyn StandIn,
        recording: &mut Recording<'_>,
        target: &str,
    ) -> Result<(u16, Vec<(String, String)>), Error> {
        recording.sent();
        let (part, failed) = match stand_in.answer(recording.asked()).await {
            Reply::Whole(answer) => (Some(answer), None),
            Reply::Failed { part, fault, message } => (part, Some(Error::Told { fault, message })),
        };
        let answered = part.map(|Answer { status, headers, body }| {
            recording.answered(status, headers.clone());
            recording.body = body.into();
            (status, headers)
        });
        match (answered, failed) {
            (Some(_), None) if recording.body.len() > self.transport.config.max_response_bytes => {
                recording.body.clear();
                Err(self.transport.too_large(target))
            }
            (Some(answered), None) => Ok(answered),
            (_, failed) => Err(failed.unwrap_or_else(|| Error::Told { fault: None, message: target.to_owned() })),
        }
    }

    async fn exchange(
        &self,
        request: hyper::Request<Full<Bytes>>,
        recording: &mut Recording<'_>,
        target: &str,
    ) -> Result<(u16, Vec<(String, String)>), Error> {
        let (transport, config) = (self.transport, &self.transport.config);
        let deadline = || Error::Deadline { target: target.to_owned() };
        let host = origin(request.uri());
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
        request: hyper::Request<Full<Bytes>>,
        recording: &mut Recording<'_>,
        target: &str,
    ) -> Result<(u16, Vec<(String, String)>), Error> {
        let limit_bytes = self.transport.config.max_response_bytes;
        let broken = |error: &dyn std::error::Error| {
            let (target, problem) = (target.to_owned(), root_cause(error));
            Error::Broken { target, problem }
        };
        let failed = |error: legacy::Error| match error.is_connect() {
            true => Error::Connect { target: target.to_owned(), problem: root_cause(&error) },
            false => broken(&error),
        };
        let too_large = || self.transport.too_large(target);
        let mut response = self.transport.http.request(request).await.map_err(failed)?;
        recording.answered(response.status().as_u16(), recording::headers(response.headers()));
        let announced = response.size_hint().lower();
        if announced > limit_bytes as u64 {
            return Err(too_large());
        }
        recording.body.reserve_exact(announced as usize);
        while let Some(frame) = response.frame().await {
            let Ok(chunk) = frame.map_err(|error| broken(&error))?.into_data() else { continue };
            if recording.body.len() + chunk.len() > limit_bytes {
                return Err(too_large());
            }
            recording.body.extend_from_slice(&chunk);
        }
        Ok((response.status().as_u16(), recording::headers(response.headers())))
    }
}

/// What sockets are counted by: a name with its port.
fn origin(uri: &hyper::Uri) -> String {
    let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority().map(|it| it.as_str()));
    format!("{scheme}://{}", authority.unwrap_or_default())
}

/// The innermost reason: the outer ones say "error sending request" and the URL, which may hold personal data.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
