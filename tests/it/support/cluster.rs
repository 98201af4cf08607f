//! A Redis Cluster of real servers, whose nodes can be killed and whose slots can be moved.

use tempfile::TempDir;
use weir::registry::{Cluster, Config};

use super::redis::{FREE_PORT, RedisServer};
use super::waiting::eventually;

const SLOTS: usize = 16_384;

/// How long a node may be silent before the others call it dead.
const NODE_TIMEOUT_MS: &str = "1000";

/// Keys that are moved at a time.
const KEYS_AT_ONCE: usize = 2;

/// A running Cluster; dropping it ends it.
pub struct RedisCluster {
    /// The primaries first, and then one replica if there is one.
    pub nodes: Vec<RedisServer>,
    _directory: TempDir,
}

impl RedisCluster {
    /// Three primaries and a replica of the one that serves `key`.
    pub async fn start_with_replica_of(key: &str) -> Self {
        let cluster = Self::form(4, 3, &[]).await;
        let primary = cluster.serving(key).expect("somebody serves it");
        let replica = &cluster.nodes[3];
        let id = cluster.id(primary);
        eventually("the replica has heard of the primary", || replica.ask("CLUSTER NODES").contains(&id)).await;
        assert_eq!(replica.ask(&format!("CLUSTER REPLICATE {id}")), "+OK\r\n");
        eventually("the replica is in step", || replica.ask("INFO replication").contains("master_link_status:up"))
            .await;
        let id = cluster.id(3);
        let known = || {
            (0..3).all(|node| {
                cluster.nodes[node]
                    .ask("CLUSTER NODES")
                    .lines()
                    .any(|line| line.contains(&id) && line.contains("slave"))
            })
        };
        eventually("the primaries know the replica", known).await;
        cluster
    }

