//! A worker with payloads and one without, a bank and a store: each a process on its cores.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cores::{Cores, processor_time, resident_bytes};
use super::processes::{LONG, Process, get, metric, wait_for, weir};
use super::s3::{ACCESS_KEY, SECRET_KEY};

/// The configuration of the workers: as it is shipped, but for what the bench is about.
const CONFIGURATION: &str = r#"
[settings]
max_parallelism = 2000

[registry]
url = "redis://127.0.0.1:1"   # nobody: callers come straight to the worker

[payloads]
store = "s3"
[payloads.s3]
bucket = "weir"
path_style = true
endpoint = "$store"

[integrations.bank]
kind = "http"
base_url = "$bank"
token = { env = "BANK_TOKEN" }
max_connections_per_host = 2000
steps = [{ name = "transactions", path = "/accounts/acc-{{ input }}/transactions" }]
result = "{{ steps.transactions.account }}"
"#;

/// How long the payloads of one run may be on their way before the next is measured.
const SETTLE_WITHIN: Duration = Duration::from_secs(20);

/// How the bank answers.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub latency: Duration,
    pub bytes: usize,
}

/// The processes of all runs with a worker on as many cores.
pub struct House {
    off: Worker,
    on: Worker,
    pub callers: Cores,
    bank: SocketAddr,
    store: PathBuf,
    others: Vec<Process>,
}

/// A worker's process.
pub struct Worker {
    pub listen: SocketAddr,
    admin: SocketAddr,
    process: Process,
}

/// What a worker and its bank have counted so far.
pub struct Counted {
    pub processor_time: Duration,
    pub resident_bytes: u64,
    pub offered: f64,
    pub stored: f64,
    /// By reason.
    pub dropped: BTreeMap<String, f64>,
    pub bank_late: Duration,
    pub bank_requests: f64,
}

impl House {
    pub fn open(directory: &Path, cores: usize, answer: Answer) -> Self {
        let available = Cores::available();
        let workers = available.first(cores);
        let callers = available.beside(&workers);
        callers.bind();
        let (latency, bytes) = (format!("{}ms", answer.latency.as_millis()), answer.bytes.to_string());
        let flags =
            ["sandbox", "--listen", "127.0.0.1:0", "--latency", latency.as_str(), "--response-bytes", bytes.as_str()];
        let log = ("WEIR_LOG__FORMAT", "json");
        let mut bank = Process::start("bank", directory, &weir(), &flags, &[log]);
        let line = bank.wait_for_log("the sandbox bank answers");
        let bank_listens = line["listen"].as_str().and_then(|address| address.parse().ok()).expect("an address");

        let root = directory.join("s3");
        std::fs::create_dir_all(root.join("weir")).expect("a bucket");
        let this = std::env::current_exe().expect("this program");
        let store = Process::start("store", directory, &this, &["--serve-s3", "s3"], &[]);
        let endpoint = wait_for("the store's address", LONG, || store.out().lines().next().map(str::to_owned));

        workers.bind();
        let text = CONFIGURATION.replace("$bank", &format!("http://{bank_listens}")).replace("$store", &endpoint);
        std::fs::write(directory.join("weir.toml"), text).expect("written");
        let (off, on) = (Worker::start("off", directory, "0"), Worker::start("on", directory, "1"));
        available.bind();
        House { off, on, callers, bank: bank_listens, store: root, others: vec![bank, store] }
    }

    /// The one with payloads or the one without.
    pub fn worker(&self, payloads: bool) -> &Worker {
        if payloads { &self.on } else { &self.off }
    }

    /// Blocks for as long as worker and bank take to answer.
    pub fn count(&self, payloads: bool) -> Counted {
        let worker = self.worker(payloads);
        let metrics = get(worker.admin, "/metrics");
        let stats: weir::sandbox::Stats = serde_json::from_str(&get(self.bank, "/stats")).expect("its numbers");
        let of = |name| metric(&metrics, name, "");
        let dropped = metrics.lines().filter_map(|line| {
            let (reason, count) = line.strip_prefix("weir_payloads_dropped_total{reason=\"")?.split_once("\"} ")?;
            Some((reason.to_owned(), count.parse().ok()?))
        });
        Counted {
            processor_time: processor_time(worker.process.id()),
            resident_bytes: resident_bytes(worker.process.id()),
            offered: of("weir_payloads_offered_total"),
            stored: of("weir_payloads_stored_total"),
            dropped: dropped.collect(),
            bank_late: Duration::from_micros(stats.late_us),
            bank_requests: stats.all.total as f64,
        }
    }

    /// Waits until the payloads of the last run are stored, and throws them away.
    pub fn settle(&self) {
        let pending = || metric(&get(self.on.admin, "/metrics"), "weir_payloads_pending", "");
        wait_for("all payloads are stored or dropped", SETTLE_WITHIN, || (pending() == 0.0).then_some(()));
        // The bucket's content, and what the server keeps beside it.
        let entries =
            |path: &Path| std::fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path());
        for shard in entries(&self.store.join("weir")) {
            std::fs::remove_dir_all(shard).expect("removed");
        }
        for file in entries(&self.store).filter(|path| path.is_file()) {
            std::fs::remove_file(file).expect("removed");
        }
    }

    /// Ends all processes in order.
    pub fn close(mut self) {
        self.off.process.stop();
        self.on.process.stop();
        self.others.iter_mut().for_each(Process::stop);
    }
}

impl Worker {
    fn start(name: &str, directory: &Path, sampling: &str) -> Self {
        // Keys that this program's caller sets in the usual way.
        let given: Vec<_> =
            std::env::vars().filter(|(name, _)| name.starts_with("WEIR_") && name.contains("__")).collect();
        let own = [
            ("WEIR_LOG__FORMAT", "json"),
            ("WEIR_SETTINGS__PAYLOAD_SAMPLING", sampling),
            ("BANK_TOKEN", "sandbox.bench"),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ];
        let variables: Vec<_> = given.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(own).collect();
        let flags = ["worker", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let mut process = Process::start(name, directory, &weir(), &flags, &variables);
        let line = process.wait_for_log("the worker serves");
        let address = |field: &str| line[field].as_str().and_then(|address| address.parse().ok()).expect("an address");
        Worker { listen: address("listen"), admin: address("admin"), process }
    }
}
