//! Where the primary is: always at the configured address, or wherever the Sentinels say at the moment.
//!
//! All Sentinels are asked at once and the first answer counts, so that a dead one costs no time. An answer may be out of
//! date while a failover goes on; that is why a link believes only a server that calls itself a primary.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, RedisError, TlsCertificates,
};
use secrecy::ExposeSecret;

use super::super::{Config, RegistryError, Sentinel, Tls};

/// An idle connection is probed after this time, so that one through a dead firewall entry is found out.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long sent bytes may stay without an acknowledgement.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// Where a Sentinel listens when its address has no port.
const SENTINEL_PORT: u16 = 26379;

/// The place of one primary, shared by all links to it.
pub struct Place {
    info: ConnectionInfo,
    tls: Option<TlsCertificates>,
    sentinels: Vec<ConnectionInfo>,
    master: String,
    connect_timeout: Duration,
    /// Where the last link that connected went to.
    current: Mutex<String>,
}

impl Place {
    /// Reads certificates; connects to nothing.
    pub fn new(config: &Config) -> Result<Self, RegistryError> {
        let no_url = || RegistryError::Config { key: "url", reason: "it is missing; use redis://host:port".into() };
        let info = connection_info(config.url.as_ref().ok_or_else(no_url)?.expose_secret())?;
        let tls = certificates(&config.tls, &info)?;
        let sentinels = sentinels(&config.sentinel, &info)?;
        let current = Mutex::new(match sentinels.is_empty() {
            true => info.addr().to_string(),
            false => format!("Sentinel {}", config.sentinel.addresses.join(", ")),
        });
        let master = config.sentinel.master.clone().unwrap_or_default();
        let place = Place { info, tls, sentinels, master, connect_timeout: config.connect_timeout, current };
        // Certificates that cannot be used are found here, not at the first connection.
        place.client(place.info.clone()).map_err(|error| {
            let key = if place.tls.is_some() { "tls" } else { "url" };
            RegistryError::Config { key, reason: error.to_string() }
        })?;
        Ok(place)
    }

    /// Where the last connection went, without user and password.
    pub fn current(&self) -> String {
        self.current.lock().clone()
    }

    /// A client for the primary as it is known now. Asking Sentinels takes at most the connect timeout.
    pub async fn find(&self) -> Result<Client, RegistryError> {
        let info = if self.sentinels.is_empty() {
            self.info.clone()
        } else {
            let (host, port) = self.ask_sentinels().await?;
            let info = self.info.clone();
            let addr = at(info.addr(), host, port);
            info.set_addr(addr)
        };
        *self.current.lock() = info.addr().to_string();
        self.client(info).map_err(|error| self.unavailable(error.to_string()))
    }

    async fn ask_sentinels(&self) -> Result<(String, u16), RegistryError> {
        let mut asked: FuturesUnordered<_> = self
            .sentinels
            .iter()
            .map(|sentinel| async {
                let answer = tokio::time::timeout(self.connect_timeout, self.ask(sentinel)).await;
                answer
                    .unwrap_or_else(|_| Err("no answer in time".into()))
                    .map_err(|why| format!("Sentinel {}: {why}", sentinel.addr()))
            })
            .collect();
        let mut reasons = Vec::new();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(place) => return Ok(place),
                Err(reason) => reasons.push(reason),
            }
        }
        reasons.sort();
        Err(self.unavailable(reasons.join("; ")))
    }

    async fn ask(&self, sentinel: &ConnectionInfo) -> Result<(String, u16), String> {
        let client = self.client(sentinel.clone()).map_err(|error| error.to_string())?;
        let timeouts = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.connect_timeout));
        let words = |error: RedisError| match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
                format!("it refused the login ({error}); correct registry.sentinel.user and registry.sentinel.password")
            }
            (_, Some("ERR")) if error.to_string().contains("unknown command") => "it is a Redis, not a Sentinel".into(),
            _ => error.to_string(),
        };
        let mut connection = client.get_multiplexed_async_connection_with_config(&timeouts).await.map_err(words)?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let answer: Option<(String, u16)> = question.query_async(&mut connection).await.map_err(words)?;
        answer.ok_or_else(|| format!("it knows no primary \"{}\" (registry.sentinel.master)", self.master))
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, RedisError> {
        match &self.tls {
            Some(tls) => Client::build_with_tls(info, tls.clone()),
            None => Client::open(info),
        }
    }

    fn unavailable(&self, reason: String) -> RegistryError {
        RegistryError::Unavailable { address: self.current(), reason }
    }
}

/// Whether the configuration has the right form. Reads no file; [`Place::new`] does.
pub fn check(config: &Config) -> Result<(), RegistryError> {
    let url = config.url.as_ref().map(|url| connection_info(url.expose_secret())).transpose()?;
    url.map_or(Ok(()), |info| sentinels(&config.sentinel, &info).map(drop))
}

/// Reads a URL into what the client library needs, with the socket options that it does not set by itself.
pub fn connection_info(url: &str) -> Result<ConnectionInfo, RegistryError> {
    let invalid = |reason: &str| RegistryError::Config {
        key: "url",
        reason: format!("{reason}; use redis://[user[:password]@]host[:port][/database], or rediss:// for TLS"),
    };
    let info = url.into_connection_info().map_err(|error| match error.kind() {
        // The library's words for these name parts of the URL, never the password.
        ErrorKind::InvalidClientConfig => invalid(&error.to_string()),
        _ => invalid("it is not a Redis URL"),
    })?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
        return Err(invalid("#insecure would accept any server's certificate"));
    }
    let redis = info.redis_settings().clone();
    let redis = redis.set_protocol(ProtocolVersion::RESP3).set_lib_name("weir", env!("CARGO_PKG_VERSION"));
    Ok(info.set_tcp_settings(tcp_settings()).set_redis_settings(redis))
}

