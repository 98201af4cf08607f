//! A whole weir in the test's process, on real servers: redis-server, an S3 server, the sandbox bank, a router, workers.
//!
//! A house must be closed: that drains everything in order and proves that nothing leaked. Dropping an open one fails
//! the test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use weir::client::{Client, Submission, SubmitError};
use weir::config::{self, Config};
use weir::gate::Load;
use weir::integration::Integrations;
use weir::lifecycle::Lifecycle;
use weir::overload;
use weir::payload::store::s3::{Credentials, S3};
use weir::payload::{Ledger, Store};
use weir::registry::{self, Registries};
use weir::router::{self, Router};
use weir::sandbox::Sandbox;
use weir::settings::{Source, file, flagd, launchdarkly};
use weir::task::{Json, Outcome};
use weir::telemetry::logs::Level;
use weir::telemetry::{Telemetry, process};
use weir::worker::{Parts, Worker};

use super::calls::metric;
use super::redis::RedisServer;
use super::s3::{ACCESS_KEY, S3Server, SECRET_KEY};
use super::valve::{Held, Stubborn, Valve};
pub use super::waiting::{LONG, eventually};

/// What a test may want different.
pub struct Plan {
    pub workers: usize,
    pub max_parallelism: u32,
    pub queue_tasks: usize,
    pub sandbox_latency: Duration,
    pub drain_within: Duration,
    /// When the workers shed load: never by themselves, for the machine that runs the tests may be a busy one.
    pub overload: overload::Config,
    /// Whether Redis runs when the roles start.
    pub redis_at_start: bool,
    /// The registry to use in place of the house's own Redis.
    pub registry: Option<registry::Config>,
    /// Where the workers' settings are: a file of each, or one key for all.
    pub settings: Source,
    /// Where LaunchDarkly is, for settings from there.
    pub launchdarkly: launchdarkly::Config,
    /// What the workers sign their uploads with.
    pub s3_secret: &'static str,
    /// The test's own integrations of each worker, by its index.
    pub own: Own,
    /// How the router treats its workers.
    pub outlier: weir::router::outlier::Config,
}

/// Makes integrations for the worker of that index.
pub type Own = Arc<dyn Fn(usize) -> Integrations + Send + Sync>;

impl Default for Plan {
    fn default() -> Self {
        Plan {
            workers: 1,
            max_parallelism: 4,
            queue_tasks: 1000,
            sandbox_latency: Duration::from_millis(5),
            drain_within: LONG,
            overload: overload::Config::watch_only(),
            redis_at_start: true,
            registry: None,
            settings: Source::File,
            launchdarkly: launchdarkly::Config::default(),
            s3_secret: SECRET_KEY,
            own: Arc::new(|_| Integrations::new()),
            outlier: weir::router::outlier::Config::default(),
        }
    }
}

/// What a submitted task came to.
pub type Answer = Result<Outcome, SubmitError>;

pub struct House {
    pub redis: RedisServer,
    pub s3: S3Server,
    pub sandbox: Sandbox,
    pub client: Client,
    /// Holds the tasks of the integrations `held` and `stubborn` until the test lets them go.
    pub valve: Valve,
    router: Option<Router>,
    workers: Vec<Option<Worker>>,
    callers: Lifecycle,
    upstream: Lifecycle,
    directory: TempDir,
    config: Config,
    s3_secret: &'static str,
    own: Own,
    telemetries: Vec<Telemetry>,
    router_telemetry: Telemetry,
}

impl House {
    pub async fn start() -> Self {
        Plan::default().start().await
    }

    /// Starts one more worker; returns its index. The sandbox counts its requests under `worker-{index}`.
    pub async fn add_worker(&mut self) -> usize {
        let pool = self.config.worker.pool.clone();
        self.add_worker_to(pool.as_str()).await
    }

