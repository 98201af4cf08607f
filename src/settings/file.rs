//! Settings from a watched file.
//!
//! The file's content is read four times a second and compared. That is a few microseconds of work, and it sees every
//! way in which files change: an atomic rename, a symlink swapped under it (Kubernetes' ConfigMaps), a rewrite in
//! place, a network file system. Notifications of the kernel follow inodes and miss some of these.
//!
//! A document that does not parse, or a file that is away, counts only when it is still so at the next look: a writer
//! may be half-way.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::flagd::Evaluated;
use super::{Config, Rejection, Settings, SettingsError, Spec, TABLE, apply, brief, flagd};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Telemetry;

/// Time between two looks. With one more for a document that was half-written, a change applies within a second.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The largest document.
const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// Follows the configured file until the lifecycle stops; without one, the start values stay.
///
/// Reads the file once before it returns. A file that is missing or bad then is no error: the start values hold until
/// it is there.
pub fn watch(
    config: &Config,
    telemetry: &Telemetry,
    lifecycle: &Lifecycle,
) -> Result<watch::Receiver<Arc<Settings>>, SettingsError> {
    config.check()?;
    let start = config.start();
    let (sender, receiver) = watch::channel(Arc::new(start.clone()));
    let follower = Follower { start, sender, seen: None, settled: false, metrics: Metrics::new(telemetry) };
    follower.metrics.show(&follower.start);
    let token = lifecycle.token();
    match config.file.clone() {
        Some(path) => {
            let mut follower = follower;
            follower.look(&path, read(&path));
            follower.settle(&path);
            let work = lifecycle.clone();
            lifecycle.spawn("settings file", async move {
                token.run_until_cancelled(follower.run(path, work)).await;
            });
        }
        None => {
            lifecycle.spawn("settings", async move {
                token.cancelled().await;
                drop(follower);
            });
        }
    }
    Ok(receiver)
}

/// Reads the file once: the settings after it, and what of it would not take effect; or why it would not as a whole.
pub fn examine(path: &Path, start: &Settings) -> Result<(Settings, Vec<Rejection>), String> {
    let document = read(path)?;
    let flags = flagd::evaluate(&document)?;
    Ok(apply(&flags, start, start, version_of(&document)))
}

/// Replaces a file's content in one step, so that no reader sees half of it.
pub fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    File::create(&temporary)?.write_all(text.as_bytes())?;
    std::fs::rename(temporary, path)
}

/// The file's content, or why there is none.
type Reading = Result<Vec<u8>, String>;

struct Follower {
    start: Settings,
    sender: watch::Sender<Arc<Settings>>,
    /// What the last look found.
    seen: Option<Reading>,
    /// Whether that has been judged.
    settled: bool,
    metrics: Metrics,
}

impl Follower {
    async fn run(mut self, path: PathBuf, lifecycle: Lifecycle) {
        let mut looks = tokio::time::interval(POLL_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.tick().await;
        loop {
            looks.tick().await;
            let file = path.clone();
            let reading = lifecycle.blocking("settings read", move || read(&file)).await;
            self.look(&path, reading.unwrap_or_else(|error| Err(format!("reading it failed: {error}"))));
        }
    }

    fn look(&mut self, path: &Path, reading: Reading) {
        if self.seen.as_ref() == Some(&reading) {
            self.settle(path);
            return;
        }
        self.settled = match &reading {
            Ok(document) => self.take(document),
            Err(_) => false,
        };
        self.seen = Some(reading);
    }

    /// Applies a document that parses.
    fn take(&mut self, document: &[u8]) -> bool {
        let Ok(flags) = flagd::evaluate(document) else { return false };
        let last = self.sender.borrow().clone();
        let (next, rejections) = apply(&flags, &self.start, &last, version_of(document));
        for rejection in &rejections {
            tracing::warn!(version = next.version, "setting rejected: {rejection}");
            self.metrics.reject(rejection);
        }
        let (took_effect, changes) = (takes_effect(&flags, &rejections), changes(&last, &next));
        if changes.is_empty() && !took_effect && !rejections.is_empty() {
            // The values are still those of the document before, and so is the version.
            let version = next.version;
            tracing::warn!(version, "settings stay as they are: no value of this document took effect");
        } else if *last != next {
            tracing::info!(
                version = next.version,
                max_parallelism = next.max_parallelism,
                payload_sampling = next.payload_sampling,
                log_level = next.log_level,
                rejected = rejections.len(),
                "settings applied{changes}",
            );
            self.metrics.apply(&next);
            self.sender.send_replace(Arc::new(next));
        }
        true
    }

    /// Judges what was found twice and is no document; once.
    fn settle(&mut self, path: &Path) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let reason = match &self.seen {
            Some(Ok(document)) => flagd::evaluate(document).err(),
            Some(Err(reason)) => Some(reason.clone()),
            None => None,
        };
        if let Some(reason) = reason {
            let version = self.sender.borrow().version.clone();
            tracing::warn!(file = %path.display(), version, "settings file rejected, keeping what holds: {reason}");
            self.metrics.rejected_documents.increment(1);
        }
    }
}

