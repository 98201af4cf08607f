//! The parts together, through the door that the worker uses.

use super::*;
use crate::task::{Failure, Json, RunId, Timings};

const SECOND: Duration = Duration::from_secs(1);

fn name(text: &str) -> IntegrationName {
    text.parse().expect("a name")
}

fn upstreams(config: serde_json::Value) -> Upstreams {
    let config: Config = serde_json::from_value(config).expect("a configuration");
    let telemetry = Telemetry::new().expect("a recorder");
    Upstreams::new(&config, [name("bank"), name("other")].iter(), &telemetry).expect("valid")
}

fn outcome(result: Result<Json, Failure>, ran: Duration) -> Outcome {
    Outcome {
        task: "t".parse().expect("an id"),
        run: RunId::mint(),
        result,
        worker: "w".parse().expect("an id"),
        attempt: 1,
        timings: Timings { queued: Duration::ZERO, ran },
    }
}

fn failure(code: FailureCode, remedy: Remedy) -> Outcome {
    outcome(Err(Failure::new(code, "secret words", remedy)), SECOND)
}

fn retryable() -> Outcome {
    let mut outcome = failure(FailureCode::Integration, Remedy::Retry);
    if let Err(failure) = &mut outcome.result {
        failure.reason = Some("bank_down".parse().expect("a reason"));
    }
    outcome
}

fn fail(upstreams: &Upstreams, times: usize) {
    (0..times).for_each(|_| upstreams.ask(&name("bank"), SECOND).expect("closed").ended(&retryable()));
}

#[tokio::test(start_paused = true)]
async fn only_the_integration_that_fails_is_spared_and_the_refusal_says_why() {
    let upstreams = upstreams(serde_json::json!({}));
    let mut spared = upstreams.spared();
    fail(&upstreams, 20);
    assert_eq!(*spared.borrow_and_update(), Spares { open: vec![name("bank")], half_open: vec![] });
    let refused = upstreams.ask(&name("bank"), SECOND).err().expect("open");
    let expected = "bank is spared: 20 of 20 tasks failed within 30s, last: integration_error (bank_down)";
    assert_eq!(refused.to_string(), expected);
    let Refused::BreakerOpen { after, .. } = refused else { panic!("{refused}") };
    assert!(after > SECOND * 3 && after < SECOND * 7, "{after:?}");
    drop(upstreams.ask(&name("other"), SECOND).expect("it is well"));

    let until = upstreams.refresh().expect("it will be tried again");
    tokio::time::advance(until - Instant::now()).await;
    assert_eq!(upstreams.refresh(), None);
    let tried = Spares { open: vec![], half_open: vec![name("bank")] };
    assert_eq!(*spared.borrow_and_update(), tried, "routers must send the probe");
    let probes: Vec<_> = (0..3).map(|_| upstreams.ask(&name("bank"), SECOND).expect("a probe")).collect();
    let refused = upstreams.ask(&name("bank"), SECOND).err().expect("all probes are under way");
    let expected = "bank is spared until the tasks that try it have ended: 20 of 20 tasks failed within 30s, last: \
                    integration_error (bank_down)";
    assert_eq!(refused.to_string(), expected);
    drop(probes);
    let probe = upstreams.ask(&name("bank"), SECOND).expect("they were given back");
    probe.ended(&outcome(Ok(Json::null()), SECOND));
    assert_eq!(upstreams.known()[0].breaker, Some(BreakerIs::Closed));
    assert_eq!(*spared.borrow_and_update(), Spares::default());
}

#[tokio::test(start_paused = true)]
async fn probes_that_failed_are_not_said_to_be_the_windows_tasks() {
    let upstreams = upstreams(serde_json::json!({}));
    fail(&upstreams, 20);
    let until = upstreams.refresh().expect("it will be tried again");
    // As long after as nobody asks: the window has nothing to do with it.
    tokio::time::advance(until - Instant::now() + SECOND * 300).await;
    fail(&upstreams, 3);
    let refused = upstreams.ask(&name("bank"), SECOND).err().expect("open again");
    assert_eq!(refused.to_string(), "bank is spared: 3 of 3 probes failed, last: integration_error (bank_down)");
    assert_eq!(upstreams.known()[0].saw.as_deref(), Some("3 of 3 probes failed, last: integration_error (bank_down)"));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_banks_fault_does_not_speak_against_it() {
    let upstreams = upstreams(serde_json::json!({}));
    let not_its_fault = [
        failure(FailureCode::Integration, Remedy::None),
        failure(FailureCode::Integration, Remedy::UserAction),
        failure(FailureCode::Panic, Remedy::None),
        failure(FailureCode::Cancelled, Remedy::Retry),
        failure(FailureCode::OutputTooLarge, Remedy::None),
    ];
    for outcome in not_its_fault.iter().cycle().take(500) {
        upstreams.ask(&name("bank"), SECOND).expect("closed").ended(outcome);
    }
    assert_eq!(upstreams.known()[0].breaker, Some(BreakerIs::Closed));
}

#[tokio::test(start_paused = true)]
async fn callers_in_a_hurry_do_not_open_it_and_a_bank_that_hangs_does() {
    let upstreams = upstreams(serde_json::json!({}));
    let end = |outcome: &Outcome| upstreams.ask(&name("bank"), SECOND * 60).map(|asked| asked.ended(outcome));
    (0..100).for_each(|_| end(&outcome(Ok(Json::null()), SECOND * 10)).expect("closed"));
    tokio::time::advance(SECOND * 31).await;
    let deadline = |ran| Outcome {
        timings: Timings { queued: Duration::ZERO, ran },
        ..failure(FailureCode::Deadline, Remedy::Retry)
    };
    (0..100).for_each(|_| end(&deadline(SECOND)).expect("closed"));
    (0..20).for_each(|_| end(&deadline(SECOND * 30)).expect("closed"));
    assert!(end(&deadline(SECOND)).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_task_without_a_chance_is_refused_and_told_why() {
    let upstreams = upstreams(serde_json::json!({}));
    let bank = name("bank");
    for n in 0..100 {
        let ran = SECOND + SECOND * n / 100;
        upstreams.ask(&bank, SECOND * 60).expect("time enough").ended(&outcome(Ok(Json::null()), ran));
    }
    let refused = upstreams.ask(&bank, SECOND * 3 / 10).err().expect("hopeless").to_string();
    assert_eq!(refused, "bank takes at least 1.0 s (5% of the last 100 tasks or so were faster); 300 ms remain");
    assert!(upstreams.ask(&bank, SECOND * 2).is_ok());
}

#[tokio::test(start_paused = true)]
async fn limits_in_force_are_offered_and_shadows_only_shown() {
    let upstreams = upstreams(serde_json::json!({
        "adaptive": {"mode": "on", "initial": 7},
        "integrations": {"other": {"adaptive": {"mode": "shadow"}}},
    }));
    assert_eq!(upstreams.limits(), [(name("bank"), 7)]);
    let shadow = upstreams.known()[1].limit.expect("it is shown");
    assert_eq!((shadow.tasks, shadow.mode), (7, Mode::Shadow));
}
