//! How weir gets at Redis: rights, certificates, Sentinels; and what it says when that is wrong.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use secrecy::ExposeSecret;
use weir::lifecycle::Lifecycle;
use weir::registry::redis::RedisRegistry;
use weir::registry::{Cluster, Config, Incarnation, Presence, Registry, RegistryError, Sentinel, State, Tls};
use weir::settings::store::{Edit, ReadError, Store};
use weir::settings::{self, Source};
use weir::telemetry::Telemetry;

use crate::support::cluster::RedisCluster;
use crate::support::redis::{FREE_PORT, RedisServer, Watched};

fn registry(config: &Config) -> RedisRegistry {
    let telemetry = Telemetry::new().expect("recorder");
    RedisRegistry::new(config, &"parallel".parse().expect("a pool"), &telemetry).expect("a valid config")
}

fn at(url: &str) -> Config {
    Config { url: Some(url.into()), ..Config::default() }
}

fn presence(state: State) -> Presence {
    Presence {
        worker: "w1".parse().expect("a worker id"),
        address: "http://127.0.0.1:7000".into(),
        incarnation: Incarnation::mint(),
        pool: "parallel".parse().expect("a pool"),
        target: 30,
        in_flight: 0,
        reserved: 0,
        state,
        integrations: vec!["bank".parse().expect("an integration")],
        full: vec![],
        broken: vec![],
        half_open: Vec::new(),
        settings_version: "start".into(),
        settings_rejected: None,
        jump_limit: None,
    }
}

/// The rights of a user in deploy/redis/users.acl, without its password.
fn documented(user: &str) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis/users.acl");
    let text = std::fs::read_to_string(file).expect("it is there");
    let line = text.lines().find(|line| line.starts_with(&format!("user {user} "))).expect("the user is there");
    line.split(' ').skip(2).filter(|word| !word.starts_with('>')).map(str::to_owned).collect()
}

fn set_user(server: &RedisServer, rights: &[String]) {
    let answer = server.ask(&format!("ACL SETUSER weir reset >secret {}", rights.join(" ")));
    assert_eq!(answer, "+OK\r\n", "{rights:?}");
    server.ask("SCRIPT FLUSH");
    server.ask("ACL LOG RESET");
}

/// Everything that a worker asks of Redis.
async fn as_worker(config: &Config, server: &RedisServer) -> Result<(), String> {
    let registry = registry(config);
    let (old, new) = (presence(State::Open), presence(State::Full));
    registry.look(std::slice::from_ref(&old.worker)).await.map_err(words)?;
    registry.announce(&old, true).await.map_err(words)?;
    registry.announce(&new, true).await.map_err(words)?;
    registry.withdraw(&new.worker, new.incarnation).await.map_err(words)?;
    let token = registry.lease("profile", None).await.map_err(words)?.expect("nobody has it");
    registry.release("profile", token).await.map_err(words)?;
    follow_settings(config, server).await
}

/// Everything that a router asks of Redis.
async fn as_router(config: &Config, server: &RedisServer) -> Result<(), String> {
    follow_pool(config, server).await?;
    follow_settings(config, server).await
}

async fn follow_settings(config: &Config, server: &RedisServer) -> Result<(), String> {
    let settings = settings_in(config);
    read(&*settings).await?;
    // So that there is something to hear of at once.
    server.ask("XADD weir:{settings}:history * a change");
    settings.wait().await;
    read(&*settings).await.map(drop)
}

/// With somebody there whose time is over.
async fn follow_pool(config: &Config, server: &RedisServer) -> Result<(), String> {
    server.ask(&format!("ZADD weir:{{parallel}}:members 1 w9/{}", Incarnation::mint()));
    let registry = registry(config);
    let alive = presence(State::Open);
    server.ask(&format!("ZADD weir:{{parallel}}:members 99999999999999 w1/{}", alive.incarnation));
    let snapshot = registry.snapshot().await.map_err(words)?;
    registry.changes(&snapshot.cursor).await.map(drop).map_err(words)
}

/// Everything that the commands ask of Redis.
async fn as_operator(config: &Config, server: &RedisServer) -> Result<(), String> {
    follow_pool(config, server).await?;
    let pools = weir::registry::redis::pools(config).await.map_err(words)?;
    assert!(pools.iter().any(|pool| pool.as_str() == "parallel"), "{pools:?}");
    let settings = settings_in(config);
    let before = read(&*settings).await?;
    let edit = Edit { document: format!("{{\"n\": \"{}\"}}", Incarnation::mint()), who: "me".into(), why: "so".into() };
    settings.write(before.as_deref(), &edit).await.map_err(|error| error.to_string())?;
    settings.history().await.map(drop).map_err(|error| error.to_string())
}

