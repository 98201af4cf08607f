use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::super::file::{POLL_INTERVAL, write_file};
use super::super::flagd;
use super::super::store::MAX_DOCUMENT_BYTES;
use super::*;
use crate::telemetry::logs::testing::Heard;

struct Bench {
    directory: TempDir,
    file: PathBuf,
    telemetry: Telemetry,
    lifecycle: Lifecycle,
    settings: watch::Receiver<Arc<Settings>>,
    arrival: watch::Receiver<Arc<Arrival>>,
}

fn parallelism(value: u32) -> String {
    flagd::document(&[("max_parallelism", json!(value))])
}

fn context() -> Context {
    Context { worker: Some("worker-1".parse().expect("a worker id")), ..Context::default() }
}

impl Bench {
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let directory = TempDir::new().expect("a directory");
        let file = directory.path().join("flags.json");
        prepare(&file);
        Self::start_in(directory, file, |_| ())
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

    /// The version that holds, and of which document which keys were rejected.
    fn arrived(&self) -> (String, Option<(String, Vec<String>)>) {
        let Arrival { version, rejected, .. } = (**self.arrival.borrow()).clone();
        let keys = |of: Rejected| (of.version, of.values.into_iter().map(|value| value.key).collect());
        (version, rejected.map(keys))
    }

    fn metric(&self, line: &str) -> bool {
        self.telemetry.render().lines().any(|rendered| rendered == line)
    }

    /// Another worker's life, in the same place: it starts with what this one kept.
    async fn restart(self, config: impl FnOnce(&mut Config)) -> Self {
        let Bench { directory, file, lifecycle, .. } = self;
        lifecycle.stop(Duration::from_secs(5)).await.expect("nothing is left");
        Self::start_in(directory, file, config)
    }

