//! A router between two pools: a canary and back, tasks that wait while weights change, overflow, and what is said of each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir::client::{Submission, SubmitError};
use weir::lifecycle::Lifecycle;
use weir::task::Priority;
use weir::wire::Reason;

use crate::cli::{assert_failed, assert_ok, lines, run, stdout, weir};
use crate::support::house::{House, Plan, answer, eventually, held, synthetic};

/// A change takes effect within a second; at a bad moment of a busy machine, within five.
const WITHIN: Duration = Duration::from_secs(1);
const AT_WORST_WITHIN: Duration = Duration::from_secs(5);

/// Two workers: the first in the pool `single`, the second in `parallel`.
async fn two_pools(max_parallelism: u32) -> House {
    let mut house = Plan { workers: 0, max_parallelism, ..Plan::default() }.start().await;
    for pool in ["single", "parallel"] {
        house.add_worker_to(pool).await;
    }
    house
}

/// Sends everything to one of them, and waits until the router knows both.
async fn all_to(house: &House, pool: &str, overflow: Value) {
    let other = if pool == "single" { "parallel" } else { "single" };
    house.set_router(&[("pools", json!({pool: 1, other: 0})), ("pool_overflow", overflow)]).await;
    house.until_known(2).await;
}

fn noop(id: &str) -> Submission {
    synthetic(id, json!({"do": "noop"}))
}

