//! How weir gets at Redis: rights, certificates, Sentinels; and what it says when that is wrong.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use weir::registry::redis::RedisRegistry;
use weir::registry::{Config, Incarnation, Presence, Registry, RegistryError, Sentinel, State, Tls};
use weir::telemetry::Telemetry;

use crate::support::redis::{RedisServer, Watched};

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
    assert_eq!(answer, "+OK\r\n");
    server.ask("SCRIPT FLUSH");
    server.ask("ACL LOG RESET");
}

/// Everything that a worker asks of Redis.
async fn as_worker(config: &Config, _: &RedisServer) -> Result<(), RegistryError> {
    let registry = registry(config);
    let (old, new) = (presence(State::Open), presence(State::Full));
    registry.announce(&old, true).await?;
    registry.announce(&new, true).await?;
    registry.withdraw(&new.worker, new.incarnation).await
}

/// Everything that a router asks of Redis, with somebody there whose time is over.
async fn as_router(config: &Config, server: &RedisServer) -> Result<(), RegistryError> {
    server.ask(&format!("ZADD weir:{{parallel}}:members 1 w9/{}", Incarnation::mint()));
    let registry = registry(config);
    let alive = presence(State::Open);
    server.ask(&format!("ZADD weir:{{parallel}}:members 99999999999999 w1/{}", alive.incarnation));
    let snapshot = registry.snapshot().await?;
    registry.changes(&snapshot.cursor).await.map(drop)
}

async fn needs_exactly_what_is_documented(
    user: &str,
    run: impl AsyncFn(&Config, &RedisServer) -> Result<(), RegistryError>,
) {
    let server = RedisServer::start();
    let config = at(&server.url().replace("redis://", "redis://weir:secret@"));
    let rights = documented(user);
    set_user(&server, &rights);
    run(&config, &server).await.expect("what is documented is enough");
    assert_eq!(server.ask("ACL LOG"), "*0\r\n", "nothing was refused on the way");

    let commands: Vec<_> = rights.iter().filter(|right| right.starts_with('+')).collect();
    assert!(commands.len() > 5, "{rights:?}");
    for command in commands {
        let fewer: Vec<_> = rights.iter().filter(|right| *right != command).cloned().collect();
        set_user(&server, &fewer);
        let error = run(&config, &server).await.expect_err(&format!("{command} is needed"));
        assert!(matches!(error, RegistryError::Rejected { .. }), "{command}: {error:?}");
        assert!(error.to_string().contains("ACL LOG"), "{error}");
        let log = server.ask("ACL LOG 1").to_lowercase();
        assert!(log.contains(&format!("\r\n{}\r\n", &command[1..])), "{command}: {log}");
    }

    // Another prefix is not its business.
    let elsewhere: Vec<_> = rights.iter().map(|right| right.replace("~weir:", "~other:")).collect();
    set_user(&server, &elsewhere);
    let error = run(&config, &server).await.expect_err("the keys are needed");
    assert!(matches!(error, RegistryError::Rejected { .. }), "{error:?}");
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
async fn the_servers_certificate_and_the_clients_are_checked_against_the_configured_authority() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate that is named like its issuer for one that signed itself.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let root = CertifiedIssuer::self_signed(params.clone(), KeyPair::generate().expect("a key")).expect("a root");
    let stranger = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    let certificate = params.signed_by(&key, &root).expect("a certificate");
    let (ca, stranger) = (write("ca.pem", root.pem()), write("stranger.pem", stranger.pem()));
    let (certificate, key) = (write("cert.pem", certificate.pem()), write("key.pem", key.serialize_pem()));

    // The plain port stays for the test's own questions.
    let tls_port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let file = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (ca_file, certificate_file, key_file) = (file(&ca), file(&certificate), file(&key));
    let port = tls_port.to_string();
    let _server = RedisServer::start_as(&[
        "--tls-port",
        &port,
        "--tls-ca-cert-file",
        &ca_file,
        "--tls-cert-file",
        &certificate_file,
        "--tls-key-file",
        &key_file,
    ]);
    let url = format!("rediss://127.0.0.1:{tls_port}");
    let right = Tls { ca: Some(ca), client_certificate: Some(certificate), client_key: Some(key) };
    let with = |tls: Tls| Config { tls, ..at(&url) };
    registry(&with(right.clone())).announce(&presence(State::Open), true).await.expect("all is as it should be");

    for (tls, why) in [
        (Tls { ca: Some(stranger), ..right.clone() }, "the server is signed by another authority"),
        (Tls { client_certificate: None, client_key: None, ..right }, "the server wants a certificate"),
    ] {
        let error = registry(&with(tls)).snapshot().await.expect_err(why);
        assert!(matches!(error, RegistryError::Unavailable { .. }), "{why}: {error:?}");
    }
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