/// Whether a document has a value for a setting, and that is a good one.
fn takes_effect(flags: &BTreeMap<String, Evaluated>, rejections: &[Rejection]) -> bool {
    TABLE.iter().any(|Spec { key, .. }| {
        matches!(flags.get(*key), Some(Ok(Some(_)))) && !rejections.iter().any(|rejection| rejection.key == *key)
    })
}

/// The values that a document changed, in words.
fn changes(last: &Settings, next: &Settings) -> String {
    let change = |spec: &Spec| {
        let (before, after) = (spec.value(last), spec.value(next));
        (before != after).then(|| format!("{} = {}", spec.key, brief(&after)))
    };
    let changes: Vec<_> = TABLE.iter().filter_map(change).collect();
    if changes.is_empty() { String::new() } else { format!(": {}", changes.join(", ")) }
}

fn read(path: &Path) -> Reading {
    let reading = || -> io::Result<Vec<u8>> {
        // Opening a pipe would wait for its writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut document = Vec::new();
        File::open(path)?.take(MAX_DOCUMENT_BYTES as u64 + 1).read_to_end(&mut document)?;
        if document.len() > MAX_DOCUMENT_BYTES {
            return Err(io::Error::other(format!("it is larger than {MAX_DOCUMENT_BYTES} bytes")));
        }
        Ok(document)
    };
    reading().map_err(|error| format!("it cannot be read: {error}"))
}

