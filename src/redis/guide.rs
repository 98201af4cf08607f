//! What the configuration says of where the primary is, read and checked: URL, Sentinels, nodes of a Cluster, certificates.

use std::path::Path;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, RedisError, TlsCertificates,
};
use secrecy::ExposeSecret;

use super::cluster::Node;
use super::{Cluster, Config, Error, Sentinel, Tls};
use crate::pem;

/// An idle connection is probed after this time, so that one through a dead firewall entry is found out.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long sent bytes may stay without an acknowledgement.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// Where a Sentinel listens when its address has no port.
const SENTINEL_PORT: u16 = 26379;

/// Where a node of a Cluster listens when its address has no port.
const NODE_PORT: u16 = 6379;

/// Who knows where the primary is.
pub(super) enum Guide {
    /// It is where the URL says.
    Url,
    /// These Sentinels, which call it `master`.
    Sentinels { sentinels: Vec<ConnectionInfo>, master: String },
    /// These nodes, who know which of them serves `key`.
    Cluster { seeds: Vec<ConnectionInfo>, key: String },
}

impl Guide {
    /// Reads no file, and connects to nothing.
    pub(super) fn new(config: &Config, info: &ConnectionInfo, key: &str) -> Result<Self, Error> {
        let (sentinels, seeds) = (sentinels(&config.sentinel, info)?, seeds(&config.cluster, info)?);
        match (&config.sentinel.master, seeds.is_empty()) {
            (Some(_), false) => {
                let reason = "a Redis Cluster has no Sentinels; leave out cluster.addresses, or sentinel.*".into();
                Err(Error::Config { key: "cluster.addresses", reason })
            }
            (Some(master), true) => Ok(Guide::Sentinels { sentinels, master: master.clone() }),
            (None, false) => Ok(Guide::Cluster { seeds, key: key.to_owned() }),
            (None, true) => Ok(Guide::Url),
        }
    }

    /// What is configured, in words.
    pub(super) fn name(&self, config: &Config, info: &ConnectionInfo) -> String {
        match self {
            Guide::Url => info.addr().to_string(),
            Guide::Sentinels { .. } => format!("Sentinel {}", config.sentinel.addresses.join(", ")),
            Guide::Cluster { .. } => format!("Cluster {}", config.cluster.addresses.join(", ")),
        }
    }
}

/// How to connect and log in. With Sentinels or a Cluster, the host in it does not count.
pub(super) fn connection_info(config: &Config) -> Result<ConnectionInfo, Error> {
    let no_url = || Error::Config { key: "url", reason: "it is missing; use redis://host:port".into() };
    read_url(config.url.as_ref().ok_or_else(no_url)?.expose_secret())
}

