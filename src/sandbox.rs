//! A bank to run integrations against, over HTTP, that behaves as badly as it is told to.
//!
//! It is upstream only: nothing of weir's own path is simulated here. Its data is a function of the seed and of what is
//! asked for, whatever the order; its latency and its faults are drawn repeatably, too (`behaviour.rs`). It counts per
//! client id what is in flight and what it did to whom, so that a test can prove from the outside how much a worker
//! really did at the same time, and compare what went wrong with what was seen to. One process serves many banks: each
//! client id may be treated differently, from the configuration, by a script over time, or live over HTTP.
//!
//! It is for tests and demos: it trusts its clients to be friendly. In reading order: `routes.rs` (what can be asked),
//! `door.rs` (what happens to a request), `behaviour.rs`, `conduct.rs` and `script.rs` (how it is decided).

mod answers;
mod asked;
mod bank;
mod behaviour;
mod clients;
mod conduct;
mod connections;
mod control;
mod credentials;
mod door;
mod fdx;
mod latency;
mod lines;
mod meter;
mod metrics;
mod oauth;
mod open_banking;
mod pages;
mod refusals;
mod routes;
mod script;
mod socket;
mod tls;
mod tokens;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::lifecycle::Lifecycle;
use crate::telemetry::Telemetry;
use clients::Clients;
use conduct::Conduct;
use lines::Lines;
use meter::Meters;
use routes::Bank;
use tokens::Tokens;

pub use behaviour::{Behaviour, Beyond, Concurrency, Errors, Oversized, RateLimit, Wrong};
pub use clients::{Counts, Stats, TokenCounts};
pub use latency::Latency;
pub use script::Script;
pub use tls::Tls;

/// The largest body of transactions.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;

/// Longer lives of tokens are a mistake.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const MAX_CLIENT_ID_BYTES: usize = 64;

/// What a client id looks like, for messages.
const CLIENT_ID_RULE: &str = "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or a digit";

/// What the bank is like.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Another seed is another bank.
    pub seed: u64,
    /// How long it takes to answer about accounts; tokens come at once.
    pub latency: Latency,
    /// About how large an account's transactions are as JSON.
    pub response_bytes: usize,
    /// How long access tokens from the token endpoint are good for.
    #[serde(with = "humantime_serde")]
    pub token_lifetime: Duration,
    /// Whether each refresh token is good once and brings the next one.
    pub rotate_refresh_tokens: bool,
    /// A script of what changes over time (`script.rs`).
    pub script: Option<PathBuf>,
    /// Certificates; plain HTTP without.
    pub tls: Tls,
    /// How it behaves towards everyone.
    pub behaviour: Behaviour,
    /// How it behaves towards one client id, where that differs.
    pub clients: BTreeMap<String, Behaviour>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 7480)),
            seed: 1,
            latency: Latency::default(),
            response_bytes: 16 * 1024,
            token_lifetime: Duration::from_secs(60 * 60),
            rotate_refresh_tokens: false,
            script: None,
            tls: Tls::default(),
            behaviour: Behaviour::default(),
            clients: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Checks the values; files that they name are read at the start.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |key: String, problem| Error::Invalid { key, problem };
        if self.response_bytes > MAX_RESPONSE_BYTES {
            let problem = format!("{} is out of range: use at most {MAX_RESPONSE_BYTES}", self.response_bytes);
            return Err(invalid("response_bytes".into(), problem));
        }
        self.latency.check().map_err(|problem| invalid("latency".into(), problem))?;
        if self.token_lifetime.is_zero() || self.token_lifetime > MAX_TOKEN_LIFETIME {
            let lifetime = humantime::format_duration(self.token_lifetime);
            let problem = format!("{lifetime} is out of range: use more than 0s and at most 365days");
            return Err(invalid("token_lifetime".into(), problem));
        }
        self.tls.check()?;
        self.behaviour.check().map_err(|wrong| invalid(format!("behaviour.{}", wrong.key), wrong.problem))?;
        for (client, behaviour) in &self.clients {
            if !is_client_id(client) {
                let problem = format!("{client:?} is no client id: use {CLIENT_ID_RULE}");
                return Err(invalid("clients".into(), problem));
            }
            let key = |wrong: &Wrong| format!("clients.{client}.{}", wrong.key);
            behaviour.check().map_err(|wrong| invalid(key(&wrong), wrong.problem))?;
            let whole = behaviour.over(self.behaviour);
            whole.check().map_err(|wrong| invalid(key(&wrong), wrong.problem))?;
        }
        Ok(())
    }
}

