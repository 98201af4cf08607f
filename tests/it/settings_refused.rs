//! What people are told of settings that do not arrive: the source is away, the document is none, nobody knows a name in it.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use weir::settings::store::{self, MAX_DOCUMENT_BYTES};
use weir::settings::{Source, flagd};

use crate::cli::{assert_failed, assert_ok, lines, run, stderr, stdout, weir};
use crate::fleet_settings::command;
use crate::support::house::{House, LONG, Plan, eventually};
use crate::support::processes::{self, Process};
use crate::support::redis::RedisServer;

const KEY: &str = "weir:{settings}";

async fn house(workers: usize) -> House {
    Plan { workers, max_parallelism: 3, settings: Source::Redis, ..Plan::default() }.start().await
}

async fn described(address: &str, role: &str) -> (Value, String) {
    let json = run(weir().args(["describe", address, "--json"]), "").await;
    let text = run(weir().args(["describe", address]), "").await;
    (lines(&json)[0]["role"][role]["settings"].clone(), stdout(&text))
}

/// Puts a document there as somebody would by hand.
pub fn by_hand(redis: &RedisServer, document: &str) {
    let set = format!("*3\r\n$3\r\nSET\r\n${}\r\n{KEY}\r\n${}\r\n{document}", KEY.len(), document.len());
    assert_eq!(redis.ask(&set), "+OK\r\n");
}

