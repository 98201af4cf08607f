//! A whole weir in the test's process, on real servers: redis-server, an S3 server, the sandbox bank, a router, workers.
//!
//! A house must be closed: that drains everything in order and proves that nothing leaked. Dropping an open one fails
//! the test.

use std::sync::{Arc, Once};
use std::time::Duration;

use tempfile::TempDir;
use weir::client::{Client, Submission};
use weir::config::{self, Config};
use weir::gate::Load;
use weir::integration::Integrations;
use weir::lifecycle::Lifecycle;
use weir::payload::store::s3::{Credentials, S3};
use weir::payload::{Ledger, Store};
use weir::registry;
use weir::router::Router;
use weir::sandbox::Sandbox;
use weir::settings::{file, flagd};
use weir::task::Json;
use weir::telemetry::Telemetry;
use weir::telemetry::logs::Level;
use weir::worker::{Parts, Worker};

use super::redis::RedisServer;
use super::s3::{ACCESS_KEY, S3Server, SECRET_KEY};

/// Long enough for anything on a busy machine; nothing waits for it when all is well.
pub const LONG: Duration = Duration::from_secs(30);

/// What a test may want different. The text is TOML, added to the house's own.
pub struct Plan {
    pub workers: usize,
    pub max_parallelism: u32,
    pub queue_tasks: usize,
    pub sandbox_latency: Duration,
    pub drain_within: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            workers: 1,
            max_parallelism: 4,
            queue_tasks: 1000,
            sandbox_latency: Duration::from_millis(5),
            drain_within: LONG,
        }
    }
}

pub struct House {
    pub redis: RedisServer,
    pub s3: S3Server,
    pub sandbox: Sandbox,
    pub client: Client,
    router: Option<Router>,
    workers: Vec<Option<Worker>>,
    upstream: Lifecycle,
    directory: TempDir,
    config: Config,
    telemetries: Vec<Telemetry>,
    router_telemetry: Telemetry,
}

impl House {
    pub async fn start() -> Self {
        Plan::default().start().await
    }

    /// Starts one more worker; returns its index.
    pub async fn add_worker(&mut self) -> usize {
        let telemetry = Telemetry::new().expect("a recorder");
        let mut config = self.config.clone();
        let settings = self.settings_file(self.workers.len());
        config.settings.file = Some(settings);
        let integrations = Integrations::from_config(&config.integrations, &telemetry).expect("integrations");
        let credentials = Credentials::fixed(ACCESS_KEY, SECRET_KEY);
        let store = S3::connect_with(&config.payloads.s3, config.payloads.uploads, Some(credentials)).await;
        let parts = Parts {
            integrations,
            registry: registry::open(&config.registry, &config.worker.pool, &telemetry).expect("a registry"),
            store: Some(Arc::new(store)),
            payloads: config.payloads,
            settings: config.settings,
            log_level: Level::fixed(),
        };
        let worker = Worker::start(config.worker, parts, telemetry.clone()).await.expect("a worker");
        self.workers.push(Some(worker));
        self.telemetries.push(telemetry);
        self.workers.len() - 1
    }

    pub fn worker(&self, index: usize) -> &Worker {
        self.workers[index].as_ref().expect("it runs")
    }

    pub fn load(&self, index: usize) -> Load {
        self.worker(index).load()
    }

    pub fn ledger(&self, index: usize) -> Ledger {
        self.worker(index).ledger().expect("payloads are kept")
    }

    /// Stops one worker in order and proves that it left nothing behind.
    pub async fn stop_worker(&mut self, index: usize) -> Ledger {
        let ended = self.workers[index].take().expect("it runs").drain().await;
        assert_eq!((ended.in_flight, ended.left_behind), (0, 0), "a worker left something behind");
        let ledger = ended.payloads.expect("payloads are kept");
        assert!(ledger.balanced() && ledger.pending == 0, "payloads are unaccounted for: {ledger}");
        ledger
    }

    pub fn router_url(&self) -> String {
        format!("http://{}", self.router.as_ref().expect("it runs").address())
    }

    pub fn router_admin(&self) -> std::net::SocketAddr {
        self.router.as_ref().expect("it runs").admin_address()
    }

    pub fn worker_url(&self, index: usize) -> String {
        format!("http://{}", self.worker(index).address())
    }

    pub fn worker_metrics(&self, index: usize) -> String {
        self.telemetries[index].render()
    }

    pub fn router_metrics(&self) -> String {
        self.router_telemetry.render()
    }

    /// Where a worker's settings are watched.
    pub fn settings_file(&self, index: usize) -> std::path::PathBuf {
        self.directory.path().join(format!("settings-{index}.json"))
    }

    pub fn set(&self, index: usize, flags: &[(&str, serde_json::Value)]) {
        file::write_file(&self.settings_file(index), &flagd::document(flags)).expect("written");
    }