    /// The same, in a pool.
    pub async fn add_worker_to(&mut self, pool: &str) -> usize {
        let index = self.workers.len();
        let telemetry = Telemetry::new().expect("a recorder");
        process::register(&telemetry);
        let mut config = self.config.clone();
        config.worker.pool = pool.parse().expect("a pool");
        config.settings.file = Some(self.settings_file(index));
        let token = self.directory.path().join(format!("token-{index}"));
        std::fs::write(&token, format!("sandbox.worker-{index}")).expect("written");
        for integration in config.integrations.values_mut() {
            if let weir::integration::Config::Http(http) = integration {
                http.token = Some(weir::integration::http::SecretSource::File(token.clone()));
            }
        }
        let integrations = Integrations::from_config(&config.integrations, &telemetry).expect("integrations");
        let integrations = integrations
            .with("held".parse().expect("a name"), Held(self.valve.clone()))
            .with("stubborn".parse().expect("a name"), Stubborn(self.valve.clone()))
            .merge((self.own)(index))
            .expect("names of their own");
        let credentials = Credentials::fixed(ACCESS_KEY, self.s3_secret);
        let store = S3::connect_with(&config.payloads.s3, config.payloads.uploads, Some(credentials))
            .await
            .expect("valid settings");
        let parts = Parts {
            integrations,
            registry: registry::open(&config.registry, &config.worker.pool, &telemetry).expect("a registry"),
            store: Some(Arc::new(store)),
            payloads: config.payloads,
            overload: config.overload,
            settings: config.settings,
            log_level: Level::fixed(),
        };
        let worker = Worker::start(config.worker, parts, telemetry.clone()).await.expect("a worker");
        self.workers.push(Some(worker));
        self.telemetries.push(telemetry);
        index
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

    /// Submits through the router in the background; aborting the handle is a caller that goes away.
    pub fn submit(&self, submission: Submission) -> JoinHandle<Option<Answer>> {
        let client = self.client.clone();
        self.callers.spawn("caller", async move { client.submit(&submission).await })
    }

    /// The same, past the router.
    pub fn submit_to_worker(&self, index: usize, submission: Submission) -> JoinHandle<Option<Answer>> {
        let client = Client::new(&self.worker_url(index)).expect("an address");
        self.callers.spawn("caller", async move { client.submit(&submission).await })
    }

    /// Stops one worker in order and proves that it left nothing behind.
    pub async fn stop_worker(&mut self, index: usize) -> Ledger {
        stop(self.workers[index].take().expect("it runs")).await
    }

    /// Drains the router, and starts one in its place, at the same address.
    pub async fn restart_router(&mut self) {
        let router = self.router.take().expect("it runs");
        let mut config = self.config.router.clone();
        (config.listen, config.admin.listen) = (router.address(), router.admin_address());
        assert_eq!(router.drain().await, 0, "the router left something behind");
        self.router_telemetry = Telemetry::new().expect("a recorder");
        let parts = router_parts(&self.config, self.directory.path(), &self.router_telemetry);
        let router = Router::start(config, parts, self.router_telemetry.clone()).await;
        self.router = Some(router.expect("a router"));
    }

    pub fn router_address(&self) -> SocketAddr {
        self.router.as_ref().expect("it runs").address()
    }

    pub fn router_url(&self) -> String {
        format!("http://{}", self.router_address())
    }

    pub fn router_admin(&self) -> SocketAddr {
        self.router.as_ref().expect("it runs").admin_address()
    }

    pub fn worker_url(&self, index: usize) -> String {
        format!("http://{}", self.worker(index).address())
    }

    /// Both roles' gRPC addresses, for what must hold at each.
    pub fn urls(&self) -> [String; 2] {
        [self.router_url(), self.worker_url(0)]
    }

    pub fn worker_metric(&self, index: usize, series: &str) -> f64 {
        metric(&self.telemetries[index].render(), series)
    }

    pub fn router_metric(&self, series: &str) -> f64 {
        metric(&self.router_telemetry.render(), series)
    }

    /// Waits until the router knows this many workers, and nobody else.
    pub async fn until_known(&self, workers: usize) {
        let known = || self.router_metric("weir_router_workers{state=\"known\"}") == workers as f64;
        eventually("the router knows all workers", known).await;
    }

    /// Waits until this many tasks of a class wait in the router.
    pub async fn until_waiting(&self, priority: &str, tasks: usize) {
        let series = format!("weir_router_queue_tasks{{priority=\"{priority}\"}}");
        eventually("the tasks wait in the router", || self.router_metric(&series) == tasks as f64).await;
    }

    /// Waits until this many tasks hold a place in a worker.
    pub async fn until_in_flight(&self, index: usize, tasks: u32) {
        let load = || self.load(index).in_flight;
        eventually("the tasks hold their places", || load() == tasks).await;
    }

    /// Waits until this many payloads of a worker have come to their end.
    pub async fn until_payloads_ended(&self, index: usize, payloads: u64) {
        let ended = || (self.ledger(index).offered, self.ledger(index).pending) == (payloads, 0);
        eventually("all payloads are stored or lost", ended).await;
    }

    /// Where a worker's settings are watched.
    pub fn settings_file(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("settings-{index}.json"))
    }

    pub fn set(&self, index: usize, flags: &[(&str, serde_json::Value)]) {
        file::write_file(&self.settings_file(index), &flagd::document(flags)).expect("written");
    }

    /// Where the router's settings are watched.
    pub fn router_settings_file(&self) -> PathBuf {
        router_settings_file(self.directory.path())
    }

    /// Changes the router's settings, and waits until it has them.
    pub async fn set_router(&self, flags: &[(&str, serde_json::Value)]) {
        let applied = || self.router_metric("weir_settings_applied_total");
        let before = applied();
        file::write_file(&self.router_settings_file(), &flagd::document(flags)).expect("written");
        eventually("the router applies its settings", || applied() > before).await;
    }

    /// Below it lie the stored payloads, by their keys.
    pub fn bucket(&self) -> PathBuf {
        self.directory.path().join("s3/weir")
    }