/// Reads a URL into what the client library needs, with the socket options that it does not set by itself.
fn read_url(url: &str) -> Result<ConnectionInfo, Error> {
    let invalid = |reason: &str| Error::Config {
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

/// The same way of connecting and logging in, to another host.
pub(super) fn to(like: &ConnectionInfo, (host, port): Node) -> ConnectionInfo {
    like.clone().set_addr(at(like.addr(), host, port))
}

/// The same way of connecting, to another host.
pub(super) fn at(like: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match like {
        ConnectionAddr::TcpTls { insecure, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: None }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

fn sentinels(config: &Sentinel, primary: &ConnectionInfo) -> Result<Vec<ConnectionInfo>, Error> {
    let wrong = |key, reason: String| Err(Error::Config { key, reason });
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
    let found = addresses("sentinel.addresses", &config.addresses, SENTINEL_PORT)?;
    let sentinel = |node| to(primary, node).set_redis_settings(login.clone());
    Ok(found.into_iter().map(sentinel).collect())
}

fn seeds(config: &Cluster, primary: &ConnectionInfo) -> Result<Vec<ConnectionInfo>, Error> {
    let wrong = |reason: &str| Err(Error::Config { key: "url", reason: reason.into() });
    match (config.addresses.is_empty(), primary.addr(), primary.redis_settings().db()) {
        (true, ..) => return Ok(Vec::new()),
        (_, ConnectionAddr::Unix(_), _) => {
            return wrong("a socket of this machine does not go with cluster.addresses; use redis:// or rediss://");
        }
        (_, _, 1..) => return wrong("a Redis Cluster has only database 0; leave the database out"),
        _ => {}
    }
    let found = addresses("cluster.addresses", &config.addresses, NODE_PORT)?;
    Ok(found.into_iter().map(|node| to(primary, node)).collect())
}

fn addresses(key: &'static str, listed: &[String], default_port: u16) -> Result<Vec<Node>, Error> {
    let read = |address: &String| {
        let parsed = url::Url::parse(&format!("redis://{address}")).ok().filter(|_| !address.contains(['@', '?', '#']));
        let node = parsed.filter(|url| matches!(url.path(), "" | "/")).and_then(|url| {
            let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
            Some((host, url.port().unwrap_or(default_port)))
        });
        // What is before an @ may be a password.
        let shown = address.rsplit_once('@').map_or_else(|| address.clone(), |(_, host)| format!("***@{host}"));
        node.ok_or_else(|| Error::Config { key, reason: format!("\"{shown}\" is not of the form host or host:port") })
    };
    listed.iter().map(read).collect()
}

/// What to change where connecting fails as it does when only one side speaks TLS, or for want of a certificate; none for
/// the error means that time ran out.
pub(super) fn advice(address: &ConnectionAddr, error: Option<&RedisError>) -> &'static str {
    let is_tls = matches!(address, ConnectionAddr::TcpTls { .. });
    let Some(error) = error.filter(|error| !error.is_timeout()) else {
        return if is_tls { SILENT } else { "" };
    };
    let closed = error.is_connection_dropped() && !error.is_connection_refusal();
    let text = error.to_string();
    match is_tls {
        true => {
            let said = |(words, _): &&(&str, &str)| text.contains(words);
            TLS_ERRORS.iter().find(said).map_or("", |(_, advice)| advice)
        }
        false if closed => "; a port with TLS closes such connections: for one, use rediss:// in registry.url",
        false => "",
    }
}

const SILENT: &str = "; a port without TLS does not answer: for one, use redis:// in registry.url";

/// Words of the TLS library, and what to do.
const TLS_ERRORS: [(&str, &str); 4] = [
    ("InvalidContentType", SILENT),
    ("UnknownIssuer", "; name the authority that signed it in registry.tls.ca"),
    ("BadSignature", "; name the authority that signed it in registry.tls.ca"),
    ("CertificateRequired", "; name one in registry.tls.client_certificate"),
];

/// None where the system's authorities count, and no certificate is to be shown.
pub(super) fn certificates(config: &Tls, info: &ConnectionInfo) -> Result<Option<TlsCertificates>, Error> {
    let wrong = |key, reason: String| Err(Error::Config { key, reason });
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
    let authorities = |file: &Path| {
        let text = read("tls.ca", file)?;
        // With none, the client would trust nobody, and say so of each connection alone.
        let found = pem::certificates_in(file, &text).map(drop);
        found.map_err(|error| Error::Config { key: "tls.ca", reason: error.to_string() })?;
        Ok(text)
    };
    let root_cert = config.ca.as_deref().map(authorities).transpose()?;
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    pem::read(path).map_err(|error| Error::Config { key, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Place;
    use super::*;

    #[test]
    fn urls_are_checked_without_showing_the_password() {
        for good in [
            "redis://localhost",
            "redis://user:hunter2@10.0.0.1:7000/2",
            "rediss://cache.example:6380",
            "unix:///run/r",
        ] {
            read_url(good).expect(good);
        }
        for bad in ["", "localhost", "http://:hunter2@x", "redis://:hunter2@x/db", "rediss://:hunter2@x/#insecure"] {
            let error = read_url(bad).expect_err(bad).to_string();
            assert!(error.contains("use redis://") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_mistake_about_guides_or_certificates_names_its_key() {
        for (config, key) in [
            (json!({"sentinel": {"addresses": ["a:1"]}}), "registry.sentinel.master"),
            (json!({"sentinel": {"master": "m"}}), "registry.sentinel.addresses"),
            (json!({"sentinel": {"master": "m", "addresses": ["a:b"]}}), "\"a:b\" is not of the form"),
            (json!({"sentinel": {"master": "m", "addresses": ["u:p@a:1"]}}), "\"***@a:1\" is not of the form"),
            (json!({"cluster": {"addresses": [":p@a:1"]}}), "\"***@a:1\" is not of the form"),
            (json!({"cluster": {"addresses": ["a:1", ""]}}), "registry.cluster.addresses is not valid: \"\" is not"),
            (json!({"cluster": {"addresses": ["a:1,b:1"]}}), "\"a:1,b:1\" is not of the form host or host:port"),
            (
                json!({"cluster": {"addresses": ["redis://a"]}}),
                "registry.cluster.addresses is not valid: \"redis://a\"",
            ),
            (
                json!({"url": "redis://a/3", "cluster": {"addresses": ["a"]}}),
                "registry.url is not valid: a Redis Cluster",
            ),
            (json!({"url": "unix:///r", "cluster": {"addresses": ["a"]}}), "registry.url is not valid: a socket"),
            (json!({"sentinel": {"master": "m", "addresses": ["a"]}, "cluster": {"addresses": ["a"]}}), "no Sentinels"),
            (json!({"tls": {"ca": "/ca.pem"}}), "begins with rediss://"),
            (json!({"url": "rediss://a", "tls": {"ca": "/none/ca.pem"}}), "\"/none/ca.pem\" cannot be read"),
            (json!({"url": "rediss://a", "tls": {"client_key": "/k"}}), "registry.tls.client_certificate"),
        ] {
            let mut config: Config = serde_json::from_value(config).expect("parses");
            config.url.get_or_insert_with(|| "redis://localhost".into());
            let error = Place::new(&config, "k").err().expect(key).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn addresses_have_a_port_of_their_own_or_the_usual_one() {
        let asked = |config| {
            let config: Config = serde_json::from_value(config).expect("parses");
            let info = connection_info(&config).expect("a URL");
            match Guide::new(&config, &info, "k").expect("valid") {
                Guide::Sentinels { sentinels: asked, .. } | Guide::Cluster { seeds: asked, .. } => asked,
                Guide::Url => Vec::new(),
            }
        };
        let addresses = |asked: &[ConnectionInfo]| asked.iter().map(|one| one.addr().to_string()).collect::<Vec<_>>();
        let sentinels = asked(json!({"url": "redis://x", "sentinel": {"master": "m", "addresses": ["a", "[::1]:5"]}}));
        assert_eq!(addresses(&sentinels), ["a:26379", "::1:5"]);
        let nodes = asked(json!({"url": "rediss://u:secret@x", "cluster": {"addresses": ["a", "b:7000"]}}));
        assert_eq!(addresses(&nodes), ["a:6379", "b:7000"]);
        let is_like_url = |node: &ConnectionInfo| {
            matches!(node.addr(), ConnectionAddr::TcpTls { .. }) && node.redis_settings().username() == Some("u")
        };
        assert!(nodes.iter().all(is_like_url));
    }
}
