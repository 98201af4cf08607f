//! A fleet of separate processes: redis-server, a store, the sandbox bank, one router, workers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use weir::payload::key::SUFFIX;
use weir::sandbox::Stats;

use super::processes::{LONG, Process, example, get, metric, wait_for, weir};
use super::redis::RedisServer;
use super::s3::{ACCESS_KEY, SECRET_KEY};

/// What a test may want different.
pub struct Plan {
    pub workers: usize,
    pub max_parallelism: u32,
    pub latency: &'static str,
    /// The 99th percentile of it, where the bank is not always as fast.
    pub latency_p99: Option<&'static str>,
    /// An S3 server as one more process; otherwise a directory.
    pub s3: bool,
    /// Whether workers shed load while an integration blocks one of their threads.
    pub sheds: bool,
    /// Redis comes only later, with [`RedisServer::start_again`].
    pub redis_away: bool,
    /// More of the configuration, in which `$bank` is the sandbox.
    pub configuration: String,
    /// Files of the fleet's directory, where all processes run.
    pub files: Vec<(String, String)>,
    /// The sandbox's script: one of the files.
    pub script: Option<&'static str>,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            workers: 1,
            max_parallelism: 50,
            latency: "100ms",
            latency_p99: None,
            s3: false,
            sheds: false,
            redis_away: false,
            configuration: String::new(),
            files: Vec::new(),
            script: None,
        }
    }
}

/// A process that serves.
pub struct Server {
    pub process: Process,
    pub listen: SocketAddr,
    /// Where its metrics are; for the sandbox, which has none, where it listens.
    pub admin: SocketAddr,
}

pub struct Fleet {
    pub redis: RedisServer,
    pub router: Server,
    pub workers: Vec<Server>,
    pub sandbox: Server,
    s3: Option<Process>,
    payloads: PathBuf,
    directory: TempDir,
    max_parallelism: u32,
    sheds: bool,
}

impl Plan {
    pub fn start(self) -> Fleet {
        let directory = tempfile::tempdir().expect("a directory");
        let mut redis = RedisServer::start();
        if self.redis_away {
            redis.kill();
        }
        for (name, text) in &self.files {
            std::fs::write(directory.path().join(name), text).expect("written");
        }
        let mut flags = vec!["sandbox", "--listen", "127.0.0.1:0", "--latency", self.latency];
        flags.extend(self.script.iter().flat_map(|script| ["--script", script]));
        flags.extend(self.latency_p99.iter().flat_map(|p99| ["--latency-p99", p99]));
        let sandbox = serve("sandbox", directory.path(), &flags, &[], "the sandbox bank answers");
        let bank = format!("http://{}", sandbox.listen);
        let (s3, payloads, store) = match self.s3 {
            true => s3(directory.path()),
            false => (None, directory.path().join("payloads"), "store = \"directory\"".to_owned()),
        };
        let configuration = (self.configuration + CONFIGURATION).replace("$bank", &bank).replace("$store", &store);
        std::fs::write(directory.path().join("weir.toml"), configuration).expect("written");

        let router = router(directory.path(), &redis.url(), "127.0.0.1:0");
        let mut fleet = Fleet {
            redis,
            router,
            workers: Vec::new(),
            sandbox,
            s3,
            payloads,
            directory,
            max_parallelism: self.max_parallelism,
            sheds: self.sheds,
        };
        fleet.workers = (0..self.workers).map(|index| fleet.start_worker(index)).collect();
        if !self.redis_away {
            let known = || known_workers(&fleet.router) == Some(self.workers);
            wait_for("the router knows all workers", LONG, || known().then_some(()));
        }
        fleet
    }
}

fn router(directory: &Path, redis: &str, listen: &str) -> Server {
    let flags = ["router", "--listen", listen, "--admin", "127.0.0.1:0"];
    serve("router", directory, &flags, &[("WEIR_REGISTRY__URL", redis)], "the router serves")
}

fn s3(directory: &Path) -> (Option<Process>, PathBuf, String) {
    let root = directory.join("s3");
    let path = root.to_string_lossy().into_owned();
    let program = example("s3_server", "WEIR_TEST_S3_SERVER");
    let server = Process::start("s3", directory, &program, &["--listen", "127.0.0.1:0", "--directory", &path], &[]);
    let endpoint = wait_for("the S3 server's address", LONG, || server.out().lines().next().map(str::to_owned));
    let store =
        format!("store = \"s3\"\n[payloads.s3]\nbucket = \"weir\"\npath_style = true\nendpoint = \"{endpoint}\"");
    (Some(server), root.join("weir"), store)
}

fn serve(name: &str, directory: &Path, flags: &[&str], variables: &[(&str, &str)], message: &str) -> Server {
    let variables = [variables, &[("WEIR_LOG__FORMAT", "json")]].concat();
    let mut process = Process::start(name, directory, &weir(), flags, &variables);
    let line = process.wait_for_log(message);
    let address = |field: &str| line[field].as_str().and_then(|address| address.parse().ok());
    let listen = address("listen").expect("an address");
    Server { process, listen, admin: address("admin").unwrap_or(listen) }
}

