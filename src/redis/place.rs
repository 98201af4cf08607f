//! Where the primary is: at the configured address, where the Sentinels say, or at the node of a Redis Cluster that serves
//! the slot of a key.
//!
//! Sentinels, and nodes of a Cluster, are all asked at once and the first answer counts, so that a dead one costs no time.
//! An answer may be out of date while a failover goes on: a Sentinel or a node that is cut off from the others can go on
//! saying what was. So a place that was found wanting is doubted until it has answered a request, and an answer that names
//! it counts only when no other one comes. For the same reason a link believes only a server that calls itself a primary.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, TlsCertificates, Value,
};

use super::cluster::{self, Node};
use super::guide::{self, Guide, at, to};
use super::{Config, Error};

/// The place of the primary that serves one key, and all with the same hash tag; shared by all links to it.
pub struct Place {
    info: ConnectionInfo,
    tls: Option<TlsCertificates>,
    guide: Guide,
    name: String,
    connect_timeout: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Where the last link that connected went to.
    current: String,
    /// What was found wanting and has not answered a request since.
    doubted: Option<String>,
    /// The nodes of the Cluster at the last answer, for when no configured one can be believed.
    nodes: Vec<Node>,
    /// Those of them that serve slots.
    primaries: Vec<Node>,
}

/// What a guide says.
struct Answer {
    primary: Node,
    primaries: Vec<Node>,
    nodes: Vec<Node>,
}

impl Place {
    /// The place of the primary that serves `key`. Reads certificates; connects to nothing.
    pub fn new(config: &Config, key: &str) -> Result<Self, Error> {
        let info = guide::connection_info(config)?;
        let tls = guide::certificates(&config.tls, &info)?;
        let guide = Guide::new(config, &info, key)?;
        let name = guide.name(config, &info);
        let known = Mutex::new(Known { current: name.clone(), ..Known::default() });
        let place = Place { info, tls, guide, name, connect_timeout: config.connect_timeout, known };
        // Certificates that cannot be used are found here, not at the first connection.
        place.client(place.info.clone()).map_err(|error| {
            let key = if place.tls.is_some() { "tls" } else { "url" };
            Error::Config { key, reason: error.to_string() }
        })?;
        Ok(place)
    }

    /// What is configured, without user and password: the same wherever the primary is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the last connection went, without user and password; before the first one, who will be asked.
    pub fn current(&self) -> String {
        self.known.lock().current.clone()
    }

