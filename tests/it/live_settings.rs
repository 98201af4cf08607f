//! Settings that change while tasks run: the file is written as an operator would write it, and nobody restarts.

use std::time::{Duration, Instant};

use serde_json::json;
use weir::settings::file;
use weir::task::Priority;
use weir::wire::{Reason, Retry, Started};

use crate::support::calls::{message, plain_client, refusal, typed};
use crate::support::house::{House, Plan, answer, eventually, held, submit_all, synthetic};

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
async fn limits_by_name_hold_at_the_door_as_soon_as_the_file_says_so() {
    let house = Plan { max_parallelism: 10, ..Plan::default() }.start().await;
    let mut plain = plain_client(&house.worker_url(0)).await;
    let applied = async |flags: &[(&str, serde_json::Value)]| {
        let before = house.worker_metric(0, "weir_settings_applied_total");
        house.set(0, flags);
        eventually("it applies", || house.worker_metric(0, "weir_settings_applied_total") > before).await;
        eventually("the gate has it", || house.load(0).target == 10).await;
    };

    applied(&[("integration_caps", json!({"held": 2}))]).await;
    eventually("the cap is the gate's", || {
        house.worker_metric(0, "weir_gate_integration_slots_cap{integration=\"held\"}") == 2.0
    })
    .await;
    let mut callers: Vec<_> = (0..2).map(|n| house.submit_to_worker(0, held(&format!("held-{n}")))).collect();
    house.until_in_flight(0, 2).await;
    let error = typed(&refusal(&mut plain, message("one-more", "held", "")).await);
    assert_eq!((error.reason, error.started, error.retry), (Reason::IntegrationFull, Started::No, Retry::Elsewhere));
    assert_eq!(error.message, "held holds 2 of its 2 slots");
    house.client.submit(&synthetic("another", json!({"do": "noop"}))).await.expect("others go on");

    applied(&[("tenant_caps", json!({"default": "20%"}))]).await;
    eventually("the cap of the integration is lifted", || {
        house.worker_metric(0, "weir_gate_integration_slots_cap{integration=\"held\"}") == 10.0
    })
    .await;
    let error = typed(&refusal(&mut plain, message("same-tenant", "synthetic", r#"{"do":"noop"}"#)).await);
    assert_eq!((error.reason, error.message.as_str()), (Reason::TenantFull, "tenant default holds 2 of its 2 slots"));

    applied(&[("interactive_reserve", json!(0.8)), ("integration_weights", json!({"synthetic": 3}))]).await;
    eventually("the reserve is the gate's", || house.load(0).reserve == 8).await;
    let error = typed(&refusal(&mut plain, message("batch", "held", "")).await);
    assert_eq!(error.reason, Reason::WorkerFull);
    assert!(error.message.contains("batch holds 2 and may hold 2 of 10 slots, 8 are reserved for interactive"));
    let mut person = held("person");
    person.priority = Priority::Interactive;
    callers.push(house.submit_to_worker(0, person));
    house.until_in_flight(0, 3).await;

    for reason in ["integration_full", "tenant_full", "reserve"] {
        assert_eq!(house.worker_metric(0, &format!("weir_gate_refused_total{{reason=\"{reason}\"}}")), 1.0, "{reason}");
    }
    house.valve.release(3);
    for caller in callers {
        answer(caller).await.expect("an outcome");
    }
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
    eventually("that the file is missing is seen", || house.worker_metric(0, "weir_settings_source_up") == 0.0).await;
    assert_eq!((house.load(0).target, rejected("document")), (7, 1.0), "nothing more was refused");
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

/// The payload sampling of such a document: all of one integration, none of the others.
fn all_of(integration: &str) -> serde_json::Value {
    let rule = json!({"if": [{"===": [{"var": "integration"}, integration]}, "all", null]});
    let sampling =
        json!({"state": "ENABLED", "variants": {"all": 1, "none": 0}, "defaultVariant": "none", "targeting": rule});
    json!({"flags": {"payload_sampling": sampling}})
}

#[tokio::test(flavor = "multi_thread")]
async fn integrations_are_sampled_apart_by_one_document_and_a_change_counts_for_what_runs() {
    let house = House::start().await;
    let apply = async |document: serde_json::Value| {
        let before = house.worker_metric(0, "weir_settings_applied_total");
        file::write_file(&house.settings_file(0), &document.to_string()).expect("written");
        eventually("it applies", || house.worker_metric(0, "weir_settings_applied_total") > before).await;
    };
    let stored = |integration: &str| {
        let part = format!("/{integration}/");
        house.stored_keys().iter().filter(|key| key.contains(&part)).count()
    };
    let mut expected = [0, 0];
    apply(all_of("held")).await;
    for (round, kept) in ["synthetic", "held", "synthetic"].into_iter().enumerate() {
        // They begin while the document says the contrary.
        let callers: Vec<_> = (0..2).map(|n| house.submit(held(&format!("held-{round}-{n}")))).collect();
        house.until_in_flight(0, 2).await;
        apply(all_of(kept)).await;
        for n in 0..5 {
            let what = if n == 0 { "fail" } else { "noop" };
            house.client.submit(&synthetic(&format!("s-{round}-{n}"), json!({"do": what}))).await.expect("an outcome");
        }
        house.valve.release(2);
        for caller in callers {
            answer(caller).await.expect("an outcome");
        }
        expected[usize::from(kept == "held")] += if kept == "held" { 2 } else { 5 };
        eventually("what is to be kept is stored", || [stored("synthetic"), stored("held")] == expected).await;
    }
    let ledgers = house.close().await;
    assert_eq!(ledgers[0].offered as usize, expected.iter().sum::<usize>(), "and nothing else was offered");
}

#[tokio::test(flavor = "multi_thread")]
async fn which_runs_are_slow_is_a_live_setting_of_each_integration() {
    const SLEEPS: u64 = 20;
    let house = House::start().await;
    let sampled = |slow: serde_json::Value| {
        house.set(0, &[("payload_sampling", json!(1e-9)), ("payload_slow_quantile", slow)]);
    };
    let applied = || house.worker_metric(0, "weir_settings_applied_total");
    sampled(json!({"*": 0.5, "synthetic": 0.99}));
    eventually("it applies", || applied() == 1.0).await;
    for n in 0..120 {
        house.client.submit(&synthetic(&format!("t-{n}"), json!({"do": "noop"}))).await.expect("an outcome");
    }
    let sleep = async |round: &str| {
        let sleeps = (0..SLEEPS).map(|n| synthetic(&format!("{round}-{n}"), json!({"do": "sleep", "ms": 200})));
        for outcome in submit_all(&house.client, sleeps.collect()).await {
            outcome.expect("an outcome");
        }
    };
    sleep("usual").await;
    let usual = house.ledger(0).offered;
    assert!(usual < SLEEPS, "{usual}: the slowest hundredth are less than all that take as long");
    sampled(json!({"*": 0.99, "synthetic": 0.5}));
    eventually("it applies", || applied() == 2.0).await;
    sleep("half").await;
    eventually("all are kept", || house.ledger(0).offered >= usual + SLEEPS).await;
    house.close().await;
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