    fn start_in(directory: TempDir, file: PathBuf, change: impl FnOnce(&mut Config)) -> Self {
        let (telemetry, lifecycle) = (Telemetry::new().expect("recorder"), Lifecycle::new());
        let mut config = Config { file: Some(file.clone()), ..Config::default() };
        change(&mut config);
        let kept = directory.path().join("state/kept.json");
        let followed = watch(&config, context(), Some(&kept), &telemetry, &lifecycle).expect("valid");
        let Followed { settings, arrival, .. } = followed;
        Bench { directory, file, telemetry, lifecycle, settings, arrival }
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
    assert!(bench.metric("weir_settings_source_up 0"));
    assert!(bench.metric("weir_settings_rejected_total{key=\"document\"} 0"), "nothing was refused");
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
    let told = bench.arrival.borrow().rejected.clone().expect("it is told");
    assert_eq!(told.version, version_of(&huge.as_bytes()[..=MAX_DOCUMENT_BYTES]));
    let reason = format!("document: it has {} bytes, and may have at most 1048576", huge.len());
    assert_eq!(told.values.iter().map(Rejection::to_string).collect::<Vec<_>>(), [reason]);
    assert!(bench.metric("weir_settings_source_up 1"), "it is there, and is refused");
    assert!(bench.metric("weir_settings_rejected_total{key=\"document\"} 5"));
    let twice = parallelism(3).replace("\"variants\"", "\"state\": \"ENABLED\", \"variants\"");
    write_file(&bench.file, &twice).expect("written");
    bench.stays(2).await;
    let told = bench.arrival.borrow().rejected.clone().expect("it is told").values[0].to_string();
    let reason = "document: it has the key \"state\" twice in \"flags.max_parallelism\", the second time at line ";
    assert!(told.starts_with(reason) && told.ends_with("; keep one of them"), "{told}");
    let bad = flagd::document(&[("max_parallelism", json!(-1)), ("payload_sampling", json!(0.5)), ("x", json!(1))]);
    write_file(&bench.file, &bad).expect("written");
    bench.stays(2).await;
    assert_eq!(bench.settings.borrow().payload_sampling.others(), 0.5);
    assert!(bench.metric("weir_settings_rejected_total{key=\"max_parallelism\"} 1"));
    assert!(bench.metric("weir_settings_rejected_total{key=\"unknown\"} 1"));
    assert!(bench.metric("weir_settings_refused_values 2"));
    write_file(&bench.file, "{").expect("written");
    bench.stays(2).await;
    assert!(bench.metric("weir_settings_refused_values 1"), "all of it");
    write_file(&bench.file, &parallelism(3)).expect("written");
    bench.becomes(3).await;
    assert!(bench.metric("weir_settings_refused_values 0"));
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_beside_a_broken_file_leaves_the_document_that_was_kept() {
    let mut bench = Bench::start(|file| write_file(file, &parallelism(7)).expect("written"));
    for broken in [Some("{"), None] {
        match broken {
            Some(text) => write_file(&bench.file, text).expect("written"),
            None => std::fs::remove_file(&bench.file).expect("removed"),
        }
        bench = bench.restart(|_| ()).await;
        assert_eq!(bench.settings.borrow().max_parallelism, 7);
        let last = super::super::kept::read(&bench.directory.path().join("state/kept.json")).expect("readable");
        assert_eq!(last.document, Some(parallelism(7)));
    }
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
    assert_eq!(bench.settings.borrow().payload_sampling.others(), 1.0);
    assert_ne!(bench.settings.borrow().version, version);
    assert!(bench.metric("weir_settings_applied_total 3"));
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rejected_value_is_logged_when_it_changes() {
    let heard = Heard::listen();
    let mut bench = Bench::start(|file| write_file(file, &parallelism(2)).expect("written"));
    for (bad, sampling) in [(-1, 0.1), (-1, 0.2), (-1, 0.3), (-2, 0.4), (5, 0.5), (-2, 0.6)] {
        let values = [("max_parallelism", json!(bad)), ("payload_sampling", json!(sampling))];
        write_file(&bench.file, &flagd::document(&values)).expect("written");
        let changed = bench.settings.wait_for(|settings| settings.payload_sampling.others() == sampling);
        tokio::time::timeout(Duration::from_secs(1), changed).await.expect("in time").expect("watched");
    }
    let lines = heard.lines("setting rejected: max_parallelism: ");
    let said: Vec<_> = lines.iter().map(|line| line["message"].as_str().expect("text").contains("-1")).collect();
    assert_eq!(said, [true, false, false], "{lines:?}");
    assert!(bench.metric("weir_settings_rejected_total{key=\"max_parallelism\"} 5"), "each is counted");
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
    let followed = watch(&Config::default(), Context::default(), None, &telemetry, &lifecycle).expect("valid");
    let Followed { settings, arrival, source } = followed;
    assert!(source.is_none());
    tokio::task::yield_now().await;
    assert_eq!(settings.borrow().max_parallelism, 30);
    assert!(settings.has_changed().is_ok() && arrival.has_changed().is_ok(), "the senders live");
    assert_eq!((arrival.borrow().version.as_str(), &arrival.borrow().rejected), ("start", &None));
    lifecycle.stop(Duration::from_secs(1)).await.expect("nothing is left");
}

#[tokio::test(start_paused = true)]
async fn n_goes_to_1_and_up_again_and_a_jump_waits_for_a_word() {
    let mut bench = Bench::start(|file| write_file(file, &parallelism(300)).expect("written"));
    for value in [1, 300, 3_000] {
        write_file(&bench.file, &parallelism(value)).expect("written");
        bench.becomes(value).await;
    }
    write_file(&bench.file, &parallelism(30_001)).expect("written");
    bench.stays(3_000).await;
    assert!(bench.metric("weir_settings_rejected_total{key=\"max_parallelism\"} 1"));
    let allowed = parallelism(30_001).replace("\"state\"", "\"metadata\": {\"allow_jump\": true}, \"state\"");
    write_file(&bench.file, &allowed).expect("written");
    bench.becomes(30_001).await;
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_good_settings_hold_after_a_restart_until_the_source_is_back() {
    let mut bench = Bench::start(|file| write_file(file, &parallelism(1)).expect("written"));
    let mixed = flagd::document(&[("max_parallelism", json!(-1)), ("payload_sampling", json!(0.5))]);
    write_file(&bench.file, &mixed).expect("written");
    bench.stays(1).await;
    let version = bench.settings.borrow().version.clone();
    std::fs::remove_file(&bench.file).expect("removed");

    let mut bench = bench.restart(|_| ()).await;
    let kept = bench.settings.borrow().clone();
    assert_eq!((kept.max_parallelism, kept.payload_sampling.others(), &kept.version), (1, 0.5, &version));
    assert!(bench.metric("weir_settings_max_parallelism 1") && bench.metric("weir_settings_source_up 0"));
    write_file(&bench.file, &parallelism(301)).expect("written");
    bench.stays(1).await;
    assert!(bench.metric("weir_settings_rejected_total{key=\"max_parallelism\"} 1"), "it is a jump from what was kept");
    write_file(&bench.file, &parallelism(300)).expect("written");
    bench.becomes(300).await;
    bench.stays(300).await;

    // Of another source they say nothing.
    let other = bench.directory.path().join("other.json");
    let bench = bench.restart(|config| config.file = Some(other)).await;
    assert_eq!(bench.settings.borrow().version, "start");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_dead_for_a_minute_changes_nothing_and_shows_its_age() {
    let mut bench = Bench::start(|file| write_file(file, &parallelism(7)).expect("written"));
    let age = |bench: &Bench| -> f64 {
        let metrics = bench.telemetry.render();
        let line = metrics.lines().find_map(|line| line.strip_prefix("weir_settings_source_age_seconds "));
        line.expect("it is there").parse().expect("a number")
    };
    bench.stays(7).await;
    assert!(bench.metric("weir_settings_source_up 1") && age(&bench) <= 0.5, "{}", age(&bench));
    // What is not a file cannot be read, and is not missing either.
    std::fs::remove_file(&bench.file).expect("removed");
    std::fs::create_dir(&bench.file).expect("created");
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.stays(7).await;
    assert!(bench.metric("weir_settings_source_up 0") && age(&bench) >= 60.0, "{}", age(&bench));
    assert!(bench.metric("weir_settings_rejected_total{key=\"document\"} 0"), "nothing was refused");
    std::fs::remove_dir(&bench.file).expect("removed");
    write_file(&bench.file, &parallelism(8)).expect("written");
    bench.becomes(8).await;
    assert!(bench.metric("weir_settings_source_up 1") && age(&bench) <= 0.5);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rule_picks_the_value_for_this_worker() {
    let rule = |worker: &str| {
        let flag = json!({"state": "ENABLED", "variants": {"few": 2, "many": 20}, "defaultVariant": "few",
            "targeting": {"if": [{"===": [{"var": "worker"}, worker]}, "many", null]}});
        json!({"flags": {"max_parallelism": flag}}).to_string()
    };
    let mut bench = Bench::start(|file| write_file(file, &rule("worker-1")).expect("written"));
    assert_eq!(bench.settings.borrow().max_parallelism, 20);
    write_file(&bench.file, &rule("worker-2")).expect("written");
    bench.becomes(2).await;
    write_file(&bench.file, &rule("worker-2").replace("\"var\"", "\"vra\"")).expect("written");
    bench.stays(2).await;
    assert!(bench.metric("weir_settings_rejected_total{key=\"max_parallelism\"} 1"));
    bench.stop().await;
}

/// N and the sampling.
fn both(max_parallelism: i64, sampling: f64) -> String {
    flagd::document(&[("max_parallelism", json!(max_parallelism)), ("payload_sampling", json!(sampling))])
}

fn rejects(document: &str, keys: &[&str]) -> Option<(String, Vec<String>)> {
    Some((version_of(document.as_bytes()), keys.iter().map(ToString::to_string).collect()))
}

#[tokio::test(start_paused = true)]
async fn what_was_rejected_is_told_with_the_version_whose_other_values_hold() {
    let first = both(3, 0.1);
    let mut bench = Bench::start(|file| write_file(file, &first).expect("written"));
    assert_eq!(bench.arrived(), (version_of(first.as_bytes()), None));
    assert_eq!(bench.arrival.borrow().jump_limit, 300, "ten times the start value");
    // The start value counts, so this is a jump from there.
    let jump = both(301, 0.4);
    write_file(&bench.file, &jump).expect("written");
    let changed = bench.settings.wait_for(|settings| settings.payload_sampling.others() == 0.4);
    drop(tokio::time::timeout(Duration::from_secs(1), changed).await.expect("in time").expect("watched"));
    // Whoever sees the version sees what it leaves out.
    assert_eq!(bench.arrived(), (version_of(jump.as_bytes()), rejects(&jump, &["max_parallelism"])));
    let reason = bench.arrival.borrow().rejected.clone().expect("some").values[0].reason_and_value();
    assert!(reason.contains("301 is more than 10 times 30") && reason.ends_with("keeping 3"), "{reason}");
    let good = both(300, 0.4);
    write_file(&bench.file, &good).expect("written");
    bench.becomes(300).await;
    assert_eq!(bench.arrived(), (version_of(good.as_bytes()), None));
    assert_eq!(bench.arrival.borrow().jump_limit, 3_000);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_document_of_which_nothing_holds_is_named_beside_the_version_that_does() {
    let good = parallelism(2);
    let mut bench = Bench::start(|file| write_file(file, &good).expect("written"));
    let holds = version_of(good.as_bytes());
    let bad = flagd::document(&[("max_parallelism", json!(-1)), ("max_paralelism", json!(1))]);
    for (document, keys) in [
        (bad.as_str(), &["max_parallelism", "\"max_paralelism\""][..]),
        ("{\"flags\": {", &[WHOLE_DOCUMENT]),
        ("[]", &[WHOLE_DOCUMENT]),
    ] {
        write_file(&bench.file, document).expect("written");
        bench.stays(2).await;
        assert_eq!(bench.arrived(), (holds.clone(), rejects(document, keys)));
    }
    bench.arrival.borrow_and_update();
    write_file(&bench.file, &good).expect("written");
    bench.stays(2).await;
    assert_eq!(bench.arrived(), (holds, None), "what holds is what is there again");
    assert!(bench.arrival.has_changed().expect("watched"));
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_rejected_is_told_after_a_restart_before_the_source_is_back() {
    let mut bench = Bench::start(|file| write_file(file, &parallelism(1)).expect("written"));
    let mixed = both(-1, 0.5);
    write_file(&bench.file, &mixed).expect("written");
    bench.stays(1).await;
    let arrived = bench.arrived();
    assert_eq!(arrived, (version_of(mixed.as_bytes()), rejects(&mixed, &["max_parallelism"])));
    std::fs::remove_file(&bench.file).expect("removed");
    let mut bench = bench.restart(|_| ()).await;
    assert_eq!(bench.arrived(), arrived);
    write_file(&bench.file, &both(2, 0.5)).expect("written");
    bench.becomes(2).await;
    assert_eq!(bench.arrived().1, None);
    bench.stop().await;
}