fn overflowed(house: &House, reason: &str) -> f64 {
    house.router_metric(&format!("weir_router_overflowed_total{{reason=\"{reason}\"}}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_its_share_under_load_and_within_a_second_nothing_when_it_is_taken_back() {
    let house = two_pools(50).await;
    all_to(&house, "single", json!({})).await;
    let parallel = house.worker(1).id().clone();
    let (goes_on, lifecycle) = (Arc::new(AtomicBool::new(true)), Lifecycle::new());
    let callers: Vec<_> = (0..20)
        .map(|caller| {
            let (client, goes_on) = (house.client.clone(), goes_on.clone());
            lifecycle.spawn("caller", async move {
                let (mut ran, mut task) = (Vec::new(), 0);
                while goes_on.load(Ordering::Relaxed) {
                    task += 1;
                    let submission = synthetic(&format!("t-{caller}-{task}"), json!({"do": "sleep", "ms": 5}));
                    let sent = Instant::now();
                    let outcome = client.submit(&submission).await.expect("none is lost");
                    assert!(outcome.result.is_ok());
                    ran.push((sent, outcome.worker));
                }
                ran
            })
        })
        .collect();
    let outcomes = |pool: &str| house.router_metric(&format!("weir_router_outcomes_total{{pool=\"{pool}\"}}"));
    let more = async |pool: &str, than: f64| {
        let target = outcomes(pool) + than;
        eventually("tasks run", || outcomes(pool) >= target).await;
    };
    more("single", 100.0).await;
    assert_eq!(outcomes("parallel"), 0.0);

    let began = outcomes("single");
    house.set_router(&[("pools", json!({"single": 95, "parallel": 5}))]).await;
    more("parallel", 50.0).await;
    let share = outcomes("parallel") / (outcomes("parallel") + outcomes("single") - began);
    println!("5% were {:.1}%", share * 100.0);
    assert!((0.02..0.10).contains(&share), "{share}");

    // Taken back five times: when that was written, when the router said so of itself, and when it was raised again.
    let share = || house.router_metric("weir_router_pool_share_ratio{pool=\"parallel\"}");
    let mut taken_back = Vec::new();
    for _ in 0..5 {
        let written = Instant::now();
        house.set_router(&[("pools", json!({"single": 100, "parallel": 0}))]).await;
        eventually("it has no share", || share() == 0.0).await;
        let applied = Instant::now();
        more("single", 300.0).await;
        taken_back.push((written, applied, Instant::now()));
        house.set_router(&[("pools", json!({"single": 95, "parallel": 5}))]).await;
        more("parallel", 10.0).await;
    }
    goes_on.store(false, Ordering::Relaxed);
    let (mut all, mut there) = (0, Vec::new());
    for caller in callers {
        let ran = caller.await.expect("it was not aborted").expect("no panic");
        all += ran.len();
        there.extend(ran.into_iter().filter(|(_, worker)| *worker == parallel).map(|(sent, _)| sent));
    }
    println!("{} of {all} ran there", there.len());
    // Until the last one went there that was sent after it was written.
    let lasted = |(written, applied, raised): &(Instant, Instant, Instant)| {
        let sent = there.iter().filter(|sent| (*written..*raised).contains(*sent));
        assert_eq!(sent.clone().filter(|sent| *sent > applied).count(), 0, "sent after it was taken back");
        sent.map(|sent| *sent - *written).max().unwrap_or_default()
    };
    let mut lasted: Vec<_> = taken_back.iter().map(lasted).collect();
    lasted.sort_unstable();
    println!("it went on for {lasted:?} after it was taken back");
    assert!(lasted[2] < WITHIN && lasted[4] < AT_WORST_WITHIN, "{lasted:?}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_wait_follow_the_weights_and_a_tenant_stays_where_it_is() {
    let house = two_pools(1).await;
    all_to(&house, "parallel", json!({})).await;
    let first = house.submit(held("first"));
    house.until_in_flight(1, 1).await;
    let waiting: Vec<_> = (0..5).map(|n| house.submit(noop(&format!("waits-{n}")))).collect();
    house.until_waiting("batch", 5).await;
    assert_eq!(house.router_metric("weir_router_queue_tasks{pool=\"parallel\"}"), 5.0);
    house.set_router(&[("pools", json!({"single": 1, "parallel": 0}))]).await;
    for caller in waiting {
        assert_eq!(answer(caller).await.expect("an outcome").worker, *house.worker(0).id());
    }
    house.valve.open();
    answer(first).await.expect("an outcome");

    let half = json!({"single": 50, "parallel": 50});
    house.set_router(&[("pools", half), ("pool_sticky", json!("tenant"))]).await;
    let mut workers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for n in 0..100 {
        let tenant = format!("tenant-{}", n % 20);
        let task = Submission { tenant: tenant.parse().expect("a tenant"), ..noop(&format!("sticky-{n}")) };
        let worker = house.client.submit(&task).await.expect("an outcome").worker;
        workers.entry(tenant).or_default().insert(worker.to_string());
    }
    assert!(workers.values().all(|workers| workers.len() == 1), "{workers:?}");
    assert_eq!(workers.values().flatten().collect::<BTreeSet<_>>().len(), 2, "both pools have tenants");
    house.close().await;
}

async fn explain(house: &House, task: &str) -> Value {
    let at = house.router_address().to_string();
    lines(&run(weir().args(["explain", task, "--at", &at, "--json"]), "").await).remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_overflows_only_where_the_settings_say_so() {
    let house = two_pools(1).await;
    all_to(&house, "parallel", json!({})).await;
    let first = house.submit(held("first"));
    house.until_in_flight(1, 1).await;
    let waits = house.submit(noop("waits"));
    house.until_waiting("batch", 1).await;
    let explained = explain(&house, "waits").await;
    assert_eq!((&explained["pool"], &explained["held_by"]), (&json!("parallel"), &json!("slots")), "{explained}");
    assert_eq!(explain(&house, "first").await["pool"], "parallel");
    assert_eq!(overflowed(&house, "full"), 0.0);

    all_to(&house, "parallel", json!({"parallel": "single"})).await;
    let outcome = answer(waits).await.expect("an outcome");
    assert_eq!(outcome.worker, *house.worker(0).id());
    let outcome = house.client.submit(&noop("at-once")).await.expect("an outcome");
    assert_eq!(outcome.worker, *house.worker(0).id());
    assert_eq!((overflowed(&house, "full"), overflowed(&house, "no_workers")), (2.0, 0.0));

    let at = house.router_address().to_string();
    let output = run(weir().args(["describe", &at]), "").await;
    assert_ok(&output);
    let text = stdout(&output);
    for says in ["router in pool parallel\n", "settings, version ", "pool_overflow     {\"parallel\":\"single\"}"] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let row = text.lines().find(|line| line.trim_start().starts_with("parallel")).expect("a row");
    let columns: Vec<_> = row.split_whitespace().collect();
    assert_eq!(columns, ["parallel", "100.0%", "1", "1", "1", "0", "single", "serving"]);
    house.valve.open();
    answer(first).await.expect("an outcome");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_workers_is_named_and_is_followed_as_soon_as_it_has_some() {
    let mut house = two_pools(1).await;
    all_to(&house, "single", json!({})).await;
    house.set_router(&[("pools", json!({"paralell": 1}))]).await;
    let never_seen = || house.router_metric("weir_router_pool_state{pool=\"paralell\",state=\"never_seen\"}");
    eventually("nobody is there", || never_seen() == 1.0).await;
    let Err(SubmitError::NotStarted(error)) = house.client.submit(&noop("nowhere")).await else { panic!("no worker") };
    assert_eq!(error.reason, Reason::NoWorkers);
    for says in ["in pool \"paralell\", and never knew one there", "the setting pools", "the setting pool_overflow"] {
        assert!(error.message.contains(says), "{error}");
    }
    let to_single = ("pool_overflow", json!({"paralell": "single"}));
    house.set_router(&[("pools", json!({"paralell": 1})), to_single.clone()]).await;
    let outcome = house.client.submit(&noop("overflows")).await.expect("an outcome");
    assert_eq!(outcome.worker, *house.worker(0).id());
    assert_eq!((overflowed(&house, "full"), overflowed(&house, "no_workers")), (0.0, 1.0));

    let index = house.add_worker_to("paralell").await;
    let serving = || house.router_metric("weir_router_pool_state{pool=\"paralell\",state=\"serving\"}");
    eventually("it is followed", || serving() == 1.0).await;
    let outcome = house.client.submit(&noop("there")).await.expect("an outcome");
    assert_eq!(outcome.worker, *house.worker(index).id());
    assert_eq!(
        house.router_metric("weir_router_workers{pool=\"parallel\",state=\"known\"}"),
        0.0,
        "it is named no more"
    );
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_has_the_share_that_the_settings_say_at_that_moment() {
    let house = Plan { max_parallelism: 1, ..Plan::default() }.start().await;
    let work = |id: String, priority| Submission { priority, ..synthetic(&id, json!({"do": "sleep", "ms": 10})) };
    house.set_router(&[("batch_share", json!(0.0))]).await;
    let people: Vec<_> = (0..300).map(|n| house.submit(work(format!("person-{n}"), Priority::Interactive))).collect();
    let waiting = |priority: &str| house.router_metric(&format!("weir_router_queue_tasks{{priority=\"{priority}\"}}"));
    eventually("people wait", || waiting("interactive") > 200.0).await;
    let batch: Vec<_> = (0..5).map(|n| house.submit(work(format!("batch-{n}"), Priority::Batch))).collect();
    house.until_waiting("batch", 5).await;
    let before = waiting("interactive");
    eventually("people go first", || waiting("interactive") <= before - 50.0).await;
    assert_eq!(waiting("batch"), 5.0, "with a share of 0");

    house.set_router(&[("batch_share", json!(0.9))]).await;
    for caller in batch {
        answer(caller).await.expect("an outcome");
    }
    assert!(waiting("interactive") > 50.0, "batch did not wait for all people: {} still wait", waiting("interactive"));
    for caller in people {
        answer(caller).await.expect("an outcome");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_value_keeps_the_last_good_one_and_a_new_router_starts_with_that() {
    let mut house = two_pools(4).await;
    all_to(&house, "parallel", json!({})).await;
    let parallel = house.worker(1).id().clone();
    let runs_there =
        async |house: &House, id: &str| house.client.submit(&noop(id)).await.expect("an outcome").worker == parallel;
    let before = house.router_metric("weir_settings_rejected_total{key=\"pools\"}");
    house.set_router(&[("pools", json!({"parallel": -1})), ("batch_share", json!(0.5))]).await;
    assert_eq!(house.router_metric("weir_settings_rejected_total{key=\"pools\"}"), before + 1.0);
    assert!(runs_there(&house, "after-a-bad-value").await);
    for says in [json!({"parallel": 0}), json!(["parallel"])] {
        std::fs::write(house.router_settings_file(), weir::settings::flagd::document(&[("pools", says)]))
            .expect("written");
    }
    eventually("they are refused", || {
        house.router_metric("weir_settings_rejected_total{key=\"pools\"}") > before + 1.0
    })
    .await;
    assert!(runs_there(&house, "after-worse").await);
    assert!(house.router_metric("weir_settings_version") > 0.0);

    // The first router had no port of its own, and kept nothing; the second has one.
    house.set_router(&[("pools", json!({"parallel": 1}))]).await;
    house.restart_router().await;
    std::fs::remove_file(house.router_settings_file()).expect("removed");
    house.restart_router().await;
    eventually("it is known", || house.router_metric("weir_router_workers{pool=\"parallel\",state=\"known\"}") == 1.0)
        .await;
    assert_eq!(house.router_metric("weir_settings_source_up"), 0.0);
    assert!(runs_there(&house, "with-what-was-kept").await);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_sets_what_is_the_routers() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("settings.json");
    let set = async |arguments: &[&str]| {
        let mut command = weir();
        command.args(["settings", "set"]).args(arguments).args(["--why", "a test"]);
        run(command.env("WEIR_SETTINGS__FILE", &file), "").await
    };
    let output = set(&[r#"pools={"single": 95, "parallel": 5}"#, "batch_share=0.2"]).await;
    assert_ok(&output);
    assert_eq!(stdout(&output), "v1: pools = {\"single\":95,\"parallel\":5}, batch_share = 0.2 for all routers\n");
    let output = set(&["batch_share=0.3", "max_parallelism=10"]).await;
    assert!(stdout(&output).ends_with(" for all workers and routers\n"), "{}", stdout(&output));
    assert_failed(&set(&["batch_share=0.4", "--pool", "single"]).await, &["leave --pool and --share out"]);
    assert_failed(&set(&["pools={\"single\": 0}"]).await, &["give at least one a weight above 0"]);
    assert_failed(&set(&["pool_sticky=user"]).await, &["use \"tenant\" or \"task\""]);
}