    /// Waits until the replica has all that its primary holds: what it lacks, a failover loses.
    pub async fn until_replicated(&self, primary: usize) {
        let has_all = || {
            let info = self.nodes[primary].ask("INFO replication");
            let offset = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).expect("a primary");
            info.contains(&format!("state=online,offset={offset},"))
        };
        eventually("the replica has all", has_all).await;
    }

    /// So many primaries.
    pub async fn start(primaries: usize) -> Self {
        Self::form(primaries, primaries, &[]).await
    }

    /// One primary, which has all slots, with arguments of its own.
    pub async fn start_one_as(arguments: &[&str]) -> Self {
        Self::form(1, 1, arguments).await
    }

    async fn form(nodes: usize, primaries: usize, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let start = |node: usize| {
            let home = directory.path().join(node.to_string());
            std::fs::create_dir(&home).expect("created");
            let home = home.to_str().expect("UTF-8").to_owned();
            let common = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                FREE_PORT,
                "--cluster-node-timeout",
                NODE_TIMEOUT_MS,
                // What is away serves no slot, and the others go on.
                "--cluster-require-full-coverage",
                "no",
                "--cluster-replica-validity-factor",
                "0",
                "--repl-diskless-load",
                "swapdb",
                "--repl-diskless-sync-delay",
                "0",
                "--dir",
                &home,
            ];
            RedisServer::start_as(&[&common[..], arguments].concat())
        };
        let cluster = RedisCluster { nodes: (0..nodes).map(start).collect(), _directory: directory };
        for (index, node) in cluster.nodes.iter().enumerate() {
            assert_eq!(node.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1)), "+OK\r\n");
            if index < primaries {
                let (first, last) = (SLOTS * index / primaries, SLOTS * (index + 1) / primaries - 1);
                assert_eq!(node.ask(&format!("CLUSTER ADDSLOTSRANGE {first} {last}")), "+OK\r\n");
            }
        }
        for node in &cluster.nodes[1..] {
            let (port, bus) = (node.port(), node.argument("--cluster-port"));
            assert_eq!(cluster.nodes[0].ask(&format!("CLUSTER MEET 127.0.0.1 {port} {bus}")), "+OK\r\n");
        }
        let formed = format!("cluster_known_nodes:{nodes}\r\ncluster_size:{primaries}\r\n");
        let is_ready = |node: &RedisServer| {
            let info = node.ask("CLUSTER INFO");
            info.contains("cluster_state:ok\r\n")
                && info.contains("cluster_slots_ok:16384\r\n")
                && info.contains(&formed)
        };
        eventually("the Cluster has formed", || cluster.nodes.iter().all(is_ready)).await;
        cluster
    }

    /// What leads to it, by all of its nodes.
    pub fn config(&self) -> Config {
        self.config_by(&(0..self.nodes.len()).collect::<Vec<_>>())
    }

    /// What leads to it, by some of its nodes.
    pub fn config_by(&self, nodes: &[usize]) -> Config {
        let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", self.nodes[*node].port())).collect();
        Config { url: Some("redis://found-by-the-cluster".into()), cluster: Cluster { addresses }, ..Config::default() }
    }

    /// The node that serves a key, if one does.
    pub fn serving(&self, key: &str) -> Option<usize> {
        let serves =
            |node: &RedisServer| node.try_ask(&format!("EXISTS {key}")).is_ok_and(|answer| answer.starts_with(':'));
        self.nodes.iter().position(serves)
    }

    /// What the node that serves its key answers; an error where none does.
    pub fn ask(&self, key: &str, command: &str) -> String {
        self.serving(key).map_or_else(|| "-nobody serves it\r\n".into(), |node| self.nodes[node].ask(command))
    }

    /// Begins to move the slot of a key, and moves at most so many keys.
    pub fn begin_to_move(&self, key: &str, to: usize, keys: usize) -> Move<'_> {
        let from = self.serving(key).expect("somebody serves it");
        assert_ne!(from, to);
        let slot = self.nodes[from].ask(&format!("CLUSTER KEYSLOT {key}"));
        let moving = Move { cluster: self, slot: slot[1..].trim_end().to_owned(), from, to };
        moving.tell(to, &format!("IMPORTING {}", self.id(from)));
        moving.tell(from, &format!("MIGRATING {}", self.id(to)));
        let mut moved = 0;
        while moved < keys {
            match moving.keys(KEYS_AT_ONCE.min(keys - moved)) {
                0 => break,
                some => moved += some,
            }
        }
        moving
    }

    fn id(&self, node: usize) -> String {
        let answer = self.nodes[node].ask("CLUSTER MYID");
        answer.lines().nth(1).expect("an id").to_owned()
    }
}

/// A slot on its way to another node.
pub struct Move<'a> {
    cluster: &'a RedisCluster,
    slot: String,
    from: usize,
    to: usize,
}

impl Move<'_> {
    /// Moves the keys that are left, and gives the slot to its new node.
    pub fn end(self) {
        while self.keys(KEYS_AT_ONCE) > 0 {}
        let owner = format!("NODE {}", self.cluster.id(self.to));
        self.tell(self.to, &owner);
        self.tell(self.from, &owner);
    }

    fn tell(&self, node: usize, what: &str) {
        let answer = self.cluster.nodes[node].ask(&format!("CLUSTER SETSLOT {} {what}", self.slot));
        assert_eq!(answer, "+OK\r\n", "{what}");
    }

    /// Moves some keys, and says how many.
    fn keys(&self, at_most: usize) -> usize {
        let source = &self.cluster.nodes[self.from];
        let answer = source.ask(&format!("CLUSTER GETKEYSINSLOT {} {at_most}", self.slot));
        let keys: Vec<_> = answer.lines().filter(|line| !line.starts_with(['*', '$'])).collect();
        if !keys.is_empty() {
            let port = self.cluster.nodes[self.to].port();
            let moved = source.ask(&format!("MIGRATE 127.0.0.1 {port} \"\" 0 5000 KEYS {}", keys.join(" ")));
            // All of them may have expired meanwhile.
            assert!(["+OK\r\n", "+NOKEY\r\n"].contains(&moved.as_str()), "{moved}");
        }
        keys.len()
    }
}