/// The first 12 hex digits of the SHA-256.
fn version_of(document: &[u8]) -> String {
    Sha256::digest(document).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

struct Metrics {
    applied: Counter,
    applied_timestamp: Gauge,
    rejected_documents: Counter,
    rejected_unknown: Counter,
    rejected_keys: Vec<(&'static str, Counter)>,
    max_parallelism: Gauge,
    payload_sampling: Gauge,
}

impl Metrics {
    fn new(telemetry: &Telemetry) -> Self {
        const REJECTED: &str = "weir_settings_rejected_total";
        telemetry.register(|| {
            describe_counter!("weir_settings_applied_total", "Documents whose settings took effect.");
            describe_gauge!("weir_settings_applied_timestamp_seconds", "When settings last took effect, Unix time.");
            describe_counter!(REJECTED, "Values that did not take effect, by key; `document` for a whole file.");
            describe_gauge!("weir_settings_max_parallelism", "The setting max_parallelism, in slots.");
            describe_gauge!("weir_settings_payload_sampling_ratio", "The setting payload_sampling, from 0 to 1.");
            Metrics {
                applied: counter!("weir_settings_applied_total"),
                applied_timestamp: gauge!("weir_settings_applied_timestamp_seconds"),
                rejected_documents: counter!(REJECTED, "key" => "document"),
                rejected_unknown: counter!(REJECTED, "key" => "unknown"),
                rejected_keys: TABLE.iter().map(|spec| (spec.key, counter!(REJECTED, "key" => spec.key))).collect(),
                max_parallelism: gauge!("weir_settings_max_parallelism"),
                payload_sampling: gauge!("weir_settings_payload_sampling_ratio"),
            }
        })
    }

    fn show(&self, settings: &Settings) {
        self.max_parallelism.set(settings.max_parallelism);
        self.payload_sampling.set(settings.payload_sampling);
    }

    fn apply(&self, settings: &Settings) {
        self.show(settings);
        self.applied.increment(1);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.applied_timestamp.set(now.as_secs_f64());
    }

    fn reject(&self, rejection: &Rejection) {
        let known = self.rejected_keys.iter().find(|(key, _)| *key == rejection.key);
        known.map_or(&self.rejected_unknown, |(_, counter)| counter).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    struct Bench {
        directory: TempDir,
        file: PathBuf,
        telemetry: Telemetry,
        lifecycle: Lifecycle,
        settings: watch::Receiver<Arc<Settings>>,
    }

    fn parallelism(value: u32) -> String {
        flagd::document(&[("max_parallelism", json!(value))])
    }

    impl Bench {
        fn start(prepare: impl FnOnce(&Path)) -> Self {
            let directory = TempDir::new().expect("a directory");
            let file = directory.path().join("flags.json");
            prepare(&file);
            let (telemetry, lifecycle) = (Telemetry::new().expect("recorder"), Lifecycle::new());
            let config = Config { file: Some(file.clone()), ..Config::default() };
            let settings = watch(&config, &telemetry, &lifecycle).expect("valid");
            Bench { directory, file, telemetry, lifecycle, settings }
        }

        /// The value after at most a second, the time within which a change must apply.
        async fn becomes(&mut self, value: u32) {
            let changed = self.settings.wait_for(|settings| settings.max_parallelism == value);
            tokio::time::timeout(Duration::from_secs(1), changed).await.expect("in time").expect("watched");
        }

        async fn stays(&mut self, value: u32) {
            tokio::time::sleep(POLL_INTERVAL * 4).await;
            assert_eq!(self.settings.borrow().max_parallelism, value);
        }

        fn metric(&self, line: &str) -> bool {
            self.telemetry.render().lines().any(|rendered| rendered == line)
        }

        async fn stop(self) {
            self.lifecycle.stop(Duration::from_secs(5)).await.expect("nothing is left");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_at_start_and_followed() {
        let mut bench = Bench::start(|file| write_file(file, &parallelism(1)).expect("written"));
        assert_eq!(bench.settings.borrow_and_update().max_parallelism, 1);
        assert_eq!(bench.settings.borrow().version.len(), 12);
        write_file(&bench.file, &parallelism(300)).expect("written");
        bench.becomes(300).await;
        assert!(bench.metric("weir_settings_max_parallelism 300"));
        assert!(bench.metric("weir_settings_applied_total 2"));
        bench.settings.borrow_and_update();
        write_file(&bench.file, &parallelism(300)).expect("written");
        bench.stays(300).await;
        assert!(!bench.settings.has_changed().expect("watched"), "the same document is no change");
        bench.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_file_means_the_start_values_until_it_comes() {
        let mut bench = Bench::start(|_| ());
        assert_eq!(bench.settings.borrow().version, "start");
        assert!(bench.metric("weir_settings_rejected_total{key=\"document\"} 1"));
        write_file(&bench.file, &parallelism(5)).expect("written");
        bench.becomes(5).await;
        std::fs::remove_file(&bench.file).expect("removed");
        bench.stays(5).await;
        write_file(&bench.file, &parallelism(6)).expect("written");
        bench.becomes(6).await;
        bench.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_file_keeps_all_and_is_counted_once() {
        let mut bench = Bench::start(|file| write_file(file, &parallelism(2)).expect("written"));
        for broken in ["", "{\"flags\": {", "\u{0}\u{0}", "[]"] {
            write_file(&bench.file, broken).expect("written");
            bench.stays(2).await;
        }
        assert!(bench.metric("weir_settings_rejected_total{key=\"document\"} 4"));
        let huge = format!("{}{}", parallelism(3), " ".repeat(MAX_DOCUMENT_BYTES));
        write_file(&bench.file, &huge).expect("written");
        bench.stays(2).await;
        let bad = flagd::document(&[("max_parallelism", json!(-1)), ("payload_sampling", json!(0.5)), ("x", json!(1))]);
        write_file(&bench.file, &bad).expect("written");
        bench.stays(2).await;
        assert_eq!(bench.settings.borrow().payload_sampling, 0.5);
        assert!(bench.metric("weir_settings_rejected_total{key=\"max_parallelism\"} 1"));
        assert!(bench.metric("weir_settings_rejected_total{key=\"unknown\"} 1"));
        bench.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_without_a_good_value_is_not_applied() {
        let mut bench = Bench::start(|file| write_file(file, &parallelism(2)).expect("written"));
        let version = bench.settings.borrow_and_update().version.clone();
        for bad in [&[("max_parallelism", json!(-1))][..], &[("max_parallelism", json!("2")), ("x", json!(1))]] {
            write_file(&bench.file, &flagd::document(bad)).expect("written");
            bench.stays(2).await;
            assert!(!bench.settings.has_changed().expect("watched"), "{bad:?}");
        }
        assert!(bench.metric("weir_settings_rejected_total{key=\"max_parallelism\"} 2"));
        assert!(bench.metric("weir_settings_applied_total 1"));
        // What it says nothing of goes back to the start: that is an effect.
        let sampled = [("max_parallelism", json!(2)), ("payload_sampling", json!(0.5))];
        write_file(&bench.file, &flagd::document(&sampled)).expect("written");
        bench.stays(2).await;
        write_file(&bench.file, &flagd::document(&[("max_parallelism", json!(-1))])).expect("written");
        bench.stays(2).await;
        assert_eq!(bench.settings.borrow().payload_sampling, 1.0);
        assert_ne!(bench.settings.borrow().version, version);
        assert!(bench.metric("weir_settings_applied_total 3"));
        bench.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_partial_write_is_waited_for() {
        let mut bench = Bench::start(|file| write_file(file, &parallelism(2)).expect("written"));
        let whole = parallelism(9);
        std::fs::write(&bench.file, &whole[..whole.len() / 2]).expect("half");
        tokio::time::sleep(POLL_INTERVAL).await;
        std::fs::write(&bench.file, &whole).expect("whole");
        bench.becomes(9).await;
        assert!(bench.metric("weir_settings_rejected_total{key=\"document\"} 0"));
        bench.stop().await;
    }

    #[cfg(unix)]
    #[tokio::test(start_paused = true)]
    async fn a_swapped_symlink_is_seen() {
        let link = |from: &Path, to: &Path| std::os::unix::fs::symlink(to, from).expect("linked");
        let mut bench = Bench::start(|file| {
            let directory = file.parent().expect("a directory");
            for (name, value) in [("first", 1), ("second", 2)] {
                std::fs::create_dir(directory.join(name)).expect("created");
                write_file(&directory.join(name).join("flags.json"), &parallelism(value)).expect("written");
            }
            link(&directory.join("data"), Path::new("first"));
            link(file, Path::new("data/flags.json"));
        });
        assert_eq!(bench.settings.borrow().max_parallelism, 1);
        let (temporary, data) = (bench.directory.path().join("data.tmp"), bench.directory.path().join("data"));
        link(&temporary, Path::new("second"));
        std::fs::rename(temporary, data).expect("swapped");
        bench.becomes(2).await;
        bench.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn many_updates_in_a_row_end_with_the_last() {
        let mut bench = Bench::start(|_| ());
        for value in 1..=1_100 {
            write_file(&bench.file, &parallelism(value)).expect("written");
            if value % 100 == 0 {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        bench.becomes(1_100).await;
        bench.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_file_the_start_values_stay_until_the_end() {
        let (telemetry, lifecycle) = (Telemetry::new().expect("recorder"), Lifecycle::new());
        let settings = watch(&Config::default(), &telemetry, &lifecycle).expect("valid");
        tokio::task::yield_now().await;
        assert_eq!(settings.borrow().max_parallelism, 30);
        assert!(settings.has_changed().is_ok(), "the sender lives");
        lifecycle.stop(Duration::from_secs(1)).await.expect("nothing is left");
    }
}