    /// The keys of all stored payloads.
    pub fn stored_keys(&self) -> Vec<String> {
        let bucket = self.bucket();
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

    /// The text of a stored payload, read through the store.
    pub async fn payload(&self, key: &str) -> String {
        let credentials = Credentials::fixed(ACCESS_KEY, SECRET_KEY);
        let store = S3::connect_with(&self.config.payloads.s3, 1, Some(credentials)).await.expect("valid settings");
        let stored = store.get(key, 1 << 24).await.expect("it is there");
        weir::payload::decode(&stored.body, Default::default()).expect("it decodes")
    }

    /// Drains everything in order and proves that nothing is left; returns the ledgers of the workers that still ran.
    pub async fn close(mut self) -> Vec<Ledger> {
        self.callers.wait(LONG).await.expect("each caller has an answer");
        let router = self.router.take().expect("it runs");
        assert_eq!(router.drain().await, 0, "the router left something behind");
        let ledgers = join_all(self.workers.iter_mut().filter_map(Option::take).map(stop)).await;
        self.upstream.stop(LONG).await.expect("the sandbox ends");
        assert_eq!(self.sandbox.stats().all.in_flight, 0, "a request outlived its task");
        self.s3.stop().await;
        ledgers
    }
}

fn router_settings_file(directory: &Path) -> PathBuf {
    directory.join("settings-router.json")
}

fn router_parts(config: &Config, directory: &Path, telemetry: &Telemetry) -> router::Parts {
    let mut settings = config.settings.clone();
    settings.file = Some(router_settings_file(directory));
    let registries = Registries::open(&config.registry, telemetry).expect("a registry");
    router::Parts { registries, settings, log_level: Level::fixed() }
}

async fn stop(worker: Worker) -> Ledger {
    let ended = worker.drain().await;
    assert_eq!((ended.in_flight, ended.left_behind), (0, 0), "a worker left something behind");
    let ledger = ended.payloads.expect("payloads are kept");
    assert!(ledger.balanced() && ledger.pending == 0, "payloads are unaccounted for: {ledger}");
    ledger
}

impl Drop for House {
    fn drop(&mut self) {
        // The runtime of a failed test waits for its blocking threads.
        self.valve.open();
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
        let (mut redis, s3) = (RedisServer::start(), S3Server::start(&root).await);
        if !self.redis_at_start {
            redis.kill();
        }
        let (callers, upstream) = (Lifecycle::new(), Lifecycle::new());
        let mut config = config::from_text(CONFIGURATION).expect("the house's configuration is valid");
        config.sandbox.latency = weir::sandbox::Latency::Fixed(self.sandbox_latency);
        let sandbox = Sandbox::start(config.sandbox.clone(), &upstream).await.expect("a sandbox");
        let own = || registry::Config { url: Some(redis.url().into()), ..config.registry.clone() };
        config.registry = self.registry.unwrap_or_else(own);
        config.payloads.s3.endpoint = Some(s3.endpoint());
        config.settings.max_parallelism = self.max_parallelism;
        config.router.queue.tasks = self.queue_tasks;
        config.router.outlier = self.outlier;
        config.settings.source = self.settings;
        config.settings.launchdarkly = self.launchdarkly;
        config.settings.redis.clone_from(&config.registry);
        config.overload = self.overload;
        config.worker.drain_within = self.drain_within;
        for integration in config.integrations.values_mut() {
            if let weir::integration::Config::Http(http) = integration {
                http.base_url = format!("http://{}", sandbox.local_addr);
            }
        }

        let router_telemetry = Telemetry::new().expect("a recorder");
        process::register(&router_telemetry);
        config.router.state_dir = Some(directory.path().join("router"));
        let parts = router_parts(&config, directory.path(), &router_telemetry);
        let router = Router::start(config.router.clone(), parts, router_telemetry.clone()).await.expect("a router");
        let client = Client::new(&format!("http://{}", router.address())).expect("an address");
        let mut house = House {
            redis,
            s3,
            sandbox,
            client,
            valve: Valve::default(),
            router: Some(router),
            workers: Vec::new(),
            callers,
            upstream,
            directory,
            config,
            s3_secret: self.s3_secret,
            own: self.own,
            telemetries: Vec::new(),
            router_telemetry,
        };
        for _ in 0..self.workers {
            house.add_worker().await;
        }
        if self.redis_at_start {
            house.until_known(self.workers).await;
        }
        house
    }
}

/// What a caller in the background was told.
pub async fn answer(caller: JoinHandle<Option<Answer>>) -> Answer {
    let told = tokio::time::timeout(LONG, caller).await.expect("an answer in time");
    told.expect("it was not aborted").expect("it did not panic")
}

/// Submits all at once and returns what came of each, in order.
pub async fn submit_all(client: &Client, submissions: Vec<Submission>) -> Vec<Answer> {
    join_all(submissions.iter().map(|submission| client.submit(submission))).await
}

/// A task for the synthetic integration.
pub fn synthetic(id: &str, input: serde_json::Value) -> Submission {
    submission(id, "synthetic", input)
}

/// A task that runs until the house's valve lets it go.
pub fn held(id: &str) -> Submission {
    submission(id, "held", serde_json::Value::Null)
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
