//! Settings for the whole fleet: one key in a real Redis, changed by the command, seen to arrive.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::process::Command;
use weir::settings::store::{self, Edit, ReadError, Store, WriteError};
use weir::settings::{Source, flagd};

use crate::cli::{assert_failed, assert_ok, lines, run, stderr, stdout, weir};
use crate::support::house::{House, LONG, Plan, eventually};
use crate::support::place::{Follower, open, redis_config};
use crate::support::processes::{self, Process};
use crate::support::redis::RedisServer;

/// A change applies within a second; a busy machine gets five.
const APPLIES_WITHIN: Duration = Duration::from_secs(5);

pub fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = weir();
    command.arg("settings").args(arguments);
    command.env("WEIR_REGISTRY__URL", url).env("WEIR_SETTINGS__SOURCE", "redis").env("USER", "me");
    command
}

async fn says(house: &House, arguments: &[&str]) -> String {
    let output = run(&mut command(&house.redis.url(), arguments), "").await;
    assert_ok(&output);
    stdout(&output)
}

async fn fleet(workers: usize, max_parallelism: u32) -> House {
    Plan { workers, max_parallelism, settings: Source::Redis, ..Plan::default() }.start().await
}

async fn until_targets(house: &House, targets: &[u32]) {
    let began = Instant::now();
    let applied = || targets.iter().enumerate().all(|(index, target)| house.load(index).target == *target);
    eventually("N is what the document says", applied).await;
    assert!(began.elapsed() < APPLIES_WITHIN, "{targets:?} took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_reaches_the_fleet_is_seen_to_arrive_and_is_taken_back() {
    let house = fleet(3, 4).await;
    assert!(says(&house, &["status"]).await.contains("no document"));
    let set = says(&house, &["set", "max_parallelism=10", "--why", "a first step"]).await;
    assert_eq!(set, "v1: max_parallelism = 10 for all workers\n");
    until_targets(&house, &[10, 10, 10]).await;
    let watched = says(&house, &["status", "--watch"]).await;
    assert!(watched.contains(": a first step\n") && watched.contains("v1 ("), "{watched}");
    assert!(watched.ends_with("pool default: applied on 3 of 3\n"), "{watched}");

    let others = ["set", "max_parallelism=20", "--pool", "other", "--why", "not for these"];
    let set = run(&mut command(&house.redis.url(), &others), "").await;
    assert_eq!(stdout(&set), "v2: max_parallelism = 20 for all workers of pool other\n");
    assert_eq!(stderr(&set), "weir: no worker serves the pool other now: nobody has this value until one does\n");
    says(&house, &["set", "payload_sampling=0.5", "--why", "less to store"]).await;
    let sampling = "weir_settings_payload_sampling_ratio";
    eventually("it applies", || (0..3).all(|worker| house.worker_metric(worker, sampling) == 0.5)).await;
    until_targets(&house, &[10, 10, 10]).await;

    let diff = says(&house, &["diff"]).await;
    assert!(diff.starts_with("payload_sampling\n  + {") && !diff.contains("max_parallelism"), "{diff}");
    let back = says(&house, &["rollback", "1", "--why", "enough"]).await;
    assert_eq!(back, "v4: the document of v1\n");
    eventually("it is taken back", || (0..3).all(|worker| house.worker_metric(worker, sampling) == 1.0)).await;
    let history = run(&mut command(&house.redis.url(), &["history", "--json"]), "").await;
    let said: Vec<_> =
        lines(&history).iter().map(|it| (it["revision"].clone(), it["why"].as_str().map(str::to_owned))).collect();
    let why = ["enough (back to v1)", "less to store", "not for these", "a first step"];
    assert_eq!(said, (1..=4).rev().zip(why).map(|(it, why)| (json!(it), Some(why.into()))).collect::<Vec<_>>());
    assert!(lines(&history).iter().all(|it| it["who"].as_str().is_some_and(|who| who.starts_with("me@"))));
    assert!(says(&house, &["history"]).await.contains("less to store"));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_change_is_said_and_nothing_changes() {
    let house = fleet(1, 4).await;
    says(&house, &["set", "max_parallelism=10", "--pool", "default", "--share", "99%", "--why", "a rule"]).await;
    for (arguments, why) in [
        (&["set", "max_parallelism=-1", "--why", "x"][..], "max_parallelism = -1 is not valid: use an integer from 0"),
        (&["set", "n=1", "--why", "x"], "there is no setting \"n\""),
        (&["set", "max_parallelism=5", "--why", "x"], "name a --pool, or add --everywhere"),
        (&["set", "max_parallelism=999", "--everywhere", "--why", "x"], "add --allow-jump"),
        (&["set", "max_parallelism=5", "--everywhere", "--why", " "], "--why is empty"),
        (&["rollback", "7", "--why", "x"], "the history has no revision 7, only 1 to 1"),
        (&["rollback", "--why", "x"], "nothing before the last change"),
        (&["diff"], "no two changes to compare"),
    ] {
        assert_failed(&run(&mut command(&house.redis.url(), arguments), "").await, &[why]);
    }
    let usage = run(&mut command(&house.redis.url(), &["set", "max_parallelism=5"]), "").await;
    assert_eq!(usage.status.code(), Some(2), "a change without a reason");
    assert_eq!(lines(&run(&mut command(&house.redis.url(), &["history", "--json"]), "").await).len(), 1);
    let mut nowhere = weir();
    nowhere.args(["settings", "history"]);
    assert_failed(&run(&mut nowhere, "").await, &["no document is configured: name a file"]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_a_worker_rejects_is_seen_not_to_have_arrived() {
    let house = fleet(1, 3).await;
    let (url, worker) = (house.redis.url(), house.worker(0).id().to_string());
    says(&house, &["set", "max_parallelism=3", "--why", "as it is"]).await;
    says(&house, &["status", "--watch"]).await;
    // By the start value at hand, which is 30, it would be none.
    let jump = ["set", "max_parallelism=200", "payload_sampling=0.4", "--why", "at once"];
    let refused = format!(
        "max_parallelism = 200 is a jump that 1 of 1 worker would refuse ({worker} has 3 and takes 30 at the most); raise it in \
         steps, or add --allow-jump"
    );
    assert_failed(&run(&mut command(&url, &jump), "").await, &[&refused]);

    // Another hand writes it all the same.
    let store = open(&redis_config(&house.redis));
    let before = store.read().await.expect("it is there");
    let document = flagd::document(&[("max_parallelism", json!(200)), ("payload_sampling", json!(0.4))]);
    let edit = Edit { document, who: "them".into(), why: "at once".into() };
    store.write(Some(&before), &edit).await.expect("written");
    let watched = run(&mut command(&url, &["status", "--watch"]), "").await;
    assert_eq!(watched.status.code(), Some(3), "{}", stderr(&watched));
    let address = house.worker_url(0);
    let ends = format!(
        "pool default: applied on 0 of 1 (1 rejects max_parallelism: {worker})\nwhy a value is rejected, and what holds in its \
         place: weir describe {address}\n"
    );
    assert!(stdout(&watched).ends_with(&ends), "{}", stdout(&watched));
    assert!(stdout(&watched).contains("routers: not counted"), "{}", stdout(&watched));
    let sampling = "weir_settings_payload_sampling_ratio";
    assert_eq!((house.load(0).target, house.worker_metric(0, sampling)), (3, 0.4), "the other value holds");

    let status = run(&mut command(&url, &["status", "--json"]), "").await;
    assert_eq!(status.status.code(), Some(3), "{}", stderr(&status));
    let said = &lines(&status)[0];
    assert_eq!((&said["workers"], &said["applied"], &said["behind"]), (&json!(1), &json!(0), &json!([])));
    assert_eq!((&said["document"]["revision"], &said["routers"]), (&json!(2), &Value::Null));
    let version = edit_version(&edit);
    let rejecting =
        json!([{"worker": worker, "address": address, "version": version, "keys": ["max_parallelism"], "more": 0}]);
    assert_eq!((&said["rejecting"], &said["document"]["version"]), (&rejecting, &json!(version)));
    let by_the_router = "weir_settings_rejected_total{key=\"max_parallelism\"}";
    eventually("the router has read it, too", || house.router_metric(by_the_router) == 1.0).await;
    for (address, role) in [(address, "worker"), (house.router_url(), "router")] {
        let described = run(weir().args(["describe", &address, "--json"]), "").await;
        let rejected = lines(&described)[0]["role"][role]["settings"]["rejected"].clone();
        assert_eq!((&rejected["version"], &rejected["values"][0]["key"]), (&json!(version), &json!("max_parallelism")));
        let described = run(weir().args(["describe", &address]), "").await;
        let shown = "  REJECTED          max_parallelism: 200 is more than 10 times 3; raise it in steps";
        assert!(stdout(&described).contains(shown), "{}", stdout(&described));
    }

    says(&house, &["set", "max_parallelism=200", "--allow-jump", "--why", "on purpose"]).await;
    let watched = says(&house, &["status", "--watch"]).await;
    assert!(watched.ends_with("pool default: applied on 1 of 1\n"), "{watched}");
    until_targets(&house, &[200]).await;
    house.close().await;
}

fn edit_version(edit: &Edit) -> String {
    store::version_of(edit.document.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_can_be_asked_a_raise_is_compared_with_the_document_and_that_is_said() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), flagd::document(&[("max_parallelism", json!(30))])).expect("written");
    let set = async |value: u32, url: Option<&str>| {
        let mut command = weir();
        command.args(["settings", "set", &format!("max_parallelism={value}"), "--why", "a test"]);
        command.env("WEIR_SETTINGS__FILE", file.path()).envs(url.map(|url| ("WEIR_REGISTRY__URL", url)));
        run(&mut command, "").await
    };
    for (value, url, why) in [
        (40, None, "registry.url is not set"),
        (50, Some("redis://127.0.0.1:1"), "the registry at 127.0.0.1:1 cannot be reached"),
    ] {
        let output = set(value, url).await;
        assert_ok(&output);
        let said = stderr(&output);
        assert!(
            said.starts_with(&format!("weir: whether workers refuse this as a jump is not known: {why}")),
            "{said}"
        );
    }
    let lower = set(20, None).await;
    assert_ok(&lower);
    assert_eq!(stderr(&lower), "", "that is never a jump");
    assert_failed(
        &set(999, None).await,
        &["max_parallelism = 999 is more than 10 times the 30 that it", "set 300 at the most", "--allow-jump"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_changed_by_the_same_commands() {
    let house = Plan { max_parallelism: 4, ..Plan::default() }.start().await;
    let (file, url) = (house.settings_file(0), house.redis.url());
    let settings = |arguments: &[&str]| {
        let mut command = command(&url, arguments);
        command.env("WEIR_SETTINGS__SOURCE", "file").env("WEIR_SETTINGS__FILE", &file);
        command
    };
    for (value, revision) in [("7", 1), ("9", 2)] {
        let set = format!("max_parallelism={value}");
        let output = run(&mut settings(&["set", &set, "--why", "a step"]), "").await;
        assert_ok(&output);
        assert_eq!(stdout(&output), format!("v{revision}: max_parallelism = {value} for all workers\n"));
        until_targets(&house, &[value.parse().expect("a number")]).await;
    }
    assert_ok(&run(&mut settings(&["rollback", "--why", "too much"]), "").await);
    until_targets(&house, &[7]).await;
    let status = run(&mut settings(&["status", "--watch"]), "").await;
    assert!(stdout(&status).ends_with("pool default: applied on 1 of 1\n"), "{}", stdout(&status));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_broken_by_hand_is_named_and_put_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let (file, kept) = (directory.path().join("settings.json"), directory.path().join("kept.json"));
    let settings = |arguments: &[&str]| {
        let mut command = weir();
        command.arg("settings").args(arguments).env("WEIR_SETTINGS__FILE", &file).env("USER", "me");
        command
    };
    std::fs::write(&file, "{\"flags\": {").expect("written");
    let (name, set) = (file.display().to_string(), ["set", "max_parallelism=9", "--why", "x"]);
    let broken = [name.as_str(), "the document is not JSON", "weir settings rollback"];
    assert_failed(&run(&mut settings(&set), "").await, &broken);
    let nothing = [name.as_str(), "is gone or broken, and its history is empty; --kept"];
    assert_failed(&run(&mut settings(&["rollback", "--why", "x"]), "").await, &nothing);
    let note = json!({"source": "file x", "version": "v", "values": {"max_parallelism": 7, "of_a_newer_weir": 1}});
    std::fs::write(&kept, note.to_string()).expect("written");
    let kept = kept.display().to_string();
    assert_ok(&run(&mut settings(&["rollback", "--kept", &kept, "--why", "broken by hand"]), "").await);
    assert_eq!(max_parallelism(&file), 7);

    assert_ok(&run(&mut settings(&set), "").await);
    let broken_again: [fn(&std::path::Path); 2] =
        [|file| std::fs::write(file, "{").expect("written"), |file| std::fs::remove_file(file).expect("removed")];
    for break_it in broken_again {
        break_it(&file);
        assert_ok(&run(&mut settings(&["rollback", "--why", "broken by hand"]), "").await);
        assert_eq!(max_parallelism(&file), 9, "what was set last, not what was before that");
    }
    assert_ok(&run(&mut settings(&["rollback", "2", "--why", "back"]), "").await);
    assert_eq!(max_parallelism(&file), 7);
}

fn max_parallelism(file: &std::path::Path) -> u64 {
    let document: Value = serde_json::from_slice(&std::fs::read(file).expect("there")).expect("JSON");
    assert_eq!(document["flags"].as_object().expect("flags").len(), 1, "{document}");
    let flag = &document["flags"]["max_parallelism"];
    flag["variants"][flag["defaultVariant"].as_str().expect("a name")].as_u64().expect("a number")
}

#[test]
fn a_worker_that_is_started_while_redis_is_away_has_its_last_good_settings() {
    let (mut redis, directory) = (RedisServer::start(), tempfile::tempdir().expect("a directory"));
    std::fs::write(directory.path().join("weir.toml"), CONFIGURATION).expect("written");
    let url = redis.url();
    let start = |name, arguments: &[&str]| {
        Process::start(name, directory.path(), &processes::weir(), arguments, &[("WEIR_REGISTRY__URL", &url)])
    };
    let mut worker = start("worker", &["worker"]);
    assert_eq!(worker.wait_for_log("the worker serves")["max_parallelism"], 30);
    let mut set = start("set", &["settings", "set", "max_parallelism=7", "--why", "a test"]);
    assert_eq!(set.exit_code(LONG), Some(0), "{}", set.log());
    let mut status = start("status", &["settings", "status", "--watch"]);
    assert_eq!(status.exit_code(LONG), Some(0), "{}", status.log());
    let kept = directory.path().join("state/settings-one.json");
    processes::wait_for("the settings are kept", LONG, || std::fs::read_to_string(&kept).ok());
    worker.stop();

    redis.kill();
    let mut worker = start("again", &["worker"]);
    assert_eq!(worker.wait_for_log("the worker serves")["max_parallelism"], 7);
    let said = "the settings' source is away, keeping what holds: ";
    processes::wait_for("it says that Redis is away", LONG, || worker.log().contains(said).then_some(()));
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_redis_lost_is_seen_to_be_lost_and_put_back() {
    let (redis, directory) = (RedisServer::start(), tempfile::tempdir().expect("a directory"));
    std::fs::write(directory.path().join("weir.toml"), CONFIGURATION).expect("written");
    let url = redis.url();
    let mut worker =
        Process::start("worker", directory.path(), &processes::weir(), &["worker"], &[("WEIR_REGISTRY__URL", &url)]);
    worker.wait_for_log("the worker serves");
    let says = async |arguments: &[&str]| {
        let output = run(&mut command(&url, arguments), "").await;
        assert_ok(&output);
        stdout(&output)
    };
    says(&["set", "max_parallelism=7", "--why", "a test"]).await;
    says(&["status", "--watch"]).await;
    let kept = directory.path().join("state/settings-one.json");
    eventually("the settings are kept", || kept.exists()).await;
    let version = serde_json::from_slice::<Value>(&std::fs::read(&kept).expect("readable")).expect("JSON")["version"]
        .as_str()
        .expect("a text")
        .to_owned();

    redis.flush();
    eventually("the worker is announced again", || redis.ask("ZCARD weir:{default}:members") == ":1\r\n").await;
    let status = says(&["status"]).await;
    let expected = format!(
        "redis {} weir:{{settings}}: no document\npool default: nothing to apply on 1 (1 on {version}: one)\nthe document \
         is gone, and workers go on",
        url.replace("redis://", "")
    );
    assert!(status.starts_with(&expected) && status.contains("weir settings rollback"), "{status}");
    let set = run(&mut command(&url, &["set", "payload_sampling=0.5", "--why", "unaware"]), "").await;
    let gone = ["there is no document, and 1 worker of pool default runs one that is gone", "set --new"];
    assert_failed(&set, &gone);
    let raise = ["raise", "max_parallelism", "--to", "9", "--pool", "elsewhere", "--why", "unaware"];
    assert_failed(&run(&mut command(&url, &raise), "").await, &gone);

    let file = kept.to_str().expect("UTF-8");
    let back = says(&["rollback", "--kept", file, "--why", "Redis came back empty"]).await;
    assert_eq!(back, format!("v1: the document {version} of {file}\n"));
    assert!(says(&["status", "--watch"]).await.ends_with("pool default: applied on 1 of 1\n"));
    assert!(says(&["history"]).await.contains("Redis came back empty"));
    says(&["set", "payload_sampling=0.5", "--why", "aware"]).await;

    // A document by hand is one to go back to, as one of weir's own.
    let by_hand = flagd::document(&[("max_parallelism", json!(5))]);
    let key = "weir:{settings}";
    let set = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{by_hand}", key.len(), by_hand.len());
    assert_eq!(redis.ask(&set), "+OK\r\n");
    says(&["set", "payload_sampling=0.25", "--why", "after it"]).await;
    assert!(says(&["history"]).await.contains("found: it was not written with weir"));
    says(&["rollback", "--why", "undo"]).await;
    assert!(redis.ask("GET weir:{settings}").contains(&by_hand), "what was there by hand is back");

    // And one that was deleted is put back from the history, not begun anew.
    redis.ask("DEL weir:{settings}");
    let set = run(&mut command(&url, &["set", "payload_sampling=0.5", "--why", "unaware"]), "").await;
    assert_failed(&set, &["there is no document, and there was one (v", "weir settings rollback", "set --new"]);
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_registry_the_status_says_what_the_file_holds_and_what_is_not_known() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), flagd::document(&[("max_parallelism", json!(7))])).expect("written");
    let status = async |url: Option<&str>| {
        let mut command = weir();
        command.args(["settings", "status"]).env("WEIR_SETTINGS__FILE", file.path());
        command.envs(url.map(|url| ("WEIR_REGISTRY__URL", url)));
        run(&mut command, "").await
    };
    let output = status(None).await;
    assert_failed(&output, &["registry.url is not set: which document workers run they say in their registry"]);
    assert!(stdout(&output).contains("set without weir"), "{}", stdout(&output));
    let output = status(Some("redis://127.0.0.1:1")).await;
    assert_failed(&output, &["which document workers run is not known", "127.0.0.1:1 cannot be reached"]);
    assert!(stdout(&output).contains("set without weir"), "{}", stdout(&output));
}

pub const CONFIGURATION: &str = r#"
log.format = "json"
settings.source = "redis"

[worker]
id = "one"
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
state_dir = "state"

[payloads]
store = "none"

[integrations.synthetic]
kind = "synthetic"
"#;

async fn write(store: &dyn Store, before: Option<&str>, value: u32) -> Result<(u64, String), WriteError> {
    let document = flagd::document(&[("max_parallelism", json!(value))]);
    let edit = Edit { document: document.clone(), who: "me".into(), why: format!("N = {value}") };
    Ok((store.write(before.map(str::as_bytes), &edit).await?, document))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_change_the_same_document_one_is_told() {
    let redis = RedisServer::start();
    let (one, other) = (open(&redis_config(&redis)), open(&redis_config(&redis)));
    assert_eq!(one.read().await, Err(ReadError::Missing));
    let (number, first) = write(&*one, None, 31).await.expect("written");
    assert_eq!(number, 1);
    assert_eq!(write(&*other, None, 32).await, Err(WriteError::Conflict));
    let (mine, theirs) = tokio::join!(write(&*one, Some(&first), 33), write(&*other, Some(&first), 34));
    assert!(mine.is_ok() != theirs.is_ok(), "{mine:?} {theirs:?}");
    assert_eq!(one.history().await.expect("readable").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_updates_in_a_row_end_with_the_last_and_the_history_has_an_end() {
    let redis = RedisServer::start();
    let (mut worker, store) = (Follower::start(&redis_config(&redis), "worker-1"), open(&redis_config(&redis)));
    let mut before: Option<String> = None;
    for value in 1..=1_100 {
        let (number, document) = write(&*store, before.as_deref(), value).await.expect("written");
        assert_eq!(number, u64::from(value));
        before = Some(document);
    }
    worker.becomes(1_100).await;
    let history = store.history().await.expect("readable");
    assert_eq!((history.len(), history[0].number, history[49].number), (50, 1_051, 1_100));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_dead_and_comes_back_empty_changes_nothing_until_somebody_writes() {
    let mut redis = RedisServer::start();
    let (mut worker, store) = (Follower::start(&redis_config(&redis), "worker-1"), open(&redis_config(&redis)));
    write(&*store, None, 31).await.expect("written");
    worker.becomes(31).await;
    redis.kill();
    eventually("it is seen", || worker.has("weir_settings_source_up 0")).await;
    assert!(matches!(store.read().await, Err(ReadError::Failed(_))));
    redis.start_again();
    eventually("that there is no document is seen", || worker.is_cut_off("it is not there")).await;
    assert_eq!(worker.now().max_parallelism, 31);
    write(&*open(&redis_config(&redis)), None, 32).await.expect("written");
    worker.becomes(32).await;
    assert!(worker.has("weir_settings_source_up 1"));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_set_by_hand_is_seen_and_a_bad_one_changes_nothing() {
    let redis = RedisServer::start();
    assert_eq!(redis.ask("SET weir:{settings} nonsense"), "+OK\r\n");
    let mut worker = Follower::start(&redis_config(&redis), "worker-1");
    eventually("it is rejected", || worker.has("weir_settings_rejected_total{key=\"document\"} 1")).await;
    let flag = json!({"state": "ENABLED", "variants": {"a": 33}, "defaultVariant": "a"});
    let by_hand: Value = json!({"flags": {"max_parallelism": flag}});
    assert_eq!(redis.ask(&format!("SET weir:{{settings}} '{by_hand}'")), "+OK\r\n");
    worker.becomes(33).await;

    // The first change with weir keeps what was there.
    let store = open(&redis_config(&redis));
    let (number, document) = write(&*store, Some(&by_hand.to_string()), 34).await.expect("written");
    worker.becomes(34).await;
    let history = store.history().await.expect("readable");
    let said: Vec<_> = history.iter().map(|it| (it.number, it.edit.who.as_str())).collect();
    assert_eq!((number, said), (2, vec![(1, "unknown"), (2, "me")]));
    assert_eq!([&history[0].edit.document, &history[1].edit.document], [&by_hand.to_string(), &document]);
    worker.stop().await;
}
