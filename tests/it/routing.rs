//! The router's queue over real workers: who is next, what holds a task, and who is told so.

use std::time::Duration;

use serde_json::{Value, json};
use weir::client::{Submission, SubmitError};
use weir::task::{Priority, Tenant};
use weir::wire::{Reason, TaskError};

use crate::cli::{assert_ok, lines, run, stdout, weir};
use crate::support::house::{House, Plan, answer, eventually, held, synthetic};

fn tenant(name: &str) -> Tenant {
    name.parse().expect("a tenant")
}

async fn applied(house: &House, flags: &[(&str, Value)]) {
    let before = house.worker_metric(0, "weir_settings_applied_total");
    house.set(0, flags);
    eventually("it applies", || house.worker_metric(0, "weir_settings_applied_total") > before).await;
}

fn refused_calls(house: &House) -> f64 {
    house.router_metric("weir_router_attempts_total{result=\"refused\"}")
}

/// The error of a task that has not started.
async fn not_started(house: &House, submission: Submission) -> TaskError {
    match house.client.submit(&submission).await {
        Err(SubmitError::NotStarted(error)) => error,
        other => panic!("it cannot have started: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_at_its_cap_holds_up_nobody_and_costs_few_refused_calls() {
    let house = Plan { max_parallelism: 10, ..Plan::default() }.start().await;
    applied(&house, &[("max_parallelism", json!(10)), ("tenant_caps", json!({"greedy": 2}))]).await;
    let greedy = |n: usize| Submission { tenant: tenant("greedy"), ..held(&format!("greedy-{n}")) };
    let callers: Vec<_> = (0..100).map(|n| house.submit(greedy(n))).collect();
    eventually("two of them run, and the others wait", || {
        house.load(0).in_flight == 2 && house.router_metric("weir_router_queue_tasks{priority=\"batch\"}") == 98.0
    })
    .await;
    // Its first tasks found out, eight at most; and eight more, since a router forgets a worker's caps when it hears that
    // the worker has other settings.
    let before = refused_calls(&house);
    assert!(before <= 20.0, "{before}");

    for n in 0..50 {
        let other = Submission { tenant: tenant("other"), ..synthetic(&format!("other-{n}"), json!({"do": "noop"})) };
        house.client.submit(&other).await.expect("an outcome");
    }
    assert_eq!(house.load(0).in_flight, 2, "none of the greedy one's was let in");

    house.valve.open();
    for caller in callers {
        assert!(answer(caller).await.expect("an outcome").result.is_ok());
    }
    let refused = refused_calls(&house);
    assert!(refused <= before + 20.0, "ninety-eight more tasks: {refused}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_of_a_tenant_and_of_an_integration_are_kept_to_without_asking_in_vain() {
    let mut took = Vec::new();
    for (target, setting, caps) in [
        // What the caps come to, without any.
        (5, "integration_caps", json!({})),
        (20, "tenant_caps", json!({"*": 5})),
        (20, "integration_caps", json!({"synthetic": 5})),
    ] {
        let house = Plan { max_parallelism: 20, ..Plan::default() }.start().await;
        applied(&house, &[("max_parallelism", json!(target)), (setting, caps)]).await;
        eventually("the gate has it", || house.load(0).target == target).await;
        let began = std::time::Instant::now();
        let task = |n: usize| synthetic(&format!("t-{n}"), json!({"do": "sleep", "ms": 50}));
        let callers: Vec<_> = (0..300).map(|n| house.submit(task(n))).collect();
        for caller in callers {
            assert!(answer(caller).await.expect("an outcome").result.is_ok());
        }
        let refused = refused_calls(&house);
        took.push(began.elapsed().as_secs_f64());
        println!("{setting}, N = {target}: {refused} refused calls, {took:?} s where 3.0 s is the least");
        assert!(refused <= 60.0, "{setting}: {refused} refused calls for 300 tasks");
        house.close().await;
    }
    assert!(took[1..].iter().all(|capped| *capped < took[0] * 3.0), "about as fast as with N = 5: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_tasks_beside_two_thousand_of_a_tenant_at_its_cap_take_no_longer_than_alone() {
    let house = Plan { max_parallelism: 20, queue_tasks: 10_000, ..Plan::default() }.start().await;
    applied(&house, &[("max_parallelism", json!(20)), ("tenant_caps", json!({"greedy": 2}))]).await;
    let other = async |batch: &str| {
        let began = std::time::Instant::now();
        let task = |n: usize| {
            let task = synthetic(&format!("{batch}-{n}"), json!({"do": "sleep", "ms": 100}));
            house.submit(Submission { tenant: tenant(&format!("t-{}", n % 10)), ..task })
        };
        let callers: Vec<_> = (0..100).map(task).collect();
        for caller in callers {
            assert!(answer(caller).await.expect("an outcome").result.is_ok());
        }
        began.elapsed().as_secs_f64()
    };
    let alone = other("alone").await;
    let greedy: Vec<_> = (0..2_000)
        .map(|n| {
            // Time enough that none is turned away for its estimated wait, however slow the machine.
            let timeout = Duration::from_secs(600);
            house.submit(Submission { tenant: tenant("greedy"), timeout, ..held(&format!("greedy-{n}")) })
        })
        .collect();
    house.until_waiting("batch", 1_998).await;
    let beside = other("beside").await;
    println!("alone {alone:.2} s, beside {beside:.2} s, {} refused calls", refused_calls(&house));
    assert!(beside < alone * 5.0, "alone {alone:.2} s, beside {beside:.2} s");
    greedy.iter().for_each(|caller| caller.abort());
    house.valve.open();
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_is_closed_is_named() {
    let house = House::start().await;
    let brief = |id: &str| Submission { timeout: Duration::from_millis(300), ..synthetic(id, json!({"do": "noop"})) };
    for (number, (setting, value, target, says)) in [
        ("max_parallelism", json!(0), 0, "taking nothing (max_parallelism is 0)"),
        ("integration_caps", json!({"synthetic": 0}), 4, "integration_caps"),
        ("tenant_caps", json!({"default": 0}), 4, "its cap in tenant_caps is 0"),
        ("interactive_reserve", json!(1.0), 4, "interactive_reserve"),
    ]
    .into_iter()
    .enumerate()
    {
        let parallelism = if setting == "max_parallelism" { value.clone() } else { json!(4) };
        applied(&house, &[("max_parallelism", parallelism), (setting, value)]).await;
        eventually("the gate has it", || house.load(0).target == target).await;
        // The registry says so to the router a moment later; a call that comes before is refused by the worker.
        let mut told = String::new();
        for attempt in 0..20 {
            let error = not_started(&house, brief(&format!("t-{number}-{attempt}"))).await;
            assert_eq!(error.reason, Reason::DeadlineTooShort, "{error}");
            assert!(!error.message.contains("timeout is zero"), "{error}");
            told = error.message;
            if told.contains(says) {
                break;
            }
        }
        assert!(told.contains("no worker had room") && told.contains(says), "{says}: {told}");
    }
    house.close().await;
}

async fn explain(house: &House, task: &str) -> Value {
    let at = house.router_address().to_string();
    let output = run(weir().args(["explain", task, "--at", &at, "--json"]), "").await;
    lines(&output).remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_task_is_can_be_asked_and_what_holds_it() {
    let house = Plan { max_parallelism: 1, queue_tasks: 1, ..Plan::default() }.start().await;
    let runs = house.submit(held("runs"));
    house.until_in_flight(0, 1).await;
    let waits = house.submit(held("waits"));
    house.until_waiting("batch", 1).await;

    let explained = explain(&house, "runs").await;
    assert_eq!((&explained["state"], &explained["attempts"]), (&json!("calling"), &json!(1)));
    assert_eq!(explained["worker"], house.worker(0).id().as_str());
    let explained = explain(&house, "waits").await;
    assert_eq!((&explained["state"], &explained["held_by"]), (&json!("waiting"), &json!("slots")));
    assert_eq!((&explained["waiting"], &explained["ahead"]), (&json!(1), &json!(0)));
    assert_eq!((&explained["tenant"], &explained["priority"]), (&json!("default"), &json!("batch")));

    let mut plain = crate::support::calls::plain_client(&house.router_url()).await;
    crate::support::calls::refusal(&mut plain, crate::support::calls::message("turned-away", "held", "")).await;
    let explained = explain(&house, "turned-away").await;
    assert_eq!((&explained["state"], &explained["held_by"]), (&json!("refused"), &json!("QUEUE_FULL")));
    assert_eq!(explained["pool"], "default");
    assert!(explained["why"].as_str().is_some_and(|why| why.contains("router.queue.tasks")), "{explained}");
    assert_eq!(explain(&house, "never-came").await["state"], "unknown");
    crate::support::calls::refusal(&mut plain, crate::support::calls::message("waits", "held", "")).await;
    let explained = explain(&house, "waits").await;
    assert_eq!(explained["state"], "waiting");
    let why = explained["why"].as_str().expect("a string");
    assert!(why.contains("another task with this id was refused meanwhile: QUEUE_FULL"), "{why}");

    let worker = house.worker(0).address().to_string();
    let output = run(weir().args(["explain", "runs", "--at", &worker]), "").await;
    assert_ok(&output);
    let text = stdout(&output);
    assert!(text.starts_with("task runs: running\n") && text.contains("it runs here, as run "), "{text}");
    let output = run(weir().args(["explain", "waits", "--at", &worker]), "").await;
    assert_eq!(output.status.code(), Some(1));

    house.valve.open();
    for caller in [runs, waits] {
        answer(caller).await.expect("an outcome");
    }
    for ended in ["runs", "waits"] {
        assert_eq!(explain(&house, ended).await["state"], "unknown", "it has ended");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_work_goes_on_behind_a_steady_stream_of_people() {
    let house = Plan { max_parallelism: 2, ..Plan::default() }.start().await;
    let work = |id: String, priority| Submission { priority, ..synthetic(&id, json!({"do": "sleep", "ms": 20})) };
    let people: Vec<_> = (0..300).map(|n| house.submit(work(format!("person-{n}"), Priority::Interactive))).collect();
    let waiting = || house.router_metric("weir_router_queue_tasks{priority=\"interactive\"}");
    eventually("people wait", || waiting() > 200.0).await;
    let batch: Vec<_> = (0..5).map(|n| house.submit(work(format!("batch-{n}"), Priority::Batch))).collect();
    for caller in batch {
        answer(caller).await.expect("an outcome");
    }
    assert!(waiting() > 50.0, "batch did not wait for all people: {} still waited", waiting());
    for caller in people {
        answer(caller).await.expect("an outcome");
    }
    house.close().await;
}
