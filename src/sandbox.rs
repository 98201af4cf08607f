//! A bank to run integrations against, over HTTP: tokens, accounts, transactions.
//!
//! It is upstream only: nothing of weir's own path is simulated here. Its data is a function of the seed and of what is
//! asked for, whatever the order; its latency is drawn repeatably, too. It counts per client id what is in flight, so
//! that a test can prove from the outside how much a worker really did at the same time. It keeps no other state. It
//! is for tests and demos: it trusts its clients to be friendly, and hyper's limits on heads and URLs are its limits.

mod bank;
mod clients;
mod latency;
mod routes;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::serve::ListenerExt;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::lifecycle::Lifecycle;
use clients::Clients;

pub use clients::{Counts, Stats};
pub use latency::Latency;

/// The largest body of transactions.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;

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
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 7480)),
            seed: 1,
            latency: Latency::default(),
            response_bytes: 16 * 1024,
        }
    }
}

impl Config {
    /// Checks the values.
    pub fn check(&self) -> Result<(), Error> {
        if self.response_bytes > MAX_RESPONSE_BYTES {
            let problem = format!("{} is out of range: use at most {MAX_RESPONSE_BYTES}", self.response_bytes);
            return Err(Error::Invalid { key: "response_bytes", problem });
        }
        self.latency.check().map_err(|problem| Error::Invalid { key: "latency", problem })
    }
}

/// Why the bank does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value is wrong.
    #[error("{key}: {problem}")]
    Invalid {
        /// Which key.
        key: &'static str,
        /// What is wrong, and what would be right.
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
    clients: Arc<Clients>,
}

impl Sandbox {
    /// Starts to listen and to answer.
    pub async fn start(config: Config, lifecycle: &Lifecycle) -> Result<Self, Error> {
        config.check()?;
        let address = config.listen;
        let listen = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let local_addr = listener.local_addr().map_err(listen)?;
        let listener = listener.tap_io(|socket| {
            // Without it a small answer waits for the delayed acknowledgement of the one before.
            let _ = socket.set_nodelay(true);
        });
        let (clients, token) = (Arc::new(Clients::default()), lifecycle.token());
        let routes = routes::routes(config, clients.clone(), token.clone());
        lifecycle.spawn("sandbox", async move {
            let served = axum::serve(listener, routes).with_graceful_shutdown(token.cancelled_owned()).await;
            if let Err(error) = served {
                tracing::error!("the sandbox no longer serves: {error}");
            }
        });
        Ok(Sandbox { local_addr, clients })
    }

    /// What it has counted.
    pub fn stats(&self) -> Stats {
        self.clients.stats()
    }

    /// Counts from zero; what is in flight stays counted.
    pub fn reset(&self) {
        self.clients.reset();
    }
}

#[cfg(test)]
mod tests;
