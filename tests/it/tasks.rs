//! Tasks that go well, and refusals on the way: through the router to a worker, into S3.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::RpcStatusExt;
use weir::payload::key;
use weir::task::{Outcome, Priority};
use weir::wire::metadata::Call;
use weir::wire::{Reason, Retry, Started, proto};

use crate::support::calls::{channel, message, plain_client, refusal, typed};
use crate::support::house::{House, LONG, Plan, answer, eventually, held, pull, submit_all, synthetic};

fn json_of(outcome: &Outcome) -> Value {
    let output = outcome.result.as_ref().unwrap_or_else(|failure| panic!("{} failed: {failure}", outcome.task));
    serde_json::from_str(output.as_str()).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_ends_in_an_outcome_and_leaves_a_payload_without_its_token() {
    let house = House::start().await;
    let outcome = house.client.submit(&pull("pull-1")).await.expect("an outcome");
    assert_eq!(outcome.task.as_str(), "pull-1");
    assert_eq!((&outcome.worker, outcome.attempt), (house.worker(0).id(), 1));
    assert_eq!(outcome.run.0.get_version_num(), 7);
    // Two requests of 5 ms each.
    assert!(outcome.timings.ran >= Duration::from_millis(10), "{:?}", outcome.timings);
    assert!(outcome.timings.queued < LONG, "{:?}", outcome.timings);
    let output = json_of(&outcome);
    assert!(!output["transactions"].as_array().expect("a list").is_empty(), "{output}");

    house.until_payloads_ended(0, 1).await;
    let expected = key::key("payloads", &"bank".parse().expect("a name"), &outcome, key::SUFFIX);
    assert_eq!(house.stored_keys(), [expected.as_str()]);
    let text = house.payload(&expected).await;
    assert!(!text.contains("sandbox.worker-0"), "the token is in the payload: {text}");
    let payload: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(payload["task"]["id"], "pull-1");
    assert_eq!(payload["task"]["input"], json!({"customer": "c1"}));
    assert_eq!(payload["outcome"]["run_id"], outcome.run.to_string());
    let entries = payload["transcript"]["log"]["entries"].as_array().expect("entries");
    assert_eq!(entries.len(), 2, "accounts, then transactions");
    for entry in entries {
        assert_eq!(entry["response"]["status"], 200);
        assert!(entry["response"]["content"]["text"].as_str().is_some_and(|text| text.starts_with('{')), "{entry}");
        assert!(entry["time"].as_f64().is_some_and(|time| time >= 5.0), "{entry}");
    }
    let asked: Vec<_> = entries.iter().map(|entry| entry["request"]["url"].as_str().expect("a URL")).collect();
    // The customer's name is no key of a query that is kept.
    assert!(asked[0].contains("/accounts?customer=[redacted-") && asked[1].ends_with("/transactions"), "{asked:?}");

    let ledgers = house.close().await;
    assert_eq!((ledgers[0].offered, ledgers[0].stored), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_task_does_not_end_a_stream() {
    let house = House::start().await;
    for (role, url) in ["router", "worker"].into_iter().zip(house.urls()) {
        let good = |n: usize| message(&format!("{role}-{n}"), "synthetic", r#"{"do":"noop"}"#);
        let bad = [
            message("a b", "synthetic", "{}"),
            message("bad-json", "synthetic", "{"),
            message("bad-name", "nobody-has-this", "{}"),
        ];
        let tasks: Vec<_> = (0..2).map(good).chain(bad).chain((2..4).map(good)).collect();
        let mut client = plain_client(&url).await;
        let replies = client.submit_many(stream::iter(tasks)).await.expect("a stream").into_inner();
        let replies: HashMap<_, _> = replies.map(|reply| reply.expect("it goes on")).map(in_parts).collect().await;
        assert_eq!(replies.len(), 7, "{replies:?}");
        for n in 0..4 {
            assert!(replies[&format!("{role}-{n}")].is_ok(), "{replies:?}");
        }
        for (id, reason) in [("a b", "INVALID_TASK"), ("bad-json", "INVALID_TASK"), ("bad-name", "UNKNOWN_INTEGRATION")]
        {
            let error = replies[id].as_ref().expect_err("it is bad");
            let info = error.get_details_error_info().expect("a rich error");
            assert_eq!((info.domain.as_str(), info.reason.as_str()), ("weir", reason));
            assert_eq!(info.metadata["started"], "no");
        }
    }
    house.close().await;
}

fn in_parts(reply: proto::Reply) -> (String, Result<proto::Outcome, tonic_types::Status>) {
    match reply.result.expect("an answer") {
        proto::reply::Result::Outcome(outcome) => (reply.task_id, Ok(outcome)),
        proto::reply::Result::Error(error) => (reply.task_id, Err(error)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interactive_tasks_go_before_batch_when_all_places_are_taken() {
    let house = Plan { max_parallelism: 1, ..Plan::default() }.start().await;
    let mut callers = vec![house.submit(held("first"))];
    house.until_in_flight(0, 1).await;
    for n in 1..=2 {
        callers.push(house.submit(held(&format!("batch-{n}"))));
        house.until_waiting("batch", n).await;
    }
    for n in 1..=2 {
        let mut submission = held(&format!("interactive-{n}"));
        submission.priority = Priority::Interactive;
        callers.push(house.submit(submission));
        house.until_waiting("interactive", n).await;
    }
    house.valve.release(callers.len());
    for caller in callers {
        let outcome = answer(caller).await.expect("an outcome");
        assert!(outcome.result.is_ok());
    }
    assert_eq!(house.valve.started(), ["first", "interactive-1", "interactive-2", "batch-1", "batch-2"]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_one_worker_refuses_is_run_by_another() {
    let house = Plan { workers: 2, max_parallelism: 1, ..Plan::default() }.start().await;
    // The router cannot hear that the first worker is full: it must find out by a refusal.
    house.redis.pause();
    let holder = house.submit_to_worker(0, held("holder"));
    house.until_in_flight(0, 1).await;
    let refused = || house.router_metric("weir_router_attempts_total{result=\"refused\"}");
    let mut second_attempts = 0;
    for n in 0..100 {
        let outcome = house.client.submit(&synthetic(&format!("t-{n}"), json!({"do": "noop"}))).await;
        let outcome = outcome.expect("an outcome");
        assert_eq!(&outcome.worker, house.worker(1).id());
        second_attempts += u32::from(outcome.attempt == 2);
        if refused() > 0.0 {
            break;
        }
    }
    assert!(second_attempts > 0, "no task was refused by the full worker in 100 fair draws");
    house.redis.resume();
    house.valve.release(1);
    answer(holder).await.expect("an outcome");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_with_a_time_to_wait_and_loses_nothing() {
    let house = Plan { max_parallelism: 1, queue_tasks: 2, ..Plan::default() }.start().await;
    let mut callers = vec![house.submit(held("first"))];
    house.until_in_flight(0, 1).await;
    callers.extend([house.submit(held("waits-1")), house.submit(held("waits-2"))]);
    house.until_waiting("batch", 2).await;

    let mut plain = plain_client(&house.router_url()).await;
    let status = refusal(&mut plain, message("third", "held", "")).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    let error = typed(&status);
    assert_eq!((error.reason, error.started, error.retry), (Reason::QueueFull, Started::No, Retry::Later));
    assert!(error.retry_after.is_some_and(|wait| !wait.is_zero()), "{error:?}");
    assert!(error.message.contains("2 batch tasks are waiting"), "{error}");

    // The client waits as it was told, and a person is not kept out by a backlog of batch work.
    callers.push(house.submit(held("patient")));
    let mut person = held("person");
    person.priority = Priority::Interactive;
    callers.push(house.submit(person));
    house.until_waiting("interactive", 1).await;
    eventually("the patient one is turned away once", || {
        house.router_metric("weir_router_errors_total{reason=\"QUEUE_FULL\"}") >= 2.0
    })
    .await;
    house.valve.release(callers.len());
    for caller in callers {
        assert!(answer(caller).await.expect("an outcome").result.is_ok());
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_worker_refuses_at_once_and_says_how_full_it_is() {
    let house = Plan { max_parallelism: 1, ..Plan::default() }.start().await;
    let holder = house.submit_to_worker(0, held("holder"));
    house.until_in_flight(0, 1).await;
    let mut plain = plain_client(&house.worker_url(0)).await;
    let status = refusal(&mut plain, message("second", "held", "")).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    let error = typed(&status);
    assert_eq!((error.reason, error.started, error.retry), (Reason::WorkerFull, Started::No, Retry::Elsewhere));
    let wait = error.retry_after.expect("a time to wait");
    let text = |key: &str| status.metadata().get(key).and_then(|value| value.to_str().ok()).map(str::to_owned);
    assert_eq!(text("weir-load").as_deref(), Some("1/1/0/0/1/1/-/1/-"));
    assert_eq!(text("grpc-retry-pushback-ms"), Some(wait.as_millis().to_string()));
    assert_eq!(house.worker_metric(0, "weir_gate_refused_total{reason=\"full\"}"), 1.0);

    house.valve.release(1);
    answer(holder).await.expect("an outcome");
    let mut request = message("third", "synthetic", r#"{"do":"noop"}"#);
    request.priority = proto::Priority::Interactive.into();
    let response = plain.submit(request).await.expect("an outcome");
    assert_eq!(response.metadata().get("weir-load").and_then(|load| load.to_str().ok()), Some("0/1/0/0/1/0/-/0/-"));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_meant_for_an_earlier_life_of_a_worker_is_refused() {
    let house = House::start().await;
    let mut plain = plain_client(&house.worker_url(0)).await;
    let mut request = tonic::Request::new(message("late", "synthetic", r#"{"do":"noop"}"#));
    Call { attempt: 1, incarnation: Some(uuid::Uuid::now_v7()), queued: Duration::ZERO, trace: None }
        .write(request.metadata_mut());
    let status = plain.submit(request).await.expect_err("it is meant for another");
    let error = typed(&status);
    assert_eq!((error.reason, error.started, error.retry), (Reason::StaleIncarnation, Started::No, Retry::Elsewhere));
    assert_eq!(house.close().await[0].offered, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_and_reflection_are_answered_by_both_roles() {
    let house = House::start().await;
    for url in house.urls() {
        let channel = channel(&url).await;
        for service in ["", "weir.v1.Tasks", "weir.v1.Operations"] {
            let request = HealthCheckRequest { service: service.into() };
            let response = HealthClient::new(channel.clone()).check(request).await.expect("known");
            assert_eq!(response.into_inner().status(), ServingStatus::Serving);
        }
        macro_rules! assert_reflects {
            ($version:ident, $service:literal, $method:literal) => {{
                use tonic_reflection::pb::$version as pb;
                let question = pb::ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(pb::server_reflection_request::MessageRequest::FileContainingSymbol(
                        $service.into(),
                    )),
                };
                let mut client = pb::server_reflection_client::ServerReflectionClient::new(channel.clone());
                let mut answers =
                    client.server_reflection_info(stream::iter([question])).await.expect("reflection").into_inner();
                let answer = answers.message().await.expect("an answer").expect("one").message_response;
                let Some(pb::server_reflection_response::MessageResponse::FileDescriptorResponse(files)) = answer
                else {
                    panic!("no descriptors: {answer:?}")
                };
                let file = String::from_utf8_lossy(&files.file_descriptor_proto[0]).into_owned();
                assert!(file.contains($method));
            }};
        }
        assert_reflects!(v1, "weir.v1.Tasks", "SubmitMany");
        assert_reflects!(v1, "weir.v1.Operations", "Drain");
        assert_reflects!(v1alpha, "weir.v1.Tasks", "SubmitMany");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bank_never_sees_more_than_n_requests_of_a_worker_at_once() {
    let house = Plan { workers: 2, max_parallelism: 3, ..Plan::default() }.start().await;
    // More callers than places, some past the router.
    let direct = weir::client::Client::new(&house.worker_url(0)).expect("an address");
    let through = submit_all(&house.client, (0..150).map(|n| pull(&format!("routed-{n}"))).collect());
    let past = submit_all(&direct, (0..30).map(|n| pull(&format!("direct-{n}"))).collect());
    let (through, past) = tokio::join!(through, past);
    for answer in through.into_iter().chain(past) {
        json_of(&answer.expect("an outcome"));
    }
    let stats = house.sandbox.stats();
    for client in ["worker-0", "worker-1"] {
        let counts = stats.clients[client];
        assert_eq!(counts.max_in_flight, 3, "{client} had another number at once: {counts:?}");
    }
    assert_eq!(stats.all.total, 2 * 180, "a task was run twice, or not at all");
    for index in 0..2 {
        assert_eq!(house.worker_metric(index, "weir_gate_in_flight_peak"), 3.0);
    }
    let ledgers = house.close().await;
    assert_eq!(ledgers.iter().map(|ledger| ledger.stored).sum::<u64>(), 180);
}