fn tcp_settings() -> TcpSettings {
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE));
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(UNACKNOWLEDGED);
    tcp
}

/// The same way of connecting, to another host.
fn at(like: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match like {
        ConnectionAddr::TcpTls { insecure, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: None }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

fn sentinels(config: &Sentinel, primary: &ConnectionInfo) -> Result<Vec<ConnectionInfo>, RegistryError> {
    let wrong = |key, reason: String| Err(RegistryError::Config { key, reason });
    match (&config.master, config.addresses.is_empty()) {
        (None, true) => return Ok(Vec::new()),
        (None, false) => return wrong("sentinel.master", "it is missing; name what the Sentinels monitor".into()),
        (Some(_), true) => {
            return wrong("sentinel.addresses", "none is given; use a list such as [\"10.0.0.1:26379\"]".into());
        }
        (Some(_), false) => {}
    }
    if matches!(primary.addr(), ConnectionAddr::Unix(_)) {
        return wrong("url", "a socket of this machine does not go with Sentinels; use redis:// or rediss://".into());
    }
    let mut login = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(user) = &config.user {
        login = login.set_username(user);
    }
    if let Some(password) = &config.password {
        login = login.set_password(password.expose_secret());
    }
    let mut found = Vec::new();
    for address in &config.addresses {
        let parsed = url::Url::parse(&format!("redis://{address}"));
        let Some((host, port)) = parsed.ok().and_then(|url| {
            let is_plain = url.username().is_empty() && matches!(url.path(), "" | "/") && url.query().is_none();
            let host = url.host_str().filter(|_| is_plain)?.trim_matches(['[', ']']).to_owned();
            Some((host, url.port().unwrap_or(SENTINEL_PORT)))
        }) else {
            return wrong("sentinel.addresses", format!("\"{address}\" is not of the form host or host:port"));
        };
        found.push(primary.clone().set_addr(at(primary.addr(), host, port)).set_redis_settings(login.clone()));
    }
    Ok(found)
}

fn certificates(config: &Tls, info: &ConnectionInfo) -> Result<Option<TlsCertificates>, RegistryError> {
    let wrong = |key, reason: String| Err(RegistryError::Config { key, reason });
    if config.ca.is_none() && config.client_certificate.is_none() && config.client_key.is_none() {
        return Ok(None);
    }
    if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        return wrong("tls", "it counts only with a registry.url that begins with rediss://".into());
    }
    let client_tls = match (&config.client_certificate, &config.client_key) {
        (Some(certificate), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("tls.client_certificate", certificate)?,
            client_key: read("tls.client_key", key)?,
        }),
        (None, None) => None,
        (Some(_), None) => return wrong("tls.client_key", "it is missing beside tls.client_certificate".into()),
        (None, Some(_)) => return wrong("tls.client_certificate", "it is missing beside tls.client_key".into()),
    };
    let root_cert = config.ca.as_deref().map(|ca| read("tls.ca", ca)).transpose()?;
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path)
        .map_err(|error| RegistryError::Config { key, reason: format!("{} cannot be read: {error}", path.display()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_without_showing_the_password() {
        for good in [
            "redis://localhost",
            "redis://user:hunter2@10.0.0.1:7000/2",
            "rediss://cache.example:6380",
            "unix:///run/r",
        ] {
            connection_info(good).expect(good);
        }
        for bad in ["", "localhost", "http://:hunter2@x", "redis://:hunter2@x/db", "rediss://:hunter2@x/#insecure"] {
            let error = connection_info(bad).expect_err(bad).to_string();
            assert!(error.contains("use redis://") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_mistake_about_sentinels_or_certificates_names_its_key() {
        for (config, key) in [
            (serde_json::json!({"sentinel": {"addresses": ["a:1"]}}), "registry.sentinel.master"),
            (serde_json::json!({"sentinel": {"master": "m"}}), "registry.sentinel.addresses"),
            (serde_json::json!({"sentinel": {"master": "m", "addresses": ["a:b"]}}), "\"a:b\" is not of the form"),
            (serde_json::json!({"sentinel": {"master": "m", "addresses": ["u:p@a:1"]}}), "is not of the form"),
            (serde_json::json!({"tls": {"ca": "/ca.pem"}}), "begins with rediss://"),
            (serde_json::json!({"url": "rediss://a", "tls": {"ca": "/none/ca.pem"}}), "/none/ca.pem cannot be read"),
            (serde_json::json!({"url": "rediss://a", "tls": {"client_key": "/k"}}), "registry.tls.client_certificate"),
        ] {
            let mut config: Config = serde_json::from_value(config).expect("parses");
            config.url.get_or_insert_with(|| "redis://localhost".into());
            let error = Place::new(&config).err().expect(key).to_string();
            assert!(error.contains(key), "{error}");
        }
        let json = serde_json::json!({"url": "redis://x", "sentinel": {"master": "m", "addresses": ["a", "[::1]:5"]}});
        let config: Config = serde_json::from_value(json).expect("parses");
        let place = Place::new(&config).expect("valid");
        let addresses: Vec<_> = place.sentinels.iter().map(|sentinel| sentinel.addr().to_string()).collect();
        assert_eq!(addresses, ["a:26379", "::1:5"]);
    }
}
