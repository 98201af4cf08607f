//! A Prometheus of a test's own, as Debian has it, on the configuration and the rules that weir ships.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use url::form_urlencoded::Serializer;

use super::processes::{LONG, Process, get, try_get, wait_for};
use super::site::free_address;
use crate::documents::{path, read};

const CONFIGURATION: &str = "deploy/prometheus.yml";

pub struct Prometheus {
    pub address: SocketAddr,
    process: Process,
}

/// Something to scrape.
pub struct Target {
    pub job: &'static str,
    /// What it is called on the dashboards.
    pub instance: String,
    pub address: SocketAddr,
}

impl Prometheus {
    /// Scrapes every second, so that a minute of a test is like five of a day.
    pub fn start(directory: &Path, targets: &[Target]) -> Self {
        let shipped = read(CONFIGURATION);
        let (head, _) = shipped.split_once("scrape_configs:").expect("it scrapes something");
        let head = ["scrape_interval: 5s", "scrape_timeout: 4s", "evaluation_interval: 15s"].iter().fold(
            head.to_owned(),
            |text, setting| {
                assert!(text.contains(setting), "{CONFIGURATION} has no {setting}");
                text.replace(setting, &format!("{}: 1s", setting.split(':').next().unwrap_or_default()))
            },
        );
        let rules = path("deploy/prometheus/").to_string_lossy().into_owned();
        let mut text = head.replace("- prometheus/", &format!("- {rules}")) + "scrape_configs:\n";
        for Target { job, instance, address } in targets {
            // A job of the same name may be there only once, and the alerts go by the label.
            let line = format!(
                "  - job_name: {job}-{instance}\n    static_configs:\n      - targets: [\"{address}\"]\n        \
                 labels: {{ job: \"{job}\", instance: \"{instance}\" }}\n"
            );
            text.push_str(&line);
        }
        std::fs::write(directory.join("prometheus.yml"), text).expect("written");
        let address = free_address();
        let listen = format!("--web.listen-address={address}");
        let flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=prometheus", &listen];
        let process = Process::start("prometheus", directory, Path::new("prometheus"), &flags, &[]);
        let address = address.parse().expect("an address");
        wait_for("Prometheus is ready", LONG, || try_get(address, "/-/ready"));
        Prometheus { address, process }
    }

    /// The data of an answer of its API.
    ///
    /// # Panics
    /// When it is an error.
    pub fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Value {
        let query = Serializer::new(String::new()).extend_pairs(parameters).finish();
        let answer = try_get(self.address, &format!("/api/v1/{what}?{query}"));
        let answer = answer.unwrap_or_else(|| panic!("Prometheus does not take {what} of {parameters:?}"));
        let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["status"], "success", "{what} of {parameters:?}: {answer}");
        answer["data"].take()
    }

    /// Whether all targets are scraped.
    pub fn scrapes_all(&self) -> bool {
        let targets: Value = serde_json::from_str(&get(self.address, "/api/v1/targets")).expect("JSON");
        let active = targets["data"]["activeTargets"].as_array().expect("a list");
        !active.is_empty() && active.iter().all(|target| target["health"] == "up")
    }

    pub fn stop(mut self) {
        self.process.stop();
    }
}
