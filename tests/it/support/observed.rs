//! What a Prometheus scrapes: for each pool a worker and a router, and a sandbox bank, with Redis and an S3 server behind
//! them, all as processes with every part in use. Their addresses are known before they start, and stay when they are
//! started again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::processes::{LONG, Process, example, wait_for, weir};
use super::redis::RedisServer;
use super::s3::{ACCESS_KEY, SECRET_KEY};
use super::site::free_address;
use crate::documents::path;

pub struct Observed {
    pub redis: RedisServer,
    pub pools: Vec<Pool>,
    pub sandbox: SocketAddr,
    pub directory: TempDir,
    sandbox_process: Process,
    s3_address: String,
    s3: Option<Process>,
}

/// A worker and its router.
pub struct Pool {
    pub name: &'static str,
    pub worker: SocketAddr,
    pub worker_admin: SocketAddr,
    pub router: SocketAddr,
    pub router_admin: SocketAddr,
    settings: PathBuf,
    worker_process: Process,
    router_process: Process,
    lives: usize,
}

impl Observed {
    pub fn start(pools: &[&'static str]) -> Self {
        let (redis, directory) = (RedisServer::start(), tempfile::tempdir().expect("a directory"));
        let root = directory.path().to_owned();
        let (s3_address, sandbox_address) = (free_address(), free_address());
        let pull = path("examples/exec/pull.py").to_string_lossy().into_owned();
        let values = [("$pull", &pull), ("$bank", &sandbox_address), ("$s3", &s3_address), ("$redis", &redis.url())];
        let configuration =
            values.iter().fold(CONFIGURATION.to_owned(), |text, (name, value)| text.replace(name, value));
        std::fs::write(root.join("weir.toml"), configuration).expect("written");
        let flags = ["sandbox", "--listen", &sandbox_address, "--latency", "200ms", "--latency-p99", "400ms"];
        let mut sandbox_process = Process::start("sandbox", &root, &weir(), &flags, &JSON_LOG);
        sandbox_process.wait_for_log("the sandbox bank answers");
        let s3 = Some(start_s3(&root, &s3_address));
        let pools = pools.iter().map(|name| Pool::start(name, &root)).collect();
        let sandbox = sandbox_address.parse().expect("an address");
        Observed { redis, pools, sandbox, directory, sandbox_process, s3_address, s3 }
    }

    /// The store is down from now on.
    pub fn kill_s3(&mut self) {
        let mut s3 = self.s3.take().expect("it runs");
        s3.signal(Signal::KILL);
        s3.exit_code(LONG);
    }

    pub fn start_s3(&mut self) {
        self.s3 = Some(start_s3(self.directory.path(), &self.s3_address));
    }

    /// Stops everything in order.
    pub fn stop(mut self) {
        for pool in &mut self.pools {
            pool.router_process.stop();
            pool.worker_process.stop();
        }
        self.sandbox_process.stop();
        self.s3.take().expect("it runs").stop();
    }
}

fn start_s3(root: &Path, address: &str) -> Process {
    let directory = root.join("s3").to_string_lossy().into_owned();
    let flags = ["--listen", address, "--directory", &directory, "--bucket", "weir"];
    let server = Process::start("s3", root, &example("s3_server", "WEIR_TEST_S3_SERVER"), &flags, &[]);
    wait_for("the S3 server listens", LONG, || (server.lines_out() > 0).then_some(()));
    server
}

impl Pool {
    fn start(name: &'static str, root: &Path) -> Self {
        let address = || free_address().parse::<SocketAddr>().expect("an address");
        let (worker, worker_admin, router, router_admin) = (address(), address(), address(), address());
        let settings = root.join(format!("{name}.json"));
        write_settings(&settings, &json!(1));
        let worker_process = start_worker(name, root, worker, worker_admin, &settings, 0);
        let flags = ["router", "--pool", name, "--listen", &router.to_string(), "--admin", &router_admin.to_string()];
        let mut router_process = Process::start(&format!("router-{name}"), root, &weir(), &flags, &JSON_LOG);
        router_process.wait_for_log("the router serves");
        Pool { name, worker, worker_admin, router, router_admin, settings, worker_process, router_process, lives: 1 }
    }

