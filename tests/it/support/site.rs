//! One worker without a router, a spool, and a place for an S3 server that may be there or not: each a process of its
//! own, so that it can be stopped, frozen and killed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;
use weir::payload::key::SUFFIX;

use super::processes::{LONG, Process, example, get, metric, wait_for, weir};
use super::s3::{ACCESS_KEY, SECRET_KEY};
use super::watch::{Numbers, Watch};

const CONFIGURATION: &str = r#"
[integrations.synthetic]
kind = "synthetic"

[payloads]
store = "s3"
uploads = 8
flush_within = "5s"
spool.path = "$spool"
$payloads

[payloads.s3]
bucket = "weir"
endpoint = "$endpoint"
path_style = true
attempt_timeout = "4s"
operation_timeout = "8s"

[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"

[settings]
max_parallelism = 100
"#;

pub struct Site {
    pub directory: TempDir,
    pub spool: PathBuf,
    address: String,
    lives: usize,
    /// The site's own S3 server.
    s3: Option<Process>,
}

/// Tasks for `weir submit`.
pub struct Batch {
    pub count: usize,
    pub concurrency: usize,
    pub transcript_bytes: usize,
}

pub struct Worker {
    pub process: Process,
    pub listen: String,
    pub admin: std::net::SocketAddr,
}

impl Site {
    pub fn new() -> Self {
        Self::with_payloads("")
    }

    /// With more lines for `[payloads]`.
    pub fn with_payloads(lines: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = directory.path().join("spool");
        Self::with(directory, spool, lines)
    }

    pub fn with_spool(directory: TempDir, spool: PathBuf) -> Self {
        Self::with(directory, spool, "")
    }

    fn with(directory: TempDir, spool: PathBuf, lines: &str) -> Self {
        let address = free_address();
        let configuration = CONFIGURATION.replace("$endpoint", &format!("http://{address}"));
        let configuration = configuration.replace("$spool", &spool.to_string_lossy()).replace("$payloads", lines);
        std::fs::write(directory.path().join("weir.toml"), configuration).expect("written");
        Site { directory, spool, address, lives: 0, s3: None }
    }

    pub fn s3(&self) -> Process {
        let program = example("s3_server", "WEIR_TEST_S3_SERVER");
        let root = self.directory.path().join("s3").to_string_lossy().into_owned();
        let flags = ["--listen", &self.address, "--directory", &root];
        let server = Process::start("s3", self.directory.path(), &program, &flags, &[]);
        wait_for("the S3 server listens", LONG, || (server.lines_out() > 0).then_some(()));
        server
    }

    /// Starts the site's own S3 server.
    pub fn start_s3(&mut self) {
        self.s3 = Some(self.s3());
    }

    /// Connections are refused from now on.
    pub fn kill_s3(&mut self) {
        let mut s3 = self.s3.take().expect("it runs");
        s3.signal(Signal::KILL);
        s3.exit_code(LONG);
    }

    /// Freezes it with STOP, so that connections hang, and goes on with CONT.
    pub fn signal_s3(&mut self, signal: Signal) {
        self.s3.as_ref().expect("it runs").signal(signal);
    }

    pub fn kill_s3_if_there(&mut self) {
        if self.s3.is_some() {
            self.kill_s3();
        }
    }

    pub fn stop_s3(&mut self) {
        self.s3.take().expect("it runs").stop();
    }

    pub fn worker(&mut self) -> Worker {
        self.lives += 1;
        let name = format!("worker-{}", self.lives);
        let variables =
            [("WEIR_LOG__FORMAT", "json"), ("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
        let mut process = Process::start(&name, self.directory.path(), &weir(), &["worker"], &variables);
        let line = process.wait_for_log("the worker serves");
        let text = |field: &str| line[field].as_str().expect("an address").to_owned();
        Worker { process, listen: text("listen"), admin: text("admin").parse().expect("an address") }
    }

    /// Starts `weir submit` on so many tasks, 20 at a time, each with a transcript of 20 KB.
    pub fn submit(&self, worker: &Worker, prefix: &str, count: usize) -> Process {
        self.submit_batch(worker, prefix, Batch { count, concurrency: 20, transcript_bytes: 20_000 })
    }

    pub fn submit_batch(&self, worker: &Worker, prefix: &str, batch: Batch) -> Process {
        let Batch { count, concurrency, transcript_bytes } = batch;
        let input = format!(r#"{{"do":"sleep","ms":5,"transcript_bytes":{transcript_bytes}}}"#);
        let line = |n| format!(r#"{{"id":"{prefix}-{n}","integration":"synthetic","input":{input}}}"#) + "\n";
        let tasks = format!("{prefix}.jsonl");
        std::fs::write(self.directory.path().join(&tasks), (0..count).map(line).collect::<String>()).expect("written");
        let to = format!("http://{}", worker.listen);
        let flags = ["submit", &tasks, "--to", &to, "--concurrency", &concurrency.to_string()];
        Process::start(&format!("submit-{prefix}"), self.directory.path(), &weir(), &flags, &[])
    }

    /// How many tasks' payloads are stored; as [`Site::stored_tasks`].
    pub fn stored(&self) -> usize {
        self.stored_tasks().len()
    }

    /// The tasks of what is stored; each payload must be whole, and each task and each run must be there once.
    pub fn stored_tasks(&self) -> BTreeSet<String> {
        let (mut tasks, mut runs) = (BTreeSet::new(), BTreeSet::new());
        for path in files(&self.directory.path().join("s3/weir")) {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            if !name.ends_with(SUFFIX) || name.starts_with('.') {
                continue;
            }
            let stored = std::fs::read(&path).expect("readable");
            let json = weir::payload::decode(&stored, Default::default());
            json.unwrap_or_else(|error| panic!("{name} decodes: {error}"));
            let mut parts = name.split('.').map(str::to_owned);
            let (task, run) = (parts.next().expect("the task's id"), parts.next().expect("the run's id"));
            assert!(tasks.insert(task) && runs.insert(run), "{name} is stored under two keys");
        }
        tasks
    }

    /// How many payloads lie in the spool.
    pub fn spooled(&self) -> usize {
        self.spool_files().len()
    }

    /// The tasks of what lies in the spool, while nobody writes there.
    pub fn spooled_tasks(&self) -> BTreeSet<String> {
        let task = |path: PathBuf| {
            let content = std::fs::read(&path).expect("readable");
            let head = content.split(|byte| *byte == b'\n').nth(1).expect("a head");
            let head: serde_json::Value = serde_json::from_slice(head).expect("JSON");
            let name = head["key"].as_str().and_then(|key| key.rsplit('/').next()).expect("a key").to_owned();
            name.split('.').next().expect("the task's id").to_owned()
        };
        self.spool_files().into_iter().map(task).collect()
    }

    fn spool_files(&self) -> Vec<PathBuf> {
        let is_payload = |path: &PathBuf| path.to_string_lossy().ends_with(".payload");
        files(&self.spool).into_iter().filter(is_payload).collect()
    }
}

impl Worker {
    pub fn count(&self, name: &str) -> usize {
        metric(&get(self.admin, "/metrics"), name, "") as usize
    }

    /// How many payloads were lost for a reason.
    pub fn dropped(&self, reason: &str) -> usize {
        metric(&get(self.admin, "/metrics"), "weir_payloads_dropped_total", reason) as usize
    }

    /// Waits until no payload is in memory.
    pub fn until_settled(&self) {
        wait_for("it is settled", LONG, || (self.count("weir_payloads_pending") == 0).then_some(()));
    }

    /// Waits until nothing waits for the store any more, in memory or on disk.
    pub fn until_delivered(&self) {
        wait_for("all of it is delivered", 2 * LONG, || {
            let metrics = get(self.admin, "/metrics");
            let left = ["weir_payloads_pending", "weir_payloads_spooled"].map(|name| metric(&metrics, name, ""));
            (left == [0.0, 0.0]).then_some(())
        });
    }

    pub fn assert_balanced(&self) {
        let metrics = get(self.admin, "/metrics");
        assert!(Numbers::of(&metrics).are_balanced(), "{metrics}");
    }

    pub fn watch(&self) -> Watch {
        Watch::over(self.admin)
    }

    /// Stops it in order; what it then says of its payloads.
    pub fn stop(&mut self) -> Numbers {
        self.process.stop();
        Numbers::of_log(&self.process.log())
    }
}

/// An address that nobody listens on for now, nor will by chance: it is below the ports that the system gives out.
/// An address that nobody listens on.
pub fn free_address() -> String {
    let ports = (0..100).map(|_| 20_000 + (uuid::Uuid::now_v7().as_u128() % 10_000) as u16);
    let mut addresses = ports.map(|port| format!("127.0.0.1:{port}"));
    addresses.find(|address| std::net::TcpListener::bind(address).is_ok()).expect("a free port")
}

pub fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}