fn words(error: RegistryError) -> String {
    error.to_string()
}

fn settings_in(config: &Config) -> Arc<dyn Store> {
    let config = settings::Config { source: Source::Redis, redis: config.clone(), ..settings::Config::default() };
    settings::store::open(&config, &Lifecycle::new()).expect("valid").expect("a store")
}

async fn read(settings: &dyn Store) -> Result<Option<Vec<u8>>, String> {
    match settings.read().await {
        Ok(document) => Ok(Some(document)),
        Err(ReadError::Missing) => Ok(None),
        Err(error @ ReadError::TooLarge(_)) => Err(error.to_string()),
        Err(ReadError::Failed(reason)) => Err(reason),
    }
}

/// In a Cluster, where two rights more are needed.
async fn needs_exactly_what_is_documented(user: &str, run: impl AsyncFn(&Config, &RedisServer) -> Result<(), String>) {
    let cluster = RedisCluster::start_one_as(&[]).await;
    let server = &cluster.nodes[0];
    let config = Config { url: Some("redis://weir:secret@found-by-the-cluster".into()), ..cluster.config() };
    let rights = documented(user);
    set_user(server, &rights);
    run(&config, server).await.expect("what is documented is enough");
    assert_eq!(server.ask("ACL LOG"), "*0\r\n", "nothing was refused on the way");

    let commands: Vec<_> = (0..rights.len()).filter(|at| rights[*at].starts_with('+')).collect();
    assert!(commands.len() > 5, "{rights:?}");
    for at in commands {
        let (mut fewer, command) = (rights.clone(), rights[at].trim_matches(['+', ')']));
        let right = fewer.remove(at);
        if right.ends_with(')') {
            // The last one of a selector ends it.
            fewer[at - 1].push(')');
        }
        server.ask("DEL weir:{settings} weir:{settings}:history");
        server.ask("SET weir:{settings} {}");
        set_user(server, &fewer);
        let ended = run(&config, server).await;
        let log = server.ask("ACL LOG 1").to_lowercase();
        // Of a command that the user still has for other keys, the key is named.
        let is_elsewhere = fewer.iter().any(|right| right.trim_matches(['+', ')']) == command);
        let named = if is_elsewhere { "weir:{".to_owned() } else { format!("\r\n{command}\r\n") };
        assert!(log.contains(&named), "{command} is needed: {ended:?} {log}");
        // Whoever cannot wait for changes of the settings reads them all the more often.
        if rights[at] != "+xread)" {
            let error = ended.expect_err(&format!("{command} is needed"));
            assert!(error.contains("ACL LOG"), "{command}: {error}");
        }
    }

    // Another prefix is not its business.
    let elsewhere: Vec<_> = rights.iter().map(|right| right.replace("~weir:", "~other:")).collect();
    set_user(server, &elsewhere);
    let error = run(&config, server).await.expect_err("the keys are needed");
    assert!(error.contains("rejected"), "{error:?}");
}

#[tokio::test]
async fn a_worker_needs_exactly_the_rights_that_are_documented() {
    needs_exactly_what_is_documented("weir-worker", as_worker).await;
}

#[tokio::test]
async fn a_router_needs_exactly_the_rights_that_are_documented() {
    needs_exactly_what_is_documented("weir-router", as_router).await;
}

#[tokio::test]
async fn the_commands_need_exactly_the_rights_that_are_documented() {
    needs_exactly_what_is_documented("weir-operator", as_operator).await;
}