    /// Sets N of its worker.
    pub fn set_parallelism(&self, parallelism: &Value) {
        write_settings(&self.settings, parallelism);
    }

    /// Ends its worker with SIGKILL and starts another one at the same addresses.
    pub fn replace_worker(&mut self) {
        let root = self.settings.parent().expect("it is in the directory").to_owned();
        self.worker_process.signal(Signal::KILL);
        self.worker_process.exit_code(LONG);
        self.worker_process =
            start_worker(self.name, &root, self.worker, self.worker_admin, &self.settings, self.lives);
        self.lives += 1;
    }
}

fn start_worker(
    name: &str,
    root: &Path,
    listen: SocketAddr,
    admin: SocketAddr,
    settings: &Path,
    life: usize,
) -> Process {
    let token = format!("sandbox.{name}");
    let (log, settings) = (format!("worker-{name}-{life}"), settings.to_string_lossy());
    let id = format!("w-{name}");
    let (listen, admin) = (listen.to_string(), admin.to_string());
    let flags = ["worker", "--id", &id, "--pool", name, "--listen", &listen, "--admin", &admin];
    let spool = root.join(format!("spool-{name}")).to_string_lossy().into_owned();
    let variables = [
        JSON_LOG[0],
        ("BANK_TOKEN", &token),
        ("WEIR_SETTINGS__FILE", &settings),
        ("WEIR_PAYLOADS__SPOOL__PATH", &spool),
        ("WEIR_OVERLOAD__BLOCKED_THREAD__ENABLED", "true"),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
    ];
    let mut worker = Process::start(&log, root, &weir(), &flags, &variables);
    worker.wait_for_log("the worker serves");
    worker
}

fn write_settings(file: &Path, parallelism: &Value) {
    let flag = |value: &Value| json!({"state": "ENABLED", "variants": {"now": value}, "defaultVariant": "now"});
    let document = json!({"flags": {"max_parallelism": flag(parallelism), "payload_sampling": flag(&json!(1.0))}});
    let next = file.with_extension("next");
    std::fs::write(&next, document.to_string()).expect("written");
    std::fs::rename(next, file).expect("in its place");
}

const JSON_LOG: [(&str, &str); 1] = [("WEIR_LOG__FORMAT", "json")];

/// Each kind of integration, one with OAuth2, and one whose program never starts.
const CONFIGURATION: &str = r#"
[registry]
url = "$redis"

[worker]
drain_within = "5s"

[worker.upstream]
breaker.open_for = "3s"
integrations = { bank = { adaptive = { mode = "shadow" } }, open_bank = { adaptive = { mode = "on" } } }

[router.queue]
tasks = 60

[settings]
max_jump = 1000.0

[integrations.bank]
kind = "http"
base_url = "http://$bank"
token = { env = "BANK_TOKEN" }
max_connections_per_host = 64
steps = [
    { name = "accounts", path = "/accounts", query = { customer = "{{ input.customer }}" } },
    { name = "transactions", path = "/accounts/{{ steps.accounts.accounts[0].id }}/transactions" },
]
result = { accounts = "{{ steps.accounts.accounts | length }}" }

[integrations.open_bank]
kind = "http"
base_url = "http://$bank"
auth = { kind = "oauth2", token_url = "http://$bank/oauth/token", client_id = "open", client_secret = { env = "BANK_TOKEN" } }
steps = [{ name = "accounts", path = "/accounts", query = { customer = "{{ input.customer }}" } }]

[integrations.program]
kind = "exec"
command = ["python3", "$pull"]
variables = { BANK_URL = "http://$bank", BANK_TOKEN = "sandbox.program" }
processes = 1

[integrations.broken_program]
kind = "exec"
command = ["sh", "-c", "exit 1"]
processes = 1

[integrations.synthetic]
kind = "synthetic"

[payloads]
store = "s3"
uploads = 8
spool.max_bytes = 500000

[payloads.s3]
bucket = "weir"
endpoint = "http://$s3"
path_style = true
attempt_timeout = "1s"
operation_timeout = "2s"
"#;
