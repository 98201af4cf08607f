//! Integrations: the code that runs tasks, and the list of what is configured.
//!
//! A team implements [`Integration`] in Rust, or configures a built-in one: [`http`] (declarative pulls), [`exec`]
//! (programs in any language) or [`synthetic`] (for tests and benches). An integration sees one task through its [`Context`]; it knows nothing of
//! gates, queues or payloads. What it says to the outside is recorded on the way by the context's HTTP client.

pub mod context;
pub mod environment;
pub(crate) mod keyed;
pub mod owner;
pub mod recorder;
pub mod transport;
pub mod http;
pub mod exec;
pub mod synthetic;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize};

use crate::lifecycle::Lifecycle;
use crate::task::{FailureReason, IntegrationName, Json, Remedy};
use crate::telemetry::Telemetry;

pub use context::Context;
pub use environment::Environment;
pub use owner::Owner;
pub use recorder::Recorder;
pub use transport::Transport;

/// The most integrations that one worker serves; their names are metric labels.
pub const MAX_INTEGRATIONS: usize = 1_000;

/// How long an integration may go on by default after it was told to stop.
const DEFAULT_GRACE: Duration = Duration::from_secs(2);

/// Code that runs tasks: any number of them at the same time.
#[async_trait]
pub trait Integration: Send + Sync + 'static {
    /// Runs one task.
    async fn run(&self, context: &Context) -> Result<Json, Error>;

    /// Starts what goes on between tasks: processes that wait for work, a token that is renewed. Called once, before the
    /// first task; the worker stops `background` after the last one, and what runs on it must then end by itself.
    fn start(&self, background: &Lifecycle) {
        let _ = background;
    }

    /// Whether what it needs can be reached from here, for `weir check --connect`: what was reached, or `None` when there is
    /// nothing to reach. It asks nothing and changes nothing there.
    async fn probe(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// What to do with a run whose task is cancelled or past its deadline.
    fn on_cancel(&self) -> OnCancel {
        OnCancel::default()
    }
}

/// What to do with a run whose task is cancelled or past its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCancel {
    /// Tell it through [`Context::cancelled`]; drop it when it still runs after `grace`.
    Stop {
        /// From the telling to the dropping.
        grace: Duration,
    },
    /// Never drop it: it keeps its place in the worker until it ends by itself.
    Finish,
}

impl Default for OnCancel {
    fn default() -> Self {
        OnCancel::Stop { grace: DEFAULT_GRACE }
    }
}

/// Why a run has no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// For people; holds no secrets and nothing of a body.
    pub message: String,
    /// What may help.
    pub remedy: Remedy,
    /// A word of its own for what went wrong, for programs to act on.
    pub reason: Option<FailureReason>,
}

impl Error {
    /// The same task would fail again.
    pub fn permanent(message: impl Into<String>) -> Self {
        Error { message: message.into(), remedy: Remedy::None, reason: None }
    }

    /// The same task may succeed later.
    pub fn retryable(message: impl Into<String>) -> Self {
        Error { message: message.into(), remedy: Remedy::Retry, reason: None }
    }

    /// The person that the task is about must act first: log in again, renew a consent.
    pub fn user_action(message: impl Into<String>) -> Self {
        Error { message: message.into(), remedy: Remedy::UserAction, reason: None }
    }

    /// With a word for what went wrong.
    #[must_use]
    pub fn because(mut self, reason: FailureReason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// The same, its message saying where it happened.
    #[must_use]
    pub fn within(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl From<transport::Error> for Error {
    fn from(error: transport::Error) -> Self {
        match error.is_retryable() {
            true => Error::retryable(error.to_string()),
            false => Error::permanent(error.to_string()),
        }
    }
}

/// A built-in integration, as configured under `[integrations.NAME]`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Config {
    /// Declarative pulls over HTTP.
    Http(Box<http::Config>),
    /// A command that is kept running.
    Exec(Box<exec::Config>),
    /// Artificial work, for tests and benches.
    Synthetic(synthetic::Config),
}

impl Config {
    /// Builds it under this name. Templates are compiled and secrets looked up.
    pub fn build(&self, name: &IntegrationName, telemetry: &Telemetry) -> Result<Arc<dyn Integration>, Invalid> {
        Ok(match self {
            Config::Http(config) => Arc::new(http::Http::new(name, config, telemetry)?),
            Config::Exec(config) => Arc::new(exec::Exec::new(name, config, telemetry)?),
            Config::Synthetic(config) => Arc::new(synthetic::Synthetic::new(config)?),
        })
    }

    /// Builds it for runs that are [answered by something else](Context::answered_by) than the network, without looking
    /// up a secret. `has_token` says whether an OAuth2 access token is there from the start, instead of being asked for.
    /// None for what speaks to the network by itself.
    pub fn offline(
        &self,
        name: &IntegrationName,
        telemetry: &Telemetry,
        has_token: bool,
    ) -> Result<Option<Arc<dyn Integration>>, Invalid> {
        match self {
            Config::Http(config) => Ok(Some(Arc::new(http::Http::offline(name, config, telemetry, has_token)?))),
            Config::Exec(_) => Ok(None),
            Config::Synthetic(_) => self.build(name, telemetry).map(Some),
        }
    }
}

/// Unlike serde's own choice by `kind`, it says at which key something is wrong.
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kinds: &[(_, keyed::Read<Config>)] = &[
            ("http", |rest| keyed::part(rest).map(Config::Http)),
            ("exec", |rest| keyed::part(rest).map(Config::Exec)),
            ("synthetic", |rest| keyed::part(rest).map(Config::Synthetic)),
        ];
        keyed::by_kind(deserializer, kinds)
    }
}