    /// Whether it is a node of a Cluster.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.guide, Guide::Cluster { .. })
    }

    /// The server at this address does not serve: whoever names another one is believed first.
    pub(super) fn doubt(&self, address: &str) {
        self.known.lock().doubted = Some(address.to_owned());
    }

    /// The server at this address has answered a request.
    pub(super) fn trust(&self, address: &str) {
        let doubted = &mut self.known.lock().doubted;
        if doubted.as_deref() == Some(address) {
            *doubted = None;
        }
    }

    /// Whether it names a place that was found wanting.
    fn is_doubted(&self, answer: &Answer) -> bool {
        let (host, port) = answer.primary.clone();
        let named = at(self.info.addr(), host, port).to_string();
        self.known.lock().doubted.as_ref() == Some(&named)
    }

    /// A client for the primary as it is known now. Asking takes at most the connect timeout, and as long again when no
    /// configured node of a Cluster can be believed.
    pub async fn find(&self) -> Result<Client, Error> {
        let info = match &self.guide {
            Guide::Url => self.info.clone(),
            Guide::Sentinels { sentinels, .. } => self.at(self.ask_all(sentinels).await?),
            Guide::Cluster { seeds, .. } => {
                let answer = match self.ask_all(seeds).await {
                    Ok(answer) if !self.is_doubted(&answer) => answer,
                    first => {
                        let learned = self.known.lock().nodes.clone();
                        let learned = learned.into_iter().map(|node| to(&self.info, node));
                        let is_new = |node: &ConnectionInfo| seeds.iter().all(|seed| seed.addr() != node.addr());
                        let learned: Vec<_> = learned.filter(is_new).collect();
                        // What is wrong with the configured ones is what one can correct.
                        self.ask_all(&learned).await.or(first)?
                    }
                };
                {
                    let mut known = self.known.lock();
                    known.nodes.clone_from(&answer.nodes);
                    known.primaries.clone_from(&answer.primaries);
                }
                self.at(answer)
            }
        };
        self.known.lock().current = info.addr().to_string();
        self.client(info).map_err(|error| self.unavailable(error.to_string()))
    }

    /// The places of all keys, of whatever slot: each is one server's.
    pub(super) async fn all(self) -> Result<Vec<Place>, Error> {
        if !self.is_cluster() {
            return Ok(vec![self]);
        }
        self.find().await?;
        let primaries = std::mem::take(&mut self.known.lock().primaries);
        let place = |node| {
            let info = to(&self.info, node);
            let name = info.addr().to_string();
            let known = Mutex::new(Known { current: name.clone(), ..Known::default() });
            Place { info, tls: self.tls.clone(), guide: Guide::Url, name, connect_timeout: self.connect_timeout, known }
        };
        Ok(primaries.into_iter().map(place).collect())
    }

    fn at(&self, answer: Answer) -> ConnectionInfo {
        to(&self.info, answer.primary)
    }

    /// The first answer that names no doubted place, or one that does when all others have failed.
    async fn ask_all(&self, whom: &[ConnectionInfo]) -> Result<Answer, Error> {
        let mut asked: FuturesUnordered<_> = whom.iter().map(|one| self.ask(one)).collect();
        let (mut reasons, mut doubtful) = (Vec::new(), None);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(answer) if self.is_doubted(&answer) => doubtful = Some(answer),
                Ok(answer) => return Ok(answer),
                Err(reason) => reasons.push(reason),
            }
        }
        reasons.sort();
        doubtful.ok_or_else(|| self.unavailable(reasons.join("; ")))
    }

    async fn ask(&self, whom: &ConnectionInfo) -> Result<Answer, String> {
        let asking = async {
            match &self.guide {
                Guide::Cluster { key, .. } => self.ask_node(whom, key).await,
                Guide::Sentinels { master, .. } => self.ask_sentinel(whom, master).await,
                Guide::Url => Err("nobody is to be asked".into()),
            }
        };
        let answer = tokio::time::timeout(self.connect_timeout, asking).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer in time{}", guide::advice(whom.addr(), None))));
        let what = if self.is_cluster() { "Cluster node" } else { "Sentinel" };
        answer.map_err(|why| format!("{what} {}: {why}", whom.addr()))
    }

    async fn connect(
        &self,
        whom: &ConnectionInfo,
        words: impl Fn(RedisError) -> String,
    ) -> Result<MultiplexedConnection, String> {
        let timeouts = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.connect_timeout));
        let client = self.client(whom.clone()).map_err(&words)?;
        client.get_multiplexed_async_connection_with_config(&timeouts).await.map_err(|error| {
            let advice = guide::advice(whom.addr(), Some(&error));
            format!("{}{advice}", words(error))
        })
    }

    async fn ask_node(&self, node: &ConnectionInfo, key: &str) -> Result<Answer, String> {
        let words = |error: RedisError| match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
                format!("it refused the login ({error}); correct user and password in registry.url")
            }
            (_, Some("NOPERM")) => format!("{error} (ACL LOG on the server names what the user lacks)"),
            _ if error.to_string().contains("cluster support disabled") => {
                "it is no node of a Redis Cluster; leave registry.cluster.addresses out, and name it in registry.url"
                    .into()
            }
            _ => error.to_string(),
        };
        let mut connection = self.connect(node, words).await?;
        let mut question = redis::cmd("CLUSTER");
        question.arg("KEYSLOT").arg(key);
        let slot: u16 = question.query_async(&mut connection).await.map_err(words)?;
        let mut question = redis::cmd("CLUSTER");
        question.arg("SLOTS");
        let reply: Value = question.query_async(&mut connection).await.map_err(words)?;
        let asked = match node.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str(),
            _ => "",
        };
        let served = cluster::read(&reply, slot, asked)?;
        Ok(Answer { primary: served.primary, primaries: served.primaries, nodes: served.nodes })
    }

    async fn ask_sentinel(&self, sentinel: &ConnectionInfo, master: &str) -> Result<Answer, String> {
        let words = |error: RedisError| match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
                format!("it refused the login ({error}); correct registry.sentinel.user and registry.sentinel.password")
            }
            (_, Some("ERR")) if error.to_string().contains("unknown command") => "it is a Redis, not a Sentinel".into(),
            _ => error.to_string(),
        };
        let mut connection = self.connect(sentinel, words).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let answer: Option<Node> = question.query_async(&mut connection).await.map_err(words)?;
        let primary = answer.ok_or_else(|| format!("it knows no primary \"{master}\" (registry.sentinel.master)"))?;
        Ok(Answer { primary, primaries: Vec::new(), nodes: Vec::new() })
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, RedisError> {
        match &self.tls {
            Some(tls) => Client::build_with_tls(info, tls.clone()),
            None => Client::open(info),
        }
    }

    fn unavailable(&self, reason: String) -> Error {
        Error::Unavailable { address: self.current(), reason }
    }
}