fn known_workers(router: &Server) -> Option<usize> {
    let metrics = super::processes::try_get(router.admin, "/metrics")?;
    Some(metric(&metrics, "weir_router_workers", r#"state="known""#) as usize)
}

/// What came of one run of `weir submit`.
pub struct Answers {
    pub ok: BTreeSet<String>,
    /// Tasks without an ok outcome, by reason or failure code.
    pub others: BTreeMap<String, usize>,
    pub by_worker: BTreeMap<String, usize>,
    pub code: Option<i32>,
    /// The last line of stderr.
    pub summary: String,
}

impl Fleet {
    /// Starts `weir submit` on a file of tasks: `count` of them, with ids `t-0`, `t-1`, ….
    pub fn submit(&self, count: usize, concurrency: usize, task: impl Fn(usize) -> Value) -> Process {
        let file = self.directory.path().join("tasks.jsonl");
        let line = |number: usize| {
            let mut task = task(number);
            task["id"] = format!("t-{number}").into();
            format!("{task}\n")
        };
        std::fs::write(&file, (0..count).map(line).collect::<String>()).expect("written");
        let (to, concurrency) = (format!("http://{}", self.router.listen), concurrency.to_string());
        let flags = ["submit", "tasks.jsonl", "--to", &to, "--concurrency", &concurrency];
        Process::start("submit", self.directory.path(), &weir(), &flags, &[])
    }

    /// One more worker, of an id that may be another one's; its log is named apart.
    pub fn one_more(&self, log: &str, id: &str) -> Server {
        let url = self.redis.url();
        let flags = ["worker", "--id", id, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let variables = [("WEIR_REGISTRY__URL", url.as_str()), ("BANK_TOKEN", "sandbox.one-more")];
        serve(log, self.directory.path(), &flags, &variables, "the worker serves")
    }

    fn start_worker(&self, index: usize) -> Server {
        let (name, url) = (format!("w{}", index + 1), self.redis.url());
        let (token, parallelism) = (format!("sandbox.{name}"), self.max_parallelism.to_string());
        let mut flags = vec!["worker", "--id", &name, "--max-parallelism", &parallelism];
        flags.extend(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        let variables = [
            ("WEIR_REGISTRY__URL", url.as_str()),
            ("BANK_TOKEN", &token),
            ("WEIR_OVERLOAD__BLOCKED_THREAD__ENABLED", if self.sheds { "true" } else { "false" }),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ];
        serve(&name, self.directory.path(), &flags, &variables, "the worker serves")
    }

    /// Ends a worker with SIGKILL and starts another one with its id.
    pub fn replace_worker(&mut self, index: usize) {
        self.workers[index].process.signal(Signal::KILL);
        self.workers[index].process.exit_code(LONG);
        self.workers[index] = self.start_worker(index);
    }

    /// Ends the router with SIGKILL and starts another one at its address.
    pub fn replace_router(&mut self) {
        self.router.process.signal(Signal::KILL);
        self.router.process.exit_code(LONG);
        self.router = router(self.directory.path(), &self.redis.url(), &self.router.listen.to_string());
    }

    pub fn known_workers(&self) -> usize {
        known_workers(&self.router).expect("the router's metrics")
    }

    pub fn bank(&self) -> Stats {
        serde_json::from_str(&get(self.sandbox.listen, "/stats")).expect("the bank's numbers")
    }

    /// Every stored payload: its task's id from its name, and its text.
    pub fn stored(&self) -> impl Iterator<Item = (String, String)> {
        let mut folders = vec![self.payloads.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.to_string_lossy().ends_with(SUFFIX) {
                    files.push(path);
                }
            }
        }
        files.into_iter().map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            let id = name.split('.').next().expect("the task's id").to_owned();
            let stored = std::fs::read(&path).expect("readable");
            let json = weir::payload::decode(&stored, Default::default());
            (id, json.unwrap_or_else(|error| panic!("{name} decodes: {error}")))
        })
    }

    /// Stops everything with SIGTERM, callers' side first; each must end in order and leave nothing in Redis.
    pub fn stop(mut self) {
        self.router.process.stop();
        for worker in &mut self.workers {
            worker.process.stop();
        }
        self.sandbox.process.stop();
        if let Some(s3) = &mut self.s3 {
            s3.stop();
        }
        assert_eq!(self.redis.ask("ZCARD weir:{default}:members"), ":0\r\n");
        assert_eq!(self.redis.ask("ZCARD weir:{default}:open"), ":0\r\n");
    }
}

impl Answers {
    /// Waits for the end of a `weir submit`.
    pub fn of(mut submit: Process, within: Duration) -> Self {
        let code = submit.exit_code(within);
        let summary = submit.log().lines().last().unwrap_or_default().to_owned();
        let (mut ok, mut others, mut by_worker) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        for line in submit.out().lines() {
            let line: Value = serde_json::from_str(line).expect("a JSON line");
            let text = |value: &Value| value.as_str().map(str::to_owned);
            if let Some(worker) = text(&line["worker"]) {
                *by_worker.entry(worker).or_default() += 1;
            }
            let id = text(&line["task_id"]).expect("a task's id");
            if line["ok"] == true {
                assert!(ok.insert(id), "two answers for one task: {line}");
            } else {
                let why = text(&line["error"]["reason"]).or(text(&line["failure"]["code"])).expect("a reason");
                *others.entry(why).or_default() += 1;
            }
        }
        Answers { ok, others, by_worker, code, summary }
    }
}

const CONFIGURATION: &str = r#"
[integrations.bank]
kind = "http"
base_url = "$bank"
token = { env = "BANK_TOKEN" }
max_connections_per_host = 256
steps = [
    { name = "accounts", path = "/accounts", query = { customer = "{{ input.customer }}" } },
    { name = "transactions", path = "/accounts/{{ steps.accounts.accounts[0].id }}/transactions" },
]
result = { accounts = "{{ steps.accounts.accounts | length }}", transactions = "{{ steps.transactions.transactions | length }}" }

[integrations.synthetic]
kind = "synthetic"

[payloads]
$store
"#;
