//! Settings that change while tasks run: the file is written as an operator would write it, and nobody restarts.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::house::{House, Plan, answer, eventually, held, synthetic};

/// A change applies within a second; a busy machine gets five.
const APPLIES_WITHIN: Duration = Duration::from_secs(5);

async fn apply(house: &House, max_parallelism: u32) {
    let began = Instant::now();
    house.set(0, &[("max_parallelism", json!(max_parallelism))]);
    eventually("N is what the file says", || house.load(0).target == max_parallelism).await;
    assert!(began.elapsed() < APPLIES_WITHIN, "N = {max_parallelism} took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn n_goes_up_and_down_under_load_and_is_what_the_worker_runs() {
    let house = Plan { max_parallelism: 1, ..Plan::default() }.start().await;
    let callers: Vec<_> = (0..40).map(|n| house.submit(held(&format!("t-{n}")))).collect();
    house.until_in_flight(0, 1).await;
    for n in [10, 30] {
        apply(&house, n).await;
        house.until_in_flight(0, n).await;
        assert_eq!(house.worker_metric(0, "weir_settings_max_parallelism"), f64::from(n));
        assert_eq!(house.worker_metric(0, "weir_gate_target"), f64::from(n));
    }
    apply(&house, 5).await;
    house.valve.release(25);
    house.until_in_flight(0, 5).await;
    assert_eq!(house.valve.started().len(), 30);
    house.valve.release(15);
    for caller in callers {
        assert!(answer(caller).await.expect("an outcome").result.is_ok());
    }
    assert_eq!(house.worker_metric(0, "weir_gate_in_flight_peak"), 30.0);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn n_of_0_takes_nothing_and_those_who_wait_are_served_when_it_is_raised() {
    let house = House::start().await;
    apply(&house, 0).await;
    let caller = house.submit(held("waits"));
    house.until_waiting("batch", 1).await;
    apply(&house, 1).await;
    house.valve.release(1);
    assert!(answer(caller).await.expect("an outcome").result.is_ok());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_keeps_the_last_good_values_and_is_counted() {
    let house = House::start().await;
    apply(&house, 7).await;
    let rejected = |key: &str| house.worker_metric(0, &format!("weir_settings_rejected_total{{key=\"{key}\"}}"));
    std::fs::write(house.settings_file(0), "{\"flags\": {\"max_par").expect("written");
    eventually("the broken file is counted", || rejected("document") == 1.0).await;
    assert_eq!(house.load(0).target, 7);

    house.set(0, &[("max_parallelism", json!(-1)), ("payload_sampling", json!(0.5))]);
    eventually("the bad value is counted", || rejected("max_parallelism") == 1.0).await;
    assert_eq!(house.load(0).target, 7);
    eventually("the good value beside it applies", || {
        house.worker_metric(0, "weir_settings_payload_sampling_ratio") == 0.5
    })
    .await;

    std::fs::remove_file(house.settings_file(0)).expect("removed");
    eventually("the missing file is counted", || rejected("document") == 2.0).await;
    assert_eq!(house.load(0).target, 7);
    apply(&house, 3).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampling_of_0_offers_nothing() {
    let house = House::start().await;
    house.set(0, &[("payload_sampling", json!(0))]);
    eventually("it applies", || house.worker_metric(0, "weir_settings_payload_sampling_ratio") == 0.0).await;
    for (id, what) in [("ok", "noop"), ("fails", "fail"), ("panics", "panic")] {
        house.client.submit(&synthetic(id, json!({"do": what}))).await.expect("an outcome");
    }
    let ledgers = house.close().await;
    assert_eq!(ledgers[0].offered, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_kept_whatever_is_sampled() {
    let house = House::start().await;
    house.set(0, &[("payload_sampling", json!(1e-9))]);
    eventually("it applies", || house.worker_metric(0, "weir_settings_payload_sampling_ratio") == 1e-9).await;
    for n in 0..20 {
        let what = if n % 2 == 0 { "noop" } else { "fail" };
        house.client.submit(&synthetic(&format!("t-{n}"), json!({"do": what}))).await.expect("an outcome");
    }
    let ledgers = house.close().await;
    assert_eq!(ledgers[0].offered, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slowest_are_kept_whatever_is_sampled() {
    let house = House::start().await;
    house.set(0, &[("payload_sampling", json!(1e-9))]);
    eventually("it applies", || house.worker_metric(0, "weir_settings_payload_sampling_ratio") == 1e-9).await;
    for n in 0..150 {
        house.client.submit(&synthetic(&format!("t-{n}"), json!({"do": "noop"}))).await.expect("an outcome");
    }
    let slow = synthetic("slow", json!({"do": "sleep", "ms": 2000}));
    house.client.submit(&slow).await.expect("an outcome");
    eventually("it is stored", || house.stored_keys().iter().any(|key| key.contains("/slow."))).await;
    let ledgers = house.close().await;
    assert!(ledgers[0].offered < 20, "{}", ledgers[0]);
}
