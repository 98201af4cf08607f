//! How tasks end that do not end well, and what their places and callers get: nothing is lost, and no place is free
//! before its task has really stopped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weir::client::Client;
use weir::gate::State;
use weir::task::{Failure, FailureCode, Outcome, Remedy};
use weir::wire::{MAX_OUTPUT_BYTES, Reason};

use crate::support::calls::{channel, message, plain_client, refusal, typed};
use crate::support::house::{House, Plan, answer, eventually, held, submission, synthetic};

fn failure(outcome: Outcome) -> Failure {
    outcome.result.expect_err("it cannot succeed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_answered_at_its_deadline_and_its_place_is_free_once_it_has_stopped() {
    let house = House::start().await;
    let mut submission = held("late");
    submission.timeout = Duration::from_millis(400);
    let began = Instant::now();
    let outcome = house.client.submit(&submission).await.expect("an outcome, at the deadline");
    let took = began.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&took), "answered after {took:?}");
    let failure = failure(outcome);
    assert_eq!((failure.code, failure.remedy), (FailureCode::Deadline, Remedy::Retry));
    house.until_in_flight(0, 0).await;
    house.until_payloads_ended(0, 1).await;
    assert!(house.stored_keys()[0].contains("/held/deadline/late."), "{:?}", house.stored_keys());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ignores_its_deadline_is_answered_and_keeps_its_place_until_it_has_stopped() {
    let house = Plan { max_parallelism: 1, ..Plan::default() }.start().await;
    // It computes on a blocking thread, and its future is dropped at the deadline.
    let mut submission = submission("stubborn-1", "stubborn", json!(null));
    submission.timeout = Duration::from_millis(200);
    let answered = house.client.submit(&submission).await.expect("an outcome, at the deadline");
    assert_eq!(failure(answered).code, FailureCode::Deadline);

    let overdue = || house.worker_metric(0, "weir_tasks_overdue");
    eventually("the task shows as overdue", || overdue() == 1.0).await;
    assert_eq!(house.load(0).in_flight, 1, "the closure still runs");
    let mut plain = plain_client(&house.worker_url(0)).await;
    let refused = refusal(&mut plain, message("next", "held", "")).await;
    assert_eq!(typed(&refused).reason, Reason::WorkerFull);

    house.valve.open();
    house.until_in_flight(0, 0).await;
    assert_eq!(overdue(), 0.0);
    let next = house.client.submit(&held("next")).await.expect("an outcome");
    assert!(next.result.is_ok());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synthetic_task_that_ignores_cancellation_keeps_its_place_as_long_as_it_runs() {
    let house = House::start().await;
    let mut submission = synthetic("ignores", json!({"do": "ignore_cancellation", "ms": 1_000}));
    submission.timeout = Duration::from_millis(200);
    let began = Instant::now();
    let answered = house.client.submit(&submission).await.expect("an outcome, at the deadline");
    assert_eq!(failure(answered).code, FailureCode::Deadline);
    house.until_in_flight(0, 0).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "its place was free after {:?}", began.elapsed());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_an_outcome_and_the_worker_lives_on() {
    let house = Plan { max_parallelism: 1, ..Plan::default() }.start().await;
    let panics = synthetic("panics", json!({"do": "panic"}));
    let failure = failure(house.client.submit(&panics).await.expect("an outcome"));
    assert_eq!((failure.code, failure.remedy), (FailureCode::Panic, Remedy::None));
    assert!(failure.message.contains("told to panic"), "{failure}");
    let after = house.client.submit(&synthetic("after", json!({"do": "noop"}))).await.expect("an outcome");
    assert!(after.result.is_ok());
    assert_eq!(house.worker_metric(0, "weir_tasks_total{integration=\"synthetic\",outcome=\"panic\"}"), 1.0);
    house.until_payloads_ended(0, 2).await;
    assert!(house.stored_keys().iter().any(|key| key.contains("/synthetic/panic/panics.")));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_cancels_its_task_which_still_leaves_a_payload() {
    let house = House::start().await;
    let cancelled = || house.worker_metric(0, "weir_tasks_total{integration=\"held\",outcome=\"cancelled\"}");
    let callers = [house.submit(held("routed")), house.submit_to_worker(0, held("direct"))];
    house.until_in_flight(0, 2).await;
    callers.iter().for_each(tokio::task::JoinHandle::abort);
    house.until_in_flight(0, 0).await;
    eventually("both are counted", || cancelled() == 2.0).await;
    house.until_payloads_ended(0, 2).await;
    let keys = house.stored_keys();
    for id in ["routed", "direct"] {
        assert!(keys.iter().any(|key| key.contains(&format!("/held/cancelled/{id}."))), "{keys:?}");
    }
    assert_eq!(house.router_metric("weir_router_attempts_total{result=\"given_up\"}"), 1.0);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_while_it_waits_leaves_the_queue() {
    let house = Plan { max_parallelism: 1, ..Plan::default() }.start().await;
    let holder = house.submit(held("holder"));
    house.until_in_flight(0, 1).await;
    let waits = house.submit(held("waits"));
    house.until_waiting("batch", 1).await;
    waits.abort();
    house.until_waiting("batch", 0).await;
    house.valve.release(2);
    answer(holder).await.expect("an outcome");
    assert_eq!(house.valve.started(), ["holder"]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_is_sent_up_to_its_limit_and_is_a_failure_beyond() {
    let house = House::start().await;
    // The output is {"filler":"xxx…"}.
    let largest = MAX_OUTPUT_BYTES - r#"{"filler":""}"#.len();
    let fits = synthetic("fits", json!({"do": "noop", "output_bytes": largest}));
    let outcome = house.client.submit(&fits).await.expect("an outcome");
    assert_eq!(outcome.result.expect("it fits").as_str().len(), MAX_OUTPUT_BYTES);
    let too_large = synthetic("too-large", json!({"do": "noop", "output_bytes": largest + 1}));
    let failure = failure(house.client.submit(&too_large).await.expect("an outcome"));
    assert_eq!((failure.code, failure.remedy), (FailureCode::OutputTooLarge, Remedy::None));
    assert!(failure.message.contains(&(MAX_OUTPUT_BYTES + 1).to_string()), "{failure}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_n_ends_nothing_and_a_higher_one_serves_those_who_wait() {
    let house = Plan { max_parallelism: 4, ..Plan::default() }.start().await;
    let mut callers: Vec<_> = (0..4).map(|n| house.submit(held(&format!("first-{n}")))).collect();
    house.until_in_flight(0, 4).await;
    house.set(0, &[("max_parallelism", json!(1))]);
    eventually("N is lower", || house.load(0).target == 1).await;
    let load = house.load(0);
    assert_eq!((load.in_flight, load.state), (4, State::Full));

    callers.extend((0..4).map(|n| house.submit(held(&format!("second-{n}")))));
    house.until_waiting("batch", 4).await;
    house.valve.release(3);
    house.until_in_flight(0, 1).await;
    assert_eq!(house.valve.started().len(), 4, "while as many run as may, nobody new starts");

    house.set(0, &[("max_parallelism", json!(5))]);
    house.until_in_flight(0, 5).await;
    house.until_waiting("batch", 0).await;
    assert_eq!(house.valve.started().len(), 8);
    house.valve.release(5);
    for caller in callers {
        assert!(answer(caller).await.expect("an outcome").result.is_ok());
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_notices_that_a_worker_drains_and_another_one_joins() {
    const TASKS: usize = 400;
    let mut house = Plan { workers: 2, max_parallelism: 8, ..Plan::default() }.start().await;
    let (client, done) = (house.client.clone(), AtomicUsize::new(0));
    let load = load(&client, TASKS, &done);
    let changes = async {
        eventually("the first quarter is done", || done.load(Ordering::Relaxed) > TASKS / 4).await;
        let drained = house.stop_worker(0).await;
        assert!(drained.stored > 0, "the drained worker had its share: {drained}");
        assert!(done.load(Ordering::Relaxed) < TASKS, "the drain was over under load");
        let joined = house.add_worker().await;
        eventually("the new one has its share", || house.ledger(joined).offered > 10).await;
        drained
    };
    let (workers, drained) = tokio::join!(load, changes);
    assert_eq!(workers.len(), TASKS);
    house.until_known(2).await;
    let stored: u64 = house.close().await.iter().map(|ledger| ledger.stored).sum();
    assert_eq!(stored + drained.stored, TASKS as u64);
}

/// Keeps both workers busy; every task must succeed. Returns who ran them.
async fn load(client: &Client, tasks: usize, done: &AtomicUsize) -> Vec<String> {
    stream::iter(0..tasks)
        .map(|n| async move {
            let sleeps = synthetic(&format!("t-{n}"), json!({"do": "sleep", "ms": 50}));
            let outcome = client.submit(&sleeps).await.expect("no caller may notice");
            outcome.result.expect("no task may fail");
            done.fetch_add(1, Ordering::Relaxed);
            outcome.worker.to_string()
        })
        .buffer_unordered(12)
        .collect()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_in_time_is_cancelled_and_answered_at_a_drain() {
    let plan = Plan { drain_within: Duration::from_millis(200), ..Plan::default() };
    let mut house = plan.start().await;
    let caller = house.submit(held("slow"));
    house.until_in_flight(0, 1).await;
    house.stop_worker(0).await;
    let outcome = answer(caller).await.expect("an outcome, not a broken call");
    assert_eq!(failure(outcome).code, FailureCode::Cancelled);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_never_ends_does_not_keep_a_stopped_server_alive() {
    let house = House::start().await;
    let mut watches = Vec::new();
    for url in house.urls() {
        let request = HealthCheckRequest { service: "weir.v1.Tasks".into() };
        let watch = HealthClient::new(channel(&url).await).watch(request).await.expect("a watch").into_inner();
        watches.push(watch);
    }
    for watch in &mut watches {
        let first = watch.message().await.expect("it is open").expect("an answer");
        assert_eq!(first.status(), ServingStatus::Serving);
    }
    house.close().await;
    for mut watch in watches {
        let last = watch.message().await.expect("it is told").expect("before the end");
        assert_eq!(last.status(), ServingStatus::NotServing);
        assert!(!matches!(watch.message().await, Ok(Some(_))), "the connection has ended");
    }
}
