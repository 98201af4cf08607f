//! Settings from LaunchDarkly: its own SDK against a server that speaks its protocol. What holds of each source is in
//! `settings_sources.rs`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir::settings::store::{self, ReadError};
use weir::settings::{Config, Context, Role};

use crate::cli::{assert_failed, assert_ok, run, stdout, weir};
use crate::support::authority;
use crate::support::cable::Cable;
use crate::support::house::{Plan, eventually};
use crate::support::launchdarkly::{Answer, LaunchDarkly, SDK_KEY, always, config, flag, rule};
use crate::support::place::Follower;
use weir::lifecycle::Lifecycle;

fn context(worker: &str, pool: &str, zone: Option<&str>) -> Context {
    let integrations = ["bank", "scraper-a"].map(|name| name.parse().expect("a name")).to_vec();
    let (pool, worker) = (pool.parse().expect("a pool"), Some(worker.parse().expect("a worker id")));
    Context { pool, worker, zone: zone.map(str::to_owned), integrations, ..Context::default() }
}

fn follower(server: &LaunchDarkly, context: Context) -> Follower {
    Follower::start_as(&config(&server.url()), context, None)
}

/// What a reader of its own is told.
async fn read(config: &Config) -> Result<Vec<u8>, ReadError> {
    let lifecycle = Lifecycle::new();
    let store = store::open(config, &lifecycle).expect("valid").expect("a store");
    let reading = store.read().await;
    lifecycle.stop(Duration::from_secs(5)).await.expect("nothing is left");
    reading
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_are_followed_as_they_come_change_and_go() {
    let server = LaunchDarkly::start().await;
    server.set("max_parallelism", always(40));
    server.set("integration_caps", always(json!({"*": "50%", "bank": 5})));
    server.set("log_level", always("warn"));
    server.set("checkout-button", always(true));
    let mut worker = follower(&server, context("worker-1", "parallel", None));
    worker.becomes(40).await;
    let first = worker.now();
    assert_eq!((first.log_level.as_str(), first.integration_caps.named.len(), first.version.len()), ("warn", 1, 12));
    assert_eq!(worker.rejected("unknown"), 0.0, "others' flags are none of weir's business");

    server.set("max_parallelism", always(41.0));
    worker.becomes(41).await;
    assert_ne!(worker.now().version, first.version);
    server.delete("max_parallelism");
    worker.becomes(Config::default().max_parallelism).await;
    let version = worker.now().version.clone();
    server.set("checkout-button", always(false));
    // Off, and without a variation for that: the program's own.
    let mut off = flag(&[json!("debug")], json!({"variation": 0}), json!([]));
    off["on"] = false.into();
    server.set("log_level", off);
    eventually("the start value is back", || worker.now().log_level == "info").await;
    assert_ne!(worker.now().version, version);
    worker.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_by_pool_worker_zone_and_integration_pick_the_value() {
    let server = LaunchDarkly::start().await;
    let rules = json!([
        rule("zone", "key", "eu-1", 3),
        rule("worker", "key", "worker-9", 2),
        rule("pool", "key", "parallel", 1)
    ]);
    server.set("max_parallelism", flag(&[json!(30), json!(40), json!(50), json!(60)], json!({"variation": 0}), rules));
    let scrapers = json!([rule("integration", "key", "scraper-a", 1)]);
    server.set("integration_caps", flag(&[json!({}), json!({"*": 2})], json!({"variation": 0}), scrapers));
    let by_attribute = json!([rule("worker", "pool", "parallel", 1), rule("integration", "key", "bank", 2)]);
    server.set("payload_sampling", flag(&[json!(1), json!(0.5), json!(0.1)], json!({"variation": 0}), by_attribute));
    let mut versions = Vec::new();
    for (worker, pool, zone, value, sampling) in [
        ("worker-1", "single", None, 30, 1.0),
        ("worker-1", "parallel", None, 40, 0.5),
        ("worker-9", "parallel", None, 50, 0.5),
        ("worker-9", "single", Some("eu-1"), 60, 1.0),
    ] {
        let mut worker = follower(&server, context(worker, pool, zone));
        worker.becomes(value).await;
        eventually("all of it is there", || worker.now().version != "start").await;
        let now = worker.now();
        assert_eq!(now.integration_caps.write().len(), 1, "{:?}", now.integration_caps);
        let share = |integration: &str| now.payload_sampling.of(&integration.parse().expect("a name"));
        // Whose pool counts first has one share for all.
        let of_bank = if sampling == 0.5 { 0.5 } else { 0.1 };
        assert_eq!([share("bank"), share("scraper-a"), now.payload_sampling.others()], [of_bank, sampling, sampling]);
        assert!(now.integration_caps.get(&"scraper-a".parse().expect("a name")).is_some());
        versions.push(now.version.clone());
        worker.stop().await;
    }
    versions.dedup();
    assert_eq!(versions.len(), 1, "what it is called is the same for all, whatever they got");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_is_known_by_its_role_and_zone_and_is_in_no_pool() {
    let server = LaunchDarkly::start().await;
    let by = |rules: Value| flag(&[json!(0.1), json!(0.2), json!(0.3)], json!({"variation": 0}), rules);
    // The default's name is what a router would have, if it had one.
    server.set("batch_share", by(json!([rule("pool", "key", "default", 1), rule("role", "key", "router", 2)])));
    server.set("payload_sampling", by(json!([rule("role", "key", "worker", 1), rule("zone", "key", "eu-1", 2)])));
    server.set("pools", always(json!({"single": 95, "parallel": 5})));
    let router = Context { role: Role::Router, zone: Some("eu-1".into()), ..Context::default() };
    for (context, shares) in [(router, (0.3, 0.3)), (context("worker-1", "default", Some("eu-1")), (0.2, 0.2))] {
        let reader = follower(&server, context);
        eventually("all of it is there", || reader.now().version != "start").await;
        let now = reader.now();
        assert_eq!(((now.batch_share, now.payload_sampling.others()), now.pools.iter().count()), (shares, 2));
        reader.stop().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_the_workers_only_grows_and_segments_count() {
    let server = LaunchDarkly::start().await;
    let share = |percent: u32| {
        let variations =
            json!([{"variation": 1, "weight": percent * 1_000}, {"variation": 0, "weight": (100 - percent) * 1_000}]);
        let rollout = json!({"rollout": {"kind": "rollout", "contextKind": "worker", "variations": variations}});
        flag(&[json!(30), json!(40)], rollout, json!([]))
    };
    server.set("max_parallelism", share(0));
    let mut workers: Vec<_> =
        (0..40).map(|n| follower(&server, context(&format!("worker-{n}"), "parallel", None))).collect();
    let mut before: Vec<bool> = vec![false; workers.len()];
    for percent in [10, 50, 100] {
        let version = workers[0].now().version.clone();
        server.set("max_parallelism", share(percent));
        for worker in &workers {
            eventually("it has the new flag", || worker.now().version != version && worker.now().version != "start")
                .await;
        }
        let version = workers[0].now().version.clone();
        eventually("all have the same", || workers.iter().all(|worker| worker.now().version == version)).await;
        let now: Vec<_> = workers.iter().map(|worker| worker.now().max_parallelism == 40).collect();
        assert!(before.iter().zip(&now).all(|(before, now)| !before || *now), "who was in stays in");
        let count = now.iter().filter(|is_in| **is_in).count();
        assert!((count as i64 - i64::from(percent) * 40 / 100).abs() <= 12, "{count} of 40 at {percent}%");
        before = now;
    }
    // Of a segment, what counts is that it has changed.
    let segment = |ids: Value| {
        let included = json!([{"contextKind": "worker", "values": ids}]);
        json!({"included": [], "excluded": [], "includedContexts": included, "excludedContexts": [], "rules": [], "salt": "s"})
    };
    server.set_segment("pilots", segment(json!(["worker-1"])));
    let clause =
        json!({"contextKind": "user", "attribute": "", "op": "segmentMatch", "values": ["pilots"], "negate": false});
    let rules = json!([{"id": "r", "variation": 1, "clauses": [clause], "trackEvents": false}]);
    server.set("max_parallelism", flag(&[json!(31), json!(41)], json!({"variation": 0}), rules));
    workers[1].becomes(41).await;
    workers[2].becomes(31).await;
    server.set_segment("pilots", segment(json!(["worker-2"])));
    workers[2].becomes(41).await;
    workers[1].becomes(31).await;
    for worker in workers {
        worker.stop().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_whose_rules_are_broken_and_a_jump_are_refused_with_the_reason() {
    let server = LaunchDarkly::start().await;
    server.set("max_parallelism", always(40));
    server.set("payload_sampling", always(0.5));
    let mut worker = follower(&server, context("worker-1", "default", None));
    worker.becomes(40).await;
    server.set("payload_sampling", flag(&[json!(0.1)], json!({"variation": 7}), json!([])));
    eventually("it is refused", || worker.rejected("payload_sampling") == 1.0).await;
    assert_eq!(worker.now().payload_sampling.others(), 0.5);
    server.set("max_parallelism", always(401));
    eventually("the jump is refused", || worker.rejected("max_parallelism") == 1.0).await;
    server.set("allow_jump", always(true));
    worker.becomes(401).await;
    worker.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_waits_for_nothing_and_goes_on_from_the_last_good_settings() {
    let server = LaunchDarkly::start().await;
    let mut cable = Cable::to(server.address).await;
    let directory = tempfile::tempdir().expect("a directory");
    let (kept, config) = (directory.path().join("kept.json"), config(&cable.url()));
    let start = || {
        let began = Instant::now();
        let worker = Follower::start_as(&config, context("worker-1", "default", None), Some(&kept));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        worker
    };
    // Slow: a stream on which nothing comes at first.
    server.answer(Answer::Nothing);
    server.set("max_parallelism", always(40));
    let mut worker = start();
    eventually("that nothing comes is seen", || worker.is_cut_off("")).await;
    assert_eq!(worker.now().version, "start");
    server.answer(Answer::Flags);
    server.hang_up();
    worker.becomes(40).await;
    let version = worker.now().version.clone();
    eventually("it is kept", || kept.exists()).await;
    let note: Value = serde_json::from_slice(&std::fs::read(&kept).expect("readable")).expect("JSON");
    assert_eq!((&note["version"], &note["document"]), (&json!(version), &Value::Null), "a listing is no document");
    worker.stop().await;

    // Absent.
    cable.unplug().await;
    let mut worker = start();
    assert_eq!((worker.now().max_parallelism, &worker.now().version), (40, &version));
    eventually("that it is away is seen", || worker.is_cut_off("")).await;
    cable.plug().await;
    server.set("max_parallelism", always(41));
    worker.becomes(41).await;
    worker.stop().await;
    cable.unplug().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_refused_is_said_plainly_and_tried_again() {
    let server = LaunchDarkly::start().await;
    server.set("max_parallelism", always(40));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "sdk-S3CRET-of-yesterday").expect("written");
    let mut config = config(&server.url());
    (config.launchdarkly.sdk_key, config.launchdarkly.sdk_key_file) = (None, Some(file.path().into()));
    config.launchdarkly.retry_refused_after = Duration::from_secs(1);
    let why = match read(&config).await {
        Err(ReadError::Failed(why)) => why,
        other => panic!("{other:?}"),
    };
    let expected = format!("{} answered 401 Unauthorized: the SDK key is not valid there", server.address);
    assert!(why.starts_with(&expected) && !why.contains("S3CRET"), "{why}");

    let mut worker = Follower::start_as(&config, context("worker-1", "default", None), None);
    eventually("that it is refused is seen", || worker.is_cut_off("401")).await;
    std::fs::write(file.path(), format!("{SDK_KEY}\n")).expect("written");
    worker.becomes(40).await;
    // The SDK would stop for good.
    server.answer(Answer::Status(403));
    server.hang_up();
    eventually("it is seen while it runs, too", || worker.has("weir_settings_source_up 0")).await;
    server.answer(Answer::Flags);
    server.set("max_parallelism", always(41));
    worker.becomes(41).await;
    // That is no refusal: the SDK goes on by itself.
    let asked = server.asked();
    server.answer(Answer::Status(503));
    server.hang_up();
    eventually("it is asked again", || server.asked() > asked).await;
    server.answer(Answer::Flags);
    server.set("max_parallelism", always(42));
    worker.becomes(42).await;
    worker.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_now_and_then_is_no_outage() {
    let server = LaunchDarkly::start().await;
    server.set("max_parallelism", always(40));
    let mut worker = follower(&server, context("worker-1", "default", None));
    worker.becomes(40).await;
    let asked = server.asked();
    server.hang_up();
    eventually("it comes again", || {
        assert!(worker.has("weir_settings_source_up 1"));
        server.asked() > asked
    })
    .await;
    server.set("max_parallelism", always(41));
    worker.becomes(41).await;
    assert_eq!(worker.rejected("document"), 0.0);
    worker.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evaluations_are_reported_where_that_is_wanted_and_never_hold_up_a_stop() {
    let server = LaunchDarkly::start().await;
    server.set("max_parallelism", always(40));
    let mut worker = follower(&server, context("worker-1", "parallel", None));
    worker.becomes(40).await;
    worker.stop().await;
    assert!(server.reports().is_empty(), "off unless asked for");

    let mut config = config(&server.url());
    config.launchdarkly.events = true;
    let mut worker = Follower::start_as(&config, context("worker-1", "parallel", None), None);
    worker.becomes(40).await;
    worker.stop().await;
    let reports = server.reports();
    let events: Vec<_> = reports.iter().filter_map(Value::as_array).flatten().collect();
    let summary = events.iter().find(|event| event["kind"] == "summary").expect("a summary");
    assert_eq!(summary["features"]["max_parallelism"]["counters"][0]["value"], 40.0);
    let index = events.iter().find(|event| event["kind"] == "index").expect("who it was for");
    assert_eq!((&index["context"]["worker"]["key"], &index["context"]["kind"]), (&json!("worker-1"), &json!("multi")));

    server.hang_on_reports();
    let mut worker = Follower::start_as(&config, context("worker-1", "parallel", None), None);
    worker.becomes(40).await;
    let began = Instant::now();
    worker.stop().await;
    println!("stopped in {:?} while reports hang", began.elapsed());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_a_private_authority_needs_its_certificate() {
    let (tls, authority) = authority::private();
    let server = LaunchDarkly::start_tls(tls).await;
    server.set("max_parallelism", always(40));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut config = config(&server.url());
    config.launchdarkly.events = true;
    // Nobody knows it; and one of the same name has another key.
    let (_, stranger) = authority::private();
    std::fs::write(file.path(), stranger).expect("written");
    for ca_file in [None, Some(file.path().to_owned())] {
        config.launchdarkly.ca_file = ca_file;
        let Err(ReadError::Failed(why)) = read(&config).await else { panic!("it is not to be trusted") };
        let place = server.address.to_string();
        assert!(why.starts_with(&place) && why.contains("invalid peer certificate"), "{why}");
        let what_to_do = "; name the authority that signed it in settings.launchdarkly.ca_file";
        assert!(why.ends_with(what_to_do), "{why}");
    }
    assert_eq!((server.asked(), server.reports().len()), (0, 0), "nothing was sent to whom nobody trusts");

    std::fs::write(file.path(), &authority).expect("written");
    let mut worker = Follower::start_as(&config, context("worker-1", "default", None), None);
    worker.becomes(40).await;
    server.set("max_parallelism", always(41));
    worker.becomes(41).await;
    assert!(worker.has("weir_settings_source_up 1"));
    worker.stop().await;
    let reports = server.reports();
    let mut events = reports.iter().filter_map(Value::as_array).flatten();
    assert!(events.any(|event| event["kind"] == "summary"), "reports go there, too: {reports:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_cannot_be_used_is_said_at_the_start_and_by_check() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("written");
        directory.path().join(name)
    };
    let broken = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n";
    for (path, why) in [
        ("/nowhere/ca.pem".into(), "cannot be read: No such file or directory (os error 2); name a PEM file"),
        (directory.path().to_owned(), "cannot be read: Is a directory (os error 21); name a PEM file"),
        (
            file("text", "S3CRET"),
            "is no PEM file with a CERTIFICATE: it holds none; use one with -----BEGIN CERTIFICATE",
        ),
        (file("broken.pem", broken), "cannot be trusted"),
    ] {
        let mut config = config("https://127.0.0.1:1");
        config.launchdarkly.ca_file = Some(path.clone());
        let error = store::open(&config, &Lifecycle::new()).err().expect("refused").to_string();
        let expected = format!("settings.launchdarkly.ca_file: {path:?} ");
        assert!(error.starts_with(&expected) && error.contains(why) && !error.contains("S3CRET"), "{error}");

        let mut check = weir();
        check.args(["check", "--role", "worker"]).env("WEIR_INTEGRATIONS__A__KIND", "synthetic");
        check.env("WEIR_PAYLOADS__STORE", "none").env("WEIR_SETTINGS__SOURCE", "launchdarkly");
        check.env("WEIR_SETTINGS__LAUNCHDARKLY__CA_FILE", &path);
        let output = run(&mut check, "").await;
        let said = stdout(&output);
        for problem in [format!("wrong  {expected}"), "wrong  settings.launchdarkly.sdk_key: there is none".into()] {
            assert!(said.contains(&problem), "{problem:?} is not in {said}");
        }
        assert!(said.contains(why), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_say_where_a_change_is_made_and_show_where_it_has_arrived() {
    let server = LaunchDarkly::start().await;
    server.set("max_parallelism", always(9));
    let launchdarkly = config(&server.url()).launchdarkly;
    let settings = weir::settings::Source::LaunchDarkly;
    let house = Plan { workers: 2, settings, launchdarkly, ..Plan::default() }.start().await;
    eventually("it applies", || (0..2).all(|worker| house.load(worker).target == 9)).await;
    let command = |arguments: &[&str]| {
        let mut command = weir();
        command.args(arguments).env("WEIR_REGISTRY__URL", house.redis.url());
        command
            .env("WEIR_SETTINGS__SOURCE", "launchdarkly")
            .env("WEIR_SETTINGS__LAUNCHDARKLY__STREAM_URL", server.url());
        command.env("WEIR_SETTINGS__LAUNCHDARKLY__SDK_KEY", SDK_KEY);
        command
    };
    for arguments in [
        &["settings", "set", "max_parallelism=10", "--why", "x"][..],
        &["settings", "history"],
        &["settings", "diff"],
        &["settings", "rollback", "--why", "x"],
    ] {
        assert_failed(&run(&mut command(arguments), "").await, &["changed there", "ldcli flags"]);
    }
    server.set("max_parallelism", always(10));
    let status = run(&mut command(&["settings", "status", "--watch"]), "").await;
    assert_ok(&status);
    let said = stdout(&status);
    assert!(said.starts_with(&format!("launchdarkly {}: ", server.url())), "{said}");
    assert!(said.ends_with("pool default: applied on 2 of 2\n"), "{said}");

    let checked = |arguments: &[&str]| {
        let mut check = command(&["check", "--role", "worker"]);
        check.args(arguments).env("WEIR_INTEGRATIONS__A__KIND", "synthetic").env("WEIR_PAYLOADS__STORE", "none");
        check.env("WEIR_WORKER__LISTEN", "127.0.0.1:0").env("WEIR_WORKER__ADMIN__LISTEN", "127.0.0.1:0");
        check
    };
    let output = run(&mut checked(&["--connect"]), "").await;
    assert_ok(&output);
    let found = format!("settings.launchdarkly: launchdarkly {}: flags for 1 of", server.url());
    assert!(stdout(&output).contains(&found), "{}", stdout(&output));
    let output = run(checked(&["--connect"]).env("WEIR_SETTINGS__LAUNCHDARKLY__SDK_KEY", "sdk-S3CRET"), "").await;
    assert!(stdout(&output).contains("wrong  settings.launchdarkly: "), "{}", stdout(&output));
    assert!(stdout(&output).contains("401") && !stdout(&output).contains("S3CRET"), "{}", stdout(&output));
    let output = run(checked(&[]).env_remove("WEIR_SETTINGS__LAUNCHDARKLY__SDK_KEY"), "").await;
    assert!(stdout(&output).contains("settings.launchdarkly.sdk_key: there is none: set it as"), "{}", stdout(&output));
    house.close().await;
    server.stop().await;
}