fn texts(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// An authority, a certificate of it for this machine, and a stranger of the same name.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn make() -> Self {
        let files = Certificates(tempfile::tempdir().expect("a directory"));
        let write = |name: &str, text: String| std::fs::write(files.file(name), text).expect("written");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate that is named like its issuer for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, "authority");
        let root = CertifiedIssuer::self_signed(params.clone(), KeyPair::generate().expect("a key")).expect("a root");
        let stranger = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        let certificate = params.signed_by(&key, &root).expect("a certificate");
        write("ca.pem", root.pem());
        write("stranger.pem", stranger.pem());
        write("cert.pem", certificate.pem());
        write("key.pem", key.serialize_pem());
        files
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Of a server that speaks TLS at this port, too, and asks for a certificate.
    fn arguments(&self, port: &str) -> Vec<String> {
        let pairs = [
            ("--tls-port", port.to_owned()),
            ("--tls-ca-cert-file", self.file("ca.pem")),
            ("--tls-cert-file", self.file("cert.pem")),
            ("--tls-key-file", self.file("key.pem")),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Of a client that has a certificate.
    fn tls(&self) -> Tls {
        let file = |name| Some(self.file(name).into());
        Tls { ca: file("ca.pem"), client_certificate: file("cert.pem"), client_key: file("key.pem") }
    }
}

#[tokio::test]
async fn a_cluster_is_reached_over_tls_alone() {
    let files = Certificates::make();
    let cluster =
        RedisCluster::start_one_as(&[&texts(&files.arguments(FREE_PORT))[..], &["--tls-cluster", "yes"]].concat())
            .await;
    let addresses = vec![format!("127.0.0.1:{}", cluster.nodes[0].argument("--tls-port"))];
    let url = Some("rediss://found-by-the-cluster".into());
    let config =
        Config { url, tls: files.tls(), cluster: Cluster { addresses: addresses.clone() }, ..Config::default() };
    let over_tls = registry(&config);
    over_tls.announce(&presence(State::Open), true).await.expect("all is as it should be");
    let found = over_tls.probe().await.expect("it answers");
    assert!(found.contains(&format!(" at {}", addresses[0])), "{found}");
}

#[tokio::test]
async fn the_servers_certificate_and_the_clients_are_checked_against_the_configured_authority() {
    let files = Certificates::make();
    // The plain port stays for the test's own questions.
    let server = RedisServer::start_as(&texts(&files.arguments(FREE_PORT)));
    let url = format!("rediss://127.0.0.1:{}", server.argument("--tls-port"));
    let right = files.tls();
    let with = |tls: Tls| Config { tls, ..at(&url) };
    registry(&with(right.clone())).announce(&presence(State::Open), true).await.expect("all is as it should be");

    let plain = server.url();
    for (config, advice) in [
        (with(Tls { ca: Some(files.file("stranger.pem").into()), ..right.clone() }), "registry.tls.ca"),
        (with(Tls { client_certificate: None, client_key: None, ..right.clone() }), "registry.tls.client_certificate"),
        (Config { tls: right, ..at(&plain.replace("redis://", "rediss://")) }, "use redis:// in registry.url"),
        (at(&url.replace("rediss://", "redis://")), "use rediss:// in registry.url"),
    ] {
        says(&config, advice).await;
        // A node of a Cluster says the same.
        let address = config.url.as_ref().expect("set").expose_secret().split_once("//").expect("a URL").1.to_owned();
        let config = Config { cluster: Cluster { addresses: vec![address] }, ..config };
        let error = says(&config, advice).await;
        assert!(error.contains("Cluster node 127.0.0.1:"), "{error}");
    }
}

/// What it answers to one who tries again while this machine is too busy to answer in time.
async fn says(config: &Config, advice: &str) -> String {
    let registry = registry(config);
    let mut said = Vec::new();
    for _ in 0..20 {
        let error = registry.snapshot().await.expect_err(advice);
        assert!(matches!(error, RegistryError::Unavailable { .. }), "{advice}: {error:?}");
        let error = error.to_string();
        if error.contains(advice) {
            return error;
        }
        said.push(error);
    }
    panic!("{advice}: {said:#?}");
}

#[tokio::test]
async fn what_is_wrong_about_a_sentinel_is_said() {
    let watched = Watched::start().await;
    let right = watched.config();
    let found = registry(&right).probe().await.expect("it answers");
    assert!(found.contains(&format!("127.0.0.1:{}", watched.servers[0].port())), "{found}");

    let with = |sentinel: Sentinel| Config { sentinel, ..right.clone() };
    let error = registry(&with(Sentinel { master: Some("other".into()), ..right.sentinel.clone() })).probe().await;
    let error = error.expect_err("nobody monitors it").to_string();
    assert!(error.contains("knows no primary \"other\" (registry.sentinel.master)"), "{error}");

    let plain = vec![format!("127.0.0.1:{}", watched.servers[0].port())];
    let error = registry(&with(Sentinel { addresses: plain, ..right.sentinel.clone() })).probe().await;
    let error = error.expect_err("it is none").to_string();
    assert!(error.contains("it is a Redis, not a Sentinel"), "{error}");

    let replica = at(&watched.servers[1].url());
    let error = registry(&replica).probe().await.expect_err("a replica").to_string();
    assert!(error.contains("it is a replica; weir needs the primary"), "{error}");

    watched.sentinel.ask("CONFIG SET requirepass right");
    watched.sentinel.ask("ACL SETUSER default on >right");
    let login = |password: &str| with(Sentinel { password: Some(password.into()), ..right.sentinel.clone() });
    let error = registry(&login("hunter2")).probe().await.expect_err("wrong").to_string();
    assert!(error.contains("correct registry.sentinel.user") && !error.contains("hunter2"), "{error}");
    registry(&login("right")).probe().await.expect("the right one");
}