/// Why the configured integrations cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is wrong.
    #[error("integrations.{integration}.{source}")]
    Invalid {
        /// Which integration.
        integration: IntegrationName,
        /// Which key, and what would be right.
        source: Invalid,
    },
    /// One that is configured has the name of one that the program brings.
    #[error("integrations.{integration}: the program has an integration of its own with this name: rename one")]
    Twice {
        /// Which.
        integration: IntegrationName,
    },
    /// There are too many.
    #[error("{count} integrations are configured: at most {MAX_INTEGRATIONS} are served by one worker")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// A configured value that is wrong: the key, what is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct Invalid {
    key: String,
    problem: String,
}

impl Invalid {
    pub(crate) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Invalid { key: key.into(), problem: problem.into() }
    }

    /// The same, its key inside `section`.
    pub(crate) fn within(self, section: &str) -> Self {
        Invalid { key: format!("{section}.{}", self.key), ..self }
    }
}

/// The integrations that a worker serves, by name.
#[derive(Clone, Default)]
pub struct Integrations {
    by_name: BTreeMap<IntegrationName, Arc<dyn Integration>>,
}

impl Integrations {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The built-in ones that are configured. Templates are compiled and tokens looked up here, so that what is wrong
    /// shows at boot.
    pub fn from_config(
        configs: &BTreeMap<IntegrationName, Config>,
        telemetry: &Telemetry,
    ) -> Result<Self, ConfigError> {
        if configs.len() > MAX_INTEGRATIONS {
            return Err(ConfigError::TooMany { count: configs.len() });
        }
        let mut integrations = Integrations::new();
        for (name, config) in configs {
            let invalid = |source| ConfigError::Invalid { integration: name.clone(), source };
            integrations.by_name.insert(name.clone(), config.build(name, telemetry).map_err(invalid)?);
        }
        Ok(integrations)
    }

    /// With one more; an earlier one of the same name is replaced.
    #[must_use]
    pub fn with(mut self, name: IntegrationName, integration: impl Integration) -> Self {
        self.insert(name, integration);
        self
    }

    /// Adds one; an earlier one of the same name is replaced.
    pub fn insert(&mut self, name: IntegrationName, integration: impl Integration) {
        self.by_name.insert(name, Arc::new(integration));
    }

    /// These and `others`, none of which may have a name that is taken.
    pub fn merge(mut self, others: Integrations) -> Result<Self, ConfigError> {
        if let Some(integration) = others.names().find(|name| self.by_name.contains_key(*name)) {
            return Err(ConfigError::Twice { integration: integration.clone() });
        }
        self.by_name.extend(others.by_name);
        match self.len() {
            count if count > MAX_INTEGRATIONS => Err(ConfigError::TooMany { count }),
            _ => Ok(self),
        }
    }

    /// Starts what each of them has going on between tasks.
    pub fn start(&self, background: &Lifecycle) {
        self.by_name.values().for_each(|integration| integration.start(background));
    }

    /// The one called `name`.
    pub fn get(&self, name: &IntegrationName) -> Option<Arc<dyn Integration>> {
        self.by_name.get(name).cloned()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &IntegrationName> {
        self.by_name.keys()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

impl fmt::Debug for Integrations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_integrations_join_the_configured_ones_and_take_no_name_from_them() {
        let synthetic = || synthetic::Synthetic::new(&synthetic::Config::default()).expect("valid");
        let one = |name: &str| Integrations::new().with(name.parse().expect("a name"), synthetic());
        let both = one("bank").merge(one("spending")).expect("two names");
        assert_eq!(format!("{both:?}"), r#"{"bank", "spending"}"#);
        let error = both.merge(one("bank")).expect_err("taken").to_string();
        assert!(error.starts_with("integrations.bank: "), "{error}");
    }
}
