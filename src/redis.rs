//! Redis 7.0 or later, as registry and settings both need it: where the primary is, and one connection to it.
//!
//! Who needs Redis names a key, and a [`Place`] finds the primary that serves it: the configured server, the one that
//! Sentinels name, or the node of a Redis Cluster that has the key's slot. All keys of a pool share a hash tag, and so do
//! those of the settings, so each of them lives on one node, and a [`Link`] to that node is all that a follower needs.

mod cluster;
mod guide;
mod keys;
mod link;
mod place;

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

pub use keys::keys;
pub use link::{Lease, Link, version};
pub use place::Place;

/// The longest that connecting or an answer may be waited for: a heartbeat of the registry. With more, one slow answer
/// makes the next heartbeats late.
const LONGEST_TIMEOUT: Duration = Duration::from_millis(1500);

const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);

/// `[registry]`: which Redis, and how long to wait for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `redis://[user[:password]@]host[:port][/database]`, or `rediss://…` for TLS. Without one, the registry is in
    /// this process alone.
    #[serde(serialize_with = "without_password")]
    pub url: Option<SecretString>,
    /// How long connecting and logging in may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long an answer may take; a request that waits for something gets that time besides.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    /// Who knows where the primary is.
    pub sentinel: Sentinel,
    /// The nodes that know who serves which key.
    pub cluster: Cluster,
    /// Which certificates count, with `rediss://`.
    pub tls: Tls,
}

/// Redis Sentinels: asked for the primary at each connect, so that a failover is followed. The host in `url` does not
/// count then; its scheme, user, password and database do. With `rediss://` the Sentinels are asked over TLS too.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sentinel {
    /// What the Sentinels call the primary.
    pub master: Option<String>,
    /// `host` or `host:port` of each; none means that there is no Sentinel.
    pub addresses: Vec<String>,
    /// Their user; without one, the default user.
    pub user: Option<String>,
    /// Their password; without one, they are asked without a login.
    #[serde(serialize_with = "hidden")]
    pub password: Option<SecretString>,
}

/// Redis Cluster: its nodes are asked at each connect who serves the keys, so that failovers and moved slots are
/// followed. The host in `url` does not count then; its scheme, user and password do, at every node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// `host` or `host:port` of some nodes, from which the others are learned; none means that there is no Cluster.
    pub addresses: Vec<String>,
}

/// PEM files for TLS.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The only authorities that may sign the server's certificate; without it, the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate; with `client_key`.
    pub client_certificate: Option<PathBuf>,
    /// The client's key; with `client_certificate`.
    pub client_key: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            url: None,
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(1),
            sentinel: Sentinel::default(),
            cluster: Cluster::default(),
            tls: Tls::default(),
        }
    }
}

impl Config {
    /// Whether the values can work. Reads no certificate, and does not connect.
    pub fn check(&self) -> Result<(), Error> {
        for (key, timeout) in [("connect_timeout", self.connect_timeout), ("response_timeout", self.response_timeout)] {
            if !(SHORTEST_TIMEOUT..=LONGEST_TIMEOUT).contains(&timeout) {
                let reason = format!("{} is not from 10ms to 1500ms", humantime::format_duration(timeout));
                return Err(Error::Config { key, reason });
            }
        }
        if self.url.is_none() {
            return self.check_without_url();
        }
        let info = guide::connection_info(self)?;
        guide::Guide::new(self, &info, "").map(drop)
    }

    /// Whether the certificates that are named can be read and used. Does not connect.
    pub fn check_certificates(&self) -> Result<(), Error> {
        self.url.as_ref().map_or(Ok(()), |_| place::Place::new(self, "").map(drop))
    }

    /// Who names Sentinels or nodes means them to be asked, and not a registry in this process alone.
    fn check_without_url(&self) -> Result<(), Error> {
        let guides = [
            ("cluster.addresses", !self.cluster.addresses.is_empty()),
            ("sentinel.addresses", !self.sentinel.addresses.is_empty()),
            ("sentinel.master", self.sentinel.master.is_some()),
        ];
        let missing = |(beside, _)| Error::Config {
            key: "url",
            reason: format!("it is missing beside {beside}; use redis://[user[:password]@]host, or rediss:// for TLS"),
        };
        guides.into_iter().find(|(_, is_set)| *is_set).map_or(Ok(()), |guide| Err(missing(guide)))
    }
}

/// What went wrong with Redis. None of it holds the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A wrong value in the configuration.
    #[error("registry.{key} is not valid: {reason}")]
    Config {
        /// Which.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// It cannot be reached, did not answer in time, or does not serve now. It may at the next call.
    #[error("{address} cannot be reached: {reason}")]
    Unavailable {
        /// Where.
        address: String,
        /// What happened.
        reason: String,
    },
    /// It does not know the user or the password.
    #[error("{address} refused the login ({reason}); correct user and password in registry.url")]
    Login {
        /// Where.
        address: String,
        /// The server's words.
        reason: String,
    },
    /// The server is too old.
    #[error("{address} is version {version}; Redis 7.0 or later is needed")]
    Version {
        /// Where.
        address: String,
        /// What it says it is.
        version: String,
    },
    /// It answered with an error.
    #[error("{address} rejected the request: {reason}")]
    Rejected {
        /// Where.
        address: String,
        /// The server's words.
        reason: String,
    },
}

fn without_password<S: Serializer>(url: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    let shown = url.as_ref().map(|url| match url::Url::parse(url.expose_secret()) {
        Ok(mut parsed) if parsed.password().is_some() => {
            // Fails only for URLs that cannot have a password, and this one has one.
            let _ = parsed.set_password(Some("***"));
            parsed.into()
        }
        Ok(parsed) => String::from(parsed),
        Err(_) => "***".to_owned(),
    });
    shown.serialize(serializer)
}

fn hidden<S: Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(|_| "***").serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_checked_and_never_shows_the_password() {
        let config: Config =
            serde_json::from_value(serde_json::json!({"url": "redis://u:hunter2@localhost"})).expect("parses");
        config.check().expect("valid");
        assert!(!format!("{config:?}").contains("hunter2"));
        let shown = serde_json::to_string(&config).expect("serializes");
        assert!(shown.contains("redis://u:***@localhost") && !shown.contains("hunter2"), "{shown}");

        for (bad, why) in [
            (serde_json::json!({"url": "http://u:hunter2@localhost"}), "registry.url is not valid"),
            (serde_json::json!({"url": "localhost:6379"}), "redis://"),
            (serde_json::json!({"response_timeout": "1m"}), "1m is not from 10ms to 1500ms"),
            (
                serde_json::json!({"cluster": {"addresses": ["a"]}}),
                "registry.url is not valid: it is missing beside cluster",
            ),
            (serde_json::json!({"sentinel": {"master": "m"}}), "it is missing beside sentinel.master; use redis://"),
        ] {
            let config: Config = serde_json::from_value(bad).expect("parses");
            let error = config.check().expect_err(why).to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }
}
