//! The spool under real processes: a store that goes away and comes back, stops and sudden deaths in the middle of it,
//! and a disk that is full.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;
use weir::payload::key::SUFFIX;

use crate::support::processes::{LONG, Process, example, get, metric, wait_for, weir};
use crate::support::s3::{ACCESS_KEY, SECRET_KEY};

const CONFIGURATION: &str = r#"
[integrations.synthetic]
kind = "synthetic"

[payloads]
store = "s3"
uploads = 8
flush_within = "5s"

[payloads.spool]
path = "$spool"

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

/// One worker without a router, and a place for an S3 server that may be there or not.
struct Site {
    directory: TempDir,
    spool: PathBuf,
    address: String,
    lives: usize,
}

struct Worker {
    process: Process,
    listen: String,
    admin: std::net::SocketAddr,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = directory.path().join("spool");
        Self::with_spool(directory, spool)
    }

    fn with_spool(directory: TempDir, spool: PathBuf) -> Self {
        let address = free_address();
        let configuration = CONFIGURATION.replace("$endpoint", &format!("http://{address}"));
        let configuration = configuration.replace("$spool", &spool.to_string_lossy());
        std::fs::write(directory.path().join("weir.toml"), configuration).expect("written");
        Site { directory, spool, address, lives: 0 }
    }

    fn s3(&self) -> Process {
        let program = example("s3_server", "WEIR_TEST_S3_SERVER");
        let root = self.directory.path().join("s3").to_string_lossy().into_owned();
        let flags = ["--listen", &self.address, "--directory", &root];
        let server = Process::start("s3", self.directory.path(), &program, &flags, &[]);
        wait_for("the S3 server listens", LONG, || (server.lines_out() > 0).then_some(()));
        server
    }

    fn worker(&mut self) -> Worker {
        self.lives += 1;
        let name = format!("worker-{}", self.lives);
        let variables =
            [("WEIR_LOG__FORMAT", "json"), ("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
        let mut process = Process::start(&name, self.directory.path(), &weir(), &["worker"], &variables);
        let line = process.wait_for_log("the worker serves");
        let text = |field: &str| line[field].as_str().expect("an address").to_owned();
        Worker { process, listen: text("listen"), admin: text("admin").parse().expect("an address") }
    }

    /// Starts `weir submit` on so many tasks, each with a transcript of 20 KB.
    fn submit(&self, worker: &Worker, prefix: &str, count: usize) -> Process {
        let input = r#"{"do":"sleep","ms":5,"transcript_bytes":20000}"#;
        let line = |n| format!(r#"{{"id":"{prefix}-{n}","integration":"synthetic","input":{input}}}"#) + "\n";
        let tasks = format!("{prefix}.jsonl");
        std::fs::write(self.directory.path().join(&tasks), (0..count).map(line).collect::<String>()).expect("written");
        let to = format!("http://{}", worker.listen);
        let flags = ["submit", &tasks, "--to", &to, "--concurrency", "20"];
        Process::start(&format!("submit-{prefix}"), self.directory.path(), &weir(), &flags, &[])
    }

    /// The keys of what is stored; each must be whole, and each task must be there once.
    fn stored(&self) -> usize {
        let mut tasks = BTreeSet::new();
        for path in files(&self.directory.path().join("s3/weir")) {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            if !name.ends_with(SUFFIX) || name.starts_with('.') {
                continue;
            }
            let stored = std::fs::read(&path).expect("readable");
            let json = weir::payload::decode(&stored, Default::default());
            json.unwrap_or_else(|error| panic!("{name} decodes: {error}"));
            let task = name.split('.').next().expect("the task's id").to_owned();
            assert!(tasks.insert(task), "{name} is stored under two keys");
        }
        tasks.len()
    }

    fn spooled(&self) -> usize {
        files(&self.spool).iter().filter(|path| path.to_string_lossy().ends_with(".payload")).count()
    }
}

impl Worker {
    fn count(&self, name: &str) -> usize {
        metric(&get(self.admin, "/metrics"), name, "") as usize
    }

    /// Waits until nothing waits for the store any more, in memory or on disk.
    fn until_delivered(&self) {
        wait_for("all of it is delivered", 2 * LONG, || {
            let metrics = get(self.admin, "/metrics");
            let left = ["weir_payloads_pending", "weir_payloads_spooled"].map(|name| metric(&metrics, name, ""));
            (left == [0.0, 0.0]).then_some(())
        });
    }

    fn assert_balanced(&self) {
        let metrics = get(self.admin, "/metrics");
        let count = |name: &str| metric(&metrics, &format!("weir_payloads_{name}"), "");
        let came = count("offered_total") + count("recovered_total");
        let went = count("stored_total") + count("spooled") + count("dropped_total") + count("pending");
        assert_eq!(came, went, "{metrics}");
    }
}

/// An address that nobody listens on for now, nor will by chance: it is below the ports that the system gives out.
fn free_address() -> String {
    let ports = (0..100).map(|_| 20_000 + (uuid::Uuid::now_v7().as_u128() % 10_000) as u16);
    let mut addresses = ports.map(|port| format!("127.0.0.1:{port}"));
    addresses.find(|address| std::net::TcpListener::bind(address).is_ok()).expect("a free port")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

#[test]
fn a_stop_while_the_store_is_away_loses_nothing_and_the_next_start_delivers() {
    let mut site = Site::new();
    let mut worker = site.worker();
    assert_eq!(site.submit(&worker, "t", 50).exit_code(LONG), Some(0), "tasks do not notice");
    worker.process.stop();
    assert_eq!((site.spooled(), site.stored()), (50, 0), "{}", worker.process.log());

    let mut s3 = site.s3();
    let mut worker = site.worker();
    worker.until_delivered();
    worker.assert_balanced();
    assert_eq!(worker.count("weir_payloads_recovered_total"), 50);
    assert_eq!(worker.count("weir_payloads_stored_total"), 50);
    worker.process.stop();
    assert_eq!((site.spooled(), site.stored()), (0, 50));
    s3.stop();
}

#[test]
fn tasks_do_not_notice_that_the_store_goes_away_and_all_of_it_arrives_when_it_is_back() {
    let mut site = Site::new();
    let mut worker = site.worker();
    let mut s3 = site.s3();
    let mut before = site.submit(&worker, "before", 100);
    wait_for("some are stored", LONG, || (worker.count("weir_payloads_stored_total") > 20).then_some(()));
    s3.signal(Signal::KILL);
    s3.exit_code(LONG);
    let mut meanwhile = site.submit(&worker, "meanwhile", 300);
    for submit in [&mut before, &mut meanwhile] {
        assert_eq!(submit.exit_code(LONG), Some(0), "{}", submit.log());
    }
    wait_for("the store is held to be away", LONG, || (worker.count("weir_payload_store_away") == 1).then_some(()));
    worker.assert_balanced();
    let mut s3 = site.s3();
    worker.until_delivered();
    worker.assert_balanced();
    assert_eq!(worker.count("weir_payloads_dropped_total"), 0);
    assert_eq!(site.stored(), 400);
    worker.process.stop();
    s3.stop();
}

#[test]
fn a_worker_that_is_killed_at_any_time_loses_only_what_was_in_memory() {
    let mut site = Site::new();
    let mut s3 = None;
    // How far each life comes, in payloads spooled, or, where the store is there, stored.
    for (life, (is_there, most)) in
        [(false, 1), (false, 150), (true, 30), (false, 280), (false, 40), (true, 200), (false, 90)]
            .into_iter()
            .enumerate()
    {
        if is_there {
            s3 = Some(site.s3());
        }
        let left = site.spooled();
        let mut worker = site.worker();
        assert_eq!(worker.count("weir_payloads_recovered_total"), left, "life {life}");
        let submit = site.submit(&worker, &format!("life{life}"), 300);
        let (name, most) = match is_there {
            true => ("weir_payloads_stored_total", most),
            false => ("weir_payloads_spooled", left + most),
        };
        wait_for("it is in the middle of it", LONG, || (worker.count(name) >= most).then_some(()));
        worker.process.signal(Signal::KILL);
        worker.process.exit_code(LONG);
        // It would go on trying.
        drop(submit);
        if let Some(mut s3) = s3.take() {
            s3.stop();
        }
    }
    let left = site.spooled();
    let (mut s3, before) = (site.s3(), site.stored());
    let mut worker = site.worker();
    worker.until_delivered();
    worker.assert_balanced();
    assert_eq!(worker.count("weir_payloads_recovered_total"), left);
    assert_eq!(worker.count("weir_payloads_stored_total"), left, "none is corrupt");
    let stored = site.stored();
    assert!(stored <= before + left && stored >= left.max(before) && stored > 100, "{before} + {left}, {stored}");
    worker.process.stop();
    s3.stop();
    let rest: Vec<_> = files(&site.spool).into_iter().filter(|path| !path.ends_with("lock")).collect();
    assert!(rest.is_empty(), "{rest:?}");
}

/// A small file system of its own; none where the machine does not allow it.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).expect("a directory");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Disk(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_costs_payloads_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let spool = directory.path().join("disk");
    let Some(disk) = Disk::mount(&spool) else {
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    let mut site = Site::with_spool(directory, spool);
    let mut worker = site.worker();
    assert_eq!(site.submit(&worker, "t", 100).exit_code(LONG), Some(0), "tasks do not notice");
    wait_for("it is settled", LONG, || (worker.count("weir_payloads_pending") == 0).then_some(()));
    worker.assert_balanced();
    let lost = metric(&get(worker.admin, "/metrics"), "weir_payloads_dropped_total", "spool_disk") as usize;
    assert_eq!(worker.count("weir_payload_spool_writable"), 0);
    let mut s3 = site.s3();
    worker.until_delivered();
    assert!(lost > 0 && site.stored() == 100 - lost, "{lost} lost, {} stored", site.stored());
    worker.process.stop();
    s3.stop();
    drop(disk);
}