/// Somebody who watches what arrives.
fn watch(redis: &RedisServer, directory: &Path, more: &[&str]) -> Process {
    let url = redis.url();
    let variables = [("WEIR_REGISTRY__URL", &*url), ("WEIR_SETTINGS__SOURCE", "redis")];
    let arguments = [&["settings", "status", "--watch"], more].concat();
    Process::start("watch", directory, &processes::weir(), &arguments, &variables)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_away_is_in_the_description_of_workers_and_routers() {
    let mut house = house(1).await;
    let name = format!("redis {} {KEY}", house.redis.url().replace("redis://", ""));
    let processes = [(house.worker_url(0), "worker"), (house.router_url(), "router")];
    for (address, role) in &processes {
        let (settings, text) = described(address, role).await;
        let source = &settings["source"];
        assert_eq!((&source["name"], &source["reachable"], &source["why"]), (&json!(name), &json!(true), &Value::Null));
        assert!(source["last_read_seconds"].as_f64().is_some_and(|age| age < 10.0), "{source}");
        assert!(text.contains(&format!("  source            {name}, read ")), "{text}");
    }
    house.redis.kill();
    let up = "weir_settings_source_up";
    eventually("that it is away is seen", || house.worker_metric(0, up) + house.router_metric(up) == 0.0).await;
    for (address, role) in &processes {
        let began = Instant::now();
        // Between the two answers it may have been tried again, with another error.
        let (settings, text) = loop {
            let (settings, text) = described(address, role).await;
            let why = settings["source"]["why"].as_str().expect("a reason");
            if text.contains(&format!(": {why}; ")) {
                break (settings, text);
            }
            assert!(began.elapsed() < LONG, "{settings}\n{text}");
        };
        let source = &settings["source"];
        assert_eq!((&settings["version"], &source["reachable"]), (&json!("start"), &json!(false)));
        let why = source["why"].as_str().expect("a reason");
        assert!(source["since_seconds"].as_f64() <= source["last_read_seconds"].as_f64(), "{source}");
        let away = text.lines().find(|line| line.starts_with("  SOURCE AWAY       redis ")).expect("it is said aloud");
        assert!(
            away.ends_with(&format!(": {why}; what held before holds on")) && away.contains(", last read "),
            "{away}"
        );
    }
    house.redis.start_again();
    eventually("it is back", || house.worker_metric(0, up) + house.router_metric(up) == 2.0).await;
    for (address, role) in &processes {
        assert_eq!(described(address, role).await.0["source"]["reachable"], true);
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_none_is_seen_to_be_refused_and_is_put_back() {
    let house = house(1).await;
    let (url, worker) = (house.redis.url(), house.worker_url(0));
    assert_ok(&run(&mut command(&url, &["set", "max_parallelism=7", "--why", "good"]), "").await);
    assert_ok(&run(&mut command(&url, &["status", "--watch"]), "").await);
    let good = flagd::document(&[("max_parallelism", json!(9))]);
    let large = format!("{good}{}", " ".repeat(MAX_DOCUMENT_BYTES));
    let twice = good.replace("\"variants\"", "\"state\": \"ENABLED\",\n\"variants\"");
    let (read, too_large) =
        (&large.as_bytes()[..=MAX_DOCUMENT_BYTES], "has more than 1048576 bytes, which is the most");
    let has_twice =
        "has the key \"state\" twice in \"flags.max_parallelism\", the second time at line 6 column 13; keep one";
    for (document, version, why) in
        [(&large, store::version_of(read), too_large), (&twice, store::version_of(twice.as_bytes()), has_twice)]
    {
        by_hand(&house.redis, document);
        let watched = run(&mut command(&url, &["status", "--watch"]), "").await;
        assert_eq!(watched.status.code(), Some(3), "{}{}", stdout(&watched), stderr(&watched));
        let said = stdout(&watched);
        for part in [&format!("{version}, set without weir; NOBODY TAKES IT: it {why}"), "(1 rejects the document: "] {
            assert!(said.contains(part), "{part:?} is missing in {said}");
        }
        let (settings, text) = described(&worker, "worker").await;
        let rejected = &settings["rejected"];
        assert_eq!((&rejected["version"], &rejected["values"][0]["key"]), (&json!(version), &json!("document")));
        assert!(text.contains(&format!("  REJECTED          document: it {why}")), "{text}");
        assert_eq!((&settings["source"]["reachable"], house.load(0).target), (&json!(true), 7), "what held holds");

        let set = run(&mut command(&url, &["set", "max_parallelism=8", "--why", "unaware"]), "").await;
        assert_failed(&set, &[&format!("the document {why}"), "weir settings rollback"]);
        assert_ok(&run(&mut command(&url, &["rollback", "--why", "it is none"]), "").await);
        assert_ok(&run(&mut command(&url, &["status", "--watch"]), "").await);
        assert_eq!(described(&worker, "worker").await.0["rejected"], Value::Null);
    }
    // The one that was broken is in the history, and is not gone back to.
    let broken = run(&mut command(&url, &["rollback", "3", "--why", "unaware"]), "").await;
    assert_failed(&broken, &[&format!("nobody would take the document of v3: it {has_twice}")]);
    let diff = run(&mut command(&url, &["diff", "2", "3"]), "").await;
    assert_failed(&diff, &[&format!("v3: the document {has_twice}")]);
    assert_ok(&run(&mut command(&url, &["set", "max_parallelism=8", "--why", "good"]), "").await);
    let back = run(&mut command(&url, &["rollback", "--why", "not that"]), "").await;
    assert_eq!(stdout(&back), "v6: the document of v4\n", "{}", stderr(&back));
    let back = run(&mut command(&url, &["rollback", "--why", "nor that"]), "").await;
    assert_eq!(stdout(&back), "v7: the document of v5\n", "{}", stderr(&back));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_makes_a_document_too_large_or_says_a_thing_twice_is_not_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("settings.json");
    let named: serde_json::Map<_, _> = (0..40_000).map(|n| (format!("tenant-{n:020}"), json!(1))).collect();
    std::fs::write(&file, flagd::document(&[("tenant_caps", named.into())])).expect("written");
    let before = std::fs::read(&file).expect("readable");
    let set = async |value: &str| {
        let mut command = weir();
        command.args(["settings", "set", value, "--why", "a test"]).env("WEIR_SETTINGS__FILE", &file);
        run(&mut command, "").await
    };
    assert!(before.len() > MAX_DOCUMENT_BYTES, "{}", before.len());
    assert_failed(
        &set("log_level=debug").await,
        &["the document has ", "and may have at most 1048576; make it smaller"],
    );
    assert_eq!(std::fs::read(&file).expect("readable"), before);

    // Good as it is, and larger once it is written again: nothing is written.
    let notes: Vec<_> = (0..50_000).map(|_| json!({"a": 1})).collect();
    let dense = json!({"flags": {}, "notes": notes}).to_string();
    std::fs::write(&file, &dense).expect("written");
    assert!(dense.len() < MAX_DOCUMENT_BYTES, "{}", dense.len());
    assert_failed(&set("log_level=debug").await, &["nothing was written: the document has 1", "at most 1048576"]);
    assert_eq!(std::fs::read(&file).expect("readable"), dense.as_bytes());

    let twice = set("integration_caps={\"bank\": 5, \"bank\": 6}").await;
    assert_eq!(twice.status.code(), Some(2));
    let why = "the value has the key \"bank\" twice, the second time at line 1 column 18; keep one of them";
    assert!(stderr(&twice).contains(why), "{}", stderr(&twice));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_no_worker_knows_are_taken_and_told() {
    let house = house(1).await;
    let set = async |values: &[&str]| {
        let arguments = [&["set"], values, &["--why", "a test"]].concat();
        let output = run(&mut command(&house.redis.url(), &arguments), "").await;
        assert_ok(&output);
        stderr(&output)
    };
    assert_eq!(
        set(&["integration_caps={\"bank\": 5}", "payload_sampling={\"*\": 1, \"synthetic\": 0.5}"]).await,
        "weir: there is no document: listening for 4s 500ms for workers that run one that is gone\n"
    );
    assert_eq!(
        set(&["integration_caps={\"bnak\": 5}", "pools={\"default\": 9, \"paralel\": 1}"]).await,
        "weir: no worker serves the pool \"paralel\" of pools now: its share waits in the routers until one does\n\
         weir: no worker that this is for serves \"bnak\" of integration_caps: there is no integration of this name; \"bank\" is \
         near\n"
    );
    assert_ok(&run(&mut command(&house.redis.url(), &["status", "--watch"]), "").await);
    let (settings, text) = described(&house.worker_url(0), "worker").await;
    assert_eq!((&settings["unserved"], &settings["rejected"]), (&json!(["integration_caps: bnak"]), &Value::Null));
    assert!(text.contains("  NOT SERVED HERE   integration_caps: bnak\n"), "{text}");
    set(&["pools={\"default\": 1}"]).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_edit_by_hand_a_rollback_leads_to_the_last_change_and_to_nothing_that_is_refused() {
    let house = house(1).await;
    let settings = async |arguments: &[&str]| run(&mut command(&house.redis.url(), arguments), "").await;
    let rollback = async || stdout(&settings(&["rollback", "--why", "a test"]).await);
    for n in ["4", "5"] {
        assert_ok(&settings(&["set", &format!("max_parallelism={n}"), "--why", "a test"]).await);
    }
    by_hand(&house.redis, &flagd::document(&[("max_parallelism", json!(17))]));
    assert_eq!(rollback().await, "v4: the document of v2\n");
    by_hand(&house.redis, &flagd::document(&[("max_parallelism", json!("x"))]));
    assert_eq!(rollback().await, "v6: the document of v4\n");
    assert_eq!(rollback().await, "v7: the document of v3\n", "what was refused is gone past");
    let named = settings(&["rollback", "5", "--why", "a test"]).await;
    let reason = "the document of v5, which was set by hand, is not put back: it has values that workers refuse: \
                  max_parallelism: \"x\" is not valid";
    assert_failed(&named, &[reason]);
    assert!(!stderr(&named).contains("keeping"), "what workers keep is not known: {}", stderr(&named));

    // Bytes that are no text.
    let lua = format!("return redis.call('SET', '{KEY}', '{{\"flags\": {{}}, \"a\": \"\\233\"}}')");
    let eval = format!("*3\r\n$4\r\nEVAL\r\n${}\r\n{lua}\r\n$1\r\n0\r\n", lua.len());
    assert_eq!(house.redis.ask(&eval), "+OK\r\n");
    assert_eq!(rollback().await, "v9: the document of v7\n");
    let history = settings(&["history"]).await;
    assert_ok(&history);
    assert!(stdout(&history).contains("not written with weir"), "{}", stdout(&history));
    let broken = settings(&["rollback", "8", "--why", "a test"]).await;
    assert_failed(&broken, &["nobody would take the document of v8: it is not UTF-8"]);
    house.close().await;
}

#[test]
fn a_watch_says_at_once_what_it_waits_for() {
    let (redis, directory) = (RedisServer::start(), tempfile::tempdir().expect("a directory"));
    for json in [&[][..], &["--json"]] {
        let mut watch = watch(&redis, directory.path(), json);
        let expected = "weir: waiting for a worker of pool default to read a document, and there is none now\n";
        processes::wait_for("it says so", Duration::from_secs(10), || (watch.log() == expected).then_some(()));
        watch.signal(Signal::INT);
        assert_eq!(watch.exit_code(LONG), Some(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_nobody_a_way_back_that_jumps_and_a_refusal_that_stands_are_told() {
    let house = house(2).await;
    let settings = async |arguments: &[&str]| run(&mut command(&house.redis.url(), arguments), "").await;
    let set = async |arguments: &[&str]| {
        let output = settings(&[&["set"], arguments, &["--why", "a test"]].concat()).await;
        assert_ok(&output);
        assert_ok(&settings(&["status", "--watch"]).await);
        stderr(&output)
    };
    let nobody = set(&["max_parallelism=4", "--pool", "default", "--share", "0.01%"]).await;
    let expected =
        "weir: none of 2 workers is in the 0.01% that max_parallelism = 4 is for: a larger --share reaches some\n";
    assert!(nobody.ends_with(expected), "{nobody}");

    // v2 was allowed to jump; that is no word for a jump back to it.
    set(&["max_parallelism=40", "--everywhere", "--allow-jump"]).await;
    assert_eq!(set(&["max_parallelism=3", "--everywhere"]).await, "");
    let back = settings(&["rollback", "2", "--why", "a test"]).await;
    assert_failed(&back, &["max_parallelism = 40 is a jump that 2 of 2 workers would refuse", "add --allow-jump"]);
    assert_ok(&settings(&["rollback", "2", "--allow-jump", "--why", "a test"]).await);
    assert_ok(&settings(&["status", "--watch"]).await);
    let says_so =
        async || lines(&settings(&["history", "--json"]).await)[0]["document"].to_string().contains("allow_jump");
    assert!(says_so().await);
    set(&["max_parallelism=39", "--everywhere"]).await;
    assert_ok(&settings(&["rollback", "2", "--why", "a test"]).await);
    assert!(!says_so().await, "the word counts for one change");
    assert_ok(&settings(&["status", "--watch"]).await);

    by_hand(&house.redis, &flagd::document(&[("max_parallelism", json!(4_000))]));
    assert_eq!(settings(&["status", "--watch"]).await.status.code(), Some(3), "workers reject it");
    let beside = settings(&["set", "batch_share=0.2", "--why", "a test"]).await;
    let stands = "weir: max_parallelism of the document is refused still, by 2 workers: weir settings status\n";
    assert_eq!((stderr(&beside).as_str(), beside.status.code()), (stands, Some(0)));
    house.close().await;
}

#[test]
fn a_watch_goes_on_when_the_source_is_away_for_a_moment() {
    let (redis, directory) = (RedisServer::start(), tempfile::tempdir().expect("a directory"));
    let mut watch = watch(&redis, directory.path(), &[]);
    let says = |watch: &Process, what: &str| {
        processes::wait_for(what, LONG, || (watch.log() + &watch.out()).contains(what).then_some(()));
    };
    says(&watch, "waiting for a worker of pool default");
    redis.pause();
    says(&watch, "; trying again\n");
    redis.resume();
    by_hand(&redis, &flagd::document(&[("max_parallelism", json!(4))]));
    says(&watch, "set without weir");
    watch.signal(Signal::INT);
    assert_eq!(watch.exit_code(LONG), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_all_says_what_is_one_and_what_to_do_instead() {
    for (arguments, instead) in [
        (&["set", "max_parallelism=9", "--why", "x"][..], "for all of them, leave --share out"),
        (&["raise", "max_parallelism", "--to", "9"], "the others are what they are compared with"),
    ] {
        let output = run(weir().arg("settings").args(arguments).args(["--share", "100%"]), "").await;
        assert_eq!(output.status.code(), Some(2));
        let why = format!("\"100%\" is no share of the workers: use 0.01% to 99.99%, such as \"5%\"; {instead}");
        assert!(stderr(&output).contains(&why), "{}", stderr(&output));
    }
}
