//! What configures a transport: its limits, and its TLS.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::integration::Invalid;

/// Longer timeouts are a mistake: no task lives that long.
const MAX_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// More sockets to one host are a mistake: a process has about 28,000 ports towards one address.
const MAX_CONNECTIONS_PER_HOST: usize = 20_000;

/// More of a response is never read into memory.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024 * 1024;

/// Limits of one transport, and its TLS.
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
    /// Whom to trust, and who the client is.
    pub tls: TlsConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(15),
            max_connections_per_host: 64,
            max_response_bytes: 8 * 1024 * 1024,
            tls: TlsConfig::default(),
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
        match (&self.tls.client_certificate, &self.tls.client_key) {
            (Some(_), None) => Err(Invalid::new("tls.client_key", "it is missing: a client_certificate needs its key")),
            (None, Some(_)) => Err(Invalid::new("tls.client_certificate", "it is missing: client_key is for one")),
            _ => Ok(()),
        }
    }
}

/// TLS towards the hosts. All files are PEM and are read at boot.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The certificates that a host's certificate must come from; the system's where it is left out.
    pub ca: Option<PathBuf>,
    /// What the client shows of itself: its certificate, then those between it and its CA.
    pub client_certificate: Option<PathBuf>,
    /// The key of the client's certificate.
    pub client_key: Option<PathBuf>,
}
