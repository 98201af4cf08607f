//! What `[integrations.NAME]` with `kind = "http"` holds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::auth::{AuthConfig, SecretSource};
use super::errors::Rule;
use super::pages::Pagination;
use super::retry;
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
    /// Sent with each request, unless its step has one of the same name.
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
    /// How often what may be repeated is sent.
    pub retries: retry::Config,
    /// Requests of one task.
    pub max_requests: u64,
    /// Of all answers that one task reads.
    pub max_bytes: u64,
    /// What a bank's refusals mean.
    pub errors: Vec<Rule>,
    /// One after the other.
    pub steps: Vec<Step>,
    /// The output; the last step's value where it is left out.
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
            retries: retry::Config::default(),
            max_requests: 1_000,
            max_bytes: 64 * 1024 * 1024,
            errors: Vec::new(),
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

/// A request, or several: for each item of a list, for each page. Answers must be JSON, or empty, with a status of 200
/// to 299.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// What later steps and the result call the value: `steps.NAME`.
    pub name: String,
    /// One `{{ expression }}`; where it does not hold nothing is sent, and the value is null.
    pub when: Option<String>,
    /// A list: the step runs once for each `item`, and its value is the list of what each gave.
    pub for_each: Option<String>,
    /// How many items at a time; 1 where it is left out.
    pub parallel: Option<usize>,
    /// More items are an error; 1,000 where it is left out.
    pub max_items: Option<usize>,
    /// `GET` where it is left out.
    pub method: String,
    /// Added to the base URL; starts with `/`. What expressions fill in is encoded.
    pub path: String,
    /// The query; an expression that is null leaves its parameter out.
    pub query: Map<String, Value>,
    /// Headers; an expression that is null leaves its header out.
    pub headers: Map<String, Value>,
    /// A JSON body.
    pub body: Option<Value>,
    /// A form as the body.
    pub form: Option<Map<String, Value>>,
    /// Where the next page is; `body` and the value are then the list of all items.
    pub pagination: Option<Pagination>,
    /// What the value is made of, from `body`; the body where it is left out.
    pub value: Option<Value>,
    /// Instead of the integration's.
    pub retries: Option<retry::Config>,
    /// Sending it twice does no harm, although its method says nothing about that.
    pub idempotent: bool,
    /// What refusals of this step mean; they come before the integration's.
    pub errors: Vec<Rule>,
    /// For all items, pages and attempts; the task's time where it is left out.
    #[serde(with = "humantime_serde")]
    pub timeout: Option<Duration>,
}

impl Default for Step {
    fn default() -> Self {
        Step {
            name: String::new(),
            when: None,
            for_each: None,
            parallel: None,
            max_items: None,
            method: "GET".into(),
            path: String::new(),
            query: Map::new(),
            headers: Map::new(),
            body: None,
            form: None,
            pagination: None,
            value: None,
            retries: None,
            idempotent: false,
            errors: Vec::new(),
            timeout: None,
        }
    }
}