/// Whether this can be the id of a client. It is a part of paths, too, where `.` and `..` would mean something else.
fn is_client_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let begins_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    begins_well && text.len() <= MAX_CLIENT_ID_BYTES && text.bytes().all(plain)
}

/// Why the bank does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value is wrong.
    #[error("{key}: {problem}")]
    Invalid {
        /// Which key.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The script is wrong.
    #[error("script {}: {problem}", .file.display())]
    Script {
        /// Its file.
        file: PathBuf,
        /// Which step and key, and what is wrong.
        problem: String,
    },
    /// The address cannot be had.
    #[error("listen: {address} cannot be used: {source}; use a free one, or port 0 for any")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// A running bank; its lifecycle ends it.
pub struct Sandbox {
    /// Where it listens.
    pub local_addr: SocketAddr,
    bank: Arc<Bank>,
}

impl Sandbox {
    /// Starts to listen and to answer.
    pub async fn start(config: Config, lifecycle: &Lifecycle) -> Result<Self, Error> {
        config.check()?;
        let (address, now) = (config.listen, Instant::now());
        let script = config.script.as_deref().map(Script::read).transpose()?;
        let tls = config.tls.acceptor()?;
        let listen = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        let conduct = Arc::new(Conduct::new(&config, script, now));
        let (clients, telemetry) = (Arc::new(Clients::default()), metrics::telemetry());
        metrics::follow(&clients, &telemetry);
        let bank = Arc::new(Bank {
            clients,
            telemetry,
            lines: Lines::new(conduct.clone()),
            meters: Meters::default(),
            tokens: Tokens::new(config.seed, config.token_lifetime, config.rotate_refresh_tokens, now),
            stopping: lifecycle.token(),
            conduct,
            config,
        });
        let routes = routes::routes(bank.clone());
        lifecycle.spawn("sandbox", connections::accept(listener, tls, routes, lifecycle.clone()));
        Ok(Sandbox { local_addr, bank })
    }

    /// What its `/metrics` shows.
    pub fn telemetry(&self) -> &Telemetry {
        &self.bank.telemetry
    }

    /// What it has counted.
    pub fn stats(&self) -> Stats {
        self.bank.clients.stats()
    }

    /// Counts from zero; what is in flight stays counted. Faults are drawn as from the first request on.
    pub fn reset(&self) {
        self.bank.clients.reset();
    }

    /// How it behaves towards this client now.
    pub fn behaviour(&self, client: &str) -> Behaviour {
        self.bank.conduct.towards(client, Instant::now())
    }

    /// Behaves like this towards everyone from now on, whatever configuration and script say. Replaces what was set
    /// before.
    pub fn set_behaviour(&self, behaviour: Behaviour) -> Result<(), Wrong> {
        self.bank.conduct.set(behaviour)?;
        self.bank.lines.limits_changed();
        Ok(())
    }

    /// The same for one client; it is over what is set for everyone.
    pub fn set_client_behaviour(&self, client: &str, behaviour: Behaviour) -> Result<(), Wrong> {
        self.bank.conduct.set_client(client, behaviour)?;
        self.bank.lines.limits_changed();
        Ok(())
    }

    /// Takes back all that was set, for everyone and for single clients.
    pub fn unset_behaviour(&self) {
        self.bank.conduct.unset();
        self.bank.lines.limits_changed();
    }

    /// Takes back what was set for one client.
    pub fn unset_client_behaviour(&self, client: &str) {
        self.bank.conduct.unset_client(client);
        self.bank.lines.limits_changed();
    }

    /// Begins the script anew; false when there is none.
    pub fn restart_script(&self) -> bool {
        let restarted = self.bank.conduct.restart_script(Instant::now());
        self.bank.lines.limits_changed();
        restarted
    }

    /// Ends all tokens that were issued to this client.
    pub fn revoke_tokens(&self, client: &str) {
        self.bank.tokens.revoke(client);
    }
}

#[cfg(test)]
mod tests;
