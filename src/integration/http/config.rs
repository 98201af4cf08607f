//! What `[integrations.NAME]` with `kind = "http"` holds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::auth::{AuthConfig, SecretSource};
use crate::integration::transport::{self, TlsConfig};

/// A declarative pull: where from, how, and in which steps. Texts in steps and result are templates.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Such as `https://api.bank.example/v1`; the paths of the steps are added to it.
    pub base_url: String,
    /// Sent as `Authorization: Bearer …` where there is one: short for `auth` of the kind `bearer`.
    pub token: Option<SecretSource>,
    /// What is sent so that the bank knows who asks.
    pub auth: Option<AuthConfig>,
    /// Sent with each request.
    pub headers: BTreeMap<String, String>,
    /// Until a connection is made, TLS included.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// From sending a request to the last byte of its answer.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long an unused connection is kept.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Requests in flight per host, which is busy sockets per host.
    pub max_connections_per_host: usize,
    /// What is read of one response.
    pub max_response_bytes: usize,
    /// Whom to trust, and who the client is.
    pub tls: TlsConfig,
    /// One after the other.
    pub steps: Vec<Step>,
    /// The output; the last step's body where it is left out.
    pub result: Option<Value>,
}

impl Default for Config {
    fn default() -> Self {
        let limits = transport::Config::default();
        Config {
            base_url: String::new(),
            token: None,
            auth: None,
            headers: BTreeMap::new(),
            connect_timeout: limits.connect_timeout,
            request_timeout: limits.request_timeout,
            idle_timeout: limits.idle_timeout,
            max_connections_per_host: limits.max_connections_per_host,
            max_response_bytes: limits.max_response_bytes,
            tls: limits.tls,
            steps: Vec::new(),
            result: None,
        }
    }
}

impl Config {
    pub(super) fn limits(&self) -> transport::Config {
        transport::Config {
            connect_timeout: self.connect_timeout,
            request_timeout: self.request_timeout,
            idle_timeout: self.idle_timeout,
            max_connections_per_host: self.max_connections_per_host,
            max_response_bytes: self.max_response_bytes,
            tls: self.tls.clone(),
        }
    }
}

/// One request; its answer must be JSON, with a status of 200 to 299.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// What later steps and the result call the body: `steps.NAME`.
    pub name: String,
    /// `GET` where it is left out.
    pub method: String,
    /// Added to the base URL; starts with `/`. What expressions fill in is encoded.
    pub path: String,
    /// The query; an expression that is null leaves its parameter out.
    pub query: Map<String, Value>,
    /// A JSON body.
    pub body: Option<Value>,
    /// A form as the body.
    pub form: Option<Map<String, Value>>,
}

impl Default for Step {
    fn default() -> Self {
        let (name, path) = (String::new(), String::new());
        Step { name, method: "GET".into(), path, query: Map::new(), body: None, form: None }
    }
}
