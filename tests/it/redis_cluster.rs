//! Redis Cluster: registry and settings on real nodes that die, hand over their slots, or were never what one took them for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use weir::lifecycle::Lifecycle;
use weir::registry::redis::RedisRegistry;
use weir::registry::{CHANGES_WAIT, Change, Cluster, Config, Presence, Registry, RegistryError};
use weir::settings::store::{Edit, ReadError, Store};
use weir::settings::{self, Context, Source, flagd};
use weir::task::PoolName;
use weir::telemetry::Telemetry;

use crate::cli::{assert_ok, run, stderr, stdout, weir};
use crate::outages::{HEALED_WITHIN, through_a_fault, until_stale};
use crate::support::cluster::RedisCluster;
use crate::support::house::eventually;
use crate::support::redis::{self, RedisServer};

/// A key of the pool that the tests' workers serve in.
const MEMBERS: &str = "weir:{default}:members";

fn registry_of(pool: &str, config: &Config) -> RedisRegistry {
    let telemetry = Telemetry::new().expect("recorder");
    RedisRegistry::new(config, &pool.parse().expect("a pool"), &telemetry).expect("a valid config")
}

fn presence(pool: &str) -> Presence {
    redis::presence("w1", pool)
}

/// Announces until it succeeds, as often as a worker that lost one heartbeat and came again.
async fn announced(registry: &RedisRegistry, presence: &Presence, attempts: usize) {
    let mut errors = Vec::new();
    for _ in 0..attempts {
        match registry.announce(presence, true).await {
            Ok(()) => return,
            Err(error) => errors.push(error.to_string()),
        }
    }
    panic!("not within {attempts} attempts: {errors:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pool_is_whole_on_the_node_that_serves_its_slot() {
    let cluster = RedisCluster::start(3).await;
    let pools: Vec<String> = (0..12).map(|n| format!("pool-{n}")).collect();
    let mut used = BTreeSet::new();
    for pool in &pools {
        // Whichever node is asked, it leads to the right one.
        let registry = registry_of(pool, &cluster.config_by(&[0]));
        let worker = presence(pool);
        registry.announce(&worker, true).await.expect("announced");
        let snapshot = registry.snapshot().await.expect("snapshot");
        assert_eq!(snapshot.workers, std::slice::from_ref(&worker));

        // Blocked on the stream when it happens.
        let announced = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            registry.announce(&worker, true).await.expect("announced");
            Instant::now()
        };
        let heard = async { (registry.changes(&snapshot.cursor).await.expect("changes"), Instant::now()) };
        let (written, (changes, heard)) = tokio::join!(announced, heard);
        assert_eq!(changes.changes, [Change::Present(worker.clone())]);
        assert!(heard.saturating_duration_since(written) < CHANGES_WAIT / 2, "it did not wait for its time to end");

        registry.lease("profile", None).await.expect("it answers").expect("nobody has it");
        let serving = cluster.serving(&format!("weir:{{{pool}}}:members")).expect("somebody serves it");
        used.insert(serving);
        for (node, server) in cluster.nodes.iter().enumerate() {
            let keys = server.ask(&format!("KEYS weir:{{{pool}}}:*"));
            let count = keys.lines().filter(|line| line.starts_with("weir:")).count();
            assert_eq!(count, if node == serving { 8 } else { 0 }, "{keys}");
        }
        registry.withdraw(&worker.worker, worker.incarnation).await.expect("withdrawn");
    }
    assert_eq!(used.len(), 3, "twelve pools are on three nodes");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_when_the_primary_of_the_pool_is_killed_and_its_replica_takes_over() {
    let mut cluster = RedisCluster::start_with_replica_of(MEMBERS).await;
    let primary = cluster.serving(MEMBERS).expect("somebody serves it");
    through_a_fault(cluster.config(), async |house| {
        cluster.nodes[primary].kill();
        until_stale(house).await;
        eventually("the replica is the primary", || cluster.serving(MEMBERS) == Some(3)).await;
        let began = Instant::now();
        let members = || cluster.nodes[3].ask(&format!("ZCARD {MEMBERS}")) == ":2\r\n";
        let fresh = || house.router_metric("weir_router_view_stale") == 0.0;
        eventually("both workers are at the new primary", || members() && fresh()).await;
        assert!(began.elapsed() < HEALED_WITHIN, "{:?}", began.elapsed());

        // The old one comes back as a replica of the new one, and is left alone.
        cluster.nodes[primary].start_again();
        let is_replica = || cluster.nodes[primary].ask("INFO replication").contains("role:slave");
        eventually("the old primary is a replica", is_replica).await;
        assert_eq!(cluster.serving(MEMBERS), Some(3));
        assert_eq!(house.router_metric("weir_router_view_stale"), 0.0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_when_the_slot_of_the_pool_moves_to_another_node() {
    let cluster = RedisCluster::start(3).await;
    through_a_fault(cluster.config(), async |house| {
        let to = (cluster.serving(MEMBERS).expect("somebody serves it") + 1) % 3;
        // Some keys here and some there: nobody can run a script.
        let moving = cluster.begin_to_move(MEMBERS, to, 2);
        until_stale(house).await;
        moving.end();
        let began = Instant::now();
        let members = || cluster.nodes[to].ask(&format!("ZCARD {MEMBERS}")) == ":2\r\n";
        let fresh = || house.router_metric("weir_router_view_stale") == 0.0;
        eventually("both workers are at the new node", || members() && fresh()).await;
        assert!(began.elapsed() < HEALED_WITHIN, "{:?}", began.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_in_one_go_is_followed_without_a_snapshot_too_many() {
    let cluster = RedisCluster::start(2).await;
    let registry = registry_of("default", &cluster.config());
    let worker = presence("default");
    registry.announce(&worker, true).await.expect("announced");
    let snapshot = registry.snapshot().await.expect("snapshot");
    let nothing = registry.changes(&snapshot.cursor).await.expect("both connections are up");
    assert!(nothing.changes.is_empty());
    let lease = registry.lease("profile", None).await.expect("it answers");

    let to = 1 - cluster.serving(MEMBERS).expect("somebody serves it");
    cluster.begin_to_move(MEMBERS, to, 0).end();
    announced(&registry, &worker, 3).await;
    let start = Instant::now();
    let changes = loop {
        match registry.changes(&snapshot.cursor).await {
            Ok(changes) => break changes,
            Err(RegistryError::Unavailable { .. }) if start.elapsed() < HEALED_WITHIN => {}
            Err(error) => panic!("the stream moved with its epoch: {error}"),
        }
    };
    assert_eq!(changes.changes, [Change::Present(worker.clone())]);
    assert_eq!(registry.snapshot().await.expect("snapshot").workers, [worker]);
    assert_eq!(registry.lease("profile", lease).await, Ok(lease), "it moved as well, and is renewed");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_configured_nodes_are_gone_the_others_are_asked() {
    let mut cluster = RedisCluster::start_with_replica_of(MEMBERS).await;
    let registry = registry_of("default", &cluster.config_by(&[3]));
    let worker = presence("default");
    registry.announce(&worker, true).await.expect("announced");
    cluster.nodes[3].kill();
    assert!(!cluster.ask(MEMBERS, "CLIENT KILL TYPE normal").starts_with('-'));
    announced(&registry, &worker, 3).await;

    let newcomer = registry_of("default", &cluster.config_by(&[3]));
    let error = newcomer.snapshot().await.expect_err("nobody is there").to_string();
    let seed = cluster.nodes[3].port();
    assert!(error.contains(&format!("Cluster node 127.0.0.1:{seed}: ")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_found_however_the_cluster_announces_them() {
    let cluster = RedisCluster::start(2).await;
    let everywhere = |command: &str| {
        for node in &cluster.nodes {
            assert_eq!(node.ask(command), "+OK\r\n", "{command}");
        }
    };
    let works = async |shown: &str| {
        let registry = registry_of("default", &cluster.config_by(&[1 - cluster.serving(MEMBERS).expect("served")]));
        registry.announce(&presence("default"), true).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
        let found = registry.probe().await.expect("it answers");
        assert!(found.contains(&format!(" at {shown}:")), "{found}");
    };
    works("127.0.0.1").await;
    everywhere("CONFIG SET cluster-preferred-endpoint-type unknown-endpoint");
    works("127.0.0.1").await;
    everywhere("CONFIG SET cluster-preferred-endpoint-type hostname");
    works("127.0.0.1").await;
    everywhere("CONFIG SET cluster-announce-hostname localhost");
    let knows = |node: &RedisServer| node.ask("CLUSTER SLOTS").matches("localhost").count() == 2;
    eventually("the names are known", || cluster.nodes.iter().all(knows)).await;
    works("localhost").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_about_a_cluster_is_said() {
    let (cluster, alone) = (RedisCluster::start(2).await, RedisServer::start());
    let standalone = Cluster { addresses: vec![format!("127.0.0.1:{}", alone.port())] };
    let config = Config { cluster: standalone, ..cluster.config() };
    let error = registry_of("default", &config).probe().await.expect_err("no node").to_string();
    assert!(error.contains("it is no node of a Redis Cluster; leave registry.cluster.addresses out"), "{error}");

    let elsewhere = 1 - cluster.serving(MEMBERS).expect("somebody serves it");
    let config = Config { url: Some(cluster.nodes[elsewhere].url().into()), ..Config::default() };
    let error = registry_of("default", &config).probe().await.expect_err("moved").to_string();
    assert!(error.contains("another one serves these keys; name nodes in registry.cluster.addresses"), "{error}");

    let config = Config { url: Some("redis://nobody:hunter2@x".into()), ..cluster.config() };
    let error = registry_of("default", &config).probe().await.expect_err("no such password").to_string();
    assert!(error.contains("correct user and password in registry.url") && !error.contains("hunter2"), "{error}");

    // Nobody serves the slot.
    let slot = cluster.nodes[0].ask(&format!("CLUSTER KEYSLOT {MEMBERS}"));
    for node in &cluster.nodes {
        node.ask(&format!("CLUSTER DELSLOTS {}", slot[1..].trim_end()));
    }
    let error = registry_of("default", &cluster.config()).probe().await.expect_err("nobody").to_string();
    assert!(error.contains("it knows no node that serves the slot"), "{error}");
}

/// A node that was cut off goes on saying that the keys are its own and that the new primary is its replica, and refuses
/// every request.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_names_itself_and_does_not_serve_is_left_for_what_the_others_say() {
    let cluster = RedisCluster::start(1).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let ports = [listener.local_addr().expect("bound").port(), cluster.nodes[0].port()];
    let (lifecycle, lone) = (Lifecycle::new(), Lifecycle::new());
    let (token, each) = (lifecycle.token(), lone.clone());
    lifecycle.spawn("cut off", async move {
        while let Some(Ok((stream, _))) = token.run_until_cancelled(listener.accept()).await {
            let token = each.token();
            each.spawn("cut off", async move {
                token.run_until_cancelled(cut_off(stream, ports)).await;
            });
        }
    });
    let seed = format!("127.0.0.1:{}", ports[0]);
    // Beside a node that knows better, and alone, where the nodes that it named know better.
    for addresses in [[vec![seed.clone()], cluster.config().cluster.addresses].concat(), vec![seed]] {
        let config = Config { cluster: Cluster { addresses }, ..cluster.config() };
        for _ in 0..20 {
            let registry = registry_of("default", &config);
            announced(&registry, &presence("default"), 2).await;
        }
    }
    for life in [lifecycle, lone] {
        life.stop(HEALED_WITHIN).await.expect("it ends");
    }
}

async fn cut_off(stream: tokio::net::TcpStream, nodes: [u16; 2]) {
    let [primary, replica] = nodes.map(|port| format!("*4\r\n$9\r\n127.0.0.1\r\n:{port}\r\n$2\r\nid\r\n%0\r\n"));
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut command = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = match (command.as_str(), line.to_uppercase().as_str()) {
            (_, "HELLO") => "%2\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$4\r\nrole\r\n$6\r\nmaster\r\n".to_owned(),
            (_, "SETINFO") => "+OK\r\n".to_owned(),
            ("CLUSTER", "KEYSLOT") => ":1\r\n".to_owned(),
            ("CLUSTER", "SLOTS") => format!("*1\r\n*4\r\n:0\r\n:16383\r\n{primary}{replica}"),
            (_, "EVALSHA") => "-CLUSTERDOWN The cluster is down\r\n".to_owned(),
            (_, word) => {
                if !word.starts_with(['*', '$']) {
                    command = word.to_owned();
                }
                continue;
            }
        };
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_reach_workers_through_a_failover_and_a_moved_slot() {
    const DOCUMENT: &str = "weir:{settings}";
    let mut cluster = RedisCluster::start_with_replica_of(DOCUMENT).await;
    let config = settings::Config { source: Source::Redis, redis: cluster.config(), ..settings::Config::default() };
    let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
    let context = Context { worker: Some("worker-1".parse().expect("a worker id")), ..Context::default() };
    let followed = settings::watch(&config, context, None, &telemetry, &lifecycle).expect("valid");
    let mut followed = followed.settings;
    let store = settings::store::open(&config, &lifecycle).expect("valid").expect("a store");
    let mut becomes = async |value: u32| {
        let changed = followed.wait_for(|settings| settings.max_parallelism == value);
        tokio::time::timeout(HEALED_WITHIN, changed).await.expect("in time").expect("watched");
    };
    write(&*store, 31).await;
    becomes(31).await;

    let primary = cluster.serving(DOCUMENT).expect("somebody serves it");
    cluster.until_replicated(primary).await;
    cluster.nodes[primary].kill();
    eventually("the replica is the primary", || cluster.serving(DOCUMENT) == Some(3)).await;
    write(&*store, 32).await;
    becomes(32).await;

    let to = (primary + 1) % 3;
    cluster.begin_to_move(DOCUMENT, to, 1).end();
    write(&*store, 33).await;
    becomes(33).await;
    assert_eq!(cluster.serving(DOCUMENT), Some(to));
    let numbers: Vec<_> = store.history().await.expect("readable").iter().map(|revision| revision.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    lifecycle.stop(HEALED_WITHIN).await.expect("nothing is left");
}

/// Sets a value as somebody does who tries again while the settings cannot be read or written.
async fn write(store: &dyn Store, value: u32) {
    let document = flagd::document(&[("max_parallelism", json!(value))]);
    let edit = Edit { document, who: "me".into(), why: format!("N = {value}") };
    let start = Instant::now();
    loop {
        let before = match store.read().await {
            Ok(before) => Some(before),
            Err(ReadError::Missing) => None,
            Err(error) if start.elapsed() < HEALED_WITHIN => {
                println!("read: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        match store.write(before.as_deref(), &edit).await {
            Ok(_) => return,
            Err(error) if start.elapsed() < HEALED_WITHIN => println!("write: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_work_in_a_cluster() {
    let cluster = RedisCluster::start(3).await;
    let addresses: Vec<_> = cluster.nodes.iter().map(|node| format!("\"127.0.0.1:{}\"", node.port())).collect();
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    let text = format!(
        "settings.source = \"redis\"\n[registry]\nurl = \"redis://found-by-the-cluster\"\ncluster.addresses = [{}]\n",
        addresses.join(", ")
    );
    std::fs::write(file.path(), text).expect("written");
    let pool = PoolName::default();
    let registry = registry_of(pool.as_str(), &cluster.config());
    registry.announce(&presence(pool.as_str()), true).await.expect("announced");
    let says = async |arguments: &[&str]| {
        let output = run(weir().args(arguments).arg("--config").arg(file.path()), "").await;
        assert_ok(&output);
        stdout(&output)
    };
    let checked = says(&["check", "--role", "router", "--connect"]).await;
    assert!(checked.contains("ok     registry: redis 7.") && checked.contains("1 worker in pool default"), "{checked}");
    assert!(checked.contains("settings.source: the key weir:{settings}"), "routers follow settings, too: {checked}");
    says(&["settings", "set", "max_parallelism=7", "--why", "a test"]).await;
    // The first document of a Redis waits for workers, and nobody keeps this one there.
    registry.announce(&presence(pool.as_str()), true).await.expect("announced");
    assert!(says(&["settings", "history"]).await.contains("a test"));
    // The one in the registry is no worker, and reads nothing.
    let output = run(weir().args(["settings", "status", "--config"]).arg(file.path()), "").await;
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let status = stdout(&output);
    assert!(status.starts_with("redis Cluster 127.0.0.1:") && status.contains("weir:{settings}: v1 ("), "{status}");
    assert!(status.ends_with("pool default: applied on 0 of 1 (1 on start: w1)\n"), "{status}");
    let output = run(weir().args(["check", "--role", "worker", "--connect", "--config"]).arg(file.path()), "").await;
    assert!(stdout(&output).contains("ok     settings.source: redis Cluster 127.0.0.1:"), "{}", stdout(&output));
}
