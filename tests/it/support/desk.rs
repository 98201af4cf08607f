//! A payload's way from production to an engineer's desk: stored by a worker that a bank misbehaved to, and replayed when
//! bank, worker and secrets are gone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;
use weir::client::Client;
use weir::config;
use weir::integration::Integrations;
use weir::lifecycle::Lifecycle;
use weir::payload;
use weir::sandbox::{Behaviour, Latency, Sandbox};
use weir::task::Outcome;
use weir::telemetry::Telemetry;
use weir::worker::Worker;

use super::house::{LONG, submission};
use super::lone::{self, WORKER};
use crate::cli::{run, stderr, stdout, weir};

/// A bank, and a worker that pulls from it with a configuration that lies in a file.
pub struct Production {
    pub sandbox: Sandbox,
    pub upstream: Lifecycle,
    pub worker: Worker,
    pub client: Client,
    pub directory: TempDir,
    pub integrations: String,
}

/// What is left when bank, worker and secrets are gone: the payloads, and the configuration.
pub struct Desk {
    pub directory: TempDir,
    pub payloads: BTreeMap<String, PathBuf>,
    pub integrations: String,
}

impl Production {
    pub async fn start(integrations: &str, own: Integrations) -> Self {
        let (upstream, directory) = (Lifecycle::new(), tempfile::tempdir().expect("a directory"));
        let latency = Latency::Fixed(Duration::from_millis(1));
        let bank = weir::sandbox::Config { listen: ([127, 0, 0, 1], 0).into(), latency, ..Default::default() };
        let sandbox = Sandbox::start(bank, &upstream).await.expect("a bank");
        let root = directory.path().to_str().expect("a path");
        let text = integrations.replace("BANK", &format!("http://{}", sandbox.local_addr)).replace("DIR", root);
        let config = config::from_text(&format!("{text}\n{WORKER}"));
        for name in text.lines().filter_map(|line| line.trim().strip_prefix("[integrations.")) {
            let client = name.trim_end_matches(']');
            std::fs::write(directory.path().join(format!("{client}.key")), format!("sandbox.{client}"))
                .expect("written");
        }
        std::fs::write(directory.path().join("secret"), "CANARY-secret").expect("written");
        let mut config = config.expect("a configuration");
        config.payloads.directory.path = directory.path().join("payloads");
        let telemetry = Telemetry::new().expect("a recorder");
        let (worker, client) = lone::start(config, own, telemetry).await;
        Production { sandbox, upstream, worker, client, directory, integrations: text }
    }

    pub fn misbehave(&self, client: &str, behaviour: Behaviour) {
        self.sandbox.set_client_behaviour(client, behaviour).expect("a behaviour");
    }

    pub async fn run(&self, integration: &str, id: &str, input: Value) -> Outcome {
        self.client.submit(&submission(id, integration, input)).await.expect("an outcome")
    }

    /// Stops the worker and takes the secrets away; the bank goes on.
    pub async fn close(self) -> (Desk, Sandbox, Lifecycle) {
        let ended = self.worker.drain().await;
        assert!(ended.payloads.expect("they are kept").balanced());
        let mut payloads = BTreeMap::new();
        collect(&self.directory.path().join("payloads"), &mut payloads);
        for entry in std::fs::read_dir(self.directory.path()).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                std::fs::remove_file(path).expect("removed");
            }
        }
        let desk = Desk { directory: self.directory, payloads, integrations: self.integrations };
        (desk, self.sandbox, self.upstream)
    }

    /// Stops all of it.
    pub async fn end(self) -> Desk {
        let (desk, _, upstream) = self.close().await;
        upstream.stop(LONG).await.expect("the bank ends");
        desk
    }
}

fn collect(folder: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            let name = path.file_name().expect("a name").to_str().expect("text");
            found.insert(name.split('.').next().expect("an id").to_owned(), path);
        }
    }
}

impl Desk {
    /// Runs `weir payload replay` with these integrations: its exit code, what it prints, and its errors.
    pub async fn replay_with(&self, integrations: &str, id: &str, flags: &[&str]) -> (Option<i32>, String, String) {
        self.replay_by(integrations, &[&[self.path(id)], flags].concat()).await
    }

    /// The same with these arguments, a file among them or not.
    pub async fn replay_by(&self, integrations: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let file = self.directory.path().join("replay.toml");
        std::fs::write(&file, integrations).expect("written");
        let output = run(weir().arg("-c").arg(&file).args(["payload", "replay"]).args(arguments), "").await;
        (output.status.code(), stdout(&output), stderr(&output))
    }

    /// The file of a task's payload.
    pub fn path(&self, id: &str) -> &str {
        self.payloads[id].to_str().expect("text")
    }

    pub async fn replay(&self, id: &str, flags: &[&str]) -> (Option<i32>, String, String) {
        self.replay_with(&self.integrations, id, flags).await
    }

    /// Replays a task whose outcome and requests must be the same; returns the comparison.
    pub async fn assert_same(&self, id: &str) -> Value {
        let (code, out, errors) = self.replay(id, &["--json"]).await;
        let replayed: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{id}: {out}{errors}"));
        assert_eq!((code, &replayed["same"]), (Some(0), &json!(true)), "{id}: {replayed:#}");
        assert_eq!(replayed["then"]["result"], replayed["now"]["result"], "{id}");
        for request in replayed["requests"].as_array().expect("a list") {
            assert_eq!(request["change"], "same", "{id}: {replayed:#}");
        }
        replayed
    }

    /// Changes a payload's document.
    pub fn edit(&self, id: &str, change: impl FnOnce(&mut Value)) {
        let path = &self.payloads[id];
        let text = payload::decode(&std::fs::read(path).expect("readable"), Default::default()).expect("a payload");
        let mut document: Value = serde_json::from_str(&text).expect("JSON");
        change(&mut document);
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(document.to_string().as_bytes()).expect("into memory");
        std::fs::write(path, encoder.finish().expect("into memory")).expect("written");
    }
}
