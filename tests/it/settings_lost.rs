//! What must not be lost or refused unseen: a document that is gone while workers of any pool run it, and values that they
//! would not take.

use serde_json::json;
use weir::settings::store::Edit;
use weir::settings::{Source, flagd};

use crate::cli::{assert_failed, assert_ok, run, stderr, stdout};
use crate::fleet_settings::{CONFIGURATION, command};
use crate::support::house::{Plan, eventually};
use crate::support::place::{open, redis_config};
use crate::support::processes::{self, Process};
use crate::support::redis::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_every_pool_are_asked_and_those_that_a_redis_does_not_know_yet() {
    let (redis, directory) = (RedisServer::start(), tempfile::tempdir().expect("a directory"));
    std::fs::write(directory.path().join("weir.toml"), CONFIGURATION).expect("written");
    let url = redis.url();
    let variables = [("WEIR_REGISTRY__URL", url.as_str()), ("WEIR_WORKER__POOL", "parallel")];
    let mut worker = Process::start("worker", directory.path(), &processes::weir(), &["worker"], &variables);
    worker.wait_for_log("the worker serves");
    let settings = async |arguments: &[&str]| run(&mut command(&url, arguments), "").await;
    assert_ok(&settings(&["set", "max_parallelism=7", "--why", "a test"]).await);
    assert_ok(&settings(&["status", "--watch", "--pool", "parallel"]).await);
    let kept = directory.path().join("state/settings-one.json");
    eventually("the settings are kept", || kept.exists()).await;

    let jump = settings(&["set", "max_parallelism=999", "--why", "a jump"]).await;
    assert_failed(&jump, &["a jump that 1 of 1 worker would refuse (one has 7 and takes 300 at the most)"]);
    let unknown = settings(&["set", "integration_caps={\"synthetik\": 5}", "--why", "a slip"]).await;
    assert!(stderr(&unknown).contains("\"synthetic\" is near"), "{}", stderr(&unknown));

    // Nobody is in the registry yet.
    redis.flush();
    for of in [&[][..], &["--pool", "elsewhere"]] {
        let set = settings(&[&["set", "payload_sampling=0.5", "--why", "unaware"], of].concat()).await;
        assert_failed(
            &set,
            &["there is no document, and 1 worker of pool parallel runs one that is gone", "set --new"],
        );
    }
    let file = kept.to_str().expect("UTF-8");
    assert_ok(&settings(&["rollback", "--kept", file, "--why", "Redis came back empty"]).await);
    let elsewhere = directory.path().join("elsewhere.json");
    let mut other = command(&url, &["rollback", "--kept", file, "--why", "a mistake"]);
    other.env("WEIR_SETTINGS__SOURCE", "file").env("WEIR_SETTINGS__FILE", &elsewhere);
    let other = run(&mut other, "").await;
    assert_ok(&other);
    let said = stderr(&other);
    assert!(said.contains("weir: it was kept of redis ") && said.contains("/elsewhere.json now\n"), "{said}");
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_workers_would_refuse_is_not_put_back_and_one_that_they_refuse_is_told() {
    let house = Plan { workers: 1, max_parallelism: 3, settings: Source::Redis, ..Plan::default() }.start().await;
    let (url, worker) = (house.redis.url(), house.worker(0).id().to_string());
    let settings = async |arguments: &[&str]| run(&mut command(&url, arguments), "").await;
    for n in [30, 300, 3] {
        assert_ok(&settings(&["set", &format!("max_parallelism={n}"), "--why", "a step"]).await);
        assert_ok(&settings(&["status", "--watch"]).await);
    }
    let back = ["rollback", "2", "--why", "as it was"];
    let refused = format!(
        "max_parallelism = 300 is a jump that 1 of 1 worker would refuse ({worker} has 3 and takes 30 at the most); raise it in \
         steps, or add --allow-jump"
    );
    assert_failed(&settings(&back).await, &[&refused]);
    let allowed = settings(&[&back[..], &["--allow-jump"]].concat()).await;
    assert_eq!(stdout(&allowed), "v4: the document of v2\n", "{}", stderr(&allowed));
    eventually("it is put back", || house.load(0).target == 300).await;

    assert_ok(&settings(&["set", "max_parallelism=3", "--why", "low"]).await);
    assert_ok(&settings(&["status", "--watch"]).await);
    // Another hand writes a jump.
    let store = open(&redis_config(&house.redis));
    let before = store.read().await.expect("it is there");
    let document = flagd::document(&[("max_parallelism", json!(200))]);
    let edit = Edit { document, who: "them".into(), why: "at once".into() };
    store.write(Some(&before), &edit).await.expect("written");
    assert_eq!(settings(&["status", "--watch"]).await.status.code(), Some(3));
    let again = settings(&["set", "max_parallelism=200", "--why", "once more"]).await;
    let told =
        format!("nothing changes: it is set already, but 1 of 1 worker reject it ({worker}). Why: weir describe http");
    assert_failed(&again, &[&told, "add --allow-jump"]);
    assert_ok(&settings(&["set", "max_parallelism=200", "--allow-jump", "--why", "on purpose"]).await);
    eventually("it is forced", || house.load(0).target == 200).await;
    house.close().await;
}