    /// The keys of all stored payloads.
    pub fn stored_keys(&self) -> Vec<String> {
        let bucket = self.directory.path().join("s3/weir");
        let mut keys = Vec::new();
        let mut folders = vec![bucket.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "b64") {
                    keys.push(path.strip_prefix(&bucket).expect("below").to_string_lossy().into_owned());
                }
            }
        }
        keys
    }

    /// The JSON of a stored payload, read through the store.
    pub async fn payload(&self, key: &str) -> serde_json::Value {
        let credentials = Credentials::fixed(ACCESS_KEY, SECRET_KEY);
        let store = S3::connect_with(&self.config.payloads.s3, 1, Some(credentials)).await;
        let stored = store.get(key, 1 << 24).await.expect("it is there");
        let json = weir::payload::decode(&stored.body, Default::default()).expect("it decodes");
        serde_json::from_str(&json).expect("it is JSON")
    }

    /// Drains everything in order; returns the workers' ledgers, added up where it matters.
    pub async fn close(mut self) -> Vec<Ledger> {
        let router = self.router.take().expect("it runs");
        assert_eq!(router.drain().await, 0, "the router left something behind");
        let mut ledgers = Vec::new();
        for index in 0..self.workers.len() {
            if self.workers[index].is_some() {
                ledgers.push(self.stop_worker(index).await);
            }
        }
        self.upstream.stop(LONG).await.expect("the sandbox ends");
        self.s3.stop().await;
        ledgers
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if self.router.is_some() && !std::thread::panicking() {
            panic!("close the house: only that proves that nothing leaked");
        }
    }
}

impl Plan {
    pub async fn start(self) -> House {
        install_tls();
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("s3");
        std::fs::create_dir_all(root.join("weir")).expect("a bucket");
        let (redis, s3) = (RedisServer::start(), S3Server::start(&root).await);
        let upstream = Lifecycle::new();
        let mut config = config::from_text(CONFIGURATION).expect("the house's configuration is valid");
        config.sandbox.latency = weir::sandbox::Latency::Fixed(self.sandbox_latency);
        let sandbox = Sandbox::start(config.sandbox.clone(), &upstream).await.expect("a sandbox");
        config.registry.url = Some(redis.url().into());
        config.payloads.s3.endpoint = Some(s3.endpoint());
        config.settings.max_parallelism = self.max_parallelism;
        config.router.queue_tasks = self.queue_tasks;
        config.worker.drain_within = self.drain_within;
        let token = directory.path().join("token");
        std::fs::write(&token, "sandbox.tests").expect("written");
        for integration in config.integrations.values_mut() {
            if let weir::integration::Config::Http(http) = integration {
                http.base_url = format!("http://{}", sandbox.local_addr);
                http.token = Some(weir::integration::http::TokenSource::File(token.clone()));
            }
        }

        let router_telemetry = Telemetry::new().expect("a recorder");
        let registry = registry::open(&config.registry, &config.router.pool, &router_telemetry).expect("a registry");
        let router = Router::start(config.router.clone(), registry, router_telemetry.clone()).await.expect("a router");
        let client = Client::new(&format!("http://{}", router.address())).expect("an address");
        let (router, workers, telemetries) = (Some(router), Vec::new(), Vec::new());
        let mut house =
            House { redis, s3, sandbox, client, router, workers, upstream, directory, config, telemetries, router_telemetry };
        for _ in 0..self.workers {
            house.add_worker().await;
        }
        house
    }
}

/// A task for the synthetic integration.
pub fn synthetic(id: &str, input: serde_json::Value) -> Submission {
    submission(id, "synthetic", input)
}

/// A pull from the sandbox bank.
pub fn pull(id: &str) -> Submission {
    submission(id, "bank", serde_json::json!({"customer": "c1"}))
}

pub fn submission(id: &str, integration: &str, input: serde_json::Value) -> Submission {
    let mut submission = Submission::new(
        id.parse().expect("an id"),
        integration.parse().expect("a name"),
        Json::of(&input).expect("JSON"),
    );
    submission.timeout = LONG;
    submission
}

/// Waits until something holds, and fails with what was awaited when it never does.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waited).await.unwrap_or_else(|_| panic!("it never came true: {what}"));
}

fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

const CONFIGURATION: &str = r#"
[sandbox]
listen = "127.0.0.1:0"

[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"

[router]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"

[payloads]
store = "s3"

[payloads.s3]
bucket = "weir"
path_style = true

[integrations.synthetic]
kind = "synthetic"

[integrations.bank]
kind = "http"
base_url = "http://127.0.0.1:1"
steps = [
    { name = "accounts", path = "/accounts", query = { customer = "{{ input.customer }}" } },
    { name = "transactions", path = "/accounts/{{ steps.accounts.accounts[0].id }}/transactions" },
]
result = { accounts = "{{ steps.accounts.accounts }}", transactions = "{{ steps.transactions.transactions }}" }
"#;
